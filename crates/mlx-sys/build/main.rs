//! Provides MLX and its C interface to `mlx-rs`, and the Rust declarations of that interface.
//!
//! On Apple the steps are those of the original crate: CMake builds MLX and mlx-c (`apple`).
//! On Linux MLX comes ready-made from the Python package index, and only mlx-c is compiled
//! (`linux`). Either way the sources of mlx-c are those of the original crate (`upstream`).

mod apple;
mod bindings;
mod failure;
mod linux;
mod python;
mod upstream;

use std::process::ExitCode;

use failure::{Failure, Result};

/// The MLX that mlx-c 0.7.0 is written against, and so the only one that it is linked to.
const MLX_VERSION: &str = "0.32.2";

/// What the crate's dependents are told: `DEP_MLX_INCLUDE` and its kin, as the original publishes them.
struct Published {
    include: Vec<std::path::PathBuf>,
    defines: &'static str,
}

fn main() -> ExitCode {
    for file in ["build", "native", "requirements", "upstream"] {
        println!("cargo::rerun-if-changed={file}");
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            for line in failure.to_string().lines() {
                println!("cargo::error={line}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    // Lets the crate's tests run this program again, in a world where something is missing.
    let this = std::env::current_exe().map_err(|e| Failure::io("finding this program", e))?;
    println!("cargo::rustc-env=MLX_SYS_BUILD_SCRIPT={}", this.display());

    // Kernels without optimization are slower than stock MLX, which comes optimized.
    println!("cargo::rustc-check-cfg=cfg(unoptimized)");
    if failure::variable("OPT_LEVEL")? == "0" {
        println!("cargo::rustc-cfg=unoptimized");
    }

    let target = failure::variable("TARGET")?;
    let published = if failure::variable("CARGO_CFG_TARGET_VENDOR")? == "apple" {
        apple::build()?
    } else if let Some(platform) = linux::Platform::of(&target) {
        linux::build(platform)?
    } else {
        return Err(Failure::new(
            format!("there is no MLX for the target {target}"),
            "build for Apple, or for x86_64-unknown-linux-gnu or aarch64-unknown-linux-gnu",
        ));
    };

    let include = std::env::join_paths(&published.include).map_err(|e| {
        Failure::new(
            format!("the include path cannot be published: {e}"),
            "use folders without a : in their names",
        )
    })?;
    println!("cargo::metadata=include={}", include.to_string_lossy());
    println!("cargo::metadata=defines={}", published.defines);
    println!("cargo::metadata=version={MLX_VERSION}");
    Ok(())
}
