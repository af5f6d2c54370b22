//! Results as operations of candle's, so that gradients find their way back.
//!
//! An operation of candle's has one result, and one launch turns q and k. So a launch comes first, and then an
//! operation for each result hands over what is there.

use std::sync::Mutex;

use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, CustomOp2, Error, Layout, Result, Shape, Storage, Tensor};

/// How a gradient gets back to what was turned.
pub trait Gradient: Send + Sync + 'static {
    /// The gradients of `x` and of its weight, `dy` being that of the result.
    fn of(&self, x: &Tensor, weight: Option<&Tensor>, dy: &Tensor) -> Result<(Tensor, Option<Tensor>)>;
}

/// The gradient of a sum is one number that repeats: a kernel wants heads that lie in memory.
pub fn with_whole_heads(dy: &Tensor) -> Result<Tensor> {
    if dy.stride().last().is_some_and(|stride| *stride == 1) { Ok(dy.clone()) } else { dy.contiguous() }
}

/// The result of turning `x`, and of normalising it with a weight.
pub fn attach(x: &Tensor, weight: Option<&Tensor>, result: Storage, gradient: impl Gradient) -> Result<Tensor> {
    if x.elem_count() == 0 {
        return x.contiguous(); // nothing turns, and its gradient is as empty
    }
    if !x.track_op() && !weight.is_some_and(Tensor::track_op) {
        return Ok(Tensor::from_storage(result, x.shape().clone(), BackpropOp::none(), false));
    }
    let computed = Computed { result: Mutex::new(Some(result)), gradient };
    match weight {
        None => x.apply_op1(computed),
        Some(weight) => x.apply_op2(weight, computed),
    }
}

/// A result that waits to be handed over.
struct Computed<G> {
    result: Mutex<Option<Storage>>,
    gradient: G,
}

impl<G> Computed<G> {
    fn take(&self) -> Result<Storage> {
        let result = self.result.lock().ok().and_then(|mut result| result.take());
        result.ok_or_else(|| Error::msg("a result of ropejit's was asked for twice"))
    }

    fn on_cpu(&self, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        match self.take()? {
            Storage::Cpu(result) => Ok((result, layout.shape().clone())),
            _ => Err(Error::msg("a result of ropejit's is not on the CPU")),
        }
    }

    fn on_cuda(&self, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        match self.take()? {
            Storage::Cuda(result) => Ok((result, layout.shape().clone())),
            _ => Err(Error::msg("a result of ropejit's is not on a GPU")),
        }
    }
}

impl<G: Gradient> CustomOp1 for Computed<G> {
    fn name(&self) -> &'static str {
        "ropejit"
    }

    fn cpu_fwd(&self, _: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.on_cpu(layout)
    }

    fn cuda_fwd(&self, _: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        self.on_cuda(layout)
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        self.gradient.of(x, None, dy).map(|(dx, _)| Some(dx))
    }
}

impl<G: Gradient> CustomOp2 for Computed<G> {
    fn name(&self) -> &'static str {
        "ropejit"
    }

    fn cpu_fwd(&self, _: &CpuStorage, x: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.on_cpu(x)
    }

    fn cuda_fwd(&self, _: &CudaStorage, x: &Layout, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.on_cuda(x)
    }

    fn bwd(&self, x: &Tensor, weight: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.gradient.of(x, Some(weight), dy).map(|(dx, dw)| (Some(dx), dw))
    }
}
