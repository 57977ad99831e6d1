//! One case: the changes, and how the changed files are then used.

use std::fs;
use std::io;
use std::path::Path;

use super::folder::{Folder, Target, entries};
use super::kind::{Kind, Settings, Verdict};
use super::random::Random;
use super::{library, program};

/// The longest message; a longer one is a fault.
const LONGEST_MESSAGE: usize = 64 << 10;

/// Runs a case in an empty folder. `tell` is told each step before it runs.
pub(super) fn run(
    settings: &Settings,
    case: u64,
    root: &Path,
    tell: &mut dyn FnMut(&str),
) -> io::Result<Verdict> {
    let mut random = Random::of(settings.seed, case);
    let kind = Kind::of(case);
    let random = &mut random;
    if kind == Kind::Gguf {
        return super::gguf::run(root, random, tell).map(with_short_message);
    }
    let folder = match kind {
        Kind::MlxLmAdapters => Folder::adapted(root, false, random)?,
        Kind::PeftAdapters => Folder::adapted(root, true, random)?,
        Kind::Several | Kind::FileSystem | Kind::Program if random.once_in(3) => {
            let from_peft = random.once_in(2);
            Folder::adapted(root, from_peft, random)?
        }
        _ => Folder::plain(root, random)?,
    };
    if kind == Kind::Config && random.once_in(2) {
        folder.widen()?;
    }
    for target in targets(kind, &folder, random) {
        let file = folder.mutate(target, random)?;
        tell(&format!("changed {}", file.display()));
    }
    let before = entries(root)?;
    let mut outputs = Vec::new();
    let verdict = match kind {
        Kind::Tokenizer | Kind::TokenizerConfig | Kind::Template => library::text(&folder, random, tell),
        Kind::PromptCache => library::prompt_cache(&folder, random, tell, &mut outputs),
        Kind::Program => program::run(settings, &folder, random, tell, &mut outputs)?,
        _ => library::model(&folder, kind, random, tell, &mut outputs),
    };
    let verdict = with_short_message(verdict);
    if let Verdict::Fault(_) = verdict {
        return Ok(verdict);
    }
    // Everything that was there before must still be there, except the files that were to be written.
    let after = entries(root)?;
    let is_output = |path: &Path| outputs.iter().any(|output| path.starts_with(output));
    let changed = before.iter().find(|entry| !is_output(&entry.path) && after.binary_search(entry).is_err());
    if let Some(changed) = changed {
        return Ok(Verdict::Fault(format!("{} was changed or removed", changed.path.display())));
    }
    let new =
        after.iter().find(|entry| !is_output(&entry.path) && before.iter().all(|old| old.path != entry.path));
    Ok(match new {
        Some(new) => Verdict::Fault(format!("{} was written or left behind", new.path.display())),
        None => verdict,
    })
}

/// The verdict, or a fault where its message is too long.
fn with_short_message(verdict: Verdict) -> Verdict {
    match verdict {
        Verdict::Refused(message) if message.len() > LONGEST_MESSAGE => {
            let start: String = message.chars().take(300).collect();
            Verdict::Fault(format!("a message of {} bytes: {start}…", message.len()))
        }
        verdict => verdict,
    }
}

/// The changes in the folder of a case.
fn targets(kind: Kind, folder: &Folder, random: &mut Random) -> Vec<Target> {
    let one = match kind {
        Kind::Config => Target::Config,
        Kind::Generation => Target::Generation,
        Kind::Tokenizer => Target::Tokenizer,
        Kind::TokenizerConfig => Target::TokenizerConfig,
        Kind::Template => Target::Template,
        Kind::Safetensors => Target::Tensors,
        Kind::Index => Target::Index,
        Kind::MlxLmAdapters | Kind::PeftAdapters => Target::Adapters,
        Kind::FileSystem => return vec![Target::FileSystem],
        // For these kinds, the files are changed later or not at all.
        Kind::PromptCache | Kind::Options | Kind::Gguf => return Vec::new(),
        Kind::Program if random.once_in(2) => return Vec::new(),
        Kind::Several | Kind::Program => {
            let mut all = vec![
                Target::Config,
                Target::Generation,
                Target::Tokenizer,
                Target::TokenizerConfig,
                Target::Template,
                Target::Tensors,
            ];
            if folder.adapters.is_some() {
                all.extend([Target::Adapters; 2]);
            }
            return (0..=random.below(3)).map(|_| random.one(&all)).collect();
        }
    };
    // Several changes: the more there are, the earlier the files are refused.
    vec![one; if random.once_in(3) { 2 + random.below(2) } else { 1 }]
}

/// Removes what a case left, whether a file or a folder.
pub(super) fn clean(root: &Path) -> io::Result<()> {
    fs::remove_dir_all(root)?;
    fs::create_dir_all(root)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::time::Duration;

    use super::*;

    /// A few cases of each kind that needs no program: none has a fault, and some give a result.
    #[test]
    fn cases_end_with_an_answer_or_an_error() {
        let _alone = crate::alone::alone();
        let settings = Settings { seed: 1, longest: Duration::from_secs(60), program: "absent".into() };
        let folder = tempfile::tempdir().unwrap();
        let (mut answered, mut refused) = (0, 0);
        for case in (0..60).filter(|&case| Kind::of(case) != Kind::Program) {
            clean(folder.path()).unwrap();
            match run(&settings, case, folder.path(), &mut |_| ()).unwrap() {
                Verdict::Accepted => answered += 1,
                Verdict::Refused(_) => refused += 1,
                Verdict::Fault(fault) => panic!("case {case}: {fault}"),
            }
        }
        assert!(answered > 5 && refused > 5, "{answered} answered, {refused} refused");
    }

    #[test]
    fn a_case_is_the_same_every_time() {
        let _alone = crate::alone::alone();
        let settings = Settings { seed: 7, longest: Duration::from_secs(60), program: "absent".into() };
        let steps = |case| {
            let folder = tempfile::tempdir().unwrap();
            let mut steps = Vec::new();
            let verdict =
                run(&settings, case, folder.path(), &mut |step| steps.push(step.to_owned())).unwrap();
            let text = format!("{steps:?} {verdict:?}");
            text.replace(&folder.path().display().to_string(), "FOLDER")
        };
        for case in 0..13 {
            assert_eq!(steps(case), steps(case), "case {case}");
        }
    }
}
