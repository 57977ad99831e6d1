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
use std::panic::{AssertUnwindSafe, catch_unwind};

use mlx_cpu::{BlockFormat, Cpu, split_blocks};

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

/// What [`mlx_kernels_split_blocks`] reads and writes. Lengths are numbers of elements.
#[repr(C)]
pub struct Split {
    /// The name of a block format.
    pub format: *const u8,
    /// The length of the name.
    pub format_length: usize,
    /// Rows of the matrix.
    pub rows: usize,
    /// Columns of the matrix.
    pub columns: usize,
    /// The blocks, as a file has them.
    pub blocks: *const u8,
    /// Their length.
    pub blocks_length: usize,
    /// Where codes are written.
    pub codes: *mut u32,
    /// Their length.
    pub codes_length: usize,
    /// Where scales are written.
    pub scales: *mut u8,
    /// Their length.
    pub scales_length: usize,
}

/// Splits the blocks of a matrix, as [`mlx_cpu::split_blocks`] does. False if there is no such format, or a length does not
/// fit the shape.
///
/// # Safety
///
/// The pointers and lengths are those of slices; the elements of the slices that are written may have any value.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mlx_kernels_split_blocks(split: &Split) -> bool {
    // SAFETY: the caller's promise.
    let (name, blocks, codes, scales) = unsafe {
        (
            std::slice::from_raw_parts(split.format, split.format_length),
            std::slice::from_raw_parts(split.blocks, split.blocks_length),
            std::slice::from_raw_parts_mut(split.codes, split.codes_length),
            std::slice::from_raw_parts_mut(split.scales, split.scales_length),
        )
    };
    let Some(format) = BlockFormat::ALL.into_iter().find(|format| format.name().as_bytes() == name) else {
        return false;
    };
    let done = catch_unwind(AssertUnwindSafe(|| {
        split_blocks(Cpu::global(), format, split.rows, split.columns, blocks, codes, scales)
    }));
    matches!(done, Ok(Ok(())))
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
