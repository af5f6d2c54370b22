//! Counts what a thread allocates: the call after the first must not.

#![allow(unsafe_code)] // an allocator

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use ropejit::args::{Args, Operand, Positions, Tables, Tensor};
use ropejit::{DType, Origin, RopeSpec, Stream, Tuning};

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: hands everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A thread that is ending has no counter any more.
        let _ = COUNT.try_with(|count| count.set(count.get() + 1));
        // SAFETY: this function's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: this function's contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[test]
fn the_call_after_the_first_allocates_nothing() {
    let engine = crate::host::engine(Tuning::Never);
    let spec = RopeSpec::new(DType::F32, 8, 2, 1);
    let rope = engine.rope(&spec).expect("valid");
    let (mut q, mut k, table) = ([0f32; 48], [0f32; 24], [1f32; 12]);
    let mut apply = || {
        let args = Args {
            q: Operand::in_place(Tensor::host(&mut q, ropejit::Layout::thd(3, 2, 8)).expect("fits")),
            k: Some(Operand::in_place(Tensor::host(&mut k, ropejit::Layout::thd(3, 1, 8)).expect("fits"))),
            tables: Tables::host(&table, &table, 1, 4).expect("fits"),
            positions: Positions::Offset(0),
            norm: None,
            append: None,
        };
        rope.apply(Stream::DEFAULT, &args).expect("applied")
    };
    let before = COUNT.get();
    assert_eq!(apply(), Origin::Compiled);
    assert!(COUNT.get() > before, "the counter counts");
    let before = COUNT.get();
    for _ in 0..100 {
        assert_eq!(apply(), Origin::Memory);
    }
    assert_eq!(COUNT.get() - before, 0);
}

#[test]
fn nor_does_that_of_a_kernel_of_a_users() {
    use ropejit::families::template::{Arg, Template};
    let engine = crate::host::engine(Tuning::Never);
    let template = Template::load(crate::templates::data().join("scale.toml")).expect("is right");
    let kernel = engine.template(&template).expect("runs here").spec([("dtype", "f32")]).expect("is right");
    let (x, mut y) = ([1f32; 100], [0f32; 100]);
    let mut launch = || {
        let args = [
            Arg::host(&x, &[100]).expect("fits"),
            Arg::host_mut(&mut y, &[100]).expect("fits"),
            1.5f32.into(),
            100u32.into(),
        ];
        kernel.launch(Stream::DEFAULT, &args).expect("launched")
    };
    let before = COUNT.get();
    assert_eq!(launch(), Origin::Compiled);
    assert!(COUNT.get() > before, "the counter counts");
    let before = COUNT.get();
    for _ in 0..100 {
        assert_eq!(launch(), Origin::Memory);
    }
    assert_eq!(COUNT.get() - before, 0);
}
