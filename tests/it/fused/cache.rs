//! The cache of a call, and where its tokens are stored.

use ropejit::DType;
use ropejit::rope::{Fp8, Layout, SlotForm};

use super::data::{Case, Data, Form, Slotting, View};
use crate::cases::Rng;

impl Data {
    pub fn add_cache(&mut self, case: &Case, rng: &mut Rng) {
        let (spec, cache) = (&case.spec, case.cache);
        let append = spec.append.expect("appends");
        let dtype = if append.cache.is_some() { DType::E4M3 } else { spec.dtype };
        let (n, s, h) = (cache.blocks, cache.block_size, spec.num_kv_heads as usize);
        let dims = [spec.k_dim() as usize, append.v_head_dim as usize];
        let [k_dim, v_dim] = dims;
        let mut shared = None;
        for (which, dim) in dims.into_iter().enumerate().filter(|(_, dim)| *dim > 0) {
            let plain = Layout::bshd(n, s, h, dim);
            let strides = |block: usize, slot: usize, head: usize| {
                plain.with_strides([block as i64, slot as i64, head as i64, 1])
            };
            let (layout, offset, len) = match cache.form {
                Form::Nhd => (plain, 0, plain.len()),
                Form::Hnd => (Layout::bhsd(n, h, s, dim), 0, plain.len()),
                Form::Two => {
                    assert_eq!(k_dim, v_dim);
                    (strides(2 * s * h * dim, h * dim, dim), which * s * h * dim, 2 * plain.len())
                }
                Form::Row => {
                    let row = k_dim + v_dim;
                    (strides(s * h * row, h * row, row), if which == 0 { v_dim } else { 0 }, n * s * h * row)
                }
                Form::Odd => {
                    let (head, slot) = (dim + 1, h * (dim + 1) + 4);
                    (strides(s * slot + 3, slot, head), 1, 1 + n * (s * slot + 3))
                }
            };
            let name = ["k_cache", "v_cache"][which];
            let base = match cache.form {
                Form::Two | Form::Row => *shared.get_or_insert_with(|| self.add_poison("cache", dtype, len)),
                _ => self.add_poison(name, dtype, len),
            };
            self.cache[which] = Some(View { base, offset, dtype, layout });
        }
        self.slots = match append.slots {
            SlotForm::SlotMapping => vec![self.add_slot_mapping(case, rng)],
            SlotForm::Pages => self.add_pages(case, rng),
        };
        let of = [append.q, append.cache, append.cache.filter(|_| v_dim > 0)];
        for (which, fp8) in of.into_iter().enumerate() {
            let heads = [spec.num_heads, spec.num_kv_heads, spec.num_kv_heads][which] as usize;
            let scales = |Fp8 { per_head, .. }| -> Vec<f32> {
                (0..if per_head { heads } else { 1 }).map(|_| 0.004 + 0.3 * rng.normal().abs()).collect()
            };
            let values = fp8.map(scales);
            self.scale[which] = values.map(|values| self.add_f32(["q_scale", "k_scale", "v_scale"][which], &values));
        }
    }

    fn add_slot_mapping(&mut self, case: &Case, rng: &mut Rng) -> usize {
        let slots = case.cache.blocks * case.cache.block_size;
        let mut numbers: Vec<i64> = (0..slots as i64).collect();
        (1..slots).rev().for_each(|i| numbers.swap(i, (rng.next() % (i as u64 + 1)) as usize));
        numbers.resize(case.batch * case.tokens, -1);
        for (i, number) in numbers.iter_mut().enumerate() {
            match case.cache.slotting {
                Slotting::Holes if i % 3 == 1 => *number = -1,
                // One whose lower half is a slot.
                Slotting::Outside if i % 3 == 1 => *number = [slots as i64, -2, 1 << 32, i64::MIN][i / 3 % 4],
                _ => {}
            }
        }
        self.add_integers("slot_mapping", &numbers, true)
    }

    /// A request a sequence; each has pages enough for its tokens, taken in no order.
    fn add_pages(&mut self, case: &Case, rng: &mut Rng) -> Vec<usize> {
        let (batch, tokens, size) = (case.batch, case.tokens, case.cache.block_size);
        let mut pages: Vec<i64> = (0..case.cache.blocks as i64).collect();
        (1..pages.len()).rev().for_each(|i| pages.swap(i, (rng.next() % (i as u64 + 1)) as usize));
        let of_request = (tokens + 2).div_ceil(size);
        pages.truncate(batch * of_request);
        let indptr: Vec<i64> = (0..=batch).map(|n| ((n * of_request) as i64).min(pages.len() as i64)).collect();
        let (mut positions, mut requests) = (Vec::new(), Vec::new());
        for i in 0..batch * tokens {
            let (mut position, mut request) = ((i % tokens + 2) as i64, (i / tokens) as i64);
            match (case.cache.slotting, i % 3) {
                (Slotting::Holes, 1) => position = -1,
                (Slotting::Outside, 1) => position = [(of_request * size) as i64, -7, i32::MAX.into()][i / 3 % 3],
                (Slotting::Outside, 2) => request = [batch as i64, -1][i / 3 % 2],
                _ => {}
            }
            positions.push(position);
            requests.push(request);
        }
        [("positions", &positions), ("batch_indices", &requests), ("kv_indptr", &indptr), ("kv_indices", &pages)]
            .map(|(name, numbers)| self.add_integers(name, numbers, false))
            .to_vec()
    }
}
