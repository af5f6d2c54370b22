//! RoPE with its neighbours against the plain reference, to the bit: a norm before or after it, its gradient, a cache, fp8,
//! pairs that move. On the host device, which needs a C++ compiler; cases and what is expected of them are for any device.

mod append;
mod arguments;
mod cache;
mod data;
mod division;
mod expected;
mod faults;
mod gradient;
mod norm;
mod reference;
mod run;
mod vectors;

use ropejit::rope::Rsqrt;
use ropejit::{Direction, Engine};

pub use data::{Case, Data};
pub use run::assert_right;

/// All grids on a device, norms with its own reciprocal root.
pub fn every_grid(engine: &Engine, root: Rsqrt, reference: bool) {
    let mut cases = Vec::new();
    for direction in [Direction::Forward, Direction::Backward] {
        cases.extend(norm::grid(direction, root));
        cases.extend(norm::forms(direction, root));
    }
    cases.extend(norm::moved());
    cases.extend(norm::narrow());
    cases.extend(append::grid(root));
    cases.extend(append::latent());
    norm::serve(engine, &cases, 1000, reference);
    for (case, data) in append::too_small() {
        assert_right(engine, &case, &data);
    }
    vectors::check_all(engine);
}
