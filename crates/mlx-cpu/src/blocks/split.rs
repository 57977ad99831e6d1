//! Blocks of a file as codes and scales.

use super::format::{BlockFormat, MOST_WORDS, unspread};
use super::matrix::{Chunk, check};
use crate::cpu::Shared;
use crate::{Cpu, QuantizedLayoutError};

/// Bytes of blocks that one task splits.
/// Small for Miri, whose cases are small and must still have several tasks.
const PIECE: usize = if cfg!(miri) { 1 << 8 } else { 256 << 10 };

/// Splits the blocks of a matrix, as a GGUF file has them, into the codes and the scales of a
/// [`BlockMatrix`](crate::BlockMatrix). Both together have as many bytes as the blocks.
///
/// # Shapes
///
/// `blocks` `[rows, columns / block * block_bytes]`, `codes` `[rows, columns * bits / 32]`, `scales`
/// `[rows, columns / block * scale_bytes]`, with the numbers of [`BlockFormat`].
///
/// # Errors
///
/// If `columns` is not a multiple of [`BlockFormat::block`], or a slice has another length.
pub fn split_blocks(
    cpu: &Cpu,
    format: BlockFormat,
    rows: usize,
    columns: usize,
    blocks: &[u8],
    codes: &mut [u32],
    scales: &mut [u8],
) -> Result<(), QuantizedLayoutError> {
    check(format, codes.len(), scales.len(), rows, columns)?;
    let (block_bytes, in_row) = (format.block_bytes(), columns / format.block());
    let expected = rows * in_row * block_bytes;
    if blocks.len() != expected {
        return Err(QuantizedLayoutError::Length { what: "bytes of blocks", found: blocks.len(), expected });
    }
    if blocks.is_empty() {
        return Ok(());
    }
    let row_bytes = in_row * block_bytes;
    let (words, bytes) = (codes.len() / rows, scales.len() / rows);
    let size = (PIECE / row_bytes).max(1);
    let (codes, scales) = (Shared(codes.as_mut_ptr()), Shared(scales.as_mut_ptr()));
    cpu.parallel(rows.div_ceil(size), |index| {
        for row in index * size..rows.min((index + 1) * size) {
            // SAFETY: rows do not overlap, and each belongs to one task; `check` has seen the lengths.
            let (codes, scales) = unsafe {
                (
                    std::slice::from_raw_parts_mut(codes.get().add(row * words), words),
                    std::slice::from_raw_parts_mut(scales.get().add(row * bytes), bytes),
                )
            };
            split_row(format, &blocks[row * row_bytes..][..row_bytes], codes, scales);
        }
    });
    Ok(())
}

fn split_row(format: BlockFormat, blocks: &[u8], codes: &mut [u32], scales: &mut [u8]) {
    macro_rules! formats {
        ($($format:ident => $block:ident, $bytes:literal, $groups:literal, [$($plane:expr),*];)*) => {
            match format {
                $(BlockFormat::$format => {
                    split_as::<$bytes, $groups>(format, blocks, codes, $block);
                    split_scales::<$bytes>(blocks, scales, &[$($plane),*]);
                })*
            }
        };
    }
    // For each format: its block, bytes and groups of a block, and where scales lie in a block.
    formats! {
        Q4_0 => q4_0, 18, 1, [0..2];
        Q4_1 => q4_1, 20, 1, [0..2, 2..4];
        Q5_0 => q5_0, 22, 1, [0..2];
        Q5_1 => q5_1, 24, 1, [0..2, 2..4];
        Q8_0 => q8_0, 34, 1, [0..2];
        Q2_K => q2_k, 84, 16, [80..82, 82..84, 0..16];
        Q3_K => q3_k, 110, 16, [108..110, 96..108];
        Q4_K => q4_k, 144, 8, [0..2, 2..4, 4..16];
        Q5_K => q5_k, 176, 8, [0..2, 2..4, 4..16];
        Q6_K => q6_k, 210, 16, [208..210, 192..208];
    }
}

/// Copies parts of all blocks of a row: first the first part of every block, then the second part, and so on.
#[inline(always)]
fn split_scales<const BYTES: usize>(blocks: &[u8], scales: &mut [u8], parts: &[std::ops::Range<usize>]) {
    let count = blocks.len() / BYTES;
    let mut rest = scales;
    for part in parts {
        let (to, after) = rest.split_at_mut(count * part.len());
        for (block, to) in blocks.chunks_exact(BYTES).zip(to.chunks_exact_mut(part.len())) {
            to.copy_from_slice(&block[part.clone()]);
        }
        rest = after;
    }
}

/// The words of each of the groups of a block.
type Groups<const GROUPS: usize> = [[u32; MOST_WORDS]; GROUPS];

/// Writes the words of all blocks of a row.
#[inline(always)]
fn split_as<const BYTES: usize, const GROUPS: usize>(
    format: BlockFormat,
    blocks: &[u8],
    codes: &mut [u32],
    block: impl Fn(&[u8; BYTES]) -> Groups<GROUPS>,
) {
    let (bits, group) = (format.bits(), format.group());
    let words = group * bits / 32;
    let groups = blocks.len() / BYTES * GROUPS;
    for (index, from) in blocks.as_chunks::<BYTES>().0.iter().enumerate() {
        // The groups of a block lie in one chunk: a chunk has 16, and a block 1, 8 or 16.
        let chunk = Chunk::of(index * GROUPS, groups);
        let to = &mut codes[chunk.word(bits, group)..][..chunk.lanes * group * bits / 32];
        for (i, group) in block(from).iter().enumerate() {
            let lane = index * GROUPS + i - chunk.first;
            for (k, word) in group.iter().enumerate().take(words) {
                to[k * chunk.lanes + lane] = *word;
            }
            if bits == 3 {
                let halves = &mut to[words * chunk.lanes + lane / 2];
                *halves = if lane.is_multiple_of(2) { group[words] } else { *halves | group[words] << 16 };
            }
        }
    }
}

/// Word number `index` of some bytes.
#[inline(always)]
fn word(bytes: &[u8], index: usize) -> u32 {
    let at = 4 * index;
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// The low 4 bits of 32 codes: those of the first 16 in the low halves of 16 bytes, the others in the high halves.
#[inline(always)]
fn nibbles(bytes: &[u8]) -> [u32; MOST_WORDS] {
    let mut words = [0; MOST_WORDS];
    for (k, to) in words.iter_mut().enumerate().take(4) {
        *to = word(bytes, k);
    }
    words
}

#[inline(always)]
fn q4_0(block: &[u8; 18]) -> Groups<1> {
    [nibbles(&block[2..])]
}

#[inline(always)]
fn q4_1(block: &[u8; 20]) -> Groups<1> {
    [nibbles(&block[4..])]
}

#[inline(always)]
fn q5_0(block: &[u8; 22]) -> Groups<1> {
    [fives(&block[6..], word(&block[2..], 0))]
}

#[inline(always)]
fn q5_1(block: &[u8; 24]) -> Groups<1> {
    [fives(&block[8..], word(&block[4..], 0))]
}

/// Codes of 5 bits, with the fifth bits of all codes in order in `high`.
#[inline(always)]
fn fives(low: &[u8], high: u32) -> [u32; MOST_WORDS] {
    let mut words = nibbles(low);
    for b in 0..4 {
        // The bits of codes b, b + 4 and so on, side by side.
        let mut bits = high >> b & 0x1111_1111;
        bits = (bits | bits >> 3) & 0x0303_0303;
        bits = (bits | bits >> 6) & 0x000f_000f;
        words[4] |= (bits | bits >> 12) << (8 * b) & 0xff << (8 * b);
    }
    words
}

#[inline(always)]
fn q8_0(block: &[u8; 34]) -> Groups<1> {
    let mut words = [0; MOST_WORDS];
    for (k, to) in words.iter_mut().enumerate() {
        // From -128 to 127 becomes from 0 to 255.
        *to = word(&block[2..], k) ^ 0x8080_8080;
    }
    [words]
}

/// The codes of 2 bits of a group of [`q2_k`] and [`q3_k`]. Each half of the 64 bytes has 8 groups: bits 0 and 1 of its
/// first and second 16 bytes, then bits 2 and 3 of them, and so on.
#[inline(always)]
fn twos(bytes: &[u8], group: usize) -> u32 {
    let (start, shift) = (32 * (group / 8) + 16 * (group % 2), 2 * (group % 8 / 2));
    (0..4)
        .fold(0, |word_of_all, h| word_of_all | (word(&bytes[start..], h) >> shift & 0x0303_0303) << (2 * h))
}

#[inline(always)]
fn q2_k(block: &[u8; 84]) -> Groups<16> {
    std::array::from_fn(|group| [twos(&block[16..80], group), 0, 0, 0, 0, 0, 0, 0])
}

#[inline(always)]
fn q3_k(block: &[u8; 110]) -> Groups<16> {
    std::array::from_fn(|group| {
        let high = &block[16 * (group % 2)..][..16];
        let bits = (0..4).fold(0, |bits, h| bits | (word(high, h) >> (group / 2) & 0x0101_0101) << h);
        [twos(&block[32..96], group), unspread(bits), 0, 0, 0, 0, 0, 0]
    })
}

/// The low 4 bits of a group of 32 codes, of which `bytes` has one in each byte, in the low or the high half.
#[inline(always)]
fn halves(bytes: &[u8], group: usize) -> [u32; MOST_WORDS] {
    let (from, shift) = (&bytes[32 * (group / 2)..][..32], 4 * (group % 2));
    let mut words = [0; MOST_WORDS];
    for (k, to) in words.iter_mut().enumerate().take(4) {
        *to = word(from, k) >> shift & 0x0f0f_0f0f | (word(from, k + 4) >> shift & 0x0f0f_0f0f) << 4;
    }
    words
}

#[inline(always)]
fn q4_k(block: &[u8; 144]) -> Groups<8> {
    std::array::from_fn(|group| halves(&block[16..], group))
}

#[inline(always)]
fn q5_k(block: &[u8; 176]) -> Groups<8> {
    std::array::from_fn(|group| {
        let mut words = halves(&block[48..], group);
        words[4] = (0..8).fold(0, |bits, h| bits | (word(&block[16..48], h) >> group & 0x0101_0101) << h);
        words
    })
}

#[inline(always)]
fn q6_k(block: &[u8; 210]) -> Groups<16> {
    std::array::from_fn(|group| {
        // Each half of the block has 8 groups, in 4 pairs: two pairs in the low halves of bytes, then two in the high
        // halves.
        let (half, pair, start) = (group / 8, group % 8 / 2, 16 * (group % 2));
        let low = &block[64 * half + 32 * (pair % 2) + start..][..16];
        let high = &block[128 + 32 * half + start..][..16];
        let shift = 4 * (pair / 2);
        let mut words = [0; MOST_WORDS];
        for (k, to) in words.iter_mut().enumerate().take(2) {
            *to = word(low, k) >> shift & 0x0f0f_0f0f | (word(low, k + 2) >> shift & 0x0f0f_0f0f) << 4;
        }
        words[2] = (0..4).fold(0, |bits, h| bits | (word(high, h) >> (2 * pair) & 0x0303_0303) << (2 * h));
        words
    })
}
