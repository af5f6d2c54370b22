//! The functions that C calls.

#![allow(unsafe_code)]

use std::ffi::{CString, c_char, c_void};

use ropejit::{RopeSpec, Stream};

use crate::args::{Args, Reader};
use crate::pointers::{give, optional, required, slice, text};
use crate::status::{self, Status, guarded, wrong};
use crate::view::Place;

/// A device and a cache. May be used by several threads at once.
pub struct Engine {
    engine: ropejit::Engine,
    place: Place,
}

/// The kernels of one spec. May be used by several threads at once.
pub struct Rope {
    rope: ropejit::Rope,
    place: Place,
}

/// How an engine is opened. What is null or 0 comes from the environment (`ROPEJIT_CACHE_DIR`, ...), then from the
/// defaults. ropejit keeps none of the texts.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// `sizeof(ropejit_options)`.
    pub size: usize,
    /// `auto`, `host`, `cuda` or `cuda:1`.
    pub device: *const c_char,
    /// The cache folder.
    pub cache_dir: *const c_char,
    /// `background`, `blocking`, `never` or `frozen`.
    pub tuning: *const c_char,
    /// A tuning lock file.
    pub lock_file: *const c_char,
    /// Not 0: nothing is read from or kept on disk.
    pub in_memory: i32,
}

/// The version of the library: a text that lives as long as the library.
#[unsafe(no_mangle)]
pub extern "C" fn ropejit_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// What the last call on this thread that failed says: what, where and what to do. Empty if none has. The text is the
/// library's, and is there until the next call of this thread fails.
#[unsafe(no_mangle)]
pub extern "C" fn ropejit_last_error() -> *const c_char {
    status::last()
}

/// Opens a device and a cache. `options` may be null. `*engine` is the caller's, to be closed with `ropejit_close`; it
/// is left as it is on an error.
///
/// # Safety
/// `options` is null or points to options whose texts end with a 0; `engine` may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ropejit_open(options: *const Options, engine: *mut *mut Engine) -> Status {
    // SAFETY: this function's contract.
    guarded(|| unsafe {
        give("engine", engine, || {
            let mut builder = ropejit::Engine::builder();
            if let Some(options) = optional("options", options)? {
                if options.size != size_of::<Options>() {
                    let what = format!("is {}, {} is sizeof(ropejit_options)", options.size, size_of::<Options>());
                    return Err(wrong("size", what));
                }
                if let Some(device) = text("device", options.device)? {
                    builder = builder.device(device.parse()?);
                }
                if let Some(folder) = text("cache_dir", options.cache_dir)? {
                    builder = builder.cache_dir(folder);
                }
                if let Some(tuning) = text("tuning", options.tuning)? {
                    builder = builder.tuning(tuning.parse()?);
                }
                if let Some(file) = text("lock_file", options.lock_file)? {
                    builder = builder.lock_file(file);
                }
                if options.in_memory != 0 {
                    builder = builder.in_memory();
                }
            }
            let engine = builder.build()?;
            let place = engine.device().ordinal().map_or(Place::Host, |gpu| Place::Cuda(gpu as i32));
            Ok(Box::into_raw(Box::new(Engine { engine, place })))
        })
    })
}

/// Closes an engine. Handles of `ropejit_spec` go on serving, and are freed by themselves; its background work ends
/// with the last. Null does nothing.
///
/// # Safety
/// `engine` is null, or comes from `ropejit_open` and is not used after this.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ropejit_close(engine: *mut Engine) {
    if !engine.is_null() {
        // SAFETY: this function's contract: it was made by `Box::into_raw`.
        guarded(|| {
            drop(unsafe { Box::from_raw(engine) });
            Ok(())
        });
    }
}

/// Gets the kernels of a spec, which is stated in one line, such as
/// `bf16 d128 h32/8 half_split once table=f32/half pos=implicit`. `*rope` is the caller's, to be freed with
/// `ropejit_free`; it is left as it is on an error.
///
/// # Safety
/// `engine` comes from `ropejit_open`, `spec` is a text that ends with a 0, `rope` may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ropejit_spec(engine: *const Engine, spec: *const c_char, rope: *mut *mut Rope) -> Status {
    // SAFETY: this function's contract.
    guarded(|| unsafe {
        give("rope", rope, || {
            let engine = required("engine", engine)?;
            let spec: RopeSpec = text("spec", spec)?.ok_or_else(|| wrong("spec", "is null"))?.parse()?;
            let rope = engine.engine.rope(&spec)?;
            Ok(Box::into_raw(Box::new(Rope { rope, place: engine.place })))
        })
    })
}

/// Frees what `ropejit_spec` gave. Graphs that were captured with it may still be replayed. Null does nothing.
///
/// # Safety
/// `rope` is null, or comes from `ropejit_spec` and is not used after this.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ropejit_free(rope: *mut Rope) {
    if !rope.is_null() {
        // SAFETY: this function's contract: it was made by `Box::into_raw`.
        guarded(|| {
            drop(unsafe { Box::from_raw(rope) });
            Ok(())
        });
    }
}

/// Turns q and k. `stream` is a `cudaStream_t` or `CUstream` of the engine's GPU, null for the default stream; on the
/// processor it means nothing, and the call returns when it is done. On a GPU it returns when it is queued. The
/// `DLTensor`s themselves are only read during the call.
///
/// # Safety
/// `rope` comes from `ropejit_spec`. `args` points to arguments whose tensors are valid memory of the engine's device
/// until the stream has passed the call; what is written is not used by others meanwhile, and does not overlap another
/// tensor. `stream` is alive.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ropejit_apply(rope: *const Rope, args: *const Args, stream: *mut c_void) -> Status {
    // SAFETY: this function's contract.
    guarded(|| unsafe {
        let Rope { rope, place } = required("rope", rope)?;
        let args = Reader { args: required("args", args)?, spec: rope.spec(), place: *place }.read()?;
        rope.apply(Stream::from_raw(stream), &args).map(drop)
    })
}

/// f32 numbers that the workspace of a backward call needs, for as many tokens in all: 0 unless the spec has a norm
/// with weights.
///
/// # Safety
/// `rope` comes from `ropejit_spec`; `numbers` may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ropejit_workspace(rope: *const Rope, tokens: u64, numbers: *mut u64) -> Status {
    // SAFETY: this function's contract.
    guarded(|| unsafe {
        give("numbers", numbers, || {
            if tokens > 1 << 40 {
                return Err(wrong("tokens", format!("must be 2^40 at most, got {tokens}")));
            }
            Ok(required("rope", rope)?.rope.spec().weight_workspace(tokens))
        })
    })
}

/// Reports a token whose position lay outside of cos and sin in an earlier call (it has become NaN), or whose slot lay
/// outside of the cache. It is reported once. Synchronise with the stream first: what a GPU has not run yet is not
/// seen.
///
/// # Safety
/// `rope` comes from `ropejit_spec`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ropejit_check(rope: *const Rope) -> Status {
    // SAFETY: this function's contract.
    guarded(|| unsafe { required("rope", rope)?.rope.check() })
}

/// Compiles, and where `tune` is not 0 measures, what calls of these specs and numbers of tokens need, and keeps it in
/// the cache. Where all is there, nothing is done. `heads_first` as in `ropejit_args`; tensors are contiguous.
///
/// # Safety
/// `engine` comes from `ropejit_open`; `specs` points to `spec_count` texts that end with a 0, `tokens` to
/// `token_count` numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ropejit_prewarm(
    engine: *const Engine,
    specs: *const *const c_char,
    spec_count: usize,
    tokens: *const u64,
    token_count: usize,
    heads_first: i32,
    tune: i32,
) -> Status {
    // SAFETY: this function's contract.
    guarded(|| unsafe {
        let engine = required("engine", engine)?;
        let read =
            |spec: &*const c_char| text("specs", *spec)?.ok_or_else(|| wrong("specs", "has a null pointer"))?.parse();
        let specs = slice("specs", specs, spec_count)?.iter().map(read).collect::<ropejit::Result<Vec<RopeSpec>>>()?;
        let tokens = slice("tokens", tokens, token_count)?;
        engine.engine.prewarm(&specs, tokens, heads_first != 0, tune != 0).map(drop)
    })
}

/// From now on, anything that is neither loaded nor in the cache is `ROPEJIT_STATUS_NOT_CACHED`.
///
/// # Safety
/// `engine` comes from `ropejit_open`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ropejit_freeze(engine: *const Engine) -> Status {
    // SAFETY: this function's contract.
    guarded(|| unsafe { required("engine", engine) }.map(|engine| engine.engine.freeze()))
}

/// Waits until no tuning is queued or running in the background.
///
/// # Safety
/// `engine` comes from `ropejit_open`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ropejit_wait_tuned(engine: *const Engine) -> Status {
    // SAFETY: this function's contract.
    guarded(|| unsafe { required("engine", engine) }.map(|engine| engine.engine.wait_tuned()))
}

/// What an engine has done, as a JSON object of numbers: `compiles`, `tunings`, `memory_hits`, ... `*json` is the
/// caller's, to be freed with `ropejit_free_text`.
///
/// # Safety
/// `engine` comes from `ropejit_open`; `json` may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ropejit_stats(engine: *const Engine, json: *mut *mut c_char) -> Status {
    // SAFETY: this function's contract.
    guarded(|| unsafe {
        give("json", json, || {
            let stats = serde_json::to_string(&required("engine", engine)?.engine.stats());
            let text = stats.ok().and_then(|text| CString::new(text).ok());
            text.map(CString::into_raw).ok_or_else(|| wrong("json", "cannot be written"))
        })
    })
}

/// Frees a text that `ropejit_stats` gave. Null does nothing.
///
/// # Safety
/// `text` is null, or comes from `ropejit_stats` and is not used after this.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ropejit_free_text(text: *mut c_char) {
    if !text.is_null() {
        // SAFETY: this function's contract: it was made by `CString::into_raw`.
        guarded(|| {
            drop(unsafe { CString::from_raw(text) });
            Ok(())
        });
    }
}
