//! `ropejit prewarm --lock` and `--check`

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use ropejit::families::rope::Prewarmed;
use ropejit::families::template::PrewarmedTemplate;
use ropejit::families::{families, read_lock};
use ropejit::jit::lock::{Lock, Locked, Problem, Section};
use ropejit::{Engine, Error, ErrorKind, Result};
use serde_json::json;

use super::output;

/// Choices on their way into a lock file.
pub struct Writer {
    lock: Lock,
    /// Choices that the file held before, made with other templates.
    outdated: usize,
}

impl Writer {
    /// Goes on with what the file holds, but for what was made with other templates.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.exists() {
            return Ok(Self { lock: Lock::new(families().templates()), outdated: 0 });
        }
        if !path.is_file() {
            return Err(Error::new(ErrorKind::LockFile, "is no file that can be replaced")
                .subject_is(path.display().to_string())
                .hint("name a file, or one that is to be made"));
        }
        let lock = read_lock(path)?;
        Ok(Self { lock: lock.renewed(families()), outdated: lock.outdated(families()) })
    }

    /// Adds what a call will be served by: one that was measured for this device or its model, one that was not for its
    /// architecture.
    pub fn add(&mut self, engine: &Engine, done: &Prewarmed) {
        let facts = engine.facts();
        let identity = facts.identity();
        let section = Section::new(&facts.arch, (done.tuned || done.prior).then_some(&identity));
        self.lock.set(section, Locked::of(&done.spec, done.class, done.bucket, done.variant));
    }

    /// Adds what calls of a kernel of the user's will be served by.
    pub fn add_template(&mut self, engine: &Engine, done: &PrewarmedTemplate) {
        let PrewarmedTemplate { spec, class, bucket, config, provenance, .. } = done;
        let facts = engine.facts();
        let identity = provenance.is_tuned().then(|| facts.identity());
        let section = Section::new(&facts.arch, identity.as_ref());
        let [spec, class, config] = [spec, class, config].map(Clone::clone);
        self.lock.set(section, Locked { spec, class, bucket: *bucket, config, line: 0 });
    }

    pub fn write(&self, path: &Path) -> Result<()> {
        replace(path, &self.lock.to_string()).map_err(|e| {
            Error::io(path, "the lock file cannot be written", e)
                .hint("name a file in a folder that is there and that you can write to")
        })?;
        if self.outdated > 0 {
            output::note(&format!("{}: left out {} choices made with other templates", path.display(), self.outdated));
        }
        let sections: Vec<String> = self.lock.sections().map(|(section, n)| format!("[{section}] {n}")).collect();
        output::note(&format!("{}: choices in {}", path.display(), sections.join(", ")));
        Ok(())
    }
}

/// Puts a text in a file's place at once, so that nobody reads half of it. A file that is there keeps its mode and owner.
fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    // A link stays one: what it leads to is replaced.
    let path = if path.exists() { &std::fs::canonicalize(path)? } else { path };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".ropejit-lock-");
    let before = std::fs::metadata(path).ok();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        // A new file is for all to read, as far as the umask lets them, but never for others to write.
        let mode = if before.is_some() { 0o600 } else { 0o644 };
        builder.permissions(std::fs::Permissions::from_mode(mode));
    }
    let mut file = builder.tempfile_in(folder)?;
    file.write_all(text.as_bytes())?;
    if let Some(before) = before {
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt as _;
            // Where this user may not give files away, the file becomes this user's.
            let _ = std::os::unix::fs::fchown(file.as_file(), Some(before.uid()), Some(before.gid()));
        }
        file.as_file().set_permissions(before.permissions())?;
    }
    file.as_file().sync_all()?;
    file.persist(path).map(drop).map_err(|e| e.error)
}

/// Says what of a lock file no longer holds for these engines' devices; an error if anything does not.
pub fn check(path: &Path, engines: &[Engine], as_json: bool) -> Result<()> {
    let lock = read_lock(path)?;
    // By line: what does not hold for two architectures is told twice, unless in the same words.
    let mut problems: BTreeMap<(usize, String), Problem> = BTreeMap::new();
    for engine in engines {
        let facts = engine.facts();
        let identity = engine.device().runs().then(|| facts.identity());
        for problem in lock.problems(&facts.arch, identity.as_ref(), engine.device().abilities(), families()) {
            problems.insert((problem.line, problem.what.clone()), problem);
        }
    }
    let choices: usize = lock.sections().map(|(_, n)| n).sum();
    if as_json {
        let problems: Vec<_> = problems.values().map(|p| json!({ "line": p.line, "what": p.what })).collect();
        let document = json!({ "lock": path, "choices": choices, "problems": problems, "holds": problems.is_empty() });
        output::json(&output::without_engine(document))?;
    } else {
        for p in problems.values() {
            let line = if p.line > 0 { format!(":{}", p.line) } else { String::new() };
            output::line(&format!("{}{line}: {}", path.display(), p.what))?;
        }
        if problems.is_empty() {
            let devices: Vec<_> = engines.iter().map(|e| e.facts().name.as_str()).collect();
            output::line(&format!("{}: holds for {}, choices {choices}", path.display(), devices.join(", ")))?;
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::LockFile, format!("no longer holds, problems: {}", problems.len()))
        .subject_is(path.display().to_string())
        .hint(format!("write it again on the device: ropejit prewarm --model CONFIG.json --lock {}", path.display())))
}
