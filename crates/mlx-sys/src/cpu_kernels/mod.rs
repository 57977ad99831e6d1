//! Hands operations of MLX's CPU device to the kernels of `mlx-cpu`, on Linux.
//!
//! Nothing has to be called for that: the kernels are in place before `main` begins. What a program, or who
//! compares, may want is to turn them off and on ([`set_enabled`]), which counts for the operations that are
//! made from then on. The environment variable `MLX_CPU_KERNELS=off` turns them off from the start: then
//! stock MLX runs, bit for bit.
#![warn(missing_docs, clippy::all)]

mod operations;
mod profile;
mod run;
mod tensor;

use std::ffi::c_char;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

pub use profile::{Timing, profile};
use tensor::Tensor;

/// What else an operation needs to know; `native/cpu_kernels.cpp` says for each what is where.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    a: f32,
    b: f32,
    i: i32,
    j: i32,
    k: i32,
    l: i32,
}

type Run = unsafe extern "C" fn(*const Tensor, *const Settings) -> *const c_char;

/// The kernels, by operation, in the order of `Table` in `native/cpu_kernels.h`.
#[repr(C)]
struct Table {
    rms_norm: Option<Run>,
    rope: Option<Run>,
    attention: Option<Run>,
    matmul: Option<Run>,
    addmm: Option<Run>,
    quantized_matmul: Option<Run>,
    dequantize: Option<Run>,
    softmax: Option<Run>,
    logsumexp: Option<Run>,
    argmax: Option<Run>,
    add: Option<Run>,
    multiply: Option<Run>,
    silu: Option<Run>,
    swiglu: Option<Run>,
    gelu: Option<Run>,
    geglu: Option<Run>,
}

unsafe extern "C" {
    fn mlx_sys_set_kernels(table: *const Table);
}

static ENABLED: AtomicBool = AtomicBool::new(false);

/// Whether operations that are made now are handed to kernels.
pub fn is_enabled() -> bool {
    ENABLED.load(Ordering::Relaxed)
}

/// Turns the kernels on or off, for operations that are made from now on, on all threads.
///
/// Where `MLX_CPU_KERNELS` is `off`, they stay off.
pub fn set_enabled(enabled: bool) {
    let enabled = enabled && !off_by_environment();
    ENABLED.store(enabled, Ordering::Relaxed);
    let table: *const Table = if enabled { &operations::TABLE } else { std::ptr::null() };
    // SAFETY: the table is a static, and of the layout that the C++ side declares.
    unsafe { mlx_sys_set_kernels(table) };
}

fn off_by_environment() -> bool {
    static OFF: OnceLock<bool> = OnceLock::new();
    *OFF.get_or_init(|| {
        std::env::var("MLX_CPU_KERNELS")
            .is_ok_and(|value| ["off", "0", "false", "no"].contains(&value.trim()))
    })
}

extern "C" fn install() {
    set_enabled(true);
}

/// Run by the loader before `main`.
#[used]
#[unsafe(link_section = ".init_array")]
static INSTALL: extern "C" fn() = install;
