//! A builder that has a pack and keys, and nodes without anything.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use ropejit::store::disk::Disk;
use ropejit::store::{Kind, Store as _};
use serde_json::Value;
use tempfile::TempDir;

/// What is prepared, and called.
pub const CALL: [&str; 8] = ["--head-dim", "64", "--num-heads", "4", "--num-kv-heads", "2", "--tokens", "8"];
/// Something else.
pub const OTHER: [&str; 8] = ["--head-dim", "32", "--num-heads", "2", "--num-kv-heads", "1", "--tokens", "8"];

/// How a process ended.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// A machine: its home folder is all that it has.
pub struct Node {
    pub home: TempDir,
}

/// A machine that builds packs: its cache holds `CALL`, or `OTHER`.
pub struct Builder {
    pub node: Node,
    pub public: String,
    pub pack: PathBuf,
}

impl Node {
    pub fn new() -> Self {
        Self { home: tempfile::tempdir().expect("a folder") }
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Where packs are installed by default.
    pub fn packs(&self) -> PathBuf {
        self.at(".local/share/ropejit/packs")
    }

    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ropejit"));
        command.args(words).current_dir(self.home.path()).stdin(Stdio::null());
        command.env_clear().env("HOME", self.home.path()).env("ROPEJIT_DEVICE", "host");
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command
    }

    pub fn run(&self, words: &[&str]) -> Ended {
        self.run_with(words, &[])
    }

    pub fn run_with(&self, words: &[&str], environment: &[(&str, &str)]) -> Ended {
        ended(self.command(words).envs(environment.iter().copied()).output().expect("started"))
    }

    #[track_caller]
    pub fn ok(&self, words: &[&str]) -> Ended {
        let ended = self.run(words);
        assert_eq!(ended.code, 0, "{words:?}: {}", ended.stderr);
        ended
    }

    /// Pulls with the builder's key.
    pub fn pull(&self, url: &str, more: &[&str]) -> Ended {
        self.run(&[&["pull", url, "--pubkey", &builder().public, "--json"], more].concat())
    }

    /// How many packs are installed, each of them whole: every entry's digest is right. Panics where one is half.
    #[track_caller]
    pub fn installed(&self) -> usize {
        installed_in(&self.packs())
    }

    /// The call is served from the pack, where anything that is not there is an error.
    #[track_caller]
    pub fn is_warm(&self) {
        let words = [&["run", "--tuning", "frozen", "--json"], &CALL[..]].concat();
        let ended = self.ok(&words);
        assert_eq!(ended.json()["stats"]["compiles"], 0, "{}", ended.stdout);
    }
}

/// See `Node::installed`.
#[track_caller]
pub fn installed_in(folder: &Path) -> usize {
    let Ok(all) = std::fs::read_dir(folder) else { return 0 };
    let packs = all.map(|entry| entry.expect("an entry").path());
    let packs: Vec<PathBuf> = packs.filter(|path| name_of(path).starts_with("pack-")).collect();
    for pack in &packs {
        let disk = Disk::read_only(pack).expect("opens");
        for kind in [Kind::Artifact, Kind::Choice] {
            let listed = disk.list(kind).expect("listed");
            assert_eq!(listed.len(), 1, "{}: {kind:?}", pack.display());
            assert!(listed.iter().all(|listed| listed.entry.is_ok()), "{listed:?}");
        }
    }
    packs.len()
}

/// All files below a folder.
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    let Ok(all) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut files = Vec::new();
    for path in all.map(|entry| entry.expect("an entry").path()) {
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files
}

pub fn name_of(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).expect("a name")
}

fn ended(Output { status, stdout, stderr }: Output) -> Ended {
    let text = |bytes| String::from_utf8(bytes).expect("text");
    let ended = Ended { code: status.code().expect("not killed"), stdout: text(stdout), stderr: text(stderr) };
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
    ended
}

impl Ended {
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {}{}", self.stdout, self.stderr))
    }

    /// The pack is there now.
    #[track_caller]
    pub fn has_installed(&self) {
        assert_eq!(self.code, 0, "{}", self.stderr);
        assert_eq!((&self.json()["state"], self.stderr.as_str()), (&"installed".into(), ""));
    }

    /// One warning said why nothing was pulled.
    #[track_caller]
    pub fn warned(&self, why: &str) {
        assert_eq!(self.code, 0, "{}", self.stderr);
        assert_eq!(self.json()["state"], "away");
        assert_eq!(self.stderr.matches("WARN").count(), 1, "{}", self.stderr);
        assert!(self.stderr.contains(why), "'{why}' is not in: {}", self.stderr);
    }

    /// It is an error that says why.
    #[track_caller]
    pub fn failed(&self, code: i32, why: &str) {
        assert_eq!((self.code, self.stdout.as_str()), (code, ""), "{}", self.stderr);
        assert!(self.stderr.contains("error: ") && self.stderr.contains(why), "'{why}' is not in: {}", self.stderr);
    }
}

impl Builder {
    fn new(call: &[&str]) -> Self {
        let node = Node::new();
        node.ok(&[&["prewarm", "--no-tune"], call].concat());
        let public = node.ok(&["pack", "keygen", "--key", "ropejit.key"]).stdout.trim().to_owned();
        node.ok(&["pack", "OUT.pack"]);
        let pack = node.at("OUT.pack");
        Self { node, public, pack }
    }

    /// Pushes the pack.
    pub fn push(&self, url: &str, more: &[&str]) -> Ended {
        self.node.run(&[&["push", url, "--key", "ropejit.key", "--pack", "OUT.pack", "--json"], more].concat())
    }

    /// A store in a folder that holds the pack.
    pub fn store(&self) -> TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        let pushed = self.push(&file_url(folder.path()), &[]);
        assert_eq!(pushed.code, 0, "{}", pushed.stderr);
        folder
    }
}

pub fn file_url(folder: &Path) -> String {
    format!("file://{}", folder.display())
}

/// One that all tests share.
pub fn builder() -> &'static Builder {
    static BUILDER: OnceLock<Builder> = OnceLock::new();
    BUILDER.get_or_init(|| Builder::new(&CALL))
}

/// Another builder, with another pack and another key.
pub fn other_builder() -> &'static Builder {
    static BUILDER: OnceLock<Builder> = OnceLock::new();
    BUILDER.get_or_init(|| Builder::new(&OTHER))
}
