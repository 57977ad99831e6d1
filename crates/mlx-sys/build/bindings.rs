//! The Rust declarations of mlx-c and of `native/abi.h`, by bindgen.

use std::path::{Path, PathBuf};

use crate::failure::{Failure, Result};

/// All headers of mlx-c, in a fixed order.
pub fn headers(mlx_c: &Path) -> Result<Vec<PathBuf>> {
    let folder = mlx_c.join("mlx/c");
    let entries =
        std::fs::read_dir(&folder).map_err(|e| Failure::io(format!("listing {}", folder.display()), e))?;
    let mut headers: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "h"))
        .collect();
    headers.sort();
    Ok(headers)
}

/// Writes the declarations of everything in `mlx_c` to `to`. `forced` is a header that is read before every other.
pub fn write(mlx_c: &Path, forced: Option<&Path>, clang_args: &[String], to: &Path) -> Result<()> {
    let headers = headers(mlx_c)?;
    let mut builder = bindgen::Builder::default()
        .clang_arg(format!("-I{}", mlx_c.display()))
        .clang_args(clang_args)
        // They are the C library's, and bindgen declares their sizes as `c_ulong`, which rustc does not expect.
        .blocklist_function("malloc")
        .blocklist_function("realloc");
    if let Some(forced) = forced {
        builder = builder
            .clang_args(["-include".to_owned(), forced.display().to_string()])
            // mlx-rs expects a newtype over u16, different from bfloat16_t, which is a plain u16.
            .new_type_alias("float16_t");
    }
    for header in &headers {
        builder = builder.header(header.display().to_string());
    }
    generate(builder, "the headers of mlx-c", to)
}

/// Writes the Rust declarations of `native/abi.h`, the types that C++ and Rust exchange, to `to`. Its enumerations become
/// enums of Rust, since both sides are compiled from the same list of values.
pub fn write_abi(native: &Path, clang_args: &[String], to: &Path) -> Result<()> {
    let builder = bindgen::Builder::default()
        .header(native.join("abi.h").display().to_string())
        .clang_args(["-x", "c++", "-std=c++20"])
        .clang_args(clang_args)
        .allowlist_file(".*/(abi\\.h|operations\\.def)")
        .disable_name_namespacing()
        .rustified_enum(".*")
        // Rust passes a table whose type it does not know.
        .blocklist_function(".*");
    generate(builder, "native/abi.h", to)
}

fn generate(builder: bindgen::Builder, what: &str, to: &Path) -> Result<()> {
    let bindings = builder.generate().map_err(|e| {
        Failure::new(
            format!("bindgen cannot read {what}: {e}"),
            "use libclang 14 or newer (LIBCLANG_PATH names its folder), or unset LIBCLANG_PATH",
        )
    })?;
    bindings.write_to_file(to).map_err(|e| Failure::io(format!("writing {}", to.display()), e))
}
