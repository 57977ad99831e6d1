//! `cargo xtask parity`: compares our results with those of a reference program.
//!
//! A case is a folder with a `case.json`; `docs/parity.md` describes the format. Every case uses the public API, as a
//! user would: the facade, a checkpoint folder, a session.

mod cache;
mod case;
mod checkpoint;
mod document;
mod in_float32;
mod logits;
mod model;
mod rope;
pub(crate) mod weights;

use std::fs;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use mlx_models::device::{Device, DeviceChoice, DeviceKind};
use mlx_sys::cpu_kernels;
use serde::Serialize;

use case::{Case, CaseError, Kind};

/// Arguments of `cargo xtask parity`.
#[derive(Default, clap::Args)]
pub(crate) struct Arguments {
    /// Run every folder below this one that contains a case.json, instead of the project's own cases
    #[arg(long, value_name = "DIR", conflicts_with = "model")]
    cases: Option<PathBuf>,
    /// Run only cases whose name contains this text
    #[arg(long, value_name = "TEXT", default_value = "", conflicts_with = "model")]
    filter: String,
    /// Also write the results to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Run exact cases with our CPU kernels too, and require the tolerance of the dtype, or a result that is as close to
    /// float32 as the reference
    #[arg(long, conflicts_with_all = ["document", "model"])]
    kernels: bool,
    /// If all of the project's own cases pass, write the results into docs/parity.md
    #[arg(long, conflicts_with_all = ["cases", "filter", "model"])]
    document: bool,
    /// Compute on this device: auto, gpu or cpu [default: the value of MLX_MODELS_DEVICE, or else auto]
    #[arg(long, value_name = "DEVICE")]
    pub(crate) device: Option<DeviceChoice>,
    #[command(flatten)]
    checkpoint: checkpoint::CheckpointArguments,
}

/// The result of a case that could be run.
struct Found {
    /// The largest absolute difference, if tensors could be compared.
    worst: Option<f64>,
    /// The first difference beyond the tolerance.
    difference: Option<String>,
    /// How it was compared, if not as the case says.
    compared: Option<String>,
}

/// One line of the report.
#[derive(Serialize)]
struct Row {
    name: String,
    oracle: String,
    compare: String,
    /// The largest absolute difference; `None` if nothing could be compared.
    worst: Option<f64>,
    passed: bool,
    /// Whether it failed because the result differs, and not because there is none.
    differs: bool,
    /// The first difference, or the reason why nothing could be compared.
    detail: String,
    #[serde(skip)]
    folder: PathBuf,
}

/// Runs the cases, or compares a checkpoint, on the device that was selected.
pub(crate) fn run(arguments: &Arguments, device: &Device) -> io::Result<bool> {
    workspace::complain(&format!("device: {device}"));
    if arguments.kernels && device.kind == DeviceKind::Gpu {
        return Err(io::Error::other("--kernels compares the CPU's kernels; add --device cpu"));
    }
    if arguments.document && case::this_device() != case::DEFAULT_DEVICE {
        return Err(io::Error::other(format!("--document needs the device {}", case::DEFAULT_DEVICE)));
    }
    match &arguments.checkpoint.model {
        Some(folder) => checkpoint::run(&arguments.checkpoint, folder, arguments.json.as_deref()),
        None => report(arguments, &mut io::stdout().lock()),
    }
}

/// Runs the cases and writes a line for each.
fn report(arguments: &Arguments, out: &mut impl Write) -> io::Result<bool> {
    let own = workspace::root().join("xtask/cases");
    let folder = arguments.cases.as_ref().unwrap_or(&own);
    let cases = find_cases(folder)
        .map_err(|e| io::Error::new(e.kind(), format!("reading the cases in {}: {e}", folder.display())))?;

    let out = &mut Lines { out, closed: false };
    let mut rows: Vec<Row> = Vec::new();
    for case in cases {
        let row = match case {
            Ok(folder) => run_case(&folder, arguments),
            Err((folder, e)) => unreadable(&folder, &arguments.filter, &format!("reading the folder: {e}")),
        };
        let Some(mut row) = row else { continue };
        // Two cases of the same name cannot be told apart in the report, so the second one fails.
        if let Some(first) = rows.iter().find(|first| row.name == first.name) {
            row.passed = false;
            let more = if row.detail.is_empty() { String::new() } else { format!("; {}", row.detail) };
            row.detail = format!("its name is also that of {}{more}", first.folder.display());
        }
        out.line(&line(&row))?;
        rows.push(row);
    }
    let passed = rows.iter().filter(|row| row.passed).count();
    let all_passed = passed == rows.len() && !rows.is_empty();
    if rows.is_empty() {
        workspace::complain(&format!("no case in {} matches", folder.display()));
    }
    out.line(&format!("{passed} passed, {} failed", rows.len() - passed))?;
    if let Some(file) = &arguments.json {
        write_whole(file, &serde_json::to_vec_pretty(&rows)?)?;
    }
    if arguments.document && all_passed {
        let file = workspace::root().join("docs/parity.md");
        let text = document::with_results(&workspace::root(), &fs::read_to_string(&file)?, &rows)?;
        write_whole(&file, text.as_bytes())?;
    }
    Ok(all_passed)
}

/// A row as one line, whatever characters the case's texts contain.
fn line(row: &Row) -> String {
    let Row { name, oracle, compare, .. } = row;
    let verdict = if row.passed { "passed" } else { "FAILED" };
    let worst = row.worst.map_or_else(|| "-".to_owned(), |worst| format!("{worst:.3e}"));
    let detail = if row.detail.is_empty() { String::new() } else { format!("  {}", row.detail) };
    let line = format!("{verdict}  {name:32} {oracle:18} {compare:28} {worst:>9}{detail}");
    line.replace('\n', " ").replace(char::is_control, "\u{fffd}")
}

/// Writes lines. If the reader has closed the pipe, the remaining lines are dropped, but all cases still run: the exit
/// status and the JSON file cover all of them.
struct Lines<'a, W> {
    out: &'a mut W,
    closed: bool,
}

impl<W: Write> Lines<'_, W> {
    fn line(&mut self, line: &str) -> io::Result<()> {
        if self.closed {
            return Ok(());
        }
        match writeln!(self.out, "{line}").and_then(|()| self.out.flush()) {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {
                self.closed = true;
                Ok(())
            }
            written => written,
        }
    }
}

/// A folder with a case, or a folder that could not be read.
type FoundFolder = Result<PathBuf, (PathBuf, io::Error)>;

/// Every folder below this one with an entry `case.json`, of whatever type, in the order of their paths.
///
/// A link to a case is followed. Folders below a link are not searched, because links can form circles.
fn find_cases(folder: &Path) -> io::Result<Vec<FoundFolder>> {
    fs::read_dir(folder)?;
    let mut found = Vec::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(folder) = open.pop() {
        let is_case = |folder: &Path| folder.join("case.json").symlink_metadata().is_ok();
        if is_case(&folder) {
            found.push(Ok(folder.clone()));
        }
        let entries = fs::read_dir(&folder).and_then(|entries| {
            entries.map(|entry| entry.and_then(|entry| Ok((entry.file_type()?, entry.path())))).collect()
        });
        let entries: Vec<_> = match entries {
            Ok(entries) => entries,
            Err(e) => {
                found.push(Err((folder, e)));
                continue;
            }
        };
        for (file_type, path) in entries {
            if file_type.is_dir() && path.file_name().is_some_and(|name| name != "case.json") {
                open.push(path);
            } else if file_type.is_symlink() && is_case(&path) {
                found.push(Ok(path));
            }
        }
    }
    found.sort_by(|a, b| path_of(a).cmp(path_of(b)));
    Ok(found)
}

fn path_of(found: &FoundFolder) -> &Path {
    match found {
        Ok(folder) | Err((folder, _)) => folder,
    }
}

/// The row of a case whose name could not be read, if the filter matches the folder's name.
fn unreadable(folder: &Path, filter: &str, why: &str) -> Option<Row> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    name.contains(filter).then(|| failed(folder, name, ["-".to_owned(), "-".to_owned()], why.to_owned()))
}

fn failed(folder: &Path, name: String, [oracle, compare]: [String; 2], detail: String) -> Row {
    let folder = folder.to_path_buf();
    Row { name, oracle, compare, worst: None, passed: false, differs: false, detail, folder }
}

/// Selects the kernels or stock MLX until the guard is dropped. The setting applies to the whole process.
fn computing(kernels: bool) -> MutexGuard<'static, ()> {
    static COMPUTING: Mutex<()> = Mutex::new(());
    let guard = COMPUTING.lock().unwrap_or_else(PoisonError::into_inner);
    cpu_kernels::set_enabled(kernels);
    guard
}

/// Runs one case. Returns `None` if the filter does not match its name.
fn run_case(folder: &Path, arguments: &Arguments) -> Option<Row> {
    let filter = &arguments.filter;
    let case = match Case::read(folder) {
        Ok(case) => case,
        Err(e) => return unreadable(folder, filter, &in_full(&e)),
    };
    if !case.name.contains(filter) {
        return None;
    }
    let _computing = computing(arguments.kernels || !case.is_exact());
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
            compare: found.compared.unwrap_or(compare),
            worst: found.worst,
            passed: found.difference.is_none(),
            differs: found.difference.is_some(),
            detail: found.difference.unwrap_or_default(),
            folder: folder.to_path_buf(),
        },
        Err(e) => failed(folder, case.name.clone(), [oracle, compare], in_full(&e)),
    })
}

/// An error and its causes, in one line.
fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // The text of some errors already contains that of their cause.
        if !text.contains(&error.to_string()) {
            text += &format!(": {error}");
        }
        cause = error.source();
    }
    text
}

/// Replaces a file in one step, with an error that names it.
fn write_whole(file: &Path, contents: &[u8]) -> io::Result<()> {
    mlx_files::write(file, contents)
        .map_err(|e| io::Error::new(e.kind(), format!("writing {}: {e}", file.display())))
}

#[cfg(test)]
mod tests;
