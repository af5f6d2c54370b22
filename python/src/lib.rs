//! The native part of the Python package: from tensors of a Python library to launches of [`ropejit`].
//!
//! `functions` is what Python calls, `objects` what it passes; `drop_in` stands for functions of models, `angles` makes rows of tables. `norm` and `append` are
//! rotations with what models do before and after, to a `cache`. `dlpack` and `torch` say what a tensor is, `form` how it is laid out,
//! `place` where tables and positions are, `call` and what is `beside` it are checked and launch, `overlap` tells whether tensors share
//! elements, `engines` keeps one engine a device, `service` is all that is not a rotation, `template` has kernels of the user's
//! own. `unsafe` is in `dlpack`, `torch`, `call`, `place`, `beside` and `template`.

mod angles;
mod append;
mod beside;
mod cache;
mod call;
mod dlpack;
mod drop_in;
mod engines;
mod errors;
mod foreign;
mod form;
mod functions;
mod log;
mod norm;
mod objects;
mod overlap;
mod place;
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
    module.add_function(wrap_pyfunction!(norm::qk_norm_rope, module)?)?;
    module.add_function(wrap_pyfunction!(norm::norm_plain, module)?)?;
    module.add_function(wrap_pyfunction!(norm::norm_backward, module)?)?;
    module.add_function(wrap_pyfunction!(append::rope_append, module)?)?;
    module.add_function(wrap_pyfunction!(append::append_plain, module)?)?;
    module.add_function(wrap_pyfunction!(drop_in::drop_in, module)?)?;
    module.add_function(wrap_pyfunction!(angles::rows_of_axes, module)?)?;
    module.add_function(wrap_pyfunction!(angles::computed_rows, module)?)?;
    module.add_function(wrap_pyfunction!(angles::frequencies, module)?)?;
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
