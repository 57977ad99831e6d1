//! The program for tests that send signals to it.

use std::process::Command;

/// The program with the default handling of signals, even if the tests were started with one ignored (`nohup`).
pub(crate) fn program() -> Command {
    let program = env!("CARGO_BIN_EXE_mlx-models");
    if !cfg!(target_os = "linux") {
        return Command::new(program);
    }
    let mut command = Command::new("env");
    command.args(["--default-signal=INT,HUP", program]);
    command
}
