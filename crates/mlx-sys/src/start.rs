//! The environment variable `MLX_MODELS_DEVICE`: with the value `cpu`, MLX's default device is the CPU from the start.
//!
//! It works for every program, without a call, so that tests and examples run on the device that was asked for on all of
//! their threads. A program may choose another device later. With another value, MLX's own default stays: the GPU where
//! there is one. In a build with the feature `cuda`, `dispatch/dispatch.cpp` reads the variable instead.

use std::ffi::OsStr;

fn is_cpu(value: Option<&OsStr>) -> bool {
    value.is_some_and(|value| value == "cpu")
}

extern "C" fn choose() {
    if is_cpu(std::env::var_os("MLX_MODELS_DEVICE").as_deref()) {
        // SAFETY: calls of mlx-c with what its function made. No other thread runs before `main`.
        unsafe {
            let cpu = crate::mlx_device_new_type(crate::mlx_device_type__MLX_CPU, 0);
            crate::mlx_set_default_device(cpu);
            crate::mlx_device_free(cpu);
        }
    }
}

/// Run by the loader before `main`.
#[used]
#[cfg_attr(target_vendor = "apple", unsafe(link_section = "__DATA,__mod_init_func"))]
#[cfg_attr(not(target_vendor = "apple"), unsafe(link_section = ".init_array"))]
static CHOOSE: extern "C" fn() = choose;
