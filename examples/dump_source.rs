//! temporary
use ropejit::RopeSpec;
use ropejit::jit::{
    Class, Variant,
    render::{Dialect, render},
};
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let spec: RopeSpec = a[2].parse().unwrap();
    let class: Class = a[3].parse().unwrap();
    let v: Variant = a[4].parse().unwrap();
    let d = if a[1] == "cuda" { Dialect::Cuda } else { Dialect::Host };
    print!("{}", render(d, &spec, class, v));
}
