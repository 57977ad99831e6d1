//! Failures of builds for NVIDIA GPUs. pip is faked, since the packages are gigabytes.

use std::fs;

use super::assert_says;
use super::environment::Environment;

/// A pip that writes the name of each package into a file, and cannot download the one in `LACKS`.
const PIP: &str = r#"
case "$*" in
  *--version*) exit ;;
  *zipfile*) exit ;;
esac
while [ $# -gt 0 ]; do
  case $1 in
    --dest) to=$2 ;;
    --requirement) read -r name _ < "$2" ;;
  esac
  shift
done
echo "$name" >> "$ASKED"
case $name in
  $LACKS==*) echo "${SAYS:-Connection refused}" >&2; exit 1 ;;
esac
: > "$to/package.whl"
"#;

/// A build with the feature `cuda` and an installed MLX for the CPU.
fn environment() -> Environment {
    let environment = Environment::offline();
    let prefix = environment.mlx([0, 32, 2], Some("libmlx.so"));
    environment.with("MLX_PREFIX", prefix).with("CARGO_FEATURE_CUDA", "1")
}

#[test]
fn no_network() {
    let said = environment().failure();
    assert_says(
        &said,
        &[
            "pip cannot reach a package index that has mlx-cuda-13==0.32.2",
            "connect to the network",
            "MLX_CUDA_PREFIX",
        ],
    );
}

/// What is complete is kept, and only the rest is downloaded.
#[test]
fn an_interrupted_download_goes_on() {
    let environment = environment();
    environment.script("python3", PIP);
    let asked = environment.path("asked");
    let environment = environment.with("ASKED", &asked).with("LACKS", "nvidia-cuda-crt");
    let (said, progress) = environment.messages();
    assert_says(&said, &["pip cannot reach a package index that has nvidia-cuda-crt"]);
    assert_says(
        &progress,
        &["downloading MLX for NVIDIA GPUs: 9 of 9 packages, 1.", " GB (unpacked 2.5 GB) to "],
    );
    let names = |text: String| -> Vec<String> {
        text.lines().map(|line| line.split("==").next().unwrap().to_owned()).collect()
    };
    assert_eq!(
        names(fs::read_to_string(&asked).unwrap()),
        ["mlx-cuda-13", "nvidia-cublas", "nvidia-cuda-crt"]
    );
    assert_eq!(environment.kept().len(), 1, "{:?}", environment.kept());

    fs::remove_file(&asked).unwrap();
    let environment = environment.with("LACKS", "nvidia-cufft");
    let (said, progress) = environment.messages();
    assert_says(&said, &["pip cannot reach a package index that has nvidia-cufft"]);
    assert_says(&progress, &["downloading MLX for NVIDIA GPUs: 7 of 9 packages, 1."]);
    let then =
        ["nvidia-cuda-crt", "nvidia-cuda-nvrtc", "nvidia-cuda-runtime", "nvidia-cudnn-cu13", "nvidia-cufft"];
    assert_eq!(names(fs::read_to_string(&asked).unwrap()), then);
}

#[test]
fn a_full_disk() {
    let environment = environment();
    environment.script("python3", PIP);
    let asked = environment.path("asked");
    let said = environment
        .with("ASKED", asked)
        .with("LACKS", "nvidia-cublas")
        .with("SAYS", "OSError: [Errno 28] No space left on device")
        .messages()
        .0;
    assert_says(
        &said,
        &[
            "there is no room for nvidia-cublas==",
            "No space left on device",
            "free some space",
            "MLX_SYS_HOME",
        ],
    );
}

#[test]
fn packages_that_lack_a_file() {
    let environment = environment();
    environment.script("python3", PIP);
    let asked = environment.path("asked");
    let said = environment.with("ASKED", asked).with("LACKS", "none").messages().0;
    assert_says(&said, &["is incomplete after it was made", "libcublasLt.so.13"]);
}

#[test]
fn an_installed_mlx_of_another_version() {
    let environment = Environment::offline();
    let prefix = environment.mlx([0, 31, 1], Some("libmlx.so"));
    let said = environment.with("MLX_CUDA_PREFIX", prefix).with("CARGO_FEATURE_CUDA", "1").failure();
    assert_says(&said, &["MLX_CUDA_PREFIX=", "holds MLX 0.31.1", "needs 0.32.2", "unset it"]);
}
