//! `ropejit prewarm --template`

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use indicatif::ProgressBar;
use ropejit::families::Problem;
use ropejit::families::template::{PrewarmedTemplate, Provenance, Template};
use ropejit::{Engine, Error, Result};

use super::lock::Writer;
use super::prewarmed::{Done, Report};
use super::spec::NumberArgs;
use super::template::specs::{TemplateSizeArgs, TemplateSpecArgs};

#[derive(Args)]
pub struct TemplateArgs {
    /// Kernels of your own: descriptions, each with its source beside it.
    #[arg(
        long,
        value_name = "FILE.toml",
        num_args = 1..,
        conflicts_with_all = ["model", "tokens", "bhsd"],
        conflicts_with_all = NumberArgs::NAMES
    )]
    template: Vec<PathBuf>,
    #[command(flatten)]
    specs: TemplateSpecArgs,
    #[command(flatten)]
    sizes: TemplateSizeArgs,
}

impl TemplateArgs {
    pub fn is_empty(&self) -> bool {
        self.template.is_empty()
    }

    /// Values are of a template.
    pub fn check(&self) -> Result<()> {
        for (given, option) in [(!self.specs.spec.is_empty(), "--spec"), (!self.sizes.size.is_empty(), "--size")] {
            if given && self.is_empty() {
                return Err(
                    Error::argument(option, "is of a kernel of your own").hint("name its .toml with --template")
                );
            }
        }
        Ok(())
    }

    /// What would be prepared, each with the command that does.
    pub fn problems(&self, engine: &Engine) -> Result<Vec<(Arc<dyn Problem>, String)>> {
        let mut all = Vec::new();
        for path in &self.template {
            let template = Template::load(path)?;
            for kernel in self.specs.kernels(&template, &engine.template(&template)?)? {
                for size in self.sizes.sizes(&kernel)? {
                    let (_, spec) = kernel.spec().split_once(' ').unwrap_or_default();
                    let spec = if spec.is_empty() { String::new() } else { format!(" --spec {spec}") };
                    let sizes =
                        self.sizes.size.iter().fold(String::new(), |text, size| text + " --size " + &size.to_string());
                    let fill = format!("ropejit prewarm --template {}{spec}{sizes}", path.display());
                    all.push((kernel.problem(size)?, fill));
                }
            }
        }
        Ok(all)
    }

    pub fn fill(
        &self,
        engines: &[Engine],
        tune: bool,
        bar: &ProgressBar,
        mut writer: Option<&mut Writer>,
    ) -> Result<Report> {
        let templates = self.template.iter().map(Template::load).collect::<Result<Vec<_>>>()?;
        let mut report = Report::new(engines);
        for engine in engines {
            for template in &templates {
                for kernel in self.specs.kernels(template, &engine.template(template)?)? {
                    bar.set_message(format!("{}, {}", kernel.spec(), engine.facts().arch));
                    for done in kernel.prewarm(&self.sizes.sizes(&kernel)?, tune)? {
                        if let Some(writer) = &mut writer {
                            writer.add_template(engine, &done);
                        }
                        report.prepared.push(row(engine, template, done));
                    }
                }
            }
            report.add_stats(engine);
        }
        Ok(report)
    }
}

fn row(engine: &Engine, template: &Template, done: PrewarmedTemplate) -> Done {
    Done {
        model: done.spec.clone(),
        spec: done.spec.strip_prefix(template.family()).unwrap_or_default().trim().to_owned(),
        arch: engine.facts().arch.clone(),
        device: engine.facts().name.clone(),
        tokens: done.bucket.tokens(),
        layout: done.class,
        variant: done.config,
        tuned: done.provenance.is_tuned(),
        prior: done.provenance == Provenance::Prior,
        origin: done.origin,
    }
}
