//! Every failure of the build says what to do.
//!
//! Each test runs the build script as cargo would, in an environment where one thing is missing: with an empty folder for
//! downloads, a PATH with a few programs, and a package index that does not answer.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod cuda;
mod environment;
mod mac;

use std::fs;

use environment::{Environment, write_wheel};

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

/// MLX's packages ask for Python 3.10, and Apple's command line tools have 3.9. Some have pip refuse to work outside of a virtual
/// environment.
#[test]
fn neither_the_version_of_python_nor_a_virtual_environment_matters() {
    let environment = Environment::offline().with("PIP_REQUIRE_VIRTUALENV", "1");
    environment.script(
        "python3",
        r#"case "$*" in
            *" download "*) echo "ERROR: for $*, in an environment: $PIP_REQUIRE_VIRTUALENV" >&2; exit 1 ;;
        esac"#,
    );
    assert_says(&environment.failure(), &["--python-version 3.14", "in an environment: 0"]);
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
    let prefix = environment.mlx([0, 32, 2], Some("libmlx.so"));
    let said = environment.with("MLX_PREFIX", prefix).with("LIBCLANG_PATH", "/no/such/folder").failure();
    assert_says(&said, &["no libclang at LIBCLANG_PATH=/no/such/folder", "unset it"]);
}

#[test]
#[cfg(feature = "bindgen")]
fn no_libclang_and_no_network() {
    let environment = Environment::offline();
    let prefix = environment.mlx([0, 32, 2], Some("libmlx.so"));
    // If the system has a libclang, the build goes on until the compiler finds that this MLX is empty.
    let said = environment.with("MLX_PREFIX", prefix).failure();
    let missing = said.contains("apt install libclang-dev");
    assert!(missing || said.contains("mlx-c does not compile"), "{said}");
}

#[test]
fn an_installed_mlx_of_another_version() {
    let environment = Environment::offline();
    let prefix = environment.mlx([0, 31, 1], Some("libmlx.so"));
    assert_says(
        &environment.with("MLX_PREFIX", prefix).failure(),
        &["holds MLX 0.31.1", "needs 0.32.2", "unset it"],
    );
}

#[test]
fn an_installed_mlx_without_its_library() {
    let environment = Environment::offline();
    let prefix = environment.mlx([0, 32, 2], None);
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
    let prefix = environment.mlx([0, 32, 2], Some("libmlx.so"));
    environment.script("cargo", "echo 'error: failed to download' >&2; exit 101");
    let cargo = environment.path("bin/cargo");
    let said = environment.with("MLX_PREFIX", prefix).with("CARGO", cargo).failure();
    assert_says(&said, &["mlx-sys 0.7.0", "failed to download", "connect to the network"]);
}
