//! NVRTC, loaded from wherever it is.
//!
//! cudarc's NVRTC layer looks on the loader's path only, panics where there is none, and cannot be told which file to
//! take; nine functions through `libloading` can. NVRTC compiles on several threads at once.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use libloading::Library;

use super::machine::{Binary, compile_error};
use crate::error::{Error, ErrorKind, Result};

/// The environment variable that names the library's file.
const VARIABLE: &str = "ROPEJIT_NVRTC";
const NAMES: [&str; 4] = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2", "libnvrtc.so"];

/// Folders to search besides those of [`candidates`].
static FOLDERS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Searches this folder too.
pub(super) fn search_in(folder: PathBuf) {
    let mut folders = FOLDERS.lock().unwrap_or_else(PoisonError::into_inner);
    if !folders.contains(&folder) {
        folders.push(folder);
    }
}

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
    identity: OnceLock<String>,
    // Never dropped: the functions above point into the first.
    _libraries: (Library, Vec<Library>),
}

impl Nvrtc {
    /// The process's NVRTC. A library that could not be found is looked for again at the next call.
    pub(super) fn get() -> Result<&'static Self> {
        static LOADED: OnceLock<Nvrtc> = OnceLock::new();
        if let Some(loaded) = LOADED.get() {
            return Ok(loaded);
        }
        let found = Self::find()?;
        Ok(LOADED.get_or_init(|| found))
    }

    fn find() -> Result<Self> {
        if let Some(file) = std::env::var_os(VARIABLE).filter(|v| !v.is_empty()) {
            return Self::open(Path::new(&file)).map_err(|why| {
                Error::new(ErrorKind::CompilerMissing, format!("{} cannot be used as NVRTC: {why}", file.display()))
                    .subject_is(VARIABLE)
                    .hint("set it to the file of a libnvrtc.so, or unset it to have one searched for")
            });
        }
        let mut tried = Vec::new();
        for candidate in candidates() {
            match Self::open(&candidate) {
                Ok(found) => return Ok(found),
                Err(why) if candidate.is_absolute() => tried.push(format!("{}: {why}", candidate.display())),
                Err(_) => {}
            }
        }
        let mut message =
            "NVRTC, the CUDA run-time compiler, was not found (searched: the loader's path, CUDA toolkit \
                           folders, the active virtual environment, .venv)"
                .to_owned();
        for line in tried {
            message.push_str("\n  unusable: ");
            message.push_str(&line);
        }
        Err(Error::new(ErrorKind::CompilerMissing, message).hint(format!(
            "python3 -m venv .venv && .venv/bin/pip install nvidia-cuda-nvrtc   (or set {VARIABLE} to a libnvrtc.so)"
        )))
    }

    fn open(file: &Path) -> Result<Self, String> {
        // NVRTC opens its builtins by their bare name, which the loader finds if they are open already.
        let builtins = file.parent().map(builtins).unwrap_or_default();
        // SAFETY: NVRTC's initialisers have no requirements; a file of that name is taken to be NVRTC.
        let library = unsafe { Library::new(file) }.map_err(|e| reason(&e))?;
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
        let path = if file.is_absolute() { None } else { file_of(api.version as *const c_void) };
        let path = path.unwrap_or_else(|| file.to_owned());
        let version = (major, minor);
        Ok(Self { api, path, version, identity: OnceLock::new(), _libraries: (library, builtins) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Its version with its build, such as `nvrtc 13.0.88`: the same on every machine, wherever its file is. NVRTC's functions
    /// do not tell the build, but the PTX that it writes does, so the first who asks has an empty program compiled.
    pub(super) fn identity(&self) -> &str {
        self.identity.get_or_init(|| {
            let build = self.compile("", &[]).ok().and_then(|(binary, _)| build(&binary.ptx).map(String::from));
            let (major, minor) = self.version;
            format!("nvrtc {}", build.unwrap_or_else(|| format!("{major}.{minor}")))
        })
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
            6 => return Err(compile_error(self.identity(), options, source, &log)),
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
            Error::new(ErrorKind::Compile, format!("{what} failed: {}", text.trim_end())).subject_is(self.identity());
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

/// Where to look, in order: the loader's path, CUDA toolkits, the active virtual environment, `.venv` here or above, then
/// where [`search_in`] says.
fn candidates() -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = NAMES.iter().map(PathBuf::from).collect();
    let mut folders: Vec<PathBuf> = Vec::new();
    for variable in ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT"] {
        folders.extend(std::env::var_os(variable).filter(|v| !v.is_empty()).map(PathBuf::from));
    }
    folders.push("/usr/local/cuda".into());
    folders.push("/opt/cuda".into());
    let mut libraries: Vec<PathBuf> = folders
        .iter()
        .flat_map(|f| ["lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"].map(|l| f.join(l)))
        .collect();
    let mut environments: Vec<PathBuf> = std::env::var_os("VIRTUAL_ENV").map(PathBuf::from).into_iter().collect();
    if let Ok(here) = std::env::current_dir() {
        environments.extend(here.ancestors().map(|a| a.join(".venv")).find(|v| v.is_dir()));
    }
    for environment in environments {
        for python in children(&environment.join("lib")) {
            let nvidia = python.join("site-packages/nvidia");
            libraries.extend(["cu13/lib", "cuda_nvrtc/lib", "cu12/lib"].map(|l| nvidia.join(l)));
        }
    }
    libraries.extend(FOLDERS.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned());
    for library in libraries {
        all.extend(NAMES.iter().map(|n| library.join(n)).filter(|p| p.is_file()));
    }
    all
}

/// Opens the builtins that lie beside an NVRTC.
fn builtins(folder: &Path) -> Vec<Library> {
    let is_builtins = |p: &PathBuf| {
        let name = p.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("libnvrtc-builtins.so")
    };
    // SAFETY: they hold data for NVRTC and have no initialisers of note.
    children(folder).into_iter().filter(is_builtins).filter_map(|p| unsafe { Library::new(p) }.ok()).collect()
}

fn children(folder: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> =
        std::fs::read_dir(folder).map(|d| d.flatten().map(|e| e.path()).collect()).unwrap_or_default();
    all.sort();
    all
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

/// The file that holds a function: that of a library which the loader found by its name. Other libraries of a similar
/// name (the builtins, another program's NVRTC) may be mapped as well.
fn file_of(function: *const c_void) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStrExt as _;
    /// `Dl_info` of dlfcn.h.
    #[repr(C)]
    struct Info {
        file: *const c_char,
        base: *mut c_void,
        symbol: *const c_char,
        address: *mut c_void,
    }
    unsafe extern "C" {
        fn dladdr(address: *const c_void, info: *mut Info) -> c_int;
    }
    let mut info = Info {
        file: std::ptr::null(),
        base: std::ptr::null_mut(),
        symbol: std::ptr::null(),
        address: std::ptr::null_mut(),
    };
    // SAFETY: any address may be asked for; `info` is valid for a write.
    if unsafe { dladdr(function, &raw mut info) } == 0 || info.file.is_null() {
        return None;
    }
    // SAFETY: a string of the loader's, which lives as long as the library.
    let file = unsafe { CStr::from_ptr(info.file) };
    Some(PathBuf::from(std::ffi::OsStr::from_bytes(file.to_bytes())))
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

    #[test]
    fn a_function_is_in_the_file_that_holds_it() {
        let here = file_of(build as *const c_void).expect("known");
        assert_eq!(here.canonicalize().ok(), std::env::current_exe().and_then(|exe| exe.canonicalize()).ok());
        assert_eq!(file_of(std::ptr::null()), None);
    }
}
