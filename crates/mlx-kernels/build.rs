//! Writes the rows of `operations.def`, the list of kernels that C++ and Rust share, as the arguments of a macro.
#![allow(clippy::print_stdout, reason = "cargo reads a build script's standard output")]

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let list = Path::new("../mlx-sys/native/operations.def");
    println!("cargo::rerun-if-changed={}", list.display());
    println!("cargo::rerun-if-changed=build.rs");
    let rows = std::fs::read_to_string(list).map_err(|e| format!("{}: {e}", list.display()))?;
    let to = Path::new(&std::env::var("OUT_DIR")?).join("operations.rs");
    std::fs::write(to, format!("operations! {{\n{rows}}}\n"))?;
    Ok(())
}
