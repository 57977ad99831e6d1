//! Random weights.

use mlx_layers::{ParameterSource, Quantization};
use mlx_rs::random::RandomState;
use mlx_rs::{Array, Dtype};

/// A source of random weights from a seed. The elements of matrices are small enough to keep activations near 1; those of
/// vectors, the weights of norms, are near 1.
#[derive(Debug)]
pub struct RandomParameters {
    state: RandomState,
    dtype: Dtype,
    /// The keys that were requested, in order.
    pub taken: Vec<String>,
}

impl RandomParameters {
    /// Weights of this dtype from this seed.
    #[allow(clippy::expect_used, reason = "for tests, which want to stop there")]
    pub fn new(seed: u64, dtype: Dtype) -> Self {
        let state = RandomState::with_seed(seed).expect("a seed is a seed");
        Self { state, dtype, taken: Vec::new() }
    }
}

impl ParameterSource for RandomParameters {
    #[allow(clippy::expect_used, reason = "for tests, which want to stop there")]
    fn parameter(&mut self, key: &str, shape: &[i32]) -> Array {
        self.taken.push(key.to_owned());
        let next = self.state.next_key().expect("a key can be split");
        let (center, width) = match *shape {
            [_, columns] => (0.0, (columns as f32).sqrt().recip()),
            _ => (1.0, 0.1),
        };
        mlx_rs::random::normal::<f32>(shape, center, width, &next)
            .and_then(|weights| weights.as_dtype(self.dtype))
            .expect("a model's shapes are positive")
    }

    fn quantization(&mut self, _layer: &str, _columns: i32) -> Option<Quantization> {
        None
    }
}
