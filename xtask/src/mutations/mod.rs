//! `cargo xtask mutations`: checks that parity detects a broken model.
//!
//! A mutation is one wrong line of the kind that people write: a wrong sign, an off-by-one error, two swapped
//! names. Each mutation is applied to a copy of this tree, never to the tree itself. It is caught if a parity
//! case then differs from its reference. A mutant that does not load or does not compile proves nothing about
//! parity.

mod table;

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use table::MUTATIONS;

/// Arguments of `cargo xtask mutations`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Run only mutations whose name or file contains this text
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    /// Run only the mutations of this file
    #[arg(long = "file", value_name = "FILE")]
    files: Vec<String>,
    /// Run only this many, and all of the files of --file
    #[arg(long, value_name = "N")]
    sample: Option<usize>,
    /// Choose others for --sample
    #[arg(long, value_name = "TEXT", default_value = "", requires = "sample")]
    seed: String,
    /// List the mutations without running them
    #[arg(long)]
    list: bool,
}

/// One way to break the code.
#[derive(Debug, Clone, Copy)]
struct Mutation {
    name: &'static str,
    file: &'static str,
    /// The text to replace, which occurs exactly once.
    find: &'static str,
    replace: &'static str,
    /// The cases to run, as in `cargo xtask parity --filter`.
    filter: &'static str,
}

/// One entry of the file that `cargo xtask parity --json` writes.
#[derive(Debug, Deserialize)]
struct CaseResult {
    name: String,
    passed: bool,
    differs: bool,
    detail: String,
}

/// The result of a mutant.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// This case differs, and this many others.
    Caught {
        by: String,
        more: usize,
    },
    Survived {
        why: String,
    },
}

/// A mutant needs a second or two. One that loops is ended after this time.
const LONGEST_RUN: Duration = Duration::from_secs(300);

pub(crate) fn run(arguments: &Arguments) -> io::Result<bool> {
    let mut out = io::stdout().lock();
    let chosen = choose(MUTATIONS, arguments);
    if arguments.list {
        for Mutation { name, file, filter, .. } in &chosen {
            writeln!(out, "{name:48} {file:44} {filter}")?;
        }
        return Ok(true);
    }
    if chosen.is_empty() {
        let Arguments { filter, files, .. } = arguments;
        let of = if files.is_empty() { String::new() } else { format!(" and is of {}", files.join(", ")) };
        return Err(io::Error::other(format!("no mutation has {filter:?} in its name or file{of}")));
    }

    let root = workspace::root();
    for mutation in &chosen {
        apply(mutation, &read(&root.join(mutation.file))?).map_err(io::Error::other)?;
    }
    let copy = TreeCopy::of(&root)?;
    let started = Instant::now();
    progress("building the copy without a mutation, and running all cases");
    copy.check_unmutated(&chosen)?;
    progress(&format!("all passed after {:.0} s", started.elapsed().as_secs_f64()));

    let (mut caught, mut survived) = (0, 0);
    let mut broken = Vec::new();
    for (number, mutation) in (1..).zip(&chosen) {
        let Mutation { name, file, .. } = mutation;
        let since = Instant::now();
        progress(&format!("{number} of {}: {name}", chosen.len()));
        match copy.try_one(mutation)? {
            Ok(Verdict::Caught { by, more: 0 }) => {
                caught += 1;
                writeln!(out, "caught    {name:48} by {by}")?;
            }
            Ok(Verdict::Caught { by, more }) => {
                caught += 1;
                writeln!(out, "caught    {name:48} by {by} and {more} more")?;
            }
            Ok(Verdict::Survived { why }) => {
                survived += 1;
                writeln!(out, "SURVIVED  {name:48} {file}: {}", why.lines().next().unwrap_or_default())?;
            }
            Err(problem) => {
                writeln!(out, "ERROR     {name:48} {problem}")?;
                broken.push(name);
            }
        }
        out.flush()?;
        progress(&format!("{:.1} s", since.elapsed().as_secs_f64()));
    }
    progress(&format!("{:.0} s in total", started.elapsed().as_secs_f64()));
    if !broken.is_empty() {
        writeln!(out, "{} mutations of the table cannot be run", broken.len())?;
    }
    writeln!(out, "{caught} caught, {survived} survived")?;
    Ok(survived == 0 && broken.is_empty())
}

/// Whether there is a mutation of this file.
pub(crate) fn exist_for(file: &str) -> bool {
    MUTATIONS.iter().any(|mutation| mutation.file == file)
}

/// The mutations that these arguments ask for, in the order of the table.
fn choose<'a>(all: &'a [Mutation], arguments: &Arguments) -> Vec<&'a Mutation> {
    let Arguments { filter, files, sample, seed, .. } = arguments;
    let matching: Vec<&Mutation> = all
        .iter()
        .filter(|mutation| mutation.name.contains(filter) || mutation.file.contains(filter))
        .collect();
    let of_files = |mutation: &Mutation| files.iter().any(|file| file == mutation.file);
    let sampled: BTreeSet<&str> = match sample {
        None if files.is_empty() => return matching,
        None => BTreeSet::new(),
        Some(sample) => {
            let mut others: Vec<&str> = matching
                .iter()
                .filter(|mutation| !of_files(mutation))
                .map(|mutation| mutation.name)
                .collect();
            others.sort_by_key(|name| Sha256::digest(format!("{seed} {name}")));
            others.into_iter().take(*sample).collect()
        }
    };
    matching.into_iter().filter(|mutation| of_files(mutation) || sampled.contains(mutation.name)).collect()
}

/// The text with the mutation applied.
fn apply(mutation: &Mutation, text: &str) -> Result<String, String> {
    let Mutation { name, file, find, replace, .. } = mutation;
    match text.matches(find).count() {
        1 => Ok(text.replacen(find, replace, 1)),
        found => Err(format!(
            "mutation {name}: its text occurs {found} times in {file} and must occur once; update its row \
             in xtask/src/mutations/table.rs:\n{find}"
        )),
    }
}

/// A copy of the tree to break, with its own target folder, both below `target/mutations`.
struct TreeCopy {
    tree: PathBuf,
    target: PathBuf,
    results: PathBuf,
    /// The lock that is held while the copy is used.
    _lock: File,
}

impl TreeCopy {
    /// Copies the current files, committed or not. Files of an earlier run that are still the same are left as
    /// they are, so that only changes are built again. This also removes a mutation that an interrupted run
    /// left behind.
    fn of(root: &Path) -> io::Result<Self> {
        let folder = root.join("target/mutations");
        let (tree, target) = (folder.join("tree"), folder.join("target"));
        fs::create_dir_all(&tree)?;
        let lock = File::create(folder.join("lock"))?;
        lock.try_lock().map_err(|e| match e {
            TryLockError::WouldBlock => {
                io::Error::other("another `cargo xtask mutations` is running; wait until it ends")
            }
            TryLockError::Error(e) => e,
        })?;
        let files: BTreeSet<String> = workspace::tracked_files(root)?.into_iter().collect();
        for file in &files {
            let contents = fs::read(root.join(file))?;
            write_if_new(&tree.join(file), &contents)?;
        }
        remove_others(&tree, &tree, &files)?;
        Ok(Self { tree, target, results: folder.join("results.json"), _lock: lock })
    }

    /// Builds the copy. The inner error is the output of the compiler.
    fn build(&self) -> io::Result<Result<(), String>> {
        let output = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--locked", "--package", "mlx-lab"])
            .current_dir(&self.tree)
            .env("CARGO_TARGET_DIR", &self.target)
            // Fast to build: each program runs for a second, and is built some ninety times.
            .env("CARGO_PROFILE_DEV_OPT_LEVEL", "0")
            .env("CARGO_PROFILE_DEV_DEBUG", "false")
            .env("CARGO_INCREMENTAL", "1")
            .stdin(Stdio::null())
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok(if output.status.success() { Ok(()) } else { Err(said) })
    }

    /// Runs the matching cases, and reads their results.
    fn parity(&self, filter: &str) -> io::Result<Result<Vec<CaseResult>, String>> {
        match fs::remove_file(&self.results) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        // Not through cargo, which would leave behind a mutant that must be killed.
        let program = self.target.join("debug").join(format!("mlx-lab{}", std::env::consts::EXE_SUFFIX));
        let mut child = Command::new(program)
            .args(["parity", "--filter", filter, "--json"])
            .arg(&self.results)
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let started = Instant::now();
        let status = loop {
            match child.try_wait()? {
                Some(status) => break status,
                None if started.elapsed() > LONGEST_RUN => {
                    child.kill()?;
                    child.wait()?;
                    return Ok(Err(format!("ran for over {} s", LONGEST_RUN.as_secs())));
                }
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        let text = match fs::read(&self.results) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Ok(Err(format!("parity wrote no results ({status})")));
            }
            Err(e) => return Err(e),
        };
        Ok(Ok(serde_json::from_slice(&text)?))
    }

    /// Checks that every case passes without a mutation, and that every mutation has cases.
    fn check_unmutated(&self, mutations: &[&Mutation]) -> io::Result<()> {
        self.build()?.map_err(|said| io::Error::other(format!("the tree does not build:\n{said}")))?;
        let results = self.parity("")?.map_err(io::Error::other)?;
        if let Some(failed) = results.iter().find(|result| !result.passed) {
            let CaseResult { name, detail, .. } = failed;
            let message =
                format!("without any mutation {name} fails: {detail}; `cargo xtask parity` shows all");
            return Err(io::Error::other(message));
        }
        for Mutation { name, filter, .. } in mutations {
            if !results.iter().any(|result| result.name.contains(filter)) {
                return Err(io::Error::other(format!("mutation {name}: no case has {filter:?} in its name")));
            }
        }
        Ok(())
    }

    /// Applies the mutation, runs parity, and undoes the mutation. An inner error is an error in the table.
    fn try_one(&self, mutation: &Mutation) -> io::Result<Result<Verdict, String>> {
        let file = self.tree.join(mutation.file);
        let text = read(&file)?;
        let mutated = match apply(mutation, &text) {
            Ok(mutated) => mutated,
            Err(problem) => return Ok(Err(problem)),
        };
        fs::write(&file, mutated)?;
        let outcome = self.build().and_then(|built| match built {
            Ok(()) => self.parity(mutation.filter).map(|results| Ok(verdict(results))),
            Err(said) => Ok(Err(format!("does not compile:\n{said}"))),
        });
        fs::write(&file, text)?;
        outcome
    }
}

/// A mutant is caught by a case that ran and gave another result.
fn verdict(results: Result<Vec<CaseResult>, String>) -> Verdict {
    let results = match results {
        Ok(results) => results,
        Err(why) => return Verdict::Survived { why },
    };
    let mut differing = results.iter().filter(|result| result.differs);
    if let Some(first) = differing.next() {
        return Verdict::Caught { by: first.name.clone(), more: differing.count() };
    }
    let why = match results.iter().find(|result| !result.passed) {
        Some(CaseResult { name, detail, .. }) => {
            format!("no case differs, but {name} cannot be run: {detail}")
        }
        None => format!("all {} cases passed", results.len()),
    };
    Verdict::Survived { why }
}

fn read(file: &Path) -> io::Result<String> {
    fs::read_to_string(file).map_err(|e| io::Error::new(e.kind(), format!("reading {}: {e}", file.display())))
}

/// Does not write a file that already has these contents. This keeps its modification time, which cargo looks
/// at.
fn write_if_new(file: &Path, contents: &[u8]) -> io::Result<()> {
    if fs::read(file).is_ok_and(|old| old == contents) {
        return Ok(());
    }
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(file, contents)
}

/// Removes every file of the copy that the tree does not have.
fn remove_others(tree: &Path, folder: &Path, files: &BTreeSet<String>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let (entry, path) = entry.map(|entry| (entry.file_type(), entry.path()))?;
        if entry?.is_dir() {
            remove_others(tree, &path, files)?;
        } else {
            let name = path.strip_prefix(tree).unwrap_or(&path).to_string_lossy();
            if !files.contains(&*name) {
                fs::remove_file(&path)?;
            }
        }
    }
    Ok(())
}

/// Shows progress on standard error, so that a pipe contains only the results.
fn progress(line: &str) {
    workspace::complain(&format!("  {line}"));
}

#[cfg(test)]
mod tests;
