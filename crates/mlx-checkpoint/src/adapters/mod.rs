//! Adapter folders, of mlx-lm and of PEFT, and adapters while a model is built.
//!
//! | file | holds |
//! |---|---|
//! | `folder.rs` | [`Adapters`]: an adapter folder that was opened, or fresh adapters; writing a folder |
//! | `config.rs` | [`AdapterConfig`], mlx-lm's config |
//! | `wanted.rs` | what the adapter of one layer is made of |
//! | `plan.rs` | which layers have adapters by mlx-lm's config |
//! | `peft/` | which layers have adapters by PEFT's config |
//! | `building.rs` | [`AdapterTensors`]: the adapters of the layers of a model that is being built |

mod building;
mod config;
mod folder;
mod names;
mod peft;
mod plan;
mod wanted;

pub(crate) use building::{AdapterTensors, Replacement};
pub use config::{AdapterConfig, AdapterKind};
pub use folder::Adapters;
