//! Bit for bit what transformers eager computes (stored by `tests/data/make_eager.py`), on any device.

#![allow(unsafe_code)]

use std::path::Path;

use ropejit::args::{Args, Operand, Positions, Tables, Tensor};
use ropejit::device::Memory;
use ropejit::{DType, Engine, Layout, RopeSpec, Rounding, Stream, TableWidth};

/// Runs every stored case on the engine's device; returns how many.
pub fn check_all(engine: &Engine) -> usize {
    // Beside the sources, or beside the test's binary where that was carried to a machine without sources.
    let beside = std::env::current_exe().expect("has a path").parent().expect("in a folder").join("data");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let folder = if folder.is_dir() { folder } else { beside };
    let mut paths: Vec<_> =
        fs_err::read_dir(folder).expect("the data folder").map(|e| e.expect("an entry").path()).collect();
    paths.sort();
    paths.retain(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("eager_")));
    for path in &paths {
        check(engine, path);
    }
    paths.len()
}

fn check(engine: &Engine, path: &Path) {
    let bytes = fs_err::read(path).expect("readable");
    let end = bytes.iter().position(|&b| b == b'\n').expect("a line of JSON");
    let head: serde_json::Value = serde_json::from_slice(&bytes[..end]).expect("JSON");
    let number = |name: &str| head[name].as_u64().expect("a number") as usize;
    let mut rest = &bytes[end + 1..];
    // The order in the file is that of the script, which serde_json's map does not keep.
    let mut array = |name: &str| {
        let (data, tail) = rest.split_at(head["arrays"][name].as_u64().expect("a length") as usize);
        rest = tail;
        data.to_vec()
    };
    let [q, k, cos, sin, q_out, k_out] = ["q", "k", "cos", "sin", "q_out", "k_out"].map(&mut array);
    let dtype: DType = head["dtype"].as_str().expect("a dtype").parse().expect("known");
    let (batch, tokens, dim) = (number("batch"), number("tokens"), number("head_dim"));
    let (heads, kv_heads) = (number("num_heads"), number("num_kv_heads"));
    let rounding = if dtype == DType::F32 { Rounding::Once } else { Rounding::PerOp };
    let spec = RopeSpec::new(dtype, dim as u32, heads as u32, kv_heads as u32)
        .with_table(dtype, TableWidth::Full)
        .with_rounding(rounding);
    let device = engine.device();
    let upload = |data: &[u8]| {
        let memory = device.alloc(data.len()).expect("allocated");
        memory.upload(0, data).expect("copied");
        memory
    };
    let memories = [&q, &k, &cos, &sin].map(|data| upload(data));
    let at = |m: &dyn Memory| m.address() as *mut std::ffi::c_void;
    // SAFETY: each memory holds the whole tensor and outlives the call.
    let tensor = |m: &dyn Memory, h| unsafe { Tensor::from_raw(at(m), dtype, Layout::bshd(batch, tokens, h, dim)) };
    // SAFETY: the tables hold a row for every token of every sequence.
    let tables = unsafe {
        let strides = [(tokens * dim) as i64, dim as i64];
        Tables::from_raw(at(memories[2].as_ref()), at(memories[3].as_ref()), dtype, tokens, dim, strides)
    };
    let args = Args {
        q: Operand::in_place(tensor(memories[0].as_ref(), heads)),
        k: Some(Operand::in_place(tensor(memories[1].as_ref(), kv_heads))),
        tables,
        positions: Positions::Offset(0),
    };
    engine.rope(&spec).expect("valid").apply(Stream::DEFAULT, &args).expect("applied");
    device.synchronize().expect("ran");
    for (name, memory, want) in [("q", &memories[0], &q_out), ("k", &memories[1], &k_out)] {
        let mut got = vec![0; want.len()];
        memory.download(0, &mut got).expect("copied");
        assert!(&got == want, "{name} of {} differs from transformers eager", path.display());
    }
}

#[test]
fn host_equals_transformers_eager() {
    let n = check_all(&crate::host::engine(ropejit::Tuning::Never));
    assert!(n >= 6, "only {n} stored cases");
}
