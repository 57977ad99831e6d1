//! What can be wrong with a conversion.

use mlx_layers::Quantization;

use super::options::Recipe;
use crate::text::shortened;

/// Why a checkpoint cannot be converted as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// Layers that would be quantized are quantized already.
    #[error("{layer} is quantized already ({quantization}); dequantize the checkpoint first")]
    Quantized {
        /// The first such layer.
        layer: String,
        /// How it is quantized.
        quantization: Quantization,
    },
    /// A layer would stay in blocks of a GGUF file, which only such files have.
    #[error(
        "{layer} is in {quantization} blocks, which a checkpoint folder cannot have; open the file with GgufLayers::Mlx"
    )]
    Blocks {
        /// The first such layer.
        layer: String,
        /// Its blocks.
        quantization: Quantization,
    },
    /// llama.cpp cannot compute the model, or a GGUF file cannot store it.
    #[error("the model cannot be written as a GGUF file: {problem}")]
    Gguf {
        /// Why not.
        problem: String,
    },
    /// There is no quantized layer to dequantize.
    #[error("no layer is quantized, so there is nothing to dequantize")]
    NotQuantized,
    /// The rows of no layer can be cut into groups.
    #[error("no layer can be quantized as {quantization}: the rows have {}", columns(lengths))]
    FitsNoLayer {
        /// How they would be quantized.
        quantization: Quantization,
        /// The lengths of the rows of the layers.
        lengths: Vec<i32>,
    },
    /// The rows of a layer that was named cannot be cut into groups.
    #[error("{layer} cannot be quantized as {quantization}: its rows have {columns} columns")]
    FitsNot {
        /// The layer.
        layer: String,
        /// How it would be quantized.
        quantization: Quantization,
        /// The length of its rows.
        columns: i32,
    },
    /// A pattern matches no layer.
    #[error("the pattern {:?} matches no layer; layers are {}", shortened(pattern), shortened(&layers.join(", ")))]
    NoSuchLayer {
        /// The pattern.
        pattern: String,
        /// The layers outside of blocks and in the first block.
        layers: Vec<String>,
    },
    /// Recipes are for affine quantization only.
    #[error("{} is a recipe for affine quantization, and {quantization} is asked for", recipe.name())]
    RecipeOfMode {
        /// The recipe.
        recipe: Recipe,
        /// How the other layers would be quantized.
        quantization: Quantization,
    },
    /// The model has no layers with the names that recipes are for.
    #[error("{} is a recipe for models with layers named down_proj, and this one has none", recipe.name())]
    RecipeOfNames {
        /// The recipe.
        recipe: Recipe,
    },
}

fn columns(lengths: &[i32]) -> String {
    let lengths: Vec<String> = lengths.iter().map(ToString::to_string).collect();
    format!("{} columns", lengths.join(" or "))
}
