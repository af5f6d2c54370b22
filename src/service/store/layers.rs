//! Stores over one another: the user's folder, or memory where there is none, then folders that are only read, such as
//! those of an image's layers or of a system package.
//!
//! An entry is looked for from the top down, so one that the user's folder has costs what it costs without layers. What is
//! made is kept in the top layer.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::claim::Claim;
use super::memory::InMemory;
pub use super::places::Places;
use super::{Entry, Head, Kind, Listed, Lookup, Miss, Store};
use crate::error::{Error, ErrorKind, Result};
use crate::service::key::Key;

/// Stores over one another.
pub struct Layers {
    top: Arc<dyn Store>,
    below: Vec<Arc<dyn Store>>,
    /// What was opened and what was passed over, in order, for people.
    searched: Vec<String>,
    /// Why folders to read were passed over.
    passed_over: Vec<Error>,
}

impl Layers {
    /// A store that is written to, and others that are only read.
    pub fn new(top: Arc<dyn Store>, below: Vec<Arc<dyn Store>>) -> Self {
        let searched = std::iter::once(&top).chain(&below).map(|layer| layer.searched()).collect();
        Self { top, below, searched, passed_over: Vec::new() }
    }

    /// Opens the user's folder, and makes it if it is not there, and the folders that are only read. Where the user's cannot
    /// be had or trusted, the first entry that is to be kept says so. A folder to read that is not there is passed over, as one
    /// of `PATH` is; one that cannot be trusted is too, with a warning.
    ///
    /// # Errors
    /// When a folder cannot be trusted, where `strict` says so.
    pub fn open(places: &Places) -> Result<Self> {
        let bearable = |e: &Error| e.kind() == ErrorKind::Io || !places.strict;
        let top: Arc<dyn Store> = match &places.user {
            Some(root) => match places.open_user(root) {
                Ok(disk) => Arc::new(disk),
                Err(e) if bearable(&e) => Arc::new(InMemory::instead_of_a_folder(e)),
                Err(e) => return Err(e),
            },
            None => Arc::new(InMemory::instead_of_a_folder(
                Error::new(
                    ErrorKind::Io,
                    "no cache folder: neither ROPEJIT_CACHE_DIR nor HOME is set; nothing is kept",
                )
                .hint("set ROPEJIT_CACHE_DIR to a folder that you can write to"),
            )),
        };
        let mut layers = Self::new(top, Vec::new());
        for root in places.to_read() {
            let opened = match places.open_layers(root) {
                Ok(opened) => opened,
                Err(e) => vec![Err(e)],
            };
            for layer in opened {
                match layer {
                    Ok(disk) => layers.push(Arc::new(disk)),
                    Err(e) if bearable(&e) => {
                        if e.kind() == ErrorKind::Io {
                            tracing::debug!("a cache folder is passed over: {e}");
                        } else {
                            tracing::warn!("a cache folder is passed over: {e}");
                        }
                        layers.searched.push(e.without_hint());
                        layers.passed_over.push(e);
                    }
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(layers)
    }

    /// Opens those of the folders that are there, to look at what they hold, and makes none.
    ///
    /// # Errors
    /// When one cannot be opened or trusted.
    pub fn existing(places: &Places) -> Result<Self> {
        let top: Arc<dyn Store> = match places.user_folder().filter(|root| root.exists()) {
            Some(root) => Arc::new(places.open_user(&root)?),
            None => Arc::new(InMemory::default()),
        };
        let mut layers = Self::new(top, Vec::new());
        for root in places.to_read().filter(|root| root.exists()) {
            for layer in places.open_layers(root)? {
                layers.push(Arc::new(layer?));
            }
        }
        Ok(layers)
    }

    fn push(&mut self, layer: Arc<dyn Store>) {
        self.searched.push(layer.searched());
        self.below.push(layer);
    }

    fn all(&self) -> impl Iterator<Item = &dyn Store> {
        std::iter::once(&self.top).chain(&self.below).map(AsRef::as_ref)
    }
}

impl Store for Layers {
    fn get(&self, kind: Kind, key: Key) -> Lookup {
        let mut first: Option<Miss> = None;
        for layer in self.all() {
            match layer.get(kind, key) {
                Lookup::Hit(entry) => {
                    if let Some(miss @ Miss::Unusable { .. }) = first {
                        tracing::warn!("{miss}; a layer below has the entry, which takes its place");
                        if let Err(e) = self.top.put(&entry) {
                            tracing::debug!("not replaced: {e}");
                        }
                    }
                    return Lookup::Hit(entry);
                }
                // What is wrong with an entry is news; that others do not have it is none.
                Lookup::Miss(miss) => match (&first, &miss) {
                    (Some(Miss::Unusable { .. }), _) | (Some(_), Miss::Absent) => {}
                    _ => first = Some(miss),
                },
            }
        }
        Lookup::Miss(first.unwrap_or(Miss::Absent))
    }

    fn put(&self, entry: &Entry) -> Result<()> {
        self.top.put(entry)
    }

    fn list(&self, kind: Kind) -> Result<Vec<Listed>> {
        let lists = self.all().map(|layer| layer.list(kind)).collect::<Result<Vec<_>>>()?;
        Ok(lists.into_iter().flatten().collect())
    }

    fn heads(&self, kind: Kind) -> Result<Vec<Listed<Head>>> {
        let lists = self.all().map(|layer| layer.heads(kind)).collect::<Result<Vec<_>>>()?;
        Ok(lists.into_iter().flatten().collect())
    }

    fn remove(&self, kind: Kind, key: Key) -> Result<bool> {
        self.top.remove(kind, key)
    }

    fn claim(&self, kind: Kind, key: Key) -> Claim {
        self.top.claim(kind, key)
    }

    fn path(&self, kind: Kind, key: Key) -> PathBuf {
        let paths = || self.all().map(|layer| layer.path(kind, key));
        paths().find(|path| path.exists()).unwrap_or_else(|| self.top.path(kind, key))
    }

    fn root(&self) -> Option<&Path> {
        self.top.root()
    }

    fn in_fork(&self) -> Option<Arc<dyn Store>> {
        let top = self.top.in_fork().unwrap_or_else(|| Arc::new(InMemory::default()));
        let below = self.below.iter().filter_map(|layer| layer.in_fork()).collect();
        let passed_over = self.passed_over.iter().map(Error::again).collect();
        Some(Arc::new(Self { top, below, searched: self.searched.clone(), passed_over }))
    }

    fn searched(&self) -> String {
        self.searched.join("; ")
    }

    /// Those that are only read come first: who names one expects what it holds.
    fn unused(&self) -> Vec<Error> {
        self.passed_over.iter().map(Error::again).chain(self.top.unused()).collect()
    }
}
