//! The time to append one token to a long cache, compared with mlx-lm: `cargo bench -p mlx-kvcache`.
//!
//! mlx-lm's caches run in a second process, in turns with those of this crate (`xtask/python/bench_caches.py`).
//! `MLX_MODELS_PYTHON` is the path of a Python with mlx-lm, such as the one that `cargo xtask python` prints; without
//! it only this crate is measured.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed benchmark")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion};
use mlx_kvcache::{Full, KvCache, Quantization, Ring};
use mlx_rs::Array;
use mlx_rs::ops::concatenate;

const HEADS: i32 = 4;
const HEAD_DIM: i32 = 64;
const LEFT_PADDING: [i32; 4] = [3, 0, 2, 1];
/// Free slots of a full cache after a prompt of a multiple of 256 tokens and the warm-up.
const FREE_SLOTS: i32 = 200;

/// A name, whether mlx-lm has such a cache, a function that makes it for this many tokens, and its rows.
type Kind = (&'static str, bool, fn(i32) -> KvCache, i32);

const KINDS: [Kind; 9] = [
    ("full", true, |_| KvCache::new(Full::new()), 1),
    ("quantized8", true, |_| KvCache::new(Full::new()).quantized(bits(8)).unwrap(), 1),
    ("quantized4", true, |_| KvCache::new(Full::new()).quantized(bits(4)).unwrap(), 1),
    ("rotating", true, |size| ring(size), 1),
    ("rotating-keep", true, |size| KvCache::new(Ring::new(size).unwrap().with_keep(4).unwrap()), 1),
    ("rotating-rewind", false, |size| ring(size).with_rewind(16).unwrap(), 1),
    ("rotating-quantized8", false, |size| ring(size).quantized(bits(8)).unwrap(), 1),
    ("batch", true, |_| KvCache::new(Full::new()).with_left_padding(&LEFT_PADDING).unwrap(), 4),
    ("batch-rotating", true, |size| ring(size).with_left_padding(&LEFT_PADDING).unwrap(), 4),
];

fn ring(max_size: i32) -> KvCache {
    KvCache::new(Ring::new(max_size).unwrap())
}

fn bits(bits: i32) -> Quantization {
    Quantization::affine(bits, 64).unwrap()
}

/// For each kind and number of tokens, samples of nanoseconds per append: of this crate and of mlx-lm.
type Samples = RefCell<BTreeMap<(usize, i32), [Vec<f64>; 2]>>;

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    let peer = Peer::start().map(RefCell::new);
    let samples = Samples::default();
    for (number, &(name, theirs, cache, rows)) in KINDS.iter().enumerate() {
        let mut group = criterion.benchmark_group(name);
        for tokens in [1024, 4096, 16_384] {
            let keep = |side: usize, elapsed: Duration, iterations: u64| {
                let each = elapsed.as_nanos() as f64 / iterations as f64;
                samples.borrow_mut().entry((number, tokens)).or_default()[side].push(each);
                elapsed
            };
            group.bench_function(BenchmarkId::new("ours", tokens), |b| {
                let mut prepared = Prepared::new(cache(tokens), tokens, rows);
                b.iter_custom(|iterations| keep(0, prepared.appends(iterations), iterations));
            });
            if let Some(peer) = peer.as_ref().filter(|_| theirs) {
                group.bench_function(BenchmarkId::new("mlx-lm", tokens), |b| {
                    b.iter_custom(|iterations| {
                        keep(1, peer.borrow_mut().appends(name, tokens, iterations), iterations)
                    });
                });
            }
        }
        group.finish();
    }
    criterion.final_summary();
    report(&samples.borrow());
}

/// Prints the medians of both, and their ratio.
fn report(samples: &BTreeMap<(usize, i32), [Vec<f64>; 2]>) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{:20} {:>7} {:>10} {:>10} {:>6}", "cache", "tokens", "ours us", "mlx-lm us", "ratio")
        .unwrap();
    for (&(kind, tokens), sides) in samples {
        let median = |side: &[f64]| {
            let mut sorted = side.to_vec();
            sorted.sort_by(f64::total_cmp);
            sorted.get(sorted.len() / 2).map(|nanoseconds| nanoseconds / 1000.0)
        };
        let [ours, theirs] = sides.each_ref().map(|side| median(side));
        let text =
            |number: Option<f64>| number.map_or_else(|| "-".to_owned(), |number| format!("{number:.1}"));
        let ratio =
            ours.zip(theirs).map_or_else(|| "-".to_owned(), |(ours, theirs)| format!("{:.2}", ours / theirs));
        writeln!(out, "{:20} {tokens:>7} {:>10} {:>10} {ratio:>6}", KINDS[kind].0, text(ours), text(theirs))
            .unwrap();
    }
}

/// A cache with `tokens` tokens, and one token to append.
struct Prepared {
    cache: KvCache,
    token: Array,
    tokens: i32,
}

impl Prepared {
    fn new(mut cache: KvCache, tokens: i32, rows: i32) -> Self {
        let ones = |length| {
            let row = Array::ones::<f32>(&[1, HEADS, length, HEAD_DIM]).unwrap();
            concatenate(&vec![row; rows as usize], 0).unwrap()
        };
        let (prompt, token) = (ones(tokens), ones(1));
        cache.append(&prompt, &prompt).unwrap();
        let mut prepared = Self { cache, token, tokens };
        prepared.appends(8);
        prepared
    }

    /// The time of this many appends, each evaluated. The trims of a full cache, which free slots again, are not
    /// counted.
    fn appends(&mut self, iterations: u64) -> Duration {
        let mut elapsed = Duration::ZERO;
        let mut left = iterations;
        while left > 0 {
            let gone = (self.cache.offset() - self.tokens).max(0);
            if gone >= FREE_SLOTS && self.cache.can_trim(gone).is_ok() {
                self.cache.trim(gone).unwrap();
            }
            let now = left.min(FREE_SLOTS as u64 / 2);
            let started = Instant::now();
            for _ in 0..now {
                drop(self.cache.append(&self.token, &self.token).unwrap());
                mlx_rs::transforms::eval(self.cache.arrays()).unwrap();
            }
            elapsed += started.elapsed();
            left -= now;
        }
        elapsed
    }
}

/// The process with mlx-lm.
struct Peer {
    process: Child,
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Peer {
    fn start() -> Option<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2)?;
        let Some(python) = std::env::var_os("MLX_MODELS_PYTHON").map(PathBuf::from) else {
            let _ = writeln!(std::io::stderr(), "no mlx-lm to compare with: MLX_MODELS_PYTHON is not set");
            return None;
        };
        let mut command = Command::new(&python);
        command.arg(root.join("xtask/python/bench_caches.py"));
        let process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let Ok(mut process) = process else {
            let _ =
                writeln!(std::io::stderr(), "no mlx-lm to compare with: {} does not run", python.display());
            return None;
        };
        let (requests, answers) = (process.stdin.take(), BufReader::new(process.stdout.take()?));
        Some(Self { process, requests, answers })
    }

    fn appends(&mut self, kind: &str, tokens: i32, iterations: u64) -> Duration {
        writeln!(self.requests.as_mut().unwrap(), "{kind} {tokens} {iterations}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        Duration::from_secs_f64(answer.trim().parse().unwrap())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // The process ends at the end of its input.
        drop(self.requests.take());
        let _ = self.process.wait();
    }
}
