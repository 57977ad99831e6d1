//! `cargo xtask parity`: our answers beside those of a reference.
//!
//! A case is a folder with a `case.json`; `docs/parity.md` describes the format. Every case runs
//! through the public path of a user: the facade, a checkpoint folder, the token loop.

mod cache;
mod case;
mod model;
mod rope;

use std::fs;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use serde::Serialize;

use case::{Case, CaseError, Kind};

/// Arguments of `cargo xtask parity`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Run every folder below this one that holds a case.json, instead of the project's own cases
    #[arg(long, value_name = "DIR")]
    cases: Option<PathBuf>,
    /// Run only cases whose name contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    /// Write the results to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What a case that could be run found.
struct Found {
    /// The largest absolute difference where tensors could be compared.
    worst: Option<f64>,
    /// The first difference beyond the tolerance.
    difference: Option<String>,
}

/// One line of the report.
#[derive(Serialize)]
struct Row {
    name: String,
    oracle: String,
    compare: String,
    /// The largest absolute difference; absent where nothing could be compared.
    worst: Option<f64>,
    passed: bool,
    /// Whether it failed by an answer that differs, not by one that is missing.
    differs: bool,
    /// Where they differ, or why nothing could be compared.
    detail: String,
}

pub(crate) fn run(arguments: &Arguments) -> io::Result<bool> {
    report(arguments, &mut io::stdout().lock())
}

/// Runs the cases and writes a line for each.
fn report(arguments: &Arguments, out: &mut impl Write) -> io::Result<bool> {
    let folder = arguments.cases.clone().unwrap_or_else(|| crate::root().join("xtask/cases"));
    let cases = find_cases(&folder)
        .map_err(|e| io::Error::new(e.kind(), format!("reading the cases in {}: {e}", folder.display())))?;

    let mut rows = Vec::new();
    for case in cases {
        let Some(row) = run_case(&case, &arguments.filter) else { continue };
        let verdict = if row.passed { "passed" } else { "FAILED" };
        let detail = if row.detail.is_empty() { String::new() } else { format!("  {}", row.detail) };
        let worst = row.worst.map_or_else(|| "-".to_owned(), |worst| format!("{worst:.3e}"));
        writeln!(out, "{verdict}  {:32} {:18} {:28} {worst:>9}{detail}", row.name, row.oracle, row.compare)?;
        out.flush()?;
        rows.push(row);
    }
    if let Some(file) = &arguments.json {
        write_whole(file, &serde_json::to_vec_pretty(&rows)?)?;
    }
    let passed = rows.iter().filter(|row| row.passed).count();
    if rows.is_empty() {
        crate::complain(&format!("no case in {} matches", folder.display()));
    }
    writeln!(out, "{passed} passed, {} failed", rows.len() - passed)?;
    Ok(passed == rows.len() && !rows.is_empty())
}

/// Every folder below this one with a `case.json`, in the order of their paths.
fn find_cases(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(folder) = open.pop() {
        if folder.join("case.json").is_file() {
            found.push(folder.clone());
        }
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            // Not through links, which could lead round in circles.
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Runs one case; `None` where the filter leaves it out.
fn run_case(folder: &Path, filter: &str) -> Option<Row> {
    let folder_name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let failed = |name: &str, oracle: String, compare: String, why: String| Row {
        name: name.to_owned(),
        oracle,
        compare,
        worst: None,
        passed: false,
        differs: false,
        detail: why,
    };
    let case = match Case::read(folder) {
        Ok(case) => case,
        // Without a readable name the folder's is what the filter can look at.
        Err(e) if folder_name.contains(filter) => {
            return Some(failed(&folder_name, "-".to_owned(), "-".to_owned(), in_full(&e)));
        }
        Err(_) => return None,
    };
    if !case.name.contains(filter) {
        return None;
    }
    let (oracle, compare) = (case.oracle.clone(), case.comparison());
    // A bug in a kernel must not keep the other cases from running.
    let outcome = catch_unwind(AssertUnwindSafe(|| match &case.kind {
        Kind::Model(model) => model::run(&case, model),
        Kind::Rope(rope) => rope::run(&case, rope),
        Kind::Cache(cache) => cache::run(&case, cache),
    }))
    .unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str);
        let said = said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Err(CaseError::Panic { said: said.to_owned() })
    });
    Some(match outcome {
        Ok(found) => Row {
            name: case.name.clone(),
            oracle,
            compare,
            worst: found.worst,
            passed: found.difference.is_none(),
            differs: found.difference.is_some(),
            detail: found.difference.unwrap_or_default(),
        },
        Err(e) => failed(&case.name, oracle, compare, in_full(&e)),
    })
}

/// An error and its causes, in one line.
fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Some errors say what their cause says.
        if !text.contains(&error.to_string()) {
            text += &format!(": {error}");
        }
        cause = error.source();
    }
    text
}

/// Writes a file so that nobody sees half of it.
fn write_whole(file: &Path, contents: &[u8]) -> io::Result<()> {
    let mut temporary = file.as_os_str().to_owned();
    temporary.push(".partial");
    let temporary = PathBuf::from(temporary);
    let written = fs::write(&temporary, contents).and_then(|()| fs::rename(&temporary, file));
    written.map_err(|e| {
        let _ = fs::remove_file(&temporary);
        io::Error::new(e.kind(), format!("writing {}: {e}", file.display()))
    })
}

#[cfg(test)]
mod tests;
