//! `[launch]`: the geometry, the bucket, and the compiler's options.

use super::keys::Value;
use super::{EXPRESSION, expression};
use crate::error::{Result, clip};
use crate::families::template::description::Launch;
use crate::families::template::expr::{self, Expr};
use crate::families::template::names::{Meaning, Named, Names, Section};

/// The compiler's options that may be given: none that reads a file, or says for which GPU or into what to compile.
const OPTIONS: [&str; 12] = [
    "--fmad=",
    "--ftz=",
    "--prec-div=",
    "--prec-sqrt=",
    "--use_fast_math",
    "--maxrregcount=",
    "--extra-device-vectorization",
    "--restrict",
    "--std=",
    "--define-macro=",
    "-D",
    "-lineinfo",
];

pub fn launch(value: &Value<'_>, names: &Names) -> Result<Launch> {
    const KEYS: [&str; 5] = ["grid", "block", "shared", "bucket", "options"];
    let mut table = value.table("[launch]")?;
    table.only(|key| KEYS.contains(&key), &KEYS.join(", "))?;
    let grid = axes(&table.require("grid")?, names)?;
    let block = axes(&table.require("block")?, names)?;
    let shared = match table.take("shared") {
        Some(value) => expression(&value, value.text(EXPRESSION)?, names, |named| match named.section {
            Section::Args => Err("which only a call knows; shared memory is asked for when a kernel is loaded"),
            _ => Ok(()),
        })?,
        None => expr::parse("0", names).map_err(|e| table.error(e.what))?,
    };
    let bucket_value = table.require("bucket")?;
    let bucket = expression(&bucket_value, bucket_value.text(EXPRESSION)?, names, |named| {
        match (named.section, named.meaning) {
            (Section::Tune, _) => Err("a tunable, and the bucket must not depend on one"),
            (Section::Args, Meaning::Tensor(_)) => Err("a tensor, and the bucket is of numbers"),
            _ => Ok(()),
        }
    })?;
    let mut read: Vec<u8> = bucket.reads().filter(|n| names.get(*n).section == Section::Args).collect();
    read.sort_unstable();
    read.dedup();
    let &[bucket_arg] = read.as_slice() else {
        let what = format!("reads {} numbers of [args], and should read one, which grows with the work", read.len());
        return Err(bucket_value.error(what));
    };
    let mut options = Vec::new();
    if let Some(value) = table.take("options") {
        for (value, text) in value.texts("a list of the compiler's options")? {
            if !OPTIONS
                .iter()
                .any(|o| text.strip_prefix(o).is_some_and(|rest| o.ends_with('=') || *o == "-D" || rest.is_empty()))
            {
                let what = format!("'{}' is none of the options that may be given", clip(text));
                return Err(value.error(what).hint(format!("they are {}", OPTIONS.join(", "))));
            }
            options.push(text.to_owned());
        }
    }
    Ok(Launch { grid, block, shared, bucket, bucket_arg, options })
}

fn axes(value: &Value<'_>, names: &Names) -> Result<Vec<Expr>> {
    let list = value.list("a list of one to three expressions")?;
    if list.is_empty() || list.len() > 3 {
        return Err(value.error(format!("has {} expressions, and may have 1 to 3", list.len())));
    }
    list.iter().map(|value| expression(value, value.text(EXPRESSION)?, names, known_at_a_call)).collect()
}

/// All but tensors: of what a call's layout allows, only rules may ask.
fn known_at_a_call(named: &Named) -> Result<(), &'static str> {
    match named.meaning {
        Meaning::Tensor(_) => Err("a tensor; alignments are asked for in 'where' only"),
        _ => Ok(()),
    }
}
