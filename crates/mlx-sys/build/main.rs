//! Provides MLX, its C interface (mlx-c) and the Rust declarations of that interface.
//!
//! On Apple, CMake builds MLX and mlx-c, as in the original crate (`apple`). On Linux, MLX is downloaded as a binary from
//! the Python package index, only mlx-c is compiled, and the declarations are in `generated/` (`linux`). On both, the
//! sources of mlx-c are those of the original crate (`upstream`). Our kernels for Linux's CPU are compiled once and kept
//! beside MLX (`kernels`).
#![allow(clippy::print_stdout, reason = "cargo reads a build script's standard output")]

#[cfg(target_vendor = "apple")]
mod apple;
#[cfg(any(feature = "bindgen", target_vendor = "apple"))]
mod bindings;
mod failure;
mod hash;
mod kernels;
mod linux;
mod python;
mod upstream;

use std::process::ExitCode;

use failure::{Failure, Result};

/// The version of MLX that mlx-c 0.7.0 is written against. No other is linked.
const MLX_VERSION: &str = "0.32.2";

/// What the build scripts of dependent crates get in `DEP_MLX_INCLUDE` and `DEP_MLX_DEFINES`, as from the original crate.
struct Published {
    include: Vec<std::path::PathBuf>,
    defines: &'static str,
}

fn main() -> ExitCode {
    for file in ["build", "generated", "kernels", "native", "requirements", "upstream"] {
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
    // tests/failures.rs runs this program again where something is missing.
    let this = std::env::current_exe().map_err(|e| Failure::io("finding this program", e))?;
    println!("cargo::rustc-env=MLX_SYS_BUILD_SCRIPT={}", this.display());

    // Pages of documentation are made without a network and are not linked.
    println!("cargo::rerun-if-env-changed=DOCS_RS");
    if std::env::var_os("DOCS_RS").is_some() {
        return Ok(());
    }
    let target = failure::variable("TARGET")?;
    let published = if failure::variable("CARGO_CFG_TARGET_VENDOR")? == "apple" {
        for_apple(&target)?
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

#[cfg(target_vendor = "apple")]
fn for_apple(_: &str) -> Result<Published> {
    apple::build()
}

/// MLX for Apple needs Xcode's tools.
#[cfg(not(target_vendor = "apple"))]
fn for_apple(target: &str) -> Result<Published> {
    Err(Failure::new(format!("MLX for {target} can only be built on a Mac"), "build on a Mac"))
}
