//! The licences of what is packed: this project's, those of the Rust crates in the program, and those of the libraries.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use super::platform::Platform;
use super::tree::{File, Tree};

/// The folder of licences of libraries that are not in a package of cargo.
const FOLDER: &str = "xtask/dist/licences";
/// Those of BLAS, LAPACK and the libraries of GCC, which MLX's package for Linux has.
const LINUX: [&str; 4] = ["gcc-runtime-library-exception.txt", "gpl-3.0.txt", "lapack.txt", "lgpl-2.1.txt"];
/// The licences of this project.
const OWN: [&str; 2] = ["LICENSE-APACHE", "LICENSE-MIT"];
/// The beginnings of the names of files with a licence.
const NAMES: [&str; 6] = ["copying", "copyright", "licence", "license", "notice", "unlicense"];

/// The licence files.
pub(super) struct Licences {
    own: Tree,
    /// Of what the program and this project's libraries contain.
    compiled: Tree,
    /// Of the libraries that only the archive has.
    beside: Tree,
}

impl Licences {
    /// All files, with their places in an archive.
    pub(super) fn in_archive(&self) -> Tree {
        let others = self.compiled.iter().chain(&self.beside);
        let others = others.map(|(name, file)| (format!("licences/{name}"), file.clone()));
        self.own.clone().into_iter().chain(others).collect()
    }

    /// The files for a wheel, which has no library of MLX.
    pub(super) fn in_wheel(&self) -> impl Iterator<Item = (&String, &File)> {
        self.own.iter().chain(&self.compiled)
    }
}

/// A crate, as `cargo metadata` describes it.
#[derive(Deserialize)]
struct Crate {
    name: String,
    version: String,
    license: Option<String>,
    manifest_path: PathBuf,
    /// `None` for a crate of this workspace.
    source: Option<String>,
}

/// Collects the licences. `mlx` is the unpacked package of MLX.
pub(super) fn files(platform: Platform, root: &Path, mlx: &Path) -> io::Result<Licences> {
    let own = OWN.iter().map(|name| ((*name).to_owned(), File::copy(root.join(name)))).collect();
    let mut compiled =
        Tree::from([("rust-crates.txt".to_owned(), File::new(crates(&linked(platform, root)?)?))]);
    let mut beside = Tree::new();
    let file = |name: &str| (name.to_owned(), File::copy(root.join(FOLDER).join(name)));
    compiled.extend([file("mlx-c.txt")]);
    beside.extend([file("libraries.md")]);
    if !platform.is_mac() {
        beside.extend(LINUX.map(file));
    }
    for (name, path) in of_mlx(mlx)? {
        beside.insert(name.to_owned(), File::copy(path));
    }
    Ok(Licences { own, compiled, beside })
}

/// MLX's licence and, where MLX's package has one, its list of the libraries in it.
fn of_mlx(mlx: &Path) -> io::Result<Vec<(&'static str, PathBuf)>> {
    let entries: Vec<PathBuf> =
        fs::read_dir(mlx)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    let description =
        entries.iter().find(|path| path.extension().is_some_and(|extension| extension == "dist-info"));
    let description =
        description.ok_or_else(|| io::Error::other(format!("no dist-info in {}", mlx.display())))?;
    let mut found = vec![("mlx.txt", description.join("licenses/LICENSE"))];
    let list = description.join("sboms/auditwheel.cdx.json");
    if list.is_file() {
        found.push(("mlx-packages.json", list));
    }
    Ok(found)
}

/// The crates that are compiled into the program and into the kernels, without those of this workspace.
fn linked(platform: Platform, root: &Path) -> io::Result<Vec<Crate>> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Crate>,
    }
    let tree = cargo(
        root,
        &format!(
            "tree --locked --package mlx-models-cli --package mlx-kernels --edges normal --prefix none --format {{p}} --target {}",
            platform.target
        ),
    )?;
    let tree = String::from_utf8_lossy(&tree).into_owned();
    let names: BTreeSet<(&str, &str)> = tree.lines().filter_map(name_and_version).collect();
    let metadata =
        cargo(root, &format!("metadata --locked --format-version 1 --filter-platform {}", platform.target))?;
    let all = serde_json::from_slice::<Metadata>(&metadata)?.packages;
    Ok(all
        .into_iter()
        .filter(|one| one.source.is_some() && names.contains(&(&one.name, &one.version)))
        .collect())
}

/// A line of `cargo tree`, such as `serde v1.0.2 (proc-macro)`.
fn name_and_version(line: &str) -> Option<(&str, &str)> {
    let mut words = line.split(' ');
    Some((words.next()?, words.next()?.strip_prefix('v')?))
}

fn cargo(root: &Path, arguments: &str) -> io::Result<Vec<u8>> {
    let output = Command::new(env!("CARGO")).args(arguments.split(' ')).current_dir(root).output()?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(io::Error::other(format!("cargo {arguments}: {}", String::from_utf8_lossy(&output.stderr))))
}

/// One text with the licences of all crates. A licence that several crates have in the same words is there once.
fn crates(crates: &[Crate]) -> io::Result<String> {
    let mut texts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for Crate { name, version, license, manifest_path, .. } in crates {
        let licence = license.as_deref().unwrap_or("see below");
        let title = format!("{name} {version} ({licence})");
        let folder = manifest_path.parent().unwrap_or(manifest_path);
        let mut files = Vec::new();
        find(folder, &mut files)?;
        if files.is_empty() {
            let text = format!("The package has no file with a licence. It is under the licence {licence}.");
            texts.entry(text).or_default().insert(title.clone());
        }
        for file in files {
            let bytes = fs::read(file)?;
            texts
                .entry(String::from_utf8_lossy(&bytes).trim().replace('\r', ""))
                .or_default()
                .insert(title.clone());
        }
    }
    let mut sections: Vec<String> = texts
        .into_iter()
        .map(|(text, crates)| format!("{}\n\n{text}\n", crates.into_iter().collect::<Vec<_>>().join("\n")))
        .collect();
    sections.sort();
    let rule = "=".repeat(80);
    Ok(format!(
        "The Rust crates that are compiled into mlx-models, and their licences. Rust's standard library is under the licences MIT \
         or Apache-2.0.\n\n{rule}\n\n{}",
        sections.join(&format!("\n{rule}\n\n"))
    ))
}

/// The files with a licence in a folder and below. Where a crate may be used under MIT or Apache-2.0, that is the one with MIT.
fn find(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
    entries.sort();
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let is_licence = |path: &Path| {
        let is_code = path
            .extension()
            .is_some_and(|extension| ["rs", "py", "c", "h"].iter().any(|code| extension == *code));
        NAMES.iter().any(|start| name(path).starts_with(start)) && path.is_file() && !is_code
    };
    let has_mit = entries.iter().any(|path| is_licence(path) && name(path).contains("mit"));
    for path in entries {
        if path.is_dir() {
            find(&path, files)?;
        } else if is_licence(&path) && !(has_mit && name(&path).contains("apache")) {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dist::platform::PLATFORMS;

    fn one(folder: &Path, name: &str, files: &[(&str, &str)]) -> Crate {
        let folder = folder.join(name);
        for (file, text) in files {
            let file = folder.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        fs::create_dir_all(&folder).unwrap();
        Crate {
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
            license: Some("MIT OR Apache-2.0".to_owned()),
            manifest_path: folder.join("Cargo.toml"),
            source: Some("registry".to_owned()),
        }
    }

    #[test]
    fn each_licence_is_there_once_with_all_its_crates() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let all = [
            one(
                folder,
                "a",
                &[
                    ("LICENSE-MIT", "text of a\r\n"),
                    ("LICENSE-APACHE", "not chosen"),
                    ("src/license.rs", "code"),
                ],
            ),
            one(folder, "b", &[("License-MIT", "text of a"), ("c_src/x/LICENSE", "text of x")]),
            one(folder, "c", &[("README.md", "no licence")]),
        ];
        let text = crates(&all).unwrap();
        let licence = "(MIT OR Apache-2.0)";
        assert!(text.contains(&format!("a 1.0.0 {licence}\nb 1.0.0 {licence}\n\ntext of a\n")), "{text}");
        assert!(text.contains(&format!("b 1.0.0 {licence}\n\ntext of x\n")), "{text}");
        assert!(
            text.contains(&format!("c 1.0.0 {licence}\n\nThe package has no file with a licence.")),
            "{text}"
        );
        assert!(!text.contains("not chosen") && !text.contains("code"), "{text}");
    }

    #[test]
    fn lines_of_cargo_tree_are_read() {
        assert_eq!(name_and_version("serde_derive v1.0.2 (proc-macro) (*)"), Some(("serde_derive", "1.0.2")));
        assert_eq!((name_and_version(""), name_and_version("[build]")), (None, None));
    }

    #[test]
    fn the_program_contains_crates_for_its_platform() {
        let root = workspace::root();
        for platform in PLATFORMS {
            let crates = linked(platform, &root).unwrap();
            let has = |name| crates.iter().any(|one| one.name == name);
            assert!(has("clap") && has("half") && !has("mlx-models") && !has("criterion"));
            assert_eq!(has("libmimalloc-sys"), !platform.is_mac());
        }
    }

    #[test]
    fn the_licences_of_libraries_are_in_the_repository() {
        for name in LINUX.into_iter().chain(["libraries.md", "mlx-c.txt"]) {
            let text = fs::read_to_string(workspace::root().join(FOLDER).join(name)).unwrap();
            assert!(text.len() > 500, "{name}");
        }
    }
}
