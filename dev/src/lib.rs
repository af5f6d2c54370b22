//! What the bench and the tests of this crate share.

use ropejit::args::{Args, Operand, Positions, Tables, Tensor};
use ropejit::{DType, Layout, Origin, Rope, RopeSpec, Stream};

/// The smallest RoPE there is: one head of two elements for q and for k.
#[must_use]
pub fn smallest() -> RopeSpec {
    RopeSpec::new(DType::F32, 2, 1, 1)
}

/// Applies [`smallest`] to one token in place, on the host device; says where the kernel came from.
///
/// # Panics
/// When it cannot be applied.
pub fn apply(rope: &Rope, q: &mut [f32; 2], k: &mut [f32; 2]) -> Origin {
    let layout = Layout::thd(1, 1, 2);
    let table = [1f32; 1];
    let in_place = |x| Operand::in_place(Tensor::host(x, layout).expect("fits"));
    let tables = Tables::host(&table, &table, 1, 1).expect("fits");
    rope.apply(Stream::DEFAULT, &Args::new(in_place(q), Some(in_place(k)), tables, Positions::Offset(0)))
        .expect("applied")
}
