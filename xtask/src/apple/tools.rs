//! The compiler and the linker for Macs: zig, from the Python environment [`Environment::Apple`].
//!
//! [`Environment::Apple`]: workspace::python::Environment::Apple

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use workspace::python;

/// The tools, and the folder of what they make.
pub(crate) struct Tools {
    interpreter: PathBuf,
    folder: PathBuf,
    macos: String,
}

impl Tools {
    /// Writes the programs that build scripts call as compilers, and the stubs of macOS's libraries.
    ///
    /// # Errors
    ///
    /// A file cannot be written, or Python fails.
    pub(crate) fn set_up(interpreter: PathBuf, folder: PathBuf, macos: String) -> io::Result<Self> {
        let tools = Self { interpreter, folder, macos };
        let programs = tools.programs();
        fs::create_dir_all(&programs)?;
        for name in ["cc", "c++", "ar", "ranlib"] {
            write_program(&programs.join(name), &tools.text_of_program(name))?;
        }
        let mut stubs = tools.script("mac_sdk.py");
        if !stubs.arg(tools.sdk()).status()?.success() {
            return Err(io::Error::other("the stubs of macOS's libraries cannot be written"));
        }
        Ok(tools)
    }

    /// A shell script that runs one of zig's programs. Build scripts accept no arguments in CC.
    fn text_of_program(&self, name: &str) -> String {
        let script = python::scripts().join("mac_compiler.py");
        let quoted = |path: &Path| format!("'{}'", path.display().to_string().replace('\'', r"'\''"));
        // -B: the source tree stays without compiled scripts. -E, -s: nothing of the user's own Python.
        format!("#!/bin/sh\nexec {} -BEs {} {name} \"$@\"\n", quoted(&self.interpreter), quoted(&script))
    }

    fn programs(&self) -> PathBuf {
        self.folder.join("bin")
    }

    /// In the place of Apple's SDK.
    fn sdk(&self) -> PathBuf {
        self.folder.join("sdk")
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The oldest macOS that is built for.
    pub(crate) fn macos(&self) -> &str {
        &self.macos
    }

    /// cargo's subcommand that links with zig.
    pub(crate) fn zigbuild(&self) -> PathBuf {
        self.interpreter.with_file_name("cargo-zigbuild")
    }

    /// A Python script of ours in the environment.
    pub(crate) fn script(&self, name: &str) -> Command {
        python::script(&self.interpreter, name)
    }

    /// A program that builds for Macs with these tools, as cargo does.
    pub(crate) fn cargo(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(workspace::root());
        for (variable, name) in [("CC", "cc"), ("CXX", "c++"), ("AR", "ar"), ("RANLIB", "ranlib")] {
            command.env(format!("{variable}_aarch64_apple_darwin"), self.programs().join(name));
        }
        command
            .env("MACOSX_DEPLOYMENT_TARGET", &self.macos)
            .env("SDKROOT", self.sdk())
            .env("CARGO_ZIGBUILD_PYTHON_PATH", &self.interpreter)
            .env("CARGO_ZIGBUILD_CACHE_DIR", self.folder.join("cargo-zigbuild"))
            .env("ZIG_GLOBAL_CACHE_DIR", self.folder.join("zig"));
        command
    }
}

fn write_program(file: &Path, text: &str) -> io::Result<()> {
    // The same file stays, because another build may be running it.
    if fs::read_to_string(file).is_ok_and(|found| found == text) {
        return Ok(());
    }
    fs::write(file, text)?;
    #[cfg(unix)]
    fs::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools(folder: &Path) -> Tools {
        let interpreter = folder.join("it's/bin/python");
        Tools { interpreter, folder: folder.join("apple"), macos: "14.0".to_owned() }
    }

    #[test]
    fn cargo_gets_the_compilers_and_the_macos() {
        let tools = tools(Path::new("/x"));
        let command = tools.cargo("cargo");
        let of = |name: &str| {
            let mut variables = command.get_envs();
            variables
                .find(|(variable, _)| *variable == name)
                .and_then(|(_, value)| value)
                .map(OsStr::to_owned)
        };
        assert_eq!(of("CXX_aarch64_apple_darwin").unwrap(), "/x/apple/bin/c++");
        assert_eq!(of("MACOSX_DEPLOYMENT_TARGET").unwrap(), "14.0");
        assert_eq!(of("SDKROOT").unwrap(), "/x/apple/sdk");
        assert_eq!(of("CARGO_ZIGBUILD_PYTHON_PATH").unwrap(), "/x/it's/bin/python");
        assert_eq!(tools.zigbuild(), Path::new("/x/it's/bin/cargo-zigbuild"));
        // The tools of this machine's own builds stay.
        assert_eq!((of("CC"), of("CXX")), (None, None));
    }

    #[cfg(unix)]
    #[test]
    fn a_compiler_is_a_program_that_keeps_its_arguments() {
        let folder = tempfile::tempdir().unwrap();
        let mut tools = tools(folder.path());
        tools.interpreter = "/bin/echo".into();
        fs::create_dir_all(tools.programs()).unwrap();
        let program = tools.programs().join("c++");
        write_program(&program, &tools.text_of_program("c++")).unwrap();
        // Run by a shell, since the file may still be open for writing in a process that another test starts.
        let output = Command::new("sh").arg(&program).args(["-o", "a b"]).output().unwrap();
        let output = String::from_utf8(output.stdout).unwrap();
        assert!(output.starts_with("-BEs ") && output.ends_with("mac_compiler.py c++ -o a b\n"), "{output}");
        assert!(tools.text_of_program("cc").contains("xtask/python"));
    }
}
