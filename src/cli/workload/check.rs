//! The f64 reference of a call, and how far its results are from it.

use ropejit::rope::reference::{self, Pair};
use ropejit::rope::{Flavour, Norm, ScaleUse};
use ropejit::{DType, Direction, Result, RopeSpec, Rounding};

use super::Workload;
use super::parts::{BLOCK, Part};
use super::shared::{EPS, block_of};

/// Tokens that are looked at, at most.
const TOKENS: usize = 512;

/// The largest error of one output, and the largest that rounding explains.
#[derive(Clone, Copy, Default)]
struct Error {
    worst: f64,
    allowed: f64,
}

/// What one output's numbers are compared by.
struct Compared {
    error: f64,
    largest: f64,
}

impl Compared {
    fn new() -> Self {
        Self { error: 0.0, largest: 0.0 }
    }

    fn add(&mut self, got: f64, want: f64) {
        let error = if got.is_finite() { (got - want).abs() } else { f64::INFINITY };
        self.error = self.error.max(error);
        self.largest = self.largest.max(want.abs());
    }

    /// `steps`: how much of a value rounding may take.
    fn told(&self, steps: f64) -> Error {
        Error { worst: self.error, allowed: self.largest * steps }
    }
}

/// What rounding to a dtype takes of a value at most. One rounding is half a unit in the last place.
fn epsilon(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 2f64.powi(-23),
        DType::F16 => 2f64.powi(-11),
        DType::BF16 => 2f64.powi(-8),
        DType::E4M3 => 2f64.powi(-4),
    }
}

/// The bytes of a workload, on the host.
struct Bytes {
    input: Vec<u8>,
    output: Vec<u8>,
    cos: Vec<u8>,
    sin: Vec<u8>,
    beside: Vec<u8>,
}

impl Bytes {
    /// A head of an input.
    fn head(&self, part: &Part, at: [usize; 3]) -> Vec<f64> {
        let at = part.at(at);
        (0..part.layout.shape[3]).map(|i| f64::from(part.dtype.read(&self.input, at + i))).collect()
    }
}

impl Workload {
    /// The largest error against the f64 reference, and the largest that rounding explains, over at most 512 tokens spread over
    /// the whole; of the output (q, k, caches, gradients of weights) where the one is most of the other.
    pub fn errors(&self) -> Result<(f64, f64)> {
        let first = |memory: &dyn ropejit::device::Memory, n: usize| {
            let mut bytes = vec![0u8; n];
            memory.download(0, &mut bytes).map(|()| bytes)
        };
        let download = |memory: &dyn ropejit::device::Memory| first(memory, memory.bytes());
        let shared = &self.shared;
        let bytes = Bytes {
            input: download(self.input.as_ref())?,
            output: download(self.output.as_ref())?,
            cos: download(shared.memory[0].as_ref())?,
            sin: download(shared.memory[1].as_ref())?,
            beside: shared
                .neighbours
                .as_ref()
                .map_or_else(|| Ok(Vec::new()), |n| first(n.memory.as_ref(), n.workspace))?,
        };
        let mut errors = vec![self.of_heads(&bytes, 0), self.of_heads(&bytes, 1)];
        errors.extend(self.of_v(&bytes));
        errors.extend(self.of_weights(&bytes).into_iter().flatten());
        let share = |e: &Error| if e.worst == 0.0 { 0.0 } else { e.worst / e.allowed };
        let most = errors.into_iter().max_by(|a, b| share(a).total_cmp(&share(b))).unwrap_or_default();
        Ok((most.worst, most.allowed))
    }

    /// What rounding of the contract takes of a value: rounding every operation is four times one, and a norm rounds what it
    /// gives twice, after f32 has rounded the sum and the root.
    fn steps(&self, output: &Part) -> f64 {
        let spec = &self.spec;
        let turned = if spec.rounding == Rounding::PerOp { 4.0 } else { 1.0 };
        let normed = match (spec.norm, spec.direction) {
            (None, _) => 0.0,
            (Some(_), Direction::Forward) => 4.0,
            // Twice as many products, and the difference of two terms.
            (Some(_), Direction::Backward) => 8.0,
        };
        let stored = if output.dtype == DType::E4M3 { epsilon(DType::E4M3) } else { 0.0 };
        (turned + normed) * epsilon(spec.dtype) + stored
    }

    /// Tokens that are looked at.
    fn tokens_to_see(&self) -> impl Iterator<Item = [usize; 2]> {
        let (batch, tokens) = (self.batch, self.tokens);
        let step = tokens.div_ceil(TOKENS).max(1);
        (0..batch).flat_map(move |b| (0..tokens).step_by(step).map(move |s| [b, s]))
    }

    /// Where a token's head is in an output: in a cache, its slot.
    fn out_at(&self, part: &Part, cached: bool, [batch, token, head]: [usize; 3]) -> usize {
        if !cached {
            return part.at([batch, token, head]);
        }
        let number = batch * self.tokens + token;
        part.at([block_of(number / BLOCK, part.layout.shape[0]), number % BLOCK, head])
    }

    /// What a stored number stands for.
    fn stored(&self, bytes: &Bytes, part: &Part, at: usize, which: usize, head: usize) -> f64 {
        let value = f64::from(part.dtype.read(&bytes.output, at));
        let append = self.spec.append.and_then(|append| if which == 0 { append.q } else { append.cache });
        let (Some(fp8), Some(beside)) = (append, &self.shared.neighbours) else { return value };
        let scale = DType::F32.read(&bytes.beside[beside.scales[which]..], if fp8.per_head { head } else { 0 });
        match fp8.scale {
            ScaleUse::Divide => value * f64::from(scale),
            ScaleUse::Multiply => value / f64::from(scale),
        }
    }

    /// Of q (0) or k (1).
    fn of_heads(&self, bytes: &Bytes, which: usize) -> Error {
        let spec = &self.spec;
        let (input, output) = (&self.parts.inputs[which], &self.parts.outputs[which]);
        let cached = which == 1 && spec.append.is_some();
        let mut compared = Compared::new();
        for [b, s] in self.tokens_to_see() {
            for h in 0..input.layout.shape[2] {
                let x = bytes.head(input, [b, s, h]);
                let want = match (spec.norm, spec.direction) {
                    (None, _) => self.turned(bytes, &x, s, spec.direction == Direction::Backward),
                    (Some(norm), Direction::Forward) => self.forward(bytes, norm, which, &x, s),
                    (Some(norm), Direction::Backward) => {
                        let taken = bytes.head(&self.parts.inputs[2 + which], [b, s, h]);
                        self.backward(bytes, norm, which, &x, &taken, [b, s, h]).0
                    }
                };
                let at = self.out_at(output, cached, [b, s, h]);
                for (i, want) in want.into_iter().enumerate() {
                    compared.add(self.stored(bytes, output, at + i, which, h), want);
                }
            }
        }
        compared.told(self.steps(output))
    }

    /// Of the cache of v, which has what v has.
    fn of_v(&self, bytes: &Bytes) -> Option<Error> {
        let (input, output) = (&self.parts.inputs[4], &self.parts.outputs[2]);
        if !output.is_there() {
            return None;
        }
        let mut compared = Compared::new();
        for [b, s] in self.tokens_to_see() {
            for h in 0..input.layout.shape[2] {
                let at = self.out_at(output, true, [b, s, h]);
                for (i, want) in bytes.head(input, [b, s, h]).into_iter().enumerate() {
                    compared.add(self.stored(bytes, output, at + i, 2, h), want);
                }
            }
        }
        Some(compared.told(if output.dtype == DType::E4M3 { epsilon(DType::E4M3) } else { 0.0 }))
    }

    /// Of the gradients of the weights, which all tokens have a part in.
    fn of_weights(&self, bytes: &Bytes) -> [Option<Error>; 2] {
        let spec = &self.spec;
        let (Some(norm), Some(beside)) = (spec.norm.filter(|norm| norm.has_weight()), &self.shared.neighbours) else {
            return [None, None];
        };
        [0, 1].map(|which| {
            let (input, taken) = (&self.parts.inputs[which], &self.parts.inputs[2 + which]);
            if spec.direction == Direction::Forward || !input.is_there() {
                return None;
            }
            let dim = spec.head_dim as usize;
            let (mut want, mut terms) = (vec![0.0; dim], vec![0.0; dim]);
            for (b, s) in (0..self.batch).flat_map(|b| (0..self.tokens).map(move |s| (b, s))) {
                for h in 0..input.layout.shape[2] {
                    let [dy, x] = [input, taken].map(|part| bytes.head(part, [b, s, h]));
                    let (_, parts) = self.backward(bytes, norm, which, &dy, &x, [b, s, h]);
                    for (i, part) in parts.into_iter().enumerate() {
                        want[i] += part;
                        terms[i] += part.abs();
                    }
                }
            }
            let got = |i| f64::from(spec.dtype.read(&bytes.beside[beside.gradients[which]..], i));
            let mut compared = Compared::new();
            (0..dim).for_each(|i| compared.add(got(i), want[i]));
            // Terms that cancel each other are rounded all the same.
            compared.largest = terms.into_iter().fold(0.0, f64::max);
            Some(compared.told(self.steps(input)))
        })
    }

    /// The rotation of a head, or `back`.
    fn turned(&self, bytes: &Bytes, x: &[f64], token: usize, back: bool) -> Vec<f64> {
        let direction = if back { Direction::Backward } else { Direction::Forward };
        let spec = RopeSpec { direction, ..self.spec.clone() };
        let mut out = x.to_vec();
        for i in 0..spec.rotary_dim as usize / 2 {
            let entry = token * spec.table_width() as usize + i;
            let cs = [&bytes.cos, &bytes.sin].map(|t| f64::from(spec.table.dtype.read(t, entry)));
            let Pair { input, output } = reference::pair(&spec, x.len() as u32, i);
            let turned = reference::rotate_f64(direction, (x[input.0], x[input.1]), (cs[0], cs[1]));
            (out[output.0], out[output.1]) = turned;
        }
        out
    }

    /// What an element of a normalised head is multiplied by.
    fn weight(&self, bytes: &Bytes, norm: Norm, which: usize, i: usize) -> f64 {
        let Some(beside) = &self.shared.neighbours else { return 1.0 };
        let w = || f64::from(self.spec.dtype.read(&bytes.beside[beside.weights[which]..], i));
        match norm.flavour {
            Flavour::NoWeight => 1.0,
            Flavour::OnePlusWeight => 1.0 + w(),
            Flavour::WeightAfter | Flavour::WeightF32 => w(),
        }
    }

    fn forward(&self, bytes: &Bytes, norm: Norm, which: usize, x: &[f64], token: usize) -> Vec<f64> {
        let normed = |x: Vec<f64>| {
            let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
            let r = 1.0 / (mean + f64::from(EPS)).sqrt();
            x.into_iter().enumerate().map(|(i, x)| x * r * self.weight(bytes, norm, which, i)).collect::<Vec<_>>()
        };
        if norm.after_rope {
            return normed(self.turned(bytes, x, token, false));
        }
        self.turned(bytes, &normed(x.to_vec()), token, false)
    }

    /// The gradient of a head, and its part in the gradient of the weight.
    fn backward(
        &self,
        bytes: &Bytes,
        norm: Norm,
        which: usize,
        gradient: &[f64],
        x: &[f64],
        [b, s, h]: [usize; 3],
    ) -> (Vec<f64>, Vec<f64>) {
        let heads = self.parts.inputs[which].layout.shape[2];
        let number = (b * self.tokens + s) * heads + h;
        let roots = self.shared.neighbours.as_ref().map_or(0, |beside| beside.roots[which]);
        let r = f64::from(DType::F32.read(&bytes.beside[roots..], number));
        let (z, dm) = if norm.after_rope {
            (self.turned(bytes, x, s, false), gradient.to_vec())
        } else {
            (x.to_vec(), self.turned(bytes, gradient, s, true))
        };
        let dn: Vec<f64> = dm.iter().enumerate().map(|(i, dm)| dm * self.weight(bytes, norm, which, i)).collect();
        let of_root: f64 = dn.iter().zip(&z).map(|(dn, z)| dn * z).sum();
        let of_mean = -0.5 * of_root * r * r * r / z.len() as f64;
        let dz: Vec<f64> = dn.iter().zip(&z).map(|(dn, z)| dn * r + of_mean * 2.0 * z).collect();
        let parts = dm.iter().zip(&z).map(|(dm, z)| dm * z * r).collect();
        (if norm.after_rope { self.turned(bytes, &dz, s, true) } else { dz }, parts)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use ropejit::{DeviceChoice, Engine};

    use super::super::super::spec::SpecArgs;
    use super::super::super::workload::Workload;

    #[derive(clap::Parser)]
    struct Only {
        #[command(flatten)]
        spec: SpecArgs,
    }

    /// Memory is poisoned, so that no output passes that nobody has written.
    #[test]
    fn what_is_not_written_is_an_error() {
        let engine = Engine::builder().device(DeviceChoice::Host).in_memory().build().expect("opens");
        for options in
            ["--fused qk-norm", "--fused qk-norm --backward", "--fused append --cache fp8", "--style deinterleave"]
        {
            let line = format!("run --head-dim 16 --num-heads 2 {options}");
            let only = Only::try_parse_from(line.split(' ')).unwrap_or_else(|e| panic!("{e}"));
            let chosen = only.spec.choose(5).expect("valid").remove(0).on(&engine).expect("of the host");
            let work = Workload::new(&engine, &chosen, 1, 5, false).expect("allocated");
            assert_eq!(work.errors().expect("read").0, f64::INFINITY, "{options}");
        }
    }
}
