//! Memory that a call's arguments point to: where it is, and for how long it lives.

use std::cell::Cell;
use std::ffi::c_void;
use std::marker::PhantomData;

use cudarc::driver::{CudaStream, SyncOnDrop};

use crate::service::device::Memory;

/// Where memory is; what the caller vouches for itself is `Raw`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Location {
    Host,
    /// On the GPU of this context, borrowed for use on this stream.
    Cuda {
        context: u64,
        stream: u64,
    },
    /// The engine's own, on the device of this context (0 for the host): any stream may use it.
    Own {
        context: u64,
    },
    Raw,
}

impl Location {
    pub fn cuda(stream: &CudaStream) -> Self {
        Self::Cuda { context: stream.context().cu_ctx() as u64, stream: stream.cu_stream() as u64 }
    }

    /// Whether a call that runs at `at` may use what is here.
    pub fn serves(self, at: Self) -> bool {
        match (self, at) {
            (Self::Raw, _) => true,
            (Self::Own { context: 0 }, at) => at == Self::Host,
            (Self::Own { context }, Self::Cuda { context: there, .. }) => context == there,
            _ => self == at,
        }
    }
}

/// An address that is valid for as long as this lives.
pub struct Borrowed<'a> {
    pub address: u64,
    pub place: Location,
    /// Tells cudarc when the stream has passed the use.
    pub _guard: Option<SyncOnDrop<'a>>,
    pub lives: Lives<'a>,
}

/// What is borrowed may be written by a call, which takes its arguments by a shared reference: so no two threads may share
/// them.
type Lives<'a> = PhantomData<(&'a mut [u8], Cell<()>)>;

impl Borrowed<'static> {
    pub fn raw(pointer: *const c_void) -> Self {
        Self { address: pointer as u64, place: Location::Raw, _guard: None, lives: PhantomData }
    }
}

impl<'a> Borrowed<'a> {
    pub fn host(pointer: *const c_void) -> Self {
        Self { address: pointer as u64, place: Location::Host, _guard: None, lives: PhantomData }
    }

    pub fn in_memory(memory: &'a dyn Memory, offset: usize) -> Self {
        let address = memory.address() + offset as u64;
        Self { address, place: Location::Raw, _guard: None, lives: PhantomData }
    }
}

/// What is said of memory that does not [serve](Location::serves).
pub(crate) const UNREACHABLE: &str =
    "is in memory that the call cannot use: not of the engine's device, or borrowed for another stream";
