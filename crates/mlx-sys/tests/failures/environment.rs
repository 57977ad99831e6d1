//! An environment in which the build script runs and something is missing.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// An environment to build in.
pub struct Environment {
    folder: TempDir,
    env: Vec<(&'static str, PathBuf)>,
    host: String,
}

impl Environment {
    /// An environment with all programs and without a network.
    pub fn offline() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["bin", "home", "out", "no-wheels"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
        let environment = Self { folder, env: Vec::new(), host };
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

    pub fn path(&self, name: &str) -> PathBuf {
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
    pub fn script(&self, program: &str, body: &str) {
        let file = self.path("bin").join(program);
        let _ = fs::remove_file(&file);
        fs::write(&file, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }

    pub fn without(self, program: &str) -> Self {
        let _ = fs::remove_file(self.path("bin").join(program));
        self
    }

    pub fn with(mut self, name: &'static str, value: impl Into<PathBuf>) -> Self {
        self.env.push((name, value.into()));
        self
    }

    /// A Mac, with this answer of `sw_vers -productVersion`, and the default features of the crate.
    pub fn mac(macos: &str) -> Self {
        let mut mac = Self::offline();
        mac.host = "aarch64-apple-darwin".to_owned();
        mac.script("sw_vers", &format!("echo '{macos}'"));
        mac.with("CARGO_CFG_TARGET_VENDOR", "apple").with("CARGO_FEATURE_METAL", "1")
    }

    /// The machine and the target that a build on it has by default.
    pub fn on(mut self, host: &str) -> Self {
        self.host = host.to_owned();
        self
    }

    pub fn without_variable(mut self, name: &str) -> Self {
        self.env.retain(|(other, _)| *other != name);
        self
    }

    /// Runs the build script and returns its error message.
    pub fn failure(&self) -> String {
        let (said, _) = self.messages();
        // A failure leaves no folder that a later build would use.
        assert_eq!(self.kept(), Vec::<String>::new());
        said
    }

    /// What is in the folder for downloads.
    pub fn kept(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("home")).unwrap().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// Runs the build script and returns its error message, and what it says about its progress.
    pub fn messages(&self) -> (String, String) {
        unsafe extern "C" {
            fn setsid() -> i32;
        }
        let mut build = Command::new(env!("MLX_SYS_BUILD_SCRIPT"));
        // Without a terminal, progress goes to standard error.
        // SAFETY: the function may be called between fork and exec.
        unsafe {
            build.pre_exec(|| {
                setsid();
                Ok(())
            });
        }
        build
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stdin(Stdio::null())
            // Variables that cargo sets.
            .env("CARGO_MANIFEST_DIR", env!("CARGO_MANIFEST_DIR"))
            .env("OUT_DIR", self.path("out"))
            .env("TARGET", &self.host)
            .env("HOST", &self.host)
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
            .env_remove("MACOSX_DEPLOYMENT_TARGET")
            .env_remove("SDKROOT")
            .env_remove("MLX_CUDA_PREFIX")
            .envs(self.env.iter().map(|(name, value)| (name, value)));
        let output = build.output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(!output.status.success(), "{said}");
        let said: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("cargo::error=")).collect();
        let said = said.join("\n");
        assert!(said.contains("what to do: "), "{said}");
        (said, String::from_utf8(output.stderr).unwrap())
    }

    /// A folder that looks like an installed MLX of this version, with an empty file as its library.
    pub fn mlx(&self, version: [u32; 3], library: Option<&str>) -> PathBuf {
        let prefix = self.path("mlx");
        fs::create_dir_all(prefix.join("include/mlx")).unwrap();
        fs::create_dir_all(prefix.join("lib")).unwrap();
        let [major, minor, patch] = version;
        let header = format!(
            "#define MLX_VERSION_MAJOR {major}\n#define MLX_VERSION_MINOR {minor}\n#define MLX_VERSION_PATCH {patch}\n"
        );
        fs::write(prefix.join("include/mlx/version.h"), header).unwrap();
        if let Some(library) = library {
            fs::write(prefix.join("lib").join(library), "").unwrap();
        }
        prefix
    }
}

/// Makes a wheel that pip accepts and that is not MLX.
pub fn write_wheel(file: &Path) {
    let script = r#"
import sys, zipfile
with zipfile.ZipFile(sys.argv[1], "w") as wheel:
    wheel.writestr("mlx_cpu-0.32.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: mlx-cpu\nVersion: 0.32.2\n")
    wheel.writestr("mlx_cpu-0.32.2.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    wheel.writestr("mlx_cpu-0.32.2.dist-info/RECORD", "")
"#;
    assert!(Command::new("python3").args(["-c", script]).arg(file).status().unwrap().success());
}
