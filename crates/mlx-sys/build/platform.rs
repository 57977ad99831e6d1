//! The platforms that MLX has packages for, and in what they differ.

use std::ffi::OsString;
use std::path::Path;

use crate::MLX_VERSION;
use crate::failure::{Failure, Result, run, variable};
use crate::mac::{self, Macos};
use crate::python::Wheel;

/// The oldest glibc that the wheel of MLX for Linux runs on.
const GLIBC: (u32, u32) = (2, 35);

#[derive(Clone, Copy)]
pub struct Platform {
    /// The processor, as the package index names it.
    arch: &'static str,
    system: System,
}

#[derive(Clone, Copy)]
enum System {
    Linux,
    Mac(Macos),
}

impl Platform {
    /// `None` if there is no package for the target.
    pub fn of(target: &str) -> Result<Option<Self>> {
        Ok(match target {
            "x86_64-unknown-linux-gnu" => Some(Self { arch: "x86_64", system: System::Linux }),
            "aarch64-unknown-linux-gnu" => Some(Self { arch: "aarch64", system: System::Linux }),
            "aarch64-apple-darwin" => {
                let macos = mac::version_to_build_for()?;
                mac::set_deployment_target();
                Some(Self { arch: "arm64", system: System::Mac(macos) })
            }
            _ => None,
        })
    }

    /// Whether there are kernels of ours.
    pub fn has_kernels(self) -> bool {
        matches!(self.system, System::Linux)
    }

    pub fn is_linux(self) -> bool {
        matches!(self.system, System::Linux)
    }

    pub fn is_mac(self) -> bool {
        !self.is_linux()
    }

    pub fn arch(self) -> &'static str {
        self.arch
    }

    /// In the names of what is kept. Two platforms whose results differ have different names.
    pub fn name(self) -> String {
        match self.system {
            System::Linux => self.arch.to_owned(),
            System::Mac(macos) => format!("macos{}-{}", macos.tag(), self.arch),
        }
    }

    /// Below the home folder: where downloads and results are kept.
    pub fn folder(self) -> &'static str {
        match self.system {
            System::Linux => ".mlx/linux",
            System::Mac(_) => ".mlx/macos",
        }
    }

    /// MLX itself: the wheel whose folder `mlx` has `include` and `lib`.
    pub fn wheel(self) -> Wheel {
        match self.system {
            System::Linux => Wheel {
                keep_as: format!("mlx-cpu-{MLX_VERSION}-{}", self.name()),
                requirements: "mlx-cpu.txt",
                proof: &["mlx/lib/libmlx.so", "mlx/include/mlx/version.h"],
                platform: format!("manylinux_{}_{}_{}", GLIBC.0, GLIBC.1, self.arch),
                instead: "point MLX_PREFIX at an installed MLX",
            },
            System::Mac(macos) => Wheel {
                keep_as: format!("mlx-metal-{MLX_VERSION}-{}", self.name()),
                requirements: "mlx-metal.txt",
                proof: &[
                    "mlx/lib/libmlx.dylib",
                    "mlx/lib/libjaccl.dylib",
                    "mlx/lib/mlx.metallib",
                    "mlx/include/mlx/version.h",
                ],
                platform: format!("macosx_{}_0_{}", macos.tag(), self.arch),
                instead: "point MLX_PREFIX at an installed MLX",
            },
        }
    }

    /// Checks what a downloaded library needs of this system.
    pub fn check_system(self) -> Result<()> {
        match self.system {
            System::Linux => check_glibc(),
            System::Mac(_) => Ok(()),
        }
    }

    /// The file of a shared library.
    pub fn library(self, name: &str) -> String {
        match self.system {
            System::Linux => format!("lib{name}.so"),
            System::Mac(_) => format!("lib{name}.dylib"),
        }
    }

    /// The name by which programs load the shared library `file`: its absolute path, or just the name of a file that a
    /// program finds by its own rpath.
    pub fn load_name(self, file: &Path, relocatable: bool) -> OsString {
        match (relocatable, file.file_name()) {
            (true, Some(name)) => match self.system {
                System::Linux => name.to_owned(),
                System::Mac(_) => {
                    let mut load_name = OsString::from("@rpath/");
                    load_name.push(name);
                    load_name
                }
            },
            _ => file.as_os_str().to_owned(),
        }
    }

    /// Arguments of the C++ compiler that make a shared library with this load name and these rpaths.
    pub fn shared_library(self, load_name: &OsString, rpaths: &[OsString]) -> Vec<OsString> {
        let (kind, name) = match self.system {
            System::Linux => ("-shared", "-soname"),
            System::Mac(_) => ("-dynamiclib", "-install_name"),
        };
        // Not -Wl, which splits a path at its commas.
        let mut arguments: Vec<OsString> = [kind, "-Xlinker", name, "-Xlinker"].map(OsString::from).to_vec();
        arguments.push(load_name.clone());
        for rpath in rpaths {
            arguments.extend(["-Xlinker", "-rpath", "-Xlinker"].map(OsString::from));
            arguments.push(rpath.clone());
        }
        if let System::Linux = self.system {
            // A missing symbol is an error of the linker on a Mac without a word.
            arguments.push("-Wl,-z,defs".into());
        }
        arguments
    }

    /// Where a library that can be moved looks for MLX: in an archive's `lib/mlx/lib`, or where pip has put it beside
    /// the package that has the library in `lib`.
    pub fn relative_rpaths(self) -> Vec<OsString> {
        let origin = match self.system {
            System::Linux => "$ORIGIN",
            System::Mac(_) => "@loader_path",
        };
        ["mlx/lib", "../../mlx/lib"].iter().map(|path| format!("{origin}/{path}").into()).collect()
    }

    /// The same for the library for NVIDIA GPUs: in an archive, MLX and NVIDIA's libraries are in `lib/cuda`.
    pub fn relative_rpaths_for_cuda(self) -> Vec<OsString> {
        vec!["$ORIGIN/cuda/mlx/lib".into()]
    }

    /// Arguments of the C++ compiler with which a library's rpaths precede `LD_LIBRARY_PATH`: another version of MLX there
    /// lacks symbols that mlx-c needs. A Mac has no such argument.
    pub fn rpaths_first(self) -> &'static [&'static str] {
        match self.system {
            System::Linux => &["-Wl,--disable-new-dtags"],
            System::Mac(_) => &[],
        }
    }

    /// What to do where the C++ compiler is missing.
    pub fn install_compiler(self) -> String {
        if mac::is_host() {
            return "install Apple's command line tools (`xcode-select --install`), or name a compiler in CXX".into();
        }
        match self.system {
            System::Linux => format!(
                "install one (Debian and Ubuntu: `apt install g++`; to cross-compile: `apt install g++-{}-linux-gnu`), \
                 or name one in CXX",
                self.arch.replace('_', "-")
            ),
            System::Mac(_) => "name a C++ compiler for Macs in CXX_aarch64_apple_darwin; \
                               `cargo xtask apple` of the repository installs one and uses it"
                .into(),
        }
    }

    /// Compilers that are new enough.
    pub fn compilers(self) -> &'static str {
        match self.system {
            System::Linux => "use GCC 12 or Clang 15 or newer (name it in CXX)",
            System::Mac(_) => {
                "use the C++ compiler in the command line tools of Xcode 15 or newer (Software Update has them); \
                               unset CXX if it names another"
            }
        }
    }
}

fn check_glibc() -> Result<()> {
    // If the program is missing or its output is not understood, the dynamic linker checks when a program starts.
    let Some(answer) = run(std::process::Command::new("getconf").arg("GNU_LIBC_VERSION"))? else {
        return Ok(());
    };
    let answer = String::from_utf8_lossy(&answer.stdout).into_owned();
    let version = answer.trim().strip_prefix("glibc ").and_then(|version| {
        let mut numbers = version.split('.').map(|number| number.parse::<u32>().ok());
        Some((numbers.next()??, numbers.next()??))
    });
    match version {
        Some(version) if version < GLIBC => Err(Failure::new(
            format!(
                "this system has glibc {}.{}, and MLX's package for Linux needs {}.{}",
                version.0, version.1, GLIBC.0, GLIBC.1
            ),
            "use Debian 12, Ubuntu 22.04 or newer, or build MLX from source and point MLX_PREFIX at it",
        )),
        _ => Ok(()),
    }
}

/// The failure for a target without a package.
pub fn no_package(target: &str) -> Result<Failure> {
    if target == "x86_64-apple-darwin" {
        return mac::intel();
    }
    let host = variable("HOST")?;
    let what = format!("there is no MLX for the target {target}");
    Ok(Failure::new(
        what,
        format!(
            "build for aarch64-apple-darwin, x86_64-unknown-linux-gnu or aarch64-unknown-linux-gnu (this Rust runs on {host})"
        ),
    ))
}
