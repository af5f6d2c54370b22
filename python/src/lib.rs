//! The native part of the Python package: from tensors of a Python library to launches of [`ropejit`].
//!
//! `functions` is what Python calls, `objects` what it passes; `drop_in` stands for functions of models. `dlpack` and `torch`
//! say what a tensor is, `call` checks and launches, `overlap` tells whether q and k share elements, `engines` keeps one engine a device, `service` is all that is
//! not a rotation, `template` has kernels of the user's own. `unsafe` is in `dlpack`, `torch`, `call` and `template`.

mod call;
mod dlpack;
mod drop_in;
mod engines;
mod errors;
mod foreign;
mod functions;
mod log;
mod objects;
mod overlap;
mod service;
mod template;
mod torch;

use pyo3::prelude::*;

/// See `ropejit`.
#[pymodule]
fn _ropejit(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("RopejitError", module.py().get_type::<errors::RopejitError>())?;
    module.add("NotCachedError", module.py().get_type::<errors::NotCachedError>())?;
    module.add_function(wrap_pyfunction!(functions::apply, module)?)?;
    module.add_function(wrap_pyfunction!(functions::rotate_plain, module)?)?;
    module.add_function(wrap_pyfunction!(drop_in::drop_in, module)?)?;
    module.add_function(wrap_pyfunction!(service::prewarm, module)?)?;
    module.add_function(wrap_pyfunction!(service::read_config, module)?)?;
    module.add_function(wrap_pyfunction!(service::shipped_configurations, module)?)?;
    module.add_function(wrap_pyfunction!(service::freeze, module)?)?;
    module.add_function(wrap_pyfunction!(service::wait_tuned, module)?)?;
    module.add_function(wrap_pyfunction!(service::stats, module)?)?;
    module.add_function(wrap_pyfunction!(service::inspect, module)?)?;
    module.add_function(wrap_pyfunction!(service::check, module)?)?;
    module.add_function(wrap_pyfunction!(service::command_line, module)?)?;
    module.add_class::<template::PyTemplate>()?;
    module.add_function(wrap_pyfunction!(service::close, module)?)
}
