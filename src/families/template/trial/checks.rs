//! Runs a candidate on small inputs and looks at all that it wrote, and where.
//!
//! Every tensor lies between guard zones. What is out is poisoned, what is inout is restored before each run, and what is in
//! must come back as it was. Each input is run twice, with other guards and poison: what a kernel left unwritten keeps both,
//! and a result that depends on what is around its arguments, or on chance, differs.

use std::sync::Arc;
use std::time::Duration;

use super::bounded::{self, Bounded};
use super::compare::{Difference, difference};
use super::noise::{Filling, Noise};
use super::regions::{self, Region};
use super::{HOST_PIECE, Problem, numbers, numbers_text};
use crate::error::{Error, ErrorKind, Result};
use crate::families::template::call::Cells;
use crate::families::template::description::Role;
use crate::families::template::names::Values;
use crate::service::family::{Device, Memory, Plan, Throttle};

/// Bytes at most of one check, and the part of a device's memory to measure in that it is: a check goes through the host,
/// twice for each candidate.
const MOST_BYTES: u64 = 32 << 20;
const PART_OF_SCRATCH: u64 = 16;
/// Bytes of a guard zone: a block of 512 threads with 64 bytes each.
const GUARD: usize = 32 << 10;
/// What guards and poison are made of, in the two runs. As floats: NaN, and close to the largest.
const PATTERNS: [u8; 2] = [0xff, 0x7f];
/// A check that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(10);

/// One input.
struct Check {
    /// Of the spec, and of the numbers among the arguments.
    values: Values,
    cells: Cells,
    regions: Vec<Region>,
    /// All of its memory, with the inputs in it.
    image: Vec<u8>,
    /// Such as `rows = 7`.
    with: String,
}

/// All inputs, and the memory that they share.
pub struct Checks {
    all: Vec<Check>,
    /// Lost to a kernel that hangs.
    memory: Option<Box<dyn Memory>>,
    pub patience: Duration,
}

impl Checks {
    /// Prepares the sizes of `[test]` and `largest`, which is of the argument that the bucket is made of.
    pub fn new(p: &Problem, device: &dyn Device, largest: i64, limit: u64, throttle: &Throttle<'_>) -> Result<Self> {
        let tried = p.test_sizes();
        let most = MOST_BYTES.min(limit).min(device.measuring().scratch_bytes / PART_OF_SCRATCH);
        let rounds = p.d().test.numbers.iter().map(Vec::len).max().unwrap_or(0).max(tried.len()) + 1;
        let mut inputs: Vec<(Values, Cells)> = Vec::new();
        for round in 0..rounds {
            let size = tried.get(round).copied().unwrap_or(largest);
            let fits = |size: i64| {
                let (values, _) = numbers(p, size, round);
                Ok(total(p, &values)? <= most)
            };
            let (values, cells) = numbers(p, super::largest_that(1, size, fits)?, round);
            if !inputs.iter().any(|(v, c)| (v, c) == (&values, &cells)) {
                inputs.push((values, cells));
            }
        }
        let bytes = inputs.iter().try_fold(0, |n, (values, _)| Ok::<_, Error>(total(p, values)?.max(n)))?;
        let memory = throttle.slice(|| device.alloc(bytes as usize))?;
        let all = inputs
            .iter()
            .enumerate()
            .map(|(seed, input)| Check::new(p, input, memory.as_ref(), seed as u64))
            .collect::<Result<_>>()?;
        Ok(Self { all, memory: Some(memory), patience: PATIENCE })
    }

    /// Runs a plan on all inputs and returns what it wrote.
    ///
    /// # Errors
    /// When it does what no candidate may: the message names the argument.
    pub fn outputs(
        &mut self,
        p: &Problem,
        device: &Arc<dyn Device>,
        plan: &Plan,
        throttle: &Throttle<'_>,
    ) -> Result<Vec<u8>> {
        let (memory, patience) = (&mut self.memory, self.patience);
        let mut outputs = Vec::new();
        for check in &self.all {
            let [first, second] =
                PATTERNS.map(|pattern| check.run((p, device), (memory, patience), plan, pattern, throttle));
            let (first, second) = (first?, second?);
            for region in check.regions.iter().filter(|r| matches!(r.role, Role::Out | Role::InOut)) {
                let range = region.at..region.at + region.len;
                check.compare_runs(p, region, &first[range.clone()], &second[range.clone()])?;
                outputs.extend_from_slice(&first[range]);
            }
        }
        Ok(outputs)
    }

    /// Whether a kernel hangs in its memory.
    pub fn is_lost(&self) -> bool {
        self.memory.is_none()
    }

    /// How what a plan wrote differs from what the default wrote.
    pub fn compare(&self, p: &Problem, expected: &[u8], got: &[u8]) -> Result<(), String> {
        let mut at = 0;
        for check in &self.all {
            for region in check.regions.iter().filter(|r| matches!(r.role, Role::Out | Role::InOut)) {
                let range = at..at + region.len;
                at += region.len;
                let (Some(expected), Some(got)) = (expected.get(range.clone()), got.get(range)) else {
                    return Err("its output has another size than the default's".into());
                };
                if let Some(differs) = difference(region.element, p.d().test.same, expected, got) {
                    return Err(differs_from_default(p.name(region.arg), &differs, &check.with));
                }
            }
        }
        Ok(())
    }
}

fn differs_from_default(name: &str, differs: &Difference, with: &str) -> String {
    format!(
        "'{name}' differs from the default's {differs}, with {with}; three ways out: move the tunable to [spec], give sums one \
         order whatever the tunables are, or say in [test] how near is near enough, such as same = {{ ulp = 2 }}"
    )
}

/// Bytes of a check's memory.
fn total(p: &Problem, values: &Values) -> Result<u64> {
    let tensors = p.d().args.iter().try_fold(0u64, |n, arg| Ok::<_, Error>(n + regions::bytes(p.d(), arg, values)?))?;
    Ok(tensors + (p.d().args.len() as u64 + 1) * (GUARD as u64 + 1024))
}

/// The same plan, for a launch that may outlive what was lent.
fn copy_of(plan: &Plan) -> Plan {
    let Plan { kernel, config, origin, provenance, attrs, watched } = plan;
    Plan {
        kernel: Arc::clone(kernel),
        config: config.clone(),
        origin: *origin,
        provenance: *provenance,
        attrs: attrs.clone(),
        watched: watched.clone(),
    }
}

impl Check {
    fn new(p: &Problem, (values, cells): &(Values, Cells), memory: &dyn Memory, seed: u64) -> Result<Self> {
        let (values, mut cells) = (*values, *cells);
        let start = (memory.address(), 0);
        let (regions, end) = regions::place(p.d(), &values, p.aligned(), start, |_| 512, GUARD)?;
        if end > memory.bytes() {
            return Err(Error::new(ErrorKind::OutOfMemory, "a check does not fit its memory"));
        }
        let mut image = vec![0; end];
        for region in &regions {
            cells[region.arg] = memory.address() + region.at as u64;
            let Some(fill) = &p.d().test.fills[region.arg] else { continue };
            let filling = Filling::of(fill, region.element, &values, p.name(region.arg))?;
            let mut noise = Noise::new(1 + region.arg as u64 + (seed << 8));
            filling.fill(region.element, &mut noise, &mut image[region.at..region.at + region.len]);
        }
        Ok(Self { with: numbers_text(p, &values, &cells), values, cells, regions, image })
    }

    /// One run: what the memory holds after it.
    fn run(
        &self,
        (p, device): (&Problem, &Arc<dyn Device>),
        (memory, patience): (&mut Option<Box<dyn Memory>>, Duration),
        plan: &Plan,
        pattern: u8,
        throttle: &Throttle<'_>,
    ) -> Result<Vec<u8>> {
        let mut before = self.image.clone();
        let mut end = 0;
        for region in &self.regions {
            before[end..region.at].fill(pattern);
            end = region.at + region.len;
            if !region.role.is_read() {
                before[region.at..end].fill(pattern);
            }
        }
        before[end..].fill(pattern);
        let gone = || Error::new(ErrorKind::Device, "was not run: a candidate before it hangs");
        let lent = memory.as_mut().ok_or_else(gone)?;
        for (i, piece) in before.chunks(HOST_PIECE).enumerate() {
            throttle.slice(|| lent.upload(i * HOST_PIECE, piece))?;
        }
        let launch = Bounded { p: p.clone(), plan: copy_of(plan), values: self.values, cells: self.cells };
        throttle.slice(|| {
            let lent = memory.take().ok_or_else(gone)?;
            let (back, done) = bounded::run(launch, device, lent, patience, &self.with);
            *memory = back;
            done
        })?;
        let memory = memory.as_deref().ok_or_else(gone)?;
        let mut after = vec![0; before.len()];
        for (i, piece) in after.chunks_mut(HOST_PIECE).enumerate() {
            throttle.slice(|| memory.download(i * HOST_PIECE, piece))?;
        }
        self.stays_inside(p, &before, &after)?;
        Ok(after)
    }

    /// Nothing but what may be written was.
    fn stays_inside(&self, p: &Problem, before: &[u8], after: &[u8]) -> Result<()> {
        let changed = |range: std::ops::Range<usize>| {
            (before[range.clone()] != after[range.clone()])
                .then(|| range.clone().find(|&i| before[i] != after[i]).unwrap_or(range.start))
        };
        let mut end = 0;
        for (i, region) in self.regions.iter().enumerate() {
            if let Some(at) = changed(end..region.at) {
                return Err(self.outside(p, i, at));
            }
            end = region.at + region.len;
            if region.role == Role::In
                && let Some(at) = changed(region.at..end)
            {
                let (name, element) = (p.name(region.arg), (at - region.at) / region.element.size());
                let what = format!("writes to '{name}', which is in: element {element}, with {}", self.with);
                return Err(Error::new(ErrorKind::Device, what));
            }
        }
        changed(end..before.len()).map_or(Ok(()), |at| Err(self.outside(p, self.regions.len(), at)))
    }

    /// A byte in the guard zone before tensor number `next`; behind the last one that is no tensor.
    fn outside(&self, p: &Problem, next: usize, at: usize) -> Error {
        let ahead = next.checked_sub(1).map(|i| &self.regions[i]);
        let behind = self.regions.get(next);
        let past = ahead.map(|r| at - (r.at + r.len));
        let to = behind.map(|r| r.at - at);
        let (region, place) = match (ahead, behind) {
            (Some(ahead), _) if past <= to || to.is_none() => {
                (ahead, format!("byte {} past its end", past.unwrap_or(0)))
            }
            (_, Some(behind)) => (behind, format!("byte {} before its start", to.unwrap_or(0))),
            _ => return Error::new(ErrorKind::Device, "writes outside of its arguments"),
        };
        let name = p.name(region.arg);
        Error::new(ErrorKind::Device, format!("writes outside of '{name}': {place}, with {}", self.with))
    }

    /// The two runs wrote all of an output, and the same.
    fn compare_runs(&self, p: &Problem, region: &Region, first: &[u8], second: &[u8]) -> Result<()> {
        let (name, size) = (p.name(region.arg), region.element.size());
        if region.role == Role::Out {
            let kept =
                |(a, b): (&[u8], &[u8])| a.iter().all(|x| *x == PATTERNS[0]) && b.iter().all(|x| *x == PATTERNS[1]);
            let mut unwritten =
                first.chunks_exact(size).zip(second.chunks_exact(size)).enumerate().filter(|(_, pair)| kept(*pair));
            if let Some((at, _)) = unwritten.next() {
                let (count, of) = (1 + unwritten.count(), region.len / size);
                let what = format!(
                    "leaves {count} of {of} elements of '{name}' unwritten, the first number {at}, with {}",
                    self.with
                );
                return Err(Error::new(ErrorKind::Device, what));
            }
        }
        match difference(region.element, p.d().test.same, first, second) {
            None => Ok(()),
            Some(Difference { count, of, first, expected, got }) => Err(Error::new(
                ErrorKind::Device,
                format!(
                    "writes to '{name}' what is not the same twice, in {count} of {of} elements, the first number {first}: \
                     {expected}, then {got}, with {}; it reads outside of its arguments, or what nobody has written, or \
                     adds in an order that is left to chance",
                    self.with
                ),
            )),
        }
    }
}
