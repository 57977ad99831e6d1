//! Programs that measure or answer, each in a process of its own.

use std::io;
use std::process::Command;

use workspace::python;

use crate::interrupt;

/// The value that turns our kernels off and selects stock MLX.
pub(crate) const KERNELS: &str = "MLX_CPU_KERNELS";
/// The variable that makes our kernels report on standard error where the time goes.
const PROFILE: &str = "MLX_CPU_PROFILE";

/// Reads the output of a program.
pub(crate) fn output(mut command: Command, name: &str) -> io::Result<Vec<u8>> {
    let output = command.output().map_err(|e| io::Error::new(e.kind(), format!("starting {name}: {e}")))?;
    interrupt::check()?;
    if !output.status.success() {
        let said = python::last_lines(&output.stderr);
        return Err(io::Error::other(format!("{name} failed ({}):\n{said}", output.status)));
    }
    if std::env::var_os(PROFILE).is_some() && !output.stderr.is_empty() {
        workspace::complain(String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(output.stdout)
}

/// This program as a new process, with its own kernels.
pub(crate) fn this_program(arguments: &[&str]) -> io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(arguments).env_remove(KERNELS);
    Ok(command)
}
