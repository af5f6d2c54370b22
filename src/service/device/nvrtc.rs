//! NVRTC, loaded from wherever it is, if nobody but those who are trusted can change it (`system::trust`).
//!
//! cudarc's NVRTC layer looks on the loader's path only, panics where there is none, and cannot be told which file to
//! take; nine functions through `libloading` can. NVRTC compiles on several threads at once.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

use libloading::Library;
use once_cell::race::OnceBox;

use super::kernel::Binary;
use super::machine::compile_error;
use super::nvrtc_search;
use crate::error::{Error, ErrorKind, Result};
use crate::system::{environment, fork, trust};

/// The environment variable that names the library's file.
const VARIABLE: &str = "ROPEJIT_NVRTC";

type Program = *mut c_void;
type GetSize = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type GetBytes = unsafe extern "C" fn(Program, *mut c_char) -> c_int;

struct Api {
    version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int,
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    ptx: (GetSize, GetBytes),
    cubin: (GetSize, GetBytes),
    log: (GetSize, GetBytes),
}

/// A loaded NVRTC.
pub(super) struct Nvrtc {
    api: Api,
    path: PathBuf,
    /// Major and minor.
    version: (c_int, c_int),
    identity: OnceBox<String>,
    /// Of the process that has loaded it.
    generation: u32,
    /// Never unloaded: the functions above point into it, and what threads find at the same moment is one library.
    _library: ManuallyDrop<Library>,
}

impl Nvrtc {
    /// The process's NVRTC. A library that could not be found is looked for again at the next call.
    pub(super) fn get() -> Result<&'static Self> {
        static LOADED: OnceBox<Nvrtc> = OnceBox::new();
        let loaded = LOADED.get_or_try_init(|| Self::find().map(Box::new))?;
        if loaded.generation == fork::generation() {
            return Ok(loaded);
        }
        // Its locks may be held by threads that are the parent's.
        Err(Error::new(
            ErrorKind::CompilerMissing,
            "NVRTC cannot be used in this process, a child of fork(): its parent has loaded it",
        )
        .hint("start processes with spawn or forkserver, or fork before anything is compiled"))
    }

    fn find() -> Result<Self> {
        if let Some(file) = environment::raw(VARIABLE) {
            return Self::trusted(Path::new(&file)).map_err(|why| {
                let why = why.unwrap_or_else(|| "there is no such file".into());
                Error::new(ErrorKind::CompilerMissing, format!("{} cannot be used as NVRTC: {why}", file.display()))
                    .subject_is(VARIABLE)
                    .hint("set it to the file of a libnvrtc.so, or unset it to have one searched for")
            });
        }
        // One that the process has loaded already, as PyTorch does, runs in it in any case.
        for name in nvrtc_search::names() {
            if let Some(library) = loaded(&name)
                && let Ok(found) = Self::of(library, None)
            {
                // Those who have loaded it may not have needed its builtins yet.
                if let Some(folder) = found.path.parent().filter(|folder| folder.is_absolute())
                    && let Err(refused) = open_builtins(folder)
                {
                    tracing::debug!("NVRTC's builtins are left to NVRTC: {refused}");
                }
                return Ok(found);
            }
        }
        let mut unusable = Vec::new();
        for candidate in nvrtc_search::candidates() {
            match Self::trusted(&candidate) {
                Ok(found) => {
                    for line in &unusable {
                        tracing::warn!("NVRTC is not taken from {line}; {} is used", found.path.display());
                    }
                    return Ok(found);
                }
                Err(Some(why)) => unusable.push(format!("{}: {why}", candidate.display())),
                Err(None) => {}
            }
        }
        let mut message =
            "NVRTC, the CUDA run-time compiler, was not found (searched: the loader's path, CUDA toolkit \
                           folders, the active virtual or Conda environment)"
                .to_owned();
        for line in unusable {
            message.push_str("\n  unusable: ");
            message.push_str(&line);
        }
        Err(Error::new(ErrorKind::CompilerMissing, message).hint(format!(
            "pip install nvidia-cuda-nvrtc   in a virtual environment that is active (VIRTUAL_ENV), or set {VARIABLE} to a \
             libnvrtc.so"
        )))
    }

    /// Opens a file that nobody else can change; what is wrong, `None` if it is not there.
    fn trusted(file: &Path) -> Result<Self, Option<String>> {
        let refused = |refused| match refused {
            trust::Refused::Absent => None,
            because @ trust::Refused::Because { .. } => Some(because.to_string()),
        };
        let file = trust::file(file).map_err(refused)?;
        // NVRTC opens its builtins by their bare name, which the loader finds if they are open already.
        file.parent().map_or(Ok(()), open_builtins).map_err(refused)?;
        // SAFETY: NVRTC's initialisers have no requirements; a file of that name is taken to be NVRTC.
        let library = unsafe { Library::new(&file) }.map_err(|e| Some(reason(&e)))?;
        Self::of(library, Some(file)).map_err(Some)
    }

    /// The NVRTC of a loaded library.
    fn of(library: Library, file: Option<PathBuf>) -> Result<Self, String> {
        macro_rules! symbol {
            ($name:literal) => {
                // SAFETY: the types are those of nvrtc.h, unchanged since CUDA 11.2; the library is kept.
                *unsafe { library.get($name) }.map_err(|e| reason(&e))?
            };
        }
        let api = Api {
            version: symbol!(b"nvrtcVersion\0"),
            create: symbol!(b"nvrtcCreateProgram\0"),
            compile: symbol!(b"nvrtcCompileProgram\0"),
            destroy: symbol!(b"nvrtcDestroyProgram\0"),
            error_string: symbol!(b"nvrtcGetErrorString\0"),
            ptx: (symbol!(b"nvrtcGetPTXSize\0"), symbol!(b"nvrtcGetPTX\0")),
            cubin: (symbol!(b"nvrtcGetCUBINSize\0"), symbol!(b"nvrtcGetCUBIN\0")),
            log: (symbol!(b"nvrtcGetProgramLogSize\0"), symbol!(b"nvrtcGetProgramLog\0")),
        };
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both are valid for a write.
        let status = unsafe { (api.version)(&raw mut major, &raw mut minor) };
        if status != 0 {
            return Err(format!("nvrtcVersion failed with {status}"));
        }
        let path = file.or_else(|| trust::file_of(api.version as usize)).unwrap_or_else(|| "libnvrtc.so".into());
        let version = (major, minor);
        Ok(Self {
            api,
            path,
            version,
            identity: OnceBox::new(),
            generation: fork::generation(),
            _library: ManuallyDrop::new(library),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Its version with its build, such as `nvrtc 13.0.88`: the same on every machine, wherever its file is. NVRTC's functions
    /// do not tell the build, but the PTX that it writes does, so the first who asks has an empty program compiled.
    pub(super) fn identity(&self) -> &str {
        self.identity.get_or_init(|| {
            let build = self.compile("", &[]).ok().and_then(|(binary, _)| build(&binary.ptx).map(String::from));
            Box::new(build.map_or_else(|| self.name(), |build| format!("nvrtc {build}")))
        })
    }

    /// Its version, such as `nvrtc 13.0`: for errors, which must not ask for the build.
    fn name(&self) -> String {
        let (major, minor) = self.version;
        format!("nvrtc {major}.{minor}")
    }

    /// Compiles to PTX and cubin, and returns the log as well.
    pub(super) fn compile(&self, source: &str, options: &[String]) -> Result<(Binary, String)> {
        let internal = |what: &str| Error::new(ErrorKind::Compile, format!("{what} contains a NUL byte"));
        let text = CString::new(source).map_err(|_| internal("the source"))?;
        let options_c: Vec<CString> = options
            .iter()
            .map(|o| CString::new(o.as_str()).map_err(|_| internal("an option")))
            .collect::<Result<_>>()?;
        let pointers: Vec<*const c_char> = options_c.iter().map(|o| o.as_ptr()).collect();
        let mut raw: Program = std::ptr::null_mut();
        // SAFETY: the strings are NUL-terminated and outlive the program, which `ProgramGuard` destroys.
        let status = unsafe {
            (self.api.create)(&raw mut raw, text.as_ptr(), c"kernel.cu".as_ptr(), 0, std::ptr::null(), std::ptr::null())
        };
        if status != 0 {
            return Err(self.failed("nvrtcCreateProgram", status));
        }
        let program = ProgramGuard { api: &self.api, raw };
        // SAFETY: the program was created above; `pointers` holds as many valid strings as it says.
        let status = unsafe { (self.api.compile)(program.raw, pointers.len() as c_int, pointers.as_ptr()) };
        let log = String::from_utf8_lossy(&self.fetch(&program, self.api.log)?).trim_end_matches('\0').to_owned();
        match status {
            0 => {}
            6 => return Err(compile_error(&self.name(), options, source, &log)),
            _ => return Err(self.failed("nvrtcCompileProgram", status).caused_by(log)),
        }
        let ptx = self.fetch(&program, self.api.ptx)?;
        let image = self.fetch(&program, self.api.cubin)?;
        Ok((Binary { ptx, image }, log))
    }

    fn fetch(&self, program: &ProgramGuard<'_>, (size_of, bytes_of): (GetSize, GetBytes)) -> Result<Vec<u8>> {
        let mut size = 0;
        // SAFETY: the program is alive and `size` is valid for a write.
        let status = unsafe { size_of(program.raw, &raw mut size) };
        if status != 0 {
            return Err(self.failed("reading the compiler's output", status));
        }
        let mut bytes = vec![0u8; size];
        // SAFETY: the buffer has the size that was asked for.
        let status = unsafe { bytes_of(program.raw, bytes.as_mut_ptr().cast()) };
        if status != 0 {
            return Err(self.failed("reading the compiler's output", status));
        }
        Ok(bytes)
    }

    fn failed(&self, what: &str, status: c_int) -> Error {
        // SAFETY: the function takes any number and returns a static string.
        let text = unsafe { (self.api.error_string)(status) };
        let text = if text.is_null() {
            status.to_string()
        } else {
            // SAFETY: not null, and NUL-terminated by NVRTC's contract.
            unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
        };
        let error =
            Error::new(ErrorKind::Compile, format!("{what} failed: {}", text.trim_end())).subject_is(self.name());
        if text.contains("INVALID_OPTION") {
            return error.hint("most likely it does not know the architecture: take another one, or a newer NVRTC");
        }
        error
    }
}

struct ProgramGuard<'a> {
    api: &'a Api,
    raw: Program,
}

impl Drop for ProgramGuard<'_> {
    fn drop(&mut self) {
        // SAFETY: created by `create`, destroyed once.
        unsafe { (self.api.destroy)(&raw mut self.raw) };
    }
}

/// What the loader says, which libloading keeps one level down.
fn reason(e: &libloading::Error) -> String {
    std::error::Error::source(e).map_or_else(|| e.to_string(), ToString::to_string)
}

/// A library that the process has loaded, by its name; none is loaded for this.
#[cfg(target_os = "linux")]
fn loaded(name: &Path) -> Option<Library> {
    use libloading::os::unix;
    // What dlopen calls RTLD_NOLOAD, which libloading does not name.
    const NO_LOAD: c_int = 4;
    // SAFETY: nothing is loaded, so no initialiser runs.
    unsafe { unix::Library::open(Some(name), unix::RTLD_LAZY | NO_LOAD) }.ok().map(Into::into)
}

#[cfg(not(target_os = "linux"))]
fn loaded(_: &Path) -> Option<Library> {
    None
}

/// Opens the builtins that lie beside an NVRTC, for as long as the process lives.
fn open_builtins(folder: &Path) -> Result<(), trust::Refused> {
    let is_builtins = |p: &PathBuf| {
        let name = p.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("libnvrtc-builtins.so")
    };
    for file in nvrtc_search::children(folder).into_iter().filter(is_builtins) {
        let file = trust::file(&file)?;
        // SAFETY: they hold data for NVRTC and have no initialisers of note.
        if let Ok(library) = unsafe { Library::new(file) } {
            std::mem::forget(library);
        }
    }
    Ok(())
}

/// The build in the head of a PTX text: `13.0.88` of `// Cuda compilation tools, release 13.0, V13.0.88`.
fn build(ptx: &[u8]) -> Option<&str> {
    let head = std::str::from_utf8(&ptx[..ptx.len().min(4096)]).ok()?;
    let (_, version) =
        head.lines().find(|line| line.starts_with("//") && line.contains(" release "))?.rsplit_once(", V")?;
    let version = version.trim();
    let number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    version.split('.').all(number).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_build_is_read_from_the_head_of_a_ptx() {
        let head = |line: &str| {
            format!("//\n// Generated by NVIDIA NVVM Compiler\n//\n{line}\n// Based on NVVM 20.0.0\n//\n.version 9.0")
        };
        let of = |line: &str| build(head(line).as_bytes()).map(String::from);
        assert_eq!(of("// Cuda compilation tools, release 13.0, V13.0.88").as_deref(), Some("13.0.88"));
        assert_eq!(of("// Cuda compilation tools, release 12.8, V12.8.93").as_deref(), Some("12.8.93"));
        for none in ["", "// Cuda compilation tools, release 13.0", "// release 13.0, Vnext", "// release 1, V"] {
            assert_eq!(of(none), None, "{none}");
        }
    }
}
