//! `--for`: calls as a library makes them.

use std::path::Path;

use clap::Args;
use ropejit::jit::{Bucket, Class};
use ropejit::rope::Norm;
use ropejit::rope::library::Library;
use ropejit::{Engine, PositionForm, RopeSpec};

use super::advice::quoted;
use super::fused::root_of;
use super::prewarm_command::prewarm_command;
use super::spec::{self, Chosen, FormArgs};

/// Whose calls.
#[derive(Args, Clone, Copy, Default)]
pub struct LibraryArgs {
    /// The calls of this library, in place of the options that say how the program calls: transformers (what
    /// `ropejit.patch("transformers")` serves, the model's norms of q and k included), unsloth, flash-attn. With --backward also
    /// what gradients need.
    #[arg(
        long = "for",
        value_name = "LIBRARY",
        value_parser = spec::parse::<Library>,
        conflicts_with_all = ["rounding", "table", "table_width", "angles", "positions", "fused"]
    )]
    pub library: Option<Library>,
}

/// What a library's calls compute for one model.
pub struct Calls {
    /// The rotation alone.
    pub plain: Vec<RopeSpec>,
    /// With the model's norm of q and k in the same launch.
    pub fused: Vec<RopeSpec>,
}

impl Calls {
    /// The calls of a library for what was chosen, as they are on an engine's device.
    pub fn of(library: Library, engine: &Engine, one: &Chosen, gradients: bool) -> Self {
        let norm = one.norm.map(|flavour| Norm::new(flavour).with_rsqrt(root_of(engine)));
        let fused = norm.map(|norm| library.fused(&one.model_type, norm, &one.spec, gradients)).unwrap_or_default();
        Self { plain: library.specs(&one.model_type, &one.spec, gradients), fused }
    }

    /// All of them.
    pub fn all(self) -> Vec<RopeSpec> {
        self.plain.into_iter().chain(self.fused).collect()
    }
}

/// The name that a library is asked for by.
pub fn name(library: Library) -> &'static str {
    Library::ALL.into_iter().find(|(one, _)| *one == library).map_or("", |(_, name)| name)
}

/// The command that fills the cache for a library's calls of a model, or of what is given by numbers.
pub fn prewarm_for(library: Library, model: Option<&str>, one: &Chosen, form: &FormArgs, bucket: Bucket) -> String {
    let library = name(library);
    let Some(model) = model else {
        // What a library's calls do not take from the spec cannot stand beside --for.
        let plain = RopeSpec { mrope: None, positions: PositionForm::Implicit, ..one.spec.clone() };
        let command = prewarm_command(&plain, bucket, Class::contiguous(&plain, false, true));
        return format!("{command} --for {library}");
    };
    let dtype = form.dtype.map_or_else(String::new, |dtype| format!(" --dtype {dtype}"));
    let backward = if form.backward { " --backward" } else { "" };
    let model = quoted(Path::new(model));
    format!("ropejit prewarm --for {library} --model {model}{dtype}{backward} --tokens {}", bucket.tokens())
}
