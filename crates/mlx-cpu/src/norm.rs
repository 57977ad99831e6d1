//! Root mean square normalization.

use crate::rows::{Rows, assert_rows, parallel_ranges};
use crate::{Arithmetic, Cpu, Element, Kernel, Matrix, MatrixMut, Simd};

/// `x / sqrt(mean(x^2) + eps) * weight` for each row; Zhang and Sennrich 2019, *Root Mean Square Layer
/// Normalization*, arXiv:1910.07467.
///
/// Rounds to `T` where MLX does: before and after the product with `weight`. Without a weight it rounds once.
///
/// # Shapes
///
/// `x` and `out` `[N, D]`, `weight` `[D]`. Rows of `x` may have any stride; the elements of a row follow each other.
///
/// # Error
///
/// The relative error of the sum of squares is at most `(D / 16 + 4) * 2^-24` (`D / 4` on AArch64). The roundings above
/// follow.
///
/// # Panics
///
/// If the shapes do not agree, or the elements of a row do not follow each other.
pub fn rms_norm<T: Element>(
    cpu: &Cpu,
    x: Matrix<'_, T>,
    weight: Option<&[T]>,
    eps: f32,
    mut out: MatrixMut<'_, T>,
) {
    let (rows, columns) = (x.rows(), x.columns());
    assert_rows(&x, "x");
    assert!(
        (out.rows(), out.columns()) == (rows, columns),
        "an output of {} by {} for an input of {rows} by {columns}",
        out.rows(),
        out.columns()
    );
    if let Some(weight) = weight {
        assert!(weight.len() == columns, "{} weights for rows of {columns}", weight.len());
    }
    if columns == 0 {
        return;
    }
    let out = Rows::new(&mut out);
    parallel_ranges(cpu, rows, 20 + columns / 6, |range| {
        cpu.run(Norm { x, weight, eps, out: &out, range: range.clone() });
    });
}

struct Norm<'a, T> {
    x: Matrix<'a, T>,
    weight: Option<&'a [T]>,
    eps: f32,
    out: &'a Rows<T>,
    /// The rows of this task.
    range: std::ops::Range<usize>,
}

impl<T: Element> Kernel for Norm<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for i in self.range {
            let x = self.x.row(i);
            // SAFETY: the output is borrowed by the caller, and ranges do not overlap.
            let out = unsafe { self.out.row(i) };
            let mean = sum_of_squares(s, x) * (1.0 / x.len() as f64) as f32;
            let factor = s.splat(1.0 / (mean + self.eps).sqrt());

            let whole = x.len() / S::LANES * S::LANES;
            match self.weight {
                Some(weight) => {
                    for from in (0..whole).step_by(S::LANES) {
                        let y = T::rounded(s, s.mul(s.load(&x[from..]), factor));
                        s.store(&mut out[from..], s.mul(y, s.load(&weight[from..])));
                    }
                    if whole < x.len() {
                        let y = T::rounded(s, s.mul(s.load_some(&x[whole..], 0.0), factor));
                        s.store_some(&mut out[whole..], s.mul(y, s.load_some(&weight[whole..], 0.0)));
                    }
                }
                None => {
                    for from in (0..whole).step_by(S::LANES) {
                        s.store(&mut out[from..], s.mul(s.load(&x[from..]), factor));
                    }
                    if whole < x.len() {
                        s.store_some(&mut out[whole..], s.mul(s.load_some(&x[whole..], 0.0), factor));
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn sum_of_squares<S: Arithmetic, T: Element>(s: S, x: &[T]) -> f32 {
    let mut sums = [s.zero(); 4];
    let mut blocks = x.chunks_exact(4 * S::LANES);
    for block in &mut blocks {
        for (i, sum) in sums.iter_mut().enumerate() {
            let x = s.load(&block[i * S::LANES..]);
            *sum = s.mul_add(x, x, *sum);
        }
    }
    let mut vectors = blocks.remainder().chunks_exact(S::LANES);
    for vector in &mut vectors {
        let x = s.load(vector);
        sums[0] = s.mul_add(x, x, sums[0]);
    }
    if !vectors.remainder().is_empty() {
        let x = s.load_some(vectors.remainder(), 0.0);
        sums[1] = s.mul_add(x, x, sums[1]);
    }
    s.sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])))
}
