//! Bit for bit what transformers computes on a CPU (stored by `tests/data/make_eager.py`), on any device.
//!
//! `ROPEJIT_TEST_EAGER` names another folder of cases: `make test-transformers` fills one with a grid of forms.

#![allow(unsafe_code)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use ropejit::args::{Args, Operand, PositionIds, Positions, Tables, Tensor};
use ropejit::device::Memory;
use ropejit::{Engine, Layout, PositionForm, RopeSpec, Stream};
use serde::Deserialize;

/// The line of JSON in front of the arrays.
#[derive(Deserialize)]
struct Stored {
    spec: RopeSpec,
    batch: usize,
    tokens: usize,
    rows: usize,
    head_major: bool,
    arrays: Vec<(String, usize)>,
}

fn folder() -> PathBuf {
    if let Some(folder) = std::env::var_os("ROPEJIT_TEST_EAGER") {
        return folder.into();
    }
    // Beside the sources, or beside the test's binary where that was carried to a machine without sources.
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let beside = std::env::current_exe().expect("has a path").parent().expect("in a folder").join("data");
    if sources.is_dir() { sources } else { beside }
}

/// Runs every stored case on the engine's device, out of place and in place.
pub fn check_all(engine: &Engine) {
    let mut paths: Vec<_> =
        fs_err::read_dir(folder()).expect("the data folder").map(|e| e.expect("an entry").path()).collect();
    paths.sort();
    paths.retain(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("eager_")));
    for path in &paths {
        check(engine, path, false);
        check(engine, path, true);
    }
    println!("{} cases equal transformers", paths.len());
    assert!(paths.len() >= 15, "only {} stored cases", paths.len());
}

fn check(engine: &Engine, path: &Path, in_place: bool) {
    let bytes = fs_err::read(path).expect("readable");
    let end = bytes.iter().position(|&b| b == b'\n').expect("a line of JSON");
    let Stored { spec, batch, tokens, rows, head_major, arrays } =
        serde_json::from_slice(&bytes[..end]).expect("a head");
    let mut rest = &bytes[end + 1..];
    let mut data = HashMap::new();
    for (name, len) in arrays {
        let (array, tail) = rest.split_at(len);
        rest = tail;
        data.insert(name, array);
    }
    let device = engine.device();
    let upload = |data: &[u8]| {
        let mut memory = device.alloc(data.len()).expect("allocated");
        memory.upload(0, data).expect("copied");
        memory
    };
    let inputs = [upload(data["q"]), upload(data["k"])];
    let outputs = [data["q"], data["k"]].map(|like| upload(&vec![0x5a; like.len()]));
    let (cos, sin) = (upload(data["cos"]), upload(data["sin"]));
    let ids = data.get("ids").map(|ids| upload(ids));
    let at = |m: &dyn Memory| m.address() as *mut std::ffi::c_void;
    let (dim, width) = (spec.head_dim as usize, spec.table_width() as usize);
    let operand = |which: usize, heads: u32| {
        let heads = heads as usize;
        let layout =
            if head_major { Layout::bhsd(batch, heads, tokens, dim) } else { Layout::bshd(batch, tokens, heads, dim) };
        // SAFETY: each memory holds the whole tensor and outlives the call.
        let tensor = |m: &dyn Memory| unsafe { Tensor::from_raw(at(m), spec.dtype, layout) };
        let input = tensor(inputs[which].as_ref());
        if in_place { Operand::in_place(input) } else { Operand::out_of_place(input, tensor(outputs[which].as_ref())) }
    };
    // By position one table serves all; else there is a row for every token of every sequence.
    let batch_stride = if ids.is_some() { 0 } else { rows * width };
    let args = Args {
        q: operand(0, spec.num_heads),
        k: Some(operand(1, spec.num_kv_heads)),
        // SAFETY: the tables hold that many rows.
        tables: unsafe {
            let strides = [batch_stride as i64, width as i64];
            Tables::from_raw(at(cos.as_ref()), at(sin.as_ref()), spec.table.dtype, rows, width, strides)
        },
        positions: match &ids {
            None => Positions::Offset(0),
            Some(ids) => {
                let wide = spec.positions == PositionForm::Ids64;
                let strides = [(batch * tokens) as i64, tokens as i64, 1];
                // SAFETY: three axes of numbers for all tokens.
                Positions::Ids(unsafe { PositionIds::from_raw(at(ids.as_ref()), wide, strides) })
            }
        },
        norm: None,
        append: None,
    };
    engine.rope(&spec).expect("valid").apply(Stream::DEFAULT, &args).expect("applied");
    device.synchronize().expect("ran");
    for (which, name) in ["q_out", "k_out"].into_iter().enumerate() {
        let memory = if in_place { &inputs[which] } else { &outputs[which] };
        let mut got = vec![0; data[name].len()];
        memory.download(0, &mut got).expect("copied");
        let first = (0..got.len()).find(|&i| got[i] != data[name][i]).map(|i| i / spec.dtype.size());
        assert!(first.is_none(), "{name}[{first:?}] of {} (in place: {in_place}) differs", path.display());
    }
}

#[test]
fn host_equals_transformers() {
    check_all(&crate::host::engine(ropejit::Tuning::Never));
}
