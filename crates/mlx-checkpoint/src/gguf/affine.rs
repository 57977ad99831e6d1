//! Blocks of GGUF as groups of MLX's affine mode.

use half::f16;
use mlx_gguf::TensorType;

use super::loss::Loss;

/// Numbers of a group.
pub(super) const GROUP: usize = 32;

/// Groups of [`GROUP`] numbers: `scale * code + bias`.
#[derive(Debug, Default)]
pub(super) struct Groups {
    /// The codes, each behind the one before it, from the lowest bit on.
    pub(super) words: Vec<u32>,
    pub(super) scales: Vec<f16>,
    pub(super) biases: Vec<f16>,
}

impl Groups {
    pub(super) fn joined(parts: Vec<Self>) -> Self {
        let mut parts = parts.into_iter();
        let mut all = parts.next().unwrap_or_default();
        for part in parts {
            all.words.extend(part.words);
            all.scales.extend(part.scales);
            all.biases.extend(part.biases);
        }
        all
    }

    fn push(&mut self, codes: &[u8; GROUP], bits: usize, scale: f32, bias: f32) {
        self.words.extend(packed(codes, bits));
        self.scales.push(f16::from_f32(scale));
        self.biases.push(f16::from_f32(bias));
    }

    /// How far the numbers of these groups are from `exact`.
    pub(super) fn loss(&self, bits: i32, exact: &[f32]) -> Loss {
        let bits = bits as usize;
        let of_group = |(group, (scale, bias)): (usize, (&f16, &f16))| {
            let words = &self.words[group * bits..(group + 1) * bits];
            let (scale, bias) = (scale.to_f32(), bias.to_f32());
            (0..GROUP).map(move |index| scale * f32::from(code(words, index, bits)) + bias)
        };
        Loss::between(exact, self.scales.iter().zip(&self.biases).enumerate().flat_map(of_group))
    }
}

/// The groups of these blocks, of a type whose blocks have groups of 32.
pub(super) fn groups(kind: TensorType, blocks: &[u8]) -> Groups {
    let mut groups = Groups::default();
    for block in blocks.chunks_exact(kind.block_bytes()) {
        match kind {
            TensorType::Q4_0 => groups.push(&nibbles(&block[2..]), 4, half(block, 0), -8.0 * half(block, 0)),
            TensorType::Q4_1 => groups.push(&nibbles(&block[4..]), 4, half(block, 0), half(block, 2)),
            TensorType::Q5_0 => {
                groups.push(&fives(&block[6..], &block[2..6]), 5, half(block, 0), -16.0 * half(block, 0));
            }
            TensorType::Q5_1 => {
                groups.push(&fives(&block[8..], &block[4..8]), 5, half(block, 0), half(block, 2))
            }
            TensorType::Q8_0 => {
                let mut codes = [0; GROUP];
                codes.iter_mut().zip(&block[2..]).for_each(|(code, &signed)| *code = signed ^ 0x80);
                groups.push(&codes, 8, half(block, 0), -128.0 * half(block, 0));
            }
            TensorType::Q4_K => super_block(&mut groups, block, &block[16..], None),
            TensorType::Q5_K => super_block(&mut groups, block, &block[48..], Some(&block[16..48])),
            _ => {}
        }
    }
    groups
}

/// The eight groups of a block of Q4_K or Q5_K. Their scales and minimums are products of two numbers, which are rounded to
/// float16.
fn super_block(groups: &mut Groups, block: &[u8], low: &[u8], high: Option<&[u8]>) {
    let (d, d_min, packed) = (half(block, 0), half(block, 2), &block[4..16]);
    for group in 0..8 {
        let (scale, min) = match group {
            0..4 => (packed[group] & 63, packed[4 + group] & 63),
            _ => {
                let low = packed[4 + group];
                (low & 15 | packed[group - 4] >> 6 << 4, low >> 4 | packed[group] >> 6 << 4)
            }
        };
        let mut codes = [0; GROUP];
        let bytes = &low[GROUP * (group / 2)..][..GROUP];
        codes.iter_mut().zip(bytes).for_each(|(code, byte)| *code = byte >> (4 * (group % 2)) & 15);
        if let Some(high) = high {
            codes.iter_mut().zip(high).for_each(|(code, byte)| *code |= (byte >> group & 1) << 4);
        }
        let bits = if high.is_some() { 5 } else { 4 };
        groups.push(&codes, bits, d * f32::from(scale), -d_min * f32::from(min));
    }
}

fn half(block: &[u8], start: usize) -> f32 {
    f16::from_le_bytes([block[start], block[start + 1]]).to_f32()
}

/// Codes of 4 bits: first the low halves of 16 bytes, then the high halves.
pub(super) fn nibbles(bytes: &[u8]) -> [u8; GROUP] {
    let mut codes = [0; GROUP];
    for (index, byte) in bytes.iter().take(GROUP / 2).enumerate() {
        codes[index] = byte & 15;
        codes[GROUP / 2 + index] = byte >> 4;
    }
    codes
}

/// Codes of 5 bits: 4 of them as in [`nibbles`], and the highest in 32 bits of their own.
fn fives(bytes: &[u8], high: &[u8]) -> [u8; GROUP] {
    let mut codes = nibbles(bytes);
    codes.iter_mut().enumerate().for_each(|(index, code)| *code |= (high[index / 8] >> (index % 8) & 1) << 4);
    codes
}

/// Codes of this many bits, each behind the one before it, from the lowest bit on: as many words as bits.
pub(super) fn packed(codes: &[u8; GROUP], bits: usize) -> impl Iterator<Item = u32> + use<> {
    let mut words = [0_u32; 8];
    for (index, &code) in codes.iter().enumerate() {
        let (word, shift) = (index * bits / 32, index * bits % 32);
        let wide = u64::from(code) << shift;
        words[word] |= wide as u32;
        if shift + bits > 32 {
            words[word + 1] |= (wide >> 32) as u32;
        }
    }
    words.into_iter().take(bits)
}

/// The code at this index of a group.
fn code(words: &[u32], index: usize, bits: usize) -> u8 {
    let (word, shift) = (index * bits / 32, index * bits % 32);
    let next = words.get(word + 1).copied().unwrap_or_default();
    let both = u64::from(words[word]) | u64::from(next) << 32;
    (both >> shift & ((1 << bits) - 1)) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_packed_and_found_again() {
        let mut codes = [0; GROUP];
        codes.iter_mut().enumerate().for_each(|(index, code)| *code = (37 * index + 11) as u8);
        for bits in [2, 3, 4, 5, 6, 8] {
            let codes = codes.map(|code| code & ((1_u16 << bits) - 1) as u8);
            let words: Vec<u32> = packed(&codes, bits).collect();
            assert_eq!(words.len(), bits);
            assert!((0..GROUP).all(|index| code(&words, index, bits) == codes[index]), "{bits}");
        }
    }
}
