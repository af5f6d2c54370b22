//! The commands that errors print, through the parser that reads what people type.

use clap::Parser as _;
use proptest::prelude::*;
use ropejit::RopeSpec;
use ropejit::families::rope::prepared_classes;
use ropejit::jit::{Bucket, Class};

use super::prewarm_command::prewarm_command;
use super::{Cli, Command};
use crate::families::rope::text::tests::classes;
use crate::rope::text::tests::specs;

/// What a command prepares: specs, token counts, classes.
fn prepares(command: &str) -> (Vec<RopeSpec>, Vec<Bucket>, Vec<Class>) {
    let cli = Cli::try_parse_from(command.split(' ')).unwrap_or_else(|e| panic!("{command}: {e}"));
    let Command::Prewarm(prewarm) = cli.command else { panic!("no prewarm: {command}") };
    let specs: Vec<RopeSpec> =
        prewarm.chosen().unwrap_or_else(|e| panic!("{command}: {e}")).into_iter().map(|chosen| chosen.spec).collect();
    let buckets = prewarm.tokens.iter().map(|&tokens| Bucket::of(tokens)).collect();
    let classes = match &prewarm.layout[..] {
        [] => prepared_classes(&specs[0], prewarm.bhsd),
        named => named.to_vec(),
    };
    (specs, buckets, classes)
}

/// A class that calls of a spec can be of, nearest to any.
fn possible(spec: &RopeSpec, class: Class) -> Class {
    let least = |word: u8, size: usize| word.max(size as u8);
    Class {
        word: least(class.word, spec.dtype.size()),
        table_word: match class.table_word {
            0 if spec.angles.is_some() => 0,
            word => least(word.max(2), spec.table.dtype.size()),
        },
        copy_rest: class.copy_rest && spec.rotary_dim < spec.head_dim,
        ..class
    }
}

proptest! {
    /// Followed as it stands, a hint prepares the very call that failed.
    #[test]
    fn a_hint_prepares_the_call_that_failed(spec in specs(), class in classes(), bucket in 0u32..25) {
        let (class, bucket) = (possible(&spec, class), Bucket::of(1 << bucket));
        prop_assert!(class.check(&spec).is_ok(), "{class}");
        for class in [class, Class::contiguous(&spec, class.head_major, class.copy_rest)] {
            let command = prewarm_command(&spec, bucket, class);
            let (specs, buckets, classes) = prepares(&command);
            prop_assert_eq!((&specs[..], &buckets[..]), (&[spec.clone()][..], &[bucket][..]), "{}", command);
            prop_assert!(classes.contains(&class), "{} is not prepared by {}", class, command);
        }
    }

    #[test]
    fn only_classes_that_a_call_can_be_of_are_prepared(spec in specs(), class in classes()) {
        let fits = class == possible(&spec, class);
        prop_assert_eq!(class.check(&spec).is_ok(), fits, "{} of {}", class, spec);
    }
}
