//! Puts the files of a platform together: those of the archive and those of the wheel.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use super::platform::{MACOS, Platform};
use super::program::{self, Built};
use super::tree::{self, File, Tree};
use super::{VERSION, elf, licences, wheel};
use crate::apple;

/// The files for a platform.
pub(super) struct Package {
    /// The name of the archive without its extension, and of the folder in it.
    pub(super) name: String,
    pub(super) archive: Tree,
    /// The wheel: folders of Python packages.
    pub(super) wheel: Tree,
}

/// A file that the program prints, as the program's arguments, and its place in the archive.
const PRINTED: [(&[&str], &str); 4] = [
    (&["man"], "share/man/man1/mlx-models.1"),
    (&["completions", "bash"], "share/bash-completion/completions/mlx-models"),
    (&["completions", "zsh"], "share/zsh/site-functions/_mlx-models"),
    (&["completions", "fish"], "share/fish/vendor_completions.d/mlx-models.fish"),
];

/// Builds and checks everything for a platform. `host` is the platform of this machine, whose program is built too, since it
/// prints the completions and the manual page.
pub(super) fn make(platform: Platform, host: Platform, root: &Path, dist: &Path) -> io::Result<Package> {
    let built = program::build(platform, host, root, dist)?;
    let name = format!("mlx-models-{VERSION}-{}", platform.target);
    let mlx = mlx_files(&built)?;
    let mut archive = program_files(&built, "");
    archive.extend(mlx.iter().map(|(path, file)| (format!("lib/{path}"), file.clone())));
    let mut wheel = program_files(&built, "mlx_models/");
    let installed: Tree = wheel.iter().chain(&mlx).map(|(path, file)| (path.clone(), file.clone())).collect();
    check(platform, "bin/mlx-models", &archive, dist)?;
    check(platform, "mlx_models/bin/mlx-models", &installed, dist)?;

    let version = program::mlx_version(platform, root)?;
    let printed = if platform == host {
        printed_by(&archive, dist)?
    } else {
        let built = program::build(host, host, root, dist)?;
        let mut tree = program_files(&built, "");
        tree.extend(mlx_files(&built)?.into_iter().map(|(path, file)| (format!("lib/{path}"), file)));
        printed_by(&tree, dist)?
    };
    archive.extend(printed);
    archive.insert("README.md".to_owned(), File::new(readme(platform)));
    let licences = licences::files(platform, root, &built.mlx)?;
    archive.extend(licences.in_archive());
    wheel.extend(wheel::python_files(platform, &version, root, &licences)?);
    Ok(Package { name, archive, wheel })
}

/// The program and this project's libraries, below `prefix`.
fn program_files(built: &Built, prefix: &str) -> Tree {
    let mut tree = Tree::from([(format!("{prefix}bin/mlx-models"), File::program(&built.program))]);
    for library in &built.libraries {
        let name = library.file_name().unwrap_or_default().display();
        tree.insert(format!("{prefix}lib/{name}"), File::copy(library));
    }
    tree
}

/// The libraries of MLX's package, with the paths that they have in it. Its headers and build files are left out.
fn mlx_files(built: &Built) -> io::Result<Tree> {
    let mut tree = Tree::new();
    for folder in ["mlx/lib", "mlx_cpu.libs"] {
        let from = built.mlx.join(folder);
        if !from.is_dir() {
            continue;
        }
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                tree.insert(format!("{folder}/{}", entry.file_name().display()), File::copy(entry.path()));
            }
        }
    }
    Ok(tree)
}

/// Refuses files that would not find each other, or need a newer system than MLX's package. `starts` is the path of the
/// program in the tree.
fn check(platform: Platform, starts: &str, tree: &Tree, dist: &Path) -> io::Result<()> {
    if platform.is_mac() {
        let folder = dist.join("checked");
        tree::write(tree, &folder)?;
        let accepted = apple::accepts(&folder.join(starts), &program::apple_folder(dist), MACOS)?;
        fs::remove_dir_all(folder)?;
        return if accepted { Ok(()) } else { Err(refused(platform, "see above")) };
    }
    let (problems, files) = elf::problems(tree)?;
    // The program, our libraries, and at least MLX's own.
    if files < platform.libraries.len() + 2 {
        return Err(refused(platform, &format!("there are only {files} ELF files")));
    }
    if problems.is_empty() { Ok(()) } else { Err(refused(platform, &problems.join("\n"))) }
}

fn refused(platform: Platform, problems: &str) -> io::Error {
    io::Error::other(format!("what was built for {} cannot be used elsewhere:\n{problems}", platform.target))
}

/// What the program of these files prints. It runs from a folder where nothing but the files of the archive is.
fn printed_by(tree: &Tree, dist: &Path) -> io::Result<Tree> {
    let folder = dist.join("unpacked");
    tree::write(tree, &folder)?;
    let mut printed = Tree::new();
    for (arguments, path) in PRINTED {
        let output = Command::new(folder.join("bin/mlx-models")).args(arguments).env_clear().output()?;
        if !output.status.success() || output.stdout.is_empty() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(io::Error::other(format!("`mlx-models {}` fails: {said}", arguments.join(" "))));
        }
        printed.insert(path.to_owned(), File::new(output.stdout));
    }
    fs::remove_dir_all(folder)?;
    Ok(printed)
}

/// What the README of an archive for Macs says in addition.
const ON_A_MAC: &str = "\nApple has not checked this program. If macOS refuses to start what a browser has downloaded, \
                        `xattr -dr com.apple.quarantine .` in this\nfolder removes the browser's mark.\n";

/// The archive's own README.
fn readme(platform: Platform) -> String {
    let text =
        include_str!("../../dist/README.md").replace("VERSION", VERSION).replace("SYSTEM", platform.system);
    if platform.is_mac() { text + ON_A_MAC } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dist::platform::PLATFORMS;

    #[test]
    fn the_layout_is_one_that_the_libraries_find_each_other_in() {
        let folder = tempfile::tempdir().unwrap();
        for file in
            ["mlx/lib/libmlx.so", "mlx/lib/cmake/x.cmake", "mlx/include/mlx.h", "mlx_cpu.libs/libblas.so"]
        {
            let file = folder.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "").unwrap();
        }
        let built = Built {
            program: "x/mlx-models".into(),
            libraries: vec!["a/libmlxc.so".into(), "b/libmlx_kernels.so".into()],
            mlx: folder.path().into(),
        };
        let names = |tree: Tree| tree.into_keys().collect::<Vec<_>>();
        assert_eq!(names(mlx_files(&built).unwrap()), ["mlx/lib/libmlx.so", "mlx_cpu.libs/libblas.so"]);
        let files = program_files(&built, "mlx_models/");
        assert!(files["mlx_models/bin/mlx-models"].is_executable);
        assert_eq!(
            names(files),
            ["mlx_models/bin/mlx-models", "mlx_models/lib/libmlx_kernels.so", "mlx_models/lib/libmlxc.so"]
        );
    }

    #[test]
    fn the_readme_of_an_archive_names_its_system() {
        for platform in PLATFORMS {
            let text = readme(platform);
            assert!(
                text.starts_with(&format!("# mlx-models {VERSION}\n")) && text.contains(platform.system),
                "{text}"
            );
            assert!(!text.contains("SYSTEM") && !text.contains("VERSION"), "{text}");
            assert_eq!(text.contains("quarantine"), platform.is_mac());
        }
    }
}
