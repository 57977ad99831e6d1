//! Hands operations of MLX's CPU device to the kernels of `mlx-cpu`, on Linux.
//!
//! A program has to call nothing: the kernels are in place before `main` begins. [`set_enabled`] turns them off and on
//! for operations that are made from then on, for example to compare them with stock MLX. The environment variable
//! `MLX_CPU_KERNELS=off` turns them off from the start, and then stock MLX runs, bit for bit.
//!
//! The kernels are in a shared library of their own, `libmlx_kernels.so`, which the build script compiles from the crate
//! `mlx-kernels`. How an operation gets there:
//!
//! | step | where |
//! |---|---|
//! | mlx-rs calls a function of mlx-c | `native/mlx_c.cpp` |
//! | an offer checks the arrays, and looks for a pattern that one kernel computes | `native/offer/`, `native/recognize.cpp`, `native/fuse.cpp` |
//! | the operation becomes a node of MLX's lazy graph | `native/graph.cpp` |
//! | the node is evaluated with others, and their kernels are one task | `native/evaluate.cpp`, `native/batch.cpp` |
//! | the task calls a function of the table | `native/table.cpp`; in `mlx-kernels`, `table.rs` |
//! | the function makes slices of the arrays and calls `mlx-cpu` | in `mlx-kernels`, `run/` |
//!
//! `native/operations.def` lists the kernels and `native/abi.h` declares the types that C++ and Rust exchange.
//! The README's section "Add a kernel" says what to write where.
#![warn(missing_docs, clippy::all)]

use std::ffi::{c_char, c_int, c_void};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub use crate::operation::{Evaluated, NO_KERNEL, Runner};

// What `mlx-kernels` exports. Its `lib.rs` says what each function does.
#[link(name = "mlx_kernels", kind = "dylib")]
unsafe extern "C" {
    safe fn mlx_kernels_table() -> *const c_void;
    safe fn mlx_kernels_allowed() -> bool;
    safe fn mlx_kernels_threads() -> usize;
    safe fn mlx_kernels_report_at_exit();
    fn mlx_kernels_split_blocks(split: &Split) -> bool;
    fn mlx_kernels_profile(
        visit: unsafe extern "C" fn(*const c_char, usize, u64, u64, *mut c_void),
        own: *mut c_void,
    );
}

unsafe extern "C" {
    /// Of `native/table.cpp`: hands operations that are made from now on to the kernels of a table that lives forever; to
    /// stock MLX where it is null.
    fn mlx_sys_set_kernels(table: *const c_void);
    /// Of `native/direct.cpp`.
    fn mlx_sys_gated(
        res: *mut crate::mlx_array,
        gate: crate::mlx_array,
        up: crate::mlx_array,
        is_gelu: bool,
        stream: crate::mlx_stream,
    ) -> c_int;
    /// Of `native/direct.cpp`.
    fn mlx_sys_linear(
        res: *mut crate::mlx_array,
        x: crate::mlx_array,
        w: crate::mlx_array,
        stream: crate::mlx_stream,
    ) -> c_int;
    /// Of `native/record.cpp`: begins a record of what the calling thread evaluates.
    safe fn mlx_sys_record();
    /// Of `native/record.cpp`: ends it, and calls `visit` for each operation.
    fn mlx_sys_recorded(
        visit: unsafe extern "C" fn(*const c_char, usize, c_int, u64, *mut c_void),
        own: *mut c_void,
    );
    /// Of `native/allocate.cpp`: makes an array whose elements have any value.
    fn mlx_sys_allocate(
        res: *mut crate::mlx_array,
        shape: *const c_int,
        dims: c_int,
        dtype: crate::mlx_dtype,
    ) -> c_int;
}

/// The same as in `mlx-kernels`.
#[repr(C)]
struct Split {
    format: *const u8,
    format_length: usize,
    rows: usize,
    columns: usize,
    blocks: *const u8,
    blocks_length: usize,
    codes: *mut u32,
    codes_length: usize,
    scales: *mut u8,
    scales_length: usize,
}

/// The calls of a kernel since the program began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// The operation.
    pub name: &'static str,
    /// How often it was called.
    pub calls: u64,
    /// The time of all calls together.
    pub time: Duration,
}

static ENABLED: AtomicBool = AtomicBool::new(false);

/// Whether operations that are made now are handed to kernels.
pub fn is_enabled() -> bool {
    ENABLED.load(Ordering::Relaxed)
}

/// Turns the kernels on or off, for operations that are made from now on, on all threads.
///
/// Where the environment variable `MLX_CPU_KERNELS` has turned them off, they stay off.
pub fn set_enabled(enabled: bool) {
    static ALLOWED: OnceLock<bool> = OnceLock::new();
    let enabled = enabled && *ALLOWED.get_or_init(|| mlx_kernels_allowed());
    ENABLED.store(enabled, Ordering::Relaxed);
    let table = if enabled { mlx_kernels_table() } else { std::ptr::null() };
    // SAFETY: the table is a static of a library that is never unloaded.
    unsafe { mlx_sys_set_kernels(table) };
}

/// The bytes of a matrix that are read and split at a time. They stay in the processor's cache from one to the other.
const PIECE: usize = 2 << 20;

/// The blocks of a matrix, as a GGUF file has them, as two arrays that the kernels of quantized products take: codes
/// (uint32) and scales (uint8), of these shapes, whose first axis has the rows. `format` is the name of the block format.
/// A row has `columns` numbers and `row_bytes` bytes. `read` is given a row, and reads from its start on. `None` if there is
/// no such format, or a length does not fit.
///
/// The caller owns the arrays.
pub fn split_blocks<E>(
    format: &str,
    [columns, row_bytes]: [usize; 2],
    codes: [c_int; 2],
    scales: [c_int; 2],
    read: impl FnMut(usize, &mut [u8]) -> Result<(), E>,
) -> Result<Option<[crate::mlx_array; 2]>, E> {
    // SAFETY: the handles come from `mlx_array_new`.
    let arrays = unsafe {
        let mut arrays = [crate::mlx_array_new(), crate::mlx_array_new()];
        let made = mlx_sys_allocate(&mut arrays[0], codes.as_ptr(), 2, crate::mlx_dtype__MLX_UINT32) == 0
            && mlx_sys_allocate(&mut arrays[1], scales.as_ptr(), 2, crate::mlx_dtype__MLX_UINT8) == 0;
        made.then_some(arrays).ok_or(arrays)
    };
    let split = match arrays {
        Ok(arrays) => split_into(arrays, format, [columns, row_bytes], [codes, scales], read),
        Err(_) => Ok(false),
    };
    let (Ok(arrays) | Err(arrays)) = arrays;
    if !matches!(split, Ok(true)) {
        // SAFETY: nobody else has them.
        arrays.into_iter().for_each(|array| unsafe {
            crate::mlx_array_free(array);
        });
    }
    split.map(|done| done.then_some(arrays))
}

/// Reads a matrix piece by piece, and splits each piece into the arrays.
fn split_into<E>(
    [codes, scales]: [crate::mlx_array; 2],
    format: &str,
    [columns, row_bytes]: [usize; 2],
    shapes: [[c_int; 2]; 2],
    mut read: impl FnMut(usize, &mut [u8]) -> Result<(), E>,
) -> Result<bool, E> {
    let [[Ok(rows), Ok(codes_in_row)], [Ok(same_rows), Ok(scales_in_row)]] =
        shapes.map(|shape| shape.map(usize::try_from))
    else {
        return Ok(false);
    };
    if rows != same_rows {
        return Ok(false);
    }
    let at_once = (PIECE / row_bytes.max(1)).clamp(1, rows.max(1));
    let mut piece = vec![0; at_once * row_bytes];
    for first in (0..rows).step_by(at_once) {
        let rows = at_once.min(rows - first);
        let blocks = &mut piece[..rows * row_bytes];
        read(first, blocks)?;
        // SAFETY: the memory of the arrays has as many elements as their shapes say, the rows are among them, and nobody
        // else has the arrays yet.
        let done = unsafe {
            mlx_kernels_split_blocks(&Split {
                format: format.as_ptr(),
                format_length: format.len(),
                rows,
                columns,
                blocks: blocks.as_ptr(),
                blocks_length: blocks.len(),
                codes: crate::mlx_array_data_uint32(codes).cast_mut().add(first * codes_in_row),
                codes_length: rows * codes_in_row,
                scales: crate::mlx_array_data_uint8(scales).cast_mut().add(first * scales_in_row),
                scales_length: rows * scales_in_row,
            })
        };
        if !done {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The number of threads that kernels run on, with the one that calls them: what `MLX_CPU_THREADS` says, or one for each
/// core that the process may use.
pub fn threads() -> usize {
    mlx_kernels_threads()
}

/// How long each kernel took until now, those that took the longest first. Operations of stock MLX are not counted.
///
/// Empty unless the environment variable `MLX_CPU_PROFILE` is `1`. Then the program also writes the profile to standard
/// error when it ends.
pub fn profile() -> Vec<Timing> {
    unsafe extern "C" fn push(
        name: *const c_char,
        length: usize,
        calls: u64,
        nanoseconds: u64,
        own: *mut c_void,
    ) {
        // SAFETY: the library gives a name that lives as long as the program, and hands back the vector below.
        let (name, timings) =
            unsafe { (std::slice::from_raw_parts(name.cast(), length), &mut *own.cast::<Vec<Timing>>()) };
        let name = str::from_utf8(name).unwrap_or_default();
        timings.push(Timing { name, calls, time: Duration::from_nanos(nanoseconds) });
    }
    let mut timings: Vec<Timing> = Vec::new();
    // SAFETY: `push` expects this vector.
    unsafe { mlx_kernels_profile(push, (&raw mut timings).cast()) };
    timings
}

/// Runs `body`, and says which operations this thread evaluated meanwhile, and what ran them.
///
/// Only what is evaluated by [`mlx_eval`](crate::mlx_eval), [`mlx_async_eval`](crate::mlx_async_eval) and
/// [`mlx_array_eval`](crate::mlx_array_eval) on the CPU with kernels is recorded, which is everything but graphs of several
/// streams and transformations. A record within a record takes over the rest of it.
pub fn recorded<R>(body: impl FnOnce() -> R) -> (R, Vec<Evaluated>) {
    unsafe extern "C" fn push(
        name: *const c_char,
        length: usize,
        runner: c_int,
        count: u64,
        own: *mut c_void,
    ) {
        // SAFETY: `native/record.cpp` gives a name that lives as long as the program, and hands back the vector below.
        let (name, all) =
            unsafe { (std::slice::from_raw_parts(name.cast(), length), &mut *own.cast::<Vec<Evaluated>>()) };
        let runner = match runner {
            0 => Runner::Kernel,
            1 => Runner::View,
            _ => Runner::Mlx,
        };
        all.push(Evaluated { name: String::from_utf8_lossy(name).into_owned(), runner, count });
    }
    mlx_sys_record();
    let answer = body();
    let mut all: Vec<Evaluated> = Vec::new();
    // SAFETY: `push` expects this vector.
    unsafe { mlx_sys_recorded(push, (&raw mut all).cast()) };
    (answer, all)
}

/// `silu(gate) * up` or, with `is_gelu`, `gelu(gate) * up` as the node of one kernel. Answers 0 where it wrote `res`, 1 where
/// it failed, as functions of mlx-c do, and [`NO_KERNEL`] where the caller has to use functions of mlx-c.
///
/// # Safety
///
/// The handles are valid, as for a function of mlx-c.
pub unsafe fn gated(
    res: &mut crate::mlx_array,
    gate: crate::mlx_array,
    up: crate::mlx_array,
    is_gelu: bool,
    stream: crate::mlx_stream,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { mlx_sys_gated(res, gate, up, is_gelu, stream) }
}

/// `x` times the transpose of the matrix `w`, as the node of one kernel. The answer is like that of [`gated`].
///
/// # Safety
///
/// The handles are valid, as for a function of mlx-c.
pub unsafe fn linear(
    res: &mut crate::mlx_array,
    x: crate::mlx_array,
    w: crate::mlx_array,
    stream: crate::mlx_stream,
) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { mlx_sys_linear(res, x, w, stream) }
}

extern "C" fn install() {
    mlx_kernels_report_at_exit();
    set_enabled(true);
}

/// Run by the loader before `main`.
#[used]
#[unsafe(link_section = ".init_array")]
static INSTALL: extern "C" fn() = install;

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;
    use std::sync::Mutex;

    use abi::{Arrays, OPERATIONS, Operation, Table};

    #[allow(dead_code, non_camel_case_types, clippy::all, reason = "generated by bindgen")]
    mod abi {
        include!("../../mlx-kernels/generated/abi.rs");
    }

    static SAID: Mutex<String> = Mutex::new(String::new());

    unsafe extern "C" fn remember(message: *const c_char, _: *mut c_void) {
        // SAFETY: mlx-c gives a text.
        *SAID.lock().unwrap() = unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned();
    }

    unsafe extern "C" fn fails(_: *const Arrays, _: *const c_void) -> *const c_char {
        c"the kernel broke".as_ptr()
    }

    /// Adds two arrays of 1000 zeros and evaluates the sum. Returns what mlx-c answers.
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
        let mut kernels: [abi::Run; OPERATIONS as usize] = [None; OPERATIONS as usize];
        kernels[Operation::add as usize] = Some(fails);
        // SAFETY: the library's table is a static. The waiting thread helps while the kernel fails on another one.
        let help = unsafe { (*mlx_kernels_table().cast::<Table>()).help };
        let broken: &Table = Box::leak(Box::new(Table { kernels, help }));
        // SAFETY: a handler without data, and a table that lives forever.
        unsafe {
            crate::mlx_set_error_handler(Some(remember), std::ptr::null_mut(), None);
            mlx_sys_set_kernels((&raw const *broken).cast());
        }
        assert_ne!(add(), 0);
        assert!(SAID.lock().unwrap().contains("the kernel broke"), "{}", SAID.lock().unwrap());
        // SAFETY: no kernels is what it was before.
        unsafe { mlx_sys_set_kernels(std::ptr::null()) };
        assert_eq!(add(), 0);
    }
}
