//! A project outside this workspace, with the lines of `crates/mlx-sys/README.md` in its manifest.

use std::fs;
use std::io;
use std::path::Path;

/// The project's folder, from the workspace's root.
pub(super) const FOLDER: &str = "target/downstream-project";

/// A part of what its program prints.
pub(super) const PRINTS: &str = "[2, 4]";

const MAIN: &str = "fn main() {
    let x = mlx_rs::Array::from_slice(&[1.0_f32, 2.0], &[2]);
    println!(\"{}\", x.add(&x).unwrap());
}
";

pub(super) fn write(root: &Path) -> io::Result<()> {
    let folder = root.join(FOLDER);
    fs::create_dir_all(folder.join("src"))?;
    let readme = fs::read_to_string(root.join("crates/mlx-sys/README.md"))?;
    let lines =
        readme.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap_or_default();
    let lines = lines.replace("path/to/mlx-models", &root.display().to_string());
    let manifest = format!(
        "[package]\nname = \"downstream\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n{lines}\n[workspace]\n"
    );
    fs::write(folder.join("Cargo.toml"), manifest)?;
    fs::write(folder.join("src/main.rs"), MAIN)
}
