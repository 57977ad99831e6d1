//! Provides MLX, its C interface (mlx-c) and the Rust declarations of that interface.
//!
//! MLX is downloaded as a binary from the Python package index, and only mlx-c is compiled (`packages`; `platform` has what
//! differs between Linux and Macs). Its sources are those of the original crate (`upstream`), and the declarations are in
//! `generated/`. Our kernels for Linux's CPU are compiled once and kept beside MLX (`kernels`). With the feature `cuda`, MLX
//! for NVIDIA GPUs is downloaded too (`cuda`), and a running program chooses between the two (`dispatch`). For what packages
//! do not have, such as iOS, CMake builds MLX and mlx-c as in the original crate (`from_source`).
#![allow(clippy::print_stdout, reason = "cargo reads a build script's standard output")]

#[cfg(feature = "bindgen")]
mod bindings;
mod cuda;
mod dispatch;
mod failure;
mod from_source;
mod hash;
mod kernels;
mod mac;
mod packages;
mod platform;
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
    for file in ["build", "dispatch", "generated", "kernels", "native", "requirements", "upstream"] {
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
    let published = if let Some(reason) = from_source::reason(&target)? {
        from_source::build(&target, &reason)?
    } else if let Some(platform) = platform::Platform::of(&target)? {
        packages::build(platform)?
    } else {
        return Err(platform::no_package(&target)?);
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
