//! Finds the sources of mlx-c, which are in the original crate.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::{Failure, Result, last_lines, run, variable};

/// The folder of mlx-c's sources inside the crates.io package `mlx-sys` 0.7.0.
///
/// Cargo downloads the package, checks its hash against `upstream/Cargo.lock`, and says in which folder it is. The
/// manifest is copied out of the source tree first, since cargo may write files next to it.
pub fn mlx_c() -> Result<PathBuf> {
    let manifest_dir = PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join("upstream");
    let copy = PathBuf::from(variable("OUT_DIR")?).join("upstream");
    crate::failure::create_dir(&copy.join("src"))?;
    for file in ["Cargo.toml", "Cargo.lock", "src/lib.rs"] {
        std::fs::copy(manifest_dir.join(file), copy.join(file))
            .map_err(|e| Failure::io(format!("copying upstream/{file}"), e))?;
    }

    let mut cargo = Command::new(variable("CARGO")?);
    cargo
        .args(["metadata", "--locked", "--format-version", "1", "--manifest-path"])
        .arg(copy.join("Cargo.toml"));
    let answer =
        run(&mut cargo)?.ok_or_else(|| Failure::new("cargo was not found", "check the variable CARGO"))?;
    if !answer.status.success() {
        return Err(Failure::new(
            format!(
                "the crates.io package mlx-sys 0.7.0, which holds the sources of mlx-c, cannot be downloaded:\n{}",
                last_lines(&answer.stderr)
            ),
            "connect to the network for the first build; later builds do not need it",
        ));
    }
    let root = package_root(&answer.stdout)
        .ok_or_else(|| Failure::new("cargo did not name the folder of mlx-sys 0.7.0", "update cargo"))?;
    let mlx_c = root.join("src/mlx-c");
    if !mlx_c.join("CMakeLists.txt").is_file() {
        return Err(Failure::new(
            format!("{} is not the mlx-c of mlx-sys 0.7.0", mlx_c.display()),
            format!("remove the folder {} and build again; cargo then unpacks it again", root.display()),
        ));
    }
    Ok(mlx_c)
}

fn package_root(metadata: &[u8]) -> Option<PathBuf> {
    let metadata: serde_json::Value = serde_json::from_slice(metadata).ok()?;
    let original = metadata["packages"].as_array()?.iter().find(|package| package["name"] == "mlx-sys")?;
    Some(PathBuf::from(original["manifest_path"].as_str()?).parent()?.to_path_buf())
}

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
