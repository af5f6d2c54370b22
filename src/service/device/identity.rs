//! What tells one model of device from another, for timings.
//!
//! It prints as `NVIDIA H200; cc 9.0; 132 multiprocessors; L2 62914560 B; bus 6144 bit`, in keys of choices and in the
//! sections of lock files, and reads back from that. The memory's clock is not in it: drivers report it differently, or not
//! at all, so two nodes with the same GPUs would miss each other's choices. The first versions had it: their texts are
//! read, and the clock is dropped.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result, clip};

/// What a timing depends on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity {
    /// Name of the device, in one line; a MIG slice's is `NVIDIA H100 80GB HBM3 MIG 1g.10gb`.
    name: String,
    /// Compute capability, major and minor; 0.0 for a host.
    pub compute_capability: (u32, u32),
    /// Multiprocessors, or cores.
    pub multiprocessors: u32,
    /// Bytes of the last-level cache.
    pub l2_bytes: u64,
    /// Width of the memory bus in bits; 0 when unknown.
    pub memory_bus_bits: u32,
}

impl Identity {
    /// Of a device that the driver or the system gives this name. What would break a line is left out of it.
    pub fn new(
        name: &str,
        compute_capability: (u32, u32),
        multiprocessors: u32,
        l2_bytes: u64,
        memory_bus_bits: u32,
    ) -> Self {
        let apart = |c: char| c.is_whitespace() || c.is_control();
        let name = name.split(apart).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
        Self { name, compute_capability, multiprocessors, l2_bytes, memory_bus_bits }
    }

    /// Its name, with the MIG slice where it is one.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The MIG slice that it is, such as `1g.10gb`: the driver has it at the end of the name.
    pub fn mig_slice(&self) -> Option<&str> {
        self.name.rsplit_once(" MIG ").map(|(_, slice)| slice)
    }

    /// Whether it is a GPU, not a host.
    pub fn is_gpu(&self) -> bool {
        self.compute_capability.0 > 0
    }

    /// Reads an identity, and says whether a memory clock stood behind it, as the first versions wrote it.
    pub fn read(text: &str) -> Option<(Self, bool)> {
        let without = |text: &'_ str| -> Option<usize> {
            let (before, clock) = text.rsplit_once("; memory ")?;
            clock.strip_suffix(" kHz")?.parse::<u64>().ok()?;
            Some(before.len())
        };
        let (text, clock) = without(text).map_or((text, false), |end| (&text[..end], true));
        let mut parts = text.rsplitn(5, "; ");
        let mut part = |before: &str, after: &str| parts.next()?.strip_prefix(before)?.strip_suffix(after);
        let memory_bus_bits = part("bus ", " bit")?.parse().ok()?;
        let l2_bytes = part("L2 ", " B")?.parse().ok()?;
        let multiprocessors = part("", " multiprocessors")?.parse().ok()?;
        let (major, minor) = part("cc ", "")?.split_once('.')?;
        let capability = (major.parse().ok()?, minor.parse().ok()?);
        let identity = Self::new(part("", "")?, capability, multiprocessors, l2_bytes, memory_bus_bits);
        // One identity has one text.
        (identity.to_string() == text).then_some((identity, clock))
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.compute_capability;
        write!(
            f,
            "{}; cc {major}.{minor}; {} multiprocessors; L2 {} B; bus {} bit",
            self.name, self.multiprocessors, self.l2_bytes, self.memory_bus_bits
        )
    }
}

impl FromStr for Identity {
    type Err = Error;

    /// Takes what `Display` writes, and the same with a memory clock behind it.
    fn from_str(s: &str) -> Result<Self> {
        Self::read(s).map(|(identity, _)| identity).ok_or_else(|| {
            Error::argument("device", format!("'{}' is not a device's identity", clip(s))).hint(
                "an identity reads like this: NVIDIA H200; cc 9.0; 132 multiprocessors; L2 62914560 B; bus 6144 bit",
            )
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Any device, with names that drivers would never give.
    pub fn identities() -> impl Strategy<Value = Identity> {
        let odd = prop::sample::select(vec!["a; cc 1.0", "A100 MIG 1g.5gb", "x; memory 5 kHz", "]: [", ""]);
        let name = prop_oneof!["\\PC{0,40}", odd.prop_map(String::from)];
        (name, any::<(u32, u32)>(), any::<u32>(), any::<u64>(), any::<u32>())
            .prop_map(|(name, capability, n, l2, bus)| Identity::new(&name, capability, n, l2, bus))
    }

    proptest! {
        #[test]
        fn an_identity_reads_back_with_and_without_a_clock(identity in identities(), khz in any::<u32>()) {
            let text = identity.to_string();
            prop_assert_eq!(Identity::read(&text), Some((identity.clone(), false)));
            prop_assert_eq!(Identity::read(&format!("{text}; memory {khz} kHz")), Some((identity, true)));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,80}", at in 0usize..90, identity in identities()) {
            let _ = text.parse::<Identity>();
            let mut near = identity.to_string();
            let at = (0..=at.min(near.len())).rev().find(|&i| near.is_char_boundary(i)).unwrap_or(0);
            near.insert_str(at, &text);
            if let Some((read, false)) = Identity::read(&near) {
                prop_assert_eq!(read.to_string(), near);
            }
        }
    }

    #[test]
    fn a_slice_of_a_gpu_is_another_device() {
        let of = |name: &str| Identity::new(name, (9, 0), 16, 1 << 20, 5120);
        let slice = of("NVIDIA H100 80GB HBM3 MIG 1g.10gb");
        assert_eq!((slice.mig_slice(), of("NVIDIA H200").mig_slice()), (Some("1g.10gb"), None));
        assert_ne!(slice, of("NVIDIA H100 80GB HBM3"));
        assert_ne!(slice, of("NVIDIA H100 80GB HBM3 MIG 2g.20gb"));
        assert_eq!(of(" a\tname  of\nparts "), of("a name of parts"));
    }

    #[test]
    fn other_texts_are_refused() {
        let good = "NVIDIA H200; cc 9.0; 132 multiprocessors; L2 62914560 B; bus 6144 bit";
        assert!(good.parse::<Identity>().is_ok());
        for (from, to) in
            [("cc 9.0", "cc 9"), ("132", "0132"), (" B", ""), ("bit", "bits"), ("; cc", " ; cc"), ("L2", "l2")]
        {
            let wrong = good.replace(from, to);
            let e = wrong.parse::<Identity>().expect_err(&wrong);
            assert!(e.advice().is_some_and(|hint| hint.contains("cc 9.0")), "{e}");
        }
        assert!(format!("{good}; memory fast kHz").parse::<Identity>().is_err());
        assert!("sm_90".parse::<Identity>().is_err());
    }
}
