//! Builds the program and its libraries with plain names, so that they can be packed.

use std::env;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;

use super::platform::{MACOS, Platform};
use crate::apple;

/// What a build has made.
pub(super) struct Built {
    /// The program `mlx-models`.
    pub(super) program: PathBuf,
    /// The shared libraries of this project.
    pub(super) libraries: Vec<PathBuf>,
    /// The unpacked package of MLX, with the folder `mlx/lib`.
    pub(super) mlx: PathBuf,
}

/// A line of `cargo build --message-format json`.
#[derive(Deserialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
enum Message {
    CompilerArtifact {
        target: Target,
        executable: Option<PathBuf>,
    },
    BuildScriptExecuted {
        linked_paths: Vec<String>,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

/// Builds the program for a platform. It has a folder of its own below `dist`, since the other builds of this workspace link
/// libraries with absolute paths.
pub(super) fn build(platform: Platform, host: Platform, root: &Path, dist: &Path) -> io::Result<Built> {
    let mut cargo = cargo(platform, host, root, dist)?;
    let mut child = cargo.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let messages =
        child.stdout.take().map(|out| messages(BufReader::new(out))).transpose()?.unwrap_or_default();
    if !child.wait()?.success() {
        return Err(io::Error::other(format!("the program does not build for {}", platform.target)));
    }
    let version = mlx_version(platform, root)?;
    built(&messages, platform, &version)
}

fn cargo(platform: Platform, host: Platform, root: &Path, dist: &Path) -> io::Result<Command> {
    let mut cargo = compilers(platform, host, dist)?;
    cargo
        .args(["rustc", "--release", "--locked", "--package", "mlx-models-cli", "--bin", "mlx-models"])
        .args(["--target", platform.target, "--message-format", "json-render-diagnostics", "--target-dir"])
        .arg(dist.join("target"))
        .arg("--")
        .arg(format!("-Clink-arg={}", platform.linker_arguments()))
        .current_dir(root)
        .env("MLX_SYS_RELOCATABLE", "1")
        // What is packed has to be MLX's own package.
        .env_remove("MLX_PREFIX")
        .env_remove("MLX_SYS_FROM_SOURCE");
    Ok(cargo)
}

/// cargo, with compilers for a platform.
fn compilers(platform: Platform, host: Platform, dist: &Path) -> io::Result<Command> {
    if platform.is_mac() && !host.is_mac() {
        let tools = apple::tools(&apple_folder(dist), MACOS)?;
        return Ok(tools.cargo(tools.zigbuild()));
    }
    let mut cargo = Command::new(env!("CARGO"));
    if platform.is_mac() {
        cargo.env("MACOSX_DEPLOYMENT_TARGET", MACOS);
    } else if platform != host {
        // The C++ compiler of mlx-c is found by its usual name; cargo has to be told the linker.
        let linker = format!("CARGO_TARGET_{}_LINKER", platform.target.to_uppercase().replace('-', "_"));
        if env::var_os(&linker).is_none() {
            cargo.env(linker, format!("{}-linux-gnu-gcc", platform.kept_as.replace('_', "-")));
        }
    }
    Ok(cargo)
}

/// The folder of the tools for Macs, which is that of `cargo xtask apple`.
pub(super) fn apple_folder(dist: &Path) -> PathBuf {
    dist.with_file_name("apple")
}

fn messages(lines: impl BufRead) -> io::Result<Vec<Message>> {
    // Programs that cargo runs may print lines of their own.
    let lines =
        lines.lines().filter(|line| line.as_ref().is_ok_and(|line| line.starts_with('{')) || line.is_err());
    lines.map(|line| Ok(serde_json::from_str(&line?)?)).collect()
}

/// The version of MLX that `mlx-sys` downloads.
pub(super) fn mlx_version(platform: Platform, root: &Path) -> io::Result<String> {
    let file = requirements(platform, root);
    let pin = format!("{}==", platform.mlx);
    let text = std::fs::read_to_string(&file)?;
    let version = text.lines().find_map(|line| line.strip_prefix(&pin)?.split_whitespace().next());
    version
        .map(str::to_owned)
        .ok_or_else(|| io::Error::other(format!("{} does not pin {}", file.display(), platform.mlx)))
}

/// The file that pins MLX's package, with its hashes.
pub(super) fn requirements(platform: Platform, root: &Path) -> PathBuf {
    root.join(format!("crates/mlx-sys/requirements/{}.txt", platform.mlx))
}

/// Finds what was built in cargo's messages. The folders of libraries are those in which a build script makes the linker
/// look, and MLX's package lies beside them.
fn built(messages: &[Message], platform: Platform, version: &str) -> io::Result<Built> {
    let program = messages.iter().find_map(|message| match message {
        Message::CompilerArtifact { target, executable } if target.name == "mlx-models" => executable.clone(),
        _ => None,
    });
    let folders: Vec<&Path> = messages
        .iter()
        .filter_map(|message| match message {
            Message::BuildScriptExecuted { linked_paths } => Some(linked_paths),
            _ => None,
        })
        .flatten()
        .map(|path| Path::new(path.rsplit_once('=').map_or(&**path, |(_, path)| path)))
        .collect();
    let library = |name: &&str| {
        let mut files = folders.iter().map(|folder| folder.join(name));
        files
            .find(|file| file.is_file())
            .ok_or_else(|| io::Error::other(format!("the build has made no {name}")))
    };
    let libraries: Vec<PathBuf> = platform.libraries.iter().map(library).collect::<io::Result<_>>()?;
    let kept_as = format!("{}-{version}-{}", platform.mlx, platform.kept_as);
    // A library is in HOME/mlx-c-KEY/lib.
    let homes = libraries.iter().filter_map(|library| library.ancestors().nth(3));
    let mlx = homes.map(|home| home.join(&kept_as)).find(|mlx| mlx.join("mlx/lib").is_dir());
    match (program, mlx) {
        (Some(program), Some(mlx)) => Ok(Built { program, libraries, mlx }),
        (None, _) => Err(io::Error::other("cargo does not say where the program is")),
        (_, None) => Err(io::Error::other(format!("{kept_as} is not where mlx-sys keeps its libraries"))),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::dist::platform::PLATFORMS;

    #[test]
    fn what_was_built_is_found_in_cargos_messages() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path();
        for file in [
            "mlx-c-0a/lib/libmlxc.so",
            "mlx-kernels-0b/lib/libmlx_kernels.so",
            "mlx-cpu-9.8.7-x86_64/mlx/lib/libmlx.so",
        ] {
            let file = home.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "").unwrap();
        }
        let output = format!(
            r#"a line of a build script
{{"reason":"compiler-artifact","target":{{"name":"mlx-models","kind":["lib"]}},"executable":null}}
{{"reason":"build-script-executed","package_id":"x","linked_libs":[],"linked_paths":["native={home}/other","native={home}/mlx-c-0a/lib","{home}/mlx-kernels-0b/lib"]}}
{{"reason":"compiler-artifact","target":{{"name":"mlx-models","kind":["bin"]}},"executable":"{home}/mlx-models"}}
{{"reason":"build-finished","success":true}}
"#,
            home = home.display()
        );
        let messages = messages(output.as_bytes()).unwrap();
        let found = built(&messages, PLATFORMS[0], "9.8.7").unwrap();
        assert_eq!(found.program, home.join("mlx-models"));
        let libraries = ["mlx-c-0a/lib/libmlxc.so", "mlx-kernels-0b/lib/libmlx_kernels.so"];
        assert_eq!(found.libraries, libraries.map(|library| home.join(library)));
        assert_eq!(found.mlx, home.join("mlx-cpu-9.8.7-x86_64"));

        let error = built(&messages, PLATFORMS[0], "9.8.8").err().unwrap().to_string();
        assert!(error.starts_with("mlx-cpu-9.8.8-x86_64 is not where"), "{error}");
        fs::remove_file(&found.libraries[1]).unwrap();
        let error = built(&messages, PLATFORMS[0], "9.8.7").err().unwrap().to_string();
        assert_eq!(error, "the build has made no libmlx_kernels.so");
    }

    #[test]
    fn mlx_is_pinned_for_each_platform() {
        let root = workspace::root();
        for platform in PLATFORMS.into_iter().filter(|platform| requirements(*platform, &root).is_file()) {
            assert_eq!(mlx_version(platform, &root).unwrap(), "0.32.2");
        }
    }
}
