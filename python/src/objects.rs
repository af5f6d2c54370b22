//! The tensors of a call: as Python passes them, and what they are in memory.

use pyo3::exceptions::PyTypeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyInt, PyTuple};

use crate::call::Tensors;
use crate::dlpack::View;
use crate::errors::wrong;
use crate::place::Place;
use crate::torch::{Kind, Torch};

/// The tensors of a call as Python passes them.
pub struct Objects<'a, 'py> {
    pub q: &'a Bound<'py, PyAny>,
    pub k: Option<&'a Bound<'py, PyAny>>,
    pub cos: &'a Bound<'py, PyAny>,
    pub sin: &'a Bound<'py, PyAny>,
    pub position_ids: Option<&'a Bound<'py, PyAny>>,
    pub cu_seqlens: Option<&'a Bound<'py, PyAny>>,
    /// An int, or a tensor with one for each sequence.
    pub offset: Option<&'a Bound<'py, PyAny>>,
}

impl<'py> Objects<'_, 'py> {
    pub fn py(&self) -> Python<'py> {
        self.q.py()
    }

    /// What the result is computed from.
    pub fn rotated(&self) -> [Option<&Bound<'py, PyAny>>; 4] {
        [Some(self.q), self.k, Some(self.cos), Some(self.sin)]
    }

    /// Which rows tokens get. `view` tells what a tensor is.
    pub fn place(&self, view: &mut dyn FnMut(&str, &Bound<'py, PyAny>) -> PyResult<View>) -> PyResult<Place> {
        let number = match self.offset {
            None => Some(0),
            Some(offset) => whole_number(offset)?,
        };
        let mut offsets = || match self.offset {
            Some(offset) if number.is_none() => view("seqlen_offsets", offset).map(Some),
            _ => Ok(None),
        };
        match (self.position_ids, self.cu_seqlens) {
            (None, None) => Ok(offsets()?.map_or(Place::Offset(number.unwrap_or(0)), Place::Offsets)),
            (None, Some(cu_seqlens)) => {
                let offsets = offsets()?;
                Ok(Place::Packed { cu_seqlens: view("cu_seqlens", cu_seqlens)?, offset: number.unwrap_or(0), offsets })
            }
            (Some(_), Some(_)) => Err(wrong(
                "cu_seqlens",
                "cannot be given beside position_ids; hint: position_ids alone say which row each token gets",
            )),
            (Some(_), None) if self.offset.is_some() => Err(wrong("offset", "cannot be given beside position_ids")),
            (Some(ids), None) => view("position_ids", ids).map(Place::Ids),
        }
    }
}

/// An int; `None` for a tensor, which is not read: that would wait for the GPU, and a CUDA graph would keep the number.
fn whole_number(object: &Bound<'_, PyAny>) -> PyResult<Option<i64>> {
    if !object.is_instance_of::<PyInt>() && object.hasattr(intern!(object.py(), "__dlpack__"))? {
        return Ok(None);
    }
    let number = object.extract::<i64>();
    number.map(Some).map_err(|_| wrong("seqlen_offsets", format!("is {object}, an int or a tensor of them is needed")))
}

/// What the tensors of a call are in memory; `None` where a kernel may not read one of them as it lies there (see
/// [`Torch::view`]). In place the sign that q and k are read with does not matter: what turns −x turns x.
pub fn views(torch: &Torch, o: &Objects<'_, '_>, inplace: bool) -> PyResult<Option<Tensors>> {
    let operand = |name, tensor| if inplace { torch.memory(name, tensor) } else { torch.view(name, tensor) };
    let (Some(q), Some(cos), Some(sin)) = (operand("q", o.q)?, torch.view("cos", o.cos)?, torch.view("sin", o.sin)?)
    else {
        return Ok(None);
    };
    let k = match o.k {
        None => None,
        Some(k) => match operand("k", k)? {
            None => return Ok(None),
            view => view,
        },
    };
    let mut unreadable = false;
    let place = o.place(&mut |name, tensor| match torch.kind(tensor) {
        Kind::Foreign => Err(wrong(name, "must be a torch.Tensor, as q is")),
        _ => torch.view(name, tensor)?.ok_or_else(|| {
            unreadable = true;
            wrong(name, "has no memory of its own")
        }),
    });
    if unreadable {
        return Ok(None);
    }
    Ok(Some(Tensors { q, k, q_out: None, k_out: None, cos, sin, place: place? }))
}

/// What all tensors of q, k, cos and sin are.
pub fn kind(torch: &Torch, o: &Objects<'_, '_>) -> Kind {
    kind_of(torch, &o.rotated())
}

/// What all of these tensors are.
pub fn kind_of(torch: &Torch, tensors: &[Option<&Bound<'_, PyAny>>]) -> Kind {
    let mut all = Kind::Plain;
    for object in tensors.iter().flatten() {
        match torch.kind(object) {
            Kind::Plain => {}
            Kind::Subclass => all = Kind::Subclass,
            Kind::Foreign => return Kind::Foreign,
        }
    }
    all
}

/// The arguments of a call, as many as its function has.
pub fn fields<'a, 'py, const N: usize>(args: &'a Bound<'py, PyTuple>) -> PyResult<[Borrowed<'a, 'py, PyAny>; N]> {
    if args.len() != N {
        return Err(PyTypeError::new_err(format!("takes {N} arguments, got {}", args.len())));
    }
    let mut all = [args.get_borrowed_item(0)?; N];
    for (i, field) in all.iter_mut().enumerate() {
        *field = args.get_borrowed_item(i)?;
    }
    Ok(all)
}

/// An argument that may be None.
pub fn optional<'a, 'py>(object: &'a Bound<'py, PyAny>) -> Option<&'a Bound<'py, PyAny>> {
    (!object.is_none()).then_some(object)
}
