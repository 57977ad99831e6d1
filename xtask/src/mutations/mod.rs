//! `cargo xtask mutations`: whether parity finds a broken model.
//!
//! A mutation is one wrong line of the kind that people write: a sign, an off by one, two names exchanged. Each
//! is made in a copy of this tree, never in the tree itself, and is caught if a parity case then differs from
//! its reference. That a mutant does not load or does not compile proves nothing about parity.

mod table;

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;

use table::MUTATIONS;

/// Arguments of `cargo xtask mutations`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Try only mutations whose name or file contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    /// Print them, try none
    #[arg(long)]
    list: bool,
}

/// One way to break the code.
#[derive(Debug, Clone, Copy)]
struct Mutation {
    name: &'static str,
    file: &'static str,
    /// What stands there exactly once.
    find: &'static str,
    replace: &'static str,
    /// Which cases are run, as for `cargo xtask parity --filter`.
    filter: &'static str,
}

/// A line of what `cargo xtask parity --json` writes.
#[derive(Debug, Deserialize)]
struct CaseResult {
    name: String,
    passed: bool,
    differs: bool,
    detail: String,
}

/// What became of a mutant.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// This case differs, and so many more.
    Caught {
        by: String,
        more: usize,
    },
    Survived {
        why: String,
    },
}

/// A mutant needs a second or two; one that goes round in circles is ended after so long.
const LONGEST_RUN: Duration = Duration::from_secs(300);

pub(crate) fn run(arguments: &Arguments) -> io::Result<bool> {
    let mut out = io::stdout().lock();
    let matches = |mutation: &&Mutation| {
        mutation.name.contains(&arguments.filter) || mutation.file.contains(&arguments.filter)
    };
    let chosen: Vec<&Mutation> = MUTATIONS.iter().filter(matches).collect();
    if arguments.list {
        for Mutation { name, file, filter, .. } in &chosen {
            writeln!(out, "{name:48} {file:44} {filter}")?;
        }
        return Ok(true);
    }
    if chosen.is_empty() {
        return Err(io::Error::other(format!("no mutation is called {:?}", arguments.filter)));
    }

    let root = crate::root();
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
    progress(&format!("{:.0} s in all", started.elapsed().as_secs_f64()));
    if !broken.is_empty() {
        writeln!(out, "{} mutations of the table are no mutants", broken.len())?;
    }
    writeln!(out, "{caught} caught, {survived} survived")?;
    Ok(survived == 0 && broken.is_empty())
}

/// The text with the mutation in it.
fn apply(mutation: &Mutation, text: &str) -> Result<String, String> {
    let Mutation { name, file, find, replace, .. } = mutation;
    match text.matches(find).count() {
        1 => Ok(text.replacen(find, replace, 1)),
        found => Err(format!(
            "mutation {name}: its text stands in {file} {found} times and must stand there once; update its row \
             in xtask/src/mutations/table.rs:\n{find}"
        )),
    }
}

/// A copy of the tree to break, with a target folder of its own, both below `target/mutations`.
struct TreeCopy {
    tree: PathBuf,
    target: PathBuf,
    results: PathBuf,
    /// Held as long as this copy is used.
    _lock: File,
}

impl TreeCopy {
    /// The files as they are now, committed or not. What is there from an earlier run stays where it is the same,
    /// so that only what has changed is built again; a mutation that an interrupted run left goes away so, too.
    fn of(root: &Path) -> io::Result<Self> {
        let folder = root.join("target/mutations");
        let (tree, target) = (folder.join("tree"), folder.join("target"));
        fs::create_dir_all(&tree)?;
        let lock = File::create(folder.join("lock"))?;
        lock.try_lock().map_err(|e| match e {
            TryLockError::WouldBlock => {
                io::Error::other("another `cargo xtask mutations` is running; wait for its end")
            }
            TryLockError::Error(e) => e,
        })?;
        let files: BTreeSet<String> = crate::tidy::tracked_files(root)?.into_iter().collect();
        for file in &files {
            let contents = fs::read(root.join(file))?;
            write_if_new(&tree.join(file), &contents)?;
        }
        remove_others(&tree, &tree, &files)?;
        Ok(Self { tree, target, results: folder.join("results.json"), _lock: lock })
    }

    /// What the compiler says against it.
    fn build(&self) -> io::Result<Result<(), String>> {
        let output = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--locked", "--package", "xtask"])
            .current_dir(&self.tree)
            .env("CARGO_TARGET_DIR", &self.target)
            // What is built is run for a second, and built some ninety times.
            .env("CARGO_PROFILE_DEV_OPT_LEVEL", "0")
            .env("CARGO_PROFILE_DEV_DEBUG", "false")
            .env("CARGO_INCREMENTAL", "1")
            .stdin(Stdio::null())
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok(if output.status.success() { Ok(()) } else { Err(said) })
    }

    /// Runs the cases that match, and reads what became of each.
    fn parity(&self, filter: &str) -> io::Result<Result<Vec<CaseResult>, String>> {
        match fs::remove_file(&self.results) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        // Not through cargo, which would leave a mutant behind that has to be ended.
        let program = self.target.join("debug").join(format!("xtask{}", std::env::consts::EXE_SUFFIX));
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

    /// Every case passes before anything is broken, and every mutation has cases to be seen by.
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

    /// Makes the mutation, looks what parity says, and takes it back. An inner error is one of the table.
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

/// Caught is a mutant by a case that ran and found another answer.
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

/// Leaves a file alone that has these contents already, and with it its time, which is what cargo looks at.
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

/// What is being done, on standard error, so that a pipe has the results only.
fn progress(line: &str) {
    crate::complain(&format!("  {line}"));
}

#[cfg(test)]
mod tests;
