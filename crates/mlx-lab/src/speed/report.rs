//! Writes the figures as tables and as JSON.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::{Value, json};

use super::{MATRIX, Measurements, Program, Row, Tokens, Turn};

/// The median, minimum and maximum of one program's turns.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Spread {
    min: f64,
    median: f64,
    max: f64,
}

impl Spread {
    fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
        let middle = values.len() / 2;
        let median = if values.len().is_multiple_of(2) {
            (at(middle.wrapping_sub(1)) + at(middle)) / 2.0
        } else {
            at(middle)
        };
        Self { min: at(0), median, max: at(values.len().saturating_sub(1)) }
    }

    fn map(self, f: impl Fn(f64) -> f64) -> Self {
        Self { min: f(self.min), median: f(self.median), max: f(self.max) }
    }

    fn text(self) -> String {
        let Self { min, median, max } = self;
        let digits = if median < 10.0 { 2 } else { 1 };
        format!("{median:.digits$} ({min:.digits$} to {max:.digits$})")
    }
}

/// The figures that are computed from the turns of a row.
#[derive(Debug, Serialize)]
struct Summary {
    /// Prompt tokens per second, up to the first generated token.
    prefill_tps: Spread,
    /// Generated tokens per second, after the first.
    decode_tps: Spread,
    /// The bytes that a token after the first has to read: all weights, and the keys and values that its layers
    /// attend to.
    read_bytes: f64,
    /// The rate of reading these bytes as a share of the memory's bandwidth.
    share_of_bandwidth: f64,
    /// Our rate divided by this program's, by the medians.
    ours_to_this: Option<[f64; 2]>,
    /// The number of greedy tokens before the first that differs from ours.
    same_tokens: Option<usize>,
    /// The largest share of the processor's time that other processes used in a turn.
    others: f64,
}

fn prefill(row: &Row) -> Spread {
    let prompt = f64::from(row.measured_prompt_tokens);
    Spread::of(row.turns.iter().map(|turn| prompt / turn.found.prefill_s))
}

fn decode(row: &Row) -> Spread {
    let rate = |turn: &Turn<Tokens>| turn.found.token_s.len() as f64 / turn.found.token_s.iter().sum::<f64>();
    Spread::of(row.turns.iter().map(rate))
}

/// From the mean over the tokens after the first.
fn read_bytes(row: &Row) -> f64 {
    let tokens = row.turns.first().map_or(0, |turn| turn.found.token_s.len());
    let key_values = |token| row.shape.key_value_bytes(row.measured_prompt_tokens as usize + token);
    let sum: usize = (0..tokens).map(key_values).sum();
    row.weight_bytes as f64 + sum as f64 / tokens.max(1) as f64
}

fn bandwidth(all: &Measurements) -> Spread {
    let best =
        |turn: &Turn<super::Bandwidth>| turn.found.bytes_per_second.iter().copied().fold(f64::NAN, f64::max);
    Spread::of(all.bandwidth.iter().map(best))
}

/// The rate of the products, in billions of operations per second.
fn gflops(all: &Measurements, program: &str) -> Spread {
    let operations = 2.0 * (MATRIX as f64).powi(3) / 1e9;
    let turns = all.matmul.get(program).into_iter().flatten();
    Spread::of(turns.map(|turn| operations / Spread::of(turn.found.seconds.iter().copied()).median))
}

fn summary(all: &Measurements, row: &Row) -> Summary {
    let (prefill_tps, decode_tps) = (prefill(row), decode(row));
    let same = |other: &&Row| {
        (other.shape, other.width, other.prompt_tokens) == (row.shape, row.width, row.prompt_tokens)
            && other.program == Program::MlxModels
    };
    let ours = all.rows.iter().find(same).filter(|ours| ours.program != row.program);
    let tokens = |row: &Row| row.turns.first().map(|turn| turn.found.tokens.clone()).unwrap_or_default();
    // With the same prompt.
    let comparable = ours.filter(|ours| ours.measured_prompt_tokens == row.measured_prompt_tokens);
    let others = row.turns.iter().filter_map(|turn| turn.others);
    let read_bytes = read_bytes(row);
    Summary {
        read_bytes,
        share_of_bandwidth: decode_tps.median * read_bytes / bandwidth(all).median,
        ours_to_this: ours
            .map(|ours| [prefill(ours).median / prefill_tps.median, decode(ours).median / decode_tps.median]),
        same_tokens: comparable.map(|ours| {
            tokens(ours).iter().zip(tokens(row)).take_while(|(ours, this)| **ours == *this).count()
        }),
        others: others.fold(f64::NAN, f64::max),
        prefill_tps,
        decode_tps,
    }
}

pub(super) fn json(all: &Measurements) -> Value {
    let row = |row: &Row| {
        json!({
            "shape": row.shape.name(), "width": row.width.name(), "program": row.program.name(),
            "prompt_tokens": row.prompt_tokens, "measured_prompt_tokens": row.measured_prompt_tokens,
            "weight_bytes": row.weight_bytes, "summary": summary(all, row), "turns": row.turns,
        })
    };
    let rows: Vec<Value> = all.rows.iter().map(row).collect();
    let gflops = |program| gflops(all, program);
    json!({
        "cores": all.cores,
        "bandwidth_bytes_per_second": bandwidth(all),
        "bandwidth": all.bandwidth,
        "matmul_gflops": { "mlx-models": gflops(Program::MlxModels.name()), "OpenBLAS": gflops("OpenBLAS") },
        "matmul": all.matmul,
        "models": rows,
    })
}

pub(super) fn text(all: &Measurements, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "medians of the turns, with the minimum and the maximum")?;
    let read = bandwidth(all).map(|bytes| bytes / 1e9).text();
    writeln!(out, "reading memory with {} threads, GB/s: {read}", all.cores)?;
    let [ours, theirs] = [Program::MlxModels.name(), "OpenBLAS"].map(|program| gflops(all, program));
    writeln!(
        out,
        "float32 product of {MATRIX} x {MATRIX} matrices, GFLOP/s: ours {}, OpenBLAS {}, ratio {:.2}",
        ours.text(),
        theirs.text(),
        ours.median / theirs.median
    )?;
    let mut head = None;
    let (mut versions, mut slow) = (Vec::new(), false);
    for row in &all.rows {
        let this = (row.shape, row.width, row.prompt_tokens);
        if head.replace(this) != Some(this) {
            writeln!(out, "\n{} {}, prompt of {}", row.shape.name(), row.width.name(), row.prompt_tokens)?;
            writeln!(
                out,
                "  {:12} {:>28} {:>28} {:>7} {:>9} {:>16} {:>6}",
                "", "prompt, tokens/s", "decode, tokens/s", "MB read", "bandwidth", "ours / this", "same"
            )?;
        }
        let summary = summary(all, row);
        let reduced = row.measured_prompt_tokens != row.prompt_tokens;
        slow |= reduced;
        let ratios = summary.ours_to_this.map(|[prompt, decode]| format!("{prompt:.2} {decode:.2}"));
        writeln!(
            out,
            "  {:12} {:>28} {:>28} {:>7.1} {:>8.0}% {:>16} {:>6}",
            format!("{}{}", row.program.name(), if reduced { " *" } else { "" }),
            summary.prefill_tps.text(),
            summary.decode_tps.text(),
            summary.read_bytes / 1e6,
            100.0 * summary.share_of_bandwidth,
            ratios.unwrap_or_default(),
            summary.same_tokens.map(|count| count.to_string()).unwrap_or_default()
        )?;
        let version = row.turns.first().map(|turn| format!("{}: {}", row.program.name(), turn.found.version));
        versions.extend(version.filter(|version| !versions.contains(version)));
    }
    writeln!(out)?;
    if slow {
        writeln!(out, "* one turn with a shorter prompt and fewer tokens")?;
    }
    // Prompts of different lengths are split into batches differently.
    for version in versions {
        writeln!(out, "{version}")?;
    }
    let others = all.rows.iter().map(|row| summary(all, row).others).fold(0.0, f64::max);
    writeln!(out, "other processes used at most {:.0} % of the processor", 100.0 * others)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use approx::assert_abs_diff_eq;

    use super::*;
    use crate::random_model::{Shape, Width};
    use crate::speed::{Bandwidth, Products};

    fn row(program: Program, prefill_s: [f64; 3], token_s: f64, tokens: &[u32]) -> Row {
        let turn = |prefill_s| {
            let token_s = vec![token_s; 4];
            let found = Tokens {
                load_s: 0.1,
                prefill_s,
                token_s,
                tokens: tokens.to_vec(),
                version: "1".into(),
                peak_memory_bytes: None,
                peak_array_bytes: None,
            };
            Turn { found, others: Some(0.02) }
        };
        Row {
            shape: Shape::Tiny,
            width: Width::Bf16,
            prompt_tokens: 100,
            program,
            measured_prompt_tokens: 100,
            // 6 layers with one head of 64 in bfloat16, after 100 to 103 tokens, and a million bytes of
            // weights.
            weight_bytes: 1_000_000 - 157_440,
            turns: prefill_s.map(turn).to_vec(),
        }
    }

    #[test]
    fn rates_ratios_and_shares_follow_from_the_turns() {
        let bandwidth = |rate| Turn { found: Bandwidth { bytes_per_second: vec![1.0, rate] }, others: None };
        let products = |seconds| Turn { found: Products { seconds, version: "1".into() }, others: None };
        let second = 2.0 * (MATRIX as f64).powi(3) / 1e9;
        let all = Measurements {
            cores: 2,
            bandwidth: vec![bandwidth(2e8), bandwidth(4e8)],
            rows: vec![
                row(Program::MlxModels, [0.25, 0.5, 1.0], 0.01, &[1, 2, 3, 4, 5]),
                row(Program::LlamaCpp, [0.5, 1.0, 2.0], 0.04, &[1, 2, 4, 4, 5]),
            ],
            matmul: BTreeMap::from([
                (Program::MlxModels.name(), vec![products(vec![1.0, 2.0, 4.0])]),
                ("OpenBLAS", vec![products(vec![1.0])]),
            ]),
        };
        assert_eq!(super::bandwidth(&all), Spread { min: 2e8, median: 3e8, max: 4e8 });
        assert_eq!(gflops(&all, "OpenBLAS").median, second);
        assert_eq!(gflops(&all, Program::MlxModels.name()).median, second / 2.0);
        let ours = summary(&all, &all.rows[0]);
        assert_eq!(ours.prefill_tps, Spread { min: 100.0, median: 200.0, max: 400.0 });
        assert_abs_diff_eq!(ours.decode_tps.median, 100.0, epsilon = 1e-9);
        assert_abs_diff_eq!(ours.read_bytes, 1e6, epsilon = 1e-9);
        assert_abs_diff_eq!(ours.share_of_bandwidth, 1.0 / 3.0, epsilon = 1e-9);
        assert_eq!((ours.ours_to_this, ours.same_tokens), (None, None));
        let theirs = summary(&all, &all.rows[1]);
        let [prompt, decode] = theirs.ours_to_this.unwrap_or_default();
        assert_abs_diff_eq!([prompt, decode][..], [2.0, 4.0][..], epsilon = 1e-9);
        assert_eq!(theirs.same_tokens, Some(2));

        let mut text = Vec::new();
        super::text(&all, &mut text).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        assert!(text.contains("tiny bf16, prompt of 100") && text.contains("2.00 4.00"), "{text}");
        assert!(text.contains("ratio 0.50") && text.contains("used at most 2 %"), "{text}");
    }
}
