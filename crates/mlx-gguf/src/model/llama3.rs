//! The scaling of Llama 3, from the factors that files have instead.

use std::f64::consts::TAU;

use serde_json::{Value, json};

use super::keys::decimal;

/// How far factors may be from those of a scaling, as a fraction: they were computed in float32.
const TOLERANCE: f64 = 1e-4;

/// The original length of Llama 3. Files do not state it; with another, other numbers of turns give the same factors.
const ORIGINAL: f64 = 8192.0;

/// The numbers of a scaling.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Scaling {
    pub(super) factor: f64,
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) original: f64,
}

impl Scaling {
    /// The factors of the periods of all pairs. `base` is that of the frequencies.
    pub(super) fn factors(self, base: f64, pairs: usize) -> Vec<f32> {
        let turns = |pair| base.powf(-(pair as f64) / pairs as f64) / TAU;
        (0..pairs).map(|pair| self.of(turns(pair)) as f32).collect()
    }

    /// By how much a pair turns slower that makes this many turns in each token.
    fn of(self, turns: f64) -> f64 {
        let kept = ((self.original * turns - self.low) / (self.high - self.low)).clamp(0.0, 1.0);
        1.0 / (kept + (1.0 - kept) / self.factor)
    }
}

/// The `rope_scaling` of a config with these factors of the periods of all pairs; `None` where all are 1. `base` is that of the
/// frequencies.
pub(super) fn scaling(factors: &[f32], base: f64) -> Result<Option<Value>, &'static str> {
    let pairs: Vec<(f64, f64)> = factors
        .iter()
        .enumerate()
        .map(|(pair, &factor)| (base.powf(-(pair as f64) / factors.len() as f64) / TAU, f64::from(factor)))
        .collect();
    let factor = pairs.iter().map(|&(_, factor)| factor).fold(1.0, f64::max);
    if factor == 1.0 && pairs.iter().all(|&(_, factor)| factor == 1.0) {
        return Ok(None);
    }
    let fits = |scaling: &Scaling| {
        pairs.iter().all(|&(turns, factor)| (scaling.of(turns) / factor - 1.0).abs() < TOLERANCE)
    };
    // All released models have these turns, and most this length.
    let lengths = [13, 12, 11, 10, 14, 15, 16, 17].map(|power| f64::from(1 << power));
    let mut released = lengths.into_iter().map(|original| Scaling { factor, low: 1.0, high: 4.0, original });
    let scaling = released.find(fits).or_else(|| fitted(&pairs, factor).filter(fits));
    let Scaling { factor, low, high, original } =
        scaling.ok_or("its factors are not those of a scaling that Llama 3 has")?;
    let number = |number: f64| decimal(number as f32);
    Ok(Some(json!({
        "rope_type": "llama3",
        "factor": number(factor),
        "low_freq_factor": number(low),
        "high_freq_factor": number(high),
        "original_max_position_embeddings": original as i64,
    })))
}

/// The scaling whose blend has these pairs. What is kept of a frequency is a straight line over the turns.
fn fitted(pairs: &[(f64, f64)], factor: f64) -> Option<Scaling> {
    let kept = |of_pair: f64| (1.0 / of_pair - 1.0 / factor) / (1.0 - 1.0 / factor);
    let mut blended = pairs.iter().filter(|&&(_, of_pair)| of_pair > 1.0 && of_pair < factor);
    let (fast, slow) = (*blended.next()?, *blended.next_back()?);
    let slope = (kept(fast.1) - kept(slow.1)) / (fast.0 - slow.0);
    let range = ORIGINAL / slope;
    let low = (fast.0 - kept(fast.1) / slope) * ORIGINAL;
    let scaling = Scaling { factor, low, high: low + range, original: ORIGINAL };
    (low > 0.0 && range > 0.0 && scaling.high.is_finite()).then_some(scaling)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn the_scalings_of_released_models_are_found() {
        for (factor, pairs) in [(8.0, 64), (32.0, 32), (32.0, 64)] {
            let released = Scaling { factor, low: 1.0, high: 4.0, original: 8192.0 };
            let found = scaling(&released.factors(500_000.0, pairs), 500_000.0).unwrap().unwrap();
            let expected = json!({
                "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            });
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn another_scaling_is_fitted_and_no_scaling_is_none() {
        let other = Scaling { factor: 5.0, low: 2.0, high: 7.0, original: 8192.0 };
        let found = scaling(&other.factors(500_000.0, 64), 500_000.0).unwrap().unwrap();
        assert_eq!(found["factor"], json!(5.0));
        assert!((found["low_freq_factor"].as_f64().unwrap() - 2.0).abs() < 1e-3, "{found}");
        assert!((found["high_freq_factor"].as_f64().unwrap() - 7.0).abs() < 1e-3, "{found}");
        assert_eq!(scaling(&[1.0; 32], 10_000.0).unwrap(), None);
    }

    #[test]
    fn factors_of_no_scaling_are_refused() {
        for wrong in [vec![8.0, 4.0, 2.0, 1.0], vec![0.5; 8], vec![1.0, 3.0, 1.0, 3.0], vec![f32::MAX, 1.0]] {
            scaling(&wrong, 10_000.0).unwrap_err();
        }
    }
}
