//! `cargo xtask dist`: an archive and a Python wheel of the program, for people who have no compiler (docs/releasing.md).

mod archive;
mod elf;
mod licences;
mod package;
mod platform;
mod program;
mod tree;
mod trial;
mod wheel;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use platform::Platform;

/// The version of the program, which is that of the workspace.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The list of checksums, in the form that `sha256sum --check` reads.
const SUMS: &str = "SHA256SUMS";

/// Arguments of `cargo xtask dist`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Build for this target; may be repeated; without it, for this machine
    #[arg(long, value_name = "TARGET")]
    target: Vec<String>,
    /// Run the archive and the wheel in root file systems without a compiler and without a network; needs root, Linux and
    /// debootstrap
    #[arg(long = "try")]
    trial: bool,
    /// Keep the root file systems in this folder, and use those that are there; without it, in target/dist/roots
    #[arg(long, value_name = "DIR", requires = "trial")]
    roots: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments) -> io::Result<bool> {
    let host = Platform::of_this_machine()?;
    let named: Vec<Platform> =
        arguments.target.iter().map(|target| Platform::named(target)).collect::<io::Result<_>>()?;
    let platforms = if named.is_empty() { vec![host] } else { named };
    let root = workspace::root();
    let dist = workspace::target_folder(&root)?.join("dist");
    let results = dist.join("results");
    fs::create_dir_all(&results)?;
    let mut made = Vec::new();
    for platform in platforms {
        let package = package::make(platform, host, &root, &dist)?;
        let archive = results.join(format!("{}.tar.gz", package.name));
        archive::write(&package.archive, &package.name, &archive)?;
        report(&archive, &format!("{} unpacked", megabytes(tree::size(&package.archive)?)))?;
        let wheel = wheel::write(&package.wheel, platform, &dist, &results)?;
        report(
            &wheel,
            &format!("{} installed, and {} beside it", megabytes(tree::size(&package.wheel)?), platform.mlx),
        )?;
        made.push((platform, archive, wheel));
    }
    fs::write(results.join(SUMS), sums(&results)?)?;
    if !arguments.trial {
        return Ok(true);
    }
    let roots = arguments.roots.clone().unwrap_or_else(|| dist.join("roots"));
    let mut passed = true;
    for (platform, archive, wheel) in &made {
        passed &= trial::run(*platform, host, archive, wheel, &roots, &dist)?;
    }
    Ok(passed)
}

/// Prints the name of a file with its size, and what is said about it.
fn report(file: &Path, remark: &str) -> io::Result<()> {
    let size = megabytes(fs::metadata(file)?.len());
    writeln!(io::stdout(), "{} ({size}; {remark})", file.display())
}

/// A size as people read it, in units of a million bytes.
fn megabytes(bytes: u64) -> String {
    format!("{}.{} MB", bytes / 1_000_000, bytes % 1_000_000 / 100_000)
}

/// A line with the hash and the name of each package in a folder, of this run and earlier ones.
fn sums(folder: &Path) -> io::Result<String> {
    let mut lines = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.ends_with(".tar.gz") || name.ends_with(".whl") {
            let hash: String =
                Sha256::digest(fs::read(&path)?).iter().map(|byte| format!("{byte:02x}")).collect();
            lines.push((name.clone(), format!("{hash}  {name}\n")));
        }
    }
    lines.sort();
    Ok(lines.into_iter().map(|(_, line)| line).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_have_the_form_that_sha256sum_reads() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.whl", "a.tar.gz", "a.partial", SUMS] {
            fs::write(folder.path().join(name), "abc").unwrap();
        }
        let hash = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sums(folder.path()).unwrap(), format!("{hash}  a.tar.gz\n{hash}  b.whl\n"));
    }

    #[test]
    fn sizes_are_in_millions_of_bytes() {
        assert_eq!(
            [0, 99_999, 28_025_040, 1_950_000_000].map(megabytes),
            ["0.0 MB", "0.0 MB", "28.0 MB", "1950.0 MB"]
        );
    }
}
