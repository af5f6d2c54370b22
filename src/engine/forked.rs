//! An engine in a child of `fork()`.
//!
//! What is loaded serves there as before, since that takes no lock. Whatever would take one, start or wait for a thread, goes
//! to an engine that is made afresh for the child, on the same kind of device and the same folders: other threads of the
//! parent may have held the locks of this one at the fork, and they are not there to let go of them. Where a device cannot be
//! used in a child (a GPU), that is an error. What belongs to the parent is never dropped in a child.

use std::sync::Arc;

use super::builder::{Parts, assemble};
use super::{Engine, Shared};
use crate::error::Result;
use crate::store::memory::Memory;
use crate::system::fork;

impl Shared {
    /// Whether it was made by a parent of this process.
    pub(super) fn is_parents(&self) -> bool {
        self.generation != fork::generation()
    }

    /// The engine that stands in for a parent's; `None` for one of this process.
    ///
    /// # Errors
    /// When its device cannot be used in a child.
    pub(super) fn stand_in(&self) -> Result<Option<&Engine>> {
        if !self.is_parents() {
            return Ok(None);
        }
        let renewed = self.renewed.get_or_try_init(|| self.renew().map(Box::new))?;
        // It may have been a child's, of which this process is one.
        Ok(Some(renewed.shared.stand_in()?.unwrap_or(renewed)))
    }

    /// The stand-in, if one was needed yet.
    pub(super) fn stand_in_so_far(&self) -> Option<&Engine> {
        let renewed = self.renewed.get()?;
        if renewed.shared.is_parents() { renewed.shared.stand_in_so_far() } else { Some(renewed) }
    }

    fn renew(&self) -> Result<Engine> {
        let device = self.device.in_fork()?;
        let parts = Parts {
            device,
            store: self.store.in_fork().unwrap_or_else(|| Arc::new(Memory::default())),
            tuning: self.tuning(),
            portable: self.portable,
            lock: self.lock.clone(),
            command_environment: self.command_environment.clone(),
            priors: Arc::clone(&self.priors),
            on_progress: None,
        };
        Ok(assemble(parts))
    }
}
