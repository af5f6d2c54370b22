//! The way from a call's arguments to a launch: what every call does, so no hash, lock, allocation, sync or log.

use std::ffi::c_void;

use super::args::borrowed::Location;
use super::args::{Args, Operand, Positions, Tables, UNREACHABLE};
use super::beside::beside;
use super::params::{AngleParams, Divider, FusedParams, Params, ShapeParams, TensorParams};
use super::variant::{Class, Variant};
use crate::error::{Error, ErrorKind, Result};
use crate::rope::{DType, PositionForm, RopeSpec, weight_tiles};
use crate::service::family::{Dialect, Geometry, LaunchAttrs, Plan, Stream};

/// A call, checked against its spec. Made of [`Args`] only, so what it points to is valid while they live.
pub(crate) struct Call<'a> {
    pub class: Class,
    heads: [u32; 2],
    head_dim: u32,
    pub batch: u32,
    pub tokens: u32,
    params: Params,
    fused: Option<FusedParams>,
    angles: &'a AngleParams,
}

/// What launching a variant's kernel needs.
pub(crate) fn attrs(spec: &RopeSpec, class: Class, variant: Variant) -> LaunchAttrs {
    let lanes = variant.lanes(spec, class);
    let groups = spec.items() / u32::from(variant.heads);
    let numbers = [i64::from(groups * lanes), variant.threads.into(), lanes.into(), spec.is_norm_gradient().into()];
    LaunchAttrs { overlap: variant.overlap, shared: 0, numbers: Box::new(numbers) }
}

/// Of a plan of this family: threads' worth of work per token, and threads of a block.
fn work(plan: &Plan) -> (u32, u32) {
    (plan.attrs.numbers[0] as u32, plan.attrs.numbers[1] as u32)
}

/// Launches the gradient of a norm: heads in tiles of 32, then the sums of the tiles.
fn launch_tiles(plan: &Plan, stream: Stream<'_>, call: &Call<'_>, mut fused: FusedParams) -> Result<()> {
    let numbers = &plan.attrs.numbers;
    let (threads, lanes) = (numbers[1] as u32, numbers[2] as u32);
    // Threads that share a head work on one tile, and a block adds up its tiles, but where each thread has its own.
    let at_once = u64::from(threads / lanes);
    let [q, k] = call.heads.map(|heads| weight_tiles(call.total_tokens(), heads));
    let blocks = q.div_ceil(at_once) + k.div_ceil(at_once);
    let (Ok(blocks), true) = (u32::try_from(blocks), q.max(k) <= 1 << 26) else {
        return Err(Error::new(ErrorKind::Unsupported, "more than 2^31 heads in one call").subject_is("q"));
    };
    let nodes = |tiles: u64| (if lanes > 1 { tiles.div_ceil(at_once) } else { tiles }) as u32;
    (fused.q_nodes, fused.k_nodes) = (nodes(q), nodes(k));
    let mut params = call.params;
    params.sequences = call.batch;
    params.tokens = Divider::new(call.tokens);
    launch_blocks(plan, stream, Geometry::row(blocks, threads), &params, call.angles, Some(&fused))?;
    if fused.nodes == 0 {
        return Ok(());
    }
    fused.stage = 1;
    // A block adds up four columns (`WIDTH` in templates/gradient.h).
    let columns = call.head_dim.div_ceil(4);
    launch_blocks(plan, stream, Geometry::row(2 * columns, threads), &params, call.angles, Some(&fused))
}

/// Launches a call: once, unless it has more work than 2^31 threads.
pub(crate) fn launch(plan: &Plan, stream: Stream<'_>, call: &Call<'_>) -> Result<()> {
    const MOST: u64 = (1 << 31) - 1;
    if let (Some(fused), true) = (&call.fused, plan.attrs.numbers[3] != 0) {
        return launch_tiles(plan, stream, call, *fused);
    }
    let (units_per_token, threads) = work(plan);
    let tokens_at_once = (MOST / u64::from(units_per_token)) as u32;
    let (batch_step, token_step) = if call.total_tokens() <= u64::from(tokens_at_once) {
        (call.batch, call.tokens)
    } else if call.tokens <= tokens_at_once {
        (tokens_at_once / call.tokens, call.tokens)
    } else {
        (1, tokens_at_once)
    };
    let mut params = call.params;
    for batch in (0..call.batch).step_by(batch_step as usize) {
        for token in (0..call.tokens).step_by(token_step as usize) {
            let tokens = token_step.min(call.tokens - token);
            params.batch_begin = batch;
            params.sequences = batch_step.min(call.batch - batch);
            params.token_begin = token;
            params.tokens = Divider::new(tokens);
            params.units = params.sequences * tokens * units_per_token;
            let blocks = params.units.div_ceil(threads);
            launch_blocks(plan, stream, Geometry::row(blocks, threads), &params, call.angles, call.fused.as_ref())?;
        }
    }
    Ok(())
}

/// Launches as many blocks as a call of `tokens` tokens has, which find no work.
pub(crate) fn launch_nothing(plan: &Plan, fused: bool, stream: Stream<'_>, tokens: u64) -> Result<()> {
    let (units_per_token, threads) = work(plan);
    let blocks = (tokens * u64::from(units_per_token)).div_ceil(threads.into()) as u32;
    let beside = FusedParams::default();
    let beside = fused.then_some(&beside);
    launch_blocks(plan, stream, Geometry::row(blocks, threads), &Params::default(), &AngleParams::NONE, beside)
}

/// `params` are those of a [`Call`] of the plan's spec and class, or have no work; `fused` are there where the spec is.
#[allow(unsafe_code)]
fn launch_blocks(
    plan: &Plan,
    stream: Stream<'_>,
    geometry: Geometry,
    params: &Params,
    angles: &AngleParams,
    fused: Option<&FusedParams>,
) -> Result<()> {
    let args = Arguments { params, angles, fused }.pointers();
    // SAFETY: tensors, tables and positions are valid: a `Call` is made of `Args`, which consist of safe borrows that are still
    // alive, or of parts for whose life on the stream the caller has vouched. The kernel was compiled for the call's spec
    // and class. With no unit of work it reads and writes nothing.
    unsafe { plan.kernel.launch(stream, &geometry, &args) }
}

/// What a launch hands over.
struct Arguments<'a> {
    params: &'a Params,
    angles: &'a AngleParams,
    fused: Option<&'a FusedParams>,
}

impl Arguments<'_> {
    /// In the order of a kernel's parameters; it takes as many as it has.
    fn pointers(&self) -> [*const c_void; 4] {
        let (params, angles) = (std::ptr::from_ref(self.params).cast(), std::ptr::from_ref(self.angles).cast());
        let shape = std::ptr::from_ref(&ShapeParams::NONE).cast();
        match self.fused {
            None => [params, angles, shape, std::ptr::null()],
            Some(fused) => [params, std::ptr::from_ref(fused).cast(), angles, shape],
        }
    }
}

impl<'a> Call<'a> {
    /// Checks the arguments and turns them into what a launch is told. `None`: there is no token, nothing to do.
    pub fn new(spec: &RopeSpec, args: &'a Args<'_>, place: Location, fault: u64) -> Result<Option<Self>> {
        let mut mix = 16u64;
        let q_type = if spec.append.is_some_and(|a| a.q.is_some()) { DType::E4M3 } else { spec.dtype };
        let q = Heads { name: "q", count: spec.num_heads, dim: spec.head_dim, output: q_type, written: true };
        let k = Heads {
            name: "k",
            count: spec.num_kv_heads,
            dim: spec.k_dim(),
            output: spec.dtype,
            written: spec.append.is_none(),
        };
        let (q, batch, tokens) = tensor(&q, spec, &args.q, place, &mut mix)?;
        let (k, copy_k) = match &args.k {
            None if spec.num_kv_heads == 0 => (TensorParams::default(), false),
            None => {
                return Err(Error::argument("k", format!("is absent, the spec has {} kv heads", spec.num_kv_heads)));
            }
            Some(_) if spec.num_kv_heads == 0 => {
                return Err(Error::argument("k", "is given, the spec has no kv heads"));
            }
            Some(operand) => {
                let (params, k_batch, k_tokens) = tensor(&k, spec, operand, place, &mut mix)?;
                if (k_batch, k_tokens) != (batch, tokens) {
                    return Err(Error::argument(
                        "k",
                        format!("has {k_batch} × {k_tokens} tokens, q has {batch} × {tokens}"),
                    ));
                }
                (params, params.input != params.output)
            }
        };
        let fused = beside(spec, args, [batch, tokens], place, &mut mix)?;
        let mut params = Params { q, k, fault, tokens_total: tokens as u64, ..Params::default() };
        let mut table_mix = 16u64;
        let angles = tables(spec, &args.tables, batch, place, &mut params, &mut table_mix)?;
        positions(spec, &args.positions, [batch, tokens], place, &mut params)?;
        let (Ok(batch), Ok(tokens)) = (u32::try_from(batch), u32::try_from(tokens)) else {
            return Err(Error::new(ErrorKind::Unsupported, "more than 2^32 sequences or tokens a sequence"));
        };
        if batch > 1 << 30 || tokens > 1 << 30 {
            return Err(Error::new(ErrorKind::Unsupported, "more than 2^30 sequences or tokens a sequence"));
        }
        let class = Class {
            word: word(mix, spec.dtype.size()),
            table_word: if params.cos == 0 && angles.is_some() { 0 } else { word(table_mix, spec.table.dtype.size()) },
            head_major: args.q.tensor.layout.head_major(),
            // Fused kernels see for themselves what has to be copied.
            copy_rest: fused.is_none()
                && spec.rotary_dim < spec.head_dim
                && (params.q.input != params.q.output || copy_k),
        };
        let (heads, head_dim) = ([spec.num_heads, spec.num_kv_heads], spec.head_dim);
        Ok((batch > 0 && tokens > 0).then_some(Self {
            class,
            heads,
            head_dim,
            batch,
            tokens,
            params,
            fused,
            angles: angles.unwrap_or(&AngleParams::NONE),
        }))
    }

    pub fn total_tokens(&self) -> u64 {
        u64::from(self.batch) * u64::from(self.tokens)
    }
}

/// The widest power of two of bytes that divides everything that was or-ed into `mix`.
fn word(mix: u64, element: usize) -> u8 {
    (1u8 << mix.trailing_zeros().min(4)).max(element as u8)
}

/// What an operand has to be.
struct Heads {
    name: &'static str,
    count: u32,
    dim: u32,
    /// Of what is written.
    output: DType,
    written: bool,
}

fn tensor(
    heads: &Heads,
    spec: &RopeSpec,
    operand: &Operand<'_>,
    place: Location,
    mix: &mut u64,
) -> Result<(TensorParams, usize, usize)> {
    let name = heads.name;
    let input = &operand.tensor;
    let output = operand.output.as_ref().unwrap_or(input);
    let [batch, tokens, got_heads, head_dim] = input.layout.shape;
    for (tensor, dtype) in [(input, spec.dtype), (output, if heads.written { heads.output } else { spec.dtype })] {
        if !tensor.place().serves(place) {
            return Err(Error::argument(name, UNREACHABLE));
        }
        if tensor.dtype != dtype {
            return Err(Error::argument(name, format!("is {}, the spec says {dtype}", tensor.dtype)));
        }
        tensor.layout.validate(name)?;
        let size = dtype.size();
        if tensor.address() % size as u64 != 0 {
            return Err(Error::argument(name, "is not aligned to its elements"));
        }
        // Words are counted in bytes of the input's elements.
        let scale = (spec.dtype.size() / size) as u64;
        *mix |= (tensor.address() | tensor.layout.alignment_bytes(size)).wrapping_mul(scale);
    }
    if got_heads != heads.count as usize || head_dim != heads.dim as usize {
        let what = format!("has {got_heads} heads of {head_dim}, the spec says {} of {}", heads.count, heads.dim);
        return Err(Error::argument(name, what));
    }
    if output.layout.shape != input.layout.shape {
        return Err(Error::argument(
            format!("{name} output"),
            format!("has the shape {:?}, its input {:?}", output.layout.shape, input.layout.shape),
        ));
    }
    if heads.written && output.layout.overlaps() {
        return Err(Error::argument(
            if operand.output.is_some() { format!("{name} output") } else { name.to_owned() },
            format!("is written, but its strides {:?} put several elements in one place", output.layout.strides),
        ));
    }
    if operand.output.is_some() && output.address() == input.address() && output.layout != input.layout {
        return Err(Error::argument(format!("{name} output"), "overlaps its input with other strides"));
    }
    let strides = |l: &crate::rope::Layout| [l.strides[0], l.strides[1], l.strides[2]];
    let params = TensorParams {
        input: input.address(),
        output: output.address(),
        in_stride: strides(&input.layout),
        out_stride: strides(&output.layout),
    };
    Ok((params, batch, tokens))
}

/// Returns what angles are computed from, if the spec wants that.
fn tables<'a>(
    spec: &RopeSpec,
    tables: &'a Tables<'_>,
    batch: usize,
    place: Location,
    params: &mut Params,
    mix: &mut u64,
) -> Result<Option<&'a AngleParams>> {
    if !tables.places().iter().all(|p| p.serves(place)) {
        return Err(Error::argument("cos, sin", UNREACHABLE));
    }
    if tables.dtype != spec.table.dtype || tables.width != spec.table_width() as usize {
        return Err(Error::argument(
            "cos, sin",
            format!(
                "are {} of width {}, the spec says {} of width {}",
                tables.dtype,
                tables.width,
                spec.table.dtype,
                spec.table_width()
            ),
        ));
    }
    if tables.batch.is_some_and(|b| b != 1 && b != batch) {
        return Err(Error::argument("cos, sin", format!("are for {:?} sequences, q has {batch}", tables.batch)));
    }
    (params.cos, params.sin) = tables.addresses();
    let angles = match (spec.angles, &tables.made) {
        (None, None) => None,
        (None, Some(_)) if params.cos != 0 => None, // tables like any others
        (Some(mode), Some(made)) if made.mode == mode => Some(made.angles.as_ref()),
        (Some(mode), made) => {
            let got = made.as_ref().map_or_else(|| "the caller's".to_owned(), |m| format!("made as {:?}", m.mode));
            return Err(Error::argument("cos, sin", format!("are {got}, the spec wants angles as {mode:?}"))
                .hint("use tables of Engine::angles with the spec's mode"));
        }
        (None, Some(_)) => {
            return Err(Error::argument("cos, sin", "are computed for this length, and the spec reads tables")
                .hint("use RopeSpec::with_angles"));
        }
    };
    params.table_rows = i64::try_from(tables.rows).unwrap_or(i64::MAX);
    params.table_row_stride = tables.row_stride;
    params.table_batch_stride = tables.batch_stride;
    let size = spec.table.dtype.size() as u64;
    *mix |= params.cos | params.sin | tables.row_stride.unsigned_abs().wrapping_mul(size);
    if batch > 1 {
        *mix |= tables.batch_stride.unsigned_abs().wrapping_mul(size);
    }
    Ok(angles)
}

fn positions(
    spec: &RopeSpec,
    positions: &Positions<'_>,
    [batch, tokens]: [usize; 2],
    place: Location,
    params: &mut Params,
) -> Result<()> {
    match (spec.positions, positions) {
        (PositionForm::Implicit, &Positions::Offset(offset)) => {
            let end = offset.checked_add(i64::try_from(tokens).unwrap_or(i64::MAX));
            if tokens > 0 && (offset < 0 || end.is_none_or(|e| e > params.table_rows)) {
                return Err(Error::new(
                    ErrorKind::PositionOutOfRange,
                    format!(
                        "{tokens} tokens from position {offset} on do not fit tables of {} rows",
                        params.table_rows
                    ),
                )
                .subject_is("offset"));
            }
            params.position_offset = offset;
            Ok(())
        }
        (PositionForm::Ids32 | PositionForm::Ids64, Positions::Ids(ids)) => {
            width("position_ids", ids.wide, spec.positions == PositionForm::Ids64)?;
            reachable("position_ids", ids.place(), place)?;
            let axes = if spec.mrope.is_some() { 3 } else { 1 };
            if ids.shape.is_some_and(|[a, b, t]| a != axes || (b != 1 && b != batch) || t != tokens) {
                let what = format!("are of shape {:?}, [{axes}, {batch}, {tokens}] is needed", ids.shape);
                return Err(Error::argument("position_ids", what));
            }
            params.position_ids = ids.address();
            [params.position_axis_stride, params.position_batch_stride, params.position_token_stride] = ids.strides;
            Ok(())
        }
        (PositionForm::Offsets32 | PositionForm::Offsets64, Positions::Offsets(offsets)) => {
            width("offsets", offsets.wide, spec.positions == PositionForm::Offsets64)?;
            reachable("offsets", offsets.place(), place)?;
            as_many("offsets", offsets.len, batch)?;
            params.position_ids = offsets.address();
            Ok(())
        }
        (PositionForm::CuSeqlens | PositionForm::CuSeqlens64, Positions::Packed { cu_seqlens, offsets }) => {
            width("cu_seqlens", cu_seqlens.wide, spec.positions.is_wide())?;
            reachable("cu_seqlens", cu_seqlens.place(), place)?;
            if batch > 1 {
                return Err(Error::argument(
                    "q",
                    format!("has a batch of {batch}, packed sequences are one of [T,H,D]"),
                ));
            }
            if let Some(offsets) = offsets {
                reachable("offsets", offsets.place(), place)?;
                as_many("offsets", offsets.len, cu_seqlens.sequences)?;
                params.position_ids = offsets.address();
                params.wide_offsets = offsets.wide.into();
            }
            params.cu_seqlens = cu_seqlens.address();
            params.packed_sequences =
                u32::try_from(cu_seqlens.sequences).ok().filter(|n| *n <= 1 << 30).ok_or_else(|| {
                    Error::new(ErrorKind::Unsupported, "more than 2^30 packed sequences").subject_is("cu_seqlens")
                })?;
            Ok(())
        }
        (want, _) => Err(Error::argument("positions", format!("are of another form than the spec's ({want:?})"))),
    }
}

fn width(name: &str, wide: bool, wanted: bool) -> Result<()> {
    let word = |wide| if wide { "i64" } else { "i32" };
    if wide == wanted {
        return Ok(());
    }
    Err(Error::argument(name, format!("are {}, the spec says {}", word(wide), word(wanted))))
}

fn reachable(name: &str, got: Location, place: Location) -> Result<()> {
    if got.serves(place) { Ok(()) } else { Err(Error::argument(name, UNREACHABLE)) }
}

fn as_many(name: &str, len: Option<usize>, sequences: usize) -> Result<()> {
    match len {
        Some(len) if len != sequences => Err(Error::argument(name, format!("{len} numbers for {sequences} sequences"))),
        _ => Ok(()),
    }
}

/// The place where a call on this device and stream runs.
pub(crate) fn place_of(dialect: Dialect, context: u64, stream: Stream<'_>) -> Location {
    match dialect {
        Dialect::Cuda => Location::Cuda { context, stream: stream.id() },
        Dialect::Host => Location::Host,
    }
}

#[cfg(test)]
#[path = "launch_tests.rs"]
mod tests;
