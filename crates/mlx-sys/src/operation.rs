//! Which operations were evaluated, as `cpu_kernels` says it.

/// What runs an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Runner {
    /// A kernel.
    Kernel,
    /// Nothing: the result is a view of an input.
    View,
    /// MLX's own code.
    Mlx,
}

/// An operation that a thread evaluated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evaluated {
    /// The name in MLX's graph.
    pub name: String,
    /// What ran it.
    pub runner: Runner,
    /// How often.
    pub count: u64,
}

/// The answer of a function that makes the node of a kernel, where there is no kernel for these arrays.
pub const NO_KERNEL: std::ffi::c_int = 2;
