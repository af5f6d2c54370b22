//! The norm of a head, and the gradient of its weight, operation by operation.
//!
//! The formulas are those of the models' own modules in transformers (`Qwen3RMSNorm`, `Gemma3RMSNorm`, `Gemma3nRMSNorm`,
//! `Llama4TextL2Norm`): `x · rsqrt(mean(x²) + eps)`, in f32, times the weight. The order of the sum is PyTorch's: the mean over a contiguous row on CUDA
//! (`aten/src/ATen/native/cuda/Reduce.cuh`), where a warp adds up a row.

use crate::rope::{DType, Flavour, SumOrder};

/// Lanes of a warp.
const LANES: usize = 32;
/// Neighbours that PyTorch loads at once, each of which has a partial sum of its own.
const VECTOR: usize = 4;
/// Heads in a tile of the weight's gradient ([`weight_tiles`](crate::rope::weight_tiles)).
const TILE: usize = 32;

/// Adds up numbers in f32: products that are rounded already, in the order of a head's elements.
///
/// [`SumOrder::Torch`]: at 128 numbers or more, a multiple of four, lane `l` of 32 adds each element of its four neighbours `4l ..
/// 4l + 4` of each run of 128 to a partial sum of its own, from 0 on, then the four as `((v0 + v1) + v2) + v3`. Otherwise lane `l`
/// adds numbers `l`, `l + 32`, … from 0 on. Then lane `i` adds lane `i + n`, for `n` = 16, 8, 4, 2, 1.
///
/// [`SumOrder::Tree`]: padded with zeros to a power of two, then neighbours are added until one number is left.
pub fn sum(order: SumOrder, values: &[f32]) -> f32 {
    match order {
        SumOrder::Torch => fold(lanes(values)),
        SumOrder::Tree => tree(values.to_vec()),
    }
}

fn lanes(values: &[f32]) -> [f32; LANES] {
    let mut lanes = [0.0f32; LANES];
    if values.len() >= VECTOR * LANES && values.len().is_multiple_of(VECTOR) {
        let mut partial = [[0.0f32; VECTOR]; LANES];
        for (i, value) in values.iter().enumerate() {
            partial[i / VECTOR % LANES][i % VECTOR] += value;
        }
        for (lane, v) in lanes.iter_mut().zip(partial) {
            *lane = ((v[0] + v[1]) + v[2]) + v[3];
        }
    } else {
        for (i, value) in values.iter().enumerate() {
            lanes[i % LANES] += value;
        }
    }
    lanes
}

fn fold(mut lanes: [f32; LANES]) -> f32 {
    for n in [16, 8, 4, 2, 1] {
        for i in 0..n {
            lanes[i] += lanes[i + n];
        }
    }
    lanes[0]
}

fn tree(mut values: Vec<f32>) -> f32 {
    values.resize(values.len().next_power_of_two(), 0.0);
    while values.len() > 1 {
        values = values.chunks(2).map(|two| two[0] + two[1]).collect();
    }
    values[0]
}

/// `fl(fl(Σx² · fl(1/D)) + eps)` of a head, what the root is taken of.
pub fn mean_of_squares(order: SumOrder, x: &[f32], eps: f32) -> f32 {
    let squares: Vec<f32> = x.iter().map(|x| x * x).collect();
    sum(order, &squares) * (1.0 / x.len() as f32) + eps
}

/// The reciprocal root as [`Rsqrt::Ieee`](crate::rope::Rsqrt::Ieee) has it. The other is a GPU's own: no formula gives its bits.
pub fn root(v: f32) -> f32 {
    1.0 / v.sqrt()
}

/// `x·r` with the weight, rounded to the dtype. Without a weight (`no_weight`), `w` is not looked at.
pub fn apply_weight(flavour: Flavour, dtype: DType, x: f32, r: f32, w: f32) -> f32 {
    let u = x * r;
    match flavour {
        Flavour::WeightAfter => dtype.round(w * dtype.round(u)),
        Flavour::OnePlusWeight => dtype.round(u * (1.0 + w)),
        Flavour::WeightF32 => dtype.round(u * w),
        Flavour::NoWeight => dtype.round(u),
    }
}

/// Adds up what each head gives to the gradient of the weight ([`Backward::weight_terms`](super::Backward)), `dim` numbers a
/// head, and rounds to the dtype.
///
/// Heads are numbered `token · heads + head`, tokens through the whole batch. In a tile of 32 of them they are added one after the
/// other, from 0 on; tiles then as [`SumOrder::Tree`]. `None` is a head of a token that stays as it is: it has a number, and
/// gives nothing.
pub fn weight_gradient<T: AsRef<[f32]>>(
    dtype: DType,
    dim: usize,
    heads: impl IntoIterator<Item = Option<T>>,
) -> Vec<f32> {
    let mut tiles: Vec<Vec<f32>> = Vec::new();
    for (number, terms) in heads.into_iter().enumerate() {
        if number % TILE == 0 {
            tiles.push(vec![0.0; dim]);
        }
        let (Some(tile), Some(terms)) = (tiles.last_mut(), terms) else { continue };
        for (total, term) in tile.iter_mut().zip(terms.as_ref()) {
            *total += term;
        }
    }
    let column = |i: usize| tiles.iter().map(|tile| tile[i]).collect::<Vec<f32>>();
    (0..dim).map(|i| dtype.round(sum(SumOrder::Tree, &column(i)))).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Small rows by hand.
    #[test]
    fn orders_by_hand() {
        let (big, one) = (16_777_216.0f32, 1.0f32);
        // ((big + 1) + (1 + -big)): the tree loses both ones. Lanes of four numbers: (big + 1) + (1 + -big) as well, the other way.
        assert_eq!(sum(SumOrder::Tree, &[big, one, one, -big]), 1.0);
        assert_eq!(sum(SumOrder::Torch, &[big, one, one, -big]), (big + one) + (one - big));
        // Lane i meets lane i + 2, then neighbours meet.
        assert_eq!(sum(SumOrder::Torch, &[big, one, -big, one]), 2.0);
        assert_eq!(sum(SumOrder::Tree, &[big, one, -big, one]), 1.0);
        // 0 and 32 are of one lane, 1 and 33 of the next.
        let mut values = [0.0f32; 64];
        (values[0], values[32], values[1], values[33]) = (big, -big, one, one);
        assert_eq!(sum(SumOrder::Torch, &values), 2.0);
        assert_eq!(sum(SumOrder::Tree, &values), 0.0 + (big + one) + (-big + one));
        // 256: elements 0 and 128 are of one partial sum, 1 of its neighbour, 4 of the next lane.
        let mut values = [0.0f32; 256];
        (values[0], values[128], values[1], values[4]) = (big, -big, one, one);
        assert_eq!(sum(SumOrder::Torch, &values), 2.0);
        // 132 is a multiple of four: its last four are of lane 0. Of 130 they are of lanes 0 to 1.
        let mut values = [0.0f32; 132];
        (values[0], values[128], values[96]) = (big, -big, one);
        assert_eq!(sum(SumOrder::Torch, &values), 1.0);
        assert_eq!(sum(SumOrder::Torch, &values[..130]), (big + one) - big);
    }

    proptest! {
        #[test]
        fn sums_are_near_the_mathematics(values in prop::collection::vec(-4.0f32..4.0, 1..600)) {
            let exact: f64 = values.iter().map(|&x| f64::from(x)).sum();
            let size: f64 = values.iter().map(|&x| f64::from(x.abs())).sum();
            for order in [SumOrder::Torch, SumOrder::Tree] {
                let error = (f64::from(sum(order, &values)) - exact).abs();
                // No number takes part in more additions than there are lanes' turns, partial sums and folds: 19 + 4 + 5.
                prop_assert!(error <= 28.0 * 2f64.powi(-24) * size, "{error} of {size}");
            }
        }

        /// Small whole numbers add up exactly in any order: each is there once, in the right column.
        #[test]
        fn every_head_gives_to_the_gradient_once(heads in 0usize..2500, dim in 1usize..9, stays in any::<u64>()) {
            let terms: Vec<Vec<f32>> =
                (0..heads).map(|h| (0..dim).map(|i| ((h * 31 + i * 7) % 13) as f32 - 6.0).collect()).collect();
            let there = |h: usize| stays >> (h % 64) & 1 == 0;
            let rows = (0..heads).map(|h| there(h).then_some(&terms[h][..]));
            let got = weight_gradient(DType::F32, dim, rows);
            for (i, got) in got.iter().enumerate() {
                prop_assert_eq!(*got, (0..heads).filter(|&h| there(h)).map(|h| terms[h][i]).sum::<f32>());
            }
        }
    }
}
