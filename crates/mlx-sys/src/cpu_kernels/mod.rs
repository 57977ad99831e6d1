//! Hands operations of MLX's CPU device to the kernels of `mlx-cpu`, on Linux.
//!
//! A program has to call nothing: the kernels are in place before `main` begins. [`set_enabled`] turns them off and on
//! for operations that are made from then on, for example to compare them with stock MLX. The environment variable
//! `MLX_CPU_KERNELS=off` turns them off from the start, and then stock MLX runs, bit for bit. A build of this crate
//! without optimization has them off unless the variable says `on`, since they would be slower than stock MLX.
//!
//! How an operation gets here:
//!
//! | step | where |
//! |---|---|
//! | mlx-rs calls a function of mlx-c | `native/mlx_c.cpp` |
//! | an offer checks the arrays, and looks for a pattern that one kernel computes | `native/offer/`, `native/recognize.cpp`, `native/fuse.cpp` |
//! | the operation becomes a node of MLX's lazy graph | `native/graph.cpp` |
//! | MLX evaluates the node, which calls a function of the table | `native/table.cpp`, `table.rs` |
//! | the function makes slices of the arrays and calls `mlx-cpu` | `run/` |
//!
//! `native/operations.def` lists the kernels and `native/abi.h` declares the types that C++ and Rust exchange.
//! The README's section "Add a kernel" says what to write where.
#![warn(missing_docs, clippy::all)]

mod abi;
mod profile;
mod run;
mod stderr;
mod table;
mod tensor;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

pub use profile::Timing;

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
    let table: *const abi::Table = if enabled { &table::TABLE } else { std::ptr::null() };
    // SAFETY: the table is a static.
    unsafe { abi::mlx_sys_set_kernels(table) };
}

/// How long each kernel took until now, those that took the longest first. Operations of stock MLX are not counted.
///
/// Empty unless the environment variable `MLX_CPU_PROFILE` is `1`. Then the program also writes the profile to standard
/// error when it ends.
pub fn profile() -> Vec<Timing> {
    profile::timings(table::COUNTERS)
}

/// What the environment variable `MLX_CPU_KERNELS` says; without it, whether this crate is compiled with optimization.
fn is_allowed() -> bool {
    static ALLOWED: OnceLock<bool> = OnceLock::new();
    *ALLOWED.get_or_init(|| match std::env::var("MLX_CPU_KERNELS").as_deref().map(str::trim) {
        Ok("off" | "0" | "false" | "no") => false,
        Ok("on" | "1" | "true" | "yes") => true,
        Ok("") | Err(_) => !cfg!(unoptimized),
        Ok(other) => {
            // A misspelt "off" must not go unnoticed.
            stderr::write(&format!("MLX_CPU_KERNELS={other} is ignored: it must be \"off\" or \"on\"\n"));
            !cfg!(unoptimized)
        }
    })
}

extern "C" fn install() {
    profile::install(table::COUNTERS);
    set_enabled(true);
}

/// Run by the loader before `main`.
#[used]
#[unsafe(link_section = ".init_array")]
static INSTALL: extern "C" fn() = install;

#[cfg(test)]
mod tests {
    use super::abi::{Arrays, OPERATIONS, Operation, Table, mlx_sys_set_kernels};
    use super::*;
    use std::ffi::{CStr, c_char, c_int, c_void};
    use std::sync::Mutex;

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
        // The waiting thread helps while the kernel fails on another one.
        static BROKEN: Table = Table {
            kernels: {
                let mut kernels: [abi::Run; OPERATIONS as usize] = [None; OPERATIONS as usize];
                kernels[Operation::add as usize] = Some(fails);
                kernels
            },
            help: table::TABLE.help,
        };
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
