//! An engine in a child of `fork()`.
//!
//! What is loaded serves there as before, since that takes no lock. Whatever would take one, start or wait for a thread, goes
//! to an engine that is made afresh for the child, on the same kind of device and the same folders: other threads of the
//! parent may have held the locks of this one at the fork, and they are not there to let go of them. Where a device cannot be
//! used in a child (a GPU), that is an error. What belongs to the parent is never dropped in a child.

use std::any::Any;
use std::sync::Arc;

use super::builder::{Parts, assemble};
use super::handle::Engine;
use super::shared::StandIn;
use crate::error::Result;
use crate::service::store::memory::InMemory;

impl StandIn for Engine {
    fn engine(&self) -> &dyn Any {
        self
    }

    fn close(&self) {
        self.close();
    }

    fn wait(&self) {
        self.wait_tuned();
    }
}

impl Engine {
    /// Whether it was made by a parent of this process.
    pub(crate) fn is_parents(&self) -> bool {
        self.shared().is_parents()
    }

    /// The engine that stands in for a parent's; `None` for one of this process.
    ///
    /// # Errors
    /// When its device cannot be used in a child.
    pub(crate) fn stand_in(&self) -> Result<Option<&Engine>> {
        if !self.is_parents() {
            return Ok(None);
        }
        let renew = || self.renew().map(|engine| Box::new(Box::new(engine) as Box<dyn StandIn>));
        let renewed = self.shared().renewed.get_or_try_init(renew)?.engine();
        let Some(renewed) = renewed.downcast_ref::<Engine>() else { return Ok(None) };
        // It may have been a child's, of which this process is one.
        Ok(Some(renewed.stand_in()?.unwrap_or(renewed)))
    }

    /// The stand-in, if one was needed yet.
    pub(crate) fn stand_in_so_far(&self) -> Option<&Engine> {
        let renewed = self.shared().renewed.get()?.engine().downcast_ref::<Engine>()?;
        if renewed.is_parents() { renewed.stand_in_so_far() } else { Some(renewed) }
    }

    fn renew(&self) -> Result<Engine> {
        let shared = self.shared();
        Ok(assemble(Parts {
            device: shared.device.in_fork()?,
            store: shared.store.in_fork().unwrap_or_else(|| Arc::new(InMemory::default())),
            tuning: shared.tuning(),
            lock: shared.lock.clone(),
            priors: shared.priors,
            ahead_of_time: shared.ahead_of_time,
            named_device: shared.named_device,
            named_folder: shared.named_folder.clone(),
            extensions: shared.extensions.anew(),
            on_progress: None,
            late_after: shared.late_after,
        }))
    }
}
