//! Timing: launches recorded into a graph, replayed between two events.
//!
//! The graph is built node by node and not captured from a stream: while a capture goes on, others in the process may not
//! synchronise, and a synchronisation of theirs would break it.

use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{result, sys};

use super::context::{Context, OwnStream, failed};
use crate::error::Result;
use crate::service::device::kernel::Geometry;
use crate::service::device::machine::{Record, Stream, TimedLaunch, Timer};

/// Takes launches and copies instead of a stream, each after the one before.
pub(super) struct Recorder {
    graph: sys::CUgraph,
    context: sys::CUcontext,
    /// The last node, and whether it is a kernel.
    last: Mutex<Option<(sys::CUgraphNode, bool)>>,
}

// SAFETY: the graph is only touched under the lock.
unsafe impl Send for Recorder {}
// SAFETY: as above.
unsafe impl Sync for Recorder {}

impl Recorder {
    fn new(context: &Context) -> Result<Self> {
        let mut graph = std::ptr::null_mut();
        // SAFETY: valid for a write.
        unsafe { sys::cuGraphCreate(&raw mut graph, 0) }.result().map_err(|e| failed("cuGraphCreate", &e))?;
        Ok(Self { graph, context: context.raw, last: Mutex::new(None) })
    }

    fn append(&self, kernel: bool, overlap: bool, add: impl FnOnce(&mut sys::CUgraphNode) -> Result<()>) -> Result<()> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let mut node = std::ptr::null_mut();
        add(&mut node)?;
        let added = match *last {
            None => Ok(()),
            Some((before, true)) if overlap => {
                let edge = sys::CUgraphEdgeData {
                    from_port: sys::CU_GRAPH_KERNEL_NODE_PORT_PROGRAMMATIC as u8,
                    to_port: 0,
                    type_: sys::CUgraphDependencyType::CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC as u8,
                    reserved: [0; 5],
                };
                // SAFETY: both nodes are of this graph.
                unsafe {
                    sys::cuGraphAddDependencies_v2(self.graph, &raw const before, &raw const node, &raw const edge, 1)
                }
                .result()
            }
            // SAFETY: both nodes are of this graph.
            Some((before, _)) => {
                unsafe { sys::cuGraphAddDependencies(self.graph, &raw const before, &raw const node, 1) }.result()
            }
        };
        added.map_err(|e| failed("cuGraphAddDependencies", &e))?;
        *last = Some((node, kernel));
        Ok(())
    }
}

impl Record for Recorder {
    fn kernel(
        &self,
        function: sys::CUfunction,
        geometry: &Geometry,
        arguments: *mut *mut c_void,
        overlap: bool,
    ) -> Result<()> {
        let ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]) = (geometry.grid, geometry.block);
        let params = sys::CUDA_KERNEL_NODE_PARAMS {
            func: function,
            gridDimX: grid_x,
            gridDimY: grid_y,
            gridDimZ: grid_z,
            blockDimX: block_x,
            blockDimY: block_y,
            blockDimZ: block_z,
            sharedMemBytes: geometry.shared,
            kernelParams: arguments,
            extra: std::ptr::null_mut(),
            kern: std::ptr::null_mut(),
            ctx: self.context,
        };
        let add = |node: &mut sys::CUgraphNode| {
            // SAFETY: the graph is alive and the driver copies the arguments before it returns.
            unsafe { sys::cuGraphAddKernelNode_v2(node, self.graph, std::ptr::null(), 0, &raw const params) }
                .result()
                .map_err(|e| failed("cuGraphAddKernelNode", &e))
        };
        self.append(true, overlap, add)
    }

    fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<()> {
        let params = sys::CUDA_MEMCPY3D {
            srcXInBytes: 0,
            srcY: 0,
            srcZ: 0,
            srcLOD: 0,
            srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
            srcHost: std::ptr::null(),
            srcDevice: from,
            srcArray: std::ptr::null_mut(),
            reserved0: std::ptr::null_mut(),
            srcPitch: 0,
            srcHeight: 0,
            dstXInBytes: 0,
            dstY: 0,
            dstZ: 0,
            dstLOD: 0,
            dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
            dstHost: std::ptr::null_mut(),
            dstDevice: to,
            dstArray: std::ptr::null_mut(),
            reserved1: std::ptr::null_mut(),
            dstPitch: 0,
            dstHeight: 0,
            WidthInBytes: bytes,
            Height: 1,
            Depth: 1,
        };
        let add = |node: &mut sys::CUgraphNode| {
            // SAFETY: the graph is alive; the addresses are the caller's.
            unsafe { sys::cuGraphAddMemcpyNode(node, self.graph, std::ptr::null(), 0, &raw const params, self.context) }
                .result()
                .map_err(|e| failed("cuGraphAddMemcpyNode", &e))
        };
        self.append(false, false, add)
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once; an executable graph does not need the graph it came from.
        let _ = unsafe { result::graph::destroy(self.graph) };
    }
}

/// Prepares launches to be timed together.
pub(super) fn timer(stream: &Arc<OwnStream>, launches: usize, launch: TimedLaunch) -> Result<Box<dyn Timer>> {
    let _aside = stream.context.aside()?;
    let recorder = Recorder::new(&stream.context)?;
    let into = Stream { raw: stream.raw, recorder: Some(&recorder), lives: std::marker::PhantomData };
    (0..launches).try_for_each(|i| launch(i, into))?;
    let (start, end) = (OwnEvent::new(&stream.context)?, OwnEvent::new(&stream.context)?);
    let mut exec = std::ptr::null_mut();
    // SAFETY: the graph was built above.
    unsafe { sys::cuGraphInstantiateWithFlags(&raw mut exec, recorder.graph, 0) }
        .result()
        .map_err(|e| failed("cuGraphInstantiate", &e))?;
    // From here on it is destroyed when dropped: nothing that can fail stands between.
    let mut timer = GraphTimer { exec, launches, start, end, stream: Arc::clone(stream), _launch: launch };
    timer.sample()?; // uploads the graph and warms up
    Ok(Box::new(timer))
}

/// A graph of launches, replayed between two events: the host's launch rate does not show.
struct GraphTimer {
    exec: sys::CUgraphExec,
    launches: usize,
    start: OwnEvent,
    end: OwnEvent,
    stream: Arc<OwnStream>,
    // Keeps alive the kernel and the memory that the graph uses.
    _launch: TimedLaunch,
}

impl Timer for GraphTimer {
    fn sample(&mut self) -> Result<f64> {
        let _aside = self.stream.context.aside()?;
        let stream = self.stream.raw;
        // SAFETY: events, graph and stream live as long as `self`.
        unsafe { result::event::record(self.start.raw, stream) }.map_err(|e| failed("cuEventRecord", &e))?;
        // SAFETY: as above.
        unsafe { result::graph::launch(self.exec, stream) }.map_err(|e| failed("cuGraphLaunch", &e))?;
        // SAFETY: as above.
        unsafe { result::event::record(self.end.raw, stream) }.map_err(|e| failed("cuEventRecord", &e))?;
        // SAFETY: as above.
        unsafe { result::event::synchronize(self.end.raw) }.map_err(|e| failed("a timed kernel", &e))?;
        // SAFETY: both are recorded on one stream and passed.
        let ms = unsafe { result::event::elapsed(self.start.raw, self.end.raw) }
            .map_err(|e| failed("cuEventElapsedTime", &e))?;
        Ok(f64::from(ms) * 1e6 / self.launches.max(1) as f64)
    }
}

impl Drop for GraphTimer {
    fn drop(&mut self) {
        if let Ok(_current) = self.stream.context.make_current() {
            // SAFETY: instantiated once, destroyed once, after its last replay was waited for.
            let _ = unsafe { result::graph::exec_destroy(self.exec) };
        }
    }
}

struct OwnEvent {
    raw: sys::CUevent,
    context: Arc<Context>,
}

impl OwnEvent {
    fn new(context: &Arc<Context>) -> Result<Self> {
        let _current = context.make_current()?;
        let raw =
            result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map_err(|e| failed("cuEventCreate", &e))?;
        Ok(Self { raw, context: Arc::clone(context) })
    }
}

impl Drop for OwnEvent {
    fn drop(&mut self) {
        if let Ok(_current) = self.context.make_current() {
            // SAFETY: created once, destroyed once.
            let _ = unsafe { result::event::destroy(self.raw) };
        }
    }
}
