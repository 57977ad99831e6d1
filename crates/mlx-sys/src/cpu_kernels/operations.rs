//! What the C++ side calls: each takes the inputs and the output of one operation.

use std::cell::RefCell;
use std::ffi::{CString, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use mlx_cpu::Cpu;

use super::profile::Counter;
use super::tensor::Tensor;
use super::{Run, Settings, Table, Until, run};

/// How many tensors the C++ side gives: inputs, output, and placeholders.
pub(super) const TENSORS: usize = 9;

pub(super) type Answer = Result<(), String>;

/// Calls `body` with what C++ gave, and says what went wrong as C++ takes it.
///
/// # Safety
///
/// The pointers are those of `Run` in `native/cpu_kernels.h`.
unsafe fn answer(
    counter: &Counter,
    tensors: *const Tensor,
    settings: *const Settings,
    body: impl FnOnce(&[Tensor; TENSORS], &Settings) -> Answer,
) -> *const c_char {
    thread_local!(static MESSAGE: RefCell<CString> = RefCell::default());
    // SAFETY: the caller's promise.
    let (tensors, settings) = unsafe { (&*tensors.cast(), &*settings) };
    print_environment_warnings();
    let result = counter.measure(|| catch_unwind(AssertUnwindSafe(|| body(tensors, settings))));
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

/// Prints to standard error, before the first kernel runs, what `MLX_CPU_ISA` and `MLX_CPU_THREADS` ask for in vain.
///
/// Libraries of this workspace do not print. Here there is no other way: a program that calls mlx-rs does not know that
/// there are kernels, and gives them neither a logger nor a place for warnings.
fn print_environment_warnings() {
    static PRINTED: Once = Once::new();
    PRINTED.call_once(|| Cpu::environment_warnings().iter().for_each(|warning| eprintln!("{warning}")));
}

/// Makes for each operation an entry of the table, and its counter.
macro_rules! operations {
    ($($entry:ident: $name:literal = $function:path;)*) => {
        mod counters {
            use super::Counter;
            $(#[allow(non_upper_case_globals)] pub(super) static $entry: Counter = Counter::new($name);)*
        }

        pub(super) static COUNTERS: &[&Counter] = &[$(&counters::$entry),*];

        mod entries {
            use super::*;
            $(pub(super) unsafe extern "C" fn $entry(
                tensors: *const Tensor,
                settings: *const Settings,
            ) -> *const c_char {
                // SAFETY: C++ keeps to the declaration in `native/cpu_kernels.h`.
                unsafe { answer(&counters::$entry, tensors, settings, |tensors, settings| $function(tensors, settings)) }
            })*
        }

        pub(super) static TABLE: Table = Table {
            $($entry: Some(entries::$entry as Run),)*
            help: Some(help),
        };
    };
}

/// No kernels.
#[cfg(test)]
pub(super) const NONE: Table = Table {
    rms_norm: None,
    rope: None,
    attention: None,
    matmul: None,
    addmm: None,
    quantized_matmul: None,
    quantized_attention: None,
    dequantize: None,
    quantize: None,
    softmax: None,
    logsumexp: None,
    argmax: None,
    add: None,
    multiply: None,
    subtract_from_rows: None,
    silu: None,
    swiglu: None,
    gelu: None,
    geglu: None,
    help: None,
};

/// Works on kernels that other threads run, until `until` answers yes or there is nothing to do.
unsafe extern "C" fn help(until: Until, of: *mut c_void) {
    // SAFETY: C++ gives a function and what it is to be called with, during this call and on this thread.
    Cpu::global().help(&|| unsafe { until(of) });
}

operations! {
    add: "Add" = run::add;
    multiply: "Multiply" = run::multiply;
    subtract_from_rows: "Subtract" = run::subtract_from_rows;
    softmax: "Softmax" = run::softmax;
    logsumexp: "LogSumExp" = run::logsumexp;
    argmax: "ArgMax" = run::argmax;
    rms_norm: "RMSNorm" = run::rms_norm;
    rope: "RoPE" = run::rope;
    silu: "SiLU" = run::silu;
    swiglu: "SwiGLU" = run::swiglu;
    gelu: "GELU" = run::gelu;
    geglu: "GeGLU" = run::geglu;
    matmul: "Matmul" = run::matmul;
    addmm: "AddMM" = run::addmm;
    attention: "Attention" = run::attention;
    quantized_matmul: "QuantizedMatmul" = run::quantized_matmul;
    quantized_attention: "QuantizedAttention" = run::quantized_attention;
    dequantize: "Dequantize" = run::dequantize;
    quantize: "Quantize" = run::quantize;
}
