//! `cargo xtask gpu-check`: checks the build for NVIDIA GPUs as far as this machine can, and makes a folder that checks the
//! rest on a machine with a GPU (docs/platforms.md).
//!
//! The folder holds the programs, their libraries (MLX for the CPU and for GPUs, NVIDIA's), the parity cases and a script.
//! That machine needs NVIDIA's driver, but no network, no compiler and no Rust.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// The script that runs the checks.
const SCRIPT: &str = include_str!("../gpu-check/run.sh");

/// The status of the script where the device cannot be used.
const NO_DEVICE: i32 = 3;

const PROGRAMS: [&str; 2] = ["mlx-models", "mlx-lab"];

/// The libraries of this project that the programs load.
const LIBRARIES: [&str; 4] = ["libmlxc.so", "libmlxc-cpu.so", "libmlxc-cuda.so", "libmlx_kernels.so"];

/// Arguments of `cargo xtask gpu-check`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Make the folder for the machine with a GPU here, instead of in target/gpu-check; a folder made before is replaced
    #[arg(long, value_name = "DIR")]
    bundle: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments) -> io::Result<bool> {
    let root = workspace::root();
    let folder = match &arguments.bundle {
        Some(folder) => folder.clone(),
        None => workspace::target_folder(&root)?.join("gpu-check"),
    };
    for arguments in [
        "clippy --package mlx-sys --features cuda --all-targets -- --deny warnings",
        "test --package mlx-sys --features cuda --test cuda",
    ] {
        if !Command::new(env!("CARGO")).args(arguments.split(' ')).current_dir(&root).status()?.success() {
            return Ok(false);
        }
    }
    make(&root, &folder)?;
    say(&format!("made {}: {}", folder.display(), megabytes(size(&folder)?)))?;

    let script = |device: &str| {
        let status = Command::new(folder.join("run.sh")).args(["--device", device]).status()?;
        Ok::<_, io::Error>(status.code())
    };
    let on_the_cpu = script("cpu")? == Some(0);
    Ok(match script("gpu")? {
        Some(0) => on_the_cpu,
        Some(NO_DEVICE) => {
            say(
                "not run on a GPU, since this machine has none: copy the folder to one that has, and run ./run.sh there",
            )?;
            on_the_cpu
        }
        _ => false,
    })
}

/// Builds the programs and puts everything into the folder.
fn make(root: &Path, folder: &Path) -> io::Result<()> {
    let built = build(root)?;
    if folder.exists() {
        // Nothing but a folder of this command is removed.
        if !folder.join("run.sh").is_file() && fs::read_dir(folder)?.next().is_some() {
            return Err(io::Error::other(format!("{} has other files", folder.display())));
        }
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder.join("bin"))?;
    for program in PROGRAMS {
        let from = built.programs.iter().find(|file| file.file_name().is_some_and(|name| name == program));
        let from = from.ok_or_else(|| io::Error::other(format!("cargo has built no {program}")))?;
        // Not a link: a later build writes into the program.
        fs::copy(from, folder.join("bin").join(program))?;
    }
    let lib = folder.join("lib");
    fs::create_dir_all(&lib)?;
    for name in LIBRARIES {
        let from = built.find(name)?;
        link(&from, &lib.join(name))?;
    }
    // Packages lie beside the folder mlx-c-KEY, and libraries look for them in these folders (mlx-sys, MLX_SYS_RELOCATABLE).
    let home = built.home()?;
    link_all(&package(&home, "mlx-cpu-")?, &lib)?;
    link_all(&package(&home, "mlx-cuda-13-")?, &lib.join("cuda"))?;
    link_all(&root.join("xtask/cases"), &folder.join("cases"))?;
    let script = folder.join("run.sh");
    fs::write(&script, SCRIPT)?;
    set_executable(&script)
}

/// What a build has made.
struct Built {
    programs: Vec<PathBuf>,
    /// In which the linker looks for libraries.
    folders: Vec<PathBuf>,
}

impl Built {
    /// A library of this project.
    fn find(&self, name: &str) -> io::Result<PathBuf> {
        let mut files = self.folders.iter().map(|folder| folder.join(name));
        files
            .find(|file| file.is_file())
            .ok_or_else(|| io::Error::other(format!("the build has made no {name}")))
    }

    /// The folder in which mlx-sys keeps what it downloads and builds.
    fn home(&self) -> io::Result<PathBuf> {
        // HOME/mlx-c-KEY/lib/libmlxc.so
        let library = self.find("libmlxc.so")?;
        library.ancestors().nth(3).map(Path::to_path_buf).ok_or_else(|| io::Error::other("no folder of MLX"))
    }
}

/// Builds the programs with libraries that can be moved, for this kind of machine.
fn build(root: &Path) -> io::Result<Built> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .args(["build", "--release", "--message-format", "json-render-diagnostics"])
        .args(["--package", "mlx-models-cli", "--package", "mlx-lab"])
        .args(["--features", "mlx-models-cli/cuda,mlx-lab/cuda"])
        .env("MLX_SYS_RELOCATABLE", "1")
        .env_remove("MLX_PREFIX")
        .env_remove("MLX_CUDA_PREFIX")
        .current_dir(root)
        .stderr(Stdio::inherit());
    let output = cargo.output()?;
    if !output.status.success() {
        return Err(io::Error::other("the programs do not build with the feature cuda"));
    }
    let mut built = Built { programs: Vec::new(), folders: Vec::new() };
    // Programs that cargo runs may print lines of their own.
    for line in String::from_utf8_lossy(&output.stdout).lines().filter(|line| line.starts_with('{')) {
        let message: Value = serde_json::from_str(line)?;
        built.programs.extend(message["executable"].as_str().map(PathBuf::from));
        for path in message["linked_paths"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            built.folders.push(PathBuf::from(path.rsplit_once('=').map_or(path, |(_, path)| path)));
        }
    }
    Ok(built)
}

/// The newest folder in `home` whose name begins like this, for this processor.
fn package(home: &Path, name: &str) -> io::Result<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(home)? {
        let entry = entry?;
        let file_name = entry.file_name().to_string_lossy().into_owned();
        if file_name.starts_with(name) && file_name.contains(std::env::consts::ARCH) {
            found.push((entry.metadata()?.modified()?, entry.path()));
        }
    }
    let newest = found.into_iter().max();
    newest
        .map(|(_, path)| path)
        .ok_or_else(|| io::Error::other(format!("there is no {name}... in {}", home.display())))
}

/// Copies a file. On the same disk it takes no more space.
fn link(from: &Path, to: &Path) -> io::Result<()> {
    if fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    fs::copy(from, to)
        .map(|_| ())
        .map_err(|e| io::Error::new(e.kind(), format!("copying {}: {e}", from.display())))
}

/// Copies all files below a folder.
fn link_all(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            link_all(&entry.path(), &to)?;
        } else {
            link(&entry.path(), &to)?;
        }
    }
    Ok(())
}

/// The bytes of all files below a folder.
fn size(folder: &Path) -> io::Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        sum += if entry.file_type()?.is_dir() { size(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(sum)
}

fn megabytes(bytes: u64) -> String {
    format!("{} MB", bytes / 1_000_000)
}

#[cfg(unix)]
fn set_executable(file: &Path) -> io::Result<()> {
    fs::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(0o755))
}

#[cfg(not(unix))]
fn set_executable(_: &Path) -> io::Result<()> {
    Ok(())
}

fn say(text: &str) -> io::Result<()> {
    writeln!(io::stdout(), "{text}")
}
