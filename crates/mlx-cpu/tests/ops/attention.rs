//! The kernels of `attention`, compared with MLX's results and with float64.

use approx::abs_diff_eq;
use half::bf16;
use mlx_cpu::{Cpu, Heads, Isa, Mask, QuantizedHeads, Scores, View, ViewMut, attention};
use proptest::prelude::*;

use crate::fixture::Fixture;
use crate::quantized::{Memory, Mode, modes};
use crate::support::{Format, assert_near, assert_same, cpus, each_format, few, random, same, unit};

fn four(shape: Vec<usize>) -> [usize; 4] {
    shape.try_into().unwrap()
}

fn as_mlx<T: Format>() {
    let fixture = Fixture::open("attentions.safetensors");
    for case in fixture.cases(&format!("{}_", T::NAME)) {
        let tensor = |name: &str| (fixture.floats::<T>(&case, name), four(fixture.shape(&case, name)));
        let ((q, q_shape), (k, k_shape), (v, v_shape)) = (tensor("q"), tensor("k"), tensor("v"));
        let [batch, heads, length, _] = q_shape;
        let count = k_shape[2];
        let seen = fixture.bools(&case, "seen");
        let (added, added_shape) = tensor("addend");
        let sinks = fixture.floats::<T>(&case, "sinks");
        let shape = [batch, heads, length, count];
        let masks = [
            ("none", Mask::None),
            ("causal", Mask::Causal),
            ("bool", Mask::Bool(View::new(&seen, shape, [0, 0, count, 1]))),
            ("added", Mask::Additive(View::contiguous(&added, added_shape))),
        ];
        let scale = fixture.number(&case, "scale").unwrap();
        let cap = fixture.number(&case, "cap").unwrap();
        for (name, mask) in masks {
            for (kind, with_sinks, softcap) in
                [("", false, None), ("_sinks", true, None), ("_capped", false, Some(cap))]
            {
                let expected = fixture.floats::<T>(&case, &format!("{name}{kind}"));
                for cpu in cpus() {
                    let mut out = vec![T::default(); expected.len()];
                    attention(
                        cpu,
                        View::contiguous(&q, q_shape),
                        View::contiguous(&k, k_shape),
                        View::contiguous(&v, v_shape),
                        Scores { scale, softcap },
                        mask,
                        with_sinks.then_some(&sinks[..]),
                        ViewMut::contiguous(&mut out, [batch, heads, length, v_shape[3]]),
                    );
                    let what = format!("{case} {name}{kind} {cpu:?}");
                    if T::DIGITS == 23 {
                        // Sums of numbers with both signs: the error is relative to their absolute values, about 1.
                        for (i, (a, b)) in out.iter().zip(&expected).enumerate() {
                            let is_near = abs_diff_eq!(a.widen(), b.widen(), epsilon = 1e-6);
                            assert!(is_near, "{what} {i}: {a:?} {b:?}");
                        }
                    } else {
                        // Few results differ: where the order of a sum changed the rounding of a score.
                        let unit = 2_f32.powi(1 - T::DIGITS);
                        let far = |(a, b): &(&T, &T)| (a.widen() - b.widen()).abs() > unit;
                        assert_eq!(out.iter().zip(&expected).find(far), None, "{what}");
                        let others = out.iter().zip(&expected).filter(|(a, b)| !same(**a, **b)).count();
                        assert!(others * 40 <= out.len(), "{what}: {others} of {} differ", out.len());
                    }
                }
            }
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes long there")]
fn matches_mlx() {
    each_format!(as_mlx());
}

#[derive(Debug, Clone)]
struct Case {
    batch: usize,
    shared_heads: usize,
    group: usize,
    length: usize,
    count: usize,
    size: usize,
    out_size: usize,
    gap: usize,
    mask: Kind,
    sinks: bool,
    softcap: Option<f32>,
    /// The modes of keys and of values, if they are quantized.
    modes: Option<[Mode; 2]>,
    seed: u64,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    None,
    Causal,
    /// A window of this many keys, as a table that heads share.
    Window(usize),
    /// A random table for each head, in which some queries see no key.
    Bool,
    Additive,
}

/// The tensors of a call.
struct Tensors<T> {
    q: Vec<T>,
    k: Vec<T>,
    v: Vec<T>,
    quantized: Option<[Memory<T>; 2]>,
    seen: Vec<bool>,
    added: Vec<T>,
    sinks: Vec<T>,
}

impl Case {
    fn heads(&self) -> usize {
        self.shared_heads * self.group
    }

    fn tensors<T: Format>(&self) -> Tensors<T> {
        let all = self.batch * self.heads() * self.length * self.count;
        let last = self.count as isize - self.length as isize;
        let noise = random::<f32>(self.seed + 9, all + 1);
        let seen = (0..all)
            .map(|at| {
                let (row, key) = (at / self.count.max(1) % self.length, (at % self.count.max(1)) as isize);
                let own = row as isize + last;
                match self.mask {
                    Kind::Window(window) => key <= own && own - key < window as isize,
                    _ => row % 5 != 3 && noise[at] > 0.3,
                }
            })
            .collect();
        Tensors {
            q: random(self.seed, self.batch * self.length * (self.heads() * self.size + self.gap) + 1),
            k: random(
                self.seed + 1,
                self.batch * self.shared_heads * (self.count * self.size + self.gap) + 1,
            ),
            v: random(
                self.seed + 2,
                self.batch * self.shared_heads * (self.count * self.out_size + self.gap) + 1,
            ),
            quantized: self.modes.map(|[keys, values]| {
                let heads = self.batch * self.shared_heads;
                [
                    Memory::new(keys, heads, self.count, self.size, self.seed + 1),
                    Memory::new(values, heads, self.count, self.out_size, self.seed + 5),
                ]
            }),
            seen,
            added: random(self.seed + 3, all + 1),
            sinks: random(self.seed + 4, self.heads()),
        }
    }

    fn run<T: Format>(&self, cpu: &Cpu, t: &Tensors<T>) -> Vec<T> {
        let Self { batch, shared_heads, count, gap, .. } = *self;
        if let Some([k, v]) = &t.quantized {
            let (k, v) = (k.matrices(count), v.matrices(count));
            return self.with(cpu, t, QuantizedHeads::new(&k, batch), QuantizedHeads::new(&v, batch));
        }
        let cached = |data, size: usize| {
            let all = count * size + gap;
            View::new(data, [batch, shared_heads, count, size], [shared_heads * all, all, size, 1])
        };
        self.with(cpu, t, cached(&t.k, self.size), cached(&t.v, self.out_size))
    }

    /// Queries and results have the layout of projections, keys and values that of caches.
    fn with<T: Format, H: Heads<T>>(&self, cpu: &Cpu, t: &Tensors<T>, keys: H, values: H) -> Vec<T> {
        let Self { batch, length, count, size, out_size, gap, .. } = *self;
        let heads = self.heads();
        let width = heads * size + gap;
        let q = View::new(&t.q, [batch, heads, length, size], [length * width, size, width, 1]);
        let shape = [batch, heads, length, count];
        let mask = match self.mask {
            Kind::None => Mask::None,
            Kind::Causal => Mask::Causal,
            Kind::Window(_) => Mask::Bool(View::new(&t.seen, shape, [0, 0, count, 1])),
            Kind::Bool => Mask::Bool(View::contiguous(&t.seen, shape)),
            Kind::Additive => Mask::Additive(View::contiguous(&t.added, shape)),
        };
        let mut out = vec![T::narrow(7.0); batch * length * heads * out_size];
        attention(
            cpu,
            q,
            keys,
            values,
            Scores { scale: 0.7, softcap: self.softcap },
            mask,
            self.sinks.then_some(&t.sinks[..]),
            ViewMut::new(
                &mut out,
                [batch, heads, length, out_size],
                [length * heads * out_size, out_size, heads * out_size, 1],
            ),
        );
        out
    }

    /// The results in float64, each with the error that is allowed.
    fn exact<T: Format>(&self, t: &Tensors<T>) -> Vec<(f64, f64)> {
        let Self { batch, shared_heads, group, length, count, size, out_size, gap, .. } = *self;
        let heads = self.heads();
        let wide = |x: &[T], at: usize| f64::from(x[at].widen());
        let elements = self.quantized_elements(t);
        // An element, and the sum of the absolute values of its summands.
        let element = |which: usize, head: usize, j: usize, d: usize| match &elements {
            Some(both) => both[which][(head * count + j) * [size, out_size][which] + d],
            None => {
                let (x, size) = if which == 0 { (&t.k, size) } else { (&t.v, out_size) };
                let x = wide(x, head * (count * size + gap) + j * size + d);
                (x, x.abs())
            }
        };
        let ulp = 2_f64.powi(-T::DIGITS);
        let mut all = vec![(0.0, 0.0); batch * length * heads * out_size];
        for b in 0..batch {
            for h in 0..heads {
                let shared = b * shared_heads + h / group;
                for i in 0..length {
                    let (mut scores, mut error) = (Vec::new(), 0.0_f64);
                    for j in 0..count {
                        let (mut sum, mut large) = (0.0, 0.0);
                        for d in 0..size {
                            let q = wide(&t.q, (b * length + i) * (heads * size + gap) + h * size + d);
                            let (k, parts) = element(0, shared, j, d);
                            sum += 0.7 * q * k;
                            large += (0.7 * q).abs() * parts;
                        }
                        let (mut sum, capped) = self.softcapped::<T>(sum);
                        let at = ((b * heads + h) * length + i) * count + j;
                        if matches!(self.mask, Kind::Additive) {
                            sum += wide(&t.added, at);
                            large += wide(&t.added, at).abs();
                        }
                        // Scale, query, score and its sum with the mask are rounded; the exponential is MLX's.
                        error = error.max(large * (2.5 * ulp + size as f64 * 1e-7) + capped + 1e-6);
                        scores.push(if self.is_seen(t, i, j, at) { sum } else { f64::NEG_INFINITY });
                    }
                    if scores.iter().all(|&score| score == f64::NEG_INFINITY) && !self.sinks {
                        scores.fill(0.0);
                    }
                    let sink = if self.sinks { wide(&t.sinks, h) } else { f64::NEG_INFINITY };
                    let top = scores.iter().fold(sink, |a, &b| a.max(b));
                    let sum = scores.iter().map(|x| (x - top).exp()).sum::<f64>() + (sink - top).exp();
                    for d in 0..out_size {
                        let (mut result, mut large) = (0.0, 0.0);
                        for (j, score) in scores.iter().enumerate() {
                            let (v, parts) = element(1, shared, j, d);
                            result += (score - top).exp() / sum * v;
                            large += (score - top).exp() / sum * parts;
                        }
                        let error = large * (2.0 * error.exp_m1() + ulp + count as f64 * 1e-7)
                            + unit::<T>(0.0) * count as f64;
                        all[((b * length + i) * heads + h) * out_size + d] = (result, error);
                    }
                }
            }
        }
        all
    }

    /// A score after the soft cap, if there is one, and the error of this step.
    fn softcapped<T: Format>(&self, score: f64) -> (f64, f64) {
        let Some(cap) = self.softcap.map(f64::from) else { return (score, 0.0) };
        // The cap, the share of it, its tangent and the product are rounded; the tangent is an approximation.
        (cap * (score / cap).tanh(), cap * (2.0 * 2_f64.powi(-T::DIGITS) + 6e-7))
    }

    /// The elements of quantized keys and values, each with the sum of the absolute values of its summands.
    fn quantized_elements<T: Format>(&self, t: &Tensors<T>) -> Option<[Vec<(f64, f64)>; 2]> {
        let Self { batch, shared_heads, count, size, out_size, .. } = *self;
        t.quantized.as_ref().map(|both| {
            [(0, size), (1, out_size)].map(|(which, size)| {
                let at = |at: usize| both[which].element(at / size / count, at / size % count, at % size);
                (0..batch * shared_heads * count * size).map(at).collect::<Vec<_>>()
            })
        })
    }

    /// Whether query `i` of a head sees key `j`; `at` is their place in a mask that has a table for each head.
    fn is_seen<T: Format>(&self, t: &Tensors<T>, i: usize, j: usize, at: usize) -> bool {
        match self.mask {
            Kind::None | Kind::Additive => true,
            Kind::Causal => j + self.length <= i + self.count,
            Kind::Window(_) => t.seen[i * self.count + j],
            Kind::Bool => t.seen[at],
        }
    }
}

fn as_float64<T: Format>(case: &Case) {
    let tensors = case.tensors::<T>();
    let (exact, error): (Vec<_>, Vec<_>) = case.exact(&tensors).into_iter().unzip();
    let mut first: Vec<(Isa, Vec<T>)> = Vec::new();
    for cpu in cpus() {
        let out = case.run(cpu, &tensors);
        let what = format!("{case:?} {cpu:?}");
        assert_near(&out, &exact, |i| error[i], &what);
        match first.iter().find(|(isa, _)| *isa == cpu.isa()) {
            Some((_, first)) => assert_same(&out, first, &what),
            None => first.push((cpu.isa(), out)),
        }
    }
}

/// With all formats; with one under Miri.
fn as_float64_of_some(case: &Case) {
    if cfg!(miri) {
        as_float64::<bf16>(case);
    } else {
        each_format!(as_float64(case));
    }
}

fn caps() -> impl Strategy<Value = Option<f32>> {
    prop_oneof![Just(None), (0.3_f32..50.0).prop_map(Some)]
}

fn kinds() -> impl Strategy<Value = Kind> {
    prop_oneof![
        Just(Kind::None),
        Just(Kind::Causal),
        (1_usize..40).prop_map(Kind::Window),
        Just(Kind::Bool),
        Just(Kind::Additive),
    ]
}

/// A weight of 1e-26 counts; a weight of 4e-31 does not.
#[test]
fn a_score_far_below_the_largest_has_no_weight() {
    for (score, expected) in [(-60.0_f64, 0.5 + (-60.0_f64).exp() * 1e30), (-70.0, 0.5)] {
        let (keys, values) = ([0.0, score as f32], [0.5, 1e30]);
        // As few queries and as many queries.
        for (length, cpu) in
            [1, 20].into_iter().flat_map(|length| cpus().iter().map(move |cpu| (length, cpu)))
        {
            let mut out = vec![0.0_f32; length];
            attention(
                cpu,
                View::contiguous(&vec![1.0; length], [1, 1, length, 1]),
                View::contiguous(&keys, [1, 1, 2, 1]),
                View::contiguous(&values, [1, 1, 2, 1]),
                1.0,
                Mask::None,
                None,
                ViewMut::contiguous(&mut out, [1, 1, length, 1]),
            );
            let error = 1e-4 * (expected - 0.5).abs();
            let near = |x: &f32| abs_diff_eq!(f64::from(*x), expected, epsilon = error);
            assert!(out.iter().all(near), "{score}, {length} queries, {cpu:?}: {out:?}, {expected}");
        }
    }
}

/// Random sizes are below these.
struct Sizes {
    batch: usize,
    group: usize,
    length: usize,
    count: usize,
    size: usize,
    groups: usize,
}

const MOST: Sizes = if cfg!(miri) {
    Sizes { batch: 2, group: 3, length: 20, count: 12, size: 12, groups: 2 }
} else {
    Sizes { batch: 3, group: 6, length: 40, count: 150, size: 40, groups: 3 }
};

proptest! {
    #![proptest_config(few())]

    #[test]
    fn matches_float64(
        (batch, shared_heads, group) in (1_usize..3, 1_usize..3, 1_usize..MOST.group),
        (length, count) in (1_usize..MOST.length, 0_usize..MOST.count),
        (size, out_size, gap) in (1_usize..MOST.size, 1_usize..MOST.size, 0_usize..3),
        mask in kinds(),
        (sinks, softcap) in (any::<bool>(), caps()),
        seed in 0_u64..1000,
    ) {
        let case = Case {
            batch, shared_heads, group, length, count, size, out_size, gap, mask, sinks, softcap, modes: None, seed,
        };
        as_float64_of_some(&case);
    }

    #[test]
    fn with_quantized_keys_and_values_matches_float64(
        (batch, shared_heads, group) in (1_usize..MOST.batch, 1_usize..3, 1_usize..MOST.group),
        (length, count) in (1_usize..MOST.length, 0_usize..MOST.count),
        (keys, values) in (modes(), modes()),
        (key_groups, value_groups) in (1_usize..MOST.groups, 1_usize..MOST.groups),
        mask in kinds(),
        (sinks, softcap) in (any::<bool>(), caps()),
        seed in 0_u64..1000,
    ) {
        let (size, out_size) =
            (keys.bits_and_group().1 * key_groups, values.bits_and_group().1 * value_groups);
        let modes = Some([keys, values]);
        let case = Case {
            batch, shared_heads, group, length, count, size, out_size, gap: 0, mask, sinks, softcap, modes, seed,
        };
        as_float64_of_some(&case);
    }
}

const LARGE: Case = Case {
    batch: 1,
    shared_heads: 1,
    group: if cfg!(miri) { 2 } else { 3 },
    length: 1,
    count: if cfg!(miri) { 20 } else { 700 },
    size: if cfg!(miri) { 11 } else { 72 },
    out_size: if cfg!(miri) { 9 } else { 80 },
    gap: 1,
    mask: Kind::None,
    sinks: false,
    softcap: None,
    modes: None,
    seed: 4,
};

const QUANTIZED: Case = Case {
    size: if cfg!(miri) { 32 } else { 64 },
    out_size: if cfg!(miri) { 32 } else { 96 },
    modes: Some([
        Mode::Affine { bits: 8, group: if cfg!(miri) { 32 } else { 64 } },
        Mode::Affine { bits: 4, group: 32 },
    ]),
    ..LARGE
};

/// Few and many queries, small enough for Miri.
#[test]
fn small_shapes_that_threads_share() {
    for (length, mask) in [(2, Kind::Causal), (17, Kind::Additive)] {
        let size = Case { length, count: 9, size: 5, out_size: 9, ..LARGE };
        each_format!(as_float64(&Case { shared_heads: 2, group: 1, mask, sinks: true, ..size }));
        each_format!(as_float64(&Case { shared_heads: 2, group: 1, mask, softcap: Some(1.5), ..size }));
        let modes = Some([Mode::Nvfp4; 2]);
        let size = Case { length, count: 9, size: 16, out_size: 16, modes, ..LARGE };
        each_format!(as_float64(&Case { shared_heads: 2, group: 1, mask, ..size }));
    }
}

#[test]
fn blocks_of_keys_that_threads_share() {
    let window = if cfg!(miri) { 3 } else { 50 };
    for (length, mask) in
        [(1, Kind::None), (1, Kind::Window(window)), (4, Kind::Causal), (3, Kind::Additive), (2, Kind::Bool)]
    {
        as_float64_of_some(&Case { length, mask, ..LARGE });
        if !cfg!(miri) || matches!(mask, Kind::Window(_) | Kind::Causal) {
            as_float64_of_some(&Case { length, mask, ..QUANTIZED });
        }
    }
    for mask in [Kind::Window(window), Kind::Causal] {
        let capped = Case { length: 3, mask, softcap: Some(1.5), ..LARGE };
        as_float64_of_some(&capped);
        as_float64_of_some(&Case {
            size: QUANTIZED.size,
            out_size: QUANTIZED.out_size,
            modes: QUANTIZED.modes,
            ..capped
        });
    }
    // More groups than one call decodes.
    let modes = Some([Mode::Nvfp4, Mode::Affine { bits: 3, group: 32 }]);
    let (count, size) = if cfg!(miri) { (3, 80) } else { (40, 1040) };
    as_float64_of_some(&Case { count, size, out_size: 2 * size, modes, ..LARGE });
}

#[test]
fn tiles_that_threads_share() {
    let (length, count, window, few) = if cfg!(miri) { (17, 12, 5, 6) } else { (150, 310, 100, 70) };
    for mask in [Kind::None, Kind::Causal, Kind::Window(window), Kind::Bool, Kind::Additive] {
        as_float64_of_some(&Case { length, count, mask, ..LARGE });
        if !cfg!(miri) || matches!(mask, Kind::Causal) {
            as_float64_of_some(&Case { length, count, mask, ..QUANTIZED });
        }
    }
    for mask in [Kind::Window(window), Kind::Causal] {
        as_float64_of_some(&Case { length, count, mask, softcap: Some(1.5), ..LARGE });
    }
    // Queries before the first key see no key.
    as_float64_of_some(&Case { length, count: few, mask: Kind::Causal, ..LARGE });
}

fn nothing_finite<T: Format>() {
    for cpu in cpus() {
        for length in [1, 20] {
            let of = |values: &[f32]| -> Vec<T> { values.iter().map(|&x| T::narrow(x)).collect() };
            let run = |k: &[T], v: &[T], mask| {
                let mut out = vec![T::default(); length];
                attention(
                    cpu,
                    View::new(&of(&[1.0]), [1, 1, length, 1], [0, 0, 0, 1]),
                    View::contiguous(k, [1, 1, k.len(), 1]),
                    View::contiguous(v, [1, 1, v.len(), 1]),
                    1.0,
                    mask,
                    None,
                    ViewMut::contiguous(&mut out, [1, 1, length, 1]),
                );
                out.iter().map(|x| x.widen()).collect::<Vec<_>>()
            };
            let v = of(&[1.0, 2.0, 4.0]);
            for bad in [f32::NAN, f32::INFINITY] {
                assert!(run(&of(&[0.0, bad, 0.0]), &v, Mask::None).iter().all(|x| x.is_nan()), "{cpu:?}");
            }
            // A key that is not seen may have any value.
            let seen = [true, false, true];
            let mask = Mask::Bool(View::new(&seen, [1, 1, length, 3], [0, 0, 0, 1]));
            assert_eq!(run(&of(&[0.0, f32::NAN, 0.0]), &v, mask), vec![2.5; length], "{cpu:?}");
            let one = of(&[0.0, f32::NEG_INFINITY, 0.0]);
            assert_eq!(run(&one, &v, Mask::None), vec![2.5; length], "{cpu:?}");
            let weightless = of(&[f32::NEG_INFINITY; 3]);
            let mask = Mask::Additive(View::new(&weightless, [1, 1, length, 3], [0, 0, 0, 1]));
            assert!(run(&of(&[0.0; 3]), &v, mask).iter().all(|x| x.is_nan()), "{cpu:?}");
            assert_eq!(run(&[], &[], Mask::Causal), vec![0.0; length], "{cpu:?}");
        }
    }
}

/// An infinite score becomes the cap. A NaN stays one, and a key that is not seen may have any value.
fn nothing_finite_capped<T: Format>() {
    let of = |values: &[f32]| -> Vec<T> { values.iter().map(|&x| T::narrow(x)).collect() };
    for (cpu, length) in cpus().iter().flat_map(|cpu| [(cpu, 1), (cpu, 20)]) {
        let run = |keys: [f32; 3], mask| {
            let mut out = vec![T::default(); length];
            attention(
                cpu,
                View::new(&of(&[1.0]), [1, 1, length, 1], [0, 0, 0, 1]),
                View::contiguous(&of(&keys), [1, 1, 3, 1]),
                View::contiguous(&of(&[1.0, 2.0, 4.0]), [1, 1, 3, 1]),
                Scores { scale: 1.0, softcap: Some(2.0) },
                mask,
                None,
                ViewMut::contiguous(&mut out, [1, 1, length, 1]),
            );
            out.iter().map(|x| f64::from(x.widen())).collect::<Vec<_>>()
        };
        let weights = [1.0, 2_f64.exp(), (-2_f64).exp()];
        let expected = (weights[0] + 2.0 * weights[1] + 4.0 * weights[2]) / weights.iter().sum::<f64>();
        for x in run([0.0, f32::INFINITY, f32::NEG_INFINITY], Mask::None) {
            assert!(abs_diff_eq!(x, expected, epsilon = 4.0 * 2_f64.powi(-T::DIGITS)), "{cpu:?}: {x}");
        }
        assert!(run([0.0, f32::NAN, 0.0], Mask::None).iter().all(|x| x.is_nan()), "{cpu:?}");
        let mask = Mask::Bool(View::new(&[true, false, true], [1, 1, length, 3], [0, 0, 0, 1]));
        assert_eq!(run([0.0, f32::NAN, 0.0], mask), vec![2.5; length], "{cpu:?}");
    }
}

#[test]
fn infinities_under_a_soft_cap() {
    each_format!(nothing_finite_capped());
}

#[test]
fn infinities_and_queries_that_see_no_keys() {
    each_format!(nothing_finite());
}

/// A quantized key that is not seen may have any value. A NaN that is seen makes its queries NaN.
fn nothing_finite_quantized<T: Format>() {
    for length in [1, 20] {
        let count = if cfg!(miri) { 33 } else { 300 };
        let case = Case { length, count, mask: Kind::Window(5), ..QUANTIZED };
        let mut tensors = case.tensors::<T>();
        let clean: Vec<_> = cpus().iter().map(|cpu| case.run(cpu, &tensors)).collect();
        let Some([keys, values]) = &mut tensors.quantized else { unreachable!("of keys and values") };
        keys.scales[3] = T::narrow(f32::NAN);
        values.scales[7] = T::narrow(f32::INFINITY);
        for (cpu, clean) in cpus().iter().zip(clean) {
            assert_same(&case.run(cpu, &tensors), &clean, &format!("{cpu:?}"));
            let all = Case { mask: Kind::None, ..case.clone() }.run(cpu, &tensors);
            assert!(all.iter().all(|x| x.widen().is_nan()), "{cpu:?}");
        }
        let none = Case { count: 0, mask: Kind::None, ..case };
        for cpu in cpus() {
            assert!(none.run(cpu, &none.tensors::<T>()).iter().all(|x| x.widen() == 0.0), "{cpu:?}");
        }
    }
}

#[test]
fn infinities_among_quantized_keys_and_queries_that_see_no_keys() {
    if cfg!(miri) {
        nothing_finite_quantized::<bf16>();
    } else {
        each_format!(nothing_finite_quantized());
    }
}

#[test]
#[should_panic(expected = "quantized heads of different shapes")]
fn quantized_heads_have_one_shape() {
    let [a, b] = [3, 4].map(|rows| Memory::<f32>::new(Mode::Mxfp4, 1, rows, 32, 1));
    QuantizedHeads::new(&[a.matrices(3)[0], b.matrices(4)[0]], 1);
}

/// Draft tokens that are checked in one call give the bits that they give one by one, on some of [`cpus`].
fn as_one_by_one<T: Format>(
    cpus: impl Iterator<Item = &'static Cpu>,
    length: usize,
    size: usize,
    quantized: bool,
    softcap: Option<f32>,
) {
    let scores = Scores { scale: 0.3, softcap };
    let (heads, shared, count) = if cfg!(miri) { (2, 1, length + 2) } else { (4, 2, 300) };
    let (q, k, v): (Vec<T>, Vec<T>, Vec<T>) = (
        random(1, heads * length * size),
        random(2, shared * count * size),
        random(3, shared * count * size),
    );
    let sinks: Vec<T> = random(4, heads);
    let [keys, values] = [Mode::Affine { bits: 4, group: 32 }, Mode::Mxfp8]
        .map(|mode| Memory::<T>::new(mode, shared, count, size / 32 * 32, 2));
    for cpu in cpus {
        let run = |first: usize, length: usize, seen: usize, sinks: Option<&[T]>| {
            let mut out = vec![T::default(); heads * length * size];
            let all = q.len() / heads / size;
            let queries = View::new(&q[first * size..], [1, heads, length, size], [0, all * size, size, 1]);
            let to = ViewMut::contiguous(&mut out, [1, heads, length, size]);
            if quantized {
                let (k, v) = (keys.matrices(seen), values.matrices(seen));
                let (k, v) = (QuantizedHeads::new(&k, 1), QuantizedHeads::new(&v, 1));
                attention(cpu, queries, k, v, scores, Mask::Causal, sinks, to);
            } else {
                let cached = |data| View::new(data, [1, shared, seen, size], [0, count * size, size, 1]);
                attention(cpu, queries, cached(&k), cached(&v), scores, Mask::Causal, sinks, to);
            }
            out
        };
        for sinks in [None, Some(&sinks[..])] {
            let together = run(0, length, count, sinks);
            for i in 0..length {
                let alone = run(i, 1, count - length + 1 + i, sinks);
                for head in 0..heads {
                    let ours = &together[(head * length + i) * size..][..size];
                    let what = format!("query {i} of {length} {cpu:?} quantized {quantized} {scores:?}");
                    assert_same(ours, &alone[head * size..][..size], &what);
                }
            }
        }
    }
}

/// One of [`cpus`] for each instruction set: the one with two threads.
fn one_for_each_isa() -> impl Iterator<Item = &'static Cpu> {
    cpus().iter().filter(|cpu| cpu.threads() == 2)
}

#[test]
fn up_to_64_queries_have_the_bits_that_each_has_alone() {
    let (lengths, size, quantized) =
        if cfg!(miri) { (&[2, 5][..], 10, 32) } else { (&[2, 7, 16, 17, 64][..], 40, 64) };
    for (&length, softcap) in lengths.iter().flat_map(|length| [(length, None), (length, Some(2.0))]) {
        if cfg!(miri) {
            as_one_by_one::<bf16>(cpus().iter(), length, size, false, softcap);
            as_one_by_one::<bf16>(cpus().iter(), length, quantized, true, softcap);
        } else {
            each_format!(as_one_by_one(one_for_each_isa(), length, size, false, softcap));
            each_format!(as_one_by_one(one_for_each_isa(), length, quantized, true, softcap));
        }
    }
}

/// With pairs of bfloat16 this holds for any number of queries.
#[test]
fn with_pairs_all_queries_have_the_bits_that_each_has_alone() {
    let pairs = || cpus().iter().filter(|cpu| matches!(cpu.isa(), Isa::Avx512Bf16 | Isa::Amx));
    for (length, size, softcap) in [(65, 2, None), (150, 66, None), (299, 128, Some(2.0)), (130, 40, None)] {
        as_one_by_one::<bf16>(pairs(), length, size, false, softcap);
    }
}
