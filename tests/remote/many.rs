//! Many at once: pulls on one node, builders that push.

use std::sync::Barrier;

use super::counted;
use super::server::{Fault, Server};
use super::site::{Node, builder, file_url, files_below, installed_in, other_builder};

#[test]
fn sixty_four_pulls_on_a_node_make_one_download() {
    const PULLS: usize = 64;
    let store = builder().store();
    let server = Server::new(store.path(), Fault::Slow(20, std::time::Duration::from_millis(20)));
    let node = Node::new();
    let start = Barrier::new(PULLS);
    let states: Vec<String> = std::thread::scope(|scope| {
        let pull = || {
            start.wait();
            let pulled = node.pull(server.url(), &["--timeout", "300", "--connect-timeout", "100"]);
            assert_eq!(pulled.code, 0, "{}", pulled.stderr);
            pulled.json()["state"].as_str().expect("text").to_owned()
        };
        let threads: Vec<_> = (0..PULLS).map(|_| scope.spawn(pull)).collect();
        threads.into_iter().map(|thread| thread.join().expect("pulled")).collect()
    });
    let count = |state: &str| states.iter().filter(|s| *s == state).count();
    let (requests, packs, bytes) = server.seen();
    counted(&format!("{PULLS} pulls at once: {packs} download, {requests} requests, {bytes} bytes"));
    assert_eq!((count("installed"), count("present")), (1, PULLS - 1));
    assert_eq!((packs, requests), (1, PULLS as u64 + 1));
    assert_eq!((node.installed(), files_below(&node.packs()).len()), (1, 2), "no lock, nothing half is left");
    node.is_warm();
}

/// Builders that publish at once: both packs stand, and readers get one of them, whole.
pub fn two_push_at_once(url: &str, environment: &[(&str, &str)], rounds: usize) -> [usize; 2] {
    let builders = [builder(), other_builder()];
    let packs = builders.map(|builder| builder.pack.display().to_string());
    // Both sign with their own key; who pulls takes both.
    let keys = builders.map(|builder| builder.public.as_str());
    let mut seen = [0, 0];
    for _ in 0..rounds {
        let node = Node::new();
        std::thread::scope(|scope| {
            for (builder, pack) in builders.iter().zip(&packs) {
                scope.spawn(|| {
                    let words = [
                        "push",
                        url,
                        "--key",
                        "ropejit.key",
                        "--pack",
                        pack,
                        "--timeout",
                        "120",
                        "--connect-timeout",
                        "30",
                    ];
                    let pushed = builder.node.run_with(&words, environment);
                    assert_eq!(pushed.code, 0, "{}", pushed.stderr);
                });
            }
            // Meanwhile, of the round before.
            let pulled = Node::new().run_with(&pull(url, keys), environment);
            assert_eq!(pulled.code, 0, "{}", pulled.stderr);
        });
        let pulled = node.run_with(&pull(url, keys), environment);
        pulled.has_installed();
        let pack = pulled.json()["pulled"]["pack"].as_str().expect("text").to_owned();
        let digests = packs.each_ref().map(|pack| ropejit::remote::Pack::open(pack.as_ref()).expect("opens"));
        let which = digests.iter().position(|p| p.sha256().expect("read").to_string() == pack).expect("one of both");
        seen[which] += 1;
        assert_eq!(installed_in(&node.packs()), 1);
    }
    seen
}

fn pull<'a>(url: &'a str, keys: [&'a str; 2]) -> [&'a str; 11] {
    ["pull", url, "--pubkey", keys[0], "--pubkey", keys[1], "--timeout", "120", "--connect-timeout", "30", "--json"]
}

#[test]
fn two_builders_push_at_once() {
    let store = tempfile::tempdir().expect("a folder");
    let rounds = 25;
    let seen = two_push_at_once(&file_url(store.path()), &[], rounds);
    let count =
        |end: &str| files_below(store.path()).iter().filter(|path| path.to_string_lossy().ends_with(end)).count();
    assert_eq!((count(".pack"), count(".minisig"), count("latest")), (2, 2, 1), "both stand");
    counted(&format!(
        "{rounds} rounds of two pushes at once: latest was the one's {} times, the other's {}",
        seen[0], seen[1]
    ));
}

/// What CI runs: pull, make what is missing, push.
#[test]
fn a_builder_makes_only_what_the_store_lacks() {
    let store = builder().store();
    let url = file_url(store.path());
    let node = Node::new();
    let key = builder().node.at("ropejit.key").display().to_string();
    let ci = |call: &[&str]| {
        let words = [
            "prewarm",
            "--no-tune",
            "--json",
            "--pull",
            &url,
            "--push",
            &url,
            "--key",
            &key,
            "--pubkey",
            &builder().public,
        ];
        let ended = Node::new().run(&[&words, call].concat());
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        ended
    };
    assert_eq!(ci(&super::site::CALL).json()["stats"]["compiles"], 0, "the pack has it");
    let made = ci(&super::site::OTHER);
    assert_eq!(made.json()["stats"]["compiles"], 1, "{}", made.stdout);
    let pulled = node.pull(&url, &[]);
    assert_eq!(pulled.json()["pulled"]["entries"], 4, "what was there, and what was made: {}", pulled.stdout);
    node.is_warm();
    // A store that is away makes nothing fail before the end.
    let away = Node::new().run(
        &[
            &["prewarm", "--no-tune", "--pull", "file:///nonexistent/packs", "--pubkey", &builder().public],
            &super::site::CALL[..],
        ]
        .concat(),
    );
    assert_eq!((away.code, away.stderr.matches("WARN").count()), (0, 1), "{}", away.stderr);
}
