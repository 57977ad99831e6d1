//! Functions of each element of a tensor, or of the elements of two tensors at the same place.

use crate::rows::{Rows, assert_rows, parallel_ranges};
use crate::{Arithmetic, Cpu, Element, Kernel, Matrix, MatrixMut, Simd};

/// `a + b`, rounded once: MLX's bits.
///
/// # Shapes
///
/// All `[N, D]`. Rows of `a` and `b` may have any stride, and 0 repeats a row; the elements of a row follow each other.
///
/// # Panics
///
/// If the shapes do not agree, or the elements of a row do not follow each other.
pub fn add<T: Element>(cpu: &Cpu, a: Matrix<'_, T>, b: Matrix<'_, T>, out: MatrixMut<'_, T>) {
    each(cpu, Sum, a, Some(b), out, 4);
}

/// `a * b`, rounded once: MLX's bits.
///
/// # Shapes
///
/// As for [`add`].
///
/// # Panics
///
/// If the shapes do not agree, or the elements of a row do not follow each other.
pub fn multiply<T: Element>(cpu: &Cpu, a: Matrix<'_, T>, b: Matrix<'_, T>, out: MatrixMut<'_, T>) {
    each(cpu, Product, a, Some(b), out, 4);
}

/// `x - b` with one number of `b` for each row, rounded once: MLX's bits. It turns logits into log-probabilities.
///
/// # Shapes
///
/// `x` and the output `[N, D]`, `b` `[N]`.
///
/// # Panics
///
/// If the shapes do not agree, or the elements of a row do not follow each other.
pub fn subtract_from_rows<T: Element>(cpu: &Cpu, x: Matrix<'_, T>, b: &[T], mut out: MatrixMut<'_, T>) {
    assert_eq!(
        (x.rows(), x.columns(), x.rows()),
        (out.rows(), out.columns(), b.len()),
        "shapes of a difference"
    );
    for (row, b) in b.iter().enumerate() {
        let x = Matrix::contiguous(x.row(row), 1, x.columns());
        let columns = x.columns();
        each(cpu, Less(b.widen()), x, None, MatrixMut::contiguous(out.row_mut(row), 1, columns), 4);
    }
}

#[derive(Debug, Clone, Copy)]
struct Less(f32);

impl Map for Less {
    #[inline(always)]
    fn map<S: Arithmetic, T: Element>(self, s: S, a: S::F, _: S::F) -> S::F {
        s.sub(a, s.splat(self.0))
    }
}

#[derive(Debug, Clone, Copy)]
struct Sum;

impl Map for Sum {
    #[inline(always)]
    fn map<S: Arithmetic, T: Element>(self, s: S, a: S::F, b: S::F) -> S::F {
        s.add(a, b)
    }
}

#[derive(Debug, Clone, Copy)]
struct Product;

impl Map for Product {
    #[inline(always)]
    fn map<S: Arithmetic, T: Element>(self, s: S, a: S::F, b: S::F) -> S::F {
        s.mul(a, b)
    }
}

/// A function of one number, or of two.
pub(crate) trait Map: Copy + Sync {
    /// Computes a vector. The result is rounded when it is stored.
    fn map<S: Arithmetic, T: Element>(self, s: S, a: S::F, b: S::F) -> S::F;
}

/// Writes `f` of each element of `a` and the element of `b` at the same place. `b` may be empty.
#[inline(always)]
fn map<S: Arithmetic, T: Element, F: Map>(s: S, f: F, a: &[T], b: &[T], out: &mut [T]) {
    let whole = out.len() / S::LANES * S::LANES;
    for from in (0..whole).step_by(S::LANES) {
        let y = if b.is_empty() { s.zero() } else { s.load(&b[from..]) };
        s.store(&mut out[from..], f.map::<S, T>(s, s.load(&a[from..]), y));
    }
    if whole < out.len() {
        let y = if b.is_empty() { s.zero() } else { s.load_some(&b[whole..], 0.0) };
        s.store_some(&mut out[whole..], f.map::<S, T>(s, s.load_some(&a[whole..], 0.0), y));
    }
}

/// Writes `function` of each element of `a` and the element of `b` at the same place. About `per_nanosecond` elements
/// take one nanosecond, which decides how many threads share them.
pub(crate) fn each<T: Element, F: Map>(
    cpu: &Cpu,
    function: F,
    a: Matrix<'_, T>,
    b: Option<Matrix<'_, T>>,
    mut out: MatrixMut<'_, T>,
    per_nanosecond: usize,
) {
    let (rows, columns) = (a.rows(), a.columns());
    assert_rows(&a, "the first input");
    for (name, shape) in [
        ("output", (out.rows(), out.columns())),
        ("second input", b.map_or((rows, columns), |b| (b.rows(), b.columns()))),
    ] {
        assert!(
            shape == (rows, columns),
            "an {name} of {} by {} for an input of {rows} by {columns}",
            shape.0,
            shape.1
        );
    }
    if let Some(b) = &b {
        assert_rows(b, "the second input");
    }
    if columns == 0 {
        return;
    }
    let out = Rows::new(&mut out);
    // Long rows are split: elements do not depend on each other.
    let piece = columns.min(1024);
    let pieces = columns.div_ceil(piece);
    parallel_ranges(cpu, rows * pieces, (piece / per_nanosecond).max(1), |range| {
        cpu.run(Each { function, a, b, out: &out, piece, pieces, range: range.clone() });
    });
}

struct Each<'a, T, F> {
    function: F,
    a: Matrix<'a, T>,
    b: Option<Matrix<'a, T>>,
    out: &'a Rows<T>,
    /// The number of elements in a piece of a row.
    piece: usize,
    /// The number of pieces of a row.
    pieces: usize,
    /// The pieces of this task.
    range: std::ops::Range<usize>,
}

impl<T: Element, F: Map> Kernel for Each<'_, T, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for index in self.range {
            let (row, piece) = (index / self.pieces, index % self.pieces);
            let from = piece * self.piece;
            let to = self.a.columns().min(from + self.piece);
            let a = &self.a.row(row)[from..to];
            let b = self.b.as_ref().map_or(&[][..], |b| &b.row(row)[from..to]);
            // SAFETY: the output is borrowed by the caller, and pieces do not overlap.
            let out = unsafe { self.out.part(row, from..to) };
            map(s, self.function, a, b, out);
        }
    }
}
