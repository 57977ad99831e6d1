//! The Rust declarations of mlx-c, by bindgen.

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

/// Writes the declarations of everything in `mlx_c` to `to`. `forced` is read before every header.
pub fn write(mlx_c: &Path, forced: Option<&Path>, clang_args: &[String], to: &Path) -> Result<()> {
    let headers = headers(mlx_c)?;
    let mut builder = bindgen::Builder::default()
        .clang_arg(format!("-I{}", mlx_c.display()))
        .clang_args(clang_args)
        // mlx-c does not own these, and bindgen's `c_ulong` sizes differ from what rustc expects of them.
        .blocklist_function("malloc")
        .blocklist_function("realloc");
    if let Some(forced) = forced {
        builder = builder
            .clang_args(["-include".to_owned(), forced.display().to_string()])
            // What mlx-rs expects: a newtype over u16, so that it differs from bfloat16_t, a plain u16.
            .new_type_alias("float16_t");
    }
    for header in &headers {
        builder = builder.header(header.display().to_string());
    }
    builder
        .generate()
        .map_err(|e| {
            Failure::new(
                format!("bindgen cannot read the headers of mlx-c: {e}"),
                "use libclang 14 or newer (LIBCLANG_PATH names its folder), or unset LIBCLANG_PATH",
            )
        })?
        .write_to_file(to)
        .map_err(|e| Failure::io(format!("writing {}", to.display()), e))
}
