//! cos and sin of a model, made on the device and kept: one table for all who ask for the same parameters.
//!
//! There is no kernel for making tables. The rotation itself, computing its angles, turns a vector that is 1 in its first
//! half and 0 in its second: what comes out is a row `[cos | sin]`, with the bits that a kernel computes which reads no
//! table at all.
//!
//! A table grows to the longest sequence asked for, in powers of two; those it outgrew are kept, since graphs may hold
//! them. What changes with the length of the sequence is chosen on the host, by that length: `longrope` has two tables,
//! `dynamic` beyond its context new frequencies for every length, which go along with the launch and are not tabulated.

use std::borrow::Cow;
use std::sync::{Arc, PoisonError};

use super::args::borrowed::Location;
use super::args::{Args, Made, Operand, Positions, Tables, Tensor};
use super::handle::Rope;
use super::in_engine::InEngine;
use super::kept_angles::{Kept, Set, Table};
use super::launch::launch;
use super::params::AngleParams;
use crate::error::Result;
use crate::rope::scaling::{RopeParameters, Scaling, TableMode};
use crate::rope::{DType, Layout, RopeSpec};
use crate::service::bucket::Bucket;
use crate::service::engine::{Engine, Tuning};

/// Rows that the first table has.
const FIRST_ROWS: u64 = 4096;
/// Larger tables are not made: kernels compute their angles.
const MOST_TABLE_BYTES: u64 = 256 << 20;
/// Tables are made with the kernel of this bucket, however long they are.
const MAKER_TOKENS: u64 = 8192;

/// The cos and sin of one model's parameters, in one mode. Cheap to clone.
#[derive(Clone)]
pub struct Angles {
    kept: Arc<Kept>,
    maker: Rope,
}

/// The rotation that makes tables for heads of `rotary_dim`.
pub(super) fn maker_spec(rotary_dim: u32, mode: TableMode) -> RopeSpec {
    RopeSpec::new(DType::F32, rotary_dim, 1, 0).with_angles(mode)
}

/// The bucket that its kernel is looked up in.
pub(super) fn maker_bucket() -> Bucket {
    Bucket::of(MAKER_TOKENS)
}

impl Angles {
    pub(super) fn new(kept: Arc<Kept>, engine: &Engine) -> Result<Self> {
        let maker = engine.rope(&maker_spec(kept.parameters.rotary_dim, kept.mode))?;
        Ok(Self { kept, maker })
    }

    /// In which precision angles are computed.
    pub fn mode(&self) -> TableMode {
        self.kept.mode
    }

    /// cos and sin for sequences of up to `seq_len` tokens: the largest position plus one. One value serves all layers
    /// of a step. Nothing is synchronised once there is a table as long, and for `dynamic` scaling beyond its context,
    /// where the frequencies belong to this length alone, there is none at all.
    ///
    /// Not while a graph is captured, unless the table is there already: it may have to be made, and is waited for.
    ///
    /// # Errors
    /// When the kernel that makes tables cannot be had.
    pub fn tables(&self, seq_len: u64) -> Result<Tables<'_>> {
        let (kept, width) = (&self.kept, self.kept.parameters.rotary_dim as usize / 2);
        let made = |angles| Made { mode: kept.mode, angles };
        let set = match &kept.parameters.scaling {
            Scaling::Dynamic { max_position_embeddings, .. } if seq_len > *max_position_embeddings => {
                let angles = AngleParams::from(&kept.parameters.frequencies(Some(seq_len))?);
                return Ok(Tables::computed(width, made(Cow::Owned(angles))));
            }
            Scaling::LongRope { original_max_position_embeddings: n, .. } if seq_len > *n => {
                kept.beyond.as_ref().unwrap_or(&kept.first)
            }
            _ => &kept.first,
        };
        let made = made(Cow::Borrowed(&set.angles));
        let loaded = set.table.load();
        let table = match loaded.as_ref().filter(|t| t.rows >= seq_len) {
            Some(table) => Arc::clone(table),
            None => match self.grow(set, seq_len)? {
                Some(table) => table,
                None => return Ok(Tables::computed(width, made)),
            },
        };
        // All tables that were made are kept as long as the set that `made` borrows from.
        let place = Location::Own { context: self.maker.engine.device().context() };
        Ok(Tables::made(table.memory.address(), place, table.rows as usize, width, made))
    }

    /// Makes a table of at least `rows` rows; `None` if it would be too large for the device, or the lock may be held by a
    /// thread that is not there.
    fn grow(&self, set: &Set, rows: u64) -> Result<Option<Arc<Table>>> {
        if self.maker.engine.is_parents() {
            return Ok(None);
        }
        let mut all = set.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = all.last().filter(|t| t.rows >= rows) {
            return Ok(Some(Arc::clone(table)));
        }
        let row_bytes = 4 * u64::from(self.kept.parameters.rotary_dim);
        let rows = rows.max(FIRST_ROWS).checked_next_power_of_two().unwrap_or(u64::MAX);
        let bytes = rows.saturating_mul(row_bytes);
        let device = self.maker.engine.device().as_ref();
        if bytes > MOST_TABLE_BYTES || bytes > device.free_memory()? / 4 {
            return Ok(None);
        }
        let table = Arc::new(Table { memory: device.alloc(bytes as usize)?, rows });
        self.make(set, &table)?;
        all.push(Arc::clone(&table));
        set.table.store(Some(Arc::clone(&table)));
        Ok(Some(table))
    }

    fn make(&self, set: &Set, table: &Table) -> Result<()> {
        let (shared, device) = (self.maker.engine.shared(), self.maker.engine.device());
        let width = self.kept.parameters.rotary_dim as usize;
        let unit: Vec<u8> = (0..width).flat_map(|i| if i < width / 2 { 1f32 } else { 0f32 }.to_ne_bytes()).collect();
        let mut input = device.alloc(unit.len())?;
        input.upload(0, &unit)?;
        let layout = Layout::bshd(1, table.rows as usize, 1, width);
        let same_row = Layout { strides: [0, 0, 0, 1], ..layout };
        let args = Args {
            q: Operand::out_of_place(
                Tensor::in_memory(input.as_ref(), 0, DType::F32, same_row)?,
                Tensor::in_memory(table.memory.as_ref(), 0, DType::F32, layout)?,
            ),
            k: None,
            tables: Tables::computed(width / 2, Made { mode: self.kept.mode, angles: Cow::Borrowed(&set.angles) }),
            positions: Positions::Offset(0),
            norm: None,
            append: None,
        };
        let stream = device.stream();
        let Some(call) = self.maker.call(stream, &args)? else { return Ok(()) };
        let policy = if shared.tuning() == Tuning::Frozen { Tuning::Frozen } else { Tuning::Never };
        let plan = self.maker.resolve(stream, maker_bucket(), call.class, policy)?;
        launch(&plan, stream, &call)?;
        // A download waits for the device's own stream: from here on every stream may read the table.
        table.memory.download(0, &mut [0; 4])
    }
}

impl Engine {
    /// cos and sin of a model's parameters, made on the device, kept by the engine, and shared by all who ask for the
    /// same. `TableMode::F32` has the angles of transformers, `Accurate` stays accurate at any position.
    ///
    /// # Errors
    /// When the parameters give no frequencies, or more than 256.
    pub fn angles(&self, parameters: &RopeParameters, mode: TableMode) -> Result<Angles> {
        if let Some(engine) = self.stand_in()? {
            return engine.angles(parameters, mode);
        }
        let kept_here = InEngine::of(self);
        let mut all = kept_here.angles.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = match all.iter().find(|k| k.mode == mode && k.parameters == *parameters) {
            Some(kept) => Arc::clone(kept),
            None => {
                let kept = Arc::new(Kept::new(parameters, mode)?);
                all.push(Arc::clone(&kept));
                kept
            }
        };
        drop(all);
        Angles::new(kept, self)
    }
}
