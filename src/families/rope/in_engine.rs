//! What the family keeps in an engine.

use std::sync::{Arc, Mutex, OnceLock};

use dashmap::DashMap;

use super::ahead_of_time::Loaded;
use super::kept_angles::Kept;
use super::prior::{self, Priors};
use crate::error::Result;
use crate::rope::RopeSpec;
use crate::service::device::{Device, FaultWord};
use crate::service::engine::slots::Slots;
use crate::service::engine::{Builder, Engine};

/// What the family keeps in an engine.
#[derive(Default)]
pub(super) struct InEngine {
    pub ropes: DashMap<RopeSpec, Arc<State>>,
    /// Tables of parameters: few, and looked for by comparing.
    pub angles: Mutex<Vec<Arc<Kept>>>,
    pub ahead_of_time: Loaded,
    /// A test's, in place of those that come with the crate.
    given_priors: Option<Arc<Priors>>,
    /// For launches of tuning runs, whose positions are all inside the tables.
    fault: OnceLock<Box<dyn FaultWord>>,
}

/// What all handles of a spec share.
pub(super) struct State {
    pub spec: RopeSpec,
    pub slots: Arc<Slots>,
    /// Where its launches may meet a position or a slot that is none.
    pub fault: Option<Box<dyn FaultWord>>,
}

impl InEngine {
    /// That of an engine.
    pub fn of(engine: &Engine) -> Arc<Self> {
        let extensions = &engine.shared().extensions;
        extensions.get_or_make(|| Self { given_priors: extensions.given(), ..Self::default() })
    }

    pub fn priors(&self) -> &Priors {
        self.given_priors.as_deref().unwrap_or_else(|| prior::shipped())
    }

    /// The address of a word for launches that nobody asks about.
    pub fn fault_address(&self, device: &dyn Device) -> Result<u64> {
        if let Some(word) = self.fault.get() {
            return Ok(word.address());
        }
        let word = device.fault_word()?;
        Ok(self.fault.get_or_init(|| word).address())
    }
}

impl Builder {
    /// Other priors than those that come with the crate, for tests.
    #[doc(hidden)]
    #[must_use]
    pub fn given_priors(self, priors: Priors) -> Self {
        self.extend(priors)
    }
}
