//! The environment variable `MLX_MODELS_DEVICE` is read before `main` begins.
#![cfg(all(target_os = "linux", not(feature = "cuda")))]
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::env;
use std::ffi::c_int;
use std::process::Command;
use std::sync::atomic::{AtomicI32, Ordering::SeqCst};

use mlx_sys::{mlx_device, mlx_device_get_type, mlx_device_type__MLX_CPU};

const NOT_CALLED: i32 = -1;

/// The kind of device that was made the default.
static CHOSEN: AtomicI32 = AtomicI32::new(NOT_CALLED);

/// The program's own function goes before that of mlx-c, so the test sees the call where the CPU is the only device, too.
#[unsafe(no_mangle)]
extern "C" fn mlx_set_default_device(device: mlx_device) -> c_int {
    let mut kind = 0;
    // SAFETY: the caller gives a device, and the answer goes into a local variable.
    let status = unsafe { mlx_device_get_type(&mut kind, device) };
    CHOSEN.store(kind as i32, SeqCst);
    status
}

/// Set in the processes that this test starts: the kind that must have been chosen.
const EXPECTED: &str = "MLX_SYS_TEST_EXPECTED";

#[test]
fn the_cpu_is_chosen_before_main() {
    if let Ok(expected) = env::var(EXPECTED) {
        assert_eq!(CHOSEN.load(SeqCst).to_string(), expected);
        return;
    }
    let cpu = mlx_device_type__MLX_CPU as i32;
    for (value, expected) in [
        (Some("cpu"), cpu),
        (Some("gpu"), NOT_CALLED),
        (Some("auto"), NOT_CALLED),
        (Some("CPU"), NOT_CALLED),
        (Some(""), NOT_CALLED),
        (None, NOT_CALLED),
    ] {
        let mut again = Command::new(env::current_exe().unwrap());
        again.args(["--exact", "the_cpu_is_chosen_before_main"]).env(EXPECTED, expected.to_string());
        match value {
            Some(value) => again.env("MLX_MODELS_DEVICE", value),
            None => again.env_remove("MLX_MODELS_DEVICE"),
        };
        let output = again.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{value:?}: {said}");
    }
}
