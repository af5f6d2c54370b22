//! Spec and sizes from a call's tensors, for callers that have names and no order: no hash, lock or allocation.

use super::description::{Allowed, Argument, Kind};
use super::element::Element;
use super::loaded::Template;
use super::names::{ElementOf, MOST, Meaning, Section, Values};
use crate::error::{Error, Result};

/// What is given for an argument.
#[derive(Debug, Clone, Copy)]
pub enum Given<'a> {
    /// Nothing: a number that shapes say.
    Nothing,
    /// An integer.
    Integer(i64),
    /// A number that is none.
    Float(f64),
    /// A tensor, by the type of its elements and its shape.
    Tensor(Element, &'a [i64]),
}

/// What tensors say.
#[derive(Debug, Clone, Copy)]
pub struct Inferred {
    values: Values,
    spec: usize,
    first: usize,
}

impl Inferred {
    /// The values of `[spec]`, by number: equal for calls of one kernel.
    pub fn spec(&self) -> &[i64] {
        &self.values[..self.spec]
    }

    /// The value of the integer that argument number `i` is.
    pub fn number(&self, i: usize) -> i64 {
        self.values[self.first + i]
    }
}

/// What is known so far, and which argument has said it.
struct Known {
    values: Values,
    by: [Option<u8>; MOST],
}

impl Template {
    /// The arguments, in the kernel's order: name, whether it is a tensor, whether the kernel writes to it.
    pub fn arguments(&self) -> impl Iterator<Item = (&str, bool, bool)> {
        self.description().args.iter().map(|arg| match &arg.kind {
            Kind::Number(_) => (arg.name.as_str(), false, false),
            Kind::Tensor { role, .. } => (arg.name.as_str(), true, role.is_written()),
        })
    }

    /// The keys of `[spec]`.
    pub fn spec_keys(&self) -> impl Iterator<Item = &str> {
        self.description().spec.iter().map(|key| key.name.as_str())
    }

    /// The spec's values as words, for [`OnEngine::spec`](super::OnEngine::spec).
    pub fn spec_words(&self, inferred: &Inferred) -> Vec<(String, String)> {
        let d = self.description();
        let word = |(key, &value): (&super::description::SpecKey, &i64)| {
            let text = match key.values {
                Allowed::Words(_) => d.names.word_text(value).to_owned(),
                _ => value.to_string(),
            };
            (key.name.clone(), text)
        };
        d.spec.iter().zip(&inferred.values).map(word).collect()
    }

    /// What the arguments and the named values of `[spec]` say together, each list in the description's order.
    ///
    /// # Errors
    /// Naming the argument that contradicts another, or that nothing says.
    pub fn infer(&self, args: &[Given<'_>], spec: &[Option<&str>]) -> Result<Inferred> {
        let d = self.description();
        let first = d.spec.len() + d.tune.len();
        let mut known = Known { values: [0; MOST], by: [None; MOST] };
        for (at, text) in spec.iter().enumerate() {
            if let Some(text) = text {
                known.values[at] = d.spec_value(at, text)?;
                known.by[at] = Some(at as u8);
            }
        }
        for (i, given) in args.iter().enumerate() {
            if let Given::Integer(n) = given {
                (known.values[first + i], known.by[first + i]) = (*n, Some((first + i) as u8));
            }
        }
        for (i, (declared, given)) in d.args.iter().zip(args).enumerate() {
            let Kind::Tensor { element, shape, .. } = &declared.kind else {
                if matches!((&declared.kind, given), (Kind::Number(e), Given::Nothing) if e.is_float()) {
                    return Err(Error::argument(&*declared.name, "is missing"));
                }
                continue;
            };
            let Given::Tensor(of, dimensions) = given else { return Err(no_tensor(declared, given)) };
            if let ElementOf::Word(key) = element {
                self.says(&mut known, *key, of.id(), (first + i) as u8, || format!("is {of}"))?;
            }
            for (axis, (expr, n)) in shape.iter().zip(dimensions.iter()).enumerate() {
                if let Some(name) = expr.as_name() {
                    self.says(&mut known, name, *n, (first + i) as u8, || format!("has {n} in dimension {axis}"))?;
                }
            }
        }
        for (name, named) in d.names.iter() {
            let needed = match named.section {
                Section::Spec => true,
                Section::Tune => false,
                Section::Args => named.meaning == Meaning::Number,
            };
            if needed && known.by[usize::from(name)].is_none() {
                let what = "is missing, and no tensor's type or shape says it";
                return Err(Error::argument(&*named.name, what).hint(format!("give {} = … by name", named.name)));
            }
        }
        Ok(Inferred { values: known.values, spec: d.spec.len(), first })
    }

    /// An argument says the value of a name.
    fn says(&self, known: &mut Known, name: u8, value: i64, by: u8, how: impl Fn() -> String) -> Result<()> {
        let d = self.description();
        let slot = usize::from(name);
        match known.by[slot] {
            Some(_) if known.values[slot] == value => return Ok(()),
            Some(other) => {
                let names = &d.names;
                let said = match names.get(name).meaning {
                    Meaning::Word { .. } => names.word_text(known.values[slot]).to_owned(),
                    _ => known.values[slot].to_string(),
                };
                let what = if other == name {
                    format!("{}, and '{}' is {said}", how(), names.get(name).name)
                } else {
                    format!("{}, and '{}' is {said} by '{}'", how(), names.get(name).name, names.get(other).name)
                };
                return Err(Error::argument(&*names.get(by).name, what));
            }
            None => {}
        }
        if let Some(key) = d.spec.get(slot)
            && let Allowed::Words(list) | Allowed::Numbers(list) = &key.values
            && !list.contains(&value)
        {
            let what = format!("{}, and '{}' may be {}", how(), key.name, d.allowed_text(&key.values));
            return Err(Error::argument(&*d.names.get(by).name, what));
        }
        (known.values[slot], known.by[slot]) = (value, Some(by));
        Ok(())
    }
}

#[cold]
fn no_tensor(declared: &Argument, given: &Given<'_>) -> Error {
    let what = match given {
        Given::Nothing => "is missing",
        _ => "is a number, and should be a tensor",
    };
    Error::argument(&*declared.name, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn infer(args: &[Given<'_>], spec: &[Option<&str>]) -> Result<(Vec<i64>, i64), String> {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/templates/add_rmsnorm.toml");
        let template = Template::load(path).expect("is right");
        let inferred = template.infer(args, spec).map_err(|e| e.to_string())?;
        Ok((inferred.spec().to_vec(), inferred.number(4)))
    }

    #[test]
    fn tensors_say_spec_and_sizes() {
        let x = Given::Tensor(Element::Bf16, &[7, 64]);
        let weight = Given::Tensor(Element::Bf16, &[64]);
        let all = [x, x, weight, x, Given::Nothing, Given::Float(1e-6)];
        assert_eq!(infer(&all, &[None, None]), Ok((vec![Element::Bf16.id(), 64], 7)));
        assert_eq!(infer(&all, &[Some("bf16"), Some("64")]), Ok((vec![Element::Bf16.id(), 64], 7)));
        let with = |i: usize, given| {
            let mut all = all;
            all[i] = given;
            infer(&all, &[None, None]).expect_err("is refused")
        };
        let f = |shape| Given::Tensor(Element::F32, shape);
        assert_eq!(with(1, f(&[7, 64])), "residual: is f32, and 'dtype' is bf16 by 'x'");
        let b = |shape| Given::Tensor(Element::Bf16, shape);
        assert_eq!(with(1, b(&[7, 65])), "residual: has 65 in dimension 1, and 'hidden' is 64 by 'x'");
        assert_eq!(with(4, Given::Integer(8)), "x: has 7 in dimension 0, and 'rows' is 8");
        assert_eq!(with(2, Given::Nothing), "weight: is missing");
        assert_eq!(with(5, Given::Nothing), "eps: is missing");
        assert_eq!(with(2, Given::Integer(3)), "weight: is a number, and should be a tensor");
        assert_eq!(
            with(0, Given::Tensor(Element::F64, &[7, 64])),
            "x: is f64, and 'dtype' may be one of f32, f16, bf16"
        );
        assert_eq!(infer(&all, &[None, Some("65")]), Err("x: has 64 in dimension 1, and 'hidden' is 65".into()));
        let flat = Given::Tensor(Element::Bf16, &[]);
        assert_eq!(
            infer(&[flat, flat, flat, flat, Given::Nothing, Given::Float(0.0)], &[None, None]),
            Err("hidden: is missing, and no tensor's type or shape says it\nhint: give hidden = … by name".into())
        );
    }
}
