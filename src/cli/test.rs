//! `ropejit test`

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use ropejit::families::template::{Template, TestNumber, TestRun, TestTensor};
use ropejit::system::private;
use ropejit::{Engine, Error, ErrorKind, Result, Tuning};
use serde_json::{Map, Value, json};

use super::output;
use super::table::Table;
use super::template::specs::{self, TemplateSpecArgs};

/// What runs a reference, in Python.
const RUNNER: &str = include_str!("reference.py");

/// Test a kernel of your own against its reference: a Python function that computes the same with NumPy.
///
/// The kernel runs on this machine's device (the processor where there is no GPU) with the inputs of [test]. Results must
/// agree within what [test] same says, where that is { rtol, atol }, else within what is usual for the type.
#[derive(Args)]
#[command(after_help = "\
Examples:
  ropejit test add_rmsnorm.toml
  ropejit test add_rmsnorm.toml --spec hidden=4096,dtype=bf16 \\
      --python venv/bin/python")]
pub struct Test {
    /// Descriptions, each with its source and reference beside it.
    #[arg(value_name = "FILE.toml", required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    specs: TemplateSpecArgs,
    /// The Python to run the reference with; it has NumPy.
    #[arg(long, value_name = "PROGRAM", default_value = "python3")]
    python: OsString,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// How far one output is from its reference.
struct Compared {
    kernel: String,
    with: String,
    output: String,
    elements: usize,
    /// Elements that are too far off, the first of them, and its two values.
    wrong: usize,
    first: Option<(usize, f64, f64)>,
    largest: f64,
}

impl Test {
    pub fn run(self) -> Result<()> {
        let engine = Engine::builder().tuning(Tuning::Never).in_memory().build()?;
        let bar = output::spinner();
        let mut all = Vec::new();
        for file in &self.files {
            let template = Template::load(file)?;
            let Some((path, function)) = template.reference() else {
                return Err(Error::new(ErrorKind::Template, "[test]: names no reference")
                    .subject_is(file.display().to_string())
                    .hint("write reference = \"reference.py:function\" under [test], and that file beside it"));
            };
            for spec in self.specs.specs(&template) {
                bar.set_message(format!("{}: {spec:?}", file.display()));
                let kernel = specs::kernel(&engine.template(&template)?, &spec)?;
                let runs = (0..kernel.test_inputs()).map(|i| kernel.run_test_input(i)).collect::<Result<Vec<_>>>()?;
                let expected = self.references(&path, function, &spec, &runs)?;
                for (run, expected) in runs.iter().zip(expected) {
                    for (tensor, expected) in outputs(run).zip(expected) {
                        all.push(compare(&template, kernel.spec(), run, tensor, &expected));
                    }
                }
            }
        }
        drop(bar);
        self.print(&all)?;
        let wrong = all.iter().filter(|c| c.wrong > 0).count();
        if wrong == 0 {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Template, format!("outputs that are not what the reference says: {wrong}")))
    }

    /// What the reference returns for each run: its outputs in order, as numbers.
    fn references(
        &self,
        path: &Path,
        function: &str,
        spec: &[(String, String)],
        runs: &[TestRun],
    ) -> Result<Vec<Vec<Vec<f64>>>> {
        let io = |e| Error::io(&std::env::temp_dir(), "a folder for a test cannot be used", e);
        // The user's alone, whatever the umask is: Python runs what lies there.
        let folder = private::folder_in(&std::env::temp_dir(), "ropejit-test-").map_err(io)?;
        let runner = folder.path().join("runner.py");
        private::write_new(&runner, RUNNER.as_bytes()).map_err(io)?;
        let mut folders = Vec::new();
        for (i, run) in runs.iter().enumerate() {
            let folder = folder.path().join(i.to_string());
            private::new_folder(&folder).map_err(io)?;
            write(&folder, spec, run).map_err(io)?;
            folders.push(folder);
        }
        let done = Command::new(&self.python).arg(&runner).arg(path).arg(function).args(&folders).output();
        let done = done.map_err(|e| {
            let python = self.python.to_string_lossy();
            Error::new(ErrorKind::Io, "cannot be run")
                .subject_is(python)
                .caused_by(e)
                .hint("install Python 3 with NumPy, or name another with --python")
        })?;
        if !done.status.success() {
            let log = String::from_utf8_lossy(&done.stderr);
            return Err(Error::new(ErrorKind::Template, format!("the reference failed:\n{}", log.trim_end()))
                .subject_is(path.display().to_string()));
        }
        let read = |(folder, run): (&PathBuf, &TestRun)| {
            let file = |tensor: &TestTensor| {
                let bytes = std::fs::read(folder.join(format!("{}.out", tensor.name))).map_err(io)?;
                let number = |cell: &[u8]| {
                    let bytes: [u8; 8] = cell.try_into().unwrap_or_default();
                    if tensor.element.is_float() { f64::from_le_bytes(bytes) } else { i64::from_le_bytes(bytes) as f64 }
                };
                Ok(bytes.chunks_exact(8).map(number).collect())
            };
            outputs(run).map(file).collect::<Result<Vec<Vec<f64>>>>()
        };
        folders.iter().zip(runs).map(read).collect()
    }

    fn print(&self, all: &[Compared]) -> Result<()> {
        if self.json {
            let one = |c: &Compared| {
                json!({ "kernel": c.kernel, "with": c.with, "output": c.output, "elements": c.elements,
                        "wrong": c.wrong, "largest_difference": c.largest })
            };
            return output::json(&json!({ "outputs": all.iter().map(one).collect::<Vec<_>>() }));
        }
        let row = |c: &Compared| {
            let verdict = if c.wrong == 0 { "agrees".into() } else { format!("wrong: {} of {}", c.wrong, c.elements) };
            let largest = format!("{:.1e}", c.largest);
            vec![c.kernel.clone(), c.with.clone(), c.output.clone(), verdict, largest]
        };
        let header = ["kernel", "with", "output", "verdict", "largest difference"];
        Table { header: &header, rows: all.iter().map(row).collect(), numbers: 1, gives: &["with"], drops: &[] }
            .print()?;
        for c in all {
            if let Some((at, got, wanted)) = c.first {
                eprintln!("{}, {}: '{}' number {at} is {got}, the reference says {wanted}", c.kernel, c.with, c.output);
            }
        }
        Ok(())
    }
}

fn outputs(run: &TestRun) -> impl Iterator<Item = &TestTensor> {
    run.tensors.iter().filter(|t| matches!(t.role, "out" | "inout"))
}

/// Writes a call for the reference.
fn write(folder: &Path, spec: &[(String, String)], run: &TestRun) -> std::io::Result<()> {
    let tensor =
        |t: &TestTensor| json!({ "name": t.name, "role": t.role, "element": t.element.name(), "shape": t.shape });
    let numbers: Map<String, Value> = run
        .numbers
        .iter()
        .map(|(name, number)| {
            let value = match number {
                TestNumber::Integer(n) => json!(n),
                TestNumber::Float(x) => json!(x),
            };
            (name.clone(), value)
        })
        .collect();
    let value = |text: &String| text.parse::<i64>().map_or_else(|_| json!(text), |n| json!(n));
    let spec: Map<String, Value> = spec.iter().map(|(key, text)| (key.clone(), value(text))).collect();
    let tensors: Vec<Value> = run.tensors.iter().map(tensor).collect();
    let call = json!({ "tensors": tensors, "numbers": numbers, "spec": spec });
    private::write_new(&folder.join("call.json"), call.to_string().as_bytes())?;
    for tensor in run.tensors.iter().filter(|t| matches!(t.role, "in" | "inout")) {
        private::write_new(&folder.join(format!("{}.in", tensor.name)), &tensor.before)?;
    }
    Ok(())
}

fn compare(template: &Template, kernel: &str, run: &TestRun, tensor: &TestTensor, expected: &[f64]) -> Compared {
    let (rtol, atol) = template.tolerance(tensor.element);
    let (mut wrong, mut first, mut largest) = (0, None, 0.0f64);
    for (i, wanted) in expected.iter().enumerate() {
        let got = tensor.number(i);
        let difference = if got == *wanted || (got.is_nan() && wanted.is_nan()) { 0.0 } else { (got - wanted).abs() };
        // Where one of the two is NaN or infinite and the other is not, they are far apart as well.
        let near = difference.is_finite() && difference <= atol + rtol * wanted.abs();
        if !near {
            wrong += 1;
            first = first.or(Some((i, got, *wanted)));
        }
        largest = largest.max(difference);
    }
    let numbers = run.numbers.iter().map(|(name, number)| match number {
        TestNumber::Integer(n) => format!("{name} = {n}"),
        TestNumber::Float(x) => format!("{name} = {x}"),
    });
    Compared {
        kernel: kernel.to_owned(),
        with: numbers.collect::<Vec<_>>().join(", "),
        output: tensor.name.clone(),
        elements: expected.len(),
        wrong,
        first,
        largest,
    }
}
