//! Rotary position embedding (RoPE).

use crate::cpu::Shared;
use crate::rows::parallel_ranges;
use crate::{Arithmetic, Cpu, Element, Kernel, Simd, View, formula};

/// Which two numbers of a head form a pair that is rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeLayout {
    /// Neighbours: 0 and 1, 2 and 3 (MLX's `traditional`).
    Interleaved,
    /// Numbers at the same place of the first and the second half.
    Halves,
}

/// The angles by which pairs are rotated from one position to the next.
#[derive(Debug, Clone, Copy)]
pub enum Frequencies<'a> {
    /// `base^(-i/n)` radians for pair `i` of `n`.
    Base(f32),
    /// `1 / periods[i]` radians for pair `i` (MLX's `freqs`).
    Periods(&'a [f32]),
}

/// A rotation. See [`rope`].
#[derive(Debug, Clone, Copy)]
pub struct Rope<'a> {
    /// How many numbers of each head are rotated: an even number. The others are copied.
    pub dims: usize,
    /// Which numbers form pairs.
    pub layout: RopeLayout,
    /// The angles for one position.
    pub frequencies: Frequencies<'a>,
    /// The factor by which positions are multiplied.
    pub scale: f32,
}

/// Rotates each pair of a head by its position times its frequency; Su et al. 2021, *RoFormer*,
/// arXiv:2104.09864. Position `l` of batch row `b` is `l + offsets[b]`.
///
/// The result has the bits of MLX's `fast::rope` on its CPU device: the angle is float32; sine, cosine, each product
/// and their sum are rounded to `T`.
///
/// # Shapes
///
/// `x` `[B, H, L, D]` with any strides, but the last is 1. `out` has the same shape and is contiguous. `offsets` has
/// one number for all rows of the batch, or `[B]`.
///
/// # Error
///
/// Sine and cosine are within 1e-6 of those of the float32 angle, at any position. The relative error of the angle of a
/// pair with frequency `exp(-e)` is up to `2e-7 * (1 + e)`, as in MLX: frequencies are exponentials in float32, and the
/// product is rounded. At position 1e6 that is up to 0.2 radians for the fastest pairs.
///
/// # Panics
///
/// If shapes do not agree, `dims` is odd or larger than `D`, or the elements of a head do not follow each other.
pub fn rope<T: Element>(cpu: &Cpu, x: View<'_, T, 4>, rope: &Rope<'_>, offsets: &[i32], out: &mut [T]) {
    let [batch, heads, length, size] = x.shape();
    let Rope { dims, layout, frequencies, scale } = *rope;
    assert!(dims.is_multiple_of(2) && dims <= size, "a rotation of {dims} of heads of {size}");
    assert!(x.has_rows() || x.is_empty(), "the elements of a head lie {} apart", x.strides()[3]);
    assert!(offsets.len() == 1 || offsets.len() == batch, "{} offsets for a batch of {batch}", offsets.len());
    assert!(
        Some(out.len()) == [heads, length, size].iter().try_fold(batch, |all, axis| all.checked_mul(*axis)),
        "an output of {} for shape {:?}",
        out.len(),
        x.shape()
    );
    if let Frequencies::Periods(periods) = frequencies {
        assert!(periods.len() == dims / 2, "{} periods for {} pairs", periods.len(), dims / 2);
    }
    if out.is_empty() {
        return;
    }

    let mut inverse = vec![0.0; dims / 2];
    cpu.run(Inverse { frequencies, out: &mut inverse });
    let out = Shared(out.as_mut_ptr());
    // Rows of the batch at the same positions share sines and cosines.
    let groups = if offsets.len() == 1 { 1 } else { batch };
    let rows = batch / groups;
    parallel_ranges(cpu, groups * length, dims + rows * heads * (10 + size / 6), |range| {
        cpu.run(Rotate { x, layout, scale, inverse: &inverse, offsets, rows, out, range: range.clone() });
    });
}

/// Writes the angles for one position, in radians.
struct Inverse<'a> {
    frequencies: Frequencies<'a>,
    out: &'a mut [f32],
}

impl Kernel for Inverse<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.frequencies {
            Frequencies::Periods(periods) => {
                for (out, period) in self.out.iter_mut().zip(periods) {
                    *out = 1.0 / period;
                }
            }
            Frequencies::Base(base) => {
                let step = base.ln() / self.out.len() as f32;
                for (i, out) in self.out.iter_mut().enumerate() {
                    *out = -(i as f32) * step;
                }
                for chunk in self.out.chunks_mut(S::LANES) {
                    let y = formula::exp(s, s.load_some(chunk, 0.0));
                    s.store_some(chunk, y);
                }
            }
        }
    }
}

struct Rotate<'a, T> {
    x: View<'a, T, 4>,
    layout: RopeLayout,
    scale: f32,
    inverse: &'a [f32],
    offsets: &'a [i32],
    /// The number of rows of the batch that share an offset.
    rows: usize,
    out: Shared<T>,
    /// The positions of this task, counted over all groups of rows.
    range: std::ops::Range<usize>,
}

impl<T: Element> Kernel for Rotate<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let [_, heads, length, size] = self.x.shape();
        let pairs = self.inverse.len();
        // Cosines and sines of a position, then memory for the pairs of a head.
        let padded = pairs.next_multiple_of(S::LANES);
        let mut table = vec![0.0_f32; 6 * padded];
        let (cosines, rest) = table.split_at_mut(padded);
        let (sines, scratch) = rest.split_at_mut(padded);
        for index in self.range {
            let (group, position) = (index / length, index % length);
            let place = (position as f32 + self.offsets[group] as f32) * self.scale;
            for from in (0..padded).step_by(S::LANES) {
                let inverse = s.load_some(&self.inverse[from..], 0.0);
                let (sine, cosine) = formula::sin_cos(s, s.mul(s.splat(place), inverse));
                s.store(&mut sines[from..], T::rounded(s, sine));
                s.store(&mut cosines[from..], T::rounded(s, cosine));
            }
            for row in group * self.rows..(group + 1) * self.rows {
                for head in 0..heads {
                    let x = &self.x.data()[self.x.at([row, head, position, 0])..][..size];
                    // SAFETY: the output has the shape of `x`; it is borrowed by the caller, and ranges
                    // do not overlap.
                    let out = unsafe {
                        let start = self.out.get().add(((row * heads + head) * length + position) * size);
                        std::slice::from_raw_parts_mut(start, size)
                    };
                    match self.layout {
                        RopeLayout::Halves => halves(s, x, pairs, cosines, sines, out),
                        RopeLayout::Interleaved => {
                            interleaved(s, x, pairs, cosines, sines, scratch, out);
                        }
                    }
                    out[2 * pairs..].copy_from_slice(&x[2 * pairs..]);
                }
            }
        }
    }
}

/// A rotated pair, with each product rounded to `T`.
#[inline(always)]
fn rotated<S: Arithmetic, T: Element>(
    s: S,
    (a, b): (S::F, S::F),
    (cosine, sine): (S::F, S::F),
) -> (S::F, S::F) {
    let product = |a, b| T::rounded(s, s.mul(a, b));
    (s.sub(product(a, cosine), product(b, sine)), s.add(product(a, sine), product(b, cosine)))
}

#[inline(always)]
fn halves<S: Arithmetic, T: Element>(
    s: S,
    x: &[T],
    pairs: usize,
    cosines: &[f32],
    sines: &[f32],
    out: &mut [T],
) {
    let (x, y) = x[..2 * pairs].split_at(pairs);
    let (to_x, to_y) = out[..2 * pairs].split_at_mut(pairs);
    let whole = pairs / S::LANES * S::LANES;
    for from in (0..whole).step_by(S::LANES) {
        let turn = (s.load(&cosines[from..]), s.load(&sines[from..]));
        let (a, b) = rotated::<S, T>(s, (s.load(&x[from..]), s.load(&y[from..])), turn);
        s.store(&mut to_x[from..], a);
        s.store(&mut to_y[from..], b);
    }
    if whole < pairs {
        let turn = (s.load(&cosines[whole..]), s.load(&sines[whole..]));
        let pair = (s.load_some(&x[whole..], 0.0), s.load_some(&y[whole..], 0.0));
        let (a, b) = rotated::<S, T>(s, pair, turn);
        s.store_some(&mut to_x[whole..], a);
        s.store_some(&mut to_y[whole..], b);
    }
}

#[inline(always)]
fn interleaved<S: Arithmetic, T: Element>(
    s: S,
    x: &[T],
    pairs: usize,
    cosines: &[f32],
    sines: &[f32],
    scratch: &mut [f32],
    out: &mut [T],
) {
    let padded = cosines.len();
    let (first, second) = scratch.split_at_mut(padded);
    for ((pair, a), b) in x[..2 * pairs].chunks_exact(2).zip(&mut *first).zip(&mut *second) {
        *a = pair[0].widen();
        *b = pair[1].widen();
    }
    for from in (0..padded).step_by(S::LANES) {
        let turn = (s.load(&cosines[from..]), s.load(&sines[from..]));
        let (a, b) = rotated::<S, T>(s, (s.load(&first[from..]), s.load(&second[from..])), turn);
        s.store(&mut first[from..], T::rounded(s, a));
        s.store(&mut second[from..], T::rounded(s, b));
    }
    for ((pair, a), b) in out[..2 * pairs].chunks_exact_mut(2).zip(first).zip(second) {
        pair[0] = T::narrow(*a);
        pair[1] = T::narrow(*b);
    }
}
