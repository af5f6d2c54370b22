//! What a kernel is made of, and what it is launched with.

/// Which of the two kinds of device a text is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// CUDA C++ for NVRTC.
    Cuda,
    /// C++ for the system's compiler.
    Host,
}

/// What a device can do that bears on which kernels are legal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abilities {
    /// Which text it takes.
    pub dialect: Dialect,
    /// Programmatic dependent launch: compute capability 9.0 and CUDA 12.3, where graphs can hold such launches.
    pub overlap: bool,
    /// The compute capability whose cubins it takes, of kernels that were compiled ahead of time; `None` where it takes none.
    pub cubins: Option<(u32, u32)>,
}

/// What code that was compiled ahead of time a device takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AheadOfTime {
    /// Cubins of its architecture, else PTX.
    Cubin,
    /// PTX alone: to try it where there is no GPU that needs it.
    Ptx,
    /// None; the text is compiled when it is asked for: to try it without a GPU.
    Text,
}

/// A kernel's source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// One flat text, without a header.
    pub text: String,
    /// The name of the entry point.
    pub entry: String,
    /// Compiler options beside the device's own; one of the same name takes the device's place.
    pub options: Vec<String>,
}

/// What loading and launching a kernel needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LaunchAttrs {
    /// The kernel may start before the one ahead of it on the stream has ended (programmatic dependent launch): it waits
    /// for that itself.
    pub overlap: bool,
    /// Bytes of dynamic shared memory that a launch asks for at most.
    pub shared: u32,
    /// What the family needs at each launch, as it likes: kept with the loaded kernel, and nothing to the device.
    pub numbers: Box<[i64]>,
}

/// How many blocks of how many threads a launch has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
}

impl Geometry {
    /// `blocks` blocks of `threads` threads, in a row.
    pub const fn row(blocks: u32, threads: u32) -> Self {
        Self { grid: [blocks, 1, 1], block: [threads, 1, 1], shared: 0 }
    }
}

/// A compiled kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binary {
    /// PTX; empty for a host.
    pub(crate) ptx: Vec<u8>,
    /// Cubin, or the host's shared library.
    pub(crate) image: Vec<u8>,
}

impl Binary {
    /// PTX; empty for a host.
    pub fn ptx(&self) -> &[u8] {
        &self.ptx
    }

    /// Cubin, or the host's shared library.
    pub fn image(&self) -> &[u8] {
        &self.image
    }
}
