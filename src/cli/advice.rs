//! The library's errors name what is wrong in the library's terms; what to do about it in the command's is said here.

use std::path::Path;

use ropejit::engine::Missing;
use ropejit::families::rope;
use ropejit::jit::Class;
use ropejit::{DeviceChoice, Error, ErrorKind, RopeSpec};

use super::prewarm_command::prewarm_command;

/// The error, with the command that helps where there is one.
#[must_use]
pub fn advised(e: Error) -> Error {
    // Where no GPU was found, nothing is to be filled: the error says so itself.
    if let Some(hint) = e.detail::<Missing>().filter(|missing| missing.gpus.is_empty()).and_then(fill) {
        return e.hint(hint);
    }
    let file = e.subject().map(without_line);
    match (e.kind(), file) {
        (ErrorKind::LockFile, Some(file)) => {
            let hint = e.advice().map_or_else(String::new, |hint| format!("{hint}: "));
            let hint = format!(
                "{hint}ropejit prewarm --check {0} shows all such lines, ropejit prewarm … --lock {0} writes them anew",
                quoted(Path::new(file))
            );
            e.hint(hint)
        }
        (ErrorKind::OutOfMemory, _) if e.advice().is_none() => e.hint("fewer --tokens need less"),
        _ => e,
    }
}

/// The file of a place in one, such as `rope.lock:7`.
fn without_line(place: &str) -> &str {
    match place.rsplit_once(':') {
        Some((file, line)) if line.bytes().all(|b| b.is_ascii_digit()) => file,
        _ => place,
    }
}

/// The command that makes what is missing, for the engine as it was built, behind what keeps that from being found.
fn fill(missing: &Missing) -> Option<String> {
    let prewarm = if missing.family == rope::NAME {
        let (spec, class) = (missing.spec.to::<RopeSpec>()?, missing.class.to::<Class>()?);
        prewarm_command(&spec, missing.bucket, class)
    } else {
        let (_, spec) = missing.spec.text().split_once(' ').unwrap_or_default();
        let spec = if spec.is_empty() { String::new() } else { format!(" --spec {spec}") };
        format!("ropejit prewarm --template {}.toml{spec} --size …", missing.family)
    };
    let folder = missing.cache_dir.as_ref().map(|folder| format!("ROPEJIT_CACHE_DIR={} ", quoted(folder)));
    let device = match missing.device {
        Some(DeviceChoice::Host) => "ROPEJIT_DEVICE=host ".to_owned(),
        Some(DeviceChoice::Cuda(n)) => format!("ROPEJIT_DEVICE=cuda:{n} "),
        _ => String::new(),
    };
    let command = format!("{}{device}{prewarm}", folder.unwrap_or_default());
    let command = match &missing.lock_file {
        None => command,
        Some(file) if missing.is_locked => format!("ROPEJIT_LOCK={} {command}", quoted(file)),
        Some(file) => format!("ROPEJIT_LOCK= {command} --lock {}", quoted(file)),
    };
    Some(match (missing.has_folder, &missing.cure) {
        (true, None) => command,
        (true, Some(cure)) => format!("{cure}; if it is still missing then: {command}"),
        (false, Some(cure)) => format!("{cure}; then: {command}"),
        (false, None) => {
            format!("give the engine a cache folder (ROPEJIT_CACHE_DIR, Builder::cache_dir); then: {command}")
        }
    })
}

/// A path as a shell takes it.
pub(super) fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:@%,".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}
