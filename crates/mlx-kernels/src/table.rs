//! The table of kernels that MLX gets: for each row of `native/operations.def` a function that C++ calls, and a counter.

use std::cell::RefCell;
use std::ffi::{CString, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use mlx_cpu::Cpu;

use crate::abi::{Arrays, Table};
use crate::profile::Counter;
use crate::run::{self, Answer};
use crate::stderr;

/// Calls a kernel with what C++ gave, and returns what C++ expects: null or an error message.
///
/// # Safety
///
/// The pointers are those of `Run` in `native/abi.h`, and `settings` points to an `S`.
unsafe fn answer<S>(
    counter: &Counter,
    kernel: impl FnOnce(&Arrays, &S) -> Answer,
    arrays: *const Arrays,
    settings: *const c_void,
) -> *const c_char {
    thread_local!(static MESSAGE: RefCell<CString> = RefCell::default());
    // SAFETY: the caller's promise.
    let arrays = unsafe { &*arrays };
    // SAFETY: the caller's promise.
    let settings = unsafe { &*settings.cast::<S>() };
    write_environment_warnings();
    let result = counter.measure(|| catch_unwind(AssertUnwindSafe(|| kernel(arrays, settings))));
    let message = match result {
        Ok(Ok(())) => return std::ptr::null(),
        Ok(Err(message)) => message,
        Err(panic) => panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()))
            .unwrap_or_else(|| "it panicked".to_owned()),
    };
    let message = format!("the CPU kernel {} failed: {}", counter.name, message.replace('\0', " "));
    MESSAGE.with_borrow_mut(|kept| {
        *kept = CString::new(message).unwrap_or_default();
        kept.as_ptr()
    })
}

/// Writes to standard error, before the first kernel runs, which settings of the `MLX_CPU_` variables are
/// ignored.
fn write_environment_warnings() {
    static WRITTEN: Once = Once::new();
    WRITTEN.call_once(|| {
        for warning in Cpu::environment_warnings() {
            stderr::write(&format!("{warning}\n"));
        }
    });
}

/// Works on kernels of other threads until `until` answers yes, or until there is no work.
unsafe extern "C" fn help(until: Option<unsafe extern "C" fn(*mut c_void) -> bool>, of: *mut c_void) {
    if let Some(until) = until {
        // SAFETY: C++ lends a function and its argument for the time of this call, on this thread.
        Cpu::global().help(&|| unsafe { until(of) });
    }
}

/// Makes the counter and the table's entry of each operation.
macro_rules! operations {
    ($(KERNEL($file:ident, $operation:ident, $name:literal, $settings:ident))*) => {
        mod counters {
            use super::Counter;
            $(#[allow(non_upper_case_globals, reason = "named like the operation")]
            pub(super) static $operation: Counter = Counter::new($name);)*
        }

        /// In the order of the rows.
        pub(crate) static COUNTERS: &[&Counter] = &[$(&counters::$operation),*];

        mod entries {
            use super::*;
            use crate::abi;
            $(pub(super) unsafe extern "C" fn $operation(
                arrays: *const Arrays,
                settings: *const c_void,
            ) -> *const c_char {
                let kernel = run::$file::$operation;
                // SAFETY: C++ keeps to `native/abi.h`, and takes the type of the settings from the same row.
                unsafe { answer::<abi::$settings>(&counters::$operation, kernel, arrays, settings) }
            })*
        }

        pub(crate) static TABLE: Table =
            Table { kernels: [$(Some(entries::$operation)),*], help: Some(help) };
    };
}

// `operations! { ... }` around the rows of `native/operations.def`.
include!(concat!(env!("OUT_DIR"), "/operations.rs"));
