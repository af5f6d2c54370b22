//! The handle of a spec: what every call goes through.

use std::sync::Arc;

use super::args::Args;
use super::in_engine::{InEngine, State};
use super::launch::{Call, launch, launch_nothing, place_of};
use super::problem::{RopeProblem, variant_of};
use super::variant::{Class, Variant};
use crate::error::{Error, ErrorKind, Result};
use crate::rope::{RopeSpec, Rsqrt};
use crate::service::bucket::Bucket;
use crate::service::device::{Dialect, Stream};
use crate::service::engine::{Engine, Tuning};
use crate::service::family::{Origin, Plan, Problem, Provenance};

/// In a fault word: the token's slot, not its position (`ROPE_NO_SLOT` in `templates/params.h`).
const NO_SLOT: u64 = 1 << 63;

/// The kernels of one spec.
#[derive(Clone)]
pub struct Rope {
    pub(super) engine: Engine,
    pub(super) state: Arc<State>,
    kept: Arc<InEngine>,
    /// Where calls run, but for their stream.
    dialect: Dialect,
    context: u64,
}

impl Engine {
    /// The RoPE of a spec. All handles of one spec share their kernels.
    ///
    /// # Errors
    /// When the spec is invalid (see [`RopeSpec::validate`]), or has a norm with a GPU's reciprocal root on the host.
    pub fn rope(&self, spec: &RopeSpec) -> Result<Rope> {
        if let Some(engine) = self.stand_in()? {
            return engine.rope(spec);
        }
        let (kept, device) = (InEngine::of(self), self.device());
        let state = match kept.ropes.get(spec) {
            Some(state) => Arc::clone(&state),
            None => {
                spec.validate()?;
                if device.dialect() == Dialect::Host && spec.norm.is_some_and(|norm| norm.rsqrt == Rsqrt::Approx) {
                    let what = "the approximate reciprocal root is a GPU's own, and this engine computes on the host";
                    return Err(Error::new(ErrorKind::Unsupported, what)
                        .subject_is("norm.rsqrt")
                        .hint("use Rsqrt::Ieee there"));
                }
                let slots = self.shared().new_slots(Class::COUNT);
                let fault = spec.may_report().then(|| device.fault_word()).transpose()?;
                let state = Arc::new(State { spec: spec.clone(), slots, fault });
                Arc::clone(kept.ropes.entry(spec.clone()).or_insert(state).value())
            }
        };
        let (dialect, context) = (device.dialect(), device.context());
        Ok(Rope { engine: self.clone(), state, kept, dialect, context })
    }
}

/// The kernel that serves a bucket and layout class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Serving {
    /// Its tunables.
    pub variant: Variant,
    /// Where it came from.
    pub origin: Origin,
    /// Whether it was chosen by measuring.
    pub tuned: bool,
    /// Whether it was chosen by measuring another GPU of the model: a choice that comes with the crate.
    pub prior: bool,
}

impl Rope {
    /// What it computes.
    pub fn spec(&self) -> &RopeSpec {
        &self.state.spec
    }

    /// Rotates q and k on the stream. Returns where the kernel came from: [`Origin::Memory`] from the second call of a
    /// bucket and layout on, which hashes, locks, allocates, waits for and logs nothing.
    ///
    /// A graph that this call was captured into launches the kernel that was loaded then. Kernels that have served stay
    /// loaded until the process ends, so the engine may be dropped before the graph is. Tensors, tables and positions are the
    /// caller's: they must live as long as the graph is replayed, and with tables of [`Engine::angles`] the
    /// [`Angles`](super::Angles).
    ///
    /// # Errors
    /// When an argument does not fit the spec, or (first calls only) no kernel can be had.
    pub fn apply(&self, stream: Stream<'_>, args: &Args<'_>) -> Result<Origin> {
        let Some(call) = self.call(stream, args)? else { return Ok(Origin::Memory) };
        if self.launch_loaded(stream, &call)? {
            return Ok(Origin::Memory);
        }
        if let Some(engine) = self.engine.stand_in()? {
            return engine.rope(self.spec())?.apply(stream, args);
        }
        let plan = self.resolve(stream, Bucket::of(call.total_tokens()), call.class, self.engine.shared().tuning())?;
        launch(&plan, stream, &call)?;
        Ok(plan.origin)
    }

    /// As [`Rope::apply`] where that only launches: `false`, and nothing done, when a kernel has yet to be found. So a
    /// caller that holds a lock which compiling must not hold (Python's) can let go of it first.
    ///
    /// # Errors
    /// As [`Rope::apply`].
    pub fn apply_loaded(&self, stream: Stream<'_>, args: &Args<'_>) -> Result<bool> {
        self.call(stream, args)?.map_or(Ok(true), |call| self.launch_loaded(stream, &call))
    }

    /// The first call of a bucket and class.
    pub(super) fn resolve(
        &self,
        stream: Stream<'_>,
        bucket: Bucket,
        class: Class,
        tuning: Tuning,
    ) -> Result<Arc<Plan>> {
        self.engine.resolve(&self.problem(bucket, class), &self.state.slots, stream, tuning)
    }

    /// What the service sees of a bucket and class.
    pub(super) fn problem(&self, bucket: Bucket, class: Class) -> Arc<dyn Problem> {
        Arc::new(RopeProblem::new(&self.state.spec, class, bucket, Arc::clone(&self.kept)))
    }

    /// The arguments, checked; `None` where there is nothing to do.
    pub(super) fn call<'a>(&self, stream: Stream<'_>, args: &'a Args<'_>) -> Result<Option<Call<'a>>> {
        let place = place_of(self.dialect, self.context, stream);
        Call::new(&self.state.spec, args, place, self.state.fault.as_ref().map_or(0, |word| word.address()))
    }

    /// Launches with the kernel that is loaded for the call; `false` if there is none.
    fn launch_loaded(&self, stream: Stream<'_>, call: &Call<'_>) -> Result<bool> {
        let slots = &self.state.slots;
        let loaded = slots.at(Bucket::of(call.total_tokens()), call.class.index()).plan();
        let Some(plan) = loaded.as_deref() else { return Ok(false) };
        slots.note_hit();
        launch(plan, stream, call)?;
        Ok(true)
    }

    /// What serves contiguous tensors with this many tokens in all, if it is loaded.
    pub fn serving(&self, tokens: u64, head_major: bool) -> Option<Serving> {
        let class = Class::contiguous(&self.state.spec, head_major, true);
        let Some(plan) = self.state.slots.at(Bucket::of(tokens), class.index()).plan_to_keep() else {
            return self.engine.stand_in_so_far()?.rope(self.spec()).ok()?.serving(tokens, head_major);
        };
        Some(Serving {
            variant: variant_of(&plan.config),
            origin: plan.origin,
            tuned: plan.provenance.is_tuned(),
            prior: plan.provenance == Provenance::Prior,
        })
    }

    /// A launch of the kernel that serves such tensors, without anything around it, to be timed: as many blocks, which find
    /// no work. `None` if none is loaded, and for the gradient of a norm, whose tiles are never without work.
    #[doc(hidden)]
    pub fn bare_launch(&self, tokens: u64, head_major: bool) -> Option<impl Fn() -> Result<()> + use<>> {
        let class = Class::contiguous(&self.state.spec, head_major, true);
        let plan = self.state.slots.at(Bucket::of(tokens), class.index()).plan_to_keep()?;
        let fused = self.state.spec.is_fused();
        if plan.attrs.numbers[3] != 0 {
            return None;
        }
        Some(move || launch_nothing(&plan, fused, Stream::DEFAULT, tokens))
    }

    /// Reports a token whose position lay outside the table in an earlier call, or whose slot lay outside of the cache. The
    /// former became NaN, the latter was stored nowhere; the error stays until it is reported. Calls that the device has not yet run are not seen: synchronise first to be sure.
    ///
    /// # Errors
    /// [`ErrorKind::PositionOutOfRange`], naming one such token; its subject is `position_ids` or `slot_mapping`.
    pub fn check(&self) -> Result<()> {
        let fault = self.state.fault.as_ref().map_or(0, |word| word.take());
        if fault == 0 {
            let stand_in = self.engine.stand_in_so_far().filter(|_| self.engine.is_parents());
            return stand_in.map_or(Ok(()), |engine| engine.rope(self.spec())?.check());
        }
        if fault & NO_SLOT != 0 {
            let token = (fault & !NO_SLOT) - 1;
            return Err(Error::new(
                ErrorKind::PositionOutOfRange,
                format!("token {token} has a slot outside of the cache; its k and v are stored nowhere"),
            )
            .subject_is("slot_mapping")
            .hint("−1 is for tokens that are stored nowhere; the page tables must name blocks of the cache"));
        }
        Err(Error::new(
            ErrorKind::PositionOutOfRange,
            format!("token {} stands at a position outside the cos/sin tables; its q and k are NaN", fault - 1),
        )
        .subject_is("position_ids")
        .hint("make the tables longer, or the positions smaller"))
    }
}
