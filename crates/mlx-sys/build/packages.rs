//! MLX from the Python package index (or from `MLX_PREFIX`), mlx-c compiled against it, and our kernels.
//!
//! All results are in one folder outside any target folder, so that they are made once:
//!
//! ```text
//! ~/.mlx/linux/                      or $MLX_SYS_HOME
//!   mlx-cpu-0.32.2-x86_64/           the wheel, unpacked: mlx/lib/libmlx.so, mlx/include, mlx_cpu.libs
//!   mlx-cuda-13-0.32.2-x86_64-KEY/   the wheel and those of NVIDIA, unpacked; only for the feature `cuda`
//!   libclang-18.1.1-x86_64/          the wheel, unpacked; only for the feature `bindgen`
//!   mlx-c-KEY/                       lib/libmlxc.so, include/mlx/c; with the feature `cuda` lib/libmlxc-cpu.so and -cuda.so
//!   mlx-kernels-KEY/                 lib/libmlx_kernels.so
//! ~/.mlx/macos/                      or $MLX_SYS_HOME
//!   mlx-metal-0.32.2-macos15-arm64/  the wheel, unpacked: mlx/lib/libmlx.dylib, mlx/lib/mlx.metallib, mlx/include
//!   mlx-c-KEY/                       lib/libmlxc.dylib, include/mlx/c
//! ```
//!
//! Programs find the mlx-c library by its absolute path (its soname, or on a Mac its install name), and its rpath is the
//! folder of MLX's library. A program that is linked against it therefore finds both from any working directory. It needs no
//! rpath of its own, which a dependency's build script could not set. MLX finds its Metal kernels beside its library.
//!
//! With `MLX_SYS_RELOCATABLE=1` the libraries have plain names, and look for MLX relative to themselves, so that an archive
//! with a program and its libraries can be unpacked anywhere. The program then needs an rpath, which its linker arguments set.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::{
    Failure, Result, create_dir, install, is_complete, last_lines, run, variable, work_folder,
};
use crate::hash::{Fnv, files_below};
use crate::platform::Platform;
use crate::{MLX_VERSION, Published, cuda, dispatch, kernels, mac, upstream};

/// What the result depends on, beside the machine and `native/`. A change here makes a new `mlx-c-KEY`.
const RECIPE: &[&str] = &[
    MLX_VERSION,
    include_str!("mac.rs"),
    include_str!("packages.rs"),
    include_str!("platform.rs"),
    include_str!("../upstream/Cargo.lock"),
    include_str!("../requirements/mlx-cpu.txt"),
    include_str!("../requirements/mlx-metal.txt"),
];

/// The functions of mlx-c that `native/mlx_c.cpp` replaces, a row each (see the file).
const REPLACED: &str = include_str!("../native/replaced.def");

fn replaced_functions() -> impl Iterator<Item = &'static str> {
    REPLACED.lines().filter_map(|line| line.strip_prefix("REPLACED(")?.strip_suffix(')'))
}

/// Whether MLX's operations are handed to the kernels of `mlx-cpu`.
fn with_kernels(platform: Platform) -> bool {
    platform.has_kernels() && std::env::var_os("CARGO_FEATURE_WITHOUT_CPU_KERNELS").is_none()
}

/// Whether programs find the libraries relative to themselves.
pub fn is_relocatable() -> bool {
    println!("cargo::rerun-if-env-changed=MLX_SYS_RELOCATABLE");
    std::env::var("MLX_SYS_RELOCATABLE").is_ok_and(|value| value == "1")
}

/// The library that programs link.
const LINKED: &str = "mlxc";

/// Beside it, in a build that can use NVIDIA GPUs: mlx-c for the CPU and for GPUs, between which it chooses.
const CHOICES: [&str; 2] = ["mlxc-cpu", "mlxc-cuda"];

/// A library in an `mlx-c-KEY`.
fn library(platform: Platform, name: &str) -> String {
    format!("lib/{}", platform.library(name))
}

/// The folders of an MLX to link against.
struct Mlx {
    include: PathBuf,
    lib: PathBuf,
}

pub fn build(platform: Platform) -> Result<Published> {
    for name in ["MLX_PREFIX", "MLX_CUDA_PREFIX", "MLX_SYS_HOME", "HOME", "CXX"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let home = home(platform)?;
    let with_cuda = cuda::is_wanted(platform);
    let installed = Mlx::installed(platform, "MLX_PREFIX")?;
    let installed_cuda = if with_cuda { Mlx::installed(platform, "MLX_CUDA_PREFIX")? } else { None };

    let key = {
        let prefixes = [&installed, &installed_cuda].map(|mlx| Some(mlx.as_ref()?.lib.clone()));
        let home = home.clone();
        move || key(platform, &home, &prefixes)
    };
    let name = key()?;
    let place = home.join(format!("mlx-c-{name}"));
    let choices = if with_cuda { &CHOICES[..] } else { &[] };
    let proof: Vec<String> = [LINKED].iter().chain(choices).map(|name| library(platform, name)).collect();
    let proof: Vec<&str> = proof.iter().map(String::as_str).chain(["include/mlx/c/mlx.h"]).collect();
    let made = is_complete(&place, &proof);
    if !made {
        // Checked before a download, since only the user can install a compiler.
        compiler(platform)?;
    }
    let mlx = installed.map_or_else(|| Mlx::downloaded(platform, &home), Ok)?;
    let cuda_mlx = if with_cuda {
        let mlx = installed_cuda.map_or_else(|| Mlx::downloaded_for_cuda(platform, &home), Ok)?;
        // For tests/cuda.rs.
        println!("cargo::rustc-env=MLX_SYS_CUDA={}", mlx.lib.display());
        Some(mlx)
    } else {
        None
    };
    if !made {
        make(platform, &mlx, cuda_mlx.as_ref(), &home, &place, &proof, || Ok(key()? == name))?;
    }

    #[cfg(feature = "bindgen")]
    crate::bindings::check(platform, &home, &compiler(platform)?)?;
    // Cargo takes a missing file for a changed one: if the folder is removed, the next build makes it again.
    println!("cargo::rerun-if-changed={}", place.join(library(platform, LINKED)).display());
    for mlx in [Some(&mlx), cuda_mlx.as_ref()].into_iter().flatten() {
        println!("cargo::rerun-if-changed={}", mlx.lib.join(platform.library("mlx")).display());
    }
    println!("cargo::rustc-link-search=native={}", place.join("lib").display());
    println!("cargo::rustc-link-lib=dylib=mlxc");
    if with_kernels(platform) {
        let lib = kernels::library(platform, &home)?;
        println!("cargo::rustc-link-search=native={}", lib.display());
    }
    Ok(Published { include: vec![mlx.include, place.join("include")], defines: "" })
}

/// The folder that keeps what was downloaded and built.
fn home(platform: Platform) -> Result<PathBuf> {
    let named = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home =
        named("MLX_SYS_HOME").or_else(|| Some(named("HOME")?.join(platform.folder()))).ok_or_else(|| {
            Failure::new(
                "HOME is not set, so there is no folder to keep MLX in",
                "name a folder in MLX_SYS_HOME; programs will load the library from there",
            )
        })?;
    create_dir(&home)?;
    // Programs look for the library by this path, so it must not depend on the working directory.
    let home = home.canonicalize().map_err(|e| Failure::io(format!("resolving {}", home.display()), e))?;
    if home.to_string_lossy().contains([':', '$']) {
        return Err(Failure::new(
            format!("programs cannot load a library from {}, whose name has a : or a $", home.display()),
            "name another folder in MLX_SYS_HOME",
        ));
    }
    Ok(home)
}

impl Mlx {
    /// An MLX that the user installed: `include/mlx` and `lib/libmlx.so` (on a Mac `.dylib`) below the folder that this
    /// environment variable names.
    fn installed(platform: Platform, variable: &str) -> Result<Option<Self>> {
        let Some(prefix) = std::env::var_os(variable).filter(|prefix| !prefix.is_empty()) else {
            return Ok(None);
        };
        let prefix = PathBuf::from(prefix);
        let library = platform.library("mlx");
        let remedy = format!(
            "{variable} must name a folder with include/mlx/version.h and lib/{library} of MLX {MLX_VERSION}, \
             such as site-packages/mlx of a Python that has it; unset it to download MLX"
        );
        let prefix = prefix
            .canonicalize()
            .map_err(|e| Failure::new(format!("{variable}={}: {e}", prefix.display()), &remedy))?;
        let include = prefix.join("include");
        let header = include.join("mlx/version.h");
        println!("cargo::rerun-if-changed={}", header.display());
        let found = std::fs::read_to_string(&header)
            .ok()
            .and_then(|text| version_in(&text))
            .ok_or_else(|| Failure::new(format!("no version of MLX in {}", header.display()), &remedy))?;
        if found != MLX_VERSION {
            return Err(Failure::new(
                format!(
                    "{variable}={} holds MLX {found}, and mlx-c 0.7.0 needs {MLX_VERSION}",
                    prefix.display()
                ),
                remedy,
            ));
        }
        let lib = ["lib", "lib64"]
            .iter()
            .map(|name| prefix.join(name))
            .find(|lib| lib.join(&library).is_file())
            .ok_or_else(|| Failure::new(format!("no lib/{library} in {}", prefix.display()), remedy))?;
        Ok(Some(Self { include, lib }))
    }

    fn downloaded(platform: Platform, home: &Path) -> Result<Self> {
        let wheel = platform.wheel();
        if !is_complete(&home.join(&wheel.keep_as), wheel.proof) {
            platform.check_system()?;
        }
        Ok(Self::below(&wheel.fetch(home)?))
    }

    fn downloaded_for_cuda(platform: Platform, home: &Path) -> Result<Self> {
        Ok(Self::below(&cuda::fetch(platform, home)?))
    }

    /// In a folder of unpacked wheels.
    fn below(wheels: &Path) -> Self {
        let mlx = wheels.join("mlx");
        Self { include: mlx.join("include"), lib: mlx.join("lib") }
    }
}

/// `MLX_VERSION_MAJOR`, `_MINOR` and `_PATCH` of MLX's `version.h`, joined by dots.
fn version_in(header: &str) -> Option<String> {
    let number = |part: &str| {
        let name = format!("MLX_VERSION_{part}");
        header.lines().find_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some("#define") && words.next() == Some(&name)).then(|| words.next())?
        })
    };
    Some([number("MAJOR")?, number("MINOR")?, number("PATCH")?].join("."))
}

/// A name for the result, by all that it depends on. The folder is part of it, since the library knows its own absolute
/// path and that of MLX.
fn key(platform: Platform, home: &Path, installed: &[Option<PathBuf>]) -> Result<String> {
    let mut hash = Fnv::new();
    hash.update(home.to_string_lossy().as_bytes());
    hash.update(platform.name().as_bytes());
    hash.update(&[u8::from(with_kernels(platform)), u8::from(is_relocatable())]);
    if platform.is_mac() {
        hash.update(mac::deployment_target().as_bytes());
    }
    for text in RECIPE {
        hash.update(text.as_bytes());
    }
    hash.update_files(&native()?)?;
    for lib in installed {
        let lib = lib.as_deref().map(Path::to_string_lossy).unwrap_or_default();
        hash.update(lib.as_bytes());
        hash.update(&[0]);
    }
    if cuda::is_wanted(platform) {
        for text in [cuda::REQUIREMENTS, dispatch::SOURCE, dispatch::RECIPE] {
            hash.update(text.as_bytes());
        }
    }
    Ok(hash.hex())
}

/// This crate's C++.
pub fn native() -> Result<PathBuf> {
    Ok(PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join("native"))
}

fn is_cpp(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "cpp")
}

/// Compiles mlx-c in a temporary folder, which is then moved to `place`: for one MLX, or for one of the CPU and one of CUDA.
fn make(
    platform: Platform,
    mlx: &Mlx,
    cuda_mlx: Option<&Mlx>,
    home: &Path,
    place: &Path,
    proof: &[&str],
    is_unchanged: impl Fn() -> Result<bool>,
) -> Result<()> {
    let (compiler, mlx_c) = (compiler(platform)?, upstream::mlx_c()?);
    let work = work_folder(home, "mlx-c")?;
    let workshop = Workshop { platform, mlx_c, compiler, work: &work, place };
    let result = (|| {
        create_dir(&work.join("lib"))?;
        create_dir(&work.join("include/mlx/c"))?;
        for header in upstream::headers(&workshop.mlx_c)? {
            let name = header.file_name().unwrap_or_default();
            std::fs::copy(&header, work.join("include/mlx/c").join(name))
                .map_err(|e| Failure::io(format!("copying {}", header.display()), e))?;
        }
        match cuda_mlx {
            None => workshop.mlx_c(LINKED, mlx)?,
            Some(cuda_mlx) => {
                let [cpu, cuda] = CHOICES;
                workshop.mlx_c(cpu, mlx)?;
                workshop.mlx_c(cuda, cuda_mlx)?;
                workshop.dispatcher()?;
            }
        }
        // Otherwise the name would promise other code than the library has, for as long as it is kept.
        if !is_unchanged()? {
            return Err(Failure::new("the sources of mlx-c changed while they were compiled", "build again"));
        }
        install(&work, place, proof)
    })();
    let _ = std::fs::remove_dir_all(&work);
    result
}

fn cc() -> cc::Build {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++20").opt_level(2).debug(false).warnings(false).pic(true).cargo_metadata(false);
    // GCC for aarch64 notes in every file that C++14 passed some types in another way.
    build.flag("-Wno-psabi");
    build
}

/// The C++ compiler, after a check that it runs.
pub fn compiler(platform: Platform) -> Result<cc::Tool> {
    let none = |found: String| {
        let what = format!("no working C++ compiler, which mlx-c needs ({found})");
        Failure::new(what, platform.install_compiler())
    };
    let tool = cc().try_get_compiler().map_err(|e| none(e.to_string()))?;
    match run(tool.to_command().arg("--version"))? {
        Some(answer) if answer.status.success() => Ok(tool),
        // Such as that the licence of Xcode has not been agreed to.
        Some(answer) => Err(none(format!("{} says: {}", tool.path().display(), last_lines(&answer.stderr)))),
        None => Err(none(format!("tried {}", tool.path().display()))),
    }
}

/// What the libraries of an `mlx-c-KEY` are made with.
struct Workshop<'a> {
    platform: Platform,
    /// The sources.
    mlx_c: PathBuf,
    compiler: cc::Tool,
    /// The folder in which they are made, and the one to which it is moved.
    work: &'a Path,
    place: &'a Path,
}

impl Workshop<'_> {
    /// Makes a library of mlx-c and our C++, for an MLX.
    fn mlx_c(&self, name: &str, mlx: &Mlx) -> Result<()> {
        let native = native()?;
        let mut build = cc();
        build.include(&self.mlx_c).flag("-isystem").flag(&mlx.include);
        build.flag("-include").flag(native.join("forced.hpp"));
        let ours = if with_kernels(self.platform) {
            let mut ours = build.clone();
            ours.files(files_below(&native)?.into_iter().filter(|file| is_cpp(file)));
            for name in replaced_functions() {
                build.define(name, format!("stock_{name}").as_str());
            }
            Some(ours)
        } else {
            None
        };
        build.files(files_below(&self.mlx_c.join("mlx/c"))?.into_iter().filter(|file| is_cpp(file)));
        let mut objects = Vec::new();
        for build in std::iter::once(build).chain(ours) {
            objects.extend(self.compiled(&build)?);
        }
        let rpaths = match (is_relocatable(), name) {
            (false, _) => vec![mlx.lib.as_os_str().to_owned()],
            (true, "mlxc-cuda") => self.platform.relative_rpaths_for_cuda(),
            (true, _) => self.platform.relative_rpaths(),
        };
        let mut link = self.linker(name, &rpaths);
        if name != LINKED {
            // Its calls of its own functions must not go to the library that programs link, which exports the same names.
            link.arg("-Wl,-Bsymbolic-functions");
        }
        link.args(&objects).arg(format!("-L{}", mlx.lib.display())).arg("-lmlx");
        self.linked(link)
    }

    /// Makes the library that chooses between two of mlx-c.
    fn dispatcher(&self) -> Result<()> {
        let folder = self.work.join("dispatch");
        create_dir(&folder)?;
        let mut build = cc();
        build.file(dispatch::sources(&folder)?).flag("-fvisibility=hidden");
        let mut link = self.linker(LINKED, &[]);
        link.args(self.compiled(&build)?);
        self.linked(link)?;
        let _ = std::fs::remove_dir_all(folder);
        Ok(())
    }

    fn compiled(&self, build: &cc::Build) -> Result<Vec<PathBuf>> {
        build.try_compile_intermediates().map_err(|e| {
            Failure::new(
                format!("mlx-c does not compile: {e}"),
                format!("{}; the compiler's own message is above", self.platform.compilers()),
            )
        })
    }

    /// The command that links a library, without what goes into it.
    fn linker(&self, name: &str, rpaths: &[OsString]) -> Command {
        let library = library(self.platform, name);
        let load_name = self.platform.load_name(&self.place.join(&library), is_relocatable());
        let mut link = self.compiler.to_command();
        link.args(self.platform.shared_library(&load_name, rpaths)).arg("-o").arg(self.work.join(library));
        if is_relocatable() {
            link.args(self.platform.rpaths_first());
        }
        link
    }

    fn linked(&self, mut link: Command) -> Result<()> {
        let answer = run(&mut link)?
            .ok_or_else(|| Failure::new("the C++ compiler disappeared during the build", "build again"))?;
        if !answer.status.success() {
            return Err(Failure::new(
                format!("mlx-c cannot be linked with MLX:\n{}", last_lines(&answer.stderr)),
                self.platform.compilers(),
            ));
        }
        Ok(())
    }
}
