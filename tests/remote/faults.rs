//! Stores that are away, refuse, stall, break off, or hold what nobody should run. Each time nothing is half installed, and the next
//! pull from a sound store succeeds.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use ropejit::remote::Target;

use super::counted;
use super::server::{Fault, Server};
use super::site::{Node, builder, file_url, files_below, name_of, other_builder};

/// Time that is enough wherever a machine stands still for a while.
const AMPLE: [&str; 4] = ["--timeout", "60", "--connect-timeout", "30"];
/// Time that runs out soon.
const SHORT: [&str; 2] = ["--timeout", "0.6"];

#[test]
fn a_node_without_anything_starts_warm() {
    let store = builder().store();
    let node = Node::new();
    node.pull(&file_url(store.path()), &[]).has_installed();
    assert_eq!(node.installed(), 1);
    node.is_warm();
    let again = node.pull(&file_url(store.path()), &[]);
    assert_eq!((again.code, &again.json()["state"]), (0, &"present".into()), "{}", again.stderr);
    // As a folder for many, named by the environment.
    let node = Node::new();
    node.pull(&file_url(store.path()), &["--into", "mine"]).has_installed();
    let words = [&["run", "--tuning", "frozen", "--json"], &super::site::CALL[..]].concat();
    assert_eq!(node.run(&words).code, 1, "nothing is in the default folder");
    let mine = node.at("mine").display().to_string();
    let warm = node.run_with(&words, &[("ROPEJIT_CACHE_PATH", &mine)]);
    assert_eq!((warm.code, &warm.json()["stats"]["compiles"]), (0, &0.into()), "{}", warm.stderr);
}

#[test]
fn what_is_away_costs_a_warning_or_is_required() {
    // A port that nobody listens on: it was free a moment ago.
    let free = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let store = builder().store();
    let empty = tempfile::tempdir().expect("a folder");
    let server = |fault| Server::new(store.path(), fault);
    let servers = [
        (server(Fault::Status(404)), "is not there"),
        (server(Fault::Status(403)), "may not be read"),
        (server(Fault::Status(401)), "may not be read"),
        (server(Fault::Status(500)), "500"),
        (server(Fault::Status(503)), "503"),
        (server(Fault::Mute), "too slow"),
        (server(Fault::StallAfter(0)), "too slow"),
        (server(Fault::StallAfter(1000)), "too slow"),
        (Server::new(empty.path(), Fault::Nothing), "is not there"),
    ];
    let urls = servers.iter().map(|(server, why)| (server.url().to_owned(), *why));
    let others = [
        (format!("http://{free}/packs"), "refused"),
        (format!("https://{}", &servers[0].0.url()[7..]), "cannot be read"), // speaks no TLS
        (file_url(&empty.path().join("absent")), "is not there"),
    ];
    let mut tried = 0;
    for (url, why) in urls.chain(others) {
        let node = Node::new();
        let started = Instant::now();
        node.pull(&url, &SHORT).warned(why);
        assert!(started.elapsed() < Duration::from_secs(30), "{url} took {:?}", started.elapsed());
        let required = node.run(&["pull", &url, "--pubkey", &builder().public, "--required", SHORT[0], SHORT[1]]);
        required.failed(1, why);
        assert_eq!((node.installed(), files_below(&node.packs())), (0, vec![]), "{url}");
        node.pull(&file_url(store.path()), &AMPLE).has_installed();
        tried += 1;
    }
    counted(&format!("{tried} kinds of stores that are away: each a warning and exit 0, with --required exit 1"));
    assert!(tried >= 12);
}

#[test]
fn a_busy_store_is_asked_again() {
    let store = builder().store();
    for status in [500, 503, 429] {
        let server = Server::new(store.path(), Fault::Busy(2, status));
        let node = Node::new();
        node.pull(server.url(), &AMPLE).has_installed();
        let (requests, packs, _) = server.seen();
        assert_eq!((requests, packs), (4, 1), "two were refused with {status}");
    }
}

#[test]
fn a_download_that_breaks_off_installs_nothing() {
    let store = builder().store();
    let size = builder().pack.metadata().expect("there").len() as usize;
    let server = Server::new(store.path(), Fault::Nothing);
    let node = Node::new();
    let mut cuts = 0;
    for part in 0..50 {
        server.set(Fault::CutAfter(size * part / 50));
        node.pull(server.url(), &AMPLE).failed(1, "broke off after");
        assert_eq!((node.installed(), files_below(&node.packs())), (0, vec![]), "cut at {part}/50");
        cuts += 1;
    }
    server.set(Fault::Nothing);
    node.pull(server.url(), &AMPLE).has_installed();
    node.is_warm();
    // A store that tells versions of an object apart is asked for the rest.
    server.seen();
    let mut resumed = 0;
    for part in 1..50 {
        server.set(Fault::CutOnce(size * part / 50));
        let node = Node::new();
        node.pull(server.url(), &AMPLE).has_installed();
        assert_eq!(node.installed(), 1);
        let (requests, packs, bytes) = server.seen();
        assert_eq!((requests, packs), (3, 2));
        assert!(bytes < size as u64 + 4096, "{bytes} bytes for a pack of {size}");
        resumed += 1;
    }
    counted(&format!(
        "{cuts} cuts, nothing installed; {resumed} cuts of a store with ETags, each went on where it broke off"
    ));
}

#[test]
fn tampered_bytes_are_refused() {
    let store = builder().store();
    let size = builder().pack.metadata().expect("there").len() as usize;
    let server = Server::new(store.path(), Fault::Nothing);
    let node = Node::new();
    let mut flips = 0;
    // The head whole, then a sample of the rest: `pack verify` has a test of every byte.
    for at in (0..60).chain((60..size).step_by(size / 100)).chain([size - 1]) {
        server.set(Fault::Flip(at));
        node.pull(server.url(), &AMPLE).failed(1, ".pack");
        assert_eq!((node.installed(), files_below(&node.packs())), (0, vec![]), "byte {at}");
        flips += 1;
    }
    server.set(Fault::Longer(1));
    node.pull(server.url(), &AMPLE).failed(1, "larger than it can be");
    // Every byte of `latest`: what it says is signed, and its signature.
    let latest = files_below(store.path()).into_iter().find(|path| path.ends_with("latest")).expect("there");
    let good = fs_err::read(&latest).expect("read");
    server.set(Fault::Nothing);
    let (mut refused, mut unsigned) = (0, 0);
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs_err::write(&latest, &bad).expect("written");
        let pulled = Node::new().pull(server.url(), &AMPLE);
        // A signature's first line is signed by nobody. That of the pack's is covered by the second signature.
        if pulled.code == 0 {
            unsigned += 1;
        } else {
            pulled.failed(1, "");
            refused += 1;
        }
    }
    fs_err::write(&latest, &good).expect("written");
    let comment = good.split(|&b| b == b'\n').filter(|line| line.starts_with(b"untrusted comment: ")).map(<[u8]>::len);
    let free = comment.fold(None, |_, line| Some(line)).expect("there");
    counted(&format!(
        "{flips} bytes of the pack, {refused} of latest changed: refused; {unsigned} in a comment that nobody signs"
    ));
    assert!(unsigned <= free, "{unsigned} changed bytes are taken, of a comment of {free}");
    assert_eq!(refused + unsigned, good.len());
}

#[test]
fn only_what_was_signed_by_an_accepted_key_is_taken() {
    let (store, other) = (builder().store(), other_builder());
    let url = file_url(store.path());
    let node = Node::new();
    node.run(&["pull", &url, "--pubkey", &other.public]).failed(1, "another key");
    node.run(&["pull", &url]).failed(2, "--pubkey");
    node.run(&["pull", &url, "--pubkey", "RWnonsense"]).failed(2, "public key");
    node.run(&["pull", &url, "--pubkey", &other.public, "--trust-unsigned"]).failed(2, "cannot be used with");
    let plain = Server::new(store.path(), Fault::Nothing);
    node.run(&["pull", plain.url(), "--trust-unsigned"]).failed(2, "over http");
    assert_eq!(plain.seen().0, 0, "nobody was asked");
    assert_eq!((node.installed(), files_below(&node.packs())), (0, vec![]));
    // Two keys, while one is replaced.
    node.run(&["pull", &url, "--pubkey", &other.public, "--pubkey", &builder().public, "--json"]).has_installed();

    let unsigned = tempfile::tempdir().expect("a folder");
    let url = file_url(unsigned.path());
    let pack = builder().pack.display().to_string();
    builder().node.run(&["push", &url, "--pack", &pack]).failed(2, "--key");
    builder().node.ok(&["push", &url, "--pack", &pack, "--unsigned"]);
    let node = Node::new();
    node.pull(&url, &[]).failed(1, "is not signed");
    assert_eq!(node.installed(), 0);
    node.run(&["pull", &url, "--trust-unsigned", "--json"]).has_installed();
}

/// An object at another's place: signed, and not what is wanted there.
#[test]
fn what_was_moved_is_not_taken() {
    let store = builder().store();
    let templates = Target::here(None).templates.to_string();
    let at = |templates: &str, arch: &str| store.path().join("v1").join(templates).join(arch);
    let here = files_below(store.path()).into_iter().find(|path| path.ends_with("latest")).expect("there");
    let here = here.parent().expect("a folder");
    let arch = name_of(here).to_owned();
    assert_eq!(here, at(&templates, &arch));
    let url = file_url(store.path());
    // For another architecture nothing is there; what is moved there says what it is.
    let node = Node::new();
    node.pull(&url, &["--arch", "sm_90"]).warned("is not there");
    copy(here, &at(&templates, "sm_90"));
    node.pull(&url, &["--arch", "sm_90"]).failed(1, &format!("lists a pack for {arch}"));
    // The same for other templates: as this program sees what another version has pushed, moved here.
    let latest = fs_err::read_to_string(here.join("latest")).expect("read");
    fs_err::write(here.join("latest"), latest.replace(&templates, &"0".repeat(64))).expect("written");
    node.pull(&url, &[]).failed(1, "signature");
    // Another pack under this one's name.
    fs_err::write(here.join("latest"), latest).expect("written");
    let name = files_below(here).into_iter().find(|path| path.extension().is_some_and(|e| e == "pack")).expect("there");
    fs_err::copy(&other_builder().pack, &name).expect("copied");
    node.pull(&url, &[]).failed(1, ".pack");
    assert_eq!((node.installed(), files_below(&node.packs())), (0, vec![]));
    // A push repairs what has another size than it should.
    assert_eq!(builder().push(&url, &[]).code, 0);
    node.pull(&url, &[]).has_installed();
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    fs_err::create_dir_all(to).expect("made");
    for file in files_below(from) {
        fs_err::copy(&file, to.join(name_of(&file))).expect("copied");
    }
}

#[test]
fn urls_and_times_that_are_wrong_are_named() {
    let node = Node::new();
    for (url, why) in [
        ("packs", "URL"),
        ("ftp://host/packs", "no kind of store"),
        ("file://host/packs", "no kind of store"),
        ("https://host/packs?version=1", "no ?"),
        ("s3://", ""),
        ("memory:///", "no kind of store"),
    ] {
        node.pull(url, &[]).failed(2, why);
    }
    let secret = node.pull("https://user:hunter2@127.0.0.1:1/packs", &SHORT);
    secret.warned("***@127.0.0.1");
    assert!(!secret.stderr.contains("hunter2"), "{}", secret.stderr);
    for time in ["0", "-1", "nan", "1e9", "soon"] {
        assert_eq!(node.pull("file:///x", &[&format!("--timeout={time}")]).code, 2, "{time}");
    }
    node.run(&[&["prewarm", "--pubkey", &builder().public], &super::site::CALL[..]].concat()).failed(2, "--pull");
}

/// A file system with room for less than the pack.
#[test]
fn a_full_disk_installs_nothing() {
    let node = Node::new();
    let full = node.at("full");
    fs_err::create_dir(&full).expect("made");
    let mount = |size: usize| {
        let mut command = std::process::Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &format!("size={size},mode=0700"), "tmpfs"]).arg(&full);
        command.stderr(std::process::Stdio::null()).status().is_ok_and(|status| status.success())
    };
    let unmount = || assert!(std::process::Command::new("umount").arg(&full).status().expect("started").success());
    let store = builder().store();
    let mut sizes = 0;
    let mut installed = false;
    for pages in 1.. {
        if !mount(pages * 4096) {
            super::skipped("a full disk: this user may not mount a file system");
            return;
        }
        let pulled = node.pull(&file_url(store.path()), &["--into", full.to_str().expect("text")]);
        installed = pulled.code == 0;
        if !installed {
            pulled.failed(1, "No space left");
            assert_eq!((super::site::installed_in(&full), files_below(&full)), (0, vec![]), "{pages} pages");
            sizes += 1;
        }
        unmount();
        if installed || pages == 200 {
            break;
        }
    }
    counted(&format!("{sizes} sizes of a disk that is too small: nothing installed"));
    assert!(installed && sizes > 5);
}
