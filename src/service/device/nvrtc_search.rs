//! Where NVRTC may lie. Nothing is searched for in the current folder or above it: what lies there may be anybody's.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwapOption;

use crate::system::environment;

const NAMES: [&str; 4] = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2", "libnvrtc.so"];
/// Where the dynamic loader keeps what it knows, and where it looks besides.
const LOADER_CACHE: &str = "/etc/ld.so.cache";
const LOADER_FOLDERS: [&str; 6] =
    ["/lib64", "/usr/lib64", "/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/lib", "/usr/lib"];

/// Folders to search besides the usual ones.
static FOLDERS: ArcSwapOption<Vec<PathBuf>> = ArcSwapOption::const_empty();

/// Searches this folder too.
pub(super) fn search_in(folder: &Path) {
    FOLDERS.rcu(|known| {
        let mut known = known.as_deref().cloned().unwrap_or_default();
        if !known.iter().any(|other| other == folder) {
            known.push(folder.to_owned());
        }
        Some(Arc::new(known))
    });
}

/// The names that a library which is loaded already may go by.
pub(super) fn names() -> impl Iterator<Item = PathBuf> {
    NAMES.iter().map(PathBuf::from)
}

/// The files to try, in order: of the loader's folders, of CUDA toolkits, of the active environment, then of the folders
/// that [`search_in`] was told. All paths are absolute.
pub(super) fn candidates() -> Vec<PathBuf> {
    let further = FOLDERS.load_full();
    let further = further.as_deref().map_or(&[][..], Vec::as_slice);
    let cache = std::fs::read(LOADER_CACHE).unwrap_or_default();
    let variable = |name: &str| environment::raw(name).unwrap_or_default().into();
    from(&variable, &cache, further).into_iter().filter(|file| file.is_file()).collect()
}

fn from(variable: &dyn Fn(&str) -> PathBuf, loader_cache: &[u8], further: &[PathBuf]) -> Vec<PathBuf> {
    // An empty path is the current folder to many, and a relative one lies in it.
    let named = |name: &str| Some(variable(name)).filter(|folder| folder.is_absolute());
    let path = variable("LD_LIBRARY_PATH");
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).filter(|folder| folder.is_absolute()).collect();
    let mut files: Vec<PathBuf> = folders.drain(..).flat_map(in_folder).collect();
    files.extend(known_to_loader(loader_cache));
    let roots = ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT", "CONDA_PREFIX"].into_iter().filter_map(named);
    let roots = roots.chain(["/usr/local/cuda", "/opt/cuda"].map(PathBuf::from));
    let libraries = ["lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"];
    folders.extend(LOADER_FOLDERS.map(PathBuf::from));
    folders.extend(roots.flat_map(|root| libraries.map(|library| root.join(library))));
    for environment in ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(named) {
        for python in children(&environment.join("lib")) {
            folders.extend(
                ["cu13/lib", "cuda_nvrtc/lib", "cu12/lib"].map(|l| python.join("site-packages/nvidia").join(l)),
            );
        }
    }
    folders.extend(further.iter().filter(|folder| folder.is_absolute()).cloned());
    files.extend(folders.into_iter().flat_map(in_folder));
    files
}

fn in_folder(folder: PathBuf) -> impl Iterator<Item = PathBuf> {
    NAMES.iter().map(move |name| folder.join(name))
}

/// The files and folders in a folder, sorted; none if it cannot be read.
pub(super) fn children(folder: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> =
        std::fs::read_dir(folder).map(|d| d.flatten().map(|e| e.path()).collect()).unwrap_or_default();
    all.sort();
    all
}

/// NVRTC's files that glibc's loader knows, by `ld.so.cache`: a head of 48 bytes, then 24 bytes a library, whose second and
/// third word say where its name and its path begin. An older format may stand in front.
fn known_to_loader(cache: &[u8]) -> Vec<PathBuf> {
    const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
    let start = cache.windows(MAGIC.len()).position(|part| part == MAGIC);
    let Some(cache) = start.and_then(|start| cache.get(start..)) else { return Vec::new() };
    let word = |at: usize| Some(u32::from_ne_bytes(cache.get(at..at.checked_add(4)?)?.try_into().ok()?) as usize);
    let text = |at: usize| {
        let text = cache.get(at..)?;
        std::str::from_utf8(text.split(|&byte| byte == 0).next()?).ok()
    };
    let library = |i: usize| Some((text(word(48 + 24 * i + 4)?)?, text(word(48 + 24 * i + 8)?)?));
    let known: Vec<(&str, &str)> = (0..word(20).unwrap_or(0)).map_while(library).collect();
    let all = NAMES.iter().flat_map(|name| known.iter().filter(move |(known, _)| known == name));
    all.map(|(_, path)| PathBuf::from(path)).filter(|path| path.is_absolute()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(libraries: &[(&str, &str)]) -> Vec<u8> {
        let mut bytes = b"ld.so-1.7.0\0of old\0\0glibc-ld.so.cache1.1".to_vec();
        let start = bytes.len() - 20;
        bytes.extend((libraries.len() as u32).to_ne_bytes());
        bytes.resize(start + 48, 0);
        let mut strings = Vec::new();
        for (name, path) in libraries {
            let at = |strings: &Vec<u8>| (48 + 24 * libraries.len() + strings.len()) as u32;
            let name_at = at(&strings);
            strings.extend(name.bytes().chain([0]));
            let path_at = at(&strings);
            strings.extend(path.bytes().chain([0]));
            for word in [0, name_at, path_at, 0, 0, 0] {
                bytes.extend(word.to_ne_bytes());
            }
        }
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn what_the_loader_knows_is_found_and_damage_is_survived() {
        let whole = cache(&[
            ("libc.so.6", "/lib/libc.so.6"),
            ("libnvrtc.so.12", "/usr/lib/libnvrtc.so.12"),
            ("libnvrtc.so.13", "/cuda/libnvrtc.so.13"),
            ("libnvrtc.so.12", "relative/libnvrtc.so.12"),
        ]);
        let found = known_to_loader(&whole);
        assert_eq!(found, [PathBuf::from("/cuda/libnvrtc.so.13"), PathBuf::from("/usr/lib/libnvrtc.so.12")]);
        for end in 0..whole.len() {
            let _ = known_to_loader(&whole[..end]);
            let mut flipped = whole.clone();
            flipped[end] ^= 0xff;
            let _ = known_to_loader(&flipped);
        }
        let libc = std::fs::read(LOADER_CACHE).is_ok_and(|cache| cache.windows(9).any(|part| part == b"libc.so.6"));
        println!("this machine's loader has a cache that is read: {libc}");
    }

    #[test]
    fn only_absolute_places_are_searched() {
        let relative = |name: &str| match name {
            "LD_LIBRARY_PATH" => PathBuf::from(":.:lib:/named/by/path:"),
            "CUDA_HOME" => PathBuf::from("cuda"),
            "CUDA_ROOT" => PathBuf::from("/toolkit"),
            "VIRTUAL_ENV" => PathBuf::from(".venv"),
            _ => PathBuf::new(),
        };
        let found = from(&relative, &[], &["nvidia".into(), "/wheel".into()]);
        assert!(found.iter().all(|file| file.is_absolute()), "{found:?}");
        let starts = |with: &str| found.iter().any(|file| file.starts_with(with));
        assert!(starts("/named/by/path") && starts("/toolkit/lib64") && starts("/wheel") && starts("/usr/local/cuda"));
        let here = std::env::current_dir().expect("there is one");
        assert!(!found.iter().any(|file| file.starts_with(&here)), "{found:?}");
    }

    #[test]
    fn the_wheels_of_an_environment_are_found() {
        let folder = tempfile::tempdir().expect("a folder");
        let libraries = folder.path().join("lib/python3.12/site-packages/nvidia/cu13/lib");
        fs_err::create_dir_all(&libraries).expect("made");
        for variable in ["VIRTUAL_ENV", "CONDA_PREFIX"] {
            let named = |name: &str| if name == variable { folder.path().to_owned() } else { PathBuf::new() };
            assert!(from(&named, &[], &[]).contains(&libraries.join("libnvrtc.so.13")));
        }
    }
}
