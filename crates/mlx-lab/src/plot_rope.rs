//! `cargo xtask plot-rope`: draws `docs/rope.svg`, which shows how each kind of scaling changes the
//! frequencies.

use std::fmt::Write as _;
use std::io;

use mlx_rope::{RopeError, RopeLayout, RopeScaling, initialize_rope};

/// A head of Llama 3's size, with a context that is extended eight times.
const DIMS: i32 = 128;
const BASE: f64 = 500_000.0;
const ORIGINAL: i32 = 8192;
const LONGEST: i32 = 65_536;

/// The size of the picture, and the frame of the curves in it, in pixels.
const SIZE: (f64, f64) = (760.0, 430.0);
const FRAME: [f64; 4] = [70.0, 30.0, 540.0, 340.0]; // left, top, width, height

/// The axis shows the scaled frequency divided by the unscaled one, from 1/16 to 1, on a logarithmic scale.
const LOWEST: f64 = 1.0 / 16.0;

/// Name, colour, dashes, and the object of a config.
const KINDS: &[(&str, &str, &str, &str)] = &[
    ("default", "#888888", "", r#"{"rope_type": "default"}"#),
    ("linear", "#d62728", "", r#"{"rope_type": "linear", "factor": 8}"#),
    ("dynamic, at 65536 tokens", "#9467bd", "8 4", r#"{"rope_type": "dynamic", "factor": 1}"#),
    (
        "llama3",
        "#1f77b4",
        "",
        r#"{"rope_type": "llama3", "factor": 8, "original_max_position_embeddings": 8192}"#,
    ),
    (
        "yarn",
        "#2ca02c",
        "",
        r#"{"rope_type": "yarn", "factor": 8, "original_max_position_embeddings": 8192}"#,
    ),
    ("longrope, an example list", "#ff7f0e", "3 3", ""),
    (
        "proportional, 3/4 of a head",
        "#17becf",
        "10 3 2 3",
        r#"{"rope_type": "proportional", "partial_rotary_factor": 0.75}"#,
    ),
];

pub(crate) fn run() -> io::Result<bool> {
    let svg = draw().map_err(io::Error::other)?;
    std::fs::write(workspace::root().join("docs/rope.svg"), svg)?;
    Ok(true)
}

fn draw() -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
    let mut svg = String::new();
    let [left, top, width, _] = FRAME;
    let right = left + width;
    writeln!(
        svg,
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}" font-family="sans-serif" font-size="13">"#,
        SIZE.0, SIZE.1
    )?;
    writeln!(svg, r#"<rect width="100%" height="100%" fill="white"/>"#)?;
    draw_axes(&mut svg)?;

    let plain = frequencies(&RopeScaling::Default)?;
    for (row, &(name, colour, dashes, config)) in KINDS.iter().enumerate() {
        let curve = frequencies(&scaling(config)?)?;
        let mut path = String::new();
        let mut pen = 'M';
        for (pair, (scaled, plain)) in curve.iter().zip(&plain).enumerate() {
            let part = f64::from(*scaled) / f64::from(*plain);
            if part < LOWEST {
                break; // a pair that is not rotated has no place on a logarithmic axis
            }
            write!(path, "{pen}{:.1} {:.1}", x_of(pair), y_of(part))?;
            pen = 'L';
        }
        let stroke =
            format!(r#"fill="none" stroke="{colour}" stroke-width="2.5" stroke-dasharray="{dashes}""#);
        writeln!(svg, r#"<path d="{path}" {stroke}/>"#)?;
        let y = top + 14.0 + 30.0 * row as f64;
        writeln!(svg, r#"<path d="M{} {}h26" {stroke}/>"#, right + 12.0, y - 4.0)?;
        // A name with a comma is written on two lines.
        for (line, part) in name.split(", ").enumerate() {
            let y = y + 11.0 * line as f64;
            let size = if line == 0 { 13 } else { 10 };
            writeln!(svg, r#"<text x="{}" y="{y}" font-size="{size}">{part}</text>"#, right + 44.0)?;
        }
    }
    writeln!(svg, "</svg>")?;
    Ok(svg)
}

fn draw_axes(svg: &mut String) -> std::fmt::Result {
    let [left, top, width, height] = FRAME;
    let (bottom, right) = (top + height, left + width);
    for part in [1.0, 0.5, 0.25, 0.125, LOWEST] {
        let y = y_of(part);
        writeln!(svg, r##"<path d="M{left} {y:.1}H{right}" stroke="#dddddd"/>"##)?;
        writeln!(
            svg,
            r#"<text x="{}" y="{:.1}" text-anchor="end">1/{}</text>"#,
            left - 8.0,
            y + 4.0,
            1.0 / part
        )?;
    }
    for pair in [0, 16, 32, 48, 63] {
        let x = x_of(pair);
        writeln!(svg, r##"<path d="M{x:.1} {top}V{bottom}" stroke="#dddddd"/>"##)?;
        writeln!(svg, r#"<text x="{x:.1}" y="{}" text-anchor="middle">{pair}</text>"#, bottom + 18.0)?;
    }
    writeln!(
        svg,
        r#"<text x="{}" y="{}" text-anchor="middle">pair of features, fast to slow</text>"#,
        left + width / 2.0,
        bottom + 40.0
    )?;
    writeln!(
        svg,
        r#"<text transform="translate(18 {}) rotate(-90)" text-anchor="middle">frequency, as a part of the unscaled one</text>"#,
        top + height / 2.0
    )?;
    Ok(())
}

fn scaling(config: &str) -> serde_json::Result<RopeScaling> {
    if !config.is_empty() {
        return serde_json::from_str(config);
    }
    // A typical list of LongRoPE: it hardly changes fast pairs, and stretches slow ones more than the longer
    // context requires, with a steep transition in between.
    let pairs = f64::from(DIMS / 2);
    let long: Vec<f64> = (0..DIMS / 2)
        .map(|pair| 1.0 + 11.0 / (1.0 + (-(f64::from(pair) / pairs - 0.55) * 14.0).exp()))
        .collect();
    let short = vec![1.0; DIMS as usize / 2];
    serde_json::from_value(serde_json::json!({
        "rope_type": "longrope", "short_factor": short, "long_factor": long,
        "original_max_position_embeddings": ORIGINAL,
    }))
}

/// In radians per token, for a sequence of the maximum length. The dynamic scaling was trained for the original
/// length.
fn frequencies(scaling: &RopeScaling) -> Result<Vec<f32>, RopeError> {
    let trained = if matches!(scaling, RopeScaling::Dynamic { .. }) { ORIGINAL } else { LONGEST };
    initialize_rope(DIMS, BASE, RopeLayout::Halves, scaling, Some(trained))?.frequencies(LONGEST)
}

fn x_of(pair: usize) -> f64 {
    let [left, _, width, _] = FRAME;
    left + width * pair as f64 / f64::from(DIMS / 2 - 1)
}

fn y_of(part: f64) -> f64 {
    let [_, top, _, height] = FRAME;
    top + height * part.ln() / LOWEST.ln()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_committed_picture_is_the_one_that_is_drawn() {
        let committed = std::fs::read_to_string(workspace::root().join("docs/rope.svg")).unwrap();
        assert!(super::draw().unwrap() == committed, "run `cargo xtask plot-rope`");
    }
}
