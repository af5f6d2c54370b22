//! One launch on the inputs of `[test]`, with all that went in and came out: for who compares it with something else.

use super::noise::{Filling, Noise};
use super::regions::{self, Region};
use super::{HOST_PIECE, numbers};
use crate::error::Result;
use crate::families::template::call::{self, Cells};
use crate::families::template::description::Role;
use crate::families::template::names::Values;
use crate::families::template::problem::Problem;
use crate::service::family::{Device, Memory, Plan};

/// An input: the values of numbers, and tensors that are filled.
pub struct Input {
    pub values: Values,
    pub cells: Cells,
    pub regions: Vec<Region>,
    image: Vec<u8>,
    memory: Box<dyn Memory>,
}

impl Input {
    /// Input number `round` of `[test]`, where the bucket's argument is `n`.
    pub fn new(p: &Problem, device: &dyn Device, n: i64, round: usize) -> Result<Self> {
        let (values, mut cells) = numbers(p, n, round);
        let (_, bytes) = regions::place(p.d(), &values, p.aligned(), (0, 0), |_| 512, 0)?;
        let memory = device.alloc(bytes + 512)?;
        let start = (memory.address(), 0);
        let (regions, end) = regions::place(p.d(), &values, p.aligned(), start, |_| 512, 0)?;
        // What is not filled becomes NaN, or minus one.
        let mut image = vec![0xff; end];
        for region in &regions {
            cells[region.arg] = memory.address() + region.at as u64;
            let tensor = &mut image[region.at..region.at + region.len];
            match &p.d().test.fills[region.arg] {
                Some(fill) => {
                    let filling = Filling::of(fill, region.element, &values, p.name(region.arg))?;
                    filling.fill(
                        region.element,
                        &mut Noise::new(1 + region.arg as u64 + ((round as u64) << 8)),
                        tensor,
                    );
                }
                None if region.role == Role::Scratch => tensor.fill(0),
                None => {}
            }
        }
        Ok(Self { values, cells, regions, image, memory })
    }

    /// The bytes of a tensor before the launch.
    pub fn before(&self, region: &Region) -> &[u8] {
        &self.image[region.at..region.at + region.len]
    }

    /// Launches a plan, waits, and returns what the memory holds then.
    pub fn run(&mut self, p: &Problem, device: &dyn Device, plan: &Plan) -> Result<Vec<u8>> {
        for (i, piece) in self.image.chunks(HOST_PIECE).enumerate() {
            self.memory.upload(i * HOST_PIECE, piece)?;
        }
        let mut values = self.values;
        p.d().assign(&mut values, &plan.attrs.numbers);
        if let Some(geometry) = call::geometry(p.d(), &values, plan.attrs.shared)? {
            call::launch(plan, device.stream(), &geometry, &self.cells)?;
        }
        device.wait()?;
        let mut after = vec![0; self.image.len()];
        for (i, piece) in after.chunks_mut(HOST_PIECE).enumerate() {
            self.memory.download(i * HOST_PIECE, piece)?;
        }
        Ok(after)
    }
}
