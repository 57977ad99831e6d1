//! The settings of a rotation.

use std::fmt;

use crate::RopeScaling;

/// Which two features form a pair.
///
/// The two layouts are the same rotation with the features in another order. A checkpoint works only with the layout that
/// it was trained with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeLayout {
    /// Features `2i` and `2i + 1`, as in the paper. mlx-lm calls this layout traditional.
    Interleaved,
    /// Features `i` and `i + dims / 2`, as in GPT-NeoX and most models on the Hugging Face Hub.
    Halves,
}

/// The settings of a [`Rope`](crate::Rope), to show them to people: `yarn by 4, base 1000000, 128 features`.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotation {
    /// The number of features of each head that are rotated.
    pub dims: i32,
    /// Which two features form a pair.
    pub layout: RopeLayout,
    /// The base of the frequencies, `rope_theta`.
    pub base: f64,
    /// How the frequencies are changed for long contexts.
    pub scaling: RopeScaling,
}

impl fmt::Display for Rotation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.scaling != RopeScaling::Default {
            f.write_str(self.scaling.rope_type())?;
            if let Some(factor) = self.scaling.factor() {
                write!(f, " by {factor}")?;
            }
            f.write_str(", ")?;
        }
        write!(f, "base {}, {} features", self.base, self.dims)?;
        match self.layout {
            RopeLayout::Halves => Ok(()),
            RopeLayout::Interleaved => f.write_str(", interleaved"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::initialize_rope;

    #[test]
    fn a_rotation_shows_its_settings() {
        let shown = |layout, scaling: &str| {
            let scaling: RopeScaling = serde_json::from_str(scaling).unwrap();
            let rope = initialize_rope(8, 10_000.0, layout, &scaling, Some(64)).unwrap();
            assert_eq!(rope.for_length(100).rotation(), rope.rotation());
            assert_eq!(rope.rotation().scaling, scaling);
            rope.rotation().to_string()
        };
        let plain = r#"{"rope_type": "default"}"#;
        assert_eq!(shown(RopeLayout::Halves, plain), "base 10000, 8 features");
        assert_eq!(shown(RopeLayout::Interleaved, plain), "base 10000, 8 features, interleaved");
        let linear = r#"{"rope_type": "linear", "factor": 2.5}"#;
        assert_eq!(shown(RopeLayout::Halves, linear), "linear by 2.5, base 10000, 8 features");
        // Its two lists take the place of one factor.
        let long = r#"{"rope_type": "longrope", "original_max_position_embeddings": 16,
                       "short_factor": [1, 1, 1, 1], "long_factor": [1, 2, 3, 4]}"#;
        assert_eq!(shown(RopeLayout::Halves, long), "longrope, base 10000, 8 features");
    }

    #[test]
    fn the_settings_are_not_part_of_the_debug_output() {
        // Digests of configs cover the debug output, and files of caches keep these digests.
        let rope = crate::Rope::new(8, 10_000.0, RopeLayout::Halves).unwrap();
        assert_eq!(
            format!("{rope:?}"),
            "Rope { dims: 8, layout: Halves, kind: Plain { base: 10000.0, scale: 1.0 }, following: 0 }"
        );
    }
}
