//! The Python wheel: the program and this project's libraries, without MLX, which pip installs beside them.
//!
//! The program lies inside the Python package `mlx_models`, not in a folder of scripts. Where pip puts scripts depends on the
//! system and on pip's options, but packages always lie beside each other, and so the libraries find MLX's. What pip writes
//! as the script `mlx-models` starts Python, which replaces itself by the program.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use workspace::python::{self, Environment};

use super::VERSION;
use super::archive::DATE;
use super::licences::Licences;
use super::platform::Platform;
use super::tree::{self, File, Tree};

/// The folder of the Python package.
const PACKAGE: &str = "mlx_models";

/// The files that make the program a Python package. `mlx` is the version of MLX's package.
pub(super) fn python_files(
    platform: Platform,
    mlx: &str,
    root: &Path,
    licences: &Licences,
) -> io::Result<Tree> {
    let mut tree = Tree::new();
    for name in ["__init__.py", "__main__.py"] {
        let text = fs::read_to_string(root.join("xtask/dist/mlx_models").join(name))?;
        tree.insert(format!("{PACKAGE}/{name}"), File::new(text.replace("MLX_PACKAGE", platform.mlx)));
    }
    let description = fs::read_to_string(root.join("xtask/dist/wheel.md"))?;
    let mut metadata = metadata(platform, mlx);
    let information = format!("{PACKAGE}-{VERSION}.dist-info");
    for (name, file) in licences.in_wheel() {
        metadata += &format!("License-File: {name}\n");
        tree.insert(format!("{information}/licenses/{name}"), file.clone());
    }
    let texts = [
        ("METADATA", format!("{metadata}\n{description}")),
        (
            "WHEEL",
            format!(
                "Wheel-Version: 1.0\nGenerator: mlx-models\nRoot-Is-Purelib: false\nTag: py3-none-{}\n",
                platform.tag
            ),
        ),
        ("entry_points.txt", format!("[console_scripts]\nmlx-models = {PACKAGE}:main\n")),
    ];
    tree.extend(texts.map(|(name, text)| (format!("{information}/{name}"), File::new(text))));
    Ok(tree)
}

fn metadata(platform: Platform, mlx: &str) -> String {
    format!(
        "Metadata-Version: 2.4\n\
         Name: mlx-models\n\
         Version: {VERSION}\n\
         Summary: Run language models on MLX\n\
         License-Expression: MIT OR Apache-2.0\n\
         Keywords: mlx,llm,chat,inference\n\
         Requires-Python: >=3.10\n\
         Requires-Dist: {}=={mlx}\n\
         Description-Content-Type: text/markdown\n",
        platform.mlx
    )
}

/// Packs the wheel. Returns its path.
pub(super) fn write(tree: &Tree, platform: Platform, dist: &Path, to: &Path) -> io::Result<PathBuf> {
    let wheel = to.join(format!("{PACKAGE}-{VERSION}-py3-none-{}.whl", platform.tag));
    let folder = dist.join("wheel");
    tree::write(tree, &folder)?;
    let mut pack = python::isolated(python::interpreter(Environment::Dist)?);
    pack.args(["-m", "wheel", "pack"]).arg(&folder).arg("--dest-dir").arg(to);
    let output = pack.env("SOURCE_DATE_EPOCH", DATE.to_string()).output()?;
    if !output.status.success() || !wheel.is_file() {
        let said = [output.stdout, output.stderr].concat();
        return Err(io::Error::other(format!("the wheel cannot be packed:\n{}", python::last_lines(&said))));
    }
    fs::remove_dir_all(folder)?;
    Ok(wheel)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dist::platform::PLATFORMS;

    #[test]
    fn a_wheel_depends_on_the_exact_version_of_mlx() {
        let requirement = |platform| {
            let text = metadata(platform, "9.8.7");
            text.lines().find_map(|line| line.strip_prefix("Requires-Dist: ")).unwrap().to_owned()
        };
        assert_eq!(PLATFORMS.map(requirement), ["mlx-cpu==9.8.7", "mlx-cpu==9.8.7", "mlx-metal==9.8.7"]);
    }
}
