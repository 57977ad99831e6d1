//! Numbers and texts that often cause errors in programs.

use serde_json::{Value, json};

use super::random::Random;

/// A number at the limit of some type, or of what models have.
pub(super) fn interesting_number(random: &mut Random) -> Value {
    match random.below(5) {
        0 | 1 => json!(
            random
                .one(&[0, 1, 2, 3, 4, 7, 8, 16, 31, 32, 33, 48, 64, 65, 127, 128, 255, 256, 512, 1023, 1024])
        ),
        2 => json!(random.one(&[
            -1,
            -2,
            65_536,
            1_000_000,
            i64::from(i32::MAX) - 1,
            i64::from(i32::MAX),
            i64::from(i32::MIN),
            i64::from(u32::MAX),
            i64::from(u32::MAX) + 1,
            i64::MAX,
            i64::MIN,
        ])),
        3 => json!(u64::MAX - random.next() % 2),
        _ => json!(interesting_float(random)),
    }
}

/// A finite float64, which JSON can represent.
pub(super) fn interesting_float(random: &mut Random) -> f64 {
    random.one(&[
        0.0, -0.0, 0.5, 1.0, 1.5, 2.0, -1.0, 0.1, 8.0, 10_000.0, 1e-5, 1e-45, 1e-320, 3.4e38, 3.5e38, 1e308,
        -1e308, 1e16,
    ])
}

/// A random float64.
pub(super) fn any_float(random: &mut Random) -> f64 {
    match random.below(6) {
        0 => random.one(&[f64::NAN, f64::INFINITY, f64::NEG_INFINITY]),
        1 => f64::from_bits(random.next()),
        _ => interesting_float(random),
    }
}

/// A size, sometimes an extreme one.
pub(super) fn any_size(random: &mut Random) -> usize {
    match random.below(4) {
        0 => random.one(&[
            usize::MAX,
            usize::MAX - 1,
            i32::MAX as usize,
            i32::MAX as usize + 1,
            u32::MAX as usize,
        ]),
        1 => random.below(1000),
        _ => random.below(9),
    }
}

/// A text with something unusual: an empty text, control characters, characters of several bytes, file names,
/// great length.
pub(super) fn interesting_text(random: &mut Random) -> String {
    const TEXTS: &[&str] = &[
        "",
        " ",
        "\0",
        "\u{1b}[31mred\u{1b}[0m",
        "\u{1b}]0;title\u{7}",
        "\r\n\t",
        "é",
        "e\u{301}",
        "👩‍👩‍👧‍👦",
        "\u{202e}abc",
        "\u{feff}",
        "\u{fffd}",
        "漢字",
        "../../x",
        "/etc/hostname",
        "model.safetensors",
        "%s%n",
        "{{ 1 }}",
        "{% for %}",
        "<|endoftext|>",
        "<|endoftext",
        "Ġ",
        "Once upon a time",
        "a",
        "0",
        "-1",
        "true",
        "null",
        "None",
        "default",
        "model.layers.0.self_attn.q_proj",
        "model.embed_tokens",
        "lm_head",
        "(a+)+$",
        "[",
        "*",
        ".",
        "\\",
    ];
    match random.below(12) {
        0 => random.one(TEXTS).repeat(random.one(&[10, 1000])),
        1 => "a".repeat(random.one(&[255, 256, 4096, 70_000])),
        2 => (0..random.below(20)).filter_map(|_| char::from_u32(random.below(0x11_0000) as u32)).collect(),
        _ => random.one(TEXTS).to_owned(),
    }
}

/// A prompt for a model.
pub(super) fn prompt(random: &mut Random) -> String {
    match random.below(4) {
        0 => interesting_text(random),
        1 => "The dog and the cat went to the park. ".repeat(1 + random.below(40)),
        _ => "Once upon a time".to_owned(),
    }
}

/// Changes, removes or inserts some bytes.
pub(super) fn mutate_bytes(bytes: &mut Vec<u8>, random: &mut Random) {
    if bytes.is_empty() {
        bytes.extend(random.next().to_le_bytes());
        return;
    }
    let place = random.below(bytes.len());
    // Mostly near the beginning, which matters most.
    let place = if random.once_in(2) { place % 64.min(bytes.len()) } else { place };
    match random.below(8) {
        0 => bytes[place] ^= 1 << random.below(8),
        1 => {
            bytes[place] = random.one(&[0, 0x7f, 0x80, 0xff, b'"', b'{', b'}', b'[', b',', b'\\', b'-', b'9'])
        }
        2 => bytes.truncate(place),
        3 => {
            let end = (place + 1 + random.below(40)).min(bytes.len());
            bytes.drain(place..end);
        }
        4 => {
            let inserted: Vec<u8> = (0..1 + random.below(16)).map(|_| random.next() as u8).collect();
            bytes.splice(place..place, inserted);
        }
        5 => {
            let end = (place + 1 + random.below(200)).min(bytes.len());
            let copy = bytes[place..end].to_vec();
            let to = random.below(bytes.len());
            bytes.splice(to..to, copy);
        }
        6 => bytes.extend(vec![random.next() as u8; random.below(100)]),
        _ => (0..8).for_each(|_| {
            let place = random.below(bytes.len());
            bytes[place] = random.next() as u8;
        }),
    }
}
