//! `cargo xtask random-caches`: runs many of the random sequences in `mlx-kvcache`'s tests.
//!
//! The ordinary tests run a hundred. A sequence that fails is made smaller until nothing can be left out any
//! more, and printed.

use std::io;
use std::process::Command;

/// Arguments of `cargo xtask random-caches`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Number of sequences of operations to run
    #[arg(long, value_name = "N", default_value_t = 2000)]
    sequences: u32,
}

pub(crate) fn run(arguments: &Arguments) -> io::Result<bool> {
    let mut tests = Command::new(env!("CARGO"));
    tests.args(["test", "--package", "mlx-kvcache", "--test", "random_sequences"]);
    tests.env("MLX_KVCACHE_SEQUENCES", arguments.sequences.to_string()).current_dir(workspace::root());
    Ok(tests.status()?.success())
}
