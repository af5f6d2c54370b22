//! For those who write a kernel: all candidates checked at once, and outputs for the inputs of `[test]`.

use std::collections::HashMap;
use std::path::PathBuf;

use rayon::prelude::*;

use super::call;
use super::description::{Allowed, Kind, Same};
use super::element::Element;
use super::handle::TemplateKernel;
use super::loaded::Template;
use super::space::WIDEST;
use super::trial::runs::Input;
use crate::device::NotCompiled;
use crate::error::{Error, ErrorKind, Result};
use crate::service::family::{Bucket, Config, Origin, Plan, Provenance, Stream, Throttle};
use crate::system::fork;

/// Specs to try at most, where the caller names none.
const MOST_SPECS: usize = 32;
/// What a key of `[spec]` that may be any number is tried with, where `[test]` says nothing.
const ANY: i64 = 4096;

/// A candidate that was looked at.
#[derive(Debug)]
pub struct Checked {
    /// Its tunables, such as `threads=256 vec=1`.
    pub config: String,
    /// What was found: whether it was run, and its output compared, or only compiled; or what is wrong with it.
    pub result: Result<bool>,
    /// It does not compile, with the log of one before it, which the error names.
    pub repeats: bool,
}

/// Says each log of the compiler once, and keeps one source that it is about.
fn say_logs_once(all: &mut [Checked]) {
    let mut first = HashMap::<String, String>::new();
    for checked in all {
        let Some(failed) = checked.result.as_ref().err().and_then(Error::detail::<NotCompiled>) else { continue };
        let Some(config) = first.get(&failed.log) else {
            first.insert(failed.log.clone(), checked.config.clone());
            continue;
        };
        if let Some(source) = &failed.source {
            let _ = std::fs::remove_file(source);
        }
        let what = format!("the kernel does not compile, with the log of '{config}'");
        (checked.result, checked.repeats) = (Err(Error::new(ErrorKind::Compile, what)), true);
    }
}

/// A tensor of a test's launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestTensor {
    /// The argument's name.
    pub name: String,
    /// `in`, `out`, `inout` or `scratch`.
    pub role: &'static str,
    /// The type of its elements.
    pub element: Element,
    /// Its dimensions.
    pub shape: Vec<u64>,
    /// Its bytes before the launch, and after it.
    pub before: Vec<u8>,
    /// Its bytes after the launch.
    pub after: Vec<u8>,
}

impl TestTensor {
    /// An element after the launch.
    pub fn number(&self, at: usize) -> f64 {
        let size = self.element.size();
        self.after.get(at * size..(at + 1) * size).map_or(f64::NAN, |bytes| super::trial::number(self.element, bytes))
    }
}

/// A number of a test's launch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum TestNumber {
    /// Of an integer type.
    Integer(i64),
    /// Of a floating-point type.
    Float(f64),
}

/// One launch on an input of `[test]`.
#[derive(Debug, Clone, PartialEq)]
pub struct TestRun {
    /// The numbers among the arguments, by name.
    pub numbers: Vec<(String, TestNumber)>,
    /// The tensors among the arguments.
    pub tensors: Vec<TestTensor>,
}

impl Template {
    /// Specs to try where nobody names one: all words, and for numbers what `[test]` says of them. At most 32.
    pub fn test_specs(&self) -> Vec<Vec<(String, String)>> {
        let d = self.description();
        let mut all: Vec<Vec<(String, String)>> = vec![Vec::new()];
        for (key, tried) in d.spec.iter().zip(&d.test.specs) {
            let values: Vec<String> = match &key.values {
                Allowed::Words(words) => words.iter().map(|w| d.names.word_text(*w).to_owned()).collect(),
                Allowed::Numbers(numbers) => numbers.iter().map(i64::to_string).collect(),
                Allowed::Any(_) if tried.is_empty() => vec![ANY.to_string()],
                Allowed::Any(_) => tried.iter().map(i64::to_string).collect(),
            };
            let with = |spec: &Vec<(String, String)>| {
                let more = |value| [spec.as_slice(), &[(key.name.clone(), value)]].concat();
                values.iter().cloned().map(more).collect::<Vec<_>>()
            };
            all = all.iter().flat_map(with).take(MOST_SPECS).collect();
        }
        all
    }

    /// The Python file and the function that compute the same, if the description names one.
    pub fn reference(&self) -> Option<(PathBuf, &str)> {
        let reference = self.description().test.reference.as_ref()?;
        Some((self.path().with_file_name(&reference.file), &reference.function))
    }

    /// How near to a reference an element must be: `|a − b| ≤ atol + rtol · |b|`, as `rtol` and `atol`. What `[test] same`
    /// says where that is such a tolerance, else what is usual for the type.
    pub fn tolerance(&self, element: Element) -> (f64, f64) {
        match (self.description().test.same, element) {
            (_, element) if !element.is_float() => (0.0, 0.0),
            (Same::Near { rtol, atol }, _) => (rtol, atol),
            (_, Element::F64) => (1e-7, 1e-7),
            (_, Element::F16) => (1e-3, 1e-3),
            (_, Element::Bf16) => (1.6e-2, 1e-3),
            _ => (1e-4, 1e-5),
        }
    }
}

impl TemplateKernel {
    /// The size of a call, as buckets count it, where the number of `[args]` that they are made of has this value.
    ///
    /// # Errors
    /// When the number is another, or the size has no value.
    pub fn size_with(&self, name: &str, value: i64) -> Result<u64> {
        let d = self.template().description();
        let bucket = &d.names.get(d.launch.bucket_arg).name;
        if name != bucket {
            let what = format!("is not what {}'s bucket is made of", d.family);
            return Err(Error::argument(name, what).hint(format!("the size of a call is that of '{bucket}'")));
        }
        let mut values = self.spec_values();
        values[usize::from(d.launch.bucket_arg)] = value;
        call::size(d, &values)
    }

    /// The largest size of `[test]`, as buckets count it; 1024 where it has none.
    pub fn test_size(&self) -> Result<u64> {
        let d = self.template().description();
        let first = d.spec.len() + d.tune.len();
        let sizes = &d.test.numbers[usize::from(d.launch.bucket_arg) - first];
        let largest = sizes.iter().fold(0.0, |a: f64, b| a.max(*b)) as i64;
        let bucket = d.names.get(d.launch.bucket_arg).name.clone();
        if largest > 0 { self.size_with(&bucket, largest) } else { Ok(1024) }
    }

    /// Compiles every candidate, and, where the device runs, compares what each writes with what the default does, on the
    /// inputs of `[test]` and of a call of this size. `told` hears of each candidate that is done.
    ///
    /// # Errors
    /// When there is no candidate, or too little memory to check in.
    pub fn check_candidates(&self, size: u64, told: impl Fn(usize, usize) + Sync) -> Result<Vec<Checked>> {
        if let Some(kernel) = self.stand_in()? {
            return kernel.check_candidates(size, told);
        }
        let (problem, _) = self.problem_of(WIDEST, Bucket::of(size))?;
        let (shared, device) = (self.engine().shared(), self.engine().device());
        let space = problem.space(device.abilities());
        let done = std::sync::atomic::AtomicUsize::new(0);
        let compile = |config: &Config| {
            let loaded = shared.kernels.obtain(problem.as_ref(), config, None);
            told(done.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1, space.len());
            loaded.map(|(loaded, _)| loaded.kernel)
        };
        let kernels: Vec<_> = fork::spread(|| space.par_iter().map(compile).collect());
        let config_text = |config: &Config| config.text().to_owned();
        if !device.runs() {
            let checked = space.iter().zip(kernels);
            let one = |(c, made): (_, Result<_>)| Checked {
                config: config_text(c),
                result: made.map(|_| false),
                repeats: false,
            };
            let mut all: Vec<_> = checked.map(one).collect();
            say_logs_once(&mut all);
            return Ok(all);
        }
        let limit = device.measuring().scratch_bytes.min(device.free_memory()? / 4);
        let throttle = Throttle::full();
        let mut trial = problem.trial(device, limit, &throttle)?;
        let loaded: Vec<_> = kernels.iter().filter_map(|k| k.as_ref().ok().cloned().flatten()).collect();
        let mut expected: Option<Vec<u8>> = None;
        let mut all = Vec::new();
        for (config, kernel) in space.iter().zip(kernels) {
            let run = || {
                let plan = Plan::new(problem.as_ref(), kernel?, config.clone(), Origin::Compiled, Provenance::Default)?;
                let outputs = trial.outputs(&plan, &throttle)?;
                match &expected {
                    Some(expected) => {
                        trial.compare(expected, &outputs).map_err(|why| Error::new(ErrorKind::Device, why))?;
                    }
                    None if all.is_empty() => expected = Some(outputs),
                    None => return Err(Error::new(ErrorKind::Device, "not compared: the default has no output")),
                }
                Ok(true)
            };
            let result = run();
            if trial.hangs() {
                // To unload them, the driver would wait for what hangs.
                for kernel in &loaded {
                    kernel.keep();
                }
            }
            all.push(Checked { config: config_text(config), result, repeats: false });
        }
        say_logs_once(&mut all);
        Ok(all)
    }

    /// How many inputs `[test]` has.
    pub fn test_inputs(&self) -> usize {
        self.template().description().test.numbers.iter().map(Vec::len).max().unwrap_or(0).max(1)
    }

    /// Launches on input number `round` of `[test]`, with the kernel that serves a call of its size.
    ///
    /// # Errors
    /// When no kernel can be had, or it cannot be launched.
    pub fn run_test_input(&self, round: usize) -> Result<TestRun> {
        if let Some(kernel) = self.stand_in()? {
            return kernel.run_test_input(round);
        }
        let problem = self.typed_problem(WIDEST, Bucket::of(1))?;
        let d = problem.d();
        let first = d.spec.len() + d.tune.len();
        let sizes = &d.test.numbers[usize::from(d.launch.bucket_arg) - first];
        let n = sizes.get(round % sizes.len().max(1)).map_or(16, |n| *n as i64);
        let device = self.engine().device();
        let mut input = Input::new(&problem, device.as_ref(), n, round)?;
        let bucket = Bucket::of(call::size(d, &input.values)?);
        let (problem_there, slots) = self.problem_of(WIDEST, bucket)?;
        let plan = self.engine().resolve(&problem_there, &slots, Stream::DEFAULT, self.engine().shared().tuning())?;
        let after = input.run(&problem, device.as_ref(), &plan)?;
        let number = |(i, arg): (usize, &super::description::Argument)| {
            let cell = input.cells[i];
            let value = match arg.kind {
                Kind::Number(Element::F64) => TestNumber::Float(f64::from_bits(cell)),
                Kind::Number(element) if element.is_float() => TestNumber::Float(f32::from_bits(cell as u32).into()),
                Kind::Number(_) => TestNumber::Integer(input.values[first + i]),
                Kind::Tensor { .. } => return None,
            };
            Some((arg.name.clone(), value))
        };
        let tensor = |region: &super::trial::regions::Region| {
            let arg = &d.args[region.arg];
            let shape = match &arg.kind {
                Kind::Tensor { shape, .. } => shape.iter().map(|e| e.eval(&input.values).unwrap_or(0) as u64).collect(),
                Kind::Number(_) => Vec::new(),
            };
            TestTensor {
                name: arg.name.clone(),
                role: region.role.name(),
                element: region.element,
                shape,
                before: input.before(region).to_vec(),
                after: after[region.at..region.at + region.len].to_vec(),
            }
        };
        Ok(TestRun {
            numbers: d.args.iter().enumerate().filter_map(number).collect(),
            tensors: input.regions.iter().map(tensor).collect(),
        })
    }
}
