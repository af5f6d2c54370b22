//! Pulls that are killed.

use std::time::{Duration, Instant};

use super::counted;
use super::server::{Fault, Server};
use super::site::{Node, builder, files_below};

/// Whenever it is killed, a pack is installed whole or not at all, and the next pull succeeds.
#[test]
fn killed_at_fifty_moments() {
    const MOMENTS: u32 = 50;
    let store = builder().store();
    let server = Server::new(store.path(), Fault::Slow(10, Duration::from_millis(5)));
    let words = ["pull", server.url(), "--pubkey", &builder().public, "--timeout", "60", "--connect-timeout", "30"];
    // As long as one takes here and now; a bit more, so that some are over.
    let started = Instant::now();
    Node::new().ok(&words);
    let whole = started.elapsed();
    let (_, _, all) = server.seen();
    let (mut killed, mut whole_ones, mut leftovers) = (0, 0, 0);
    for moment in 0..MOMENTS {
        let node = Node::new();
        server.seen();
        let mut child = node.command(&words).stderr(std::process::Stdio::null()).spawn().expect("started");
        // Half of them while it gets the pack, half while it installs it.
        if moment < MOMENTS / 2 {
            std::thread::sleep(whole * moment * 2 / MOMENTS);
        } else {
            while server.sent() < all && child.try_wait().expect("asked").is_none() {
                std::thread::sleep(Duration::from_micros(100));
            }
            std::thread::sleep(Duration::from_millis(2) * (moment - MOMENTS / 2));
        }
        child.kill().expect("killed or over");
        let status = child.wait().expect("ended");
        killed += u32::from(status.code().is_none());
        let installed = node.installed();
        assert!(installed <= 1 && (installed == 1 || status.code() != Some(0)));
        whole_ones += installed;
        leftovers += usize::from(files_below(&node.packs()).len() > 2 * installed);
        // Nothing that is left stands in the next one's way.
        node.ok(&words);
        assert_eq!(node.installed(), 1);
        server.seen();
    }
    node_is_swept(&words);
    counted(&format!(
        "{MOMENTS} pulls, {killed} killed: {whole_ones} had installed the pack whole, {leftovers} left files that nobody reads"
    ));
    assert!(killed >= 10, "{killed}");
}

/// What a killed pull has left goes with a later one, once it is old.
fn node_is_swept(words: &[&str]) {
    let node = Node::new();
    node.ok(words);
    let left = node.packs().join(".installing-left");
    fs_err::create_dir(&left).expect("made");
    fs_err::write(left.join("pack"), "half").expect("written");
    let hour_ago = std::time::SystemTime::now() - Duration::from_secs(3600);
    std::fs::File::open(&left).and_then(|folder| folder.set_modified(hour_ago)).expect("set");
    node.ok(words);
    assert!(!left.exists());
}
