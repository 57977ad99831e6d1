//! The scales and minimums of groups as float32.
//!
//! [`split_blocks`](super::split_blocks) keeps the bytes of the file in another order: for each row first the float16
//! scales of all blocks, then their second float16, if they have one, then their other bytes.

use std::ops::Range;

use super::format::BlockFormat;
use super::matrix::BlockMatrix;
use crate::{Arithmetic, MAX_LANES};

/// Blocks of 256 elements whose scales are decoded at a time.
const AT_ONCE: usize = 16;

impl BlockMatrix<'_> {
    /// The bytes of the scales of a row.
    pub(super) const fn scale_bytes(&self) -> usize {
        self.columns / self.format.block() * self.format.scale_bytes()
    }

    /// Writes the scales of all groups of some rows and, in formats with minimums, their minimums with the opposite
    /// sign: what is added to products.
    #[inline(always)]
    pub(super) fn widen_scales<S: Arithmetic>(
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
    pub(super) fn widen_some<S: Arithmetic>(
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
    fn widen_blocks<S: Arithmetic>(
        &self,
        s: S,
        from: &[u8],
        first: usize,
        scales: &mut [f32],
        added: &mut [f32],
    ) {
        let (blocks, in_block) = (self.columns / 256, 256 / self.format.group());
        let (first, end) = (first / in_block, (first + scales.len()) / in_block);
        let floats = if self.format.has_minimums() { 4 } else { 2 };
        let each = self.format.scale_bytes() - floats;
        let (mut d, mut least) = ([0.0; AT_ONCE], [0.0; AT_ONCE]);
        for from_block in (first..end).step_by(AT_ONCE) {
            let count = AT_ONCE.min(end - from_block);
            halves(s, &from[2 * from_block..], &mut d[..count]);
            if self.format.has_minimums() {
                halves(s, &from[2 * (blocks + from_block)..], &mut least[..count]);
            }
            let packed = &from[floats * blocks + each * from_block..][..each * count];
            let groups = in_block * (from_block - first)..in_block * (from_block - first + count);
            let (d, least, scales) = (&d[..count], &least[..count], &mut scales[groups.clone()]);
            match self.format {
                BlockFormat::Q2_K => q2_k(d, least, packed, scales, &mut added[groups]),
                BlockFormat::Q3_K => q3_k(d, packed, scales),
                BlockFormat::Q6_K => q6_k(d, packed, scales),
                _ => q4_k(d, least, packed, scales, &mut added[groups]),
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

// A group's scale is the float16 of its block times a whole number of a few bits, and so is its minimum.

/// 16 groups with a scale and a minimum of 4 bits.
#[inline(always)]
fn q2_k(d: &[f32], least: &[f32], packed: &[u8], scales: &mut [f32], added: &mut [f32]) {
    let blocks = packed.as_chunks::<16>().0.iter().zip(d.iter().zip(least));
    let to = scales.as_chunks_mut::<16>().0.iter_mut().zip(added.as_chunks_mut::<16>().0);
    for ((packed, (d, least)), (scales, added)) in blocks.zip(to) {
        for i in 0..16 {
            scales[i] = d * f32::from(packed[i] & 15);
            added[i] = -(least * f32::from(packed[i] >> 4));
        }
    }
}

/// 16 groups with a scale of 6 bits, 32 more than it stands for: the low 4 bits in 8 bytes, the others in 4.
#[inline(always)]
fn q3_k(d: &[f32], packed: &[u8], scales: &mut [f32]) {
    let to = scales.as_chunks_mut::<16>().0;
    for ((packed, d), scales) in packed.as_chunks::<12>().0.iter().zip(d).zip(to) {
        for (i, scale) in scales.iter_mut().enumerate() {
            let code = packed[i % 8] >> (4 * (i / 8)) & 15 | (packed[8 + i % 4] >> (2 * (i / 4)) & 3) << 4;
            *scale = d * (f32::from(code) - 32.0);
        }
    }
}

/// 8 groups with a scale and a minimum of 6 bits. Those of the first four groups are the low bits of a byte each; the
/// high bits of these bytes complete the last four.
#[inline(always)]
fn q4_k(d: &[f32], least: &[f32], packed: &[u8], scales: &mut [f32], added: &mut [f32]) {
    let blocks = packed.as_chunks::<12>().0.iter().zip(d.iter().zip(least));
    let to = scales.as_chunks_mut::<8>().0.iter_mut().zip(added.as_chunks_mut::<8>().0);
    for ((packed, (d, least)), (scales, added)) in blocks.zip(to) {
        let word = |i: usize| u32::from_le_bytes([packed[i], packed[i + 1], packed[i + 2], packed[i + 3]]);
        let (first, second, third) = (word(0), word(4), word(8));
        let both = |low: u32, high: u32| (u64::from(high) << 32 | u64::from(low)).to_le_bytes();
        let codes = both(first & 0x3f3f_3f3f, third & 0x0f0f_0f0f | first >> 2 & 0x3030_3030);
        let minimums = both(second & 0x3f3f_3f3f, third >> 4 & 0x0f0f_0f0f | second >> 2 & 0x3030_3030);
        for i in 0..8 {
            scales[i] = d * f32::from(codes[i]);
            added[i] = -(least * f32::from(minimums[i]));
        }
    }
}

/// 16 groups with a scale of 8 bits with a sign.
#[inline(always)]
fn q6_k(d: &[f32], packed: &[u8], scales: &mut [f32]) {
    let to = scales.as_chunks_mut::<16>().0;
    for ((packed, d), scales) in packed.as_chunks::<16>().0.iter().zip(d).zip(to) {
        for (scale, code) in scales.iter_mut().zip(packed) {
            *scale = d * f32::from(code.cast_signed());
        }
    }
}
