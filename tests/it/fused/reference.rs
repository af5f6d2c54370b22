//! Where there is no C++ compiler the plain reference serves, with the same bits: in a process of its own.

use ropejit::rope::Rsqrt;
use ropejit::{Direction, Origin, Tuning};

use super::append::{latent, too_small};
use super::norm::{forms, grid, moved, narrow};
use super::{Data, append, assert_right, vectors};

#[test]
fn the_reference_serves_without_a_compiler() {
    const IN_CHILD: &str = "ROPEJIT_TEST_NO_COMPILER";
    if std::env::var_os(IN_CHILD).is_none() {
        let mut child = std::process::Command::new(std::env::current_exe().expect("has a path"));
        child.args(["--exact", "fused::reference::the_reference_serves_without_a_compiler"]);
        let output = child.env(IN_CHILD, "1").env("PATH", "").env_remove("CXX").output().expect("runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        return;
    }
    let engine = crate::host::engine(Tuning::Never);
    let mut cases = Vec::new();
    for direction in [Direction::Forward, Direction::Backward] {
        cases.extend(grid(direction, Rsqrt::Ieee));
        cases.extend(forms(direction, Rsqrt::Ieee));
    }
    cases.extend(append::grid(Rsqrt::Ieee));
    cases.extend(latent());
    cases.extend(moved());
    cases.extend(narrow());
    for (n, case) in cases.iter().enumerate() {
        let origin = assert_right(&engine, case, &Data::new(case, 600 + n as u64));
        assert_eq!(origin, Origin::Reference, "{}", case.spec);
    }
    for (case, data) in too_small() {
        assert_right(&engine, &case, &data);
    }
    vectors::check_all(&engine);
}
