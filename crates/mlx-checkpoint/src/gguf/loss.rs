//! What is lost where a file's numbers have no exact counterpart.

use std::collections::BTreeMap;

use mlx_gguf::TensorType;

/// How far numbers are from those of the file.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Loss {
    pub(super) largest: f32,
    /// The sum of the distances.
    sum: f64,
    numbers: usize,
}

impl Loss {
    pub(super) fn between(exact: &[f32], numbers: impl Iterator<Item = f32>) -> Self {
        let mut loss = Self { numbers: exact.len(), ..Self::default() };
        for (exact, number) in exact.iter().zip(numbers) {
            let distance = (exact - number).abs();
            loss.largest = loss.largest.max(distance);
            loss.sum += f64::from(distance);
        }
        loss
    }

    fn add(&mut self, other: Self) {
        self.largest = self.largest.max(other.largest);
        self.sum += other.sum;
        self.numbers += other.numbers;
    }
}

/// The losses of a model's layers.
#[derive(Debug, Default)]
pub(super) struct Losses {
    /// By the module, the type in the file, and what it became: the layers, and their loss.
    groups: BTreeMap<(String, String, String), BTreeMap<String, Loss>>,
}

impl Losses {
    pub(super) fn add(&mut self, key: &str, kind: TensorType, became: String, loss: Loss) {
        let layer = key.strip_suffix(".weight").unwrap_or(key);
        let parts: Vec<&str> = layer.rsplitn(3, '.').collect();
        // A layer's number is no part of the name of its module.
        let module = match parts[..] {
            [name, module, _] if module.parse::<usize>().is_err() && module != "model" => {
                format!("{module}.{name}")
            }
            [name, ..] => name.to_owned(),
            [] => layer.to_owned(),
        };
        // A model that is built again has the same losses.
        self.groups.entry((module, kind.to_string(), became)).or_default().insert(layer.to_owned(), loss);
    }

    /// One sentence; none where nothing is lost.
    pub(super) fn notes(&self) -> Vec<String> {
        let group =
            |((module, kind, became), layers): (&(String, String, String), &BTreeMap<String, Loss>)| {
                let mut all = Loss::default();
                layers.values().for_each(|loss| all.add(*loss));
                let mean = all.sum / all.numbers.max(1) as f64;
                let count = layers.len();
                format!(
                    "{count} {module} of {kind} as {became} (largest error {:.2e}, mean {mean:.2e})",
                    all.largest
                )
            };
        let groups: Vec<String> = self.groups.iter().map(group).collect();
        if groups.is_empty() {
            return Vec::new();
        }
        vec![format!("layers in the nearest format that there is: {}", groups.join(", "))]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_names_modules_and_errors() {
        let mut losses = Losses::default();
        assert!(losses.notes().is_empty());
        let loss = |numbers: [f32; 2]| Loss::between(&[1.0, 2.0], numbers.into_iter());
        let mut add =
            |key: &str, numbers| losses.add(key, TensorType::Q6_K, "8 bits".to_owned(), loss(numbers));
        add("model.layers.0.mlp.down_proj.weight", [1.5, 2.0]);
        add("model.layers.1.mlp.down_proj.weight", [1.25, 1.75]);
        add("model.layers.1.mlp.down_proj.weight", [1.25, 1.75]);
        add("model.embed_tokens.weight", [1.0, 1.0]);
        let expected = "layers in the nearest format that there is: 1 embed_tokens of Q6_K as 8 bits (largest error \
                        1.00e0, mean 5.00e-1), 2 mlp.down_proj of Q6_K as 8 bits (largest error 5.00e-1, mean 2.50e-1)";
        assert_eq!(losses.notes(), [expected]);
    }
}
