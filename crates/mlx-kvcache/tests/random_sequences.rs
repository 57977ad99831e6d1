//! Random sequences of operations on every layout, compared with attention over the whole history.
//!
//! The reference has no rings and slots. It keeps every token of every row, applies the rule of the mask
//! to each query and key, and computes attention in float64. When a cache trims tokens, the reference
//! forgets them; a cache may return an error only for a trim that its documentation does not promise.
//!
//! `MLX_KVCACHE_SEQUENCES` sets the number of sequences (`cargo xtask random-caches`).
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use approx::abs_diff_eq;
use mlx_attn_masks::AttentionMask;
use mlx_kvcache::{CacheError, Full, KvCache, ModelCache, Quantization, Ring, SavedCache};
use mlx_rs::ops::{dequantize, quantize};
use mlx_rs::{Array, Dtype};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

const HEAD_DIM: i32 = 32;
const SCALE: f32 = 0.25;
/// The cap of soft-capped scores, which many scores reach.
const CAP: f32 = 0.5;

/// The settings of one layer's cache, and its heads and dtype.
#[derive(Debug, Clone, Copy)]
struct Layer {
    kind: Kind,
    /// Bits of keys and values, in groups of 32.
    bits: Option<i32>,
    heads: i32,
    /// Query heads that share a key-value head.
    group: i32,
    dtype: Dtype,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Full { window: Option<i32> },
    Ring { max_size: i32, keep: i32, rewind: i32 },
}

impl Layer {
    fn cache(&self, padding: &[i32]) -> KvCache {
        let mut cache = match self.kind {
            Kind::Full { window: None } => KvCache::new(Full::new()),
            Kind::Full { window: Some(window) } => KvCache::new(Full::new().with_window(window).unwrap()),
            Kind::Ring { max_size, keep, rewind } => {
                let ring = Ring::new(max_size).unwrap().with_keep(keep).unwrap();
                KvCache::new(ring).with_rewind(rewind).unwrap()
            }
        };
        if !padding.is_empty() {
            cache = cache.with_left_padding(padding).unwrap();
        }
        if let Some(bits) = self.bits {
            cache.quantize(Quantization::affine(bits, 32).unwrap()).unwrap();
        }
        cache
    }

    fn sees(&self, i: i32, j: i32) -> bool {
        let near = |window| i64::from(i - j) < i64::from(window);
        j <= i
            && match self.kind {
                Kind::Full { window } => window.is_none_or(near),
                Kind::Ring { max_size, keep, .. } => j < keep || near(max_size - keep),
            }
    }

    fn tolerance(&self) -> f64 {
        match self.dtype {
            Dtype::Float32 => 2e-5,
            Dtype::Float16 => 2e-2,
            _ => 1e-1,
        }
    }
}

/// A token of one row: keys and values of every head, rounded as the cache rounds them.
#[derive(Debug, Clone)]
struct Token {
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// All tokens of a layer.
#[derive(Debug, Clone)]
struct History {
    layer: Layer,
    rows: Vec<Row>,
}

#[derive(Debug, Clone)]
struct Row {
    padding: i32,
    /// One token for each step, padding included.
    tokens: Vec<Token>,
}

/// A cache, and the history that it should agree with.
#[derive(Debug, Clone)]
struct World {
    cache: ModelCache,
    layers: Vec<History>,
    /// The number of steps.
    steps: i32,
    /// A trim back to this step or a later one must succeed.
    floor: i32,
    seed: u32,
}

#[derive(Debug, Clone)]
enum Operation {
    Append(i32),
    Trim(i32),
    Snapshot,
    Restore,
    SaveLoad,
    Quantize(i32),
    Filter(Vec<u8>),
    Row(u8),
    Merge(Vec<i32>),
}

/// Pseudo-random numbers, the same in every run.
fn noise(seed: &mut u32, count: i32) -> Vec<f32> {
    let next = |_| {
        *seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (*seed >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(next).collect()
}

/// `[B, H, L, D]` of pseudo-random numbers in the dtype.
fn random(seed: &mut u32, shape: [i32; 4], dtype: Dtype) -> Array {
    let values = noise(seed, shape.iter().product());
    Array::from_slice(&values, &shape).as_dtype(dtype).unwrap()
}

fn floats(array: &Array) -> Vec<f32> {
    array.as_dtype(Dtype::Float32).unwrap().contiguous().unwrap().as_slice::<f32>().to_vec()
}

/// Keys or values after they were quantized and dequantized.
fn rounded(x: &Array, bits: Option<i32>) -> Array {
    let Some(bits) = bits else { return x.clone() };
    let (packed, scales, biases) = quantize(x, 32, bits).unwrap();
    dequantize(&packed, &scales, &biases, 32, bits).unwrap()
}

impl History {
    /// Adds the tokens of `[B, H, L, D]`, row by row.
    fn push(&mut self, keys: &Array, values: &Array) {
        let &[_, heads, length, dim] = keys.shape() else { panic!() };
        let (keys, values) = (floats(keys), floats(values));
        let (heads, length, dim) = (heads as usize, length as usize, dim as usize);
        for (b, row) in self.rows.iter_mut().enumerate() {
            for t in 0..length {
                let cut = |x: &[f32]| -> Vec<f32> {
                    let head = |h: usize| ((b * heads + h) * length + t) * dim;
                    (0..heads).flat_map(|h| x[head(h)..head(h) + dim].to_vec()).collect()
                };
                row.tokens.push(Token { keys: cut(&keys), values: cut(&values) });
            }
        }
    }

    fn quantize(&mut self, bits: i32) {
        if self.layer.bits.is_some() {
            return;
        }
        self.layer.bits = Some(bits);
        // Steps before a row was merged into the batch have no token of it.
        let tokens = self.rows.iter_mut().flat_map(|row| &mut row.tokens);
        for token in tokens.filter(|token| !token.keys.is_empty()) {
            for numbers in [&mut token.keys, &mut token.values] {
                let dense = Array::from_slice(numbers, &[self.layer.heads, HEAD_DIM]);
                *numbers = floats(&rounded(&dense.as_dtype(self.layer.dtype).unwrap(), Some(bits)));
            }
        }
    }

    /// Attention of the newest `length` queries in float64: row, query head, query, feature. `None` for queries at
    /// padding.
    fn attention(&self, queries: &Array, cap: Option<f32>) -> Vec<Option<Vec<f64>>> {
        let &[_, query_heads, length, dim] = queries.shape() else { panic!() };
        let queries = floats(queries);
        let mut answers = Vec::new();
        for (b, row) in self.rows.iter().enumerate() {
            let end = row.tokens.len() as i32;
            for head in 0..query_heads {
                for t in 0..length {
                    let step = end - length + t;
                    if step < row.padding {
                        answers.push(None);
                        continue;
                    }
                    let at = (((b as i32 * query_heads + head) * length + t) * dim) as usize;
                    let query = &queries[at..at + dim as usize];
                    let head = head / self.layer.group;
                    answers.push(Some(self.attend(row, query, cap, head, step - row.padding)));
                }
            }
        }
        answers
    }

    fn attend(&self, row: &Row, query: &[f32], cap: Option<f32>, head: i32, i: i32) -> Vec<f64> {
        let features = (head * HEAD_DIM) as usize..((head + 1) * HEAD_DIM) as usize;
        let tokens = row.tokens[row.padding as usize..].iter().zip(0..);
        let seen: Vec<&Token> =
            tokens.filter(|&(_, j)| self.layer.sees(i, j)).map(|(token, _)| token).collect();
        let score = |token: &&Token| -> f64 {
            let products = query.iter().zip(&token.keys[features.clone()]);
            let score = products.map(|(&q, &k)| f64::from(q) * f64::from(k)).sum::<f64>() * f64::from(SCALE);
            cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
        };
        let weights: Vec<f64> = seen.iter().map(|token| score(token).exp()).collect();
        let total: f64 = weights.iter().sum();
        let feature = |f: usize| {
            seen.iter().zip(&weights).map(|(token, w)| w / total * f64::from(token.values[f])).sum()
        };
        features.clone().map(feature).collect()
    }
}

impl World {
    fn new(layers: &[Layer], padding: &[i32], rows: usize, seed: u32) -> Self {
        let cache = ModelCache::new(layers.iter().map(|layer| layer.cache(padding)).collect());
        let row = |b: usize| Row { padding: padding.get(b).copied().unwrap_or(0), tokens: Vec::new() };
        let history = |&layer: &Layer| History { layer, rows: (0..rows).map(row).collect() };
        Self { cache, layers: layers.iter().map(history).collect(), steps: 0, floor: 0, seed }
    }

    fn rewind(&self) -> i32 {
        let rewind = |history: &History| match history.layer.kind {
            Kind::Full { .. } => i32::MAX,
            Kind::Ring { rewind, .. } => rewind,
        };
        self.layers.iter().map(rewind).min().unwrap()
    }

    fn rows(&self) -> usize {
        self.layers[0].rows.len()
    }

    fn append(&mut self, length: i32) -> Result<(), TestCaseError> {
        let batch = self.rows() as i32;
        let masks = self.cache.masks(length).unwrap();
        for ((history, cache), mask) in self.layers.iter_mut().zip(self.cache.layers_mut()).zip(&masks) {
            let Layer { heads, group, dtype, bits, .. } = history.layer;
            let shape = [batch, heads, length, HEAD_DIM];
            let keys = random(&mut self.seed, shape, dtype);
            let values = random(&mut self.seed, shape, dtype);
            let queries = random(&mut self.seed, [batch, heads * group, length, HEAD_DIM], dtype);
            history.push(&rounded(&keys, bits), &rounded(&values, bits));

            let read = cache.append(&keys, &values).unwrap();
            let plain = read.attention(&queries, SCALE, mask).unwrap();
            check_attention(&plain, &queries, None, history, mask)?;
            let capped = read.softcapped_attention(&queries, SCALE, CAP, mask).unwrap();
            check_attention(&capped, &queries, Some(CAP), history, mask)?;
            check_smallest(mask, history, length)?;
        }
        self.steps += length;
        self.floor = self.floor.max(self.steps.saturating_sub(self.rewind()));
        Ok(())
    }

    fn trim(&mut self, tokens: i32) -> Result<(), TestCaseError> {
        let before = self.cache.offset();
        let can = self.cache.can_trim(tokens);
        match self.cache.trim(tokens) {
            Ok(gone) => {
                prop_assert_eq!(gone, tokens.min(self.steps));
                prop_assert_eq!(can.unwrap(), gone);
                self.steps -= gone;
                for row in self.layers.iter_mut().flat_map(|history| &mut history.rows) {
                    row.tokens.truncate(self.steps as usize);
                }
                self.floor = self.floor.min(self.steps);
            }
            Err(error) => {
                prop_assert!(matches!(error, CacheError::Trim { .. }), "{error}");
                prop_assert!(self.steps - tokens < self.floor, "{error}, but this trim was promised");
                prop_assert_eq!(self.cache.offset(), before);
            }
        }
        Ok(())
    }

    fn keep_rows(&mut self, rows: &[usize]) {
        let padding = |&row: &usize| self.layers[0].rows[row].padding;
        let later = rows.iter().map(padding).min().unwrap().min(self.steps);
        self.steps -= later;
        self.floor = (self.floor - later).max(0);
        for history in &mut self.layers {
            let kept = |&row: &usize| {
                let mut row = history.rows[row].clone();
                row.padding -= later;
                row.tokens.drain(..later as usize);
                row
            };
            history.rows = rows.iter().map(kept).collect();
        }
    }

    fn merge(&mut self, calls: &[i32]) -> Result<(), TestCaseError> {
        let layers: Vec<Layer> = self.layers.iter().map(|history| history.layer).collect();
        let mut other = World::new(&layers, &[], 1, self.seed ^ 0x5555);
        for &call in calls {
            other.append(call)?;
        }
        self.cache.extend(&other.cache).unwrap();
        let steps = self.steps.max(other.steps);
        let floor = [&*self, &other]
            .map(|world| if world.floor == 0 { 0 } else { world.floor + steps - world.steps });
        for (history, others) in self.layers.iter_mut().zip(other.layers) {
            history.rows.iter_mut().for_each(|row| row.pad(steps - self.steps));
            history.rows.extend(others.rows);
            history.rows.last_mut().unwrap().pad(steps - other.steps);
        }
        self.steps = steps;
        self.floor = floor[0].max(floor[1]);
        Ok(())
    }

    fn check_offsets(&self) -> Result<(), TestCaseError> {
        for (layer, history) in self.cache.layers().iter().zip(&self.layers) {
            prop_assert_eq!(layer.offset(), self.steps);
            let expected: Vec<i32> = history.rows.iter().map(|row| self.steps - row.padding).collect();
            let found = layer.offsets();
            let found = if found.len() == 1 { vec![found[0]; expected.len()] } else { found.to_vec() };
            prop_assert_eq!(found, expected);
        }
        Ok(())
    }
}

impl Row {
    /// Adds `later` steps of padding.
    fn pad(&mut self, later: i32) {
        let nothing = Token { keys: Vec::new(), values: Vec::new() };
        self.tokens.splice(..0, vec![nothing; later as usize]);
        self.padding += later;
    }
}

/// The results of attention are those of the whole history.
fn check_attention(
    found: &Array,
    queries: &Array,
    cap: Option<f32>,
    history: &History,
    mask: &AttentionMask,
) -> Result<(), TestCaseError> {
    let layer = history.layer;
    prop_assert_eq!(found.shape(), queries.shape());
    prop_assert_eq!(found.dtype(), layer.dtype);
    let (found, expected) = (floats(found), history.attention(queries, cap));
    for (n, (found, expected)) in found.chunks(HEAD_DIM as usize).zip(&expected).enumerate() {
        prop_assert!(found.iter().all(|x| x.is_finite()), "{layer:?}, cap {cap:?}: answer {n} is not finite");
        let Some(expected) = expected else { continue };
        for (&found, &expected) in found.iter().zip(expected) {
            prop_assert!(
                abs_diff_eq!(f64::from(found), expected, epsilon = layer.tolerance()),
                "{layer:?}, cap {cap:?}: answer {n} has {found} for {expected}: {mask:?}"
            );
        }
    }
    Ok(())
}

/// Checks that the mask is no array if every query of every row sees every token before it.
fn check_smallest(mask: &AttentionMask, history: &History, length: i32) -> Result<(), TestCaseError> {
    let all = |row: &Row| {
        let end = row.tokens.len() as i32;
        row.padding == 0 && (end - length..end).all(|i| (0..=i).all(|j| history.layer.sees(i, j)))
    };
    if history.rows.iter().all(all) {
        let small = if length == 1 { "None" } else { "Causal" };
        prop_assert_eq!(format!("{mask:?}"), small);
    }
    if let (AttentionMask::Array(array), Kind::Ring { rewind: 0, .. }, 1) = (mask, history.layer.kind, length)
    {
        prop_assert!(array.as_slice::<bool>().contains(&false), "a mask that hides nothing");
    }
    Ok(())
}

fn save_and_load(cache: &ModelCache) -> ModelCache {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cache.safetensors");
    cache.save(&file, "random", &[]).unwrap();
    SavedCache::read(&file).unwrap().into_cache()
}

fn run(
    layers: &[Layer],
    padding: &[i32],
    rows: usize,
    operations: &[Operation],
) -> Result<(), TestCaseError> {
    let mut world = World::new(layers, padding, rows, 7);
    let mut kept: Option<(World, ModelCache)> = None;
    for operation in operations {
        match operation {
            Operation::Append(length) => world.append(*length)?,
            Operation::Trim(tokens) => world.trim(*tokens)?,
            Operation::Snapshot => kept = Some((world.clone(), world.cache.clone())),
            Operation::Restore => {
                if let Some((then, snapshot)) = &kept {
                    world = World { cache: snapshot.clone(), ..then.clone() };
                }
            }
            Operation::SaveLoad => world.cache = save_and_load(&world.cache),
            Operation::Quantize(bits) => {
                let other = world.layers.iter().any(|history| history.layer.bits.is_some_and(|b| b != *bits));
                let quantized = world.cache.quantize(Quantization::affine(*bits, 32).unwrap());
                if other {
                    let refused = matches!(quantized, Err(CacheError::Quantized { .. }));
                    prop_assert!(refused);
                } else {
                    quantized.unwrap();
                    world.layers.iter_mut().for_each(|history| history.quantize(*bits));
                }
            }
            Operation::Filter(rows) => {
                let rows: Vec<usize> = rows.iter().map(|&row| usize::from(row) % world.rows()).collect();
                // Rows that were not made as a batch are not known before their first tokens.
                if world.steps > 0 || !padding.is_empty() {
                    world.cache.filter(&rows).unwrap();
                    world.keep_rows(&rows);
                }
            }
            Operation::Row(row) => {
                let row = usize::from(*row) % world.rows();
                if world.steps > 0 {
                    world.cache = world.cache.row(row).unwrap();
                    world.keep_rows(&[row]);
                }
            }
            Operation::Merge(calls) => {
                if world.rows() < 4 && world.steps > 0 {
                    world.merge(calls)?;
                }
            }
        }
        world.check_offsets()?;
    }
    // The cache can be used after any sequence of operations.
    world.append(1)?;
    world.append(3)?;
    world.append(1)
}

fn layer() -> impl Strategy<Value = Layer> {
    let full = prop::option::of(1_i32..20).prop_map(|window| Kind::Full { window });
    let ring = (1_i32..20, 0_i32..6, prop_oneof![2 => Just(0), 3 => 1_i32..9])
        .prop_map(|(window, keep, rewind)| Kind::Ring { max_size: window + keep, keep, rewind });
    let dtype = prop_oneof![6 => Just(Dtype::Float32), 1 => Just(Dtype::Bfloat16), 1 => Just(Dtype::Float16)];
    let bits = prop_oneof![
        6 => Just(None),
        2 => Just(Some(8)),
        2 => Just(Some(4)),
        1 => prop_oneof![Just(Some(2)), Just(Some(3)), Just(Some(5)), Just(Some(6))],
    ];
    (prop_oneof![1 => full, 3 => ring], bits, 1_i32..3, 1_i32..3, dtype)
        .prop_map(|(kind, bits, heads, group, dtype)| Layer { kind, bits, heads, group, dtype })
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        8 => Just(Operation::Append(1)),
        6 => (2_i32..9).prop_map(Operation::Append),
        2 => (9_i32..60).prop_map(Operation::Append),
        5 => (0_i32..10).prop_map(Operation::Trim),
        1 => (10_i32..80).prop_map(Operation::Trim),
        1 => Just(Operation::Snapshot),
        1 => Just(Operation::Restore),
        1 => Just(Operation::SaveLoad),
        1 => prop_oneof![Just(4), Just(8)].prop_map(Operation::Quantize),
        1 => prop::collection::vec(any::<u8>(), 1..4).prop_map(Operation::Filter),
        1 => any::<u8>().prop_map(Operation::Row),
        2 => prop::collection::vec(1_i32..30, 0..4).prop_map(Operation::Merge),
    ]
}

/// One or two rows without padding, or several rows of which one has no padding.
fn batch() -> impl Strategy<Value = (Vec<i32>, usize)> {
    let padded = prop::collection::vec(0_i32..12, 1..3).prop_flat_map(|padding| {
        (0..=padding.len()).prop_map(move |longest| {
            let mut padding = padding.clone();
            padding.insert(longest, 0);
            let rows = padding.len();
            (padding, rows)
        })
    });
    prop_oneof![3 => Just((Vec::new(), 1)), 1 => Just((Vec::new(), 2)), 2 => padded]
}

fn sequences() -> u32 {
    std::env::var("MLX_KVCACHE_SEQUENCES").ok().and_then(|count| count.parse().ok()).unwrap_or(100)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: sequences(), failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn every_sequence_attends_as_the_rule_says(
        layers in prop::collection::vec(layer(), 1..3),
        (padding, rows) in batch(),
        operations in prop::collection::vec(operation(), 1..24),
    ) {
        run(&layers, &padding, rows, &operations)?;
    }
}
