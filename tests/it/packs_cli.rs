//! `ropejit pack` as people run it, and the programs that it works with: minisign, skopeo, a registry. On the host device; needs a C++
//! compiler.

use std::io::Write as _;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::cli::{RUN, SMALL, Shell, stat, text};

/// A cache folder with a small RoPE, and a pack of it.
fn packed() -> Shell {
    let shell = Shell::new();
    shell.ok(&[&["prewarm", "--no-tune", "--tokens", "8"], &SMALL[..]].concat());
    shell.ok(&["pack", &path(&shell, "out.pack")]);
    shell
}

fn path(shell: &Shell, name: &str) -> String {
    shell.at(name).display().to_string()
}

/// Runs a program that not every machine has; says loudly where it is not there.
fn outside(program: &str, test: &str, arguments: &[&str]) -> Option<(bool, String)> {
    match Command::new(program).args(arguments).stdin(Stdio::null()).output() {
        Ok(output) => {
            let said =
                [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
            Some((output.status.success(), said))
        }
        Err(e) => {
            writeln!(std::io::stderr(), "SKIPPED {test}: {program} cannot be run: {e}").expect("written");
            None
        }
    }
}

#[test]
fn a_node_that_has_the_pack_starts_warm() {
    let shell = packed();
    let (pack, key, public) = (path(&shell, "out.pack"), path(&shell, "a.key"), path(&shell, "a.pub"));
    let made = shell.json(&["pack", "keygen", "--key", &key]);
    let signed = shell.json(&["pack", "sign", &pack, "--key", &key]);
    assert_eq!(text(&made, "pubkey"), text(&signed, "pubkey"));
    let verified = shell.json(&["pack", "verify", &pack, "--pubkey", &public]);
    assert_eq!((&verified["signed_by"], &verified["fits"]), (&made["pubkey"], &Value::Bool(true)));
    // Another user's home: no cache, frozen.
    let node = Shell::new();
    let frozen = |environment: &[(&str, Option<&str>)]| {
        let all = [&[("ROPEJIT_TUNING", Some("frozen"))], environment].concat();
        node.run_with(&[&RUN[..], &["--json"]].concat(), &all)
    };
    frozen(&[]).fails(1, &["prewarm"]);
    let installed = node.json(&["pack", "install", &pack, "--pubkey", &public]);
    assert!(Path::new(text(&installed, "folder")).starts_with(node.at("data")));
    let ran = frozen(&[]);
    assert_eq!((ran.code, stat(&ran.json(), "compiles"), stat(&ran.json(), "disk_hits")), (0, 0, 1), "{}", ran.stderr);
    assert_eq!(node.json(&["pack", "install", &pack, "--pubkey", &public])["before"], true);
    // In a folder that the path names.
    let other = path(&node, "other");
    node.ok(&["pack", "install", &pack, "--pubkey", &public, "--into", &other]);
    let empty = path(&node, "nothing");
    let ran = frozen(&[("XDG_DATA_HOME", Some(&empty)), ("ROPEJIT_CACHE_PATH", Some(&other))]);
    assert_eq!((ran.code, stat(&ran.json(), "compiles")), (0, 0), "{}", ran.stderr);
    let doctor = node.json(&["doctor"]);
    assert!(text(&doctor["packs"][0], "what").contains("entries 2"), "{doctor}");
}

#[test]
fn what_is_wrong_is_said_with_the_way_out() {
    let shell = packed();
    let (pack, key, public) = (path(&shell, "out.pack"), path(&shell, "a.key"), path(&shell, "a.pub"));
    shell.ok(&["pack", "keygen", "--key", &key]);
    let install = |more: &[&str]| shell.run(&[&["pack", "install", &pack], more].concat());
    install(&[]).fails(2, &["--pubkey", "--trust-unsigned"]);
    install(&["--pubkey", &public]).fails(1, &["out.pack", "not signed", "ropejit pack sign"]);
    install(&["--pubkey", "RWnonsense"]).fails(2, &["--pubkey", "RWnonsense", "keygen"]);
    install(&["--trust-unsigned", "--arch", "sm_90"]).fails(1, &["this is sm_90", "made for"]);
    install(&["--trust-unsigned", "--pubkey", &public]).fails(2, &["cannot be used with"]);
    shell.run(&["pack", &path(&shell, "no/folder.pack")]).fails(1, &["no/folder.pack", "cannot be written"]);
    shell.run(&["pack", &pack, "--arch", "sm_99"]).fails(1, &["nothing in the cache", "prewarm"]);
    shell.run(&["pack", "sign", &pack, "--key", "none.key"]).fails(1, &["none.key", "keygen"]);
    shell.run(&["pack", "keygen", "--key", &key]).fails(1, &["a.key", "never written over"]);
    shell.run(&["pack", "verify", &key, "--trust-unsigned"]).fails(1, &["a.key", "not a pack"]);
    shell.run(&["inspect", "show", "00", "--pack", &pack]).fails(2, &["--pack", "inspect list"]);
    assert_eq!(
        std::fs::read_dir(shell.at("data/ropejit/packs")).map_or(0, Iterator::count),
        0,
        "nothing was installed"
    );
}

#[test]
fn a_pack_is_listed_without_installing_it() {
    let shell = packed();
    let pack = path(&shell, "out.pack");
    let [inside, cached] = [&["inspect", "--pack", &pack][..], &["inspect"]].map(|words| shell.json(words));
    let keys = |listed: &Value| -> Vec<String> {
        listed["entries"].as_array().expect("an array").iter().map(|e| text(e, "key").to_owned()).collect()
    };
    let [mut a, mut b] = [keys(&inside), keys(&cached)];
    a.sort();
    b.sort();
    assert_eq!((a.len(), a), (2, b));
    let only = shell.json(&["inspect", "list", "--pack", &pack, "--kind", "choice"]);
    assert_eq!(keys(&only).len(), 1);
}

#[test]
fn a_model_and_a_lock_file_say_what_is_packed() {
    let shell = packed();
    let (lock, pack) = (path(&shell, "rope.lock"), path(&shell, "part.pack"));
    let model = shell.file(
        "config.json",
        r#"{"model_type": "llama", "hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "torch_dtype": "bfloat16", "max_position_embeddings": 4096, "rope_theta": 10000.0}"#,
    );
    shell.run(&["pack", &pack, "--model", &model]).fails(1, &["nothing in the cache", "prewarm"]);
    shell.ok(&["prewarm", "--no-tune", "--tokens", "8,64", "--model", &model, "--lock", &lock]);
    assert_eq!(shell.json(&["pack", &pack, "--model", &model])["choices"], 2);
    assert_eq!(shell.json(&["pack", &pack, "--lock", &lock])["choices"], 2);
    assert_eq!(shell.json(&["pack", &pack, "--all"])["choices"], 3);
    // Of both: lines of other models are not asked for.
    shell.ok(&[&["prewarm", "--no-tune", "--tokens", "8", "--lock", &lock], &SMALL[..]].concat());
    assert_eq!(shell.json(&["pack", &pack, "--lock", &lock])["choices"], 3);
    assert_eq!(shell.json(&["pack", &pack, "--lock", &lock, "--model", &model])["choices"], 2);
    // A variant that the lock names and nobody has compiled; then it is compiled, and is what is packed.
    let text_of = fs_err::read_to_string(&lock).expect("read");
    let (line, other) =
        (text_of.lines().find(|l| l.contains("h8/2") && l.contains("| 8 =")).expect("a line"), "t256 v8 h1 wb/wb");
    let changed = format!("{} = {other}", line.split(" = ").next().expect("a spec"));
    fs_err::write(&lock, text_of.replace(line, &changed)).expect("written");
    let of_lock = ["pack", &pack, "--lock", &lock, "--model", &model];
    shell.run(&of_lock).fails(1, &["not be complete", other]);
    let compiled = shell
        .run_with(&["prewarm", "--no-tune", "--tokens", "8,64", "--model", &model], &[("ROPEJIT_LOCK", Some(&lock))]);
    assert_eq!(compiled.code, 0, "{}", compiled.stderr);
    assert!(shell.json(&of_lock)["choices"].as_u64() >= Some(2));
    let kernels = shell.json(&["inspect", "--pack", &pack, "list", "--kind", "artifact"]);
    assert!(kernels["entries"].as_array().expect("an array").iter().any(|e| text(e, "variant") == other), "{kernels}");
    // Complete, or not at all.
    let kernels = shell.json(&["inspect", "list", "h8/2", "--kind", "artifact"]);
    for kernel in kernels["entries"].as_array().expect("an array") {
        fs_err::remove_file(text(kernel, "path")).expect("removed");
    }
    for words in [&["--lock", &lock][..], &["--all"]] {
        shell.run(&[&["pack", &pack], words].concat()).fails(1, &["not be complete", "prewarm"]);
    }
}

#[test]
fn minisign_verifies_our_signatures_and_we_its() {
    let test = "minisign_verifies_our_signatures_and_we_its";
    let shell = packed();
    let [pack, ours, public, theirs, their_public] =
        ["out.pack", "a.key", "a.pub", "m.key", "m.pub"].map(|name| path(&shell, name));
    shell.ok(&["pack", "keygen", "--key", &ours]);
    shell.ok(&["pack", "sign", &pack, "--key", &ours]);
    let Some((verified, said)) = outside("minisign", test, &["-V", "-p", &public, "-m", &pack]) else { return };
    assert!(verified && said.contains("sha256:"), "{said}");
    let run = |words: &[&str]| outside("minisign", test, words).expect("it is there");
    let (made, said) = run(&["-G", "-W", "-p", &their_public, "-s", &theirs]);
    assert!(made, "{said}");
    // Its key, its signature; its key, our signature; our key, its signature.
    let (signed, said) = run(&["-S", "-s", &theirs, "-m", &pack]);
    assert!(signed, "{said}");
    shell.ok(&["pack", "verify", &pack, "--pubkey", &their_public]);
    shell.run(&["pack", "verify", &pack, "--pubkey", &public]).fails(1, &["another key"]);
    shell.ok(&["pack", "sign", &pack, "--key", &theirs]);
    assert!(run(&["-V", "-p", &their_public, "-m", &pack]).0);
    let (signed, said) = run(&["-S", "-W", "-s", &ours, "-m", &pack]);
    assert!(signed, "{said}");
    shell.ok(&["pack", "verify", &pack, "--pubkey", &their_public, "--pubkey", &public]);
    // The form of before, over the whole file, is refused and says how to sign.
    assert!(run(&["-S", "-l", "-s", &theirs, "-m", &pack]).0);
    shell.run(&["pack", "verify", &pack, "--pubkey", &their_public]).fails(1, &["before minisign", "-H"]);
}

/// A process that ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_image_goes_through_a_registry_and_serves() {
    let test = "an_image_goes_through_a_registry_and_serves";
    let shell = packed();
    let [pack, image, again, back] = ["out.pack", "image", "again", "back"].map(|name| path(&shell, name));
    let made = shell.json(&["pack", "export", &pack, "--oci", &image]);
    assert_eq!(shell.json(&["pack", "export", &pack, "--oci", &again])["manifest"], made["manifest"]);
    shell.run(&["pack", "export", &pack, "--oci", &image]).fails(1, &["image", "--oci"]);
    let Some((looked, said)) = outside("skopeo", test, &["inspect", &format!("oci:{image}")]) else { return };
    assert!(looked && said.contains("cache.ropejit.image/entry-count"), "{said}");

    let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port").port();
    let storage = path(&shell, "registry");
    let config = shell.file(
        "registry.yml",
        &format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {storage}\nhttp:\n  addr: 127.0.0.1:{port}\n"
        ),
    );
    let mut registry = Command::new("docker-registry");
    let server =
        registry.args(["serve", &config]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let _server = match server {
        Ok(child) => Server(child),
        Err(e) => {
            writeln!(std::io::stderr(), "SKIPPED {test}: docker-registry cannot be run: {e}").expect("written");
            return;
        }
    };
    for _ in 0..200 {
        if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let remote = format!("docker://127.0.0.1:{port}/kernels:small");
    let copy = |words: &[&str]| {
        let (copied, said) =
            outside("skopeo", test, &[&["copy", "--insecure-policy"], words].concat()).expect("it is there");
        assert!(copied, "{said}");
    };
    copy(&["--dest-tls-verify=false", &format!("oci:{image}"), &remote]);
    copy(&["--src-tls-verify=false", &remote, &format!("oci:{back}")]);
    let manifest: Value =
        serde_json::from_slice(&fs_err::read(shell.at("back/index.json")).expect("read")).expect("JSON");
    assert_eq!(manifest["manifests"][0]["digest"], made["manifest"], "the registry's image is the one that was made");
    // As a volume is mounted: unpacked, root's or this user's.
    let blob = |digest: &Value| {
        shell.at("back/blobs/sha256").join(digest.as_str().expect("text").trim_start_matches("sha256:"))
    };
    let read =
        |digest: &Value| -> Value { serde_json::from_slice(&fs_err::read(blob(digest)).expect("read")).expect("JSON") };
    let layer = blob(&read(&manifest["manifests"][0]["digest"])["layers"][0]["digest"]);
    let root = shell.at("mounted");
    fs_err::create_dir(&root).expect("made");
    let (unpacked, said) = outside(
        "tar",
        test,
        &["-xzf", layer.to_str().expect("text"), "--no-same-owner", "-C", root.to_str().expect("text")],
    )
    .expect("it is there");
    assert!(unpacked, "{said}");
    let node = Shell::new();
    let mounted = root.join("io.ropejit.cache").display().to_string();
    let environment = [("ROPEJIT_TUNING", Some("frozen")), ("ROPEJIT_CACHE_PATH", Some(mounted.as_str()))];
    let ran = node.run_with(&[&RUN[..], &["--json"]].concat(), &environment);
    assert_eq!((ran.code, stat(&ran.json(), "compiles")), (0, 0), "{}", ran.stderr);
}
