//! Bit for bit what PyTorch's arithmetic makes of it on a CPU (stored by `tests/data/make_fused.py`), on any device that has the
//! reciprocal root of a CPU.

use std::collections::HashMap;
use std::path::Path;

use ropejit::{Direction, Engine, Layout, RopeSpec, Tuning};
use serde::Deserialize;

use super::data::{Form, View};
use super::run::run;
use super::{Case, Data, assert_right};

/// The line of JSON in front of the arrays.
#[derive(Deserialize)]
struct Stored {
    spec: RopeSpec,
    shape: [usize; 2],
    eps: f32,
    /// Blocks, and slots of each.
    cache: Option<[usize; 2]>,
    arrays: Vec<(String, usize)>,
}

type Arrays = HashMap<String, Vec<u8>>;

fn read(path: &Path) -> (Stored, Arrays) {
    let bytes = fs_err::read(path).expect("readable");
    let end = bytes.iter().position(|&b| b == b'\n').expect("a line of JSON");
    let stored: Stored = serde_json::from_slice(&bytes[..end]).expect("a head");
    let mut rest = &bytes[end + 1..];
    let mut arrays = Arrays::new();
    for (name, len) in &stored.arrays {
        let (array, tail) = rest.split_at(*len);
        rest = tail;
        arrays.insert(name.clone(), array.to_vec());
    }
    assert!(rest.is_empty(), "{}", path.display());
    (stored, arrays)
}

/// Runs every stored case on the engine's device.
pub fn check_all(engine: &Engine) {
    // Beside the sources, or beside the test's binary where that was carried to a machine without sources.
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let beside = std::env::current_exe().expect("has a path").parent().expect("in a folder").join("data");
    let folder = if sources.is_dir() { sources } else { beside };
    let mut paths: Vec<_> =
        fs_err::read_dir(folder).expect("the data folder").map(|e| e.expect("an entry").path()).collect();
    paths.retain(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("fused_")));
    paths.sort();
    let mut compared = 0;
    for path in &paths {
        let (stored, arrays) = read(path);
        for in_place in [false, true] {
            compared += check(engine, path, &stored, &arrays, Direction::Forward, in_place);
            if arrays.contains_key("q_dx") {
                compared += check(engine, path, &stored, &arrays, Direction::Backward, in_place);
            }
        }
    }
    println!("{} cases, {compared} arrays equal PyTorch", paths.len());
    assert!(paths.len() >= 19 && compared > 150, "only {} stored cases, {compared} arrays", paths.len());
}

/// Runs a case, and returns how many arrays were compared.
fn check(
    engine: &Engine,
    path: &Path,
    stored: &Stored,
    arrays: &Arrays,
    direction: Direction,
    in_place: bool,
) -> usize {
    let [batch, tokens] = stored.shape;
    let mut case = Case { in_place, eps: stored.eps, offset: 0, ..Case::new(stored.spec.clone(), batch, tokens) };
    case.spec.direction = direction;
    if let Some([blocks, block_size]) = stored.cache {
        (case.cache.blocks, case.cache.block_size, case.cache.form) = (blocks, block_size, Form::Nhd);
    }
    let mut data = Data::new(&case, 1);
    let backward = direction == Direction::Backward;
    let base = |view: Option<View>| view.map(|view| view.base);
    let mut given: Vec<(Option<usize>, String)> = Vec::new();
    let mut wanted: Vec<(Option<usize>, String)> = Vec::new();
    for (which, name) in ["q", "k"].into_iter().enumerate() {
        given.push((base(data.input[which]), if backward { format!("{name}_dy") } else { name.to_owned() }));
        given.push((data.weight[which], format!("{name}_weight")));
        wanted.push((base(data.output[which]), format!("{name}_{}", if backward { "dx" } else { "out" })));
        wanted.push((data.weight_gradient[which], format!("{name}_dw")));
        let roots = if backward { &mut given } else { &mut wanted };
        roots.push((data.rsqrt[which], format!("{name}_rsqrt")));
        if let Some(x) = &mut data.x[which] {
            let [batch, tokens, heads, dim] = x.layout.shape;
            x.layout = Layout::bshd(batch, tokens, heads, dim);
            given.push((Some(x.base), name.to_owned()));
        }
        wanted.push((base(data.cache[which]), ["k_cache", "v_cache"][which].to_owned()));
    }
    given.push((base(data.input[2]), "v".to_owned()));
    given.push((data.slots.first().copied(), "slots".to_owned()));
    for (which, name) in ["q_scale", "k_scale", "v_scale"].into_iter().enumerate() {
        given.push((data.scale[which], name.to_owned()));
    }
    given.extend([(Some(data.tables[0]), "cos".to_owned()), (Some(data.tables[1]), "sin".to_owned())]);
    for (base, name) in &given {
        let Some(base) = *base else { continue };
        let array = arrays.get(name).unwrap_or_else(|| panic!("{} has no {name}", path.display()));
        data.bases[base].bytes[..array.len()].copy_from_slice(array);
    }
    assert_right(engine, &case, &data);
    let (_, got) = run(engine, &case, &data).expect("applied");
    let mut compared = 0;
    for (base, name) in &wanted {
        // What a case has no array of, its call does not write (roots of a case whose cache is stored are not).
        let (Some(base), Some(array)) = (*base, arrays.get(name)) else { continue };
        let size = data.bases[base].number.size();
        let first = (0..array.len()).find(|&i| got[base][i] != array[i]).map(|i| i / size);
        assert!(first.is_none(), "{name}[{first:?}] of {} (in place: {in_place}) differs", path.display());
        compared += 1;
    }
    compared
}

#[test]
fn host_equals_pytorch() {
    check_all(&crate::host::engine(Tuning::Never));
}
