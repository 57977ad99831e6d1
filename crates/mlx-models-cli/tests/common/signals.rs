//! Programs that are sent signals.

use std::process::Command;

/// The program with signals as a terminal gives them to it, also where the tests were started with one ignored (`nohup`).
pub(crate) fn program() -> Command {
    let program = env!("CARGO_BIN_EXE_mlx-models");
    if !cfg!(target_os = "linux") {
        return Command::new(program);
    }
    let mut command = Command::new("env");
    command.args(["--default-signal=INT,HUP", program]);
    command
}
