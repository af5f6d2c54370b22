//! The host device: the same templates, compiled by the system's C++ compiler. Needs a C++ compiler.

use ropejit::{DType, DeviceChoice, Engine, PositionForm, RopeSpec, Rounding, TableWidth, Tuning};

use crate::cases::{Case, Data, Order, assert_bits, assert_near, run};

pub fn engine(tuning: Tuning) -> Engine {
    Engine::builder().device(DeviceChoice::Host).in_memory().tuning(tuning).build().expect("the host is always there")
}

/// The forms that are tested on every device.
pub fn grid() -> Vec<Case> {
    let mut cases = Vec::new();
    let orders = [Order::Bshd, Order::Bhsd, Order::Packed, Order::Odd];
    let dims = [2, 64, 80, 96, 112, 128, 192, 256, 512];
    let mut n = 0;
    for dtype in DType::ALL {
        for rounding in [Rounding::Once, Rounding::PerOp] {
            for head_dim in dims {
                // Every dimension meets every order, table and position form somewhere on the grid.
                let mut spec = RopeSpec::new(dtype, head_dim, 4, [4, 1, 2][n % 3]).with_rounding(rounding);
                let width = [TableWidth::Half, TableWidth::Full][n / 2 % 2];
                spec = spec.with_table([DType::F32, dtype][n % 2], width);
                spec = spec.with_positions([PositionForm::Implicit, PositionForm::Ids32, PositionForm::Ids64][n % 3]);
                let mut case = Case::new(spec, 1 + n % 2, [1, 7, 33][n / 3 % 3]);
                case.order = orders[n % 4];
                case.in_place = n % 5 < 2;
                case.table_per_sequence = n % 7 == 0;
                cases.push(case);
                n += 1;
            }
        }
    }
    cases
}

#[test]
fn the_grid_is_bit_exact_and_near_f64() {
    let engine = engine(Tuning::Never);
    for (i, case) in grid().iter().enumerate() {
        let data = Data::new(case, i as u64);
        let (_, got) = run(&engine, case, &data).unwrap_or_else(|e| panic!("{e}\n{case:?}"));
        assert_bits(case, &got, &data.expected);
        assert_near(case, &got, &data);
    }
}
