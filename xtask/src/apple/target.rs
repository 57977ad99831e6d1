//! Rust's standard library for Macs.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use workspace::python;

/// Macs with Apple silicon, in Rust's words.
pub(super) const TARGET: &str = "aarch64-apple-darwin";

/// Has rustup install the standard library for Macs if it is missing. The inner error says why that was not possible.
///
/// # Errors
///
/// The compiler cannot be asked for its folder.
pub(super) fn install() -> io::Result<Result<(), String>> {
    Ok(install_into(&sysroot()?, OsStr::new("rustup")))
}

fn install_into(sysroot: &Path, rustup: &OsStr) -> Result<(), String> {
    if has_target(sysroot) {
        return Ok(());
    }
    let without = |reason: &str| {
        format!("Rust's standard library for {TARGET} is not in {}, and {reason}", sysroot.display())
    };
    let mut command = Command::new(rustup);
    command.args(["target", "add", TARGET]).current_dir(workspace::root()).stdin(Stdio::null());
    let output = command.output().map_err(|e| without(&format!("rustup cannot be started ({e})")))?;
    if !output.status.success() {
        return Err(without(&format!(
            "`rustup target add {TARGET}` failed:\n{}",
            python::last_lines(&output.stderr)
        )));
    }
    if has_target(sysroot) { Ok(()) } else { Err(without("rustup installed it for another toolchain")) }
}

/// The folder of the toolchain that builds the workspace.
fn sysroot() -> io::Result<PathBuf> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).args(["--print", "sysroot"]).current_dir(workspace::root()).output()?;
    if !output.status.success() {
        return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim_end()))
}

fn has_target(sysroot: &Path) -> bool {
    sysroot.join("lib/rustlib").join(TARGET).join("lib").is_dir()
}

#[cfg(all(test, unix))]
mod tests {
    use std::fs;

    use super::*;

    const LIBRARY: &str = "lib/rustlib/aarch64-apple-darwin/lib";

    #[test]
    fn an_installed_target_needs_no_rustup() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join(LIBRARY)).unwrap();
        assert_eq!(install_into(folder.path(), OsStr::new("no-such-rustup")), Ok(()));
    }

    #[test]
    fn why_the_target_is_missing_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let problem = |rustup: &str| install_into(folder.path(), OsStr::new(rustup)).unwrap_err();
        let error = problem("no-such-rustup");
        assert!(error.contains("rustup cannot be started"), "{error}");
        // Fails, as rustup does without a network.
        let error = problem("false");
        assert!(error.contains("`rustup target add aarch64-apple-darwin` failed"), "{error}");
        // Succeeds, and installs nothing here.
        let error = problem("true");
        assert!(error.contains("for another toolchain"), "{error}");
        assert!(error.contains(&folder.path().display().to_string()), "{error}");
    }

    #[test]
    fn rustup_is_asked_for_a_missing_target() {
        let folder = tempfile::tempdir().unwrap();
        let rustup = folder.path().join("rustup");
        let text = format!(
            "#!/bin/sh\necho \"$@\" > '{0}/asked'; mkdir -p '{0}/{LIBRARY}'\n",
            folder.path().display()
        );
        // By another process: a process that a test starts meanwhile could inherit a file that is open for writing, and
        // an open file cannot be started.
        let mut shell = Command::new("sh");
        shell.args(["-c", "printf %s \"$1\" > \"$0\" && chmod 755 \"$0\""]).arg(&rustup).arg(&text);
        assert!(shell.status().unwrap().success());
        assert_eq!(install_into(folder.path(), rustup.as_os_str()), Ok(()));
        let asked = fs::read_to_string(folder.path().join("asked")).unwrap();
        assert_eq!(asked, "target add aarch64-apple-darwin\n");
    }
}
