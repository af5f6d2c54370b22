//! Configurations that come with the crate: the keys of the published ones that matter here.

use super::ModelConfig;
use crate::error::Result;

macro_rules! shipped {
    ($($name:literal),* $(,)?) => {
        /// Names of the configurations that come with the crate.
        pub const SHIPPED: &[&str] = &[$($name),*];

        fn text(name: &str) -> Option<&'static str> {
            match name {
                $($name => Some(include_str!(concat!("../models/", $name, ".json"))),)*
                _ => None,
            }
        }
    };
}

shipped![
    "gemma-2-9b",
    "gpt-neox-20b",
    "llama-2-7b",
    "llama-3.1-8b",
    "mistral-7b",
    "phi-3-mini",
    "qwen2.5-7b",
    "qwen3-8b",
];

impl ModelConfig {
    /// The configuration that comes with the crate under this name, one of [`SHIPPED`].
    pub fn shipped(name: &str) -> Option<Result<Self>> {
        text(name).map(Self::from_json)
    }
}
