//! Where there is no C++ compiler the plain reference serves, with the same bits: in a process of its own.

use ropejit::Tuning;
use ropejit::rope::Rsqrt;

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
    super::every_grid(&engine, Rsqrt::Ieee, true);
}
