//! What tests expect of the device that they run on.
//!
//! Tests run on MLX's default device: the GPU where there is one, or the device that the environment variable
//! `MLX_MODELS_DEVICE` names. `docs/platforms.md` lists which assertions are weaker on a GPU, and why.

use std::env;
use std::sync::Once;

use mlx_rs::{Device, DeviceType, Stream, with_stream};

const VARIABLE: &str = "MLX_MODELS_DEVICE";

/// Whether tests run on the CPU device now.
///
/// # Panics
///
/// `MLX_MODELS_DEVICE` names a GPU and there is none, or the variable has a value that it cannot have. Otherwise a test
/// would pass on another device than the one that it was meant for.
pub fn on_cpu() -> bool {
    static CHECKED: Once = Once::new();
    CHECKED.call_once(|| check(env::var(VARIABLE).unwrap_or_default().as_str()));
    is_cpu()
}

fn is_cpu() -> bool {
    matches!(Device::default().get_type(), Ok(DeviceType::Cpu))
}

#[allow(clippy::print_stderr, reason = "for the person who reads the output of a test")]
fn check(variable: &str) {
    match variable {
        "" | "auto" => {}
        "cpu" => assert!(is_cpu(), "{VARIABLE} is cpu, and MLX's default device is another one"),
        "gpu" => {
            if let Some(why) = mlx_sys::gpu::refusal() {
                panic!("{VARIABLE} is gpu, and tests cannot run on a GPU, because {why}");
            }
        }
        other => panic!("{VARIABLE} is {other:?}, and must be auto, gpu or cpu"),
    }
    if !is_cpu() && env::var_os("MLX_ENABLE_TF32").is_none_or(|value| value != "0") {
        eprintln!("note: some GPUs round float32 to TF32 in products; MLX_ENABLE_TF32=0 turns that off");
    }
}

/// Whether tests run on the device on which fixtures with mlx-lm's results were recorded: the CPU of Linux on x86-64.
/// With stock MLX ([`stock_mlx`](crate::stock_mlx)) we have the same bits there.
pub fn on_recording_device() -> bool {
    cfg!(all(target_os = "linux", target_arch = "x86_64")) && on_cpu()
}

/// Runs this part of a test on the CPU device, whatever `MLX_MODELS_DEVICE` says, and says so if that is another device.
/// For comparisons that only the CPU can pass; `why` says so. It applies to operations that are made on this thread.
#[allow(clippy::print_stderr, reason = "for the person who reads the output of a test")]
pub fn with_cpu<T>(why: &str, test: impl FnOnce() -> T) -> T {
    if on_cpu() {
        return test();
    }
    eprintln!("note: this test runs on the CPU and not on the GPU: {why}");
    with_stream(&Stream::cpu(), test)
}

/// Makes the CPU the device of the whole test program, for all threads, as [`with_cpu`] does for a part of a test. Must be
/// the first call of every test of a file.
#[allow(clippy::print_stderr, reason = "for the person who reads the output of a test")]
pub fn use_cpu(why: &str) {
    static CHOSEN: Once = Once::new();
    CHOSEN.call_once(|| {
        if !on_cpu() {
            eprintln!("note: these tests run on the CPU and not on the GPU: {why}");
            Device::set_default(&Device::cpu());
        }
    });
}

/// By how many bytes MLX's count of the memory of `arrays` arrays may exceed their sizes. A build of MLX for GPUs
/// allocates whole pages of 16 KiB, on the CPU device too.
pub fn allocation_slack(arrays: usize) -> usize {
    if mlx_sys::gpu::refusal().is_some() { 0 } else { arrays * 16_384 }
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::*;

    #[test]
    fn the_device_is_that_of_the_process_on_every_thread() {
        let here = Device::default().to_string();
        assert_eq!(here.contains("cpu"), on_cpu());
        assert_eq!(std::thread::spawn(|| Device::default().to_string()).join().unwrap(), here);
    }

    #[test]
    fn a_device_that_cannot_be_had_fails_the_test() {
        let said = |variable: &'static str| {
            *catch_unwind(|| check(variable)).unwrap_err().downcast::<String>().unwrap()
        };
        assert_eq!(said("tpu"), "MLX_MODELS_DEVICE is \"tpu\", and must be auto, gpu or cpu");
        check("auto");
        if let Some(why) = mlx_sys::gpu::refusal() {
            assert_eq!(
                said("gpu"),
                format!("MLX_MODELS_DEVICE is gpu, and tests cannot run on a GPU, because {why}")
            );
            check("cpu");
        }
    }
}
