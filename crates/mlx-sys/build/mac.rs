//! Macs: which macOS to build for, and which Macs MLX does not run on.

use std::process::Command;

use crate::failure::{Failure, Result, run, variable};

/// MLX's packages, by the oldest macOS that they run on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Macos {
    Sonoma14,
    Sequoia15,
    /// Its library says that it needs 26.2.
    Tahoe26,
}

impl Macos {
    /// The number in the package's platform tag.
    pub fn tag(self) -> u32 {
        match self {
            Self::Sonoma14 => 14,
            Self::Sequoia15 => 15,
            Self::Tahoe26 => 26,
        }
    }

    /// The newest package that runs on this macOS.
    fn newest_for(version: (u32, u32)) -> Option<Self> {
        match version {
            (..14, _) => None,
            (14, _) => Some(Self::Sonoma14),
            (15..26, _) | (26, ..2) => Some(Self::Sequoia15),
            _ => Some(Self::Tahoe26),
        }
    }
}

/// What mlx-c needs: the C++ library of macOS 14 has `std::format`.
const OLDEST: &str = "14.0";

/// Whether the build runs on a Mac.
pub fn is_host() -> bool {
    std::env::var("HOST").is_ok_and(|host| host.ends_with("-apple-darwin"))
}

const DEPLOYMENT_TARGET: &str = "MACOSX_DEPLOYMENT_TARGET";

/// On a Mac the macOS that it has, or an older one that `MACOSX_DEPLOYMENT_TARGET` names. Elsewhere what this variable says, or
/// the oldest.
pub fn version_to_build_for() -> Result<Macos> {
    println!("cargo::rerun-if-env-changed={DEPLOYMENT_TARGET}");
    let wanted = deployment_target();
    if !is_host() {
        let wanted = if wanted.is_empty() { OLDEST } else { &wanted };
        return parse(wanted).and_then(Macos::newest_for).ok_or_else(|| {
            Failure::new(
                format!("{DEPLOYMENT_TARGET}={wanted} is no version of macOS that MLX runs on"),
                "set it to 14.0 or newer, or unset it",
            )
        });
    }
    let said = run(Command::new("sw_vers").arg("-productVersion"))?
        .map(|answer| String::from_utf8_lossy(&answer.stdout).trim().to_owned())
        .unwrap_or_default();
    let version = parse(&said).ok_or_else(|| {
        Failure::new(
            format!("`sw_vers -productVersion` does not say which macOS this is (it says {said:?})"),
            "add /usr/bin to PATH",
        )
    })?;
    let newest = Macos::newest_for(version).ok_or_else(|| {
        Failure::new(format!("this Mac has macOS {said}, and MLX needs macOS 14 or newer"), "update macOS")
    })?;
    // Many have a variable that is older than MLX.
    let older = parse(&wanted).and_then(Macos::newest_for);
    Ok(older.map_or(newest, |older| older.min(newest)))
}

/// What the C++ compiler builds for.
pub fn deployment_target() -> String {
    std::env::var(DEPLOYMENT_TARGET).unwrap_or_default()
}

/// Has the C++ compiler build for the oldest macOS that mlx-c can run on, or for the newer one that the user asks for. The
/// compiler, and the package `cc`, read this variable; Rust's own value for it is 11.0.
pub fn set_deployment_target() {
    if parse(&deployment_target()) < parse(OLDEST) {
        // SAFETY: this program has one thread here, so no other reads the environment.
        unsafe { std::env::set_var(DEPLOYMENT_TARGET, OLDEST) };
    }
}

/// `15.3.1` as `(15, 3)`.
fn parse(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next().unwrap_or(Some(0))?))
}

/// The failure for Rust's target `x86_64-apple-darwin`: an Intel Mac, or a Rust for Intel Macs on another one.
pub fn intel() -> Result<Failure> {
    let arm64 = run(Command::new("sysctl").args(["-n", "hw.optional.arm64"]))?;
    let is_arm64 = arm64.is_some_and(|answer| answer.stdout.trim_ascii() == b"1");
    Ok(if is_host() && is_arm64 {
        Failure::new(
            "this Mac has Apple silicon, and the build is for Intel Macs, on which MLX does not run",
            "install Rust for Apple silicon: `rustup default --force-non-host stable-aarch64-apple-darwin`; or, after \
             `rustup target add aarch64-apple-darwin`, build with `--target aarch64-apple-darwin`",
        )
    } else {
        Failure::new(
            "MLX does not run on Intel Macs",
            format!(
                "use a Mac with Apple silicon, or Linux; to build for one here, on {}: `--target aarch64-apple-darwin`",
                variable("HOST")?
            ),
        )
    })
}
