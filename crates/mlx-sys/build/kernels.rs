//! Our kernels for the CPU: the crate `mlx-kernels` as a shared library.
//!
//! Cargo compiles it here with its release profile, whatever the profile of the build around it is. The library is kept
//! beside MLX under a name that its sources decide, so that it is compiled once, and each profile, target folder and
//! project links it.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::{
    Failure, Result, create_dir, install, is_complete, last_lines, run, variable, work_folder,
};
use crate::hash::Fnv;
use crate::packages::{compiler, is_relocatable};
use crate::platform::Platform;

/// The package that makes a shared library of `mlx-kernels`, in `kernels/`.
const PACKAGE: &[(&str, &str)] = &[
    ("Cargo.toml", include_str!("../kernels/Cargo.toml")),
    ("Cargo.lock", include_str!("../kernels/Cargo.lock")),
    ("src/lib.rs", include_str!("../kernels/src/lib.rs")),
];

/// How `kernels/Cargo.toml` names the crate's folder.
const PATH: &str = "../../mlx-kernels";

/// The files of a crate that decide what the library does.
const SOURCES: &[&str] = &["Cargo.toml", "build.rs", "generated", "src"];

/// Cargo's own settings of the release profile.
const RELEASE: &[&str] = &[
    "opt-level=3",
    "lto=false",
    "codegen-units=16",
    "debug=false",
    "debug-assertions=false",
    "overflow-checks=false",
    "panic=\"unwind\"",
];

const LIBRARY: &str = "lib/libmlx_kernels.so";

/// The folder of the library. Compiles it if `home` does not have it.
pub fn library(platform: Platform, home: &Path) -> Result<PathBuf> {
    let siblings = siblings()?;
    let key = key(home, &siblings)?;
    let place = home.join(format!("mlx-kernels-{key}"));
    if !is_complete(&place, &[LIBRARY]) {
        let work = work_folder(home, "mlx-kernels")?;
        let result = compile(platform, &siblings, &work, &place).and_then(|made| {
            // Otherwise the name would promise other kernels than the library has, for as long as it is kept.
            if self::key(home, &siblings)? != key {
                let what = "the sources of the kernels changed while they were compiled";
                return Err(Failure::new(what, "build again"));
            }
            install(&made, &place, &[LIBRARY])
        });
        let _ = std::fs::remove_dir_all(&work);
        result?;
    }
    println!("cargo::rerun-if-changed={}", place.join(LIBRARY).display());
    Ok(place.join("lib"))
}

/// The folder that holds `mlx-kernels`, `mlx-cpu` and this crate.
fn siblings() -> Result<PathBuf> {
    let here = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let siblings = here.parent().unwrap_or(&here).to_path_buf();
    for name in ["mlx-kernels", "mlx-cpu"] {
        if !siblings.join(name).join("Cargo.toml").is_file() {
            return Err(Failure::new(
                format!("the crate {name} is not beside mlx-sys, in {}", siblings.display()),
                "take the whole repository, or build mlx-sys with its feature without-cpu-kernels",
            ));
        }
    }
    Ok(siblings)
}

/// A name for the library, by all that it depends on. Its own absolute path is part of it.
fn key(home: &Path, siblings: &Path) -> Result<String> {
    let mut hash = Fnv::new();
    hash.update(home.to_string_lossy().as_bytes());
    hash.update(variable("TARGET")?.as_bytes());
    hash.update(&[u8::from(is_relocatable())]);
    hash.update(include_str!("kernels.rs").as_bytes());
    for (_, text) in PACKAGE {
        hash.update(text.as_bytes());
    }
    let crates = ["mlx-kernels", "mlx-cpu"].into_iter();
    let sources = crates.flat_map(|name| SOURCES.iter().map(move |part| format!("{name}/{part}")));
    for part in sources.chain(["mlx-sys/native/operations.def".to_owned()]) {
        let path = siblings.join(part);
        if path.exists() {
            println!("cargo::rerun-if-changed={}", path.display());
            hash.update_files(&path)?;
        }
    }
    Ok(hash.hex())
}

/// Compiles the library in the folder `work`, for `place`. Returns the folder to move there.
fn compile(platform: Platform, siblings: &Path, work: &Path, place: &Path) -> Result<PathBuf> {
    let package = PathBuf::from(variable("OUT_DIR")?).join("kernels");
    write_package(siblings, &package)?;
    let target = variable("TARGET")?;
    // The library is found by this name. Not -Wl, which splits a path at its commas.
    let soname = platform.load_name(&place.join(LIBRARY), is_relocatable());
    let flags = ["-Xlinker", "-soname", "-Xlinker", &*soname.to_string_lossy()]
        .map(|flag| format!("-Clink-arg={flag}"));

    let mut cargo = Command::new(variable("CARGO")?);
    cargo
        .args(["build", "--locked", "--release", "--target", &target, "--target-dir"])
        .arg(work.join("target"));
    // All projects share the library, so none decides with a configuration file of its own how it is optimized.
    for setting in RELEASE {
        cargo.args(["--config", &format!("profile.release.{setting}")]);
    }
    cargo.current_dir(&package).env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    // In a folder that the build around this one has locked, this one would wait forever.
    cargo.env("CARGO_BUILD_BUILD_DIR", work.join("target"));
    // The library is never compiled a second time, and incremental code is slower.
    cargo.env("CARGO_INCREMENTAL", "0");
    if let Some(linker) = linker(platform, &target)? {
        let target = target.to_uppercase().replace('-', "_");
        cargo.env(format!("CARGO_TARGET_{target}_LINKER"), linker);
    }
    // What is meant for the build around this one: other flags, clippy, other settings of the release profile.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PROFILE_") || ["RUSTFLAGS", "RUSTC_WORKSPACE_WRAPPER"].contains(&&*name) {
            cargo.env_remove(&*name);
        }
    }
    let answer =
        run(&mut cargo)?.ok_or_else(|| Failure::new("cargo was not found", "check the variable CARGO"))?;
    if !answer.status.success() {
        return Err(does_not_compile(&answer.stderr));
    }
    let built = work.join("target").join(target).join("release/libmlx_kernels.so");
    let made = work.join("made");
    create_dir(&made.join("lib"))?;
    let to = made.join(LIBRARY);
    std::fs::rename(&built, &to)
        .map_err(|e| Failure::io(format!("moving {} to {}", built.display(), to.display()), e))?;
    Ok(made)
}

/// The failure that cargo's error output stands for.
fn does_not_compile(said: &[u8]) -> Failure {
    let remedy = if String::from_utf8_lossy(said).contains("could not compile") {
        "`cargo check --package mlx-kernels` shows every error in the code; what is above may name a missing linker"
    } else {
        "connect to the network for the first build, since cargo downloads the package half"
    };
    Failure::new(
        format!("the kernels for the CPU do not compile:\n{}", last_lines(said)),
        format!("{remedy}; or build mlx-sys with its feature without-cpu-kernels"),
    )
}

/// The linker that the build around this one has chosen. Without a choice, and for another processor, the C++ compiler.
fn linker(platform: Platform, target: &str) -> Result<Option<PathBuf>> {
    if let Some(linker) = std::env::var_os("RUSTC_LINKER") {
        return Ok(Some(linker.into()));
    }
    if variable("HOST")? == target {
        return Ok(None);
    }
    Ok(Some(compiler(platform)?.path().to_path_buf()))
}

/// Copies the package out of the source tree, where cargo must not write, with the absolute path of the crate.
fn write_package(siblings: &Path, to: &Path) -> Result<()> {
    create_dir(&to.join("src"))?;
    let path = siblings.join("mlx-kernels").display().to_string().replace('\\', "\\\\").replace('"', "\\\"");
    for (name, text) in PACKAGE {
        let file = to.join(name);
        std::fs::write(&file, text.replace(PATH, &path))
            .map_err(|e| Failure::io(format!("writing {}", file.display()), e))?;
    }
    Ok(())
}
