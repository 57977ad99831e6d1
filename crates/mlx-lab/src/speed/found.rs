//! What a turn finds: figures, and what the outputs of the programs say of them.

use std::io;

use serde::{Deserialize, Serialize};

/// What a figure counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) enum Unit {
    #[serde(rename = "tokens/s")]
    TokensPerSecond,
    #[serde(rename = "ms")]
    Milliseconds,
    #[serde(rename = "10^9 operations/s")]
    Gigaops,
    #[serde(rename = "GB/s")]
    GigabytesPerSecond,
    #[serde(rename = "MB")]
    Megabytes,
}

impl Unit {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::TokensPerSecond => "tokens/s",
            Self::Milliseconds => "ms",
            Self::Gigaops => "10^9 operations/s",
            Self::GigabytesPerSecond => "GB/s",
            Self::Megabytes => "MB",
        }
    }

    /// How many times better the first figure is than the second.
    pub(super) fn ratio(self, ours: f64, theirs: f64) -> f64 {
        match self {
            Self::TokensPerSecond | Self::Gigaops | Self::GigabytesPerSecond => ours / theirs,
            Self::Milliseconds | Self::Megabytes => theirs / ours,
        }
    }
}

/// What a figure is compared with, besides the same figure of other programs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Limit {
    /// One count of the figure reads this many bytes of memory.
    Reads(f64),
    /// What the figure should be.
    Computed(f64),
    /// The most that it could be.
    Peak(f64),
}

/// One figure of a turn.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Figure {
    pub(super) name: String,
    pub(super) unit: Unit,
    pub(super) value: f64,
    pub(super) limit: Option<Limit>,
}

impl Figure {
    pub(super) fn new(name: impl Into<String>, unit: Unit, value: f64) -> Self {
        Self { name: name.into(), unit, value, limit: None }
    }
}

/// What a program finds in a turn.
#[derive(Debug, Clone, Default)]
pub(super) struct Found {
    pub(super) figures: Vec<Figure>,
    /// The tokens that it chose.
    pub(super) tokens: Vec<u32>,
    pub(super) version: String,
}

/// The output of a process that runs a model: ours, `bench_llama_cpp.py`, `bench_openvino.py` or `bench_tokens_mlx_lm.py`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Tokens {
    /// The seconds from the start of loading the model until it can read tokens.
    pub(crate) load_s: f64,
    /// The seconds from the start of the prompt to the first token.
    pub(crate) prefill_s: f64,
    /// The seconds of each token after the first.
    pub(crate) token_s: Vec<f64>,
    pub(super) tokens: Vec<u32>,
    pub(super) version: String,
    /// The most memory that the process had, in bytes, where its program measures it.
    #[serde(default)]
    pub(crate) peak_memory_bytes: Option<u64>,
    /// The most memory of arrays, in bytes, as MLX counts it.
    #[serde(default)]
    pub(crate) peak_array_bytes: Option<u64>,
}

impl Tokens {
    /// Tokens per second after the first.
    pub(super) fn decode(&self) -> f64 {
        self.token_s.len() as f64 / self.token_s.iter().sum::<f64>()
    }
}

/// The output of a process that decodes several rows together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Batched {
    /// Tokens per second of all rows together, after the prompts.
    pub(super) decode: f64,
    pub(super) version: String,
}

/// The output of a process that multiplies matrices: ours or `bench_matmul.py`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Products {
    pub(super) seconds: Vec<f64>,
    pub(super) version: String,
}

/// The output of a process that reads memory.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Bandwidth {
    pub(super) bytes_per_second: Vec<f64>,
}

/// A rate, and the rate that the processor could have.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Peak {
    pub(super) name: String,
    /// 10^9 operations or bytes in a second.
    pub(super) rate: f64,
    pub(super) counts_bytes: bool,
    /// For a product: the rate of the unit that computes it.
    pub(super) of: Option<f64>,
}

/// The rate of decoding that `llama-batched-bench --output-format jsonl` prints for this number of rows, between other lines.
pub(super) fn batched_bench(output: &str, rows: u32) -> io::Result<f64> {
    #[derive(Deserialize)]
    struct Line {
        pl: u32,
        speed_tg: f64,
    }
    let lines = output.lines().filter_map(|line| serde_json::from_str::<Line>(line.trim()).ok());
    let line = lines.into_iter().find(|line| line.pl == rows && line.speed_tg > 0.0);
    let absent = || io::Error::other(format!("llama-batched-bench says nothing of {rows} rows:\n{output}"));
    Ok(line.ok_or_else(absent)?.speed_tg)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn the_rate_of_llama_batched_bench_is_that_of_its_rows() {
        let line = |rows, rate| {
            format!(
                "{{\"n_kv_max\": 1280, \"n_batch\": 2048, \"pp\": 128, \"tg\": 32, \"pl\": {rows}, \"n_kv\": 1280, \
                 \"t_pp\": 0.9, \"speed_pp\": 1100.5, \"t_tg\": 0.5, \"speed_tg\": {rate}, \"t\": 1.4, \"speed\": 900.0}}"
            )
        };
        let output = format!("\nmain: n_kv_max = 1280\n\n{}\n{}\n\nperf\n", line(4, 263.5), line(8, 390.25));
        assert_eq!(batched_bench(&output, 8).unwrap(), 390.25);
        assert_eq!(batched_bench(&output, 4).unwrap(), 263.5);
        assert!(batched_bench(&output, 16).unwrap_err().to_string().contains("16 rows"));
        assert!(batched_bench("main: failed to decode", 4).is_err());
    }

    #[test]
    fn a_ratio_above_one_is_better_in_every_unit() {
        assert_eq!(Unit::TokensPerSecond.ratio(3.0, 2.0), 1.5);
        assert_eq!(Unit::Gigaops.ratio(3.0, 2.0), 1.5);
        assert_eq!(Unit::Milliseconds.ratio(2.0, 3.0), 1.5);
        assert_eq!(Unit::Megabytes.ratio(2.0, 3.0), 1.5);
    }
}
