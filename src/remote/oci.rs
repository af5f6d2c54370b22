//! An image of a pack, as registries, `skopeo` and Kubernetes' image volumes take it: an OCI image layout with one layer.
//!
//! What is in the layer, and what its labels are called, follows the "compat" image of Model Cache Vault (MCV), which GKM and `KServe`
//! extract: `io.<kind>.cache/`, `io.<kind>.manifest/manifest.json`, and `cache.<kind>.image/…` on the image's configuration
//! (<https://github.com/redhat-et/GKM/blob/main/mcv/docs/spec-compat.md>). The kind is `ropejit`.
//!
//! ```text
//! <folder>/oci-layout, index.json, blobs/sha256/…
//! the layer:  io.ropejit.cache/v1/artifact/3f/3f09….rope   a cache folder: ROPEJIT_CACHE_PATH=<mount>/io.ropejit.cache
//!             io.ropejit.manifest/manifest.json            the pack's index
//! ```
//!
//! Files are root's, and only root can write to them. The same pack gives the same image on the same kind of processor.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::index::Index;
use super::pack::{OnEntry, Pack, digest};
use crate::error::{Error, Result};
use crate::service::key::{FORMAT_VERSION, Key};

/// Where the entries are in the image.
pub const CACHE: &str = "io.ropejit.cache";
const MANIFEST: &str = "io.ropejit.manifest";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The folder of the layout.
    pub folder: PathBuf,
    /// SHA-256 of the image's manifest: what a registry knows it by.
    pub manifest: Key,
    /// Bytes of the layer.
    pub layer_bytes: u64,
}

/// Writes a pack as an image layout into a new folder; all of it is checked on the way.
///
/// # Errors
/// [`ErrorKind::Pack`](crate::ErrorKind::Pack) when an entry is damaged; [`ErrorKind::Io`](crate::ErrorKind::Io) when the folder is
/// there already, or cannot be written.
pub fn export(pack: &Pack, folder: &Path, progress: OnEntry<'_>) -> Result<Image> {
    let failed = |e| Error::io(folder, "the image cannot be written", e).hint("name a new folder: --oci DIR");
    if folder.exists() {
        return Err(failed(io::ErrorKind::AlreadyExists.into()));
    }
    let above = folder.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let made = tempfile::Builder::new().prefix(".ropejit-oci-").tempdir_in(above).map_err(failed)?;
    let blobs = made.path().join("blobs/sha256");
    std::fs::create_dir_all(&blobs).map_err(failed)?;

    let part = blobs.join("part");
    let layer = File::create_new(&part).map_err(failed)?;
    let (layer, content, pack_sha256) = write_layer(pack, layer, progress, &failed)?;
    std::fs::rename(&part, blobs.join(layer.sha256.to_string())).map_err(failed)?;

    let index = pack.index();
    let blob = |media_type: &str, document: &Value| -> io::Result<Value> {
        let bytes = serde_json::to_vec(document)?;
        std::fs::write(blobs.join(digest(&bytes).to_string()), &bytes)?;
        Ok(descriptor(media_type, digest(&bytes), bytes.len() as u64))
    };
    let config = json!({
        "architecture": processor(),
        "os": "linux",
        "config": { "Labels": labels(index) },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{content}")] },
    });
    let config = blob(CONFIG_TYPE, &config).map_err(failed)?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": config,
        "layers": [descriptor(LAYER_TYPE, layer.sha256, layer.bytes)],
        "annotations": {
            "org.opencontainers.image.title": "ropejit kernels",
            "org.opencontainers.image.description": format!("RoPE kernels for {}", index.architectures().join(", ")),
            "io.ropejit.pack.sha256": pack_sha256,
            "io.ropejit.templates": index.templates,
        },
    });
    let manifest_bytes = serde_json::to_vec(&manifest).map_err(|e| failed(e.into()))?;
    let mut entry = blob(MANIFEST_TYPE, &manifest).map_err(failed)?;
    entry["platform"] = json!({ "architecture": processor(), "os": "linux" });
    let documents = [
        ("oci-layout", json!({ "imageLayoutVersion": "1.0.0" })),
        (
            "index.json",
            json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry] }),
        ),
    ];
    for (name, document) in documents {
        std::fs::write(made.path().join(name), document.to_string()).map_err(failed)?;
    }
    readable(made.path()).map_err(failed)?;
    std::fs::rename(made.path(), folder).map_err(failed)?;
    let _ = made.keep(); // renamed: nothing is left to remove
    Ok(Image { folder: folder.to_owned(), manifest: digest(&manifest_bytes), layer_bytes: layer.bytes })
}

/// What MCV reads of an image before it extracts it.
fn labels(index: &Index) -> Value {
    let target = |arch: &&str| match arch.strip_prefix("sm_") {
        Some(number) => json!({ "backend": "cuda", "arch": number, "warp_size": 32 }),
        None => json!({ "backend": "cpu", "arch": arch }),
    };
    let targets: Vec<Value> = index.architectures().iter().map(target).collect();
    json!({
        "cache.ropejit.image/entry-count": index.entries.len().to_string(),
        "cache.ropejit.image/summary": json!({ "targets": targets }).to_string(),
        "cache.ropejit.image/cache-size-bytes": index.bytes().to_string(),
        "cache.ropejit.image/templates": index.templates,
    })
}

struct Written {
    sha256: Key,
    bytes: u64,
}

/// Writes the layer; returns it, the SHA-256 of its content before it was compressed, and that of the pack.
fn write_layer(
    pack: &Pack,
    file: File,
    progress: OnEntry<'_>,
    failed: &dyn Fn(io::Error) -> Error,
) -> Result<(Written, Key, Key)> {
    // No name and no time in the head of the gzip format.
    let packed = GzBuilder::new().write(Hashed::new(io::BufWriter::new(file)), Compression::best());
    let mut layer = tar::Builder::new(Hashed::new(packed));
    let version = format!("{CACHE}/v{FORMAT_VERSION}");
    add(&mut layer, &format!("{CACHE}/"), None).map_err(failed)?;
    add(&mut layer, &format!("{version}/"), None).map_err(failed)?;
    let mut last = (String::new(), String::new());
    let sha256 = pack.each(|nth, item, bytes| {
        let name = item.key.to_string();
        let kind = format!("{version}/{}/", item.kind.name());
        let part = format!("{kind}{}/", &name[..2]);
        // By kind and key: a folder's entries follow each other.
        if last.0 != kind {
            add(&mut layer, &kind, None).map_err(failed)?;
        }
        if last.1 != part {
            add(&mut layer, &part, None).map_err(failed)?;
        }
        add(&mut layer, &format!("{part}{name}.rope"), Some(bytes)).map_err(failed)?;
        last = (kind, part);
        progress(nth + 1, pack.index().entries.len());
        Ok(())
    })?;
    let finish = || -> io::Result<(Written, Key)> {
        let index = serde_json::to_vec_pretty(pack.index())?;
        add(&mut layer, &format!("{MANIFEST}/"), None)?;
        add(&mut layer, &format!("{MANIFEST}/manifest.json"), Some(&index))?;
        let content = layer.into_inner()?;
        let content_sha256 = content.sha256();
        let packed = content.inner.finish()?;
        let written = Written { sha256: packed.sha256(), bytes: packed.bytes };
        packed.inner.into_inner()?.sync_all()?;
        Ok((written, content_sha256))
    };
    let (written, content) = finish().map_err(failed)?;
    Ok((written, content, sha256))
}

/// Adds a file, or a folder, that is root's.
fn add(layer: &mut tar::Builder<impl Write>, name: &str, bytes: Option<&[u8]>) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(if bytes.is_some() { tar::EntryType::Regular } else { tar::EntryType::Directory });
    header.set_mode(if bytes.is_some() { 0o644 } else { 0o755 });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    let bytes = bytes.unwrap_or_default();
    header.set_size(bytes.len() as u64);
    layer.append_data(&mut header, name, bytes)
}

fn descriptor(media_type: &str, sha256: Key, bytes: u64) -> Value {
    json!({ "mediaType": media_type, "digest": format!("sha256:{sha256}"), "size": bytes })
}

/// The processor, as Go names it. Kernels for GPUs serve any.
fn processor() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// For others to read, as the files in it are as far as the umask lets them: a temporary folder is the user's alone.
fn readable(folder: &Path) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(folder.join("blobs"))?.permissions().mode();
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(mode & 0o777))?;
    }
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}

/// Counts and hashes what goes through.
struct Hashed<W> {
    inner: W,
    hasher: Sha256,
    bytes: u64,
}

impl<W> Hashed<W> {
    fn new(inner: W) -> Self {
        Self { inner, hasher: Sha256::new(), bytes: 0 }
    }

    fn sha256(&self) -> Key {
        Key::from_bytes(self.hasher.clone().finalize().into())
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
