//! A complete kernel: the sum of the squares of each row of a matrix, on every instruction set and all threads.
//!
//! `cargo run -p mlx-cpu --example sum_of_squares`

use mlx_cpu::{Cpu, Element, Isa, Kernel, Matrix, Simd};

/// Rows that one task takes.
const ROWS: usize = 4;

/// Writes the sum of the squares of row `i` of `x` to `out[i]`.
///
/// # Panics
///
/// If there is not one number in `out` for each row, or the elements of a row do not follow each other.
fn sum_of_squares<T: Element>(cpu: &Cpu, x: Matrix<'_, T>, out: &mut [f32]) {
    // Check shapes here: the kernel then needs no checks.
    assert_eq!(x.rows(), out.len(), "one sum for each row");
    // Threads share the output. Each sum is computed by one task, so results do not depend on the number of threads.
    cpu.parallel_pieces(out, ROWS, |piece, out| cpu.run(SumOfSquares { x, first: piece * ROWS, out }));
}

/// The arguments of one task.
struct SumOfSquares<'a, T> {
    x: Matrix<'a, T>,
    /// The first row of the task.
    first: usize,
    /// The sums of its rows.
    out: &'a mut [f32],
}

impl<T: Element> Kernel for SumOfSquares<'_, T> {
    type Output = ();

    // Without this the code is compiled without the instructions of `S`.
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (i, out) in self.out.iter_mut().enumerate() {
            let mut sums = s.zero();
            let mut vectors = self.x.row(self.first + i).chunks_exact(S::LANES);
            for vector in &mut vectors {
                // Widened to float32, whatever `T` is.
                let x = s.load(vector);
                sums = s.mul_add(x, x, sums);
            }
            // The last elements do not fill a vector: zeros in the other lanes change no sum.
            let x = s.load_some(vectors.remainder(), 0.0);
            *out = s.sum(s.mul_add(x, x, sums));
        }
    }
}

fn main() {
    // Small whole numbers: their sums are exact in any order, so all instruction sets agree.
    let (rows, columns) = (10, 37);
    let numbers: Vec<f32> = (0..rows * columns).map(|i| (i % 7) as f32).collect();
    let expected: Vec<f32> = numbers.chunks(columns).map(|row| row.iter().map(|x| x * x).sum()).collect();
    for isa in Isa::available() {
        for threads in [1, 2, 3] {
            let mut sums = vec![0.0; rows];
            let cpu = Cpu::new(isa, threads);
            sum_of_squares(&cpu, Matrix::contiguous(&numbers, rows, columns), &mut sums);
            assert_eq!(sums, expected, "{} on {threads} threads", isa.name());
        }
    }
}

#[test]
fn runs() {
    main();
}
