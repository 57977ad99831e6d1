//! Draws the pictures and the table of `docs/kv-caches.md` with real caches, and compares them with the document.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use mlx_attn_masks::AttentionMask;
use mlx_kvcache::{Full, KvCache, LayerKind, LayerSpec, Ring};
use mlx_rs::Array;

fn document() -> String {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/kv-caches.md");
    std::fs::read_to_string(file).unwrap()
}

/// Appends tokens whose keys are their positions, and draws which token attention finds in each slot, and which
/// slots each of the new tokens sees.
fn draw(cache: &mut KvCache, count: i32) -> String {
    let mask = cache.mask(count).unwrap();
    let from = cache.offset();
    let keys: Vec<f32> = (from..from + count).map(|t| t as f32).collect();
    let keys = Array::from_slice(&keys, &[1, 1, count, 1]);
    let (keys, _) = cache.append(&keys, &keys).unwrap().to_dense().unwrap();
    let keys = keys.contiguous().unwrap();
    let slots = keys.as_slice::<f32>();
    let mut lines = slots.iter().map(|token| format!("{token:>3}")).collect::<String>();
    let visible = match mask {
        AttentionMask::None => return format!("{lines}   no mask"),
        AttentionMask::Causal => return format!("{lines}   causal"),
        AttentionMask::Array(visible) => visible,
    };
    for (line, token) in visible.as_slice::<bool>().chunks(slots.len()).zip(from..) {
        let marks: String = line.iter().map(|&sees| if sees { "  x" } else { "  ." }).collect();
        lines += &format!("\n{marks}   seen by {token}");
    }
    lines
}

#[track_caller]
fn assert_drawn(picture: &str) {
    assert!(document().contains(picture), "docs/kv-caches.md does not contain this picture:\n{picture}");
}

fn ring(max_size: i32, keep: i32, rewind: i32) -> KvCache {
    KvCache::new(Ring::new(max_size).unwrap().with_keep(keep).unwrap()).with_rewind(rewind).unwrap()
}

#[test]
fn a_ring_before_and_after_a_wrap() {
    let mut cache = ring(6, 0, 0);
    draw(&mut cache, 4);
    for _ in 0..5 {
        assert_drawn(&draw(&mut cache, 1));
    }
    assert_drawn(&draw(&mut cache, 3));
    assert_drawn(&draw(&mut cache, 1));
}

#[test]
fn a_ring_with_sinks() {
    let mut cache = ring(6, 2, 0);
    draw(&mut cache, 5);
    for _ in 0..4 {
        assert_drawn(&draw(&mut cache, 1));
    }
    assert_drawn(&draw(&mut cache, 3));
}

#[test]
fn a_ring_that_is_rewound() {
    let mut cache = ring(4, 0, 2);
    for _ in 0..7 {
        draw(&mut cache, 1);
    }
    assert_drawn(&draw(&mut cache, 1));
    cache.trim(2).unwrap();
    assert_drawn(&draw(&mut cache, 1));
    assert_drawn(&draw(&mut cache, 2));
}

#[test]
fn rows_side_by_side() {
    let filled = |count: i32| {
        let mut cache = KvCache::new(Full::new());
        draw(&mut cache, count);
        cache
    };
    let batch = KvCache::merge(&[&filled(5), &filled(2), &filled(4)]).unwrap();
    assert_eq!(batch.offsets(), [5, 2, 4]);
    let AttentionMask::Array(visible) = batch.mask(1).unwrap() else { panic!() };
    let rows: Vec<String> = visible
        .as_slice::<bool>()
        .chunks(6)
        .map(|row| row.iter().map(|&sees| if sees { "  x" } else { "  ." }).collect())
        .collect();
    assert_drawn(&rows.join("\n"));
}

/// For each model, from its config: layers of full attention, layers with a window, the window, key-value heads, and
/// features per head.
const MODELS: [(&str, usize, usize, i32, i32, i32); 6] = [
    ("Phi-3-mini-128k", 32, 0, 0, 32, 96),
    ("Phi-3-mini-4k", 0, 32, 2047, 32, 96),
    ("OLMo 3 7B", 8, 24, 4096, 32, 128),
    ("Lille-130M", 24, 0, 0, 2, 64),
    ("Gemma 3 270M", 3, 15, 512, 1, 256),
    ("Gemma 3 1B", 4, 22, 512, 1, 256),
];

#[test]
fn the_memory_of_a_token() {
    for (name, full, sliding, window, heads, head_dim) in MODELS {
        let values =
            |kind| LayerSpec { kind, heads, key_dim: head_dim, value_dim: head_dim }.values_per_token();
        let (full, sliding) =
            (full * values(LayerKind::Full), sliding * values(LayerKind::Sliding { window: window.max(1) }));
        // Two bytes a number in bfloat16; quantized in groups of 64, half a bit more for scale and bias.
        let context = if name.starts_with("Lille") { 512 } else { 32_768 };
        let numbers = full * context + sliding * (window as usize).min(context);
        let megabytes = |bits: f64| numbers as f64 * bits / 8.0 / 1e6;
        let window = if sliding > 0 { window.to_string() } else { "-".to_owned() };
        let row = format!(
            "| {name} | {} | {window} | {} | {context} | {:.1} | {:.1} | {:.1} |",
            2 * (full + sliding),
            2 * full,
            megabytes(16.0),
            megabytes(8.5),
            megabytes(4.5),
        );
        // Groups of 64 do not divide 96 features; they are of 32 there.
        let row = if head_dim % 64 == 0 {
            row
        } else {
            format!(
                "| {name} | {} | {window} | {} | {context} | {:.1} | {:.1} | {:.1} |",
                2 * (full + sliding),
                2 * full,
                megabytes(16.0),
                megabytes(9.0),
                megabytes(5.0),
            )
        };
        assert_drawn(&row);
    }
}
