//! The scales and minimums of groups as float32.
//!
//! [`split_blocks`](super::split_blocks) keeps the bytes of the file in another order: for each row first the float16
//! scales of all blocks, then their second float16, if they have one, then their other bytes.

use std::ops::Range;

use super::format::BlockFormat;
use super::matrix::BlockMatrix;
use crate::{Arithmetic, Decoding, MAX_LANES};

/// Blocks of 256 elements whose scales are decoded at a time.
const AT_ONCE: usize = 16;

impl BlockMatrix<'_> {
    /// The bytes of the scales of a row.
    #[inline(always)]
    pub(super) const fn scale_bytes(&self) -> usize {
        self.columns / self.format.block() * self.format.scale_bytes()
    }

    /// Writes the scales of all groups of some rows and, in formats with minimums, their minimums with the opposite
    /// sign: what is added to products.
    #[inline(always)]
    pub(super) fn widen_scales<S: Decoding>(
        &self,
        s: S,
        rows: Range<usize>,
        scales: &mut [f32],
        added: &mut [f32],
    ) {
        let groups = self.groups();
        // The scales of all rows are one sequence of float16.
        if self.format.block() == 32 && !self.format.has_minimums() {
            return halves(s, &self.scales[rows.start * 2 * groups..], &mut scales[..rows.len() * groups]);
        }
        for (index, row) in rows.enumerate() {
            let here = index * groups..(index + 1) * groups;
            let added = if self.format.has_minimums() { &mut added[here.clone()] } else { &mut [] };
            self.widen_some(s, row, 0, &mut scales[here], added);
        }
    }

    /// [`widen_scales`](Self::widen_scales) for `scales.len()` groups of a row, from group `first` on: those of whole
    /// blocks.
    #[inline(always)]
    pub(super) fn widen_some<S: Decoding>(
        &self,
        s: S,
        row: usize,
        first: usize,
        scales: &mut [f32],
        added: &mut [f32],
    ) {
        let from = &self.scales[row * self.scale_bytes()..];
        if self.format.block() == 256 {
            return self.widen_blocks(s, from, first, scales, added);
        }
        halves(s, &from[2 * first..], scales);
        if self.format.has_minimums() {
            halves(s, &from[2 * (self.groups() + first)..], added);
        }
    }

    /// [`widen_some`](Self::widen_some) for blocks of 256 elements. `from` begins with the scales of the row.
    #[inline(always)]
    fn widen_blocks<S: Decoding>(
        &self,
        s: S,
        from: &[u8],
        first: usize,
        scales: &mut [f32],
        added: &mut [f32],
    ) {
        let (blocks, in_block) = (self.columns / 256, 256 / self.format.group());
        let (first, end) = (first / in_block, (first + scales.len()) / in_block);
        let has_minimums = self.format.has_minimums();
        let floats = if has_minimums { 4 } else { 2 };
        let each = self.format.scale_bytes() - floats;
        // A vector may be read behind what is used.
        let mut halves_of = [[0.0; AT_ONCE + MAX_LANES]; 2];
        let mut codes = [[0; 16 * AT_ONCE + MAX_LANES]; 2];
        for from_block in (first..end).step_by(AT_ONCE) {
            let count = AT_ONCE.min(end - from_block);
            let packed = &from[floats * blocks + each * from_block..][..each * count];
            let [of_scales, of_minimums] = &mut codes;
            let zero = match self.format {
                BlockFormat::Q2_K => q2_k(packed, of_scales, of_minimums),
                BlockFormat::Q3_K => q3_k(packed, of_scales),
                BlockFormat::Q6_K => q6_k(packed, of_scales),
                _ => q4_k(packed, of_scales, of_minimums),
            };
            let groups = in_block * (from_block - first)..in_block * (from_block - first + count);
            let [d, least] = &mut halves_of;
            halves(s, &from[2 * from_block..], &mut d[..count]);
            scaled(s, d, in_block, of_scales, zero, &mut scales[groups.clone()]);
            if has_minimums {
                halves(s, &from[2 * (blocks + from_block)..], &mut least[..count]);
                for least in &mut least[..count] {
                    *least = -*least;
                }
                scaled(s, least, in_block, of_minimums, zero, &mut added[groups]);
            }
        }
    }
}

/// Writes the codes of groups, less `zero`, times the float16 of their blocks: exact products. A vector may be read behind
/// the last number and the last code.
#[inline(always)]
fn scaled<S: Decoding>(s: S, of_blocks: &[f32], in_block: usize, codes: &[u8], zero: f32, to: &mut [f32]) {
    assert!(to.len() <= in_block * AT_ONCE && codes.len() >= to.len() + S::LANES);
    assert!(of_blocks.len() >= AT_ONCE + S::LANES);
    // For each lane the number of its block, counted from the first one of the vector.
    let places: [u32; MAX_LANES] = std::array::from_fn(|lane| (lane / in_block) as u32);
    // SAFETY: no instruction set has more than `MAX_LANES` lanes; a vector can be read behind what is used.
    unsafe {
        let places = s.bits(s.load_f32(places.as_ptr().cast()));
        for (index, to) in to.chunks_mut(S::LANES).enumerate() {
            let at = index * S::LANES;
            let block = s.permute(of_blocks.as_ptr().add(at / in_block), places);
            let code = s.sub(s.unpack::<8>(codes.as_ptr(), at), s.splat(zero));
            let scale = s.mul(code, block);
            if to.len() == S::LANES {
                s.store_f32(to.as_mut_ptr(), scale);
            } else {
                s.store_first(to.as_mut_ptr(), to.len(), scale);
            }
        }
    }
}

/// Widens as many float16 as `to` has. More bytes may be read, if there are more.
#[inline(always)]
fn halves<S: Arithmetic>(s: S, from: &[u8], to: &mut [f32]) {
    assert!(from.len() >= 2 * to.len());
    for (index, to) in to.chunks_mut(S::LANES).enumerate() {
        let from = &from[index * 2 * S::LANES..];
        // SAFETY: as many bytes as a vector of float16 has, and no more numbers than `to` has.
        unsafe {
            let wide = if from.len() >= 2 * S::LANES {
                s.load_f16(from.as_ptr().cast())
            } else {
                let mut last = [0_u8; 2 * MAX_LANES];
                last[..from.len()].copy_from_slice(from);
                s.load_f16(last.as_ptr().cast())
            };
            if to.len() == S::LANES {
                s.store_f32(to.as_mut_ptr(), wide);
            } else {
                s.store_first(to.as_mut_ptr(), to.len(), wide);
            }
        }
    }
}

// The whole numbers of a few bits that scales and minimums of groups are stored as: one byte for each group. The functions
// return the number that stands for 0.

/// 16 groups with a scale and a minimum of 4 bits.
#[inline(always)]
fn q2_k(packed: &[u8], scales: &mut [u8], minimums: &mut [u8]) -> f32 {
    for (packed, (scale, minimum)) in packed.iter().zip(scales.iter_mut().zip(minimums)) {
        *scale = packed & 15;
        *minimum = packed >> 4;
    }
    0.0
}

/// 16 groups with a scale of 6 bits: the low 4 bits in 8 bytes, the others in 4.
#[inline(always)]
fn q3_k(packed: &[u8], scales: &mut [u8]) -> f32 {
    for (packed, to) in packed.as_chunks::<12>().0.iter().zip(scales.as_chunks_mut::<16>().0) {
        let [first, second, high] = words(packed);
        let low = [first, second, first >> 4, second >> 4];
        for (j, (low, to)) in low.iter().zip(to.as_chunks_mut::<4>().0).enumerate() {
            *to = (low & 0x0f0f_0f0f | (high >> (2 * j) & 0x0303_0303) << 4).to_le_bytes();
        }
    }
    32.0
}

/// 8 groups with a scale and a minimum of 6 bits. Those of the first four groups are the low bits of a byte each; the
/// high bits of these bytes complete the last four.
#[inline(always)]
fn q4_k(packed: &[u8], scales: &mut [u8], minimums: &mut [u8]) -> f32 {
    let to = scales.as_chunks_mut::<8>().0.iter_mut().zip(minimums.as_chunks_mut::<8>().0);
    for (packed, (scales, minimums)) in packed.as_chunks::<12>().0.iter().zip(to) {
        let [first, second, third] = words(packed);
        *scales = both(first & 0x3f3f_3f3f, third & 0x0f0f_0f0f | first >> 2 & 0x3030_3030);
        *minimums = both(second & 0x3f3f_3f3f, third >> 4 & 0x0f0f_0f0f | second >> 2 & 0x3030_3030);
    }
    0.0
}

/// 16 groups with a scale of 8 bits with a sign.
#[inline(always)]
fn q6_k(packed: &[u8], scales: &mut [u8]) -> f32 {
    for (packed, to) in packed.iter().zip(scales) {
        *to = packed ^ 0x80;
    }
    128.0
}

#[inline(always)]
fn words(bytes: &[u8; 12]) -> [u32; 3] {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = *bytes;
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]), u32::from_le_bytes([i, j, k, l])]
}

#[inline(always)]
fn both(low: u32, high: u32) -> [u8; 8] {
    (u64::from(high) << 32 | u64::from(low)).to_le_bytes()
}
