//! The options of the cache, for every subcommand that keeps one.

use mlx_models::generate::{KvQuantization, Session};
use mlx_models::{CacheError, CacheOptions, CausalLm, Limit, Quantization};

use crate::failure::Failure;
use crate::style::say;

/// The first tokens that a limited cache keeps, as in mlx-lm.
const SINKS: i32 = 4;

/// mlx-lm's default of --kv-group-size.
const KV_GROUP_SIZE: i32 = 64;

/// Options of the cache.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Cache")]
pub(crate) struct CacheArguments {
    /// Limit the cache of layers without a window to this many tokens: the first 4 and the newest
    #[arg(long, value_name = "N")]
    max_kv_size: Option<i32>,
    /// Continue beyond the model's context by dropping old tokens from the cache: it keeps the first 4 and the newest
    /// tokens, --max-kv-size in all or as many as the context has
    #[arg(long)]
    pub(crate) slide: bool,
    /// Quantize the cache to this many bits per number
    #[arg(long, value_name = "BITS")]
    kv_bits: Option<i32>,
    /// Quantize the cache in groups of this many numbers, which share a scale [default: 64, or 32 where 64 does not fit the
    /// model's heads]
    #[arg(long, value_name = "N")]
    kv_group_size: Option<i32>,
    /// Quantize the cache once it has this many tokens
    #[arg(long, value_name = "N", default_value_t = 5000)]
    quantized_kv_start: i32,
    /// Read the prompt in chunks of this many tokens [default: 512, or 2048 on a GPU]
    #[arg(long, value_name = "N")]
    pub(crate) prefill_step_size: Option<usize>,
}

impl CacheArguments {
    /// The options of a new cache from which the last `rewind` tokens can be removed at any time.
    pub(crate) fn options(&self, model: &dyn CausalLm, rewind: usize) -> CacheOptions {
        let context = model.info().context_length;
        let max_size = self.max_kv_size.or(self.slide.then_some(context));
        let limit =
            max_size.map(|max_size| Limit { max_size, keep: SINKS.min(max_size.saturating_sub(1)).max(0) });
        CacheOptions { limit, rewind: i32::try_from(rewind).unwrap_or(i32::MAX), ..CacheOptions::default() }
    }

    /// Quantizes the session's cache from --quantized-kv-start tokens on, if --kv-bits asks for it.
    pub(crate) fn quantize(&self, model: &dyn CausalLm, session: &mut Session) -> Result<(), Failure> {
        if let Some(bits) = self.kv_bits {
            let group_size = self.kv_group_size(model);
            let quantization = Quantization::affine(bits, group_size).map_err(|e| {
                Failure::Arguments(format!("--kv-bits {bits} --kv-group-size {group_size}: {e}"))
            })?;
            let from = self.quantized_kv_start;
            session.quantize_from(model, KvQuantization { quantization, from }).map_err(|e| match e {
                CacheError::Groups { .. } => {
                    let fits = largest_kv_group(model).map_or_else(
                        || "no group size fits this model; leave --kv-bits out".to_owned(),
                        |fits| format!("--kv-group-size {fits} fits"),
                    );
                    Failure::Arguments(format!("--kv-bits {bits}: {e}; {fits}"))
                }
                e => e.into(),
            })?;
        }
        Ok(())
    }

    /// The group size that --kv-group-size gives, or the largest one that fits the model's heads.
    fn kv_group_size(&self, model: &dyn CausalLm) -> i32 {
        self.kv_group_size.or_else(|| largest_kv_group(model)).unwrap_or(KV_GROUP_SIZE)
    }

    /// Prints a note if the model's heads need another group size than mlx-lm's default.
    pub(crate) fn say_kv_group_size(&self, model: &dyn CausalLm) {
        let found = self.kv_group_size(model);
        if self.kv_bits.is_some() && self.kv_group_size.is_none() && found != KV_GROUP_SIZE {
            say(&format!(
                "note: --kv-group-size {found}, since groups of {KV_GROUP_SIZE} do not fit this model's heads"
            ));
        }
    }
}

/// The largest group size, up to mlx-lm's default, that divides the heads of all layers.
fn largest_kv_group(model: &dyn CausalLm) -> Option<i32> {
    let fits = |size: &i32| {
        model.info().layers.iter().all(|layer| layer.key_dim % size == 0 && layer.value_dim % size == 0)
    };
    [KV_GROUP_SIZE, 32].into_iter().find(fits)
}
