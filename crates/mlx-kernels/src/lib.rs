//! The shared library through which MLX on Linux calls the kernels of `mlx-cpu`.
//!
//! This crate is an implementation, not an API. The build script of `mlx-sys` compiles it once, with optimization, to
//! `libmlx_kernels.so`, which every profile and every project links. So a debug build has fast kernels too, and no
//! target folder compiles them again. The functions below are all that the library exports.
//!
//! | file | owns |
//! |---|---|
//! | `table.rs` | for each kernel a function that C++ calls, and a counter |
//! | `tensor.rs` | arrays of MLX as slices and matrices |
//! | `run/` | each operation: `rows`, `products`, `attention`, `quantized`, and what they share |
//! | `abi.rs` | the types that C++ and Rust exchange |
//! | `profile.rs` | how long each kernel takes |
//! | `stderr.rs` | the little that the library writes to standard error |
//!
//! The README of `mlx-sys` says how an operation reaches a kernel and how to add one.

mod abi;
mod profile;
mod run;
mod stderr;
mod table;
mod tensor;

use std::ffi::{c_char, c_void};

/// The kernels, for `mlx_sys_set_kernels` of `native/table.cpp`.
#[unsafe(no_mangle)]
pub extern "C" fn mlx_kernels_table() -> *const c_void {
    (&raw const table::TABLE).cast()
}

/// Whether the environment variable `MLX_CPU_KERNELS` allows kernels. A value that is neither "on" nor "off" is ignored,
/// and a line on standard error names it, since a misspelt "off" must not go unnoticed.
#[unsafe(no_mangle)]
pub extern "C" fn mlx_kernels_allowed() -> bool {
    match std::env::var("MLX_CPU_KERNELS").as_deref().map(str::trim) {
        Ok("off" | "0" | "false" | "no") => false,
        Ok("" | "on" | "1" | "true" | "yes") | Err(_) => true,
        Ok(other) => {
            stderr::write(&format!("MLX_CPU_KERNELS={other} is ignored: it must be \"off\" or \"on\"\n"));
            true
        }
    }
}

/// The number of threads that kernels run on, with the one that calls them.
#[unsafe(no_mangle)]
pub extern "C" fn mlx_kernels_threads() -> usize {
    mlx_cpu::Cpu::global_threads()
}

/// Writes a profile to standard error when the program ends, where the environment asks for one.
#[unsafe(no_mangle)]
pub extern "C" fn mlx_kernels_report_at_exit() {
    profile::report_at_exit(table::COUNTERS);
}

/// What [`mlx_kernels_profile`] calls for each kernel: its name, which lives as long as the program, and the length of
/// the name in bytes; the number of calls; their time together in nanoseconds; the caller's own pointer.
pub type Visit =
    unsafe extern "C" fn(name: *const c_char, length: usize, calls: u64, nanoseconds: u64, own: *mut c_void);

/// Calls `visit` for each kernel that was called until now. Kernels that took longer come first. There are none unless
/// the environment variable `MLX_CPU_PROFILE` is `1`.
///
/// # Safety
///
/// `visit` can be called with `own`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlx_kernels_profile(visit: Visit, own: *mut c_void) {
    for timing in profile::timings(table::COUNTERS) {
        let nanoseconds = timing.time.as_nanos() as u64;
        // SAFETY: the caller's promise.
        unsafe { visit(timing.name.as_ptr().cast(), timing.name.len(), timing.calls, nanoseconds, own) };
    }
}
