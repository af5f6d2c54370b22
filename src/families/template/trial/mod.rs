//! Memory to check and to measure a problem's candidates on: never the caller's tensors, bounded in size, rotated past the
//! last-level cache.
//!
//! While a candidate is timed its inout tensors are not restored: a kernel's time should not depend on their values.

mod bounded;
mod checks;
mod compare;
mod noise;
pub(super) mod regions;
pub(super) mod runs;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub use self::compare::number;

use self::checks::Checks;
use self::noise::{Filling, Noise};
use self::regions::Region;
use super::call::{self, Cells, float_bits};
use super::description::Kind;
use super::names::{MOST, Section, Values};
use super::problem::Problem;
use crate::error::{Error, ErrorKind, Result};
use crate::service::device;
use crate::service::family::{self, Device, Memory, Plan, Stream, Throttle};

/// How often the rotated sets together exceed the last-level cache, and sets at most.
const PAST_CACHE: u64 = 3;
const MOST_SETS: u64 = 128;
/// Small tensors start at multiples of this, large ones at multiples of that: so PyTorch's allocator places them.
const SMALL_STARTS: usize = 512;
const LARGE_STARTS: usize = 2 << 20;
/// What memory has more than its sets, so that the first can start at a multiple of [`LARGE_STARTS`].
const ROOM_FOR_START: u64 = LARGE_STARTS as u64;
/// Bytes at most that go between host and device in one piece, and within the device.
const HOST_PIECE: usize = 4 << 20;
const DEVICE_PIECE: usize = 64 << 20;

/// Scratch data of one problem.
pub struct Trial {
    p: Problem,
    device: Arc<dyn Device>,
    /// `sets` times the tensors, each with room for a copy.
    data: Arc<dyn Memory>,
    /// Where the first set starts: at an address that [`LARGE_STARTS`] divides, from which a set has the size that it was
    /// counted with. Memory may start anywhere.
    base: usize,
    sets: usize,
    /// Bytes of a set, and where in it the room for a copy starts.
    set: usize,
    room: usize,
    /// Of the first set, at the largest size: bytes of `data`.
    regions: Vec<Region>,
    size: u64,
    checks: Checks,
    /// A kernel hangs on the device: whatever else is put on its stream would as well.
    hangs: AtomicBool,
}

impl Trial {
    /// Allocates for the bucket's size, or less where memory is low or a launch would not fit a slice, and fills it.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfMemory`] when memory is too low to measure in.
    pub fn new(p: &Problem, device: &Arc<dyn Device>, limit: u64, throttle: &Throttle<'_>) -> Result<Self> {
        let launch = throttle.launch_bytes(device.facts(), device.memory_clock_khz(), &device.measuring());
        let most = p.argument_for(p.tokens())?;
        let fits = |n: i64| {
            let (values, _) = numbers(p, n, 0);
            Ok(2 * set_bytes(p, &values)?.0 + ROOM_FOR_START <= limit && regions::traffic(p.d(), &values)? <= launch)
        };
        let n = largest_that(1, most, fits)?;
        let (values, _) = numbers(p, n, 0);
        let (set, room) = set_bytes(p, &values)?;
        let needed = set + ROOM_FOR_START;
        if needed > limit {
            let what = format!("{} needs {needed} bytes to be measured in, and {limit} may be taken", p.d().family);
            return Err(Error::new(ErrorKind::OutOfMemory, what).subject_is(p.spec_text()));
        }
        let wanted = (PAST_CACHE * device.facts().l2_bytes).div_ceil(set.max(1)).max(2);
        let sets = wanted.min(MOST_SETS).min((limit - ROOM_FOR_START) / set.max(1)).max(1) as usize;
        let mut data = throttle.slice(|| device.alloc(sets * set as usize + ROOM_FOR_START as usize))?;
        let base = (data.address().next_multiple_of(LARGE_STARTS as u64) - data.address()) as usize;
        let (regions, _) = regions::place(p.d(), &values, p.aligned(), (data.address(), base), starts, 0)?;
        for region in &regions {
            fill(p, device.as_ref(), data.as_mut(), region, &values, throttle)?;
        }
        for i in 1..sets {
            copy(device.as_ref(), data.as_ref(), (base + i * set as usize, base), room as usize, throttle)?;
        }
        let checks = Checks::new(p, device.as_ref(), n, limit, throttle)?;
        let size = call::size(p.d(), &values)?;
        let (p, device, data, hangs) = (p.clone(), Arc::clone(device), data.into(), AtomicBool::new(false));
        let (set, room) = (set as usize, room as usize);
        Ok(Self { p, device, data, base, sets, set, room, regions, size, checks, hangs })
    }

    fn alive(&self) -> Result<()> {
        if self.hangs.load(Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Device, "was not run: a candidate before it hangs on the device"));
        }
        Ok(())
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        if *self.hangs.get_mut() {
            // To free its memory the driver would wait for the kernel.
            std::mem::forget(Arc::clone(&self.data));
        }
    }
}

impl family::Trial for Trial {
    fn size(&self) -> u64 {
        self.size
    }

    fn launch(&self, plan: &Plan, stream: Stream<'_>, set: usize, size: u64) -> Result<()> {
        self.alive()?;
        let (mut values, mut cells) = numbers(&self.p, self.p.argument_for(size)?, 0);
        let start = self.data.address() + (set % self.sets * self.set) as u64;
        for region in &self.regions {
            cells[region.arg] = start + region.at as u64;
        }
        self.p.d().assign(&mut values, &plan.attrs.numbers);
        match call::geometry(self.p.d(), &values, plan.attrs.shared)? {
            Some(geometry) => call::launch(plan, stream, &geometry, &cells),
            None => Ok(()),
        }
    }

    fn copy(&self, stream: Stream<'_>, set: usize, size: u64) -> Result<()> {
        self.alive()?;
        let (values, _) = numbers(&self.p, self.p.argument_for(size)?, 0);
        let bytes = (regions::traffic(self.p.d(), &values)? / 2) as usize;
        let start = self.base + set % self.sets * self.set;
        let memory = self.data.as_ref();
        let bytes = bytes.min(self.room).min(self.set - self.room);
        device::copy(self.device.as_ref(), (memory, start + self.room), (memory, start), bytes, stream)
    }

    fn outputs(&mut self, plan: &Plan, throttle: &Throttle<'_>) -> Result<Vec<u8>> {
        self.alive()?;
        let outputs = self.checks.outputs(&self.p, &self.device, plan, throttle);
        if let Err(e) = &outputs
            && bounded::is_hang(e)
        {
            tracing::error!("{}: '{}' {}; it is never chosen", self.p.spec_text(), plan.config, e.message());
            // To unload it the driver would wait for it.
            std::mem::forget(Arc::clone(&plan.kernel));
            self.hangs.store(self.device.dialect() == family::Dialect::Cuda, Ordering::Relaxed);
        }
        outputs
    }

    fn hangs(&self) -> bool {
        self.checks.is_lost()
    }

    fn compare(&self, expected: &[u8], got: &[u8]) -> Result<(), String> {
        self.checks.compare(&self.p, expected, got)
    }
}

/// What a launch is told where the bucket's argument is `n`; of several values to test with, number `round`, from the first
/// again where there are fewer.
fn numbers(p: &Problem, n: i64, round: usize) -> (Values, Cells) {
    let d = p.d();
    let (mut values, mut cells) = (*p.values(), [0; MOST]);
    let first = d.spec.len() + d.tune.len();
    for (i, arg) in d.args.iter().enumerate() {
        let Kind::Number(element) = arg.kind else { continue };
        let given = &d.test.numbers[i];
        let number = given.get(round % given.len().max(1)).copied().unwrap_or(0.0);
        if element.is_float() {
            cells[i] = float_bits(element, number);
        } else {
            let number = if usize::from(d.launch.bucket_arg) == first + i { n } else { number as i64 };
            (values[first + i], cells[i]) = (number, number as u64);
        }
    }
    (values, cells)
}

/// The numbers of a launch, for a message: `rows = 7, cols = 4096`.
fn numbers_text(p: &Problem, values: &Values, cells: &Cells) -> String {
    let d = p.d();
    let first = d.spec.len() + d.tune.len();
    let numbers = d.args.iter().enumerate().filter_map(|(i, arg)| match arg.kind {
        Kind::Number(element) if !element.is_float() => Some(format!("{} = {}", arg.name, values[first + i])),
        Kind::Number(super::element::Element::F64) => Some(format!("{} = {}", arg.name, f64::from_bits(cells[i]))),
        Kind::Number(_) => Some(format!("{} = {}", arg.name, f32::from_bits(cells[i] as u32))),
        Kind::Tensor { .. } => None,
    });
    numbers.collect::<Vec<_>>().join(", ")
}

/// The largest of `low..=high` for which `fits` says yes, if it says so up to one and no longer; `low` where it never does.
fn largest_that(low: i64, high: i64, mut fits: impl FnMut(i64) -> Result<bool>) -> Result<i64> {
    if high <= low || fits(high)? {
        return Ok(high.max(low));
    }
    let (mut yes, mut no) = (low, high);
    while no - yes > 1 {
        let middle = yes + (no - yes) / 2;
        if fits(middle)? { yes = middle } else { no = middle }
    }
    Ok(yes)
}

impl Problem {
    /// The value of the bucket's argument with which the bucket is at most this.
    fn argument_for(&self, size: u64) -> Result<i64> {
        let element = self.bucket_element();
        let most = element.range().map_or(i64::MAX, |(_, most)| most).min(1 << 40);
        let fits = |n: i64| Ok(call::size(self.d(), &numbers(self, n, 0).0).is_ok_and(|s| s <= size));
        largest_that(1, most, fits)
    }

    /// The values of a launch of this size.
    pub(super) fn values_for(&self, size: u64) -> Result<Values> {
        Ok(numbers(self, self.argument_for(size)?, 0).0)
    }

    /// The sizes of `[test]` for the bucket's argument.
    fn test_sizes(&self) -> Vec<i64> {
        let d = self.d();
        let first = d.spec.len() + d.tune.len();
        d.test.numbers[usize::from(d.launch.bucket_arg) - first].iter().map(|n| *n as i64).collect()
    }

    fn name(&self, arg: usize) -> &str {
        debug_assert_eq!(self.d().names.get((self.d().spec.len() + self.d().tune.len()) as u8).section, Section::Args);
        &self.d().args[arg].name
    }
}

fn starts(bytes: usize) -> usize {
    if bytes < 1 << 20 { SMALL_STARTS } else { LARGE_STARTS }
}

/// Bytes of a set, and where in it the room for a copy starts.
fn set_bytes(p: &Problem, values: &Values) -> Result<(u64, u64)> {
    let (_, end) = regions::place(p.d(), values, p.aligned(), (0, 0), starts, 0)?;
    let room = end.next_multiple_of(SMALL_STARTS) as u64;
    let copied = regions::traffic(p.d(), values)? / 2;
    Ok(((room + copied).next_multiple_of(LARGE_STARTS as u64), room))
}

/// Fills a tensor of the first set: a block from the host, copied on over the rest by the device.
fn fill(
    p: &Problem,
    device: &dyn Device,
    memory: &mut dyn Memory,
    region: &Region,
    values: &Values,
    throttle: &Throttle<'_>,
) -> Result<()> {
    let mut block = vec![0; region.len.min(HOST_PIECE)];
    if let Some(fill) = &p.d().test.fills[region.arg] {
        let filling = Filling::of(fill, region.element, values, p.name(region.arg))?;
        filling.fill(region.element, &mut Noise::new(1 + region.arg as u64), &mut block);
    }
    throttle.slice(|| memory.upload(region.at, &block))?;
    let memory = &*memory;
    let mut done = block.len();
    while done < region.len {
        let part = done.min(region.len - done);
        copy(device, memory, (region.at + done, region.at), part, throttle)?;
        done += part;
    }
    Ok(())
}

/// Copies within the memory, piece by piece.
fn copy(
    device: &dyn Device,
    memory: &dyn Memory,
    (to, from): (usize, usize),
    bytes: usize,
    throttle: &Throttle<'_>,
) -> Result<()> {
    for at in (0..bytes).step_by(DEVICE_PIECE) {
        let part = DEVICE_PIECE.min(bytes - at);
        throttle.slice(|| {
            device::copy(device, (memory, to + at), (memory, from + at), part, device.stream())?;
            device.wait()
        })?;
    }
    Ok(())
}
