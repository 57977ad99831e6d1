//! Empty: see `Cargo.toml` beside this folder.
