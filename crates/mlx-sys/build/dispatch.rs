//! The library of a build with the feature `cuda` that programs link: it hands each function of mlx-c to the library for
//! NVIDIA GPUs or to the one for the CPU, and chooses when a program runs (`dispatch/dispatch.cpp`).

use std::path::Path;

use crate::failure::{Failure, Result};

/// What the library depends on, beside the next.
pub const RECIPE: &str = concat!(
    include_str!("dispatch.rs"),
    include_str!("../generated/bindings.rs"),
    include_str!("../src/lib.rs")
);

pub const SOURCE: &str = include_str!("../dispatch/dispatch.cpp");

/// The declarations of mlx-c, which name all its functions: those of bindgen, and one that is written by hand.
const DECLARATIONS: [&str; 2] = [include_str!("../generated/bindings.rs"), include_str!("../src/lib.rs")];

/// Writes the sources into a folder. Returns the one to compile.
pub fn sources(folder: &Path) -> Result<std::path::PathBuf> {
    let functions: String = functions().map(|name| format!("FUNCTION({name})\n")).collect();
    let source = folder.join("dispatch.cpp");
    for (file, text) in [(&source, SOURCE), (&folder.join("functions.def"), &functions)] {
        std::fs::write(file, text).map_err(|e| Failure::io(format!("writing {}", file.display()), e))?;
    }
    Ok(source)
}

fn functions() -> impl Iterator<Item = &'static str> {
    let lines = DECLARATIONS.into_iter().flat_map(str::lines);
    let names = lines.filter_map(|line| line.trim_start().strip_prefix("pub fn ")?.split('(').next());
    names.filter(|name| name.trim_start_matches('_').starts_with("mlx_"))
}
