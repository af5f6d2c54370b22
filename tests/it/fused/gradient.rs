//! The gradient of a norm and of its weight.

use ropejit::rope::{Flavour, Norm, Rsqrt};
use ropejit::{DType, Direction, RopeSpec, Rounding, Tuning};

use super::norm::{check, forms, grid};
use super::{Case, Data, assert_right};

#[test]
fn the_grid_is_bit_exact() {
    check(&crate::host::engine(Tuning::Never), &grid(Direction::Backward, Rsqrt::Ieee), 200);
}

#[test]
fn every_form_is_bit_exact() {
    check(&crate::host::engine(Tuning::Never), &forms(Direction::Backward, Rsqrt::Ieee), 300);
}

/// Numbers of heads around tiles of 32 and around trees of tiles.
#[test]
fn weights_are_added_up_in_one_order_for_any_number_of_heads() {
    let engine = crate::host::engine(Tuning::Never);
    let flavours = [Flavour::WeightAfter, Flavour::OnePlusWeight, Flavour::WeightF32];
    for (n, flavour) in flavours.into_iter().enumerate() {
        let norm = Norm::new(flavour).with_rsqrt(Rsqrt::Ieee);
        let mut spec = RopeSpec::new(DType::ALL[n], 8, 3, 1).with_norm(norm).with_rounding(Rounding::PerOp);
        spec.direction = Direction::Backward;
        for tokens in [1, 10, 11, 32, 33, 64, 97, 341, 342, 1025, 3000] {
            let case = Case::new(spec.clone(), 1, tokens);
            assert_right(&engine, &case, &Data::new(&case, tokens as u64));
        }
        // Rows go through the whole batch.
        let case = Case::new(spec, 5, 13);
        assert_right(&engine, &case, &Data::new(&case, 7));
    }
}
