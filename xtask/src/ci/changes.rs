//! Which files a change touches, as git knows it.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::process::Command;

/// The branch that changes are made for.
const MAIN: &str = "origin/main";

/// The files that differ from an earlier commit.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Changes {
    /// Paths from the workspace's root, of files that were changed, added or removed, committed or not.
    Known(BTreeSet<String>),
    /// There is no earlier commit here, as in a shallow clone.
    Unknown,
}

/// The changes, and what they were found with.
pub(super) struct Found {
    pub(super) changes: Changes,
    /// The newest commit, or an empty text without git.
    pub(super) commit: String,
    /// The commit that the files were compared with.
    pub(super) base: Option<String>,
}

/// Compares the files with `base`. Without a base, the commit at which the branch left `origin/main` is used, and on that
/// branch itself the commit before the newest.
///
/// # Errors
///
/// `base` is no commit of this repository.
pub(super) fn find(root: &Path, base: Option<&str>) -> io::Result<Found> {
    let head = git(root, &["rev-parse", "HEAD"]).map(|commit| commit.trim().to_owned());
    let commit = head.unwrap_or_default();
    let base = match base {
        Some(base) => Some(commit_named(root, base).ok_or_else(|| {
            let message =
                format!("--base: {base:?} is no commit of this repository; fetch it, or leave --base out");
            io::Error::new(io::ErrorKind::NotFound, message)
        })?),
        None => {
            let left = git(root, &["merge-base", "HEAD", MAIN]).map(|commit| commit.trim().to_owned());
            left.filter(|left| *left != commit).or_else(|| commit_named(root, "HEAD^"))
        }
    };
    let changes = base.as_deref().and_then(|base| files(root, base)).map_or(Changes::Unknown, Changes::Known);
    Ok(Found { changes, commit, base })
}

fn commit_named(root: &Path, name: &str) -> Option<String> {
    let name = format!("{name}^{{commit}}");
    Some(git(root, &["rev-parse", "--quiet", "--verify", "--end-of-options", &name])?.trim().to_owned())
}

/// The tracked files that differ from a commit, and the new files that git does not ignore.
fn files(root: &Path, base: &str) -> Option<BTreeSet<String>> {
    let changed = git(root, &["diff", "--name-only", "--no-renames", "-z", base])?;
    let new = git(root, &["ls-files", "--others", "--exclude-standard", "-z"])?;
    Some((changed + &new).split_terminator('\0').map(str::to_owned).collect())
}

/// What git prints, if it succeeds.
fn git(root: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).current_dir(root).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A repository with a commit for each of these files.
    fn repository(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        run(folder.path(), &["init", "--quiet", "--initial-branch", "main"]);
        for file in files {
            commit(folder.path(), file);
        }
        folder
    }

    fn commit(root: &Path, file: &str) {
        fs::write(root.join(file), file).unwrap();
        run(root, &["add", "--all"]);
        let author = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"];
        run(root, &[&author[..], &["commit", "--quiet", "--message", file]].concat());
    }

    fn run(root: &Path, arguments: &[&str]) {
        assert!(git(root, arguments).is_some(), "git {arguments:?}");
    }

    fn known(files: &[&str]) -> Changes {
        Changes::Known(files.iter().map(|&file| file.to_owned()).collect())
    }

    #[test]
    fn the_newest_commit_is_compared_with_the_one_before() {
        let folder = repository(&["first", "second", "third ö"]);
        let root = folder.path();
        assert_eq!(find(root, None).unwrap().changes, known(&["third ö"]));
        assert_eq!(find(root, Some("HEAD~2")).unwrap().changes, known(&["second", "third ö"]));
        // What is not committed counts too, whether git tracks the file or not.
        fs::write(root.join("first"), "changed").unwrap();
        fs::write(root.join("new"), "").unwrap();
        fs::remove_file(root.join("second")).unwrap();
        assert_eq!(find(root, None).unwrap().changes, known(&["first", "new", "second", "third ö"]));
    }

    #[test]
    fn a_branch_is_compared_with_the_commit_where_it_left_main() {
        let folder = repository(&["first"]);
        let root = folder.path();
        run(root, &["update-ref", "refs/remotes/origin/main", "HEAD"]);
        commit(root, "second");
        commit(root, "third");
        let found = find(root, None).unwrap();
        assert_eq!(found.changes, known(&["second", "third"]));
        assert_eq!(found.base, commit_named(root, "HEAD~2"));
        run(root, &["update-ref", "refs/remotes/origin/main", "HEAD"]);
        assert_eq!(find(root, None).unwrap().changes, known(&["third"]));
    }

    #[test]
    fn without_an_earlier_commit_the_changes_are_unknown() {
        let folder = repository(&["first"]);
        let found = find(folder.path(), None).unwrap();
        assert_eq!((found.changes, found.commit.len(), found.base), (Changes::Unknown, 40, None));
        let error = find(folder.path(), Some("nothing")).err().unwrap().to_string();
        assert!(error.contains("--base: \"nothing\" is no commit"), "{error}");
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(find(empty.path(), None).unwrap().changes, Changes::Unknown);
    }
}
