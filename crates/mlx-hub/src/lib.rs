//! Download models from the Hugging Face Hub, into the cache that its Python library uses.
//!
//! API for programs that take models by their names on the Hub. This crate knows files and addresses, and neither MLX nor models.
//!
//! ```no_run
//! use mlx_hub::{Event, Hub, HubId, Settings};
//!
//! let hub = Hub::new(Settings::from_environment()?)?;
//! let id: HubId = "mlx-community/Qwen3-0.6B-4bit".parse()?;
//! let snapshot = hub
//!     .download(&id)
//!     .on_event(|event| {
//!         if let Event::Progress { done, total, file } = event {
//!             println!("{done} of {total} bytes, {file}");
//!         }
//!     })
//!     .run()?;
//! println!("the model is in {}", snapshot.folder.display());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | | |
//! |---|---|
//! | [`Settings`] | the Hub's address, the cache, the token and the time-outs, and the environment variables that set them |
//! | [`Hub`] | a hub and its cache |
//! | [`Download`] | a download: its revision, the function that gets its [`Event`]s, and its handle to [`Cancel`] it |
//! | [`Snapshot`] | a model in the cache: its checkpoint folder, commit and files |
//! | [`HubError`] | why a model could not be downloaded |
//!
//! # What is downloaded
//!
//! The files that mlx-lm downloads: configs, tokenizers, chat templates and `model*.safetensors`. The config comes first,
//! and a `model_type` that the caller does not support ([`Settings::model_types`]) is refused before the weights. A
//! download that breaks off leaves what arrived, and the next run continues from there. Large files are checked against
//! their SHA-256, small ones against their length.
//!
//! # The cache
//!
//! A model is a folder `models--OWNER--NAME`:
//!
//! | in it | is |
//! |---|---|
//! | `blobs/ETAG` | the contents of a file, under the name that the Hub gives them: for large files their SHA-256 |
//! | `blobs/ETAG.incomplete` | the part of a file that has arrived |
//! | `snapshots/COMMIT/FILE` | a link to a blob; `snapshots/COMMIT` is the checkpoint folder |
//! | `refs/REVISION` | the commit that a branch or tag last stood for |
//! | `.mlx-models/COMMIT.json` | the names of all files of a commit, which show whether a snapshot is complete |
//!
//! The Python library has the same layout without the last row, so each uses what the other downloaded.
//!
//! # Limits
//!
//! A server cannot fill the memory or the disk, write outside the cache, or hold the program forever. The list of files,
//! the names in it, the length of each file, the number of redirects and of attempts, and the time have limits.

mod cache;
mod download;
mod error;
mod events;
mod http;
mod names;
mod pace;
mod remote;
mod settings;
mod transfer;

pub use cache::Snapshot;
pub use download::{Download, Hub};
pub use error::{HubError, OtherForm};
pub use events::{Cancel, Event};
pub use names::{HubId, Revision};
pub use settings::{ENDPOINT, Settings, Timeouts, Token, xdg_cache_home};

/// The examples of `README.md`.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
