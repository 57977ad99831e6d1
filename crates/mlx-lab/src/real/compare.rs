//! How far two sets of logits are from each other.

/// The difference between logits and those of a reference, over several prompts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Difference {
    /// The largest difference of a logit.
    pub(super) largest: f64,
    /// The mean Kullback-Leibler divergence of the distributions from those of the reference, in nats.
    pub(super) divergence: f64,
    /// The prompts for which both have the same most probable token.
    pub(super) same_first: usize,
    /// The number of prompts.
    pub(super) prompts: usize,
}

impl Difference {
    /// Compares logits, row by row, with those of the reference.
    pub(super) fn between(ours: &[Vec<f32>], reference: &[Vec<f32>]) -> Self {
        let rows = || ours.iter().zip(reference);
        let largest = rows()
            .flat_map(|(ours, reference)| ours.iter().zip(reference))
            .map(|(a, b)| f64::from((a - b).abs()))
            .fold(0.0, f64::max);
        let total: f64 = rows().map(|(ours, reference)| divergence(ours, reference)).sum();
        Self {
            largest,
            divergence: total / rows().count().max(1) as f64,
            same_first: rows().filter(|(ours, reference)| first(ours) == first(reference)).count(),
            prompts: rows().count(),
        }
    }

    pub(super) fn text(&self) -> String {
        let Self { largest, divergence, same_first, prompts } = self;
        format!(
            "largest {largest:.2e}, divergence {divergence:.1e} nats, same first token {same_first} of {prompts}"
        )
    }
}

/// The index of the largest.
fn first(logits: &[f32]) -> Option<usize> {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]))
}

/// Kullback and Leibler, *On Information and Sufficiency* (1951), equation 2.4, of `reference` from `ours`.
fn divergence(ours: &[f32], reference: &[f32]) -> f64 {
    let (ours, reference) = (log_probabilities(ours), log_probabilities(reference));
    reference.iter().zip(&ours).map(|(p, q)| p.exp() * (p - q)).sum()
}

fn log_probabilities(logits: &[f32]) -> Vec<f64> {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|logit| f64::from(logit - top).exp()).sum();
    logits.iter().map(|logit| f64::from(logit - top) - total.ln()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_logits_and_shifted_logits_have_no_divergence() {
        let rows = vec![vec![0.5, -2.0, 1.0], vec![3.0, 3.5, -1.0]];
        let equal = Difference::between(&rows, &rows);
        assert_eq!(equal, Difference { largest: 0.0, divergence: 0.0, same_first: 2, prompts: 2 });
        let shifted: Vec<Vec<f32>> = rows.iter().map(|row| row.iter().map(|x| x + 1.0).collect()).collect();
        let shifted = Difference::between(&shifted, &rows);
        approx::assert_abs_diff_eq!(shifted.divergence, 0.0, epsilon = 1e-7);
        approx::assert_abs_diff_eq!(shifted.largest, 1.0);
    }

    #[test]
    fn the_divergence_is_that_of_the_paper() {
        // p = (1/2, 1/4, 1/4), q = (1/4, 1/2, 1/4): 1/2 ln 2 - 1/4 ln 2.
        let row = |p: [f32; 3]| vec![p.map(f32::ln).to_vec()];
        let found = Difference::between(&row([0.25, 0.5, 0.25]), &row([0.5, 0.25, 0.25]));
        approx::assert_abs_diff_eq!(found.divergence, 0.25 * 2_f64.ln(), epsilon = 1e-7);
        assert_eq!(found.same_first, 0);
    }
}
