use super::*;
use crate::families::template::read::read;

fn description() -> Description {
    read("add.toml", include_str!("../../../tests/data/templates/add_rmsnorm.toml")).expect("is right")
}

const TEXT: &str = include_str!("../../../tests/data/templates/add_rmsnorm.cu");

fn checked(text: &str) -> Result<OnHost, String> {
    check("add.cu", text, &description()).map_err(|e| e.to_string())
}

#[test]
fn what_is_right_waits_on_the_host() {
    assert_eq!(checked(TEXT), Ok(OnHost::Waiting));
    assert_eq!(checked(&TEXT.replace("__syncthreads();", "")), Ok(OnHost::InTurn));
    assert_eq!(checked(&TEXT.replace("THREADS)", "THREADS, 2)")), Ok(OnHost::Waiting));
}

#[test]
fn what_a_processor_lacks_is_named() {
    for (word, why) in [
        ("asm volatile(\"\");", "line 9: asm holds instructions of GPUs"),
        (
            "extern __shared__ f32 x[];",
            "line 9: extern __shared__ is memory whose size a launch says, which the host device has not",
        ),
        ("__nanosleep(1);", "line 9: __nanosleep is nothing that the host device has"),
        ("atomicInc(&x, 1);", "line 9: atomicInc is nothing that the host device has"),
    ] {
        let text = TEXT.replace("__shared__ f32 parts[PARTS];", word);
        assert_eq!(checked(&text), Ok(OnHost::No(why.into())));
    }
    let text = include_str!("../../../tests/data/templates/add_rmsnorm.toml").replace("[spec]", "host = false\n[spec]");
    let gpu_only = read("add.toml", &text).expect("is right");
    let said = check("add.cu", TEXT, &gpu_only).expect("is right");
    assert_eq!(said, OnHost::No("its description says host = false".into()));
    let offered = "atomicAdd(x, 1); __ldg(x); __shfl_xor_sync(~0u, x, 1); __builtin_expect(x, 1); __fmul_rn(x, x);";
    assert_eq!(checked(&TEXT.replace("__shared__ f32 parts[PARTS];", offered)), Ok(OnHost::Waiting));
}

#[test]
fn other_files_are_not_read() {
    for line in ["#include <cuda_fp16.h>", "  # /* x */ include \"a.h\"", "#\\\ninclude \"a.h\"", "%:include \"a.h\""] {
        let error = checked(&format!("int a;\n{line}\n{TEXT}")).expect_err(line);
        assert!(error.starts_with("add.cu:"), "{error}");
        let hint = "hint: copy what it needs into the .cu; conversions and types need no header";
        assert!(
            error.ends_with(&format!("#include reads another file, and a kernel is one flat text\n{hint}")),
            "{error}"
        );
    }
    assert!(checked(&format!("// #include <x>\n/* \n#include <y>\n*/ const char* s = \"#include\";\n{TEXT}")).is_ok());
}

#[test]
fn parameters_are_those_of_the_description() {
    let error = |from: &str, to: &str| {
        assert!(TEXT.contains(from), "{from}");
        checked(&TEXT.replace(from, to)).expect_err(to)
    };
    let none = "add.cu: has no entry point: extern \"C\" __global__ void add_rmsnorm(…)";
    assert_eq!(error("extern \"C\" ", ""), none);
    assert_eq!(error("__global__ ", ""), none);
    assert_eq!(error("\nadd_rmsnorm(", "\nadd_norm("), none);
    assert_eq!(error("weight,", "w,"), "add.cu:7: parameter 3 of add_rmsnorm is 'w', and [args] has 'weight' there");
    assert_eq!(
        error("u32 rows, f32 eps", "f32 eps, u32 rows"),
        "add.cu:8: parameter 5 of add_rmsnorm is 'eps', and [args] has 'rows' there"
    );
    assert_eq!(
        error(", f32 eps", ""),
        "add.cu:7: add_rmsnorm has 5 parameters, and [args] has 6: 'eps' is not among them"
    );
    assert_eq!(
        error("f32 eps", "f32 eps, u32 cols"),
        "add.cu:7: add_rmsnorm has 7 parameters, and [args] has 6: [args] lacks 'cols'"
    );
    assert_eq!(
        error("u32 rows", "const u32* rows"),
        "add.cu:8: parameter 5 of add_rmsnorm, 'rows', is a pointer, and [args] says u32"
    );
    assert_eq!(
        error("const DTYPE* __restrict__ x", "DTYPE x"),
        "add.cu:7: parameter 1 of add_rmsnorm, 'x', is a number, and [args] says that it is a tensor"
    );
    assert_eq!(
        error("u32 rows", "unsigned long long rows"),
        "add.cu:8: parameter 5 of add_rmsnorm, 'rows', is of type unsigned long long, and [args] says u32"
    );
    assert_eq!(
        error("u32 rows", "u32"),
        "add.cu:8: parameter 5 of add_rmsnorm is without a name, and [args] has 'rows' there"
    );
    assert!(checked(&TEXT.replace("u32 rows", "const unsigned int rows")).is_ok());
    assert!(checked(&TEXT.replace("const DTYPE* __restrict__ x", "DTYPE const x[]")).is_ok());
}

#[test]
fn a_text_that_is_too_large_is_refused() {
    assert_eq!(checked(&"a ".repeat(600_000)).expect_err("too large"), "add.cu: is larger than 1048576 bytes");
}
