//! The parameters of a compiled kernel, read from its PTX: what the compiler made of its text is compared with `[args]`, on
//! any machine that compiles.

use super::description::{Argument, Kind};
use crate::error::{Error, ErrorKind, Result};

/// Compares an entry point's parameters with those of the description. A text without the entry point says nothing.
///
/// # Errors
/// [`ErrorKind::Template`] when their number or a size differs.
pub fn compare(ptx: &str, family: &str, args: &[Argument]) -> Result<()> {
    let Some(sizes) = parameters(ptx, family) else { return Ok(()) };
    let wrong =
        |what: String| Err(Error::new(ErrorKind::Template, format!("the compiled kernel {what}")).subject_is(family));
    if sizes.len() != args.len() {
        return wrong(format!("has {} parameters, and [args] has {}", sizes.len(), args.len()));
    }
    for (i, (size, arg)) in sizes.into_iter().zip(args).enumerate() {
        let wanted = match &arg.kind {
            Kind::Tensor { .. } => 8,
            Kind::Number(element) => element.size(),
        };
        if size != wanted {
            let name = &arg.name;
            return wrong(format!("has {size} bytes in parameter {}, '{name}', and [args] says {wanted}", i + 1));
        }
    }
    Ok(())
}

/// The bytes of each parameter of an entry point: `.entry name( .param .u64 .ptr .align 1 name_param_0, … )`.
fn parameters(ptx: &str, entry: &str) -> Option<Vec<usize>> {
    let after = ptx.split(".entry ").skip(1).map(str::trim_start).find_map(|rest| rest.strip_prefix(entry))?;
    let Some(list) = after.trim_start().strip_prefix('(') else { return Some(Vec::new()) };
    let list = &list[..list.find(')')?];
    if list.trim().is_empty() {
        return Some(Vec::new());
    }
    list.split(',').map(parameter).collect()
}

/// The bytes of `.param .align 8 .b8 name[16]` or `.param .u32 name`.
fn parameter(text: &str) -> Option<usize> {
    let bits = |word: &str| word.strip_prefix(['.'])?.trim_start_matches(['u', 's', 'b', 'f']).parse::<usize>().ok();
    let word = text.split_whitespace().find(|w| w.starts_with('.') && bits(w).is_some())?;
    let bytes = bits(word)? / 8;
    let count = match text.split_once('[') {
        Some((_, count)) => count.trim_end().strip_suffix(']')?.trim().parse().ok()?,
        None => 1,
    };
    Some(bytes * count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::families::template::read::read;

    const PTX: &str = "\
.visible .entry other(\n)\n{\n}\n.visible .entry add_rmsnorm(\n\t.param .u64 .ptr .align 1 add_rmsnorm_param_0,\n\t\
.param .u64 add_rmsnorm_param_1,\n\t.param .u64 p2,\n\t.param .u64 p3,\n\t.param .u32 p4,\n\t.param .f32 p5\n)\n";

    fn compared(ptx: &str) -> Result<(), String> {
        let text = include_str!("../../../tests/data/templates/add_rmsnorm.toml");
        let d = read("add.toml", text).expect("is right");
        compare(ptx, "add_rmsnorm", &d.args).map_err(|e| e.to_string())
    }

    #[test]
    fn what_was_compiled_has_the_parameters_of_the_description() {
        assert_eq!(compared(PTX), Ok(()));
        assert_eq!(
            compared(&PTX.replace(",\n\t.param .f32 p5", "")).expect_err("one less"),
            "add_rmsnorm: the compiled kernel has 5 parameters, and [args] has 6"
        );
        assert_eq!(
            compared(&PTX.replace(".param .f32 p5", ".param .align 4 .b8 p5[12]")).expect_err("a struct"),
            "add_rmsnorm: the compiled kernel has 12 bytes in parameter 6, 'eps', and [args] says 4"
        );
        assert_eq!(compared("nothing"), Ok(()));
        assert_eq!(
            compared(".entry add_rmsnorm()").expect_err("none"),
            "add_rmsnorm: the compiled kernel has 0 parameters, and [args] has 6"
        );
    }
}
