//! The platforms that the program is packed for.

use std::io;

/// A platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Platform {
    /// The name of the target in Rust.
    pub(super) target: &'static str,
    /// MLX's own package for it.
    pub(super) mlx: &'static str,
    /// How `mlx-sys` names the folder of that package, after the package's name and version.
    pub(super) kept_as: &'static str,
    /// The tag of wheels: the oldest system that MLX's package runs on.
    pub(super) tag: &'static str,
    /// The shared libraries that this project compiles.
    pub(super) libraries: &'static [&'static str],
    /// The system in words.
    pub(super) system: &'static str,
}

/// The oldest macOS that programs are packed for. MLX has packages for newer ones too, which run there only.
pub(super) const MACOS: &str = "14.0";

const LINUX: &[&str] = &["libmlxc.so", "libmlx_kernels.so"];

/// All platforms.
pub(super) const PLATFORMS: [Platform; 3] = [
    Platform {
        target: "x86_64-unknown-linux-gnu",
        mlx: "mlx-cpu",
        kept_as: "x86_64",
        tag: "manylinux_2_35_x86_64",
        libraries: LINUX,
        system: "Linux on x86-64 with glibc 2.35 and the C++ library of GCC 12 or newer (Debian 12, Ubuntu 22.04)",
    },
    Platform {
        target: "aarch64-unknown-linux-gnu",
        mlx: "mlx-cpu",
        kept_as: "aarch64",
        tag: "manylinux_2_35_aarch64",
        libraries: LINUX,
        system: "Linux on aarch64 with glibc 2.35 and the C++ library of GCC 12 or newer (Debian 12, Ubuntu 22.04)",
    },
    Platform {
        target: "aarch64-apple-darwin",
        mlx: "mlx-metal",
        kept_as: "macos14-arm64",
        tag: "macosx_14_0_arm64",
        libraries: &["libmlxc.dylib"],
        system: "macOS 14 or newer on Apple silicon",
    },
];

impl Platform {
    /// The platform with this name of a target.
    pub(super) fn named(target: &str) -> io::Result<Self> {
        PLATFORMS.into_iter().find(|platform| platform.target == target).ok_or_else(|| {
            let known = PLATFORMS.map(|platform| platform.target).join(", ");
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("there is no package for {target}; there is for {known}"),
            )
        })
    }

    /// The platform that this program runs on.
    pub(super) fn of_this_machine() -> io::Result<Self> {
        let system = if cfg!(target_os = "macos") { "apple-darwin" } else { "unknown-linux-gnu" };
        Self::named(&format!("{}-{system}", std::env::consts::ARCH))
    }

    pub(super) fn is_mac(self) -> bool {
        self.target.ends_with("apple-darwin")
    }

    /// The arguments of the linker with which the program finds its libraries in the folder `lib` beside its own.
    pub(super) fn linker_arguments(self) -> &'static str {
        if self.is_mac() {
            "-Wl,-rpath,@loader_path/../lib"
        } else {
            // The old kind of rpath, which precedes LD_LIBRARY_PATH: another libmlxc.so there lacks our functions. While the
            // program is linked, MLX is not where libmlxc.so looks for it later, so the linker cannot look into it.
            "-Wl,--disable-new-dtags,-rpath,$ORIGIN/../lib,--allow-shlib-undefined"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_have_names() {
        for platform in PLATFORMS {
            assert_eq!(Platform::named(platform.target).unwrap(), platform);
            assert!(
                platform.libraries.iter().all(|library| library.ends_with(".dylib") == platform.is_mac())
            );
            assert_eq!(platform.linker_arguments().contains("@loader_path"), platform.is_mac());
        }
        let error = Platform::named("x86_64-apple-darwin").unwrap_err().to_string();
        assert!(error.contains("no package for x86_64-apple-darwin; there is for x86_64-unknown"), "{error}");
    }
}
