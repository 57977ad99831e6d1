//! The search for the scales of the groups of a block.
//!
//! For a fixed scale, the best code of a number is the nearest one; for fixed codes, the scale with the least squared error
//! follows from sums over the group (linear regression). The search does both in turn: it tries some scales around the one that
//! the largest number of the group suggests, rounds with each, and keeps the codes and the regression's scale that fit best.
//!
//! The result has to be the same bits everywhere, so the sums are added in a fixed order, number by number. To be fast in spite
//! of it, the groups of a block lie side by side ([`Groups`]): each step does the same to all groups, and the compiler makes
//! vector instructions of it.
//!
//! # Reference
//!
//! ggml, `make_qkx2_quants` and `make_qx_quants` in `ggml-quants.c` (<https://github.com/ggml-org/ggml>): which scales are tried,
//! the weights of the numbers, and the order of the sums.

/// The numbers of the groups of a block: number `i` of group `lane` at `[i][lane]`.
pub(super) type Groups<const N: usize, const LANES: usize> = [[f32; LANES]; N];

/// The groups of a block, whose numbers lie one group behind the other.
pub(super) fn groups<const N: usize, const LANES: usize>(numbers: &[f32]) -> Groups<N, LANES> {
    std::array::from_fn(|i| std::array::from_fn(|lane| numbers[lane * N + i]))
}

/// The nearest integer, ties to even. Numbers beyond 2^22 and those that are not finite give what the bits say: 0 for the
/// latter's common patterns. That happens only in groups whose scale is too small to be stored.
pub(super) fn nearest(x: f32) -> i32 {
    // From 2^23 on, floats are integers: the addition rounds, and the integer lies in the low bits of the sum.
    ((x + 12_582_912.0).to_bits() & 0x7f_ffff) as i32 - 0x40_0000
}

/// Which scales are tried for groups with a minimum.
pub(super) struct Tries {
    /// The last code.
    pub(super) last: f32,
    /// By how much more than `last` codes the first try spreads the numbers.
    pub(super) first: f32,
    /// The number of tries after the first, each with a tenth of a code more.
    pub(super) more: i32,
}

/// Groups whose numbers are about `scale * code - minimum`.
pub(super) struct WithMinimum<const N: usize, const LANES: usize> {
    pub(super) scale: [f32; LANES],
    pub(super) minimum: [f32; LANES],
    pub(super) codes: Groups<N, LANES>,
}

/// The sums over the numbers of each group that do not depend on the codes.
struct Fixed<const N: usize, const LANES: usize> {
    /// The weight of each number: its size plus the root of the group's mean square.
    weights: Groups<N, LANES>,
    weight: [f32; LANES],
    weighted: [f32; LANES],
    /// The smallest number, or zero.
    min: [f32; LANES],
    max: [f32; LANES],
}

impl<const N: usize, const LANES: usize> Fixed<N, LANES> {
    fn new(x: &Groups<N, LANES>) -> Self {
        let mut squares = [0.0; LANES];
        for x in x {
            for lane in 0..LANES {
                squares[lane] += x[lane] * x[lane];
            }
        }
        let mean = squares.map(|sum| (sum / N as f32).sqrt());
        let weights: Groups<N, LANES> =
            std::array::from_fn(|i| std::array::from_fn(|lane| mean[lane] + x[i][lane].abs()));
        let (mut min, mut max, mut weight) = (x[0], x[0], weights[0]);
        let mut weighted = std::array::from_fn(|lane| weight[lane] * x[0][lane]);
        for (x, w) in x.iter().zip(&weights).skip(1) {
            for lane in 0..LANES {
                min[lane] = if x[lane] < min[lane] { x[lane] } else { min[lane] };
                max[lane] = if x[lane] > max[lane] { x[lane] } else { max[lane] };
                weight[lane] += w[lane];
                weighted[lane] += w[lane] * x[lane];
            }
        }
        let min = min.map(|min| if min > 0.0 { 0.0 } else { min });
        Self { weights, weight, weighted, min, max }
    }

    /// The scales and minimums with the least squared error for these codes, and whether there are such.
    fn regression(
        &self,
        x: &Groups<N, LANES>,
        codes: &Groups<N, LANES>,
    ) -> ([f32; LANES], [f32; LANES], [bool; LANES]) {
        let (mut sum, mut squares, mut products) = ([0.0; LANES], [0.0; LANES], [0.0; LANES]);
        for ((x, w), code) in x.iter().zip(&self.weights).zip(codes) {
            for lane in 0..LANES {
                let weighted = w[lane] * code[lane];
                sum[lane] += weighted;
                squares[lane] += weighted * code[lane];
                products[lane] += weighted * x[lane];
            }
        }
        let (mut scale, mut min, mut is_solved) = ([0.0; LANES], [0.0; LANES], [false; LANES]);
        for lane in 0..LANES {
            let (sum, squares, products) = (sum[lane], squares[lane], products[lane]);
            let determinant = self.weight[lane] * squares - sum * sum;
            is_solved[lane] = determinant > 0.0;
            scale[lane] = (self.weight[lane] * products - self.weighted[lane] * sum) / determinant;
            min[lane] = (squares * self.weighted[lane] - sum * products) / determinant;
            if min[lane] > 0.0 {
                (scale[lane], min[lane]) = (products / squares, 0.0);
            }
        }
        (scale, min, is_solved)
    }

    fn error(
        &self,
        x: &Groups<N, LANES>,
        codes: &Groups<N, LANES>,
        scale: &[f32; LANES],
        min: &[f32; LANES],
    ) -> [f32; LANES] {
        let mut error = [0.0; LANES];
        for ((x, w), code) in x.iter().zip(&self.weights).zip(codes) {
            for lane in 0..LANES {
                let off = scale[lane] * code[lane] + min[lane] - x[lane];
                error[lane] += w[lane] * (off * off);
            }
        }
        error
    }
}

/// The nearest codes, where numbers from the minimum on are multiplied by `inverse`.
fn codes_from<const N: usize, const LANES: usize>(
    x: &Groups<N, LANES>,
    min: &[f32; LANES],
    inverse: &[f32; LANES],
    last: f32,
) -> Groups<N, LANES> {
    let mut codes = [[0.0; LANES]; N];
    for (codes, x) in codes.iter_mut().zip(x) {
        for lane in 0..LANES {
            let code = nearest(inverse[lane] * (x[lane] - min[lane]));
            codes[lane] = code.clamp(0, last as i32) as f32;
        }
    }
    codes
}

/// Searches scales and minimums of groups. Each try begins at the best minimum so far. Minimums are at least zero: a group without negative numbers begins at zero.
pub(super) fn with_minimum<const N: usize, const LANES: usize>(
    x: &Groups<N, LANES>,
    tries: &Tries,
) -> WithMinimum<N, LANES> {
    let fixed = Fixed::new(x);
    let mut min = fixed.min;
    let over_width = |codes: f32, min: &[f32; LANES]| -> [f32; LANES] {
        std::array::from_fn(|lane| codes / (fixed.max[lane] - min[lane]))
    };
    let inverse = over_width(tries.last, &min);
    let mut scale = inverse.map(|inverse| 1.0 / inverse);
    let mut codes = codes_from(x, &min, &inverse, tries.last);
    let mut least = fixed.error(x, &codes, &scale, &min);
    for number in 0..=tries.more {
        let spread = tries.first + 0.1 * number as f32 + tries.last;
        let tried = codes_from(x, &min, &over_width(spread, &min), tries.last);
        let (tried_scale, tried_min, is_solved) = fixed.regression(x, &tried);
        let error = fixed.error(x, &tried, &tried_scale, &tried_min);
        let is_better: [bool; LANES] =
            std::array::from_fn(|lane| is_solved[lane] && error[lane] < least[lane]);
        if !is_better.contains(&true) {
            continue;
        }
        choose(&mut codes, &tried, &is_better);
        for lane in (0..LANES).filter(|&lane| is_better[lane]) {
            (scale[lane], min[lane], least[lane]) = (tried_scale[lane], tried_min[lane], error[lane]);
        }
    }
    let is_flat = std::array::from_fn(|lane| fixed.min[lane] == fixed.max[lane]);
    choose(&mut codes, &[[0.0; LANES]; N], &is_flat);
    for lane in (0..LANES).filter(|&lane| is_flat[lane]) {
        (scale[lane], min[lane]) = (0.0, fixed.min[lane]);
    }
    WithMinimum { scale, minimum: min.map(|min| -min), codes }
}

/// Replaces the codes of some groups.
fn choose<const N: usize, const LANES: usize>(
    codes: &mut Groups<N, LANES>,
    others: &Groups<N, LANES>,
    which: &[bool; LANES],
) {
    for (codes, others) in codes.iter_mut().zip(others) {
        for lane in 0..LANES {
            codes[lane] = if which[lane] { others[lane] } else { codes[lane] };
        }
    }
}

/// Groups whose numbers are about `scale * code`.
pub(super) struct Symmetric<const N: usize, const LANES: usize> {
    pub(super) scale: [f32; LANES],
    /// From `-middle` to `middle - 1`.
    pub(super) codes: Groups<N, LANES>,
}

/// The largest number of a group that counts as all zeros.
pub(super) const ALMOST_ZERO: f32 = 1e-15;

/// Searches the scales of groups that have no minimums. A number weighs as much as its square.
pub(super) fn symmetric<const N: usize, const LANES: usize>(
    x: &Groups<N, LANES>,
    middle: f32,
) -> Symmetric<N, LANES> {
    let mut farthest = [0.0_f32; LANES];
    for x in x {
        for lane in 0..LANES {
            farthest[lane] = if x[lane].abs() > farthest[lane].abs() { x[lane] } else { farthest[lane] };
        }
    }
    let mut codes = signed_codes(x, &farthest.map(|farthest| -middle / farthest), middle);
    let (products, squares) = signed_sums(x, &codes);
    let mut scale: [f32; LANES] =
        std::array::from_fn(|lane| if squares[lane] == 0.0 { 0.0 } else { products[lane] / squares[lane] });
    // How much smaller the squared error is than that of zeros.
    let mut best: [f32; LANES] = std::array::from_fn(|lane| scale[lane] * products[lane]);
    for number in (-9..=9).filter(|&number| number != 0) {
        let spread = -(middle + 0.1 * number as f32);
        let tried = signed_codes(x, &farthest.map(|farthest| spread / farthest), middle);
        let (products, squares) = signed_sums(x, &tried);
        let is_better: [bool; LANES] = std::array::from_fn(|lane| {
            squares[lane] > 0.0 && products[lane] * products[lane] > best[lane] * squares[lane]
        });
        if !is_better.contains(&true) {
            continue;
        }
        choose(&mut codes, &tried, &is_better);
        for lane in (0..LANES).filter(|&lane| is_better[lane]) {
            scale[lane] = products[lane] / squares[lane];
            best[lane] = scale[lane] * products[lane];
        }
    }
    let is_zero = farthest.map(|farthest| farthest.abs() < ALMOST_ZERO);
    choose(&mut codes, &[[-middle; LANES]; N], &is_zero);
    for lane in (0..LANES).filter(|&lane| is_zero[lane]) {
        scale[lane] = 0.0;
    }
    Symmetric { scale, codes }
}

fn signed_codes<const N: usize, const LANES: usize>(
    x: &Groups<N, LANES>,
    inverse: &[f32; LANES],
    middle: f32,
) -> Groups<N, LANES> {
    let mut codes = [[0.0; LANES]; N];
    for (codes, x) in codes.iter_mut().zip(x) {
        for lane in 0..LANES {
            let code = nearest(inverse[lane] * x[lane]);
            codes[lane] = code.clamp(-middle as i32, middle as i32 - 1) as f32;
        }
    }
    codes
}

/// The sums of number times code and of code times code, each with the weight of the number.
fn signed_sums<const N: usize, const LANES: usize>(
    x: &Groups<N, LANES>,
    codes: &Groups<N, LANES>,
) -> ([f32; LANES], [f32; LANES]) {
    let (mut products, mut squares) = ([0.0; LANES], [0.0; LANES]);
    for (x, code) in x.iter().zip(codes) {
        for lane in 0..LANES {
            let weight = x[lane] * x[lane];
            products[lane] += weight * x[lane] * code[lane];
            squares[lane] += weight * code[lane] * code[lane];
        }
    }
    (products, squares)
}
