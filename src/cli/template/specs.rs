//! `--spec` and `--size`: for which values of `[spec]`, and for how large calls.

use std::fmt;

use clap::Args;
use ropejit::families::template::{OnEngine, Template, TemplateKernel};
use ropejit::{Error, ErrorKind, Result};

#[derive(Args)]
pub struct TemplateSpecArgs {
    /// A value for each key of [spec], such as hidden=4096,dtype=bf16. May be given several times.
    #[arg(long, value_name = "KEY=VALUE,...", value_parser = spec)]
    pub spec: Vec<Spec>,
}

#[derive(Args)]
pub struct TemplateSizeArgs {
    /// How large calls are: values of the number that the bucket is made of, such as rows=1,64,8192.
    #[arg(long, value_name = "NAME=N,...", value_parser = sizes)]
    pub size: Vec<Sizes>,
}

/// Keys with their values.
#[derive(Clone, Debug)]
pub struct Spec(pub Vec<(String, String)>);

/// A number of [args] with the values that it has.
#[derive(Clone, Debug)]
pub struct Sizes(String, Vec<i64>);

impl fmt::Display for Sizes {
    /// As it was typed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values: Vec<_> = self.1.iter().map(i64::to_string).collect();
        write!(f, "{}={}", self.0, values.join(","))
    }
}

fn spec(text: &str) -> Result<Spec, String> {
    let pair = |word: &str| {
        let (key, value) = word.split_once('=').ok_or_else(|| format!("'{word}' is not KEY=VALUE"))?;
        Ok((key.trim().to_owned(), value.trim().to_owned()))
    };
    text.split(',').map(pair).collect::<Result<_, _>>().map(Spec)
}

fn sizes(text: &str) -> Result<Sizes, String> {
    let (name, values) = text.split_once('=').ok_or_else(|| format!("'{text}' is not NAME=N,…"))?;
    let value = |word: &str| word.trim().parse().ok().filter(|n| *n > 0).ok_or_else(|| format!("'{word}' is no size"));
    Ok(Sizes(name.trim().to_owned(), values.split(',').map(value).collect::<Result<_, _>>()?))
}

impl TemplateSpecArgs {
    /// The specs that were named; without one, those of `[test]`.
    pub fn specs(&self, template: &Template) -> Vec<Vec<(String, String)>> {
        if self.spec.is_empty() { template.test_specs() } else { self.spec.iter().map(|s| s.0.clone()).collect() }
    }

    /// The kernels of the specs that were named; without one, those of `[test]`.
    pub fn kernels(&self, template: &Template, on: &OnEngine) -> Result<Vec<TemplateKernel>> {
        self.specs(template).iter().map(|spec| kernel(on, spec)).collect()
    }
}

impl TemplateSizeArgs {
    /// The sizes of calls that were named, as buckets count them; without one, the largest of `[test]`.
    pub fn sizes(&self, kernel: &TemplateKernel) -> Result<Vec<u64>> {
        if self.size.is_empty() {
            return Ok(vec![kernel.test_size()?]);
        }
        let of = |Sizes(name, values): &Sizes| {
            values
                .iter()
                .map(|n| kernel.size_with(name, *n).map_err(|e| typed(e, "--size")))
                .collect::<Result<Vec<_>>>()
        };
        Ok(self.size.iter().map(of).collect::<Result<Vec<_>>>()?.concat())
    }
}

/// The kernel of a spec that was typed.
pub fn kernel(on: &OnEngine, spec: &[(String, String)]) -> Result<TemplateKernel> {
    on.spec(spec.iter().map(|(key, value)| (key, value))).map_err(|e| typed(e, "--spec"))
}

/// Names an argument as it is typed.
fn typed(e: Error, option: &str) -> Error {
    match e.subject().filter(|_| e.kind() == ErrorKind::InvalidArgument) {
        Some(subject) => {
            let typed = format!("{option} {subject}");
            e.subject_is(typed)
        }
        None => e,
    }
}
