//! Writes the figures as tables and as JSON.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::{Value, json};

use super::found::{Figure, Found, Limit};
use super::models::Model;
use super::peers::Program;
use super::spread::{Spread, median};
use super::turn::Turn;
use super::work::Work;

/// All measurements.
#[derive(Debug)]
pub(super) struct Measurements {
    /// The lines above the tables: processor, instruction sets, date.
    pub(super) machine: Vec<String>,
    pub(super) models: Vec<Model>,
    /// The rate of reading memory with all cores, in bytes per second, in each round.
    pub(super) bandwidth: Vec<f64>,
    pub(super) cells: Vec<Cell>,
}

/// One work on one model, and what each program found in each round. Every program has a turn in each round, or is slow and
/// has one turn.
#[derive(Debug)]
pub(super) struct Cell {
    pub(super) work: Work,
    /// The place in [`Measurements::models`]; `None` for a work without a model.
    pub(super) model: Option<usize>,
    pub(super) turns: Vec<(Program, Vec<Turn<Found>>)>,
}

/// A figure of a cell: what a program found, and how we compare with it.
#[derive(Debug, Serialize)]
pub(super) struct Line {
    pub(super) name: String,
    #[serde(skip)]
    pub(super) program: Program,
    unit: &'static str,
    pub(super) value: Spread,
    /// How many times better our figure is, turn by turn.
    pub(super) ratio: Option<Spread>,
    /// The rate of reading as a part of the memory's bandwidth.
    of_bandwidth: Option<f64>,
    /// The figure as a multiple of what was computed.
    of_computed: Option<f64>,
    /// The figure as a part of what the units of the processor do.
    of_peak: Option<f64>,
}

impl Cell {
    fn found(&self, program: Program) -> &[Turn<Found>] {
        self.turns.iter().find(|(of, _)| *of == program).map_or(&[], |(_, turns)| turns)
    }

    /// The figures of a program, first those of our own.
    pub(super) fn lines(&self, bandwidth: &[f64]) -> Vec<Line> {
        let mut lines = Vec::new();
        let ours = self.found(Program::MlxModels);
        for (program, turns) in &self.turns {
            for (place, figure) in
                turns.first().map_or(&[][..], |turn| &turn.found.figures).iter().enumerate()
            {
                let of = |turn: &Turn<Found>| {
                    turn.found.figures.get(place).map_or(f64::NAN, |figure| figure.value)
                };
                let value = Spread::of(turns.iter().map(of));
                let ours_of = |turn: &Turn<Found>| value_of(&turn.found, &figure.name);
                // A slow program has one turn, which is compared with all of ours.
                let pairs = ours
                    .iter()
                    .zip(turns.iter().cycle())
                    .filter_map(|(ours, theirs)| Some(figure.unit.ratio(ours_of(ours)?, of(theirs))));
                let pairs: Vec<f64> =
                    if *program == Program::MlxModels { Vec::new() } else { pairs.collect() };
                lines.push(Line {
                    name: figure.name.clone(),
                    program: *program,
                    unit: figure.unit.name(),
                    value,
                    ratio: (!pairs.is_empty()).then(|| Spread::of(pairs)),
                    of_bandwidth: of_bandwidth(figure, turns, place, bandwidth),
                    of_computed: match figure.limit {
                        Some(Limit::Computed(computed)) => Some(value.median / computed),
                        _ => None,
                    },
                    of_peak: match figure.limit {
                        Some(Limit::Peak(peak)) => Some(figure.value / peak),
                        _ => None,
                    },
                });
            }
        }
        lines
    }

    /// The number of tokens before the first that differs from ours, and the number of ours.
    fn same_tokens(&self, program: Program) -> Option<(usize, usize)> {
        let tokens = |program| self.found(program).first().map(|turn| &turn.found.tokens);
        let (ours, theirs) = (tokens(Program::MlxModels)?, tokens(program)?);
        let is_comparable = program != Program::MlxModels && !ours.is_empty() && ours.len() == theirs.len();
        let same = || ours.iter().zip(theirs).take_while(|(ours, theirs)| ours == theirs).count();
        is_comparable.then(|| (same(), ours.len()))
    }
}

fn value_of(found: &Found, name: &str) -> Option<f64> {
    found.figures.iter().find(|figure| figure.name == name).map(|figure| figure.value)
}

/// Each turn is compared with the bandwidth of its round.
fn of_bandwidth(figure: &Figure, turns: &[Turn<Found>], place: usize, bandwidth: &[f64]) -> Option<f64> {
    let Some(Limit::Reads(bytes)) = figure.limit else { return None };
    let shares = turns
        .iter()
        .zip(bandwidth)
        .filter_map(|(turn, bandwidth)| Some(turn.found.figures.get(place)?.value * bytes / bandwidth));
    Some(median(shares))
}

impl Measurements {
    fn title(&self, cell: &Cell) -> String {
        let model = cell.model.and_then(|place| self.models.get(place));
        model.map_or_else(String::new, |model| format!("{} {}", model.source.name(), model.stored.name()))
    }
}

pub(super) fn json(all: &Measurements) -> Value {
    let cell = |cell: &Cell| {
        let mut lines = Vec::new();
        for line in cell.lines(&all.bandwidth) {
            let mut value = json!(line);
            value["program"] = json!(line.program.name());
            lines.push(value);
        }
        json!({ "model": all.title(cell), "work": cell.work.name(), "lines": lines })
    };
    json!({
        "machine": all.machine,
        "bandwidth_bytes_per_second": Spread::of(all.bandwidth.iter().copied()),
        "cells": all.cells.iter().map(cell).collect::<Vec<_>>(),
    })
}

/// Markdown: a table with a row for each figure of each model, and columns for each program.
pub(super) fn text(all: &Measurements, out: &mut impl Write) -> io::Result<()> {
    for line in &all.machine {
        writeln!(out, "{line}")?;
    }
    let bandwidth = Spread::of(all.bandwidth.iter().copied()).map(|bytes| bytes / 1e9).figure();
    writeln!(out, "reading memory with all cores, GB/s: {bandwidth}")?;
    writeln!(
        out,
        "medians of the turns, with the minimum and the maximum; a ratio above 1 is better for us"
    )?;
    let mut others: Vec<Program> = all.cells.iter().flat_map(Cell::others).collect();
    others.sort_unstable();
    others.dedup();
    let heads: String = others.iter().map(|program| format!(" {} | ratio |", program.name())).collect();
    writeln!(out, "\n| | | {} | of the limit |{heads}", Program::MlxModels.name())?;
    writeln!(out, "|---|---|---|---|{}", "---|---|".repeat(others.len()))?;
    for cell in &all.cells {
        let title = all.title(cell);
        let lines = cell.lines(&all.bandwidth);
        let mut names: Vec<&str> = Vec::new();
        for line in &lines {
            if !names.contains(&line.name.as_str()) {
                names.push(&line.name);
            }
        }
        for name in names {
            let of = |program| lines.iter().find(|line| line.name == name && line.program == program);
            let ours = of(Program::MlxModels);
            let unit = ours.or(lines.iter().find(|line| line.name == name)).map_or("", |line| line.unit);
            let figure = ours.map_or_else(String::new, |line| line.value.figure());
            let limit = ours.map_or_else(String::new, Line::limit);
            let columns: String = others.iter().map(|&program| cell.columns(program, of(program))).collect();
            writeln!(out, "| {title} | {name}, {unit} | {figure} | {limit} |{columns}")?;
        }
    }
    writeln!(out)?;
    for version in versions(all) {
        writeln!(out, "{version}")?;
    }
    let turns = all.cells.iter().flat_map(|cell| &cell.turns).flat_map(|(_, turns)| turns);
    let others = turns.filter_map(|turn| turn.others).fold(0.0, f64::max);
    writeln!(out, "other processes used at most {:.0} % of the processor", 100.0 * others)
}

impl Line {
    /// Which part of its limit a figure reaches.
    fn limit(&self) -> String {
        let limits =
            [(self.of_bandwidth, "bandwidth"), (self.of_computed, "computed"), (self.of_peak, "unit's rate")];
        let limit =
            limits.into_iter().find_map(|(share, of)| Some(format!("{:.0} % of the {of}", 100.0 * share?)));
        limit.unwrap_or_default()
    }
}

impl Cell {
    fn others(&self) -> impl Iterator<Item = Program> {
        self.turns.iter().map(|(program, _)| *program).filter(|program| *program != Program::MlxModels)
    }

    /// The two columns of another program.
    fn columns(&self, program: Program, line: Option<&Line>) -> String {
        let Some(line) = line else { return "  |  |".to_owned() };
        let ratio = line.ratio.map_or_else(String::new, |ratio| ratio.text(2));
        // Drafts must not change the text.
        let same = self.same_tokens(program).filter(|_| program == Program::Plain);
        let same = same.map_or_else(String::new, |(same, of)| format!(", {same} of {of} tokens are equal"));
        format!(" {} | {ratio}{same} |", line.value.figure())
    }
}

/// What each program says of itself, once.
fn versions(all: &Measurements) -> Vec<String> {
    let mut versions: Vec<String> = Vec::new();
    for (program, turns) in all.cells.iter().flat_map(|cell| &cell.turns) {
        let Some(turn) = turns.first() else { continue };
        let version = format!("{}: {}", program.name(), turn.found.version);
        if !versions.contains(&version) {
            versions.push(version);
        }
    }
    versions
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use approx::assert_abs_diff_eq;

    use super::*;
    use crate::speed::found::Unit;

    fn turns(rates: &[[f64; 2]], tokens: &[u32]) -> Vec<Turn<Found>> {
        let turn = |[prompt, decode]: &[f64; 2]| {
            let decode = Figure {
                limit: Some(Limit::Reads(1e6)),
                ..Figure::new("decode behind 8", Unit::TokensPerSecond, *decode)
            };
            let figures = vec![Figure::new("prompt of 8", Unit::TokensPerSecond, *prompt), decode];
            let found = Found { figures, tokens: tokens.to_vec(), version: "1".to_owned() };
            Turn { found, others: Some(0.02) }
        };
        rates.iter().map(turn).collect()
    }

    fn all() -> Measurements {
        let ours = turns(&[[100.0, 10.0], [200.0, 20.0], [400.0, 60.0]], &[1, 2, 3, 4]);
        // In the second round, both programs were slow.
        let theirs = turns(&[[50.0, 10.0], [50.0, 5.0], [100.0, 20.0]], &[1, 2, 5, 4]);
        let slow = turns(&[[4.0, 0.5]], &[1, 2]);
        let cell = Cell {
            work: Work::Tokens { prompt: 8 },
            model: None,
            turns: vec![(Program::MlxModels, ours), (Program::LlamaCpp, theirs), (Program::MlxLm, slow)],
        };
        Measurements {
            machine: vec!["a machine".to_owned()],
            models: Vec::new(),
            bandwidth: vec![2e7, 4e7, 8e7],
            cells: vec![cell],
        }
    }

    #[test]
    fn a_ratio_is_the_median_of_the_ratios_of_the_rounds() {
        let all = all();
        let lines = all.cells[0].lines(&all.bandwidth);
        let line = |program, name: &str| {
            lines.iter().find(|line| line.program == program && line.name == name).unwrap()
        };
        let ours = line(Program::MlxModels, "decode behind 8");
        assert_eq!((ours.value, ours.ratio), (Spread { min: 10.0, median: 20.0, max: 60.0 }, None));
        // 0.5, 0.5 and 0.75 of the bandwidth of the rounds.
        assert_abs_diff_eq!(ours.of_bandwidth.unwrap(), 0.5, epsilon = 1e-12);
        let theirs = line(Program::LlamaCpp, "decode behind 8");
        assert_eq!(theirs.ratio, Some(Spread { min: 1.0, median: 3.0, max: 4.0 }));
        assert_eq!(line(Program::LlamaCpp, "prompt of 8").ratio.unwrap().median, 4.0);
        assert_eq!(line(Program::MlxLm, "prompt of 8").ratio.unwrap().median, 50.0);
    }

    #[test]
    fn tables_have_a_row_for_each_figure() {
        let mut all = all();
        let mut out = Vec::new();
        text(&all, &mut out).unwrap();
        let table = String::from_utf8(out).unwrap();
        assert!(table.contains("a machine") && table.contains("used at most 2 %"), "{table}");
        assert!(
            table.contains("| | | mlx-models | of the limit | llama.cpp | ratio | mlx-lm | ratio |"),
            "{table}"
        );
        let row = "|  | decode behind 8, tokens/s | 20.0 (10.0 to 60.0) | 50 % of the bandwidth | \
                   10.0 (5.0 to 20.0) | 3.00 (1.00 to 4.00) | 0.50 (0.50 to 0.50) |";
        assert!(table.contains(row), "{table}");
        assert_eq!(json(&all)["cells"][0]["lines"].as_array().unwrap().len(), 6);

        all.cells[0].turns[1].0 = Program::Plain;
        let mut out = Vec::new();
        text(&all, &mut out).unwrap();
        assert!(String::from_utf8(out).unwrap().contains("3.00 (1.00 to 4.00), 2 of 4 tokens are equal |"));
    }

    #[test]
    fn equal_tokens_are_counted_up_to_the_first_difference() {
        let all = all();
        assert_eq!(all.cells[0].same_tokens(Program::LlamaCpp), Some((2, 4)));
        assert_eq!(all.cells[0].same_tokens(Program::MlxLm), None);
    }
}
