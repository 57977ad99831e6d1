//! Every failure of the build says what to do.
//!
//! Each test runs the build script as cargo would, in an environment where one thing is missing: with an empty folder for
//! downloads, a PATH with a few programs, and a package index that does not answer.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// An environment to build in.
struct Environment {
    folder: TempDir,
    env: Vec<(&'static str, PathBuf)>,
}

impl Environment {
    /// An environment with all programs and without a network.
    fn offline() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["bin", "home", "out", "no-wheels"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let environment = Self { folder, env: Vec::new() };
        for program in ["c++", "cc", "as", "ld", "getconf", "rustc"] {
            environment.link(program);
        }
        // By its real path: the one in PATH may be a script that needs other programs.
        let python =
            Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output().unwrap();
        environment.script(
            "python3",
            &format!("exec '{}' \"$@\"", String::from_utf8(python.stdout).unwrap().trim()),
        );
        environment
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn link(&self, program: &str) {
        let from = std::env::split_paths(&std::env::var_os("PATH").unwrap())
            .map(|folder| folder.join(program))
            .find(|candidate| candidate.is_file());
        if let Some(from) = from {
            symlink(from, self.path("bin").join(program)).unwrap();
        }
    }

    /// Replaces a program by a shell script.
    fn script(&self, program: &str, body: &str) {
        let file = self.path("bin").join(program);
        let _ = fs::remove_file(&file);
        fs::write(&file, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn without(self, program: &str) -> Self {
        let _ = fs::remove_file(self.path("bin").join(program));
        self
    }

    fn with(mut self, name: &'static str, value: impl Into<PathBuf>) -> Self {
        self.env.push((name, value.into()));
        self
    }

    /// Runs the build script and returns its error message.
    fn failure(&self) -> String {
        let arch = std::env::consts::ARCH;
        let target = format!("{arch}-unknown-linux-gnu");
        let output = Command::new(env!("MLX_SYS_BUILD_SCRIPT"))
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stdin(Stdio::null())
            // Variables that cargo sets.
            .env("CARGO_MANIFEST_DIR", env!("CARGO_MANIFEST_DIR"))
            .env("OUT_DIR", self.path("out"))
            .env("TARGET", &target)
            .env("HOST", &target)
            .env("OPT_LEVEL", "0")
            .env("CARGO_CFG_TARGET_VENDOR", "unknown")
            .env("CARGO", std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            // The environment of the test.
            .env("PATH", self.path("bin"))
            .env("MLX_SYS_HOME", self.path("home"))
            .env("PIP_INDEX_URL", "http://127.0.0.1:9/")
            .env("PIP_FIND_LINKS", self.path("no-wheels"))
            .env("PIP_RETRIES", "0")
            .env("PIP_NO_CACHE_DIR", "1")
            .env_remove("PIP_EXTRA_INDEX_URL")
            .env_remove("MLX_PREFIX")
            .env_remove("LIBCLANG_PATH")
            .env_remove("CXX")
            .env_remove("PYTHON")
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .output()
            .unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(!output.status.success(), "{said}");
        let said: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("cargo::error=")).collect();
        let said = said.join("\n");
        assert!(said.contains("what to do: "), "{said}");
        // A failure leaves no folder that a later build would use.
        let left: Vec<_> =
            fs::read_dir(self.path("home")).unwrap().flatten().map(|e| e.file_name()).collect();
        assert!(left.is_empty(), "{left:?}");
        said
    }

    /// A folder that looks like an installed MLX of this version.
    fn mlx(&self, version: [u32; 3], library: bool) -> PathBuf {
        let prefix = self.path("mlx");
        fs::create_dir_all(prefix.join("include/mlx")).unwrap();
        fs::create_dir_all(prefix.join("lib")).unwrap();
        let [major, minor, patch] = version;
        let header = format!(
            "#define MLX_VERSION_MAJOR {major}\n#define MLX_VERSION_MINOR {minor}\n#define MLX_VERSION_PATCH {patch}\n"
        );
        fs::write(prefix.join("include/mlx/version.h"), header).unwrap();
        if library {
            fs::write(prefix.join("lib/libmlx.so"), "").unwrap();
        }
        prefix
    }
}

fn assert_says(said: &str, needles: &[&str]) {
    for needle in needles {
        assert!(said.contains(needle), "no {needle:?} in:\n{said}");
    }
}

#[test]
fn no_compiler() {
    let said = Environment::offline().without("c++").failure();
    assert_says(&said, &["no working C++ compiler", "apt install g++", "CXX"]);
}

#[test]
fn a_compiler_that_does_not_run() {
    let said = Environment::offline().with("CXX", "/no/such/compiler").failure();
    assert_says(&said, &["no working C++ compiler", "/no/such/compiler"]);
}

#[test]
fn no_python() {
    let said = Environment::offline().without("python3").failure();
    assert_says(&said, &["no Python 3 called `python3`", "apt install python3 python3-pip", "MLX_PREFIX"]);
}

#[test]
fn no_pip() {
    let environment = Environment::offline();
    environment.script(
        "python3",
        r#"[ "$1" = --version ] && echo Python 3.11.2 || { echo No module named pip >&2; exit 1; }"#,
    );
    assert_says(&environment.failure(), &["has no pip", "apt install python3-pip"]);
}

#[test]
fn no_network() {
    let said = Environment::offline().failure();
    assert_says(
        &said,
        &["pip cannot reach a package index that has mlx-cpu-0.32.2", "connect to the network", "MLX_PREFIX"],
    );
}

#[test]
fn a_download_with_another_hash() {
    let environment = Environment::offline();
    let arch = std::env::consts::ARCH;
    let wheel =
        environment.path("no-wheels").join(format!("mlx_cpu-0.32.2-py3-none-manylinux_2_35_{arch}.whl"));
    write_wheel(&wheel);
    assert_says(&environment.failure(), &["its hash differs", "pip cache purge", "PIP_FIND_LINKS"]);
}

#[test]
fn an_old_glibc() {
    let environment = Environment::offline();
    environment.script("getconf", "echo glibc 2.31");
    assert_says(&environment.failure(), &["this system has glibc 2.31", "needs 2.35", "Ubuntu 22.04"]);
}

#[test]
#[cfg(feature = "bindgen")]
fn no_libclang() {
    let environment = Environment::offline();
    let prefix = environment.mlx([0, 32, 2], true);
    let said = environment.with("MLX_PREFIX", prefix).with("LIBCLANG_PATH", "/no/such/folder").failure();
    assert_says(&said, &["no libclang at LIBCLANG_PATH=/no/such/folder", "unset it"]);
}

#[test]
#[cfg(feature = "bindgen")]
fn no_libclang_and_no_network() {
    let environment = Environment::offline();
    let prefix = environment.mlx([0, 32, 2], true);
    // If the system has a libclang, the build goes on until the compiler finds that this MLX is empty.
    let said = environment.with("MLX_PREFIX", prefix).failure();
    let missing = said.contains("apt install libclang-dev");
    assert!(missing || said.contains("mlx-c does not compile"), "{said}");
}

#[test]
fn an_installed_mlx_of_another_version() {
    let environment = Environment::offline();
    let prefix = environment.mlx([0, 31, 1], true);
    assert_says(
        &environment.with("MLX_PREFIX", prefix).failure(),
        &["holds MLX 0.31.1", "needs 0.32.2", "unset it"],
    );
}

#[test]
fn an_installed_mlx_without_its_library() {
    let environment = Environment::offline();
    let prefix = environment.mlx([0, 32, 2], false);
    assert_says(
        &environment.with("MLX_PREFIX", prefix).failure(),
        &["no lib/libmlx.so", "MLX_PREFIX must name a folder"],
    );
}

#[test]
fn a_prefix_that_is_not_there() {
    let said = Environment::offline().with("MLX_PREFIX", "/no/such/prefix").failure();
    assert_says(&said, &["MLX_PREFIX=/no/such/prefix", "version.h"]);
}

#[test]
fn a_prefix_that_holds_no_mlx() {
    let environment = Environment::offline();
    let prefix = environment.path("no-wheels");
    assert_says(&environment.with("MLX_PREFIX", prefix).failure(), &["no version of MLX", "version.h"]);
}

#[test]
fn a_target_without_mlx() {
    let said = Environment::offline().with("TARGET", "riscv64gc-unknown-linux-gnu").failure();
    assert_says(&said, &["no MLX for the target riscv64gc-unknown-linux-gnu", "x86_64-unknown-linux-gnu"]);
}

#[test]
fn a_folder_that_no_program_can_load_from() {
    let environment = Environment::offline();
    let home = environment.path("home:or$not");
    assert_says(
        &environment.with("MLX_SYS_HOME", home).failure(),
        &["whose name has a : or a $", "MLX_SYS_HOME"],
    );
}

#[test]
fn a_folder_that_cannot_be_made() {
    let environment = Environment::offline();
    let file = environment.path("file");
    fs::write(&file, "").unwrap();
    let said = environment.with("MLX_SYS_HOME", file.join("home")).failure();
    assert_says(&said, &["creating the folder", "permissions", "MLX_SYS_HOME names another folder"]);
}

/// A damaged folder is made again.
#[test]
fn a_damaged_store() {
    let environment = Environment::offline();
    let arch = std::env::consts::ARCH;
    let store = environment.path("damaged");
    fs::create_dir_all(store.join(format!("mlx-cpu-0.32.2-{arch}/mlx/lib"))).unwrap();
    let said = environment.with("MLX_SYS_HOME", store).failure();
    assert_says(&said, &["pip cannot reach a package index that has mlx-cpu"]);
}

#[test]
fn no_home() {
    let said = Environment::offline().with("MLX_SYS_HOME", "").with("HOME", "").failure();
    assert_says(&said, &["HOME is not set", "MLX_SYS_HOME"]);
}

#[test]
fn no_sources_of_mlx_c() {
    let environment = Environment::offline();
    let prefix = environment.mlx([0, 32, 2], true);
    environment.script("cargo", "echo 'error: failed to download' >&2; exit 101");
    let cargo = environment.path("bin/cargo");
    let said = environment.with("MLX_PREFIX", prefix).with("CARGO", cargo).failure();
    assert_says(&said, &["mlx-sys 0.7.0", "failed to download", "connect to the network"]);
}

/// Makes a wheel that pip accepts and that is not MLX.
fn write_wheel(file: &Path) {
    let script = r#"
import sys, zipfile
with zipfile.ZipFile(sys.argv[1], "w") as wheel:
    wheel.writestr("mlx_cpu-0.32.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: mlx-cpu\nVersion: 0.32.2\n")
    wheel.writestr("mlx_cpu-0.32.2.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    wheel.writestr("mlx_cpu-0.32.2.dist-info/RECORD", "")
"#;
    assert!(Command::new("python3").args(["-c", script]).arg(file).status().unwrap().success());
}
