//! The header in the project is what the crate makes.

#[test]
fn the_header_is_up_to_date() {
    let root = env!("CARGO_MANIFEST_DIR");
    let mut made = Vec::new();
    cbindgen::generate(root).expect("a header").write(&mut made);
    let kept = std::fs::read_to_string(format!("{root}/include/ropejit.h")).expect("the header");
    assert!(String::from_utf8(made).expect("text") == kept, "capi/include/ropejit.h is old: make capi-header");
}
