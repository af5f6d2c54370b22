//! Runs a call on an engine's device, and compares all memory with what is expected.

#![allow(unsafe_code)] // tensors at raw addresses: what a library around other memory does

use std::ffi::c_void;

use ropejit::args::{
    AppendArgs, Args, CuSeqlens, Input, NormArgs, NormGradient, NumberType, Offsets, Operand, PositionIds, Positions,
    SavedRsqrt, Slots, Tables, Tensor, Vector, VectorInput,
};
use ropejit::device::Memory;
use ropejit::rope::SlotForm;
use ropejit::{DType, Engine, Origin, PositionForm, RopeSpec, Stream};

use super::data::{Case, Data, View};
use super::expected::{Expected, expected};

/// The memory of a call on a device.
struct Uploaded<'a> {
    data: &'a Data,
    memory: Vec<Box<dyn Memory>>,
}

impl Uploaded<'_> {
    fn pointer(&self, base: usize, bytes: usize) -> *mut c_void {
        (self.memory[base].address() + bytes as u64) as *mut c_void
    }

    fn tensor(&self, view: View) -> Tensor<'static> {
        let at = self.pointer(view.base, view.offset * view.dtype.size());
        // SAFETY: the memory was made for the layout and lives until the device has passed the call.
        unsafe { Tensor::from_raw(at, view.dtype, view.layout) }
    }

    fn input(&self, view: View) -> Input<'static> {
        self.tensor(view).into()
    }

    fn vector(&self, base: usize) -> Vector<'static> {
        let (number, bytes) = (self.data.bases[base].number, self.data.bases[base].bytes.len());
        // SAFETY: as above.
        unsafe { Vector::from_raw(self.pointer(base, 0), number, bytes / number.size()) }
    }

    fn numbers(&self, base: usize) -> VectorInput<'static> {
        self.vector(base).into()
    }

    fn norm(&self, case: &Case) -> Option<NormArgs<'static>> {
        let data = self.data;
        case.spec.norm?;
        let [q_weight, k_weight] = data.weight.map(|base| base.map(|base| self.numbers(base)));
        let rsqrt = data.rsqrt[0].map(|q| SavedRsqrt { q: self.vector(q), k: data.rsqrt[1].map(|k| self.vector(k)) });
        let gradient = case.is_backward().then(|| NormGradient {
            q: self.input(data.x[0].expect("there is q")),
            k: data.x[1].map(|x| self.input(x)),
            q_weight: data.weight_gradient[0].map(|base| self.vector(base)),
            k_weight: data.weight_gradient[1].map(|base| self.vector(base)),
            workspace: data.workspace.map(|base| self.vector(base)),
        });
        Some(NormArgs { eps: case.eps, q_weight, k_weight, rsqrt, gradient })
    }

    fn append(&self, case: &Case) -> Option<AppendArgs<'static>> {
        let data = self.data;
        let append = case.spec.append?;
        let slots = match append.slots {
            SlotForm::SlotMapping => Slots::Mapping(self.numbers(data.slots[0])),
            SlotForm::Pages => Slots::Pages {
                positions: self.numbers(data.slots[0]),
                batch_indices: self.numbers(data.slots[1]),
                kv_indptr: self.numbers(data.slots[2]),
                kv_indices: self.numbers(data.slots[3]),
            },
        };
        let [q_scale, k_scale, v_scale] = data.scale.map(|base| base.map(|base| self.numbers(base)));
        Some(AppendArgs {
            v: data.input[2].map(|v| self.input(v)),
            k_cache: self.tensor(data.cache[0].expect("a cache of k")),
            v_cache: data.cache[1].map(|cache| self.tensor(cache)),
            slots,
            q_scale,
            k_scale,
            v_scale,
        })
    }

    fn positions(&self, case: &Case) -> Positions<'static> {
        let wide = case.spec.positions.is_wide();
        let ids = self.pointer(self.data.ids, 0);
        match case.spec.positions {
            PositionForm::Implicit => Positions::Offset(case.offset as i64),
            PositionForm::Ids32 | PositionForm::Ids64 => {
                let strides = [(case.batch * case.tokens) as i64, case.tokens as i64, 1];
                // SAFETY: there is a number for each token of each axis.
                Positions::Ids(unsafe { PositionIds::from_raw(ids, wide, strides) })
            }
            PositionForm::CuSeqlens | PositionForm::CuSeqlens64 => {
                let (begins, sequences) = (self.pointer(self.data.cu_seqlens, 0), case.cu_seqlens.len() - 1);
                // SAFETY: there is a number for each sequence, and one more.
                let cu_seqlens = unsafe { CuSeqlens::from_raw(begins, wide, sequences) };
                // SAFETY: there is a number for each sequence.
                let offsets = case.packed_offsets.map(|wide| unsafe { Offsets::from_raw(ids, wide) });
                Positions::Packed { cu_seqlens, offsets }
            }
            // SAFETY: as above.
            _ => Positions::Offsets(unsafe { Offsets::from_raw(ids, wide) }),
        }
    }
}

/// Runs a call and returns all its memory.
pub fn run(engine: &Engine, case: &Case, data: &Data) -> ropejit::Result<(Origin, Vec<Vec<u8>>)> {
    run_as(engine, &case.spec, case, data)
}

/// Hands the arguments of a case to a spec that need not be its own.
pub fn run_as(engine: &Engine, of: &RopeSpec, case: &Case, data: &Data) -> ropejit::Result<(Origin, Vec<Vec<u8>>)> {
    let (spec, device) = (&case.spec, engine.device());
    let rope = engine.rope(of)?;
    let upload = |bytes: &[u8]| {
        let mut memory = device.alloc(bytes.len())?;
        memory.upload(0, bytes)?;
        Ok::<_, ropejit::Error>(memory)
    };
    let memory = data.bases.iter().map(|base| upload(&base.bytes)).collect::<ropejit::Result<Vec<_>>>()?;
    let uploaded = Uploaded { data, memory };
    let operand = |which: usize| {
        let input = uploaded.tensor(data.input[which].expect("there are heads"));
        match data.output[which] {
            None => Operand::read_only(input),
            Some(to) if Some(to.base) == data.input[which].map(|view| view.base) => Operand::in_place(input),
            Some(to) => Operand::out_of_place(input, uploaded.tensor(to)),
        }
    };
    let angles = case.angles.as_ref().zip(spec.angles);
    let angles = angles.map(|((p, len), mode)| engine.angles(p, mode).map(|a| (a, *len))).transpose()?;
    let [cos, sin] = data.tables.map(|table| uploaded.pointer(table, 0));
    let width = spec.table_width() as usize;
    let args = Args {
        q: operand(0),
        k: data.input[1].map(|_| operand(1)),
        tables: match &angles {
            Some((angles, len)) => angles.tables(*len)?,
            // SAFETY: the tables hold as many rows.
            None => unsafe { Tables::from_raw(cos, sin, spec.table.dtype, data.rows, width, [0, width as i64]) },
        },
        positions: uploaded.positions(case),
        norm: uploaded.norm(case),
        append: uploaded.append(case),
    };
    let origin = rope.apply(Stream::DEFAULT, &args)?;
    device.synchronize()?;
    let mut after: Vec<Vec<u8>> = data.bases.iter().map(|base| base.bytes.clone()).collect();
    for (memory, bytes) in uploaded.memory.iter().zip(&mut after) {
        memory.download(0, bytes)?;
    }
    Ok((origin, after))
}

/// Runs a case: all memory has the right bits, what is not written included, and what lies outside is reported.
pub fn assert_right(engine: &Engine, case: &Case, data: &Data) -> Origin {
    let (origin, got) = run(engine, case, data).unwrap_or_else(|e| panic!("{e}\n{} {case:?}", case.spec));
    let want = expected(case, data, &got);
    assert_bits(case, data, &got, &want.bases);
    assert_report(engine, case, &want);
    origin
}

/// Compares bit for bit; NaNs are alike, but fp8 has only one.
pub fn assert_bits(case: &Case, data: &Data, got: &[Vec<u8>], want: &[Vec<u8>]) {
    for (n, base) in data.bases.iter().enumerate().filter(|(_, base)| !base.scratch) {
        let size = base.number.size();
        for i in 0..want[n].len() / size {
            let range = i * size..(i + 1) * size;
            if got[n][range.clone()] == want[n][range.clone()] {
                continue;
            }
            let NumberType::Element(dtype) = base.number else {
                panic!("{}[{i}] has changed\n{} {case:?}", base.name, case.spec)
            };
            let (g, w) = (dtype.read(&got[n], i), dtype.read(&want[n], i));
            let bytes = (&got[n][range.clone()], &want[n][range]);
            assert!(
                g.is_nan() && w.is_nan() && dtype != DType::E4M3,
                "{}[{i}] is {g:e}, not {w:e} ({bytes:02x?})\n{} {case:?}",
                base.name,
                case.spec
            );
        }
    }
}

fn assert_report(engine: &Engine, case: &Case, want: &Expected) {
    let checked = engine.rope(&case.spec).expect("valid").check();
    let subject = checked.as_ref().err().map(|e| e.subject().unwrap_or_default().to_owned());
    let right = match subject.as_deref() {
        None => !want.position_outside && !want.slot_outside,
        Some("position_ids") => want.position_outside,
        Some("slot_mapping") => want.slot_outside,
        Some(_) => false,
    };
    assert!(right, "{checked:?}\n{} {case:?}", case.spec);
}
