//! What all maintenance commands need, those of this crate and those of `mlx-lab`: the folders of the workspace, its
//! crates and features, the Python environments of its scripts, llama.cpp's own programs, and the list of parity cases in `docs/parity.md`.
//!
//! This part of `xtask` links no MLX.

pub mod lab;
pub mod llama_cpp;
pub mod metadata;
pub mod parity_list;
pub mod python;

mod folders;

pub use folders::{complain, root, target_folder, tracked_files};
