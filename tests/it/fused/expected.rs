//! What a call has to leave, byte for byte, by the plain reference.

use ropejit::rope::reference::{self, Place};
use ropejit::rope::{Fp8, Rsqrt, SlotForm};
use ropejit::{DType, PositionForm};

use super::data::{Case, Data, View};

/// All bases after the call, and what is reported.
pub struct Expected {
    pub bases: Vec<Vec<u8>>,
    pub position_outside: bool,
    pub slot_outside: bool,
}

/// Where a token stands: cos and sin of its pairs; none where it stays as it is.
fn angles(case: &Case, data: &Data, b: usize, s: usize, outside: &mut bool) -> Option<Vec<(f32, f32)>> {
    let spec = &case.spec;
    let sequence = case.cu_seqlens.windows(2).position(|w| (w[0]..w[1]).contains(&(s as i64)));
    if spec.positions.is_packed() && sequence.is_none() {
        return None;
    }
    let id = |at: usize| integer(data, data.ids, at, case.wide_ids());
    let position = |axis: usize| match spec.positions {
        PositionForm::Implicit => (case.offset + s) as i64,
        PositionForm::Offsets32 | PositionForm::Offsets64 => id(b) + s as i64,
        PositionForm::CuSeqlens | PositionForm::CuSeqlens64 => {
            let n = sequence.expect("found above");
            (if case.packed_offsets.is_some() { id(n) } else { 0 }) + s as i64 - case.cu_seqlens[n]
        }
        _ => id((axis * case.batch + b) * case.tokens + s),
    };
    let axes = if spec.mrope.is_some() { 3 } else { 1 };
    let row = |axis| usize::try_from(position(axis)).ok().filter(|&p| p < data.rows);
    let inside = (0..axes).all(|axis| row(axis).is_some());
    *outside |= !inside;
    let width = spec.table_width() as usize;
    let of_pair = |pair: usize| {
        let row = row(spec.mrope.map_or(0, |m| m.axis(pair as u32))).filter(|_| inside);
        let read = |table: usize, row: usize| spec.table.dtype.read(&data.bases[table].bytes, row * width + pair);
        row.map_or((f32::NAN, f32::NAN), |row| (read(data.tables[0], row), read(data.tables[1], row)))
    };
    Some((0..spec.rotary_dim as usize / 2).map(of_pair).collect())
}

fn integer(data: &Data, base: usize, at: usize, wide: bool) -> i64 {
    let bytes = &data.bases[base].bytes;
    if wide {
        i64::from_ne_bytes(bytes[8 * at..8 * at + 8].try_into().expect("eight"))
    } else {
        i32::from_ne_bytes(bytes[4 * at..4 * at + 4].try_into().expect("four")).into()
    }
}

fn place(case: &Case, data: &Data, token: usize) -> Place {
    let Some(append) = case.spec.append else { return Place::Nowhere };
    let (blocks, block_size) = (case.cache.blocks as u32, case.cache.block_size as u32);
    if append.slots == SlotForm::SlotMapping {
        return reference::slot_of(integer(data, data.slots[0], token, true), blocks, block_size);
    }
    let narrow = |which: usize, at: usize| integer(data, data.slots[which], at, false) as i32;
    let counts = [2, 3].map(|which: usize| (data.bases[data.slots[which]].bytes.len() / 4) as u32);
    reference::slot_in_pages(
        narrow(0, token),
        narrow(1, token),
        [counts[0] - 1, counts[1]],
        |n| narrow(2, n as usize),
        |n| narrow(3, n as usize),
        [blocks, block_size],
    )
}

/// Reads a head of `dim` elements from what was there before the call.
fn head(data: &Data, view: View, at: [usize; 3]) -> Vec<f32> {
    let bytes = &data.bases[view.base].bytes;
    (0..view.layout.shape[3]).map(|i| view.dtype.read(bytes, view.at(at, i))).collect()
}

fn elements(data: &Data, base: Option<usize>, dtype: DType) -> Vec<f32> {
    let bytes = base.map_or(&[][..], |base| &data.bases[base].bytes);
    (0..bytes.len() / dtype.size()).map(|i| dtype.read(bytes, i)).collect()
}

/// Stores a head: values of the dtype, or as fp8.
fn store(to: &mut [Vec<u8>], view: View, at: [usize; 3], values: &[f32], fp8: Option<(Fp8, f32)>) {
    for (i, &x) in values.iter().enumerate() {
        let index = view.at(at, i);
        match fp8 {
            None => view.dtype.write(&mut to[view.base], index, x),
            Some((how, scale)) => to[view.base][index] = reference::fp8(how, x, scale),
        }
    }
}

/// `saved`: the bases after the call, whose reciprocal roots are a GPU's own ([`Rsqrt::Approx`]).
pub fn expected(case: &Case, data: &Data, saved: &[Vec<u8>]) -> Expected {
    let spec = &case.spec;
    let mut bases: Vec<Vec<u8>> = data.bases.iter().map(|base| base.bytes.clone()).collect();
    let (mut position_outside, mut slot_outside) = (false, false);
    let append = spec.append;
    let scale = |which: usize, fp8: Option<Fp8>, head: usize| {
        let fp8 = fp8?;
        Some((fp8, elements(data, data.scale[which], DType::F32)[if fp8.per_head { head } else { 0 }]))
    };
    let weights = data.weight.map(|weight| elements(data, weight, spec.dtype));
    let mut terms: [Vec<Option<Vec<f32>>>; 2] = [Vec::new(), Vec::new()];
    for (b, s) in (0..case.batch).flat_map(|b| (0..case.tokens).map(move |s| (b, s))) {
        let token = b * case.tokens + s;
        let angles = angles(case, data, b, s, &mut position_outside);
        let place = place(case, data, token);
        slot_outside |= place == Place::Outside;
        for (which, heads) in [spec.num_heads, spec.num_kv_heads].into_iter().enumerate() {
            for h in 0..heads as usize {
                let view = data.input[which].expect("there are heads");
                let given = head(data, view, [b, s, h]);
                let row = token * heads as usize + h;
                let y = if let Some(angles) = &angles {
                    if case.is_backward()
                        && let Some(norm) = spec.norm
                    {
                        let x = head(data, data.x[which].expect("backward"), [b, s, h]);
                        let r = elements(data, data.rsqrt[which], DType::F32)[row];
                        let made = reference::backward(spec, norm, &given, &x, &weights[which], r, angles);
                        terms[which].push(Some(made.weight_terms));
                        made.dx
                    } else {
                        let root = |v: f32| match (spec.norm.map(|norm| norm.rsqrt), data.rsqrt[which]) {
                            (Some(Rsqrt::Approx), Some(base)) => near_root(v, DType::F32.read(&saved[base], row)),
                            _ => reference::root(v),
                        };
                        let made = reference::forward(spec, &given, &weights[which], case.eps, root, angles);
                        if let (Some(base), Some(r)) = (data.rsqrt[which], made.rsqrt) {
                            DType::F32.write(&mut bases[base], row, r);
                        }
                        made.y
                    }
                } else {
                    terms[which].push(None);
                    given
                };
                if let Some(to) = data.output[which] {
                    let fp8 = scale(0, append.and_then(|append| append.q), h);
                    store(&mut bases, to, [b, s, h], &y, fp8);
                } else if let Place::At { block, slot } = place {
                    let cache = data.cache[0].expect("appends");
                    let fp8 = scale(1, append.and_then(|append| append.cache), h);
                    store(&mut bases, cache, [block as usize, slot as usize, h], &y, fp8);
                }
            }
        }
        if let (Place::At { block, slot }, Some(cache), Some(v)) = (place, data.cache[1], data.input[2]) {
            for h in 0..spec.num_kv_heads as usize {
                let fp8 = scale(2, append.and_then(|append| append.cache), h);
                let values = head(data, v, [b, s, h]);
                store(&mut bases, cache, [block as usize, slot as usize, h], &values, fp8);
            }
        }
    }
    for (terms, base) in terms.iter().zip(data.weight_gradient) {
        let Some(base) = base else { continue };
        let sums = reference::weight_gradient(spec.dtype, spec.head_dim as usize, terms.iter().map(Option::as_ref));
        sums.iter().enumerate().for_each(|(i, &x)| spec.dtype.write(&mut bases[base], i, x));
    }
    Expected { bases, position_outside, slot_outside }
}

/// A GPU's reciprocal root, which must be within 2 ulp of the right one (PTX ISA, `rsqrt.approx.f32`: 2^-22.9).
fn near_root(v: f32, saved: f32) -> f32 {
    let right = 1.0 / f64::from(v).sqrt();
    let off = (f64::from(saved) - right).abs() / right;
    assert!(off.is_nan() || off <= 2f64.powf(-22.9), "the root of {v} is saved as {saved}");
    saved
}
