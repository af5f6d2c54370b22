//! One call: its spec, shapes and layouts, and all memory that it reads and writes.

use ropejit::args::NumberType;
use ropejit::rope::Layout;
use ropejit::rope::scaling::{RopeParameters, cos_sin_table};
use ropejit::{DType, Direction, PositionForm, RopeSpec};

use crate::cases::{Order, Rng};

/// How a cache lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `[blocks, block_size, heads, dim]`, k and v apart.
    Nhd,
    /// `[blocks, heads, block_size, dim]`, k and v apart.
    Hnd,
    /// `[blocks, 2, block_size, heads, dim]`, k and v in one base. Heads of k and v are as wide.
    Two,
    /// `[blocks, block_size, heads, v's dim + k's dim]` in one base: the latent row of MLA.
    Row,
    /// Gaps of odd lengths between heads, slots and blocks.
    Odd,
}

/// Where tokens are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slotting {
    /// Each in a slot of its own, in no order.
    Scattered,
    /// As `Scattered`, but every third is stored nowhere.
    Holes,
    /// As `Scattered`, but some numbers lie outside of the cache.
    Outside,
}

#[derive(Debug, Clone, Copy)]
pub struct Cache {
    pub blocks: usize,
    pub block_size: usize,
    pub form: Form,
    pub slotting: Slotting,
}

#[derive(Debug, Clone)]
pub struct Case {
    pub spec: RopeSpec,
    pub batch: usize,
    pub tokens: usize,
    pub order: Order,
    pub in_place: bool,
    pub eps: f32,
    /// A forward call saves the reciprocal roots.
    pub saves: bool,
    /// First position, or the smallest of random ones.
    pub offset: usize,
    /// Tokens (of the first sequence) whose position lies outside of the table.
    pub outside: Vec<usize>,
    /// Packed sequences: where each begins, and where the last ends.
    pub cu_seqlens: Vec<i64>,
    /// Packed sequences have offsets of their own: i64 if true, else i32.
    pub packed_offsets: Option<bool>,
    /// cos and sin are the engine's, of these parameters, for sequences of this length.
    pub angles: Option<(RopeParameters, u64)>,
    pub cache: Cache,
}

impl Case {
    pub fn new(spec: RopeSpec, batch: usize, tokens: usize) -> Self {
        Self {
            spec,
            batch,
            tokens,
            order: Order::Bshd,
            in_place: false,
            eps: 1e-6,
            saves: true,
            offset: 3,
            outside: Vec::new(),
            cu_seqlens: vec![0, (tokens / 3) as i64, (tokens / 3) as i64, tokens as i64],
            packed_offsets: None,
            angles: None,
            cache: Cache {
                blocks: (batch * tokens).div_ceil(4) + batch + 2,
                block_size: 4,
                form: Form::Nhd,
                slotting: Slotting::Scattered,
            },
        }
    }

    pub fn is_backward(&self) -> bool {
        self.spec.direction == Direction::Backward
    }

    /// Whether `position_ids` or offsets are i64.
    pub fn wide_ids(&self) -> bool {
        let form = self.spec.positions;
        if form.is_packed() { self.packed_offsets == Some(true) } else { form.is_wide() }
    }

    /// How a tensor of q, k or v lies, and where it begins in a base that it may share.
    fn layout(&self, which: usize, heads: u32, dim: usize) -> (Layout, usize) {
        let (b, s, h) = (self.batch, self.tokens, heads as usize);
        let all = (self.spec.num_heads + 2 * self.spec.num_kv_heads) as usize;
        match self.order {
            Order::Bshd => (Layout::bshd(b, s, h, dim), 0),
            Order::Bhsd => (Layout::bhsd(b, h, s, dim), 0),
            Order::Packed => {
                let first = [0, self.spec.num_heads, self.spec.num_heads + self.spec.num_kv_heads][which] as usize;
                (Layout::bshd(b, s, all, dim).with_heads(h), first * dim)
            }
            Order::Slice => {
                let head = 3 * dim as i64;
                let token = h as i64 * head;
                (Layout::bshd(b, s, h, dim).with_strides([s as i64 * token, token, head, 1]), 2 * dim)
            }
            Order::Odd => {
                let (head, token) = ((dim + 1) as i64, (h * (dim + 1) + 2) as i64);
                (Layout::bshd(b, s, h, dim).with_strides([s as i64 * token + 5, token, head, 1]), 1)
            }
        }
    }
}

/// One piece of memory.
pub struct Base {
    pub name: &'static str,
    pub number: NumberType,
    pub bytes: Vec<u8>,
    /// What is left in it is nobody's business.
    pub scratch: bool,
}

/// A tensor in a base.
#[derive(Debug, Clone, Copy)]
pub struct View {
    pub base: usize,
    /// Its first element.
    pub offset: usize,
    pub dtype: DType,
    pub layout: Layout,
}

impl View {
    /// The number of an element in its base.
    pub fn at(&self, [a, b, c]: [usize; 3], i: usize) -> usize {
        let [sa, sb, sc, _] = self.layout.strides;
        (self.offset as i64 + a as i64 * sa + b as i64 * sb + c as i64 * sc) as usize + i
    }
}

/// All memory of a call, before it. Members are numbers of bases, of q and of k where there are two.
#[derive(Default)]
pub struct Data {
    pub bases: Vec<Base>,
    /// q, k and v: where they are read.
    pub input: [Option<View>; 3],
    /// Where q and k are written.
    pub output: [Option<View>; 2],
    /// Backward: what the forward call took.
    pub x: [Option<View>; 2],
    pub weight: [Option<usize>; 2],
    pub rsqrt: [Option<usize>; 2],
    pub weight_gradient: [Option<usize>; 2],
    pub workspace: Option<usize>,
    /// Of k and v.
    pub cache: [Option<View>; 2],
    /// `slot_mapping`; or `positions`, `batch_indices`, `kv_indptr`, `kv_indices`.
    pub slots: Vec<usize>,
    /// Of q, k and v.
    pub scale: [Option<usize>; 3],
    pub tables: [usize; 2],
    pub rows: usize,
    pub ids: usize,
    pub cu_seqlens: usize,
}

pub const POISON: u8 = 0x5a;

impl Data {
    pub fn new(case: &Case, seed: u64) -> Self {
        let (mut data, mut rng) = (Self::default(), Rng::new(seed));
        data.add_heads(case, &mut rng);
        data.add_norm(case, &mut rng);
        data.add_positions(case, &mut rng);
        if case.spec.append.is_some() {
            data.add_cache(case, &mut rng);
        }
        data
    }

    fn add(&mut self, name: &'static str, number: NumberType, bytes: Vec<u8>) -> usize {
        self.bases.push(Base { name, number, bytes, scratch: false });
        self.bases.len() - 1
    }

    pub fn add_f32(&mut self, name: &'static str, values: &[f32]) -> usize {
        let bytes = values.iter().flat_map(|x| x.to_ne_bytes()).collect();
        self.add(name, NumberType::Element(DType::F32), bytes)
    }

    pub fn add_integers(&mut self, name: &'static str, numbers: &[i64], wide: bool) -> usize {
        if wide {
            return self.add(name, NumberType::I64, numbers.iter().flat_map(|n| n.to_ne_bytes()).collect());
        }
        let narrow = |n: &i64| i32::try_from(*n).expect("fits").to_ne_bytes();
        self.add(name, NumberType::I32, numbers.iter().flat_map(narrow).collect())
    }

    pub fn add_elements(
        &mut self,
        name: &'static str,
        dtype: DType,
        len: usize,
        value: impl FnMut(usize) -> f32,
    ) -> usize {
        let mut bytes = vec![0; len * dtype.size()];
        (0..len).map(value).enumerate().for_each(|(i, x)| dtype.write(&mut bytes, i, x));
        self.add(name, NumberType::Element(dtype), bytes)
    }

    pub fn add_poison(&mut self, name: &'static str, dtype: DType, len: usize) -> usize {
        self.add(name, NumberType::Element(dtype), vec![POISON; len * dtype.size()])
    }

    fn add_heads(&mut self, case: &Case, rng: &mut Rng) {
        let spec = &case.spec;
        let v_dim = spec.append.map_or(0, |append| append.v_head_dim);
        let dims = [spec.head_dim, spec.k_dim(), v_dim].map(|dim| dim as usize);
        let heads = [spec.num_heads, spec.num_kv_heads, if v_dim > 0 { spec.num_kv_heads } else { 0 }];
        let mut shared = None;
        for which in 0..3 {
            if heads[which] == 0 {
                continue;
            }
            let (layout, offset) = case.layout(which, heads[which], dims[which]);
            let len = offset + layout.extent().expect("fits").1 as usize;
            let base = if case.order == Order::Packed {
                let all = case.batch * case.tokens * (spec.num_heads + 2 * spec.num_kv_heads) as usize * dims[0];
                assert!(dims[which] == dims[0], "one base for heads of one size");
                *shared.get_or_insert_with(|| self.add_elements("qkv", spec.dtype, all, |_| rng.normal()))
            } else {
                self.add_elements(["q", "k", "v"][which], spec.dtype, len, |_| rng.normal())
            };
            let view = View { base, offset, dtype: spec.dtype, layout };
            self.input[which] = Some(view);
            if which == 2 || (which == 1 && spec.append.is_some()) {
                continue;
            }
            let fp8 = spec.append.is_some_and(|append| append.q.is_some());
            let dtype = if fp8 { DType::E4M3 } else { spec.dtype };
            self.output[which] = Some(if case.in_place && !fp8 {
                view
            } else {
                let len = self.bases[base].bytes.len() / spec.dtype.size();
                let base = self.add_poison(["q out", "k out"][which], dtype, len);
                View { base, dtype, ..view }
            });
        }
    }

    fn add_norm(&mut self, case: &Case, rng: &mut Rng) {
        let spec = &case.spec;
        let Some(norm) = spec.norm else { return };
        let (dim, tokens) = (spec.head_dim as usize, case.batch * case.tokens);
        for (which, heads) in [spec.num_heads, spec.num_kv_heads].map(|heads| heads as usize).into_iter().enumerate() {
            if heads == 0 {
                continue;
            }
            if norm.has_weight() {
                let weight = |_| 1.0 + 0.4 * rng.normal();
                self.weight[which] = Some(self.add_elements(["q_weight", "k_weight"][which], spec.dtype, dim, weight));
            }
            let rows = tokens * heads;
            let name = ["rsqrt.q", "rsqrt.k"][which];
            if !case.is_backward() {
                self.rsqrt[which] = case.saves.then(|| self.add_poison(name, DType::F32, rows));
                continue;
            }
            let roots: Vec<f32> = (0..rows).map(|_| 0.2 + rng.normal().abs()).collect();
            self.rsqrt[which] = Some(self.add_f32(name, &roots));
            // What the forward call took need not lie as its gradient does.
            let layout = Layout::bhsd(case.batch, heads, case.tokens, dim);
            let base = self.add_elements(["x of q", "x of k"][which], spec.dtype, layout.len(), |_| rng.normal());
            self.x[which] = Some(View { base, offset: 0, dtype: spec.dtype, layout });
            if norm.has_weight() {
                self.weight_gradient[which] = Some(self.add_poison(["dw of q", "dw of k"][which], spec.dtype, dim));
            }
        }
        if case.is_backward() && norm.has_weight() {
            let workspace = self.add_poison("workspace", DType::F32, spec.weight_workspace(tokens as u64) as usize);
            self.bases[workspace].scratch = true;
            self.workspace = Some(workspace);
        }
    }

    fn add_positions(&mut self, case: &Case, rng: &mut Rng) {
        let spec = &case.spec;
        let (width, half) = (spec.table_width() as usize, spec.rotary_dim as usize / 2);
        self.rows = case.offset + case.tokens + 5;
        let table = if let (Some((parameters, len)), Some(mode)) = (&case.angles, spec.angles) {
            let frequencies = parameters.frequencies(Some(*len)).expect("frequencies");
            let (c, s) = cos_sin_table(&frequencies, 0..self.rows as u64, mode);
            [c, s]
        } else {
            let angle = |at: usize| (at / width) as f64 * 1e4f64.powf(-((at % width % half) as f64) / half as f64);
            let all = 0..self.rows * width;
            [all.clone().map(|i| angle(i).cos() as f32).collect(), all.map(|i| angle(i).sin() as f32).collect()]
        };
        let [c, s] = table;
        self.tables = [("cos", c), ("sin", s)]
            .map(|(name, values)| self.add_elements(name, spec.table.dtype, values.len(), |i| values[i]));
        let axes = if spec.mrope.is_some() { 3 } else { 1 };
        let wanted = match spec.positions {
            PositionForm::Offsets32 | PositionForm::Offsets64 => case.batch,
            form if form.is_packed() => case.cu_seqlens.len() - 1,
            _ => axes * case.batch * case.tokens,
        };
        let room = if wanted < case.batch * case.tokens { 5 } else { case.tokens as u64 + 5 };
        let mut ids: Vec<i64> = (0..wanted).map(|_| (case.offset as u64 + rng.next() % room) as i64).collect();
        let past = if case.wide_ids() { 1 << 32 } else { self.rows as i64 };
        for (n, &token) in case.outside.iter().enumerate() {
            ids[token] = if n % 2 == 0 { past + n as i64 } else { -1 - n as i64 };
        }
        self.ids = self.add_integers("position_ids", &ids, case.wide_ids());
        self.cu_seqlens = self.add_integers("cu_seqlens", &case.cu_seqlens, spec.positions.is_wide());
    }

    /// Writes one element of a tensor.
    pub fn set(&mut self, view: View, at: [usize; 3], i: usize, x: f32) {
        view.dtype.write(&mut self.bases[view.base].bytes, view.at(at, i), x);
    }

    /// Writes all numbers of a base of elements.
    pub fn set_all(&mut self, base: usize, x: impl Fn(usize) -> f32) {
        let Base { number: NumberType::Element(dtype), bytes, .. } = &mut self.bases[base] else {
            panic!("not of elements")
        };
        (0..bytes.len() / dtype.size()).for_each(|i| dtype.write(bytes, i, x(i)));
    }
}
