//! Priors: choices that were measured on some GPU models and come with the crate, as lock files in `cache/priors`.
//!
//! On a GPU of such a model a call that is *near enough* to a measured one takes its variant, and nothing is measured.
//! Elsewhere the choices of the most similar GPU say which few candidates are worth measuring.
//!
//! **The model** is the device's [`Identity`].
//!
//! **Near enough** is a call whose variants do the same work per byte, and as much of it:
//! - element *size* of q, k and the tables, dimensions of a head, order of pairs, rounding, layout class, and whether positions
//!   are read are equal. The type itself (bf16 or f16), direction, and the width of a table's rows are not compared: measured
//!   on an H200, they move no choice by more than 0.7 %;
//! - below twice the L2's bytes, tokens and heads are equal: how the blocks fill the GPU decides there, and 32 heads in place
//!   of 40 have cost 17 %. What streams from memory is alike, if it has as many heads within a factor of two: they
//!   share a token's row of the tables;
//! - what stands beside the rotation is equal: a norm and its side, a cache and its types, direction, the part that turns. How
//!   a weight is applied, the order of a sum, the reciprocal root and what a scale does are not compared: they cost the same.
//!   A fused spec and one that only turns are never near, and neither orders the other's candidates.
//!
//! The nearest one whose variant is in today's space wins. Choices of other templates than this program's only order.

use std::collections::BTreeMap;

use once_cell::race::OnceBox;

use super::fused;
use super::render::templates_digest;
use super::trial::bytes_per_token;
use super::variant::{Abilities, Bucket, Class, Hint, Variant, may_compute, space, widest_piece};
use crate::error::{Error, Result};
use crate::rope::{Direction, PairStyle, PositionForm, RopeSpec, RotaryPart, Rounding, SlotForm};
use crate::service::device::Identity;
use crate::service::family::{Families, Line};
use crate::service::lock::Lock;

/// The lock files that come with the crate: a name for errors, and the text.
const SHIPPED: &[(&str, &str)] = &[("nvidia-h200.lock", include_str!("../../../cache/priors/nvidia-h200.lock"))];
/// Candidates that are measured where a prior orders them, beside the default.
pub const FEW: usize = 3;
/// A call that moves this many times the L2's bytes finds nothing of the one before there.
const PAST_L2: f64 = 2.0;

/// Choices of GPU models.
#[derive(Debug, Default)]
pub struct Priors {
    known: Vec<Known>,
}

/// The choices of one model.
#[derive(Debug)]
struct Known {
    model: Identity,
    /// Made with this program's templates.
    current: bool,
    choices: Vec<Choice>,
}

#[derive(Debug)]
struct Choice {
    work: Work,
    variant: Variant,
}

/// The choices that come with the crate, read when they are first asked for.
pub fn shipped() -> &'static Priors {
    static READ: OnceBox<Priors> = OnceBox::new();
    READ.get_or_init(|| {
        Box::new(Priors::parse(SHIPPED.iter().copied()).unwrap_or_else(|e| {
            tracing::error!("the shipped priors cannot be read, all candidates are measured: {e}");
            Priors::default()
        }))
    })
}

/// The lock files that come with the crate, by name: for `make check-priors`, which says what is stale.
///
/// # Errors
/// [`ErrorKind::LockFile`](crate::ErrorKind::LockFile) when one cannot be read.
pub fn files() -> Result<Vec<(&'static str, Lock)>> {
    SHIPPED.iter().map(|(name, text)| Ok((*name, Lock::parse(name, text, &AsTheyStand)?))).collect()
}

impl Priors {
    /// Reads lock files, each given by the name that errors call it and its text.
    ///
    /// # Errors
    /// [`ErrorKind::LockFile`](crate::ErrorKind::LockFile) when a text is none.
    pub fn parse<'a>(texts: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self> {
        let mut known: Vec<Known> = Vec::new();
        for (name, text) in texts {
            let lock = Lock::parse(name, text, &AsTheyStand)?;
            let current = lock.is_of(templates_digest());
            // Lines are sorted, and most share the spec of the one before.
            let mut last: Option<(&str, RopeSpec)> = None;
            let mut places = BTreeMap::new();
            for (section, locked) in lock.choices() {
                // Choices for an architecture were not measured.
                let Some(model) = section.device.clone() else { continue };
                let at = *places.entry(section).or_insert_with(|| {
                    known.push(Known { model, current, choices: Vec::new() });
                    known.len() - 1
                });
                let at_line = |e: Error| e.subject_is(format!("{name}:{}", locked.line));
                let spec = match last.take() {
                    Some((text, spec)) if text == locked.spec => spec,
                    _ => locked.spec.parse().map_err(at_line)?,
                };
                let class = locked.class.parse().map_err(at_line)?;
                let variant = locked.config.parse().map_err(at_line)?;
                known[at].choices.push(Choice { work: Work::of(&spec, class, locked.bucket), variant });
                last = Some((&locked.spec, spec));
            }
        }
        Ok(Self { known })
    }

    /// What was measured on a GPU of the same model for a call that is near enough: the GPU's name and the variant.
    pub fn exact(
        &self,
        device: &Identity,
        spec: &RopeSpec,
        class: Class,
        bucket: Bucket,
        can: Abilities,
    ) -> Option<(&str, Variant)> {
        let known = self.known.iter().find(|known| known.current && known.model == *device)?;
        let (wanted, l2) = (Work::of(spec, class, bucket), device.l2_bytes as f64);
        let near = |choice: &&Choice| choice.work.is_near(&wanted, l2);
        let mut near: Vec<&Choice> = known.choices.iter().filter(near).collect();
        near.sort_by(|a, b| {
            let by = |c: &Choice| [c.work.log2_bytes(&wanted, l2), c.work.log2_bytes(&wanted, f64::INFINITY)];
            let (a, b) = (by(a), by(b));
            a[0].total_cmp(&b[0]).then(a[1].total_cmp(&b[1]))
        });
        let space = space(spec, class, bucket, can);
        let chosen = near.into_iter().find(|choice| space.contains(&choice.variant))?;
        Some((known.model.name(), chosen.variant))
    }

    /// The candidates worth measuring, by the choices of the most similar GPU: its name, the default, and at most [`FEW`]
    /// more, in the order in which its choices name them, the nearest call first. `None`: nothing is known, or all are.
    pub fn few(
        &self,
        device: &Identity,
        spec: &RopeSpec,
        class: Class,
        bucket: Bucket,
        can: Abilities,
    ) -> Option<(&str, Vec<Variant>)> {
        let alike = |known: &&Known| known.model.is_gpu() == device.is_gpu() && !known.choices.is_empty();
        let distance = |known: &&Known| distance(&known.model, device);
        let known = self.known.iter().filter(alike).min_by(|a, b| distance(a).total_cmp(&distance(b)))?;
        let (wanted, l2) = (Work::of(spec, class, bucket), device.l2_bytes as f64);
        let same_kernel = |choice: &&Choice| choice.work.beside.is_some() == wanted.beside.is_some();
        let mut choices: Vec<(f64, &Choice)> = known
            .choices
            .iter()
            .filter(same_kernel)
            .map(|choice| (choice.work.distance(&wanted, l2), choice))
            .collect();
        choices.sort_by(|a, b| a.0.total_cmp(&b.0));
        let all = space(spec, class, bucket, can);
        let mut few = vec![all[0]];
        for (_, choice) in choices {
            let form = choice.work.form(choice.variant);
            if let Some(named) = all.iter().find(|v| wanted.form(**v) == form)
                && !few.contains(named)
            {
                few.push(*named);
            }
            if few.len() > FEW {
                break;
            }
        }
        // Where no choice names another candidate than the default, nothing was learnt about this space.
        (few.len() > 1 && few.len() < all.len()).then_some((known.model.name(), few))
    }
}

/// Reads no line: here each is read once, by what follows.
struct AsTheyStand;

impl Families for AsTheyStand {
    fn read(&self, _: &Line<'_>) -> Result<()> {
        Ok(())
    }

    fn check(&self, _: &Line<'_>, _: Abilities) -> Result<()> {
        Ok(())
    }

    fn templates(&self) -> &str {
        templates_digest()
    }

    fn is_of_templates(&self, _: &Line<'_>) -> bool {
        true
    }
}

/// How unlike two devices are: a doubling of anything counts as one, another architecture as one more than a minor revision.
fn distance(one: &Identity, other: &Identity) -> f64 {
    let (a, b) = (one.compute_capability, other.compute_capability);
    2.0 * f64::from(a.0.abs_diff(b.0))
        + f64::from(u8::from(a.1 != b.1))
        + log2_ratio(one.multiprocessors.into(), other.multiprocessors.into())
        + log2_ratio(one.l2_bytes as f64, other.l2_bytes as f64)
        + log2_ratio(one.memory_bus_bits.into(), other.memory_bus_bits.into())
}

/// What of a call bears on how its variants compare.
#[derive(Debug)]
struct Work {
    /// Bytes of an element of q and k.
    size: usize,
    head_dim: u32,
    rotary_dim: u32,
    style: PairStyle,
    /// Bytes of an element of the tables; 0 where there is none.
    table: usize,
    /// Whether candidates that compute their angles compete with those that read.
    computes: bool,
    class: Class,
    rounding: Rounding,
    reads_positions: bool,
    heads: f64,
    /// Bytes that one launch reads and writes.
    bytes: f64,
    /// Elements of the widest piece.
    widest: u8,
    /// Threads that share a head of the default; 0 unless the spec is fused.
    lanes: u8,
    /// Of fused specs.
    beside: Option<Beside>,
}

/// What stands beside the rotation, without what costs nothing.
#[derive(Debug, PartialEq)]
struct Beside {
    /// Whether the norm comes after the rotation.
    norm: Option<bool>,
    append: Option<Stored>,
    direction: Direction,
    part: RotaryPart,
    k_head_dim: Option<u32>,
}

/// What goes to a cache.
#[derive(Debug, PartialEq)]
struct Stored {
    slots: SlotForm,
    v_head_dim: u32,
    cache_fp8: bool,
    q_fp8: bool,
}

impl Beside {
    fn of(spec: &RopeSpec) -> Self {
        Self {
            norm: spec.norm.map(|norm| norm.after_rope),
            append: spec.append.map(|append| Stored {
                slots: append.slots,
                v_head_dim: append.v_head_dim,
                cache_fp8: append.cache.is_some(),
                q_fp8: append.q.is_some(),
            }),
            direction: spec.direction,
            part: spec.part,
            k_head_dim: spec.k_head_dim,
        }
    }

    fn distance(&self, other: &Self) -> f64 {
        let unless = |same: bool, weight: f64| if same { 0.0 } else { weight };
        let gradient = |b: &Self| b.norm.is_some() && b.direction == Direction::Backward;
        unless(gradient(self) == gradient(other), 8.0)
            + unless(self.norm.is_some() == other.norm.is_some(), 2.0)
            + unless(self.norm == other.norm, 0.5)
            + unless(self.append.is_some() == other.append.is_some(), 2.0)
            + unless(self.append == other.append, 1.0)
            + unless(self.part == other.part && self.k_head_dim == other.k_head_dim, 0.5)
    }
}

/// A variant relative to its call, without what only some GPUs can do: the same idea on another GPU or element type.
type Form = (u16, u8, u8, [u8; 2], Hint, Hint, [bool; 4]);

impl Work {
    fn of(spec: &RopeSpec, class: Class, bucket: Bucket) -> Self {
        let fused = spec.is_fused();
        let widest = if fused { fused::widest_slot(spec) as u8 } else { widest_piece(spec, class) };
        Self {
            size: spec.dtype.size(),
            head_dim: spec.head_dim,
            rotary_dim: spec.rotary_dim,
            style: spec.style,
            table: if class.table_word == 0 { 0 } else { spec.table.dtype.size() },
            computes: class.table_word == 0 || (!fused && may_compute(spec)),
            class,
            rounding: spec.rounding,
            reads_positions: spec.positions != PositionForm::Implicit,
            heads: f64::from(spec.items()),
            bytes: bucket.tokens() as f64 * bytes_per_token(spec) as f64,
            widest,
            lanes: if fused { fused::lanes(spec, widest.into()) as u8 } else { 0 },
            beside: fused.then(|| Beside::of(spec)),
        }
    }

    /// Near enough to take the other's variant unmeasured (see the module).
    fn is_near(&self, other: &Self, l2: f64) -> bool {
        let form = |w: &Self| {
            (w.size, w.head_dim, w.rotary_dim, w.style, w.table, w.computes, w.class, w.rounding, w.reads_positions)
        };
        let streams = self.bytes.min(other.bytes) >= PAST_L2 * l2.max(1.0);
        let alike = if streams {
            log2_ratio(self.heads, other.heads) <= 1.0
        } else {
            (self.heads, self.bytes) == (other.heads, other.bytes)
        };
        form(self) == form(other) && self.beside == other.beside && alike
    }

    /// How many times the bytes differ, as a logarithm; those past the L2 do not.
    fn log2_bytes(&self, other: &Self, l2: f64) -> f64 {
        let most = PAST_L2 * l2.max(1.0);
        log2_ratio(self.bytes.min(most), other.bytes.min(most))
    }

    /// How unlike two are: what decides between candidates weighs most.
    fn distance(&self, other: &Self, l2: f64) -> f64 {
        let unless = |same: bool, weight: f64| if same { 0.0 } else { weight };
        self.log2_bytes(other, l2)
            + log2_ratio(self.heads, other.heads) / 4.0
            + log2_ratio(self.head_dim.into(), other.head_dim.into()) / 2.0
            + log2_ratio(self.rotary_dim.into(), other.rotary_dim.into()) / 2.0
            + log2_ratio(self.class.word.into(), other.class.word.into())
            + unless(self.size == other.size, 1.0)
            + unless(self.style == other.style, 1.0)
            + unless(self.rounding == other.rounding, 0.5)
            + unless(self.reads_positions == other.reads_positions, 0.5)
            + unless(self.class.copy_rest == other.class.copy_rest, 1.0)
            + unless(self.class.head_major == other.class.head_major, 2.0)
            + unless(self.computes == other.computes, 2.0)
            + unless(self.table == other.table, 1.0)
            + unless((self.table == 0) == (other.table == 0), 8.0)
            + self.beside.as_ref().zip(other.beside.as_ref()).map_or(0.0, |(a, b)| a.distance(b))
    }

    fn form(&self, v: Variant) -> Form {
        let lanes = self.lanes.checked_div(v.lanes).unwrap_or(0);
        let (of_threads, switches) = ([lanes, v.blocks], [v.keep_tables, v.tableless, v.early, v.shipped]);
        (v.threads, self.widest / v.vec.max(1), v.heads, of_threads, v.load, v.store, switches)
    }
}

/// The logarithm of the larger over the smaller; nothing known counts as equal.
fn log2_ratio(a: f64, b: f64) -> f64 {
    if a > 0.0 && b > 0.0 { (a / b).log2().abs() } else { 0.0 }
}

#[cfg(test)]
#[path = "prior_tests.rs"]
mod tests;
