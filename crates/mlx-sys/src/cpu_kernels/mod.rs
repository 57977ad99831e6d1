//! Hands operations of MLX's CPU device to the kernels of `mlx-cpu`, on Linux.
//!
//! Nothing has to be called for that: the kernels are in place before `main` begins. What a program, or who
//! compares, may want is to turn them off and on ([`set_enabled`]), which counts for the operations that are
//! made from then on. The environment variable `MLX_CPU_KERNELS=off` turns them off from the start: then
//! stock MLX runs, bit for bit. They are off too where this crate is compiled without optimization, which
//! would make them slower than stock MLX, unless the variable says `on`.
#![warn(missing_docs, clippy::all)]

mod operations;
mod profile;
mod run;
mod tensor;

use std::ffi::{c_char, c_void};
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

/// Whether what a thread waits for is there.
type Until = unsafe extern "C" fn(*mut c_void) -> bool;

/// The kernels, by operation, and what a thread does that waits for them, in the order of `Table` in `native/cpu_kernels.h`.
#[repr(C)]
struct Table {
    rms_norm: Option<Run>,
    rope: Option<Run>,
    attention: Option<Run>,
    matmul: Option<Run>,
    addmm: Option<Run>,
    quantized_matmul: Option<Run>,
    quantized_attention: Option<Run>,
    dequantize: Option<Run>,
    quantize: Option<Run>,
    softmax: Option<Run>,
    logsumexp: Option<Run>,
    argmax: Option<Run>,
    add: Option<Run>,
    multiply: Option<Run>,
    subtract_from_rows: Option<Run>,
    silu: Option<Run>,
    swiglu: Option<Run>,
    gelu: Option<Run>,
    geglu: Option<Run>,
    help: Option<unsafe extern "C" fn(Until, *mut c_void)>,
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
/// Where the environment has turned them off, they stay off.
pub fn set_enabled(enabled: bool) {
    let enabled = enabled && is_allowed();
    ENABLED.store(enabled, Ordering::Relaxed);
    let table: *const Table = if enabled { &operations::TABLE } else { std::ptr::null() };
    // SAFETY: the table is a static, and of the layout that the C++ side declares.
    unsafe { mlx_sys_set_kernels(table) };
}

/// What the environment variable `MLX_CPU_KERNELS` says; without it, whether they were compiled to be fast.
fn is_allowed() -> bool {
    static ALLOWED: OnceLock<bool> = OnceLock::new();
    *ALLOWED.get_or_init(|| match std::env::var("MLX_CPU_KERNELS").as_deref().map(str::trim) {
        Ok("off" | "0" | "false" | "no") => false,
        Ok("on" | "1" | "true" | "yes") => true,
        Ok("") | Err(_) => !cfg!(unoptimized),
        Ok(other) => {
            // A word that was meant to turn them off must not go unnoticed.
            eprintln!("MLX_CPU_KERNELS={other} says nothing: it is \"off\" or \"on\"");
            !cfg!(unoptimized)
        }
    })
}

extern "C" fn install() {
    profile::install();
    set_enabled(true);
}

/// Run by the loader before `main`.
#[used]
#[unsafe(link_section = ".init_array")]
static INSTALL: extern "C" fn() = install;

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::{CStr, c_int, c_void};
    use std::sync::Mutex;

    static SAID: Mutex<String> = Mutex::new(String::new());

    unsafe extern "C" fn remember(message: *const c_char, _: *mut c_void) {
        // SAFETY: mlx-c gives a text.
        *SAID.lock().unwrap() = unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned();
    }

    unsafe extern "C" fn fails(_: *const Tensor, _: *const Settings) -> *const c_char {
        c"the kernel broke".as_ptr()
    }

    /// Adds two arrays of 1000 zeros and evaluates the sum; what mlx-c answered.
    fn add() -> c_int {
        let shape: [c_int; 1] = [1000];
        // SAFETY: calls of mlx-c with what its functions made.
        unsafe {
            let stream = crate::mlx_default_cpu_stream_new();
            let (mut a, mut sum) = (crate::mlx_array_new(), crate::mlx_array_new());
            crate::mlx_zeros(&mut a, shape.as_ptr(), 1, crate::mlx_dtype__MLX_FLOAT32, stream);
            crate::mlx_add(&mut sum, a, a, stream);
            let answer = crate::mlx_array_eval(sum);
            crate::mlx_array_free(a);
            crate::mlx_array_free(sum);
            crate::mlx_stream_free(stream);
            answer
        }
    }

    #[test]
    fn an_error_in_a_kernel_reaches_the_caller_and_the_next_one_runs() {
        // The thread that waits works with the one that the kernel breaks on.
        static BROKEN: Table = Table { add: Some(fails), help: operations::TABLE.help, ..operations::NONE };
        // SAFETY: a handler without data, and a static table.
        unsafe {
            crate::mlx_set_error_handler(Some(remember), std::ptr::null_mut(), None);
            mlx_sys_set_kernels(&BROKEN);
        }
        assert_ne!(add(), 0);
        assert!(SAID.lock().unwrap().contains("the kernel broke"), "{}", SAID.lock().unwrap());
        // SAFETY: no kernels is what it was before.
        unsafe { mlx_sys_set_kernels(std::ptr::null()) };
        assert_eq!(add(), 0);
    }
}
