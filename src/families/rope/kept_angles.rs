//! What an engine keeps of cos and sin: the frequencies of a model's parameters, and the tables made of them.

use std::sync::{Arc, Mutex};

use arc_swap::ArcSwapOption;

use super::params::AngleParams;
use crate::error::{Error, Result};
use crate::rope::scaling::{RopeParameters, Scaling, TableMode};
use crate::service::device::Memory;

/// What all handles of the same parameters and mode share.
pub(super) struct Kept {
    pub parameters: RopeParameters,
    pub mode: TableMode,
    /// Up to the original context, or for every length.
    pub first: Set,
    /// Beyond it, for `longrope`.
    pub beyond: Option<Set>,
}

/// One set of frequencies and its table.
pub(super) struct Set {
    pub angles: AngleParams,
    pub table: ArcSwapOption<Table>,
    /// All tables made; held while one is.
    pub made: Mutex<Vec<Arc<Table>>>,
}

pub(super) struct Table {
    pub memory: Box<dyn Memory>,
    pub rows: u64,
}

impl Kept {
    pub fn new(parameters: &RopeParameters, mode: TableMode) -> Result<Self> {
        let most = 2 * AngleParams::NONE.inv_freq.len() as u32;
        if parameters.rotary_dim > most {
            let what = format!("must be at most {most}, got {}", parameters.rotary_dim);
            return Err(Error::argument("rotary_dim", what));
        }
        let set = |length| {
            let angles = AngleParams::from(&parameters.frequencies(length)?);
            Ok::<_, Error>(Set { angles, table: ArcSwapOption::empty(), made: Mutex::default() })
        };
        let beyond = match &parameters.scaling {
            Scaling::LongRope { original_max_position_embeddings: n, .. } => Some(set(Some(n.saturating_add(1)))?),
            _ => None,
        };
        Ok(Self { parameters: parameters.clone(), mode, first: set(None)?, beyond })
    }
}
