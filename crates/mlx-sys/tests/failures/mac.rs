//! Failures on Macs, and of builds for Macs. The programs of macOS are faked.

use super::assert_says;
use super::environment::Environment;

/// Sentences of Linux have no place on a Mac.
fn assert_mac_says(said: &str, needles: &[&str]) {
    assert_says(said, needles);
    for word in ["Debian", "apt ", "glibc", ".so"] {
        assert!(!said.contains(word), "{word:?} in:\n{said}");
    }
}

#[test]
fn an_old_macos() {
    let said = Environment::mac("13.6.9").failure();
    assert_mac_says(&said, &["this Mac has macOS 13.6.9", "needs macOS 14 or newer", "update macOS"]);
}

#[test]
fn a_macos_that_does_not_say_its_version() {
    let said = Environment::mac("").without("sw_vers").failure();
    assert_mac_says(
        &said,
        &["`sw_vers -productVersion` does not say which macOS this is", "/usr/bin to PATH"],
    );
}

#[test]
fn each_macos_has_its_package() {
    for (macos, tag) in [
        ("14.0", "14"),
        ("14.8.1", "14"),
        ("15.0", "15"),
        ("26.0", "15"),
        ("26.1", "15"),
        ("26.2", "26"),
        ("27.0", "26"),
    ] {
        let said = Environment::mac(macos).failure();
        assert_mac_says(
            &said,
            &[&format!("pip cannot reach a package index that has mlx-metal-0.32.2-macos{tag}-arm64")],
        );
    }
}

#[test]
fn an_older_macos_can_be_asked_for() {
    for (macos, asked, tag) in [
        ("15.3", "14.0", "14"),
        ("26.2", "15.0", "15"),
        // Rust's own value, and others that are older than MLX.
        ("15.3", "11.0", "15"),
        ("15.3", "", "15"),
        // Newer than the Mac.
        ("15.3", "26.2", "15"),
        ("26.1", "26.2", "15"),
    ] {
        let said = Environment::mac(macos).with("MACOSX_DEPLOYMENT_TARGET", asked).failure();
        assert_mac_says(&said, &[&format!("has mlx-metal-0.32.2-macos{tag}-arm64")]);
    }
}

#[test]
fn rust_for_intel_macs_on_apple_silicon() {
    let rosetta = Environment::mac("15.3").on("x86_64-apple-darwin");
    rosetta.script("sysctl", "echo 1");
    let said = rosetta.failure();
    assert_mac_says(
        &said,
        &[
            "Apple silicon, and the build is for Intel Macs",
            "rustup default --force-non-host stable-aarch64-apple-darwin",
        ],
    );
}

#[test]
fn an_intel_mac() {
    let intel = Environment::mac("15.3").on("x86_64-apple-darwin");
    intel.script("sysctl", "echo \"sysctl: unknown oid 'hw.optional.arm64'\" >&2; exit 1");
    assert_mac_says(&intel.failure(), &["MLX does not run on Intel Macs", "Apple silicon"]);
}

#[test]
fn no_command_line_tools() {
    let mac = Environment::mac("15.3");
    mac.script("c++", "echo 'xcode-select: note: No developer tools were found' >&2; exit 1");
    assert_mac_says(&mac.failure(), &["no working C++ compiler", "`xcode-select --install`", "CXX"]);
}

#[test]
fn a_licence_that_was_not_agreed_to() {
    let mac = Environment::mac("15.3");
    mac.script(
        "c++",
        "echo \"You have not agreed to the Xcode license. Run 'sudo xcodebuild -license'.\" >&2; exit 69",
    );
    assert_mac_says(
        &mac.failure(),
        &["no working C++ compiler", "c++ says: You have not agreed", "-license"],
    );
}

#[test]
fn a_compiler_that_is_too_old() {
    let mac = Environment::mac("15.3");
    mac.script("c++", r#"case "$*" in *--version) ;; *) echo 'no member named format' >&2; exit 1 ;; esac"#);
    let prefix = mac.mlx([0, 32, 2], Some("libmlx.dylib"));
    let said = mac.with("MLX_PREFIX", prefix).failure();
    assert_mac_says(
        &said,
        &["mlx-c does not compile", "command line tools of Xcode 15 or newer", "unset CXX"],
    );
}

#[test]
fn no_python() {
    let said = Environment::mac("15.3").without("python3").failure();
    assert_mac_says(
        &said,
        &["no Python 3 called `python3`", "`xcode-select --install`", "PYTHON", "MLX_PREFIX"],
    );
}

#[test]
fn no_pip() {
    let mac = Environment::mac("15.3");
    mac.script(
        "python3",
        r#"[ "$1" = --version ] && echo Python 3.9.6 || { echo No module named pip >&2; exit 1; }"#,
    );
    assert_mac_says(&mac.failure(), &["has no pip", "python3 -m ensurepip", "PYTHON", "/usr/bin/python3"]);
}

#[test]
fn an_installed_mlx_without_its_library() {
    let mac = Environment::mac("15.3");
    let prefix = mac.mlx([0, 32, 2], None);
    let said = mac.with("MLX_PREFIX", prefix).failure();
    assert_mac_says(&said, &["no lib/libmlx.dylib", "MLX_PREFIX must name a folder"]);
}

#[test]
fn an_installed_mlx_for_linux() {
    let mac = Environment::mac("15.3");
    let prefix = mac.mlx([0, 32, 2], Some("libmlx.so"));
    assert_says(&mac.with("MLX_PREFIX", prefix).failure(), &["no lib/libmlx.dylib"]);
}

#[test]
fn from_source_without_cmake() {
    let said = Environment::mac("15.3").with("MLX_SYS_FROM_SOURCE", "1").failure();
    assert_mac_says(
        &said,
        &["MLX_SYS_FROM_SOURCE is set", "there is no CMake", "brew install cmake", "the whole of Xcode"],
    );
}

#[test]
fn metal_jit_without_xcode() {
    let mac = Environment::mac("15.3").with("CARGO_FEATURE_METAL_JIT", "1");
    mac.script("cmake", "echo cmake version 4.1");
    mac.script(
        "xcrun",
        "echo 'xcrun: error: unable to find utility \"metal\", not a developer tool' >&2; exit 72",
    );
    let said = mac.failure();
    assert_mac_says(
        &said,
        &["feature metal-jit", "no Metal compiler", "install the whole of Xcode", "sudo xcode-select"],
    );
}

#[test]
fn metal_jit_without_the_metal_toolchain() {
    let mac = Environment::mac("26.2").with("CARGO_FEATURE_METAL_JIT", "1");
    mac.script("cmake", "echo cmake version 4.1");
    mac.script(
        "xcrun",
        "echo \"error: cannot execute tool 'metal' due to missing Metal Toolchain\" >&2; exit 1",
    );
    let said = mac.failure();
    assert_mac_says(&said, &["no Metal toolchain", "xcodebuild -downloadComponent MetalToolchain"]);
}

#[test]
fn without_metal_and_without_cmake() {
    let said = Environment::mac("15.3").without_variable("CARGO_FEATURE_METAL").failure();
    assert_mac_says(
        &said,
        &["no package without the feature metal", "no CMake", "CMake and Apple's command line tools"],
    );
    assert!(!said.contains("Xcode"), "{said}");
}

#[test]
fn an_iphone_without_cmake() {
    let said = Environment::mac("15.3").with("TARGET", "aarch64-apple-ios").failure();
    assert_mac_says(&said, &["no package for the target aarch64-apple-ios", "no CMake"]);
}

#[test]
fn a_cmake_that_fails() {
    let mac = Environment::mac("15.3").without_variable("CARGO_FEATURE_METAL");
    mac.script("cmake", r#"[ "$1" = --version ] || { echo 'CMake Error: no network' >&2; exit 1; }"#);
    assert_mac_says(&mac.failure(), &["CMake cannot build MLX", "its own messages are above", "a network"]);
}

#[test]
fn from_source_for_a_mac_on_linux() {
    let linux =
        Environment::offline().with("TARGET", "aarch64-apple-darwin").with("MLX_SYS_FROM_SOURCE", "1");
    let said = linux.with("CARGO_CFG_TARGET_VENDOR", "apple").failure();
    assert_says(&said, &["possible on a Mac only", "aarch64-apple-darwin"]);
}

#[test]
fn from_source_for_linux() {
    let said = Environment::offline().with("MLX_SYS_FROM_SOURCE", "1").failure();
    assert_says(&said, &["MLX_SYS_FROM_SOURCE is for Macs", "MLX_PREFIX"]);
}

#[test]
fn for_a_mac_on_linux_without_its_compiler() {
    let linux = Environment::offline()
        .with("TARGET", "aarch64-apple-darwin")
        .with("CARGO_CFG_TARGET_VENDOR", "apple")
        .with("CARGO_FEATURE_METAL", "1")
        .with("CXX_aarch64_apple_darwin", "/no/such/compiler");
    assert_says(
        &linux.failure(),
        &["no working C++ compiler", "CXX_aarch64_apple_darwin", "cargo xtask apple"],
    );
}

#[test]
fn for_a_mac_that_is_too_old() {
    let linux = Environment::offline()
        .with("TARGET", "aarch64-apple-darwin")
        .with("CARGO_CFG_TARGET_VENDOR", "apple")
        .with("CARGO_FEATURE_METAL", "1")
        .with("MACOSX_DEPLOYMENT_TARGET", "12.0");
    assert_says(&linux.failure(), &["MACOSX_DEPLOYMENT_TARGET=12.0", "14.0 or newer"]);
}
