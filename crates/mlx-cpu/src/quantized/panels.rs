//! Quantized matrices in products with many rows: they are decoded while they are packed, into floats, or into whole
//! numbers if activations have half precision.

use super::fixed::{Fixing, Form, Grouped, halved};
use super::format::{Codes, ForFormat, Format};
use super::matrix::QuantizedMatrix;
use crate::products::{Lines, MOST_ROWS, Numbers, Panels, pack_transposing, widen_row};
use crate::simd::prefetch;
use crate::{Decoding, Element, Isa, Kernel, MAX_LANES, Matrix, Simd};

/// The number of elements of each row that are decoded before they are packed: all rows of a panel stay in the
/// first-level cache. Small for Miri, whose cases are small and must still have several parts.
const DEPTH: usize = if cfg!(miri) { 32 } else { 256 };

/// The left factor of a product in whole numbers. Its rows are the lines.
pub(super) struct Activations<'a, T> {
    x: Matrix<'a, T>,
    grouped: Grouped,
}

impl<'a, T: Element> Activations<'a, T> {
    pub(super) const fn new(x: Matrix<'a, T>, fixing: Fixing) -> Self {
        Self { x, grouped: Grouped(fixing) }
    }
}

impl<T: Element> Panels for Activations<'_, T> {
    fn lines(&self) -> usize {
        self.x.rows()
    }

    fn depth(&self) -> usize {
        self.grouped.length()
    }

    fn numbers(&self) -> Numbers {
        Numbers::Whole { group: self.grouped.group_length() }
    }

    fn scratch(&self, _: usize) -> usize {
        self.x.columns() + halved(self.x.columns()) + MOST_ROWS * self.depth()
    }

    fn pack(&self, isa: Isa, lines: Lines, to: &mut [f32], scratch: &mut [f32]) {
        isa.run(PackActivations { from: self, lines, to, scratch });
    }
}

/// The vectors of words that `codes` codes become.
const fn words_of(form: Form, codes: usize) -> usize {
    match form {
        Form::Pairs => codes / 2,
        Form::Bytes { .. } => codes / 4,
    }
}

/// The length of a group with its scale and bias.
const fn group_length(form: Form, group: usize) -> usize {
    words_of(form, group) + 2
}

struct PackActivations<'a, T> {
    from: &'a Activations<'a, T>,
    lines: Lines,
    to: &'a mut [f32],
    scratch: &'a mut [f32],
}

impl<T: Element> Kernel for PackActivations<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { from: &Activations { x, grouped }, lines, to, scratch } = self;
        let Lines { first, count, width } = lines;
        let (wide, rest) = scratch.split_at_mut(x.columns());
        let (whole, rows) = rest.split_at_mut(halved(x.columns()));
        let depth = grouped.length();
        for (i, row) in rows.chunks_exact_mut(depth).enumerate().take(count) {
            widen_row(s, &x, first + i, wide);
            grouped.write(s, wide, whole, row);
        }
        let rows = &*rows;
        pack_transposing(s, 0, |i| &rows[i * depth..][..depth], count, depth, width, to);
    }
}

/// The right factor `w^T`: the rows of `w` are the lines.
pub(super) struct Rows<'a, T> {
    pub(super) w: &'a QuantizedMatrix<'a, T>,
    /// The form of elements that become whole numbers, because the left factor is [`Activations`]; else they are float32.
    pub(super) whole: Option<Form>,
}

impl<T: Element> Panels for Rows<'_, T> {
    fn lines(&self) -> usize {
        self.w.rows
    }

    fn depth(&self) -> usize {
        self.whole.map_or(self.w.columns, |form| self.w.groups() * group_length(form, self.w.group))
    }

    fn numbers(&self) -> Numbers {
        match self.whole {
            Some(form) => Numbers::Whole { group: group_length(form, self.w.group) },
            None => Numbers::Float32,
        }
    }

    fn scratch(&self, lanes: usize) -> usize {
        // For `PackWords` the scales and biases of a vector of rows; for `PackRows` decoded rows.
        (2 * lanes * self.w.groups()).max(2 * lanes * DEPTH)
    }

    fn pack(&self, isa: Isa, lines: Lines, to: &mut [f32], scratch: &mut [f32]) {
        let &Self { w, whole } = self;
        if 32 % w.bits() == 0 {
            isa.run(PackWords { w, whole, isa, lines, to, scratch });
        } else {
            isa.run(PackRows { w, isa, lines, to, scratch });
        }
    }
}

/// For codes of 2, 4 and 8 bits: square blocks of words are transposed and then decoded, so that a decoded vector is a
/// part of the panel.
struct PackWords<'a, T> {
    w: &'a QuantizedMatrix<'a, T>,
    whole: Option<Form>,
    isa: Isa,
    lines: Lines,
    to: &'a mut [f32],
    scratch: &'a mut [f32],
}

impl<T: Element> Kernel for PackWords<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { w, whole, isa, lines: Lines { first, count, width }, to, scratch } = self;
        let (groups, words) = (w.groups(), w.columns * w.bits() / 32);
        let (scales, biases) = scratch.split_at_mut(groups * S::LANES);
        let biases = &mut biases[..groups * S::LANES];
        for from in (0..width).step_by(S::LANES) {
            // Scales and biases of a group side by side. Zeros for rows behind the last.
            let start = first + from.min(count);
            let held = count.saturating_sub(from).min(S::LANES);
            w.scales_across(s, start..start + held, 0..groups, scales, biases);
            w.prefetch_scales((start + S::LANES) * groups, S::LANES * groups);
            isa.run(Words {
                whole,
                format: w.codes,
                // At least one row. If its scale is 0, its codes do not matter.
                words: &w.weights[(first + from.min(count - 1)) * words..],
                row: words,
                rows: held,
                group: w.group,
                scales,
                biases: w.is_affine().then_some(&*biases),
                width,
                to: &mut to[from..],
            });
        }
    }
}

/// As many rows as a vector has lanes. Compiled once for each format of codes, not for each format of scales.
struct Words<'a> {
    whole: Option<Form>,
    format: Codes,
    words: &'a [u32],
    /// Words in a row.
    row: usize,
    /// The number of lanes that have a row.
    rows: usize,
    group: usize,
    scales: &'a [f32],
    biases: Option<&'a [f32]>,
    width: usize,
    to: &'a mut [f32],
}

impl Kernel for Words<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        self.format.with(Decode { words: self, s });
    }
}

struct Decode<'a, S> {
    words: Words<'a>,
    s: S,
}

impl<S: Decoding> ForFormat for Decode<'_, S> {
    #[inline(always)]
    fn run<F: Format>(self, _: F) {
        if const { 32 % F::BITS != 0 } {
            unreachable!("codes of {} bits lie in two words", F::BITS);
        }
        let Self { words: Words { whole, words, row, rows, group, scales, biases, width, to, .. }, s } = self;
        let codes = 32 / F::BITS;
        let groups = row * codes / group;
        let depth = whole.map_or(row * codes, |form| groups * group_length(form, group));
        assert!(words.len() >= row * rows.max(1) && rows <= S::LANES);
        assert!(scales.len() == groups * S::LANES);
        assert!(biases.is_none_or(|biases| biases.len() == scales.len()));
        assert!(to.len() >= (depth - 1) * width + S::LANES);
        assert!(F::WHOLE || whole.is_none());
        // Lanes behind the last row read that row again; their scale is 0.
        let from: [*const f32; MAX_LANES] =
            std::array::from_fn(|i| words[i.min(rows.max(1) - 1) * row..].as_ptr().cast());
        if const { S::MULTIPLIES_BYTES && F::PLAIN }
            && let Some(Form::Bytes { .. }) = whole
        {
            // SAFETY: each row has `row` words, and `to` has room for all steps, as was asserted.
            return unsafe {
                bytes::<S, F>(s, &from, row, group * F::BITS / 32, (scales, biases), to, width)
            };
        }
        for word in (0..row).step_by(S::LANES) {
            // SAFETY: each row has `row` words.
            let (block, some) = unsafe { transposed(s, &from, word, row) };
            for (index, words) in block[..S::LANES].iter().enumerate().take(some) {
                let k = (word + index) * codes;
                if const { F::WHOLE }
                    && let Some(form) = whole
                {
                    // Each earlier group takes two more steps.
                    let vectors = words_of(form, codes);
                    let step = k / codes * vectors + k / group * 2;
                    for field in 0..vectors {
                        let decoded = F::field16(s, s.bits(*words), field);
                        // SAFETY: `step + field` is below `depth`, as was asserted for the last.
                        unsafe { s.store_bits(to.as_mut_ptr().add((step + field) * width), decoded) };
                    }
                    if (k + codes).is_multiple_of(group) {
                        let at = k / group * S::LANES;
                        s.store(&mut to[(step + vectors) * width..], s.load(&scales[at..]));
                        let bias = biases.map_or(s.zero(), |biases| s.load(&biases[at..]));
                        s.store(&mut to[(step + vectors + 1) * width..], bias);
                    }
                    continue;
                }
                let scale = s.load(&scales[k / group * S::LANES..]);
                let bias = match biases {
                    Some(biases) => s.load(&biases[k / group * S::LANES..]),
                    None => s.zero(),
                };
                for code in 0..codes {
                    let x = s.mul_add(F::field(s, *words, code), scale, bias);
                    // SAFETY: `k + code` is below `depth`, as was asserted for the last.
                    unsafe { s.store_f32(to.as_mut_ptr().add((k + code) * width), x) };
                }
            }
        }
    }
}

/// Up to a vector of words of each row, from `word` on, of rows of `row` words: for each word a vector with a lane for each
/// row, and the number of words.
///
/// # Safety
///
/// The words can be read.
#[inline(always)]
unsafe fn transposed<S: Decoding>(
    s: S,
    from: &[*const f32; MAX_LANES],
    word: usize,
    row: usize,
) -> ([S::F; MAX_LANES], usize) {
    let some = S::LANES.min(row - word);
    let mut block = [s.zero(); MAX_LANES];
    for (block, from) in block[..S::LANES].iter_mut().zip(from) {
        // SAFETY: the caller's promise. They are loaded as floats, but there is no arithmetic with them.
        unsafe {
            let from = from.add(word);
            // The rows of the next block.
            prefetch(from.wrapping_add(row * S::LANES));
            *block = if some == S::LANES { s.load_f32(from) } else { s.load_first(from, some) };
        }
    }
    s.transpose(&mut block);
    (block, some)
}

/// Writes `row` words of each row at `from` as bytes: `lanes` words of a group, then its scales and biases.
///
/// # Safety
///
/// The words can be read, there are scales for each group, and `to` has room for a vector for each four codes and two for
/// each group, with a distance of `width` numbers.
#[inline(always)]
unsafe fn bytes<S: Decoding, F: Format>(
    s: S,
    from: &[*const f32; MAX_LANES],
    row: usize,
    lanes: usize,
    (scales, biases): (&[f32], Option<&[f32]>),
    to: &mut [f32],
    width: usize,
) {
    let (mut to, mut left, mut group) = (to.as_mut_ptr(), lanes, 0);
    for word in (0..row).step_by(S::LANES) {
        // SAFETY: the caller's promise.
        let (block, some) = unsafe { transposed(s, from, word, row) };
        for words in &block[..some] {
            // SAFETY: the caller's promise.
            unsafe {
                for field in 0..8 / F::BITS {
                    s.store_bits(to, F::field8(s, s.bits(*words), field));
                    to = to.add(width);
                }
                left -= 1;
                if left == 0 {
                    s.store_f32(to, s.load_f32(scales.as_ptr().add(group * S::LANES)));
                    let bias = biases.map_or(s.zero(), |biases| s.load(&biases[group * S::LANES..]));
                    s.store_f32(to.add(width), bias);
                    // Behind the last group the pointer is not used.
                    to = to.wrapping_add(2 * width);
                    (left, group) = (lanes, group + 1);
                }
            }
        }
    }
}

/// For other codes: rows are decoded and then transposed.
struct PackRows<'a, T> {
    w: &'a QuantizedMatrix<'a, T>,
    isa: Isa,
    lines: Lines,
    to: &'a mut [f32],
    scratch: &'a mut [f32],
}

impl<T: Element> Kernel for PackRows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { w, isa, lines: Lines { first, count, width }, to, scratch } = self;
        for (index, to) in to.chunks_mut(DEPTH * width).enumerate() {
            let depth = to.len() / width;
            for (line, to) in scratch.chunks_exact_mut(DEPTH).enumerate().take(count) {
                w.decode(s, isa, first + line, index * DEPTH, &mut to[..depth]);
            }
            let line = |i: usize| &scratch[i * DEPTH..][..depth];
            pack_transposing(s, 0, line, count, depth, width, to);
        }
    }
}

/// The right factor `w`: the columns of `w` are the lines.
pub(super) struct Columns<'a, T>(pub(super) &'a QuantizedMatrix<'a, T>);

impl<T: Element> Panels for Columns<'_, T> {
    fn lines(&self) -> usize {
        self.0.columns
    }

    fn depth(&self) -> usize {
        self.0.rows
    }

    fn pack(&self, isa: Isa, lines: Lines, to: &mut [f32], _scratch: &mut [f32]) {
        isa.run(PackColumns { w: self.0, isa, lines, to });
    }
}

struct PackColumns<'a, T> {
    w: &'a QuantizedMatrix<'a, T>,
    isa: Isa,
    lines: Lines,
    to: &'a mut [f32],
}

impl<T: Element> Kernel for PackColumns<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { w, isa, lines: Lines { first, count, width }, to } = self;
        for (row, to) in to.chunks_exact_mut(width).enumerate() {
            // `count` is a multiple of the lanes, because columns are whole groups.
            w.decode(s, isa, row, first, &mut to[..count]);
            to[count..].fill(0.0);
        }
    }
}
