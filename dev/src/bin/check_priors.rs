//! Says which of the choices in `cache/priors/` were measured with other templates than these, or name variants that are no longer
//! offered, and how to measure them again. `make check-priors` runs it; it fails where something is stale.

use std::process::ExitCode;

use ropejit::Error;
use ropejit::jit::lock::Lock;
use ropejit::jit::render::Dialect;
use ropejit::jit::{Abilities, prior, variant};

/// Choices of GPUs that today's space does not offer, so that they serve nobody.
fn gone(lock: &Lock) -> usize {
    let measured = lock.choices().filter(|(place, _)| place.device.is_some());
    let offered = |overlap, cubins, l: &ropejit::jit::lock::Locked| {
        let can = Abilities { dialect: Dialect::Cuda, overlap, cubins };
        l.typed().is_ok_and(|(spec, class, v)| variant::space(&spec, class, l.bucket, can).contains(&v))
    };
    let capability =
        |place: &ropejit::jit::lock::Section| place.device.as_ref().map(|device| device.compute_capability);
    measured.filter(|(at, l)| ![true, false].into_iter().any(|overlap| offered(overlap, capability(at), l))).count()
}

fn main() -> Result<ExitCode, Error> {
    let mut stale = Vec::new();
    for (name, lock) in prior::files()? {
        let gpus: Vec<&str> = lock.sections().filter_map(|(p, _)| Some(p.device.as_ref()?.name())).collect();
        let (gpus, choices) = (gpus.join(", "), lock.choices().filter(|(place, _)| place.device.is_some()).count());
        let problem = match (lock.is_of(ropejit::jit::render::templates_digest()), gone(&lock)) {
            _ if choices == 0 => None,
            (true, 0) => None,
            (true, gone) => Some(format!("{gone} name variants that are no longer offered, and serve nobody")),
            (false, gone) => Some(format!(
                "measured with older templates: they only order candidates, and a first call there is tuned ({gone} name \
                 variants that are no longer offered)"
            )),
        };
        let verdict = problem.as_deref().unwrap_or("measured with these templates");
        println!("cache/priors/{name}: {choices} choices of {gpus}: {verdict}");
        if problem.is_some() {
            stale.push((name, gpus));
        }
    }
    if stale.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    println!("hint: measure again, four minutes on each GPU:");
    for (name, gpus) in stale {
        println!(
            "  make priors; then on {gpus}, in a copy of .gpu/: ./run.sh OUT priors; then copy OUT/{name} to cache/priors/"
        );
    }
    Ok(ExitCode::FAILURE)
}
