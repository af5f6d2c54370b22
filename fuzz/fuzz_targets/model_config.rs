//! Any text as a `config.json`: an error that names a key, or a configuration whose specs are valid.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ropejit::ErrorKind;
use ropejit::rope::model::ModelConfig;

fuzz_target!(|text: &str| {
    match ModelConfig::from_json(text) {
        Err(e) => assert!(e.kind() == ErrorKind::Config && e.subject().is_some(), "{e}"),
        Ok(config) => {
            let _ = config.spec();
            for (layer, parameters) in &config.layers {
                if let Ok(spec) = config.layer_spec(layer) {
                    spec.validate().expect("a spec that is given out is valid");
                    for length in [None, Some(1), Some(4096), Some(u64::MAX)] {
                        if let Ok(found) = parameters.frequencies(length) {
                            assert!(found.inv_freq.iter().all(|f| f.is_finite()), "{layer}: {found:?}");
                        }
                    }
                }
            }
        }
    }
});
