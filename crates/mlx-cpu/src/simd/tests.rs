//! Each operation on every instruction set, beside plain code.

use super::*;
use crate::{Isa, Kernel};
use half::{bf16, f16};

struct Map<'a>(&'a [f32], fn(f32) -> f64, &'static str);

impl Kernel for Map<'_> {
    /// The largest error in units in the last place, and where.
    type Output = (f64, f32);

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> (f64, f32) {
        let mut worst = (0.0, 0.0);
        for chunk in self.0.chunks(S::LANES) {
            let x = s.load_some(chunk, 0.0);
            let y = match self.2 {
                "exp" => math::exp(s, x),
                _ => tanh(s, x),
            };
            let mut all = [0.0_f32; MAX_LANES];
            s.store_some(&mut all[..chunk.len()], y);
            for (&x, &y) in chunk.iter().zip(&all) {
                let exact = self.1(x);
                let unit = f64::from(f32::from_bits((exact as f32).abs().to_bits() & 0x7f80_0000))
                    .max(f64::from(f32::MIN_POSITIVE))
                    * f64::from(f32::EPSILON);
                let error = (f64::from(y) - exact).abs() / unit;
                if error > worst.0 || error.is_nan() {
                    worst = (error, x);
                }
            }
        }
        worst
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes long there")]
fn functions_are_as_exact_as_documented() {
    let x: Vec<f32> = (-880_000..=880_000).map(|i| i as f32 * 1e-4).collect();
    for isa in Isa::available() {
        for (name, exact, units) in
            [("exp", (|x| f64::from(x).exp()) as fn(f32) -> f64, 2.0), ("tanh", |x| f64::from(x).tanh(), 5.0)]
        {
            let (worst, at) = isa.run(Map(&x, exact, name));
            assert!(worst <= units, "{} {name}: {worst} units at {at}", isa.name());
        }
    }
}

struct Each<'a>(&'a [f32], &'static str, &'a mut [f32]);

impl Kernel for Each<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (from, to) in self.0.chunks(S::LANES).zip(self.2.chunks_mut(S::LANES)) {
            let x = s.load_some(from, 0.0);
            let y = match self.1 {
                "exp" => math::exp(s, x),
                "tanh" => tanh(s, x),
                "bf16" => s.round_bf16(x),
                _ => s.round_f16(x),
            };
            s.store_some(to, y);
        }
    }
}

#[test]
fn functions_at_the_ends() {
    let inf = f32::INFINITY;
    for isa in Isa::available() {
        for (name, cases) in [
            (
                "exp",
                [
                    (inf, inf),
                    (-inf, 0.0),
                    (89.0, inf),
                    (-105.0, 0.0),
                    (0.0, 1.0),
                    (-100.0, (-100_f64).exp() as f32),
                ],
            ),
            ("tanh", [(inf, 1.0), (-inf, -1.0), (100.0, 1.0), (0.0, 0.0), (-50.0, -1.0), (1e-30, 1e-30)]),
        ] {
            let x = cases.map(|(x, _)| x);
            let mut y = [0.0; 6];
            isa.run(Each(&x, name, &mut y));
            for ((x, expected), y) in cases.into_iter().zip(y) {
                assert!(
                    y == expected || (y - expected).abs() < expected.abs() * 1e-2,
                    "{} {name}({x}) = {y}",
                    isa.name()
                );
            }
            let mut y = [0.0];
            isa.run(Each(&[f32::NAN], name, &mut y));
            assert!(y[0].is_nan(), "{} {name}", isa.name());
        }
    }
}

/// An operation, by its name, on pairs of numbers.
struct Pairs<'a>(&'a [(f32, f32)], &'static str, &'a mut [f32]);

impl Kernel for Pairs<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (pairs, to) in self.0.chunks(S::LANES).zip(self.2.chunks_mut(S::LANES)) {
            let (mut a, mut b) = ([0.0_f32; MAX_LANES], [0.0_f32; MAX_LANES]);
            for (i, pair) in pairs.iter().enumerate() {
                (a[i], b[i]) = *pair;
            }
            let (a, b) = (s.load(&a), s.load(&b));
            let y = match self.1 {
                "div" => s.div(a, b),
                "round" => s.round(a),
                "scale" => s.scale(a, b),
                "unless_nan" => s.unless_nan(a, b),
                "where_less" => s.where_less(a, b, s.splat(1.0), s.splat(2.0)),
                "max" => s.max(a, b),
                _ => s.min(a, b),
            };
            s.store_some(to, y);
        }
    }
}

const INFINITY: f32 = f32::INFINITY;
const NAN: f32 = f32::NAN;

/// Two numbers and the result, several times.
type Cases = &'static [(f32, f32, f32)];

/// Operations on two numbers, by name.
const OPERATIONS: [(&str, Cases); 7] = [
    // The first three are off by one unit where the inverse is rounded too.
    (
        "div",
        &[
            (5.0, 3.0, 5.0 / 3.0),
            (-7.0, 49.0, -1.0 / 7.0),
            (9.0, 11.0, 9.0 / 11.0),
            (1.0, 0.0, INFINITY),
            (-6.0, 2.0, -3.0),
            (0.0, 0.0, NAN),
        ],
    ),
    (
        "round",
        &[
            (0.5, 0.0, 0.0),
            (1.5, 0.0, 2.0),
            (2.5, 0.0, 2.0),
            (-0.5, 0.0, 0.0),
            (-1.5, 0.0, -2.0),
            (-2.5, 0.0, -2.0),
            (0.499_999_97, 0.0, 0.0),
            (-2.75, 0.0, -3.0),
            (3.25, 0.0, 3.0),
            (8_388_607.5, 0.0, 8_388_608.0),
            (-2e9, 0.0, -2e9),
        ],
    ),
    (
        "scale",
        &[
            (1.5, 0.0, 1.5),
            (-1.5, 3.0, -12.0),
            (3.0, -2.0, 0.75),
            (1.0, 127.0, f32::from_bits(254 << 23)),
            (1.0, -126.0, f32::MIN_POSITIVE),
            (0.75, -126.0, f32::from_bits(0x60_0000)),
            (2.0, 127.0, INFINITY),
            (0.0, 5.0, 0.0),
            (-INFINITY, -5.0, -INFINITY),
        ],
    ),
    (
        "unless_nan",
        &[(1.0, 2.0, 2.0), (NAN, 2.0, NAN), (0.0, NAN, NAN), (INFINITY, -3.0, -3.0), (-NAN, 5.0, NAN)],
    ),
    (
        "where_less",
        &[
            (1.0, 2.0, 1.0),
            (2.0, 1.0, 2.0),
            (2.0, 2.0, 2.0),
            (-0.0, 0.0, 2.0),
            (NAN, 1.0, 2.0),
            (1.0, NAN, 2.0),
            (-INFINITY, INFINITY, 1.0),
            (-2.0, -1.0, 1.0),
            (INFINITY, INFINITY, 2.0),
        ],
    ),
    (
        "max",
        &[
            (1.0, 2.0, 2.0),
            (2.0, 1.0, 2.0),
            (-INFINITY, -5.0, -5.0),
            (-1.0, -2.0, -1.0),
            (INFINITY, 3.0, INFINITY),
        ],
    ),
    (
        "min",
        &[
            (1.0, 2.0, 1.0),
            (2.0, 1.0, 1.0),
            (INFINITY, 5.0, 5.0),
            (-1.0, -2.0, -2.0),
            (3.0, -INFINITY, -INFINITY),
        ],
    ),
];

#[test]
fn operations_on_two_numbers_are_as_described() {
    for isa in Isa::available() {
        for (name, cases) in OPERATIONS {
            let pairs: Vec<_> = cases.iter().map(|&(a, b, _)| (a, b)).collect();
            let mut y = vec![0.0; pairs.len()];
            isa.run(Pairs(&pairs, name, &mut y));
            for (&(a, b, expected), y) in cases.iter().zip(y) {
                let same = y == expected || y.is_nan() && expected.is_nan();
                assert!(same, "{} {name} of {a} and {b} is {y}, expected {expected}", isa.name());
            }
        }
    }
}

struct All<'a>(&'a [f32]);

impl Kernel for All<'_> {
    /// The largest and the sum.
    type Output = (f32, f32);

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> (f32, f32) {
        let x = s.load(self.0);
        (s.largest(x), s.sum(x))
    }
}

#[test]
fn the_largest_and_the_sum_are_of_all_lanes() {
    for isa in Isa::available() {
        for lane in 0..isa.lanes() {
            let mut x = [-3.0; MAX_LANES];
            x[lane] = 2.0;
            let expected = (2.0, 2.0 - 3.0 * (isa.lanes() as f32 - 1.0));
            assert_eq!(isa.run(All(&x)), expected, "{} lane {lane}", isa.name());
        }
    }
}

/// Numbers in the opposite order.
struct Reversed<'a>(&'a [f32], &'a mut [f32]);

impl Kernel for Reversed<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let places: [u32; MAX_LANES] = std::array::from_fn(|lane| S::LANES.saturating_sub(lane + 1) as u32);
        assert!(self.0.len() >= S::LANES);
        // SAFETY: no instruction set has more than `MAX_LANES` lanes, and `LANES` numbers are there.
        let y = unsafe { s.permute(self.0.as_ptr(), s.bits(s.load_f32(places.as_ptr().cast()))) };
        s.store(self.1, y);
    }
}

#[test]
fn numbers_are_permuted() {
    let x: [f32; MAX_LANES] = std::array::from_fn(|i| i as f32);
    for isa in Isa::available() {
        let mut y = vec![-1.0; isa.lanes()];
        isa.run(Reversed(&x, &mut y));
        let expected: Vec<_> = x[..isa.lanes()].iter().rev().copied().collect();
        assert_eq!(y, expected, "{}", isa.name());
    }
}

/// The products of codes of `BITS` bits and bytes with a sign: for each lane their sum, and then 256 times the sum.
struct Bytes<'a, const BITS: usize>(&'a [u8; 64], &'a [i8; 64], &'a mut Vec<i32>);

impl<const BITS: usize> Kernel for Bytes<'_, BITS> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if const { !S::MULTIPLIES_BYTES } {
            return;
        }
        // SAFETY: no vector has more than 64 bytes.
        let (words, x) = unsafe { (s.load_f32(self.0.as_ptr().cast()), s.load_f32(self.1.as_ptr().cast())) };
        let mut sums = s.bits(s.zero());
        for field in 0..8 / BITS {
            sums = s.dot_bytes(s.field8::<BITS>(s.bits(words), field), s.bits(x), sums);
        }
        for sums in [sums, s.times_256(sums)] {
            let mut all = [0_i32; MAX_LANES];
            // SAFETY: no vector has more than 64 bytes.
            unsafe { s.store_bits(all.as_mut_ptr().cast(), sums) };
            self.2.extend(&all[..S::LANES]);
        }
    }
}

#[test]
fn products_of_bytes_are_summed_in_fours() {
    let codes: [u8; 64] = std::array::from_fn(|i| [255, 0x1b, 128, 0, 0xe4][i % 5]);
    let x: [i8; 64] = std::array::from_fn(|i| [127, -128, -1, 77, 0, -128, 3][i % 7]);
    for isa in Isa::available().filter(|isa| !matches!(isa, Isa::Avx2 | Isa::Neon)) {
        for bits in [2, 4, 8] {
            let mut y = Vec::new();
            match bits {
                2 => isa.run(Bytes::<2>(&codes, &x, &mut y)),
                4 => isa.run(Bytes::<4>(&codes, &x, &mut y)),
                _ => isa.run(Bytes::<8>(&codes, &x, &mut y)),
            }
            let product = |(code, x): (&u8, &i8)| {
                let fields =
                    (0..8 / bits).map(|field| i32::from(*code) >> (field * bits) & ((1 << bits) - 1));
                i32::from(*x) * fields.sum::<i32>()
            };
            let sums: Vec<i32> = codes
                .chunks_exact(4)
                .zip(x.chunks_exact(4))
                .map(|(codes, x)| codes.iter().zip(x).map(product).sum())
                .take(isa.lanes())
                .collect();
            let expected: Vec<i32> = sums.iter().copied().chain(sums.iter().map(|sum| sum * 256)).collect();
            assert_eq!(y, expected, "{} {bits}", isa.name());
        }
    }
}

struct Sums<'a>(&'a [f32], &'a mut Vec<f32>);

impl Kernel for Sums<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut vectors = [s.zero(); MAX_LANES];
        for (vector, from) in vectors.iter_mut().zip(self.0.chunks_exact(S::LANES)) {
            *vector = s.load(from);
        }
        self.1.resize(S::LANES, 0.0);
        s.store(self.1, s.sums(&vectors));
    }
}

#[test]
fn sums_of_vectors_are_in_the_order_of_the_vectors() {
    // Small whole numbers: exact in any order.
    let x: Vec<f32> = (0..256).map(|i| ((i * i) % 211) as f32).collect();
    for isa in Isa::available() {
        let mut y = Vec::new();
        isa.run(Sums(&x, &mut y));
        let expected: Vec<f32> =
            x.chunks_exact(isa.lanes()).map(|x| x.iter().sum()).take(isa.lanes()).collect();
        assert_eq!(y, expected, "{}", isa.name());
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes long there")]
fn half_precision_rounds_as_the_half_crate_does() {
    // All the patterns of the upper half, with lower halves around the tie.
    let x: Vec<f32> = (0..=u16::MAX)
        .flat_map(|upper| {
            [0, 1, 0x0fff, 0x1000, 0x1001, 0x7fff, 0x8000, 0x8001, 0xffff]
                .map(|lower| (u32::from(upper) << 16 | lower, ()))
        })
        .map(|(bits, ())| f32::from_bits(bits))
        .collect();
    for isa in Isa::available() {
        let mut y = vec![0.0; x.len()];
        isa.run(Each(&x, "bf16", &mut y));
        for (&x, &y) in x.iter().zip(&y) {
            let expected = bf16::from_f32(x).to_f32();
            assert!(
                expected.to_bits() == y.to_bits() || x.is_nan() && y.is_nan(),
                "{} {x:e}: {y:e} {expected:e}",
                isa.name()
            );
        }
        isa.run(Each(&x, "f16", &mut y));
        for (&x, &y) in x.iter().zip(&y) {
            let expected = f16::from_f32(x).to_f32();
            assert!(
                expected.to_bits() == y.to_bits() || x.is_nan() && y.is_nan(),
                "{} {x:e}: {y:e} {expected:e}",
                isa.name()
            );
        }
    }
}

struct Bits<'a>(&'a [u32; MAX_LANES], &'a [u32; MAX_LANES], &'a mut Vec<u32>);

impl Kernel for Bits<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: no instruction set has more than `MAX_LANES` lanes.
        let [a, b] = [self.0, self.1].map(|x| s.bits(unsafe { s.load_f32(x.as_ptr().cast()) }));
        let shifts = [s.shift_left(a, 0), s.shift_left(a, 5), s.shift_right(a, 0), s.shift_right(a, 13)];
        for x in [s.and(a, b), s.or(a, b), s.splat_bits(0x0f0f_0f0f)].into_iter().chain(shifts) {
            let mut all = [0_u32; MAX_LANES];
            // SAFETY: as above.
            unsafe { s.store_bits(all.as_mut_ptr().cast(), x) };
            self.2.extend(&all[..S::LANES]);
        }
    }
}

#[test]
fn bits_are_combined_and_moved() {
    let a: [u32; MAX_LANES] = std::array::from_fn(|i| 0x9e37_79b9_u32.wrapping_mul(2 * i as u32 + 1));
    let b = a.map(|x| x.rotate_left(7));
    for isa in Isa::available() {
        let mut y = Vec::new();
        isa.run(Bits(&a, &b, &mut y));
        let lanes = isa.lanes();
        let expected = [
            std::array::from_fn(|i| a[i] & b[i]),
            std::array::from_fn(|i| a[i] | b[i]),
            [0x0f0f_0f0f; MAX_LANES],
            a,
            a.map(|x| x << 5),
            a,
            a.map(|x| x >> 13),
        ];
        let expected: Vec<u32> = expected.iter().flat_map(|all| &all[..lanes]).copied().collect();
        assert_eq!(y, expected, "{}", isa.name());
    }
}

/// The sums of groups of `N` lanes of as many vectors as there are lanes.
struct GroupSums<'a, const N: usize>(&'a [i32], &'a mut Vec<i32>);

impl<const N: usize> Kernel for GroupSums<'_, N> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut vectors = [s.bits(s.zero()); MAX_LANES];
        for (vector, from) in vectors.iter_mut().zip(self.0.chunks_exact(S::LANES)) {
            // SAFETY: a chunk of `LANES` numbers of 32 bits; there is no arithmetic with them as floats.
            *vector = s.bits(unsafe { s.load_f32(from.as_ptr().cast()) });
        }
        s.sums_of_groups::<N>(&mut vectors);
        for vector in &vectors[..S::LANES / N] {
            let mut all = [0_i32; MAX_LANES];
            // SAFETY: no vector has more than `MAX_LANES` lanes.
            unsafe { s.store_bits(all.as_mut_ptr().cast(), *vector) };
            self.1.extend(&all[..S::LANES]);
        }
    }
}

#[test]
fn lanes_are_summed_in_groups() {
    let numbers: Vec<i32> =
        (0..256_i32).map(|i| i.wrapping_mul(0x0765_4321) / if i % 3 == 0 { 7 } else { 1 }).collect();
    for isa in Isa::available() {
        let lanes = isa.lanes();
        for n in [2, 4, 8, 16].into_iter().filter(|n| *n <= lanes) {
            let mut sums = Vec::new();
            match n {
                2 => isa.run(GroupSums::<2>(&numbers[..lanes * lanes], &mut sums)),
                4 => isa.run(GroupSums::<4>(&numbers[..lanes * lanes], &mut sums)),
                8 => isa.run(GroupSums::<8>(&numbers[..lanes * lanes], &mut sums)),
                _ => isa.run(GroupSums::<16>(&numbers[..lanes * lanes], &mut sums)),
            }
            let sum = |at: usize| {
                let (group, vector) = (at / lanes, at % lanes);
                let from = &numbers[vector * lanes + group * n..][..n];
                from.iter().fold(0_i32, |sum, x| sum.wrapping_add(*x))
            };
            let expected: Vec<i32> = (0..lanes * lanes / n).map(sum).collect();
            assert_eq!(sums, expected, "{} in groups of {n}", isa.name());
        }
    }
}
