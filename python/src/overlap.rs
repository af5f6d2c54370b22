//! Whether two tensors that are both written share an element, which would then be turned twice.

use ropejit::Layout;

/// So many pairs of slices are compared. Slices of one buffer need some ten; what needs more is taken to meet.
const STEPS: u32 = 4096;

/// Whether elements of `a` and `b` lie at one place. `gap` is how far `b` starts behind `a`, in elements, and the first `widths`
/// elements of a head of each are what is written. Slices of one packed buffer, whose heads take turns in memory, do not meet.
pub fn meet(a: &Layout, b: &Layout, gap: i64, widths: [usize; 2]) -> bool {
    // Mostly they lie apart. A layout whose reach is beyond 64 bits is refused elsewhere.
    let apart = |a: (i64, i64), b: (i64, i64)| a.1 <= b.0.saturating_add(gap) || b.1.saturating_add(gap) <= a.0;
    if a.is_empty() || b.is_empty() || a.extent().zip(b.extent()).is_none_or(|(a, b)| apart(a, b)) {
        return false;
    }
    let ((a, a_start), (b, b_start)) = (axes(a), axes(b));
    let gap = i128::from(gap) + b_start - a_start;
    any(&a, &b, gap, widths.map(|width| width as i128), &mut STEPS.clone())
}

#[derive(Clone, Copy)]
struct Axis {
    stride: i128,
    n: i128,
}

/// Batch, tokens and heads, the largest stride first, and where the lowest element lies.
fn axes(layout: &Layout) -> ([Axis; 3], i128) {
    let mut start = 0;
    let mut axes = [0, 1, 2].map(|axis| {
        let (n, stride) = (layout.shape[axis] as i128, i128::from(layout.strides[axis]));
        start += if stride < 0 { stride * (n - 1) } else { 0 };
        Axis { stride: if n > 1 { stride.abs() } else { 0 }, n }
    });
    axes.sort_unstable_by_key(|axis| -axis.stride);
    (axes, start)
}

/// From the lowest element to one past the highest.
fn reach(axes: &[Axis], width: i128) -> i128 {
    axes.iter().fold(width, |reach, axis| reach.saturating_add(axis.stride.saturating_mul(axis.n - 1)))
}

fn any(a: &[Axis], b: &[Axis], gap: i128, widths: [i128; 2], steps: &mut u32) -> bool {
    let [width_a, width_b] = widths;
    if gap >= reach(a, width_a) || -gap >= reach(b, width_b) {
        return false;
    }
    let Some(left) = steps.checked_sub(1) else { return true };
    *steps = left;
    let stride = |axes: &[Axis]| axes.first().map_or(0, |axis| axis.stride);
    let (outer_a, outer_b) = (stride(a), stride(b));
    let outer = outer_a.max(outer_b);
    if outer == 0 {
        return true; // two heads, whose ranges meet
    }
    // The axes of the largest stride are walked: of both tensors at once where it is the same, since then only the
    // difference of the two indices counts.
    let (a, a_steps) = if outer_a == outer { (&a[1..], a[0].n - 1) } else { (a, 0) };
    let (b, b_steps) = if outer_b == outer { (&b[1..], b[0].n - 1) } else { (b, 0) };
    // gap + i · outer lies between −reach(b) and reach(a).
    let first = (-a_steps).max((-reach(b, width_b) - gap).div_euclid(outer) + 1);
    let last = b_steps.min((reach(a, width_a) - gap - 1).div_euclid(outer));
    (first..=last).any(|i| any(a, b, gap + i * outer, widths, steps))
}
