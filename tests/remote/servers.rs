//! Real servers, each started by its test on a port of loopback and stopped with it: s3s-fs for `s3://`, nginx with TLS for `https://`,
//! docker-registry with skopeo for images. A program that is absent is said loudly.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::site::{Node, builder, file_url, files_below};
use super::{counted, many, skipped};

/// A server that ends with its test.
struct Served(Child);

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A program, wherever servers are; `None`, and a loud word, where there is none.
fn program(name: &str, test: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from));
    let found = places.map(|folder| folder.join(name)).find(|file| file.is_file());
    if found.is_none() {
        skipped(&format!("{test}: there is no {name}; `make test-remote` says how to get it"));
    }
    found
}

/// Starts a server on a free port, which `command` is told.
fn serve(command: impl Fn(u16) -> Command) -> (Served, u16) {
    for _ in 0..5 {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|l| l.local_addr()).expect("a port").port();
        let child = command(port).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut served = Served(child.expect("started"));
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(60) {
            if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() {
                return (served, port);
            }
            if served.0.try_wait().expect("asked").is_some() {
                break; // somebody has taken the port meanwhile
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    panic!("the server does not start");
}

const AMPLE: [&str; 4] = ["--timeout", "120", "--connect-timeout", "30"];

#[test]
fn an_s3_store() {
    let Some(s3s) = program("s3s-fs", "S3") else { return };
    let root = tempfile::tempdir().expect("a folder");
    fs_err::create_dir(root.path().join("bucket")).expect("made");
    let (_served, port) = serve(|port| {
        let mut command = Command::new(&s3s);
        command.args([
            "--host",
            "127.0.0.1",
            "--port",
            &port.to_string(),
            "--access-key",
            "KEY",
            "--secret-key",
            "SECRET",
        ]);
        command.arg(root.path());
        command
    });
    let endpoint = format!("http://127.0.0.1:{port}");
    let environment = |secret| {
        [
            ("AWS_ENDPOINT", endpoint.as_str()),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "KEY"),
            ("AWS_SECRET_ACCESS_KEY", secret),
        ]
    };
    // It keeps an object's name in that of one file: there is room for no longer ones.
    let url = "s3://bucket/a";
    let builder = builder();
    let pull = [&["pull", url, "--pubkey", &builder.public, "--json"][..], &AMPLE].concat();
    let node = Node::new();
    node.run_with(&pull, &environment("SECRET")).warned("is not there");
    let push = [&["push", url, "--key", "ropejit.key", "--pack", "OUT.pack", "--json"][..], &AMPLE].concat();
    for before in [false, true] {
        let pushed = builder.node.run_with(&push, &environment("SECRET"));
        assert_eq!(pushed.code, 0, "{}", pushed.stderr);
        assert_eq!(pushed.json()["pushed"][0]["before"], before);
    }
    node.run_with(&pull, &environment("SECRET")).has_installed();
    node.is_warm();
    Node::new().run_with(&pull, &environment("WRONG")).warned("may not be read");
    let refused = builder.node.run_with(&push, &environment("WRONG"));
    refused.failed(1, "cannot be written");
    // Its conditional put is a look and a write, not one step: both builders may write the same pack, with the same bytes.
    let rounds = 10;
    let seen = many::two_push_at_once("s3://bucket/b", &environment("SECRET"), rounds);
    let packs = files_below(root.path()).into_iter().filter(|path| path.to_string_lossy().ends_with(".pack")).count();
    assert_eq!(packs, 3, "one in the first folder, two in the second");
    counted(&format!(
        "s3s-fs: {rounds} rounds of two pushes at once, latest was the one's {} times, the other's {}",
        seen[0], seen[1]
    ));
}

/// A certificate authority of one's own, and a server's certificate by it.
fn certificates(openssl: &Path, folder: &Path) {
    let run = |words: &str| {
        let mut command = Command::new(openssl);
        let output = command.args(words.split(' ')).current_dir(folder).output().expect("started");
        assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
    };
    fs_err::write(folder.join("server.ext"), "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
        .expect("written");
    run("req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=test-authority");
    run("req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj /CN=test-server");
    run(
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out server.pem -days 2 -extfile server.ext",
    );
}

#[test]
fn an_https_server() {
    let Some(nginx) = program("nginx", "https") else { return };
    let Some(openssl) = program("openssl", "https") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name).display().to_string();
    certificates(&openssl, folder.path());
    for name in ["www", "temporary"] {
        fs_err::create_dir(folder.path().join(name)).expect("made");
    }
    let (_served, port) = serve(|port| {
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|what| format!("{what}_temp_path {};", at(&format!("temporary/{what}"))))
            .concat();
        let text = format!(
            "daemon off; master_process off; pid {pid}; error_log {log} error;
             events {{}}
             http {{ access_log {access}; {temporary} client_max_body_size 64m;
               server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {cert}; ssl_certificate_key {key};
                 location / {{ root {www}; dav_methods PUT; create_full_put_path on; limit_except GET PUT {{ deny all; }} }}
                 location /private/ {{ return 403; }} }} }}",
            pid = at("pid"), log = at("error.log"), access = at("access.log"), cert = at("server.pem"),
            key = at("server.key"), www = at("www"),
        );
        fs_err::write(folder.path().join("nginx.conf"), text).expect("written");
        let mut command = Command::new(&nginx);
        command.args(["-p", &at(""), "-c", &at("nginx.conf"), "-e", &at("error.log")]);
        command
    });
    let (url, authority) = (format!("https://127.0.0.1:{port}/packs"), at("ca.pem"));
    let trusting = [("SSL_CERT_FILE", authority.as_str())];
    let builder = builder();
    let pull = |url: &str| {
        [&["pull", url, "--pubkey", &builder.public, "--json"][..], &AMPLE]
            .concat()
            .into_iter()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let run = |node: &Node, url: &str, environment: &[(&str, &str)]| {
        let words = pull(url);
        node.run_with(&words.iter().map(String::as_str).collect::<Vec<_>>(), environment)
    };
    let node = Node::new();
    run(&node, &url, &trusting).warned("is not there");
    run(&node, &format!("https://127.0.0.1:{port}/private"), &trusting).warned("may not be read");
    let push = [&["push", &url, "--key", "ropejit.key", "--pack", "OUT.pack", "--json"][..], &AMPLE].concat();
    let pushed = builder.node.run_with(&push, &trusting);
    assert_eq!(pushed.code, 0, "{}", pushed.stderr);
    run(&node, &url, &trusting).has_installed();
    node.is_warm();
    // A certificate of nobody that is known.
    let words = ["pull", &url, "--pubkey", &builder.public, "--json", "--timeout", "2"];
    Node::new().run(&words).warned("certificate");
    let times: Vec<Duration> = (0..20)
        .map(|_| {
            let (node, started) = (Node::new(), Instant::now());
            run(&node, &url, &trusting).has_installed();
            started.elapsed()
        })
        .collect();
    let log = fs_err::read_to_string(folder.path().join("access.log")).expect("read");
    let gets = log.lines().filter(|line| line.contains("GET") && line.contains(" 200 ")).count();
    let mut sorted = times.clone();
    sorted.sort();
    counted(&format!(
        "nginx: {} pulls, {gets} answers with 200; median of a pull {:?}",
        times.len() + 1,
        sorted[sorted.len() / 2]
    ));
    assert_eq!(gets, 2 * (times.len() + 1), "two requests a pull");
}

#[test]
fn an_image_goes_through_a_registry() {
    let Some(registry) = program("docker-registry", "registry") else { return };
    let Some(skopeo) = program("skopeo", "registry") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name).display().to_string();
    let (_served, port) = serve(|port| {
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n",
            at("registry")
        );
        fs_err::write(folder.path().join("registry.yml"), text).expect("written");
        let mut command = Command::new(&registry);
        command.args(["serve", &at("registry.yml")]);
        command
    });
    let builder = builder();
    builder.node.ok(&["pack", "export", "OUT.pack", "--oci", &at("out")]);
    let image = format!("docker://127.0.0.1:{port}/kernels:x");
    let copy = |words: &[&str]| {
        let mut command = Command::new(&skopeo);
        let output = command.args(["--insecure-policy", "copy", "--quiet"]).args(words).output().expect("started");
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    copy(&["--dest-tls-verify=false", &format!("oci:{}", at("out")), &image]);
    copy(&["--src-tls-verify=false", &image, &format!("oci:{}", at("back"))]);
    // All blobs came back as they went.
    let blobs = |name: &str| {
        let mut files = files_below(&folder.path().join(name).join("blobs"));
        files.sort();
        files
            .iter()
            .map(|file| (file.file_name().expect("a name").to_owned(), fs_err::read(file).expect("read")))
            .collect::<Vec<_>>()
    };
    assert_eq!(blobs("out"), blobs("back"));
    // Unpacked as a container's runtime does, it is a folder that engines read.
    let (_, layer) = blobs("back").into_iter().max_by_key(|(_, bytes)| bytes.len()).expect("a layer");
    fs_err::write(folder.path().join("layer.tar.gz"), layer).expect("written");
    fs_err::create_dir(folder.path().join("mount")).expect("made");
    let unpacked = Command::new("tar").args(["-xzf", &at("layer.tar.gz"), "-C", &at("mount")]).status().expect("tar");
    assert!(unpacked.success());
    let words = [&["run", "--tuning", "frozen", "--json"], &super::site::CALL[..]].concat();
    let cache = at("mount/io.ropejit.cache");
    let warm = Node::new().run_with(&words, &[("ROPEJIT_CACHE_PATH", &cache)]);
    assert_eq!(warm.code, 0, "{}", warm.stderr);
    assert_eq!(warm.json()["stats"]["compiles"], 0);
    counted(&format!(
        "docker-registry: {} blobs out and back, a run from the layer with compiles 0",
        blobs("back").len()
    ));
}

/// A store that a share of the network is: nothing but files.
#[test]
fn a_folder_is_a_store() {
    let folder = tempfile::tempdir().expect("a folder");
    let url = file_url(&folder.path().join("not/there/yet"));
    assert_eq!(builder().push(&url, &[]).code, 0);
    let node = Node::new();
    node.pull(&url, &[]).has_installed();
    // The signature beside the pack is minisign's.
    let pack = files_below(folder.path())
        .into_iter()
        .find(|path| path.extension().is_some_and(|e| e == "pack"))
        .expect("there");
    node.ok(&["pack", "verify", &pack.display().to_string(), "--pubkey", &builder().public]);
    let Some(minisign) = program("minisign", "signatures by the program minisign") else { return };
    let status =
        Command::new(minisign).args(["-V", "-q", "-P", &builder().public, "-m"]).arg(&pack).status().expect("started");
    assert!(status.success());
}
