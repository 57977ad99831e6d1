//! What products with plain and with quantized matrices share. Attention uses the scratch memory, too.
//!
//! Products have two forms. With many rows both factors are copied into *panels* ([`Panels`]), which [`blocked`]
//! multiplies; a kind of matrix only has to say how it is copied. With few rows each kind of matrix has a kernel of its
//! own: `matmul/strips.rs` for plain matrices, and `quantized/few_rows.rs` and `blocks/few_rows.rs` for at most
//! [`FEW_ROWS`] rows, whose work `few_rows.rs` here cuts.
//!
//! | file | holds |
//! |---|---|
//! | `blocked.rs` | the loops around the tile kernel |
//! | `panels.rs` | the layout of panels, and how plain matrices are copied into them |
//! | `tile.rs` | the tile kernel: the product of two panels |
//! | `bf16.rs` | the same for instructions that multiply bfloat16 |
//! | `few_rows.rs` | how products of a few rows are cut |
//! | `whole.rs` | loops and tile kernel for whole numbers in bytes |
//! | `output.rs` | the matrix that products are written to |
//! | `scratch.rs` | memory that threads keep |

mod bf16;
mod blocked;
mod few_rows;
mod output;
mod panels;
mod scratch;
mod tile;
mod whole;

pub(crate) use bf16::TILE;
pub(crate) use blocked::blocked;
pub(crate) use few_rows::{
    FEW_ROWS, ROWS_AT_ONCE, portions, reads_one_stream, rows_of_task, widen_row, with_widened_rows,
};
pub(crate) use output::Output;
pub(crate) use panels::{AHEAD, Lines, Numbers, Panels, pack_transposing, widen};
pub(crate) use scratch::{Purpose, with_scratch};
pub(crate) use tile::MOST_ROWS;
pub(crate) use whole::{Groups, whole};
