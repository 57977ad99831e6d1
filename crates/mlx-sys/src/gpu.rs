//! Whether operations can run on MLX's GPU device, and why not.
//!
//! A program built with the feature `cuda` holds two builds of MLX: one for NVIDIA GPUs and one for the CPU only. The first
//! operation, or the first call of [`refusal`], decides which one the process uses until it ends. [`turn_off`] comes before
//! it where the user asks for the CPU. If an operation decides, the environment variable `MLX_MODELS_DEVICE` counts.
#![warn(missing_docs, clippy::all)]

use std::ffi::CStr;

/// `None` if operations can run on MLX's GPU device. Otherwise a sentence, without a final dot, that says why they cannot.
///
/// The first call may take a while, since it starts the GPU's driver and loads MLX.
pub fn refusal() -> Option<String> {
    imp::refusal()
}

/// Has the process leave the GPU alone. Operations run on the CPU, by the build of MLX that has no other device.
///
/// Must come before the first operation and before [`refusal`]. Returns false where it comes too late: then choose the
/// CPU as MLX's device. Always true in a build for one device, where there is nothing to choose.
pub fn turn_off() -> bool {
    imp::turn_off()
}

/// The memory of the GPU that operations run on, in bytes: all of it, and what is free, where MLX says that. `None` without a
/// GPU.
pub fn memory() -> Option<(u64, Option<u64>)> {
    if refusal().is_some() {
        return None;
    }
    // SAFETY: calls of mlx-c with what its functions made, and keys that are texts with an end.
    unsafe {
        let gpu = crate::mlx_device_new_type(crate::mlx_device_type__MLX_GPU, 0);
        let mut info = crate::mlx_device_info_new();
        let is_there = crate::mlx_device_info_get(&mut info, gpu) == 0;
        let size = |key: &CStr| {
            let mut size = 0;
            let is_known = is_there && crate::mlx_device_info_get_size(&mut size, info, key.as_ptr()) == 0;
            is_known.then_some(size as u64)
        };
        // The first is the key of CUDA, the second that of Metal.
        let total = size(c"total_memory").or_else(|| size(c"memory_size"));
        let free = size(c"free_memory");
        crate::mlx_device_info_free(info);
        crate::mlx_device_free(gpu);
        Some((total?, free))
    }
}

/// Two builds of MLX behind one interface: `dispatch/dispatch.cpp`.
#[cfg(all(target_os = "linux", feature = "cuda"))]
mod imp {
    use std::ffi::{CStr, c_char};

    unsafe extern "C" {
        safe fn mlx_sys_gpu_refusal() -> *const c_char;
        safe fn mlx_sys_gpu_turn_off() -> bool;
    }

    pub fn refusal() -> Option<String> {
        let sentence = mlx_sys_gpu_refusal();
        if sentence.is_null() {
            return None;
        }
        // SAFETY: a text that never changes and lives as long as the process.
        Some(unsafe { CStr::from_ptr(sentence) }.to_string_lossy().into_owned())
    }

    pub fn turn_off() -> bool {
        mlx_sys_gpu_turn_off()
    }
}

/// One build of MLX, which knows whether it has a GPU.
#[cfg(not(all(target_os = "linux", feature = "cuda")))]
mod imp {
    pub fn refusal() -> Option<String> {
        let mut is_available = false;
        // SAFETY: calls of mlx-c with what its function made, and with a flag that lives through the call.
        unsafe {
            let gpu = crate::mlx_device_new_type(crate::mlx_device_type__MLX_GPU, 0);
            crate::mlx_device_is_available(&mut is_available, gpu);
            crate::mlx_device_free(gpu);
        }
        let sentence = if cfg!(all(target_vendor = "apple", feature = "metal")) {
            "Metal finds no GPU on this machine"
        } else {
            "this build of MLX has no GPU support"
        };
        (!is_available).then(|| sentence.to_owned())
    }

    pub fn turn_off() -> bool {
        true
    }
}

#[cfg(all(test, not(any(feature = "cuda", target_vendor = "apple"))))]
mod tests {
    use super::*;

    #[test]
    fn a_build_for_the_cpu_says_so() {
        assert!(turn_off());
        assert_eq!(refusal().as_deref(), Some("this build of MLX has no GPU support"));
        assert_eq!(memory(), None);
    }
}
