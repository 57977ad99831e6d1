//! What an architecture says of the names of its tensors.

use std::cmp::Ordering;

use crate::checkpoint::Checkpoint;
use crate::head::HEAD;

/// What an architecture says of the names of its tensors, for checkpoints that are written.
#[derive(Debug, Clone, Copy)]
pub struct TensorNames {
    /// The names that keys consist of, in the order in which mlx-lm writes what stands below one parent: the order in
    /// which its modules make their parts. Which tensors lie in which of several files follows from it.
    ///
    /// A name whose place depends on its parent is given with it: `feed_forward.norm`. Blocks come by their numbers. Names
    /// that are not listed, such as `model`, come before `lm_head`, and `weight`, `scales`, `biases` and `bias` come last.
    pub order: &'static [&'static str],
    /// How the layers of a checkpoint are renamed when it is converted; `None` where they keep their names.
    ///
    /// transformers and mlx-lm may have different names for the layers of one model. What is written has mlx-lm's.
    pub renaming: fn(&Checkpoint) -> Option<Renaming>,
    /// The layers that keep 8 bits, in groups of 64, in a quantized model, unless a recipe or a choice of the caller says
    /// otherwise. They are patterns as those of [`LayerChoice`](crate::LayerChoice).
    ///
    /// mlx-lm has such layers for some architectures, whose small weights few bits cannot express.
    pub eight_bits: &'static [&'static str],
}

/// Gives the name that mlx-lm has for a layer, from the name that the checkpoint has for it.
pub type Renaming = fn(&str) -> String;

impl Default for TensorNames {
    /// In the order of the alphabet, and without other names.
    fn default() -> Self {
        Self::in_order(&[])
    }
}

/// The parameters of a layer, in mlx-lm's order.
const PARTS: [&str; 4] = ["weight", "scales", "biases", "bias"];

impl TensorNames {
    /// Names in this [`order`](Self::order), which mlx-lm has as well.
    pub const fn in_order(order: &'static [&'static str]) -> Self {
        Self { order, renaming: |_| None, eight_bits: &[] }
    }

    /// The same names, where these layers keep [8 bits](Self::eight_bits).
    pub const fn with_eight_bits(self, eight_bits: &'static [&'static str]) -> Self {
        Self { eight_bits, ..self }
    }

    /// The same names, where layers are [renamed](Self::renaming).
    pub const fn with_renaming(self, renaming: fn(&Checkpoint) -> Option<Renaming>) -> Self {
        Self { renaming, ..self }
    }

    /// Which of two keys mlx-lm writes first.
    pub(crate) fn compare(&self, a: &str, b: &str) -> Ordering {
        let mut parent = "";
        let (mut a, mut b) = (a.split('.'), b.split('.'));
        loop {
            match (a.next(), b.next()) {
                (Some(x), Some(y)) if x == y => parent = x,
                (Some(x), Some(y)) => return self.place(parent, x).cmp(&self.place(parent, y)),
                (x, y) => return x.cmp(&y),
            }
        }
    }

    /// The place of a name below its parent: by the order, then by number, then by the alphabet.
    fn place<'a>(&self, parent: &str, name: &'a str) -> (usize, usize, &'a str) {
        let names = || self.order.iter().chain(&PARTS);
        let is_below_parent = |known: &str| {
            let rest = known.strip_suffix(name).and_then(|rest| rest.strip_suffix('.'));
            rest == Some(parent)
        };
        let known = names().position(|known| is_below_parent(known));
        let known = known.or_else(|| names().position(|&known| known == name));
        let head = self.order.iter().position(|&known| known == HEAD).unwrap_or(self.order.len());
        // Names that are not listed get the even place just before the head's.
        (known.map_or(2 * head, |known| 2 * known + 1), name.parse().unwrap_or(usize::MAX), name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_sorted_by_names_numbers_and_the_alphabet() {
        let names = TensorNames::in_order(&["embed", "layers", "up", "mlp.norm", "down", "norm", "lm_head"]);
        let sorted = [
            "embed.weight",
            "layers.0.up.weight",
            "layers.0.up.scales",
            "layers.0.norm.weight",
            "layers.0.mlp.norm.weight",
            "layers.0.mlp.down.weight",
            "layers.2.norm.weight",
            "layers.10.up.weight",
            "norm.weight",
            "model.norm.weight",
            "lm_head.weight",
        ];
        let mut keys = sorted;
        keys.reverse();
        keys.sort_by(|a, b| names.compare(a, b));
        assert_eq!(keys, sorted);
        let mut keys = ["b", "a.c", "a.b", "a.weight"];
        keys.sort_by(|a, b| TensorNames::default().compare(a, b));
        assert_eq!(keys, ["a.b", "a.c", "a.weight", "b"]);
    }
}
