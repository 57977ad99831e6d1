//! Which programs cargo linked, by its messages.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use serde::Deserialize;

use super::target::TARGET;

/// A linked program.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Program {
    pub(super) file: PathBuf,
    kind: &'static str,
}

/// What we read of a message of cargo.
#[derive(Deserialize)]
struct Message {
    reason: String,
    executable: Option<PathBuf>,
    target: Option<Target>,
    profile: Option<Profile>,
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

/// The programs for Macs in cargo's messages, which are lines of JSON. Programs that the build itself runs are left out.
///
/// # Errors
///
/// A line is no message, or there is no program.
pub(super) fn programs(messages: &[u8]) -> io::Result<Vec<Program>> {
    let mut found = BTreeMap::new();
    for line in messages.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        let message: Message = serde_json::from_slice(line)?;
        if message.reason != "compiler-artifact" {
            continue;
        }
        let Some(file) = message.executable else { continue };
        if file.components().any(|part| part.as_os_str() == TARGET) {
            let is_test = message.profile.is_some_and(|profile| profile.test);
            found.insert(file, kind(is_test, message.target.as_ref()));
        }
    }
    if found.is_empty() {
        return Err(io::Error::other(format!("cargo linked no program for {TARGET}")));
    }
    Ok(found.into_iter().map(|(file, kind)| Program { file, kind }).collect())
}

fn kind(is_test: bool, target: Option<&Target>) -> &'static str {
    let is = |name| target.is_some_and(|target| target.kind.iter().any(|kind| kind == name));
    match () {
        // Before tests: cargo compiles a benchmark with the profile of tests.
        () if is("bench") => "benchmarks",
        () if is_test => "tests",
        () if is("example") => "examples",
        () => "programs",
    }
}

/// How many programs there are of each kind.
pub(super) fn summary(programs: &[Program]) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for program in programs {
        *counts.entry(program.kind).or_default() += 1;
    }
    let parts: Vec<String> = counts.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn artifact(kind: &str, test: bool, executable: &str) -> String {
        let executable = if executable.is_empty() { "null".to_owned() } else { format!("{executable:?}") };
        format!(
            r#"{{"reason":"compiler-artifact","target":{{"kind":[{kind:?}],"name":"x"}},"profile":{{"test":{test}}},"executable":{executable}}}"#
        )
    }

    #[test]
    fn programs_for_macs_are_found_in_the_messages() {
        let messages = [
            artifact("lib", false, ""),
            artifact("bin", false, "/t/aarch64-apple-darwin/debug/mlx-models"),
            artifact("bin", true, "/t/aarch64-apple-darwin/debug/deps/mlx_models-1"),
            artifact("bin", true, "/t/aarch64-apple-darwin/debug/deps/mlx_models-1"),
            artifact("test", true, "/t/aarch64-apple-darwin/debug/deps/rope-2"),
            artifact("bench", true, "/t/aarch64-apple-darwin/debug/deps/bench-3"),
            artifact("example", false, "/t/aarch64-apple-darwin/debug/examples/chat"),
            // Runs during the build.
            artifact("bin", false, "/t/debug/tool"),
            r#"{"reason":"build-finished","success":true}"#.to_owned(),
            String::new(),
        ];
        let found = programs(messages.join("\n").as_bytes()).unwrap();
        assert_eq!(found.len(), 5);
        assert_eq!(summary(&found), "1 benchmarks, 1 examples, 1 programs, 2 tests");
    }

    #[test]
    fn nothing_linked_is_an_error() {
        let error = programs(artifact("bin", false, "/t/debug/tool").as_bytes()).unwrap_err().to_string();
        assert!(error.contains("linked no program for aarch64-apple-darwin"), "{error}");
        assert!(programs(b"no JSON").is_err());
    }
}
