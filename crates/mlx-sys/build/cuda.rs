//! MLX for NVIDIA GPUs: the package `mlx-cuda-13` and those of NVIDIA that it needs, unpacked into one folder, in which its
//! libraries find each other.
//!
//! They are gigabytes. So their sizes are said before a download starts, each package is unpacked as soon as it is complete,
//! and a build after an interrupted one goes on with the packages that are missing.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::failure::{Failure, Result, create_dir, install, is_complete, last_lines, tell};
use crate::hash::Fnv;
use crate::platform::Platform;
use crate::python::{Python, refused};
use crate::{MLX_VERSION, python};

pub const REQUIREMENTS: &str = include_str!("../requirements/mlx-cuda-13.txt");

/// Files that show that the folder is complete: one of each package.
const PROOF: &[&str] = &[
    "mlx/lib/libmlx.so",
    "mlx/include/mlx/version.h",
    "nvidia/cu13/lib/libcublasLt.so.13",
    "nvidia/cu13/lib/libcufft.so.12",
    "nvidia/cu13/lib/libnvrtc.so.13",
    "nvidia/cu13/lib/libnvJitLink.so.13",
    "nvidia/cu13/include/cuda_fp16.h",
    "nvidia/cu13/include/crt/mma.h",
    "nvidia/cudnn/lib/libcudnn.so.9",
    "nvidia/nccl/lib/libnccl.so.2",
];

/// The unpacked packages together.
const UNPACKED: &str = "2.5 GB";

const INSTEAD: &str = "point MLX_CUDA_PREFIX at an installed MLX with CUDA";

/// Whether the build is for NVIDIA GPUs too. On a Mac the feature changes nothing.
pub fn is_wanted(platform: Platform) -> bool {
    platform.is_linux() && std::env::var_os("CARGO_FEATURE_CUDA").is_some()
}

/// A package to download.
struct Package {
    name: &'static str,
    /// Its lines of the requirements file, with the hashes.
    lines: Vec<&'static str>,
    /// Of the file for this processor.
    bytes: u64,
}

/// The packages of the requirements file, above each of which is a line with its sizes.
fn packages(arch: &str) -> Result<Vec<Package>> {
    let broken = |line: &str| {
        Failure::new(format!("requirements/mlx-cuda-13.txt has a line that is not understood: {line}"), "")
    };
    let mut packages: Vec<Package> = Vec::new();
    let mut bytes = None;
    for line in REQUIREMENTS.lines() {
        if let Some(sizes) = line.strip_prefix("# bytes: ") {
            let size = sizes.split(", ").find_map(|size| size.strip_prefix(arch)?.trim().parse().ok());
            bytes = Some(size.ok_or_else(|| broken(line))?);
        } else if let Some(name) = line.strip_suffix(" \\").filter(|line| line.contains("==")) {
            let bytes = bytes.take().ok_or_else(|| broken(line))?;
            packages.push(Package { name, lines: vec![line], bytes });
        } else if line.starts_with("    --hash=") {
            packages.last_mut().ok_or_else(|| broken(line))?.lines.push(line);
        }
    }
    Ok(packages)
}

/// The folder of the unpacked packages. Downloads what is missing.
pub fn fetch(platform: Platform, home: &Path) -> Result<PathBuf> {
    let arch = platform.arch();
    let mut hash = Fnv::new();
    hash.update(REQUIREMENTS.as_bytes());
    let name = format!("mlx-cuda-13-{MLX_VERSION}-{arch}-{}", &hash.hex()[..8]);
    let place = home.join(&name);
    if is_complete(&place, PROOF) {
        return Ok(place);
    }
    platform.check_system()?;
    let python = Python::find(INSTEAD)?;
    let mut download = Download::start(home.join(format!(".{name}")))?;
    // Another build may have put it there while this one waited.
    let result = if is_complete(&place, PROOF) {
        Ok(())
    } else {
        let packages = packages(arch)?;
        let result = download.fetch(&python, &packages, arch);
        // What has arrived stays for the next build.
        if result.is_err() && packages.iter().any(|package| download.mark(package).is_file()) {
            return result.map(|()| place);
        }
        result.and_then(|()| install(&download.unpacked(), &place, PROOF))
    };
    let _ = std::fs::remove_dir_all(&download.folder);
    result.map(|()| place)
}

/// Packages on their way. What is complete stays in its folder, so that a later build goes on from there.
struct Download {
    folder: PathBuf,
    /// Held while the folder is in use, since two builds would write the same files.
    _lock: File,
    progress: Progress,
}

impl Download {
    fn start(folder: PathBuf) -> Result<Self> {
        let path = folder.join("lock");
        let failed = |e| Failure::io(format!("locking {}", path.display()), e);
        let lock = loop {
            create_dir(&folder.join("unpacked"))?;
            let lock = File::create(&path).map_err(failed)?;
            if lock.try_lock().is_err() {
                say("waiting for another build, which downloads MLX for NVIDIA GPUs");
                lock.lock().map_err(failed)?;
            }
            // Another build may have removed the folder meanwhile, and the file with it.
            if is_at(&lock, &path) {
                break lock;
            }
        };
        Ok(Self { folder, _lock: lock, progress: Progress::default() })
    }

    fn unpacked(&self) -> PathBuf {
        self.folder.join("unpacked")
    }

    /// A file that shows that a package is unpacked.
    fn mark(&self, package: &Package) -> PathBuf {
        self.folder.join(format!("{}.unpacked", package.name))
    }

    fn fetch(&mut self, python: &Python, packages: &[Package], arch: &str) -> Result<()> {
        let (there, missing): (Vec<_>, Vec<_>) =
            packages.iter().partition(|package| self.mark(package).is_file());
        let bytes = |packages: &[&Package]| packages.iter().map(|package| package.bytes).sum::<u64>();
        self.progress.begin(bytes(&there), bytes(&there) + bytes(&missing));
        say(&format!(
            "downloading MLX for NVIDIA GPUs: {} of {} packages, {} (unpacked {UNPACKED}) to {}",
            missing.len(),
            packages.len(),
            size(bytes(&missing)),
            self.folder.parent().unwrap_or(&self.folder).display(),
        ));
        for package in missing {
            self.download(python, package, arch)?;
        }
        say("MLX for NVIDIA GPUs is complete");
        Ok(())
    }

    fn download(&mut self, python: &Python, package: &Package, arch: &str) -> Result<()> {
        let temporary = self.folder.join("temporary");
        // What an interrupted build has left.
        let _ = std::fs::remove_dir_all(&temporary);
        create_dir(&temporary)?;
        let written = |path: &Path, text: &str| {
            std::fs::write(path, text).map_err(|e| Failure::io(format!("writing {}", path.display()), e))
        };
        let requirement = self.folder.join("requirement.txt");
        written(&requirement, &(package.lines.join("\n") + "\n"))?;
        let log = temporary.join("pip.log");
        let failed = |e| Failure::io(format!("writing {}", log.display()), e);
        let said = File::create(&log).map_err(failed)?;

        let platforms =
            ["manylinux_2_35", "manylinux_2_27", "manylinux2014"].map(|tag| format!("{tag}_{arch}"));
        let mut pip = python.download(&requirement, &platforms, &temporary);
        // A copy in pip's cache would take as much space again. pip writes what arrives into its temporary folder.
        pip.arg("--no-cache-dir").env("TMPDIR", &temporary);
        pip.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said);
        let mut pip = pip.spawn().map_err(|_| python.gone())?;
        if !self.watch(&mut pip, package, &temporary)? {
            let said = std::fs::read(&log).unwrap_or_default();
            return Err(refused(package.name, &last_lines(&said), INSTEAD));
        }
        let wheel = python::wheel_in(&temporary, INSTEAD)?;
        python.unpack(&wheel, &self.unpacked())?;
        written(&self.mark(package), "")?;
        self.progress.done(package.bytes);
        let _ = std::fs::remove_dir_all(&temporary);
        Ok(())
    }

    /// Says how far pip has come, until it ends. Returns whether it has succeeded.
    fn watch(&mut self, pip: &mut Child, package: &Package, temporary: &Path) -> Result<bool> {
        let failed = |e| Failure::io("waiting for pip", e);
        loop {
            if let Some(status) = pip.try_wait().map_err(failed)? {
                return Ok(status.success());
            }
            self.progress.show(package.name, bytes_below(temporary).min(package.bytes));
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// Whether a file that is open is the one at this path.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let [open, there] =
        [file.metadata(), path.metadata()].map(|about| about.ok().map(|it| (it.dev(), it.ino())));
    open.is_some() && open == there
}

#[cfg(not(unix))]
fn is_at(_: &File, path: &Path) -> bool {
    path.is_file()
}

/// The sizes of all files in a folder and its folders. Files come and go meanwhile, and one that is gone counts nothing.
fn bytes_below(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(about) if about.is_dir() => bytes_below(&entry.path()),
            Ok(about) => about.len(),
            Err(_) => 0,
        })
        .sum()
}

fn say(text: &str) {
    tell(&format!("mlx-sys: {text}"));
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{} kB", bytes.div_ceil(1000)),
        1_000_000..1_000_000_000 => format!("{} MB", bytes / 1_000_000),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

/// Says how far a download is.
#[derive(Default)]
struct Progress {
    /// Of packages that are unpacked.
    done: u64,
    total: u64,
    /// Twentieths of the total that the last line said.
    said: u64,
}

impl Progress {
    fn begin(&mut self, done: u64, total: u64) {
        (self.done, self.total) = (done, total);
        self.said = self.twentieths(0);
    }

    fn twentieths(&self, more: u64) -> u64 {
        (self.done + more) * 20 / self.total.max(1)
    }

    /// `more` bytes of this package have arrived. Writes a line for every twentieth of the whole download.
    fn show(&mut self, package: &str, more: u64) {
        let now = self.twentieths(more);
        if now > self.said {
            self.said = now;
            let (arrived, total) = (size(self.done + more), size(self.total));
            say(&format!("{:3} % ({arrived} of {total}): {package}", now * 5));
        }
    }

    fn done(&mut self, bytes: u64) {
        self.done += bytes;
    }
}
