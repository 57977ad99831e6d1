//! Draws how we compare with other programs, from the JSON of earlier runs.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Sizes in pixels: of a row, of the names on the left, of a ratio of 1, and of the whole chart.
const ROW: f64 = 18.0;
const NAMES: f64 = 360.0;
const ONE: f64 = 120.0;
const WIDTH: f64 = 900.0;
/// A longer bar is cut.
const LONGEST: f64 = 4.0;

/// A run, as `--json` prints it.
#[derive(Debug, Deserialize)]
struct Run {
    machine: Vec<String>,
    cells: Vec<Cell>,
}

#[derive(Debug, Deserialize)]
struct Cell {
    model: String,
    lines: Vec<Line>,
}

#[derive(Debug, Deserialize)]
struct Line {
    name: String,
    program: String,
    ratio: Option<Ratio>,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
struct Ratio {
    min: f64,
    median: f64,
    max: f64,
}

/// The bars of one model.
#[derive(Debug, PartialEq)]
struct Group {
    model: String,
    bars: Vec<Bar>,
}

#[derive(Debug, PartialEq)]
struct Bar {
    name: String,
    program: String,
    ratio: Ratio,
}

/// Draws the ratios to other programs of these files.
pub(super) fn draw(files: &[PathBuf], out: &Path) -> io::Result<()> {
    let runs = files
        .iter()
        .map(|file| {
            let text = fs::read_to_string(file)
                .map_err(|e| io::Error::new(e.kind(), format!("reading {}: {e}", file.display())))?;
            serde_json::from_str(&text).map_err(|e| {
                io::Error::other(format!("{} is not a run of speed --json: {e}", file.display()))
            })
        })
        .collect::<io::Result<Vec<Run>>>()?;
    let machine = runs.first().map_or_else(String::new, |run| run.machine.join("; "));
    fs::write(out, svg(&groups(&runs), &machine))
}

/// The bars, grouped by model in the order of the runs. A figure that was measured again replaces the earlier one.
fn groups(runs: &[Run]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for cell in runs.iter().flat_map(|run| &run.cells) {
        for line in &cell.lines {
            let Some(ratio) = line.ratio else { continue };
            let model = cell.model.replacen("real ", "Gemma 3 270M ", 1);
            let place = groups.iter().position(|group| group.model == model).unwrap_or_else(|| {
                groups.push(Group { model, bars: Vec::new() });
                groups.len() - 1
            });
            let bar = Bar { name: line.name.clone(), program: line.program.clone(), ratio };
            let bars = &mut groups[place].bars;
            match bars.iter_mut().find(|old| (&old.name, &old.program) == (&bar.name, &bar.program)) {
                Some(old) => *old = bar,
                None => bars.push(bar),
            }
        }
    }
    groups
}

/// The length of the bar of a ratio, in pixels.
fn length(ratio: f64) -> f64 {
    ONE * ratio.clamp(0.0, LONGEST)
}

fn svg(groups: &[Group], machine: &str) -> String {
    let rows: usize = groups.iter().map(|group| group.bars.len() + 2).sum();
    let height = ROW * (rows as f64 + 3.5);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<style>\n  text {{ fill: #1f2328 }} .quiet {{ fill: #59636e }} line {{ stroke: #59636e }}\n  \
         .ahead {{ fill: #2f81c9 }} .behind {{ fill: #d1761d }}\n  @media (prefers-color-scheme: dark) {{\n    \
         text {{ fill: #f0f6fc }} .quiet {{ fill: #9198a1 }} line {{ stroke: #9198a1 }}\n    \
         .ahead {{ fill: #539bdb }} .behind {{ fill: #e0923f }}\n  }}\n</style>\n"
    );
    let mut y = ROW;
    text(
        &mut out,
        10.0,
        y,
        "",
        "How many times as fast as other programs (1: as fast; the thin line: all turns)",
    );
    y += ROW;
    text(&mut out, 10.0, y, "quiet", machine);
    let top = y + ROW / 2.0;
    for group in groups {
        y += 1.5 * ROW;
        let _ =
            writeln!(out, "<text x=\"10\" y=\"{y}\" font-weight=\"bold\">{}</text>", escaped(&group.model));
        for bar in &group.bars {
            y += ROW;
            row(&mut out, y, bar);
        }
        y += ROW / 2.0;
    }
    let one = NAMES + length(1.0);
    let _ =
        writeln!(out, "<line x1=\"{one}\" y1=\"{top}\" x2=\"{one}\" y2=\"{y}\" stroke-dasharray=\"3 3\"/>");
    out + "</svg>\n"
}

fn row(out: &mut String, y: f64, bar: &Bar) {
    let Ratio { min, median, max } = bar.ratio;
    let class = if median < 1.0 { "behind" } else { "ahead" };
    let name = format!("{} / {}", bar.name, bar.program);
    let _ =
        writeln!(out, "<text x=\"{}\" y=\"{y}\" text-anchor=\"end\">{}</text>", NAMES - 8.0, escaped(&name));
    let (top, bar_height) = (y - 10.0, ROW - 6.0);
    let _ = writeln!(
        out,
        "<rect class=\"{class}\" x=\"{NAMES}\" y=\"{top}\" width=\"{:.1}\" height=\"{bar_height}\"/>",
        length(median)
    );
    let (from, to, middle) = (NAMES + length(min), NAMES + length(max), y - 4.0);
    let _ = writeln!(out, "<line x1=\"{from:.1}\" y1=\"{middle}\" x2=\"{to:.1}\" y2=\"{middle}\"/>");
    let end = NAMES + length(max.max(median)) + 6.0;
    text(out, end, y, "quiet", &format!("{median:.2}"));
}

fn text(out: &mut String, x: f64, y: f64, class: &str, text: &str) {
    let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
    let _ = writeln!(out, "<text{class} x=\"{x:.1}\" y=\"{y}\">{}</text>", escaped(text));
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use serde_json::json;

    use super::*;

    fn run(decode: f64) -> Run {
        let line = |name: &str, program: &str, ratio: Option<f64>| {
            let ratio = ratio.map(|ratio| json!({ "min": ratio / 2.0, "median": ratio, "max": 2.0 * ratio }));
            json!({ "name": name, "program": program, "unit": "tokens/s", "ratio": ratio })
        };
        let lines = [
            line("prompt of 16", "mlx-models", None),
            line("prompt of 16", "llama.cpp", Some(1.5)),
            line("decode behind 16", "llama.cpp", Some(decode)),
        ];
        let cell = json!({ "model": "real bf16", "work": "prompt of 16", "lines": lines });
        serde_json::from_value(json!({ "machine": ["a < b", "today"], "cells": [cell] })).unwrap()
    }

    #[test]
    fn figures_with_a_ratio_are_bars_and_later_runs_replace_earlier_ones() {
        let groups = groups(&[run(0.5), run(0.75)]);
        assert_eq!(groups.len(), 1);
        assert_eq!(groups[0].model, "Gemma 3 270M bf16");
        let bars: Vec<(&str, f64)> =
            groups[0].bars.iter().map(|bar| (bar.name.as_str(), bar.ratio.median)).collect();
        assert_eq!(bars, [("prompt of 16", 1.5), ("decode behind 16", 0.75)]);
    }

    #[test]
    fn bars_are_as_long_as_their_ratios() {
        assert_eq!([length(1.0), length(2.0), length(9.0)], [ONE, 2.0 * ONE, LONGEST * ONE]);
        let svg = svg(&groups(&[run(0.75)]), "a < b");
        assert!(svg.contains("class=\"ahead\" x=\"360\"") && svg.contains("width=\"180.0\""), "{svg}");
        assert!(svg.contains("class=\"behind\"") && svg.contains("width=\"90.0\""), "{svg}");
        assert!(svg.contains("prompt of 16 / llama.cpp") && svg.contains(">a &lt; b<"), "{svg}");
    }
}
