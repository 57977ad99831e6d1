//! MLX and mlx-c built by CMake and linked statically, on Macs, for what MLX's packages do not have.
//!
//! The steps and the place of the Metal library are those of the original crate's build script. This file was written by
//! reading the original. Its checks are tested on Linux with faked tools; CMake has not been run.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::{Failure, Result, create_dir, run, tell, variable};
use crate::{Published, mac, upstream};

/// Why MLX has to be built from source for this target. `None` if a package has it.
pub fn reason(target: &str) -> Result<Option<String>> {
    println!("cargo::rerun-if-env-changed=MLX_SYS_FROM_SOURCE");
    let asked = std::env::var("MLX_SYS_FROM_SOURCE").is_ok_and(|value| !["", "0"].contains(&&*value));
    if variable("CARGO_CFG_TARGET_VENDOR")? != "apple" {
        return match asked {
            true => Err(Failure::new(
                format!("MLX_SYS_FROM_SOURCE is for Macs, and the target is {target}"),
                "unset it; to use a MLX of your own, build it and point MLX_PREFIX at it",
            )),
            false => Ok(None),
        };
    }
    Ok(if asked {
        Some("MLX_SYS_FROM_SOURCE is set".into())
    } else if !target.ends_with("-apple-darwin") {
        Some(format!("MLX has no package for the target {target}"))
    } else if target == "x86_64-apple-darwin" {
        None
    } else if has("metal_jit") {
        Some("MLX has no package with the feature metal-jit".into())
    } else if !has("metal") {
        Some("MLX has no package without the feature metal".into())
    } else {
        None
    })
}

/// Whether a feature of this crate is on.
fn has(feature: &str) -> bool {
    std::env::var_os(format!("CARGO_FEATURE_{}", feature.to_uppercase())).is_some()
}

pub fn build(target: &str, reason: &str) -> Result<Published> {
    println!("cargo::rerun-if-env-changed=MLX_RS_METAL_PATH");
    check_tools(target, reason)?;
    tell(&format!(
        "mlx-sys: {reason}, so CMake builds MLX from source, which takes many minutes. {}",
        needs()
    ));
    let mlx_c = upstream::mlx_c()?;
    let built = run_cmake(&mlx_c)?;
    link(&built, &mlx_c)?;

    let fetched = built.join("build/_deps");
    let mut include = vec![fetched.join("mlx-src")];
    if has("metal") {
        include.push(fetched.join("metal_cpp-src"));
    }
    include.push(mlx_c);
    Ok(Published { include, defines: "MLX_STATIC" })
}

/// What a build from source needs, as a sentence.
fn needs() -> &'static str {
    if has("metal") {
        "It needs a network, CMake, the whole of Xcode and its Metal toolchain."
    } else {
        "It needs a network, CMake and Apple's command line tools."
    }
}

/// Checks before CMake starts, whose own messages come after minutes.
fn check_tools(target: &str, reason: &str) -> Result<()> {
    let failure = |found: &str, remedy: &str| {
        let what = format!("{reason}, so MLX is built from source, but {found}");
        Failure::new(what, format!("{remedy}. {}", needs()))
    };
    if !mac::is_host() {
        let remedy =
            "build on a Mac, or for aarch64-apple-darwin with the features metal and without metal-jit";
        return Err(failure("that is possible on a Mac only", remedy));
    }
    let cmake = std::env::var_os("CMAKE").unwrap_or_else(|| "cmake".into());
    if !run(Command::new(cmake).arg("--version"))?.is_some_and(|answer| answer.status.success()) {
        return Err(failure("there is no CMake", "install it (`brew install cmake`)"));
    }
    if !has("metal") {
        return Ok(());
    }
    let sdk = if target.ends_with("-apple-darwin") { "macosx" } else { "iphoneos" };
    let compiler = run(Command::new("xcrun").args(["--sdk", sdk, "metal", "--version"]))?;
    match compiler {
        Some(answer) if answer.status.success() => Ok(()),
        Some(answer) if String::from_utf8_lossy(&answer.stderr).contains("Metal Toolchain") => Err(failure(
            "Xcode has no Metal toolchain",
            "install it: `xcodebuild -downloadComponent MetalToolchain`",
        )),
        _ => Err(failure(
            "there is no Metal compiler, which the command line tools do not have",
            "install the whole of Xcode, then run `sudo xcode-select --switch /Applications/Xcode.app`",
        )),
    }
}

fn run_cmake(mlx_c: &Path) -> Result<PathBuf> {
    let on = |enabled: bool| if enabled { "ON" } else { "OFF" };
    let mut config = cmake::Config::new(mlx_c);
    config
        .very_verbose(true)
        .define("CMAKE_INSTALL_PREFIX", ".")
        // Xcode's compiler, which matches the SDK.
        .define("CMAKE_C_COMPILER", "/usr/bin/cc")
        .define("CMAKE_CXX_COMPILER", "/usr/bin/c++")
        .define("CMAKE_BUILD_TYPE", if cfg!(debug_assertions) { "Debug" } else { "Release" })
        .define("MLX_BUILD_METAL", on(has("metal")))
        .define("MLX_BUILD_ACCELERATE", on(has("accelerate")));
    if has("metal") {
        if has("metal_jit") {
            config.define("MLX_METAL_JIT", "ON");
        }
        let place = metallib_dir(mlx_c)?;
        create_dir(&place)?;
        config.define("MLX_METAL_PATH", &place);
    }
    // A failure of CMake is a panic of the package that runs it.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| config.build())).map_err(|_| {
        Failure::new(
            "CMake cannot build MLX; its own messages are above",
            format!("{} Build again.", needs()),
        )
    })
}

fn link(built: &Path, mlx_c: &Path) -> Result<()> {
    let built = built.join("build");
    println!("cargo::rustc-link-search=native={}", built.join("lib").display());
    // MLX's GGUF support needs gguflib, which CMake does not install.
    println!("cargo::rustc-link-search=native={}", built.join("_deps/mlx-build/mlx/io").display());
    for library in ["mlx", "mlxc", "gguflib"] {
        println!("cargo::rustc-link-lib=static={library}");
    }
    // Only built on SDK 26.2 and later.
    if built.join("jaccl/libjaccl.a").is_file() {
        println!("cargo::rustc-link-search=native={}", built.join("jaccl").display());
        println!("cargo::rustc-link-lib=static=jaccl");
    }
    println!("cargo::rustc-link-lib=c++");
    println!("cargo::rustc-link-lib=dylib=objc");
    println!("cargo::rustc-link-lib=framework=Foundation");
    if has("metal") {
        println!("cargo::rustc-link-lib=framework=Metal");
        let metallib = metallib_dir(mlx_c)?.join("mlx.metallib");
        if !metallib.exists() {
            println!(
                "cargo::warning=mlx.metallib was not created at {}; Metal operations may fail at run time",
                metallib.display()
            );
        }
    }
    if has("accelerate") {
        println!("cargo::rustc-link-lib=framework=Accelerate");
    }
    // For ___isPlatformVersionAtLeast: the runtime that comes with rustc can be too old for macOS 26.
    if let Some(folder) = clang_runtime() {
        println!("cargo::rustc-link-search={}", folder.display());
        println!("cargo::rustc-link-lib=static=clang_rt.osx");
    }
    Ok(())
}

/// The folder of the Metal library. It must not change after the build, since binaries look for the library there.
fn metallib_dir(mlx_c: &Path) -> Result<PathBuf> {
    if let Some(place) = std::env::var_os("MLX_RS_METAL_PATH") {
        return Ok(PathBuf::from(place));
    }
    let home = std::env::var_os("HOME").ok_or_else(|| {
        Failure::new("HOME is not set", "set it, or name a folder for the Metal library in MLX_RS_METAL_PATH")
    })?;
    // A JIT library holds only a few kernels and must not replace a full one.
    let suffix = if has("metal_jit") { "-jit" } else { "" };
    Ok(PathBuf::from(home).join(".mlx/lib").join(mlx_c_key(mlx_c)? + suffix))
}

/// The original's name for this mlx-c: the first 12 digits of an FNV-1a hash over its headers and
/// CMake configuration, each preceded by its path and a zero byte.
fn mlx_c_key(mlx_c: &Path) -> Result<String> {
    let mut files = upstream::headers(mlx_c)?;
    files.push(mlx_c.join("CMakeLists.txt"));
    files.sort();

    let mut hash = crate::hash::Fnv::new();
    for file in files {
        let relative = file.strip_prefix(mlx_c).unwrap_or(&file);
        hash.update(relative.to_string_lossy().as_bytes());
        hash.update(&[0]);
        hash.update(
            &std::fs::read(&file).map_err(|e| Failure::io(format!("reading {}", file.display()), e))?,
        );
    }
    Ok(hash.hex()[..12].to_owned())
}

/// The folder of Xcode's `libclang_rt.osx.a`.
fn clang_runtime() -> Option<PathBuf> {
    let platform = Command::new("xcrun").arg("--show-sdk-platform-path").output().ok()?;
    let developer = Command::new("xcode-select").arg("--print-path").output().ok()?;
    if !platform.status.success() || !developer.status.success() {
        return None;
    }
    let developer = String::from_utf8(developer.stdout).ok()?;
    let versions = Path::new(developer.trim()).join("Toolchains/XcodeDefault.xctoolchain/usr/lib/clang");
    std::fs::read_dir(versions)
        .ok()?
        .flatten()
        .map(|version| version.path().join("lib/darwin"))
        .find(|folder| folder.join("libclang_rt.osx.a").exists())
}
