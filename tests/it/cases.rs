//! One call on any device, and what must come out of it, element by element.

#![allow(unsafe_code)] // tensors at raw addresses: what a library around other memory does

use ropejit::args::{Args, CuSeqlens, Offsets, Operand, PositionIds, Positions, Tables, Tensor};
use ropejit::rope::scaling::{RopeParameters, cos_sin_table};
use ropejit::rope::{Layout, reference};
use ropejit::{DType, Engine, Origin, PositionForm, RopeSpec, Stream};

/// A repeatable source of numbers.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// About normal, deviation 1.
    pub fn normal(&mut self) -> f32 {
        let sum: f64 = (0..12).map(|_| (self.next() >> 11) as f64 / (1u64 << 53) as f64).sum();
        (sum - 6.0) as f32
    }
}

/// How a tensor lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Bshd,
    Bhsd,
    /// Slices of one packed buffer `[batch, tokens, num_heads + 2·num_kv_heads, head_dim]`, so never contiguous.
    Packed,
    /// Every stride stretched by odd amounts: aligned to one element only.
    Odd,
    /// The last elements of heads that are nine times as wide.
    Slice,
}

#[derive(Debug, Clone)]
pub struct Case {
    pub spec: RopeSpec,
    pub batch: usize,
    pub tokens: usize,
    pub order: Order,
    pub in_place: bool,
    /// First position, or the smallest of random ones.
    pub offset: usize,
    /// A row of the table for every token of every sequence, as transformers passes them.
    pub table_per_sequence: bool,
    /// Tokens (of the first sequence) whose position lies outside of the table.
    pub outside: Vec<usize>,
    /// Packed sequences: where each begins, and where the last ends.
    pub cu_seqlens: Vec<i64>,
    /// Packed sequences have offsets of their own: i64 if true, else i32.
    pub packed_offsets: Option<bool>,
    /// cos and sin are the engine's, of these parameters, for sequences of this length; the mode is the spec's.
    pub angles: Option<(RopeParameters, u64)>,
}

impl Case {
    pub fn new(spec: RopeSpec, batch: usize, tokens: usize) -> Self {
        Self {
            spec,
            batch,
            tokens,
            order: Order::Bshd,
            in_place: false,
            offset: 3,
            table_per_sequence: false,
            outside: Vec::new(),
            cu_seqlens: vec![0, (tokens / 3) as i64, (tokens / 3) as i64, tokens as i64],
            packed_offsets: None,
            angles: None,
        }
    }

    fn layout(&self, heads: u32) -> Layout {
        let (b, s, h, d) = (self.batch, self.tokens, heads as usize, self.spec.head_dim as usize);
        let all = (self.spec.num_heads + 2 * self.spec.num_kv_heads) as usize;
        match self.order {
            Order::Bshd => Layout::bshd(b, s, h, d),
            Order::Bhsd => Layout::bhsd(b, h, s, d),
            Order::Packed => Layout::bshd(b, s, all, d).with_heads(h),
            Order::Slice => {
                let head = 9 * d as i64;
                Layout::bshd(b, s, h, d).with_strides([s as i64 * h as i64 * head, h as i64 * head, head, 1])
            }
            Order::Odd => {
                let (head, token) = ((d + 1) as i64, (h * (d + 1) + 2) as i64);
                Layout::bshd(b, s, h, d).with_strides([s as i64 * token + 5, token, head, 1])
            }
        }
    }
}

/// Inputs, and the expected output, of one case: whole buffers, with what lies between the elements.
pub struct Data {
    input: [Vec<u8>; 2],
    pub expected: [Vec<u8>; 2],
    /// The f64 truth, for elements that are written; NaN elsewhere.
    pub exact: [Vec<f64>; 2],
    cos: Vec<u8>,
    sin: Vec<u8>,
    ids: Vec<i64>,
    rows: usize,
    /// A token stands outside of the tables.
    pub outside: bool,
}

const POISON: u8 = 0x5a;

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_ne_bytes()).collect()
}

fn axes(spec: &RopeSpec) -> usize {
    if spec.mrope.is_some() { 3 } else { 1 }
}

/// Whether `position_ids` or offsets are i64.
fn wide_ids(case: &Case) -> bool {
    let form = case.spec.positions;
    if form.is_packed() { case.packed_offsets == Some(true) } else { form.is_wide() }
}

impl Data {
    pub fn new(case: &Case, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let spec = &case.spec;
        let (width, half) = (spec.table_width() as usize, spec.rotary_dim as usize / 2);
        let rows = case.offset + case.tokens + 5;
        let tables = if case.table_per_sequence { case.batch } else { 1 };
        let table = || vec![0u8; tables * rows * width * spec.table.dtype.size()];
        let (mut cos, mut sin) = (table(), table());
        for row in 0..tables * rows {
            for i in 0..half {
                let angle = (row % rows) as f64 * 1e4f64.powf(-(i as f64) / half as f64) + (row / rows) as f64;
                for copy in 0..width / half {
                    let at = row * width + copy * half + i;
                    spec.table.dtype.write(&mut cos, at, angle.cos() as f32);
                    spec.table.dtype.write(&mut sin, at, angle.sin() as f32);
                }
            }
        }
        if let (Some((parameters, seq_len)), Some(mode)) = (&case.angles, spec.angles) {
            let frequencies = parameters.frequencies(Some(*seq_len)).expect("frequencies");
            let (c, s) = cos_sin_table(&frequencies, 0..rows as u64, mode);
            (cos, sin) = (bytes(&c), bytes(&s));
        }
        let wanted = match spec.positions {
            PositionForm::Offsets32 | PositionForm::Offsets64 => case.batch,
            form if form.is_packed() => case.cu_seqlens.len() - 1,
            _ => axes(spec) * case.batch * case.tokens,
        };
        // Offsets leave room for the longest sequence.
        let room = if wanted < case.batch * case.tokens { 5 } else { case.tokens as u64 + 5 };
        let mut ids: Vec<i64> = (0..wanted).map(|_| (case.offset as u64 + rng.next() % room) as i64).collect();
        // Where numbers are i64, one whose lower half is a row of the tables.
        let past = if wide_ids(case) { 1 << 32 } else { rows as i64 };
        for (n, &token) in case.outside.iter().enumerate() {
            ids[token] = if n % 2 == 0 { past + n as i64 } else { -1 - n as i64 };
        }
        let mut data = Self {
            input: [Vec::new(), Vec::new()],
            expected: [Vec::new(), Vec::new()],
            exact: [Vec::new(), Vec::new()],
            cos,
            sin,
            ids,
            rows,
            outside: false,
        };
        for (which, heads) in [(0, spec.num_heads), (1, spec.num_kv_heads)] {
            data.fill(case, which, heads, &mut rng);
        }
        data
    }

    fn fill(&mut self, case: &Case, which: usize, heads: u32, rng: &mut Rng) {
        let (spec, layout) = (&case.spec, case.layout(heads));
        let len = layout.extent().expect("fits").1 as usize;
        let size = spec.dtype.size();
        let mut input = vec![0; len * size];
        for i in 0..len {
            spec.dtype.write(&mut input, i, rng.normal());
        }
        let mut expected = if case.in_place { input.clone() } else { vec![POISON; len * size] };
        let mut exact = vec![f64::NAN; len];
        let width = spec.table_width() as usize;
        for b in 0..case.batch {
            for s in 0..case.tokens {
                let sequence = case.cu_seqlens.windows(2).position(|w| (w[0]..w[1]).contains(&(s as i64)));
                let stays = spec.positions.is_packed() && sequence.is_none();
                let position = |axis: usize| match spec.positions {
                    PositionForm::Implicit => (case.offset + s) as i64,
                    PositionForm::Offsets32 | PositionForm::Offsets64 => self.ids[b] + s as i64,
                    PositionForm::CuSeqlens | PositionForm::CuSeqlens64 => sequence.map_or(-1, |n| {
                        let offset = if case.packed_offsets.is_some() { self.ids[n] } else { 0 };
                        offset + s as i64 - case.cu_seqlens[n]
                    }),
                    _ => self.ids[(axis * case.batch + b) * case.tokens + s],
                };
                let row = |axis| usize::try_from(position(axis)).ok().filter(|&p| p < self.rows);
                let inside = (0..axes(spec)).all(|axis| row(axis).is_some());
                self.outside |= !(inside || stays);
                let table = if case.table_per_sequence { b * self.rows } else { 0 };
                for h in 0..heads as usize {
                    let at = |i: usize| {
                        let [sb, ss, sh, _] = layout.strides;
                        (b as i64 * sb + s as i64 * ss + h as i64 * sh) as usize + i
                    };
                    for i in 0..spec.head_dim as usize {
                        expected[at(i) * size..(at(i) + 1) * size]
                            .copy_from_slice(&input[at(i) * size..(at(i) + 1) * size]);
                        exact[at(i)] = spec.dtype.read(&input, at(i)).into();
                    }
                    let pairs = if stays { 0 } else { spec.rotary_dim as usize / 2 };
                    for pair in 0..pairs {
                        let (first, second) = reference::pair(spec, spec.head_dim, pair).input;
                        let (first, second) = (at(first), at(second));
                        let ab = (spec.dtype.read(&input, first), spec.dtype.read(&input, second));
                        let axis = spec.mrope.map_or(0, |m| m.axis(pair as u32));
                        let cs = row(axis).filter(|_| inside).map(|row| {
                            let entry = (table + row) * width + pair;
                            (spec.table.dtype.read(&self.cos, entry), spec.table.dtype.read(&self.sin, entry))
                        });
                        let turned = cs.map_or((f32::NAN, f32::NAN), |cs| reference::rotate(spec, ab, cs));
                        spec.dtype.write(&mut expected, first, turned.0);
                        spec.dtype.write(&mut expected, second, turned.1);
                        let (a, b) = (f64::from(ab.0), f64::from(ab.1));
                        let (c, s) = cs.map_or((f64::NAN, f64::NAN), |(c, s)| (c.into(), s.into()));
                        (exact[first], exact[second]) = reference::rotate_f64(spec.direction, (a, b), (c, s));
                    }
                }
            }
        }
        self.input[which] = input;
        self.expected[which] = expected;
        self.exact[which] = exact;
    }
}

/// Runs a case on the engine's device and returns the whole output buffers of q and k.
pub fn run(engine: &Engine, case: &Case, data: &Data) -> ropejit::Result<(Origin, [Vec<u8>; 2])> {
    let (spec, device) = (&case.spec, engine.device());
    let rope = engine.rope(spec)?;
    let upload = |bytes: &[u8]| {
        let mut memory = device.alloc(bytes.len())?;
        memory.upload(0, bytes)?;
        Ok::<_, ropejit::Error>(memory)
    };
    let inputs = [upload(&data.input[0])?, upload(&data.input[1])?];
    let outputs = if case.in_place {
        None
    } else {
        let poison = |i: usize| upload(&vec![POISON; data.input[i].len()]);
        Some([poison(0)?, poison(1)?])
    };
    let (cos, sin) = (upload(&data.cos)?, upload(&data.sin)?);
    let integers = |numbers: &[i64], wide: bool| -> Vec<u8> {
        let narrow = |n: i64| i32::try_from(n).expect("fits").to_ne_bytes();
        if wide {
            numbers.iter().flat_map(|n| n.to_ne_bytes()).collect()
        } else {
            numbers.iter().flat_map(|&n| narrow(n)).collect()
        }
    };
    let wide = spec.positions.is_wide();
    let angles = case.angles.as_ref().zip(spec.angles);
    let angles = angles.map(|((p, len), mode)| engine.angles(p, mode).map(|a| (a, *len))).transpose()?;
    let cu_seqlens = upload(&integers(&case.cu_seqlens, wide))?;
    let ids = upload(&integers(&data.ids, wide_ids(case)))?;
    let pointer = |memory: &dyn ropejit::device::Memory| memory.address() as *mut std::ffi::c_void;
    let operand = |which: usize, heads: u32| {
        let layout = case.layout(heads);
        // SAFETY: the memory was allocated for the layout's extent and lives until after the launch.
        let tensor = |m| unsafe { Tensor::from_raw(pointer(m), spec.dtype, layout) };
        match &outputs {
            None => Operand::in_place(tensor(inputs[which].as_ref())),
            Some(out) => Operand::out_of_place(tensor(inputs[which].as_ref()), tensor(out[which].as_ref())),
        }
    };
    let width = spec.table_width() as usize;
    let batch_stride = if case.table_per_sequence { data.rows * width } else { 0 };
    let args = Args {
        q: operand(0, spec.num_heads),
        k: (spec.num_kv_heads > 0).then(|| operand(1, spec.num_kv_heads)),
        tables: if let Some((angles, seq_len)) = &angles {
            angles.tables(*seq_len)?
        } else {
            // SAFETY: the tables hold `rows` rows a sequence.
            unsafe {
                let strides = [batch_stride as i64, width as i64];
                Tables::from_raw(
                    pointer(cos.as_ref()),
                    pointer(sin.as_ref()),
                    spec.table.dtype,
                    data.rows,
                    width,
                    strides,
                )
            }
        },
        positions: match spec.positions {
            PositionForm::Implicit => Positions::Offset(case.offset as i64),
            PositionForm::Ids32 | PositionForm::Ids64 => {
                let strides = [(case.batch * case.tokens) as i64, case.tokens as i64, 1];
                // SAFETY: there is a number for each token of each axis.
                let ids = unsafe { PositionIds::from_raw(pointer(ids.as_ref()), wide, strides) };
                Positions::Ids(ids)
            }
            PositionForm::CuSeqlens | PositionForm::CuSeqlens64 => Positions::Packed {
                // SAFETY: all of them were copied.
                cu_seqlens: unsafe {
                    CuSeqlens::from_raw(pointer(cu_seqlens.as_ref()), wide, case.cu_seqlens.len() - 1)
                },
                // SAFETY: there is a number for each sequence.
                offsets: case.packed_offsets.map(|wide| unsafe { Offsets::from_raw(pointer(ids.as_ref()), wide) }),
            },
            // SAFETY: there is a number for each sequence.
            _ => Positions::Offsets(unsafe { Offsets::from_raw(pointer(ids.as_ref()), wide) }),
        },
        norm: None,
        append: None,
    };
    let origin = rope.apply(Stream::DEFAULT, &args)?;
    device.synchronize()?;
    let source = outputs.as_ref().unwrap_or(&inputs);
    let mut result = [vec![0; data.input[0].len()], vec![0; data.input[1].len()]];
    for (memory, bytes) in source.iter().zip(&mut result) {
        memory.download(0, bytes)?;
    }
    Ok((origin, result))
}

/// Runs a case: the right bits, and the fault word says whether a token stands outside of the tables.
pub fn assert_right(engine: &Engine, case: &Case, data: &Data) -> (Origin, [Vec<u8>; 2]) {
    let (origin, got) = run(engine, case, data).unwrap_or_else(|e| panic!("{e}\n{case:?}"));
    assert_bits(case, &got, &data.expected);
    let checked = engine.rope(&case.spec).expect("valid").check();
    assert_eq!(checked.is_err(), data.outside, "{checked:?}\n{case:?}");
    (origin, got)
}

/// Compares bit for bit; all NaNs are alike.
pub fn assert_bits(case: &Case, got: &[Vec<u8>; 2], want: &[Vec<u8>; 2]) {
    for (name, (got, want)) in ["q", "k"].iter().zip(got.iter().zip(want)) {
        let (dtype, size) = (case.spec.dtype, case.spec.dtype.size());
        for i in 0..want.len() / size {
            if got[i * size..(i + 1) * size] != want[i * size..(i + 1) * size] {
                let (g, w) = (dtype.read(got, i), dtype.read(want, i));
                assert!(g.is_nan() && w.is_nan(), "{name}[{i}] is {g}, not {w}\n{} {case:?}", case.spec);
            }
        }
    }
}

/// Compares with the f64 truth: at most twice the rounding of the dtype on values of this size.
pub fn assert_near(case: &Case, got: &[Vec<u8>; 2], data: &Data) {
    let epsilon = match case.spec.dtype {
        DType::F32 => 2f64.powi(-24),
        DType::F16 => 2f64.powi(-11),
        DType::BF16 => 2f64.powi(-8),
        DType::E4M3 => unreachable!("not of tensors"),
    };
    // per_op rounds cos, sin, two products and a sum; once rounds at the end only.
    let roundings = if case.spec.rounding == ropejit::Rounding::PerOp { 4.0 } else { 1.0 };
    for (got, exact) in got.iter().zip(&data.exact) {
        for (i, &want) in exact.iter().enumerate().filter(|(_, w)| !w.is_nan()) {
            let error = (f64::from(case.spec.dtype.read(got, i)) - want).abs();
            assert!(error <= 2.0 * roundings * epsilon * 8.0, "element {i}: off by {error} from {want}\n{case:?}");
        }
    }
}
