//! A server of files over HTTP that does as it is told: refuses, stalls, breaks off, changes bytes. It counts what it is asked.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// Nothing.
    Nothing,
    /// Every answer has this status.
    Status(u16),
    /// So many answers have this status, then all is well.
    Busy(u64, u16),
    /// Nothing is answered.
    Mute,
    /// A pack stops after so many bytes, and the connection stays open.
    StallAfter(usize),
    /// A pack stops after so many bytes, and the connection is closed.
    CutAfter(usize),
    /// The first answer with a pack stops there; the rest can be asked for.
    CutOnce(usize),
    /// A byte of a pack has a bit turned.
    Flip(usize),
    /// Packs come in so many pieces, a rest between them.
    Slow(usize, Duration),
    /// Packs have bytes behind them, and their length says so.
    Longer(usize),
}

pub struct Server {
    address: String,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    folder: PathBuf,
    fault: Mutex<Fault>,
    stop: AtomicBool,
    requests: AtomicU64,
    packs: AtomicU64,
    bytes: AtomicU64,
}

impl Server {
    /// Serves a folder.
    pub fn new(folder: &Path, fault: Fault) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            folder: folder.to_owned(),
            fault: Mutex::new(fault),
            stop: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            packs: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        });
        let seen = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if seen.stop.load(SeqCst) {
                    return;
                }
                let (Ok(stream), seen) = (stream, Arc::clone(&seen)) else { continue };
                std::thread::spawn(move || {
                    let _ = seen.answer(stream); // whoever asked may be gone
                });
            }
        });
        Self { address: format!("http://{address}"), shared, thread: Some(thread) }
    }

    pub fn url(&self) -> &str {
        &self.address
    }

    pub fn set(&self, fault: Fault) {
        *self.shared.fault.lock().expect("not poisoned") = fault;
    }

    /// Bytes of bodies that were sent since the last look at all.
    pub fn sent(&self) -> u64 {
        self.shared.bytes.load(SeqCst)
    }

    /// Requests, those for packs, and bytes of bodies since the last look.
    pub fn seen(&self) -> (u64, u64, u64) {
        let Shared { requests, packs, bytes, .. } = &*self.shared;
        (requests.swap(0, SeqCst), packs.swap(0, SeqCst), bytes.swap(0, SeqCst))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        let _ = TcpStream::connect(self.address.trim_start_matches("http://")); // wakes it
        if let Some(thread) = self.thread.take() {
            thread.join().expect("ended");
        }
    }
}

impl Shared {
    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let (mut path, mut from) = (String::new(), None);
        for line in BufReader::new(stream.try_clone()?).lines() {
            let line = line?;
            if path.is_empty() {
                path.push_str(line.split(' ').nth(1).unwrap_or_default());
            }
            if let Some(range) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
                from = range.split('-').next().and_then(|from| from.parse::<usize>().ok());
            }
            if line.is_empty() {
                break;
            }
        }
        if path.is_empty() {
            return Ok(());
        }
        let nth = self.requests.fetch_add(1, SeqCst);
        let is_pack = Path::new(&path).extension().is_some_and(|end| end == "pack");
        let nth_pack = if is_pack { self.packs.fetch_add(1, SeqCst) } else { 0 };
        let fault = *self.fault.lock().expect("not poisoned");
        match fault {
            Fault::Status(status) => return refuse(&mut stream, status),
            Fault::Busy(times, status) if nth < times => return refuse(&mut stream, status),
            Fault::Mute => return self.hold(&stream),
            _ => {}
        }
        let Ok(mut bytes) = std::fs::read(self.folder.join(path.trim_start_matches('/'))) else {
            return refuse(&mut stream, 404);
        };
        let whole = bytes.len();
        match fault {
            Fault::Flip(at) if is_pack => bytes[at] ^= 1,
            Fault::Longer(by) if is_pack => bytes.resize(whole + by, 0),
            _ => {}
        }
        // Only who breaks off once can be asked for the rest.
        let etag = if matches!(fault, Fault::CutOnce(_)) { "ETag: \"1\"\r\n" } else { "" };
        let body = &bytes[from.unwrap_or(0).min(bytes.len())..];
        let length = body.len();
        match from {
            Some(from) => write!(
                stream,
                "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {from}-{}/{whole}\r\nContent-Length: {length}\r\n{etag}Connection: close\r\n\r\n",
                whole - 1
            )?,
            None => write!(
                stream,
                "HTTP/1.1 200 OK\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Length: {length}\r\n{etag}Connection: close\r\n\r\n"
            )?,
        }
        let mut send = |part: &[u8]| {
            self.bytes.fetch_add(part.len() as u64, SeqCst);
            stream.write_all(part).and_then(|()| stream.flush())
        };
        match fault {
            Fault::StallAfter(at) if is_pack => {
                send(&body[..at])?;
                return self.hold(&stream);
            }
            Fault::CutAfter(at) if is_pack => return send(&body[..at]),
            Fault::CutOnce(at) if is_pack && nth_pack == 0 => return send(&body[..at]),
            Fault::Slow(pieces, rest) if is_pack => {
                for piece in body.chunks(length.div_ceil(pieces)) {
                    send(piece)?;
                    std::thread::sleep(rest);
                }
            }
            _ => send(body)?,
        }
        Ok(())
    }

    /// Keeps a connection open until the other side gives up, or the server ends.
    fn hold(&self, stream: &TcpStream) -> std::io::Result<()> {
        stream.set_read_timeout(Some(Duration::from_millis(50)))?;
        while !self.stop.load(SeqCst) {
            match stream.peek(&mut [0]) {
                Ok(0) => return Ok(()),
                Err(e) if !matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                    return Err(e);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn refuse(stream: &mut TcpStream, status: u16) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 {status} No\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
}
