//! Values to measure with.

use crate::error::Result;
use crate::rope::{DType, PositionForm, RopeSpec};
use crate::service::device;
use crate::service::family::{Device, Memory, Throttle};

/// Bytes at most that go between host and device in one piece: half a millisecond on a slow bus.
pub const HOST_PIECE: usize = 4 << 20;
/// Bytes at most that the device copies in one piece: half a millisecond where memory moves 250 GB/s.
const DEVICE_PIECE: usize = 64 << 20;

/// Repeatable values between −2 and 2 (xorshift64, Marsaglia 2003).
pub struct Noise(u64);

impl Noise {
    /// Values of their own for each seed, which is not 0.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Fills whole elements of `bytes`.
    pub fn fill(&mut self, dtype: DType, bytes: &mut [u8]) {
        for i in 0..bytes.len() / dtype.size() {
            dtype.write(bytes, i, 4.0 * self.unit() - 2.0);
        }
    }

    /// Positive values: scales and reciprocal roots, between 1/4 and 5/4.
    pub fn positive(&mut self, len: usize) -> Vec<u8> {
        (0..len).flat_map(|_| (self.unit() + 0.25).to_ne_bytes()).collect()
    }

    fn unit(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 40) as f32 / (1u64 << 24) as f32
    }
}

/// Fills memory with random values: a block from the host, copied on over the rest by the device.
pub fn fill(
    device: &dyn Device,
    memory: &mut dyn Memory,
    dtype: DType,
    noise: &mut Noise,
    throttle: &Throttle<'_>,
) -> Result<()> {
    let mut block = vec![0; memory.bytes().min(HOST_PIECE)];
    noise.fill(dtype, &mut block);
    upload(memory, 0, &block, throttle)?;
    let memory = &*memory;
    let mut done = block.len();
    while done < memory.bytes() {
        let part = done.min(memory.bytes() - done).min(DEVICE_PIECE);
        throttle.slice(|| {
            device::copy(device, (memory, done), (memory, 0), part, device.stream())?;
            device.wait()
        })?;
        done += part;
    }
    Ok(())
}

pub fn upload(memory: &mut dyn Memory, at: usize, bytes: &[u8], throttle: &Throttle<'_>) -> Result<()> {
    bytes
        .chunks(HOST_PIECE)
        .enumerate()
        .try_for_each(|(i, piece)| throttle.slice(|| memory.upload(at + i * HOST_PIECE, piece)))
}

pub fn download(memory: &dyn Memory, at: usize, bytes: &mut [u8], throttle: &Throttle<'_>) -> Result<()> {
    bytes
        .chunks_mut(HOST_PIECE)
        .enumerate()
        .try_for_each(|(i, piece)| throttle.slice(|| memory.download(at + i * HOST_PIECE, piece)))
}

/// The bytes of what says where tokens stand; `None` where that is implicit.
pub fn position_numbers(spec: &RopeSpec, tokens: usize) -> Option<Vec<u8>> {
    let axes = if spec.mrope.is_some() { 3 } else { 1 };
    let numbers: Vec<i64> = match spec.positions {
        PositionForm::Implicit => return None,
        PositionForm::Ids32 | PositionForm::Ids64 => (0..axes).flat_map(|_| 0..tokens as i64).collect(),
        PositionForm::Offsets32 | PositionForm::Offsets64 => vec![0; 2],
        // Sequences of very different lengths.
        PositionForm::CuSeqlens | PositionForm::CuSeqlens64 => {
            [0, 1, 8, 64].into_iter().map(|part| (tokens * part / 64) as i64).collect()
        }
    };
    Some(if spec.positions.is_wide() {
        numbers.into_iter().flat_map(i64::to_ne_bytes).collect()
    } else {
        numbers.into_iter().flat_map(|n| (n as i32).to_ne_bytes()).collect()
    })
}
