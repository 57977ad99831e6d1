//! Products of matrices with many rows.
//!
//! Both factors are copied into panels, in the order in which the tile kernel reads them, and the loops around the
//! kernel are cut so that it reads from caches (K. Goto and R. van de Geijn, *Anatomy of High-Performance Matrix
//! Multiplication*, ACM TOMS 34(3), 2008). One thing differs: the left factor (activations) is small compared with the
//! right one (weights), and each weight is needed once. So the left factor is packed as a whole, and each task packs a
//! strip of columns of the right one and uses it at once. Packing decodes quantized weights and widens half-precision
//! numbers, except bfloat16 for instructions that multiply it.
//!
//! Every sum runs over the whole depth in one register, in order. How the work is cut changes no result.

use super::bf16::Multiplier;
use super::output::Output;
use super::panels::{Lines, Panels};
use super::scratch::{Purpose, with_scratch};
use super::tile::{Product, Shape, Tile};
use crate::cpu::Shared;
use crate::{Arithmetic, Cpu, Element, Isa, Kernel, Simd};

/// The number of rows of the left factor that are multiplied at a time. Their panels stay in the second- or third-level
/// cache, and packing the right factor again for the next rows costs little.
/// Small for Miri, whose cases are small and must still be cut and shared between threads.
const ROWS: usize = if cfg!(miri) { 16 } else { 1024 };
/// The size of a strip of the right factor, and of the block of the left factor that is used with it, in numbers.
/// Together they take half of a second-level cache of 2 MiB.
const STRIP: usize = if cfg!(miri) { 1 << 9 } else { 128 << 10 };
/// Fewer multiplications than this are done by one thread: about 20 microseconds.
const SMALL: usize = if cfg!(miri) { 1 << 7 } else { 1 << 21 };
/// Fewer numbers of the left factor than this are packed by one thread.
const PACKED: usize = if cfg!(miri) { 1 << 4 } else { 1 << 14 };

/// `out = a b`. The lines of `a` are its rows, and those of `b` its columns.
pub(crate) fn blocked<T: Element>(cpu: &Cpu, a: &dyn Panels, b: &dyn Panels, out: &Output<'_, T>) {
    let (rows, columns, depth) = (a.lines(), b.lines(), a.depth());
    assert_eq!((rows, columns, depth), (out.rows(), out.columns(), b.depth()), "shapes of a product");
    assert_eq!(a.numbers(), b.numbers(), "numbers of a product");
    if rows == 0 || columns == 0 {
        return;
    }
    if depth == 0 {
        return out.put_zeros();
    }
    let shape = Shape::of(cpu.isa(), b.numbers());
    let panels = columns.div_ceil(shape.columns);
    // A multiple of the number of threads, so that all are busy to the end.
    let at_most = (STRIP / (depth * shape.columns)).max(1);
    let threads = if rows * columns * depth < SMALL { 1 } else { cpu.threads() };
    let strips = panels.div_ceil(at_most).next_multiple_of(threads).min(panels);
    let strip = panels.div_ceil(strips);
    let strips = panels.div_ceil(strip);

    for first in (0..rows).step_by(ROWS) {
        let cut = Cut::new(ROWS.min(rows - first), shape);
        with_scratch(Purpose::Left, cut.padded() * depth, |left| {
            let to = Shared(left.as_mut_ptr());
            let pack = |index: usize| {
                let Panel { row, count, width } = cut.panel(index);
                // SAFETY: panels do not overlap, and each is packed by one task.
                let to = unsafe { std::slice::from_raw_parts_mut(to.get().add(row * depth), width * depth) };
                with_scratch(Purpose::Right, a.scratch(shape.columns / 2), |scratch| {
                    let lines = Lines { first: first + row, count, width };
                    a.pack(cpu.isa(), lines, to, scratch);
                });
            };
            if threads == 1 || cut.rows * depth < PACKED {
                (0..cut.count).for_each(pack);
            } else {
                cpu.parallel(cut.count, pack);
            }
            let left = &*left;
            let work = |index: usize| {
                let panels = index * strip..panels.min((index + 1) * strip);
                let length = panels.len() * depth * shape.columns;
                with_scratch(Purpose::Right, length + b.scratch(shape.columns / 2), |right| {
                    let (right, scratch) = right.split_at_mut(length);
                    cpu.run(Strip { isa: cpu.isa(), left, cut, first, b, panels, right, scratch, out });
                });
            };
            if threads == 1 { (0..strips).for_each(work) } else { cpu.parallel(strips, work) }
        });
    }
}

/// Rows, cut into panels of almost the same height.
#[derive(Debug, Clone, Copy)]
struct Cut {
    rows: usize,
    /// The height of a panel is a multiple of this; see [`Shape::unit`].
    unit: usize,
    /// The number of panels.
    count: usize,
}

/// A panel of the left factor.
struct Panel {
    /// The first row.
    row: usize,
    /// The number of rows.
    count: usize,
    /// The number of rows with those that are filled with zeros.
    width: usize,
}

impl Cut {
    /// Panels of equal height, and not full panels and a rest: a low panel has too few sums to keep the multipliers
    /// busy.
    const fn new(rows: usize, shape: Shape) -> Self {
        Self { rows, unit: shape.unit, count: rows.div_ceil(shape.rows) }
    }

    /// The number of rows of all panels, with those that are filled with zeros.
    const fn padded(self) -> usize {
        self.rows.next_multiple_of(self.unit)
    }

    /// Panel number `index`.
    fn panel(self, index: usize) -> Panel {
        let units = self.padded() / self.unit;
        let (height, higher) = (units / self.count, units % self.count);
        let row = (index * height + index.min(higher)) * self.unit;
        let width = (height + usize::from(index < higher)) * self.unit;
        Panel { row, count: width.min(self.rows - row), width }
    }
}

/// One task: the product of all rows of the left factor and some panels of columns.
struct Strip<'a, T> {
    isa: Isa,
    left: &'a [f32],
    cut: Cut,
    /// The row of the output that belongs to the first row of `left`.
    first: usize,
    b: &'a dyn Panels,
    panels: std::ops::Range<usize>,
    right: &'a mut [f32],
    scratch: &'a mut [f32],
    out: &'a Output<'a, T>,
}

impl<T: Element> Kernel for Strip<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (depth, width, columns) = (self.b.depth(), 2 * S::LANES, self.b.lines());
        let numbers = self.b.numbers();
        for (panel, to) in self.panels.clone().zip(self.right.chunks_exact_mut(depth * width)) {
            let first = panel * width;
            let lines = Lines { first, count: width.min(columns - first), width };
            self.b.pack(self.isa, lines, to, self.scratch);
        }
        let mut product = Product([0.0; 32 * 32]);
        let multiplier = Multiplier::of(self.isa, numbers);
        // Blocks of rows that stay in the second-level cache while all panels of columns pass.
        let height = self.cut.rows.div_ceil(self.cut.count);
        let block = (STRIP / (depth * height)).max(1);
        for from in (0..self.cut.count).step_by(block) {
            for (panel, right) in self.panels.clone().zip(self.right.chunks_exact(depth * width)) {
                for index in from..self.cut.count.min(from + block) {
                    let Panel { row, count, width: rows } = self.cut.panel(index);
                    let left = &self.left[row * depth..][..rows * depth];
                    let to = &mut product;
                    match &multiplier {
                        Some(multiplier) => multiplier.multiply(left, right, depth, rows, to),
                        None => self.isa.run(Tile { left, right, depth, numbers, rows, to }),
                    }
                    self.put(s, &product, self.first + row, count, panel * width);
                }
            }
        }
    }
}

impl<T: Element> Strip<'_, T> {
    /// Writes the product of two panels to the output, from (`i`, `j`) on.
    #[inline(always)]
    fn put<S: Arithmetic>(&self, s: S, product: &Product, i: usize, rows: usize, j: usize) {
        let count = self.b.lines() - j;
        for (row, from) in product.0.chunks_exact(2 * S::LANES).take(rows).enumerate() {
            // SAFETY: these rows and columns belong to this task alone.
            unsafe {
                self.out.put(s, i + row, j, count.min(S::LANES), s.load(from));
                if count > S::LANES {
                    let rest = s.load(&from[S::LANES..]);
                    self.out.put(s, i + row, j + S::LANES, (count - S::LANES).min(S::LANES), rest);
                }
            }
        }
    }
}
