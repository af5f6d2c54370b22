//! Writes the header that the crate's comments and types make: `make capi-header`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/include/ropejit.h");
    cbindgen::generate(env!("CARGO_MANIFEST_DIR"))?.write_to_file(root);
    Ok(())
}
