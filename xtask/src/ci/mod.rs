//! `cargo xtask ci`: runs the checks that a change must pass. `.ci/run` calls it after it has made sure that the machine
//! has the required programs. `docs/ci.md` says which checks run when.

mod changes;
mod downstream;
mod machine;
mod steps;

use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use changes::{Changes, Found};
use machine::Machine;
use steps::{Run, Step};
use workspace::metadata::Metadata;

/// How many steps the table at the end has.
const SLOWEST: usize = 10;

/// Arguments of `cargo xtask ci`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Run every check in full: all mutations, the tests of all features, the sanitizer, ten minutes of fuzzing
    #[arg(long)]
    all: bool,
    /// Choose the checks by the files that differ from this commit; without it, the commit is where the branch left
    /// origin/main, or else the one before the newest
    #[arg(long, value_name = "COMMIT")]
    base: Option<String>,
    /// List the steps without running them
    #[arg(long)]
    list: bool,
}

/// A step that ran.
struct Ran {
    name: String,
    passed: bool,
    time: Duration,
}

/// A step that cannot run on this machine, and why.
struct NotRun {
    name: String,
    lacks: String,
}

pub(crate) fn run(arguments: &Arguments) -> io::Result<bool> {
    let root = workspace::root();
    let Found { changes, commit, base } = changes::find(&root, arguments.base.as_deref())?;
    announce(&match (&changes, &base) {
        _ if arguments.all => "every check in full".to_owned(),
        (Changes::Known(files), Some(base)) => format!("{} files differ from {base}", files.len()),
        _ => "no earlier commit to compare with; checks that depend on what changed run with --all only"
            .to_owned(),
    })?;
    let programs = workspace::target_folder(&root)?.join("debug");
    let machine = Machine::look(&root)?;
    let asked = Run {
        changes: &changes,
        all: arguments.all,
        commit: &commit,
        programs: &programs,
        machine: &machine,
    };
    let steps = steps::steps(&asked, &Metadata::of_workspace(&root)?);
    if arguments.list {
        for step in &steps {
            let cannot = step.lacks.as_ref().map(|lacks| format!(" # not run: {lacks}")).unwrap_or_default();
            announce(&format!("{:44} {:?}{cannot}", step.name, step.command(&root)))?;
        }
        return Ok(true);
    }
    downstream::write(&root)?;
    let (mut ran, mut not_run) = (Vec::new(), Vec::new());
    for mut step in steps {
        if let Some(lacks) = step.lacks.take() {
            announce(&format!("--- {}: NOT RUN, {lacks}", step.name))?;
            not_run.push(NotRun { name: step.name, lacks });
            continue;
        }
        let started = Instant::now();
        announce(&format!("--- {}", step.name))?;
        let passed = passes(&step, &root)?;
        let time = started.elapsed();
        let verdict = if passed { "passed" } else { "FAILED" };
        announce(&format!("--- {}: {verdict} in {:.0} s", step.name, time.as_secs_f64()))?;
        ran.push(Ran { name: step.name, passed, time });
    }
    let failed = ran.iter().filter(|step| !step.passed).count();
    announce(&report(ran, &not_run))?;
    Ok(failed == 0)
}

/// Runs a step and shows its output.
fn passes(step: &Step, root: &Path) -> io::Result<bool> {
    let mut command = step.command(root);
    if !step.checks_output() {
        return Ok(command.status()?.success());
    }
    let output = command.stderr(io::stderr()).output()?;
    io::stdout().write_all(&output.stdout)?;
    Ok(output.status.success() && step.accepts(&String::from_utf8_lossy(&output.stdout)))
}

/// The slowest steps, those that were not run, the failed ones, and how many there are.
fn report(mut ran: Vec<Ran>, not_run: &[NotRun]) -> String {
    let seconds: f64 = ran.iter().map(|step| step.time.as_secs_f64()).sum();
    let failed: Vec<String> =
        ran.iter().filter(|step| !step.passed).map(|step| format!("failed: {}\n", step.name)).collect();
    let passed = ran.len() - failed.len();
    let mut text = format!("{} steps in {seconds:.0} s; the slowest:\n", ran.len());
    ran.sort_by_key(|step| std::cmp::Reverse(step.time));
    for step in ran.iter().take(SLOWEST) {
        text += &format!("{:6.0} s  {}\n", step.time.as_secs_f64(), step.name);
    }
    for NotRun { name, lacks } in not_run {
        text += &format!("NOT RUN: {name}: {lacks}\n");
    }
    format!("{text}{}{passed} passed, {} failed", failed.concat(), failed.len())
}

fn announce(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_ends_with_the_counts() {
        let step = |name: &str, passed, seconds| Ran {
            name: name.to_owned(),
            passed,
            time: Duration::from_secs(seconds),
        };
        let mut ran: Vec<Ran> = (1..=11).map(|seconds| step(&seconds.to_string(), true, seconds)).collect();
        ran.push(step("tests", false, 500));
        let not_run = [NotRun { name: "there".to_owned(), lacks: "no compiler".to_owned() }];
        let text = report(ran, &not_run);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..3], ["12 steps in 566 s; the slowest:", "   500 s  tests", "    11 s  11"]);
        assert_eq!(lines[1 + SLOWEST], "NOT RUN: there: no compiler");
        assert_eq!(lines[2 + SLOWEST..], ["failed: tests", "11 passed, 1 failed"]);
    }
}
