//! The architectures that kernels are compiled ahead of time for.

/// Architectures that there are cubins for. Each serves the later ones of its generation as well.
pub const ARCHS: [&str; 5] = ["sm_75", "sm_80", "sm_90", "sm_100", "sm_120"];
/// Whose PTX serves what has no cubin: the driver translates it.
pub const PTX_ARCH: &str = "compute_80";

/// Whose code serves a GPU of a compute capability: the PTX's where there is no cubin for it; `None` for a GPU that is older
/// than all that are served.
pub fn arch_for((major, minor): (u32, u32)) -> Option<&'static str> {
    let device = 10 * major + minor;
    // Systems on a chip (Xavier, Orin, Thor) run no other GPU's cubins.
    let alone = matches!(device, 72 | 87 | 101);
    let runs = |arch: &&str| {
        let number = arch.trim_start_matches("sm_").parse::<u32>().unwrap_or(u32::MAX);
        number / 10 == major && number <= device && !alone
    };
    ARCHS.into_iter().rfind(runs).or((device > 80).then_some(PTX_ARCH))
}

/// The one of [`ARCHS`] whose cubins run on a GPU of a compute capability.
pub fn cubin_arch(capability: (u32, u32)) -> Option<&'static str> {
    arch_for(capability).filter(|arch| *arch != PTX_ARCH)
}

/// Whether launches of an architecture's kernels may overlap (programmatic dependent launch).
pub fn overlaps(arch: &str) -> bool {
    arch.strip_prefix("sm_").and_then(|number| number.parse::<u32>().ok()).is_some_and(|number| number >= 90)
}
