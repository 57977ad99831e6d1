//! Packages: what a crate needs before it can be published.

/// The crates for development, which are not published. They have no version in the workspace's table of dependencies, so
/// that cargo leaves them out of the dev-dependencies of published crates.
const UNPUBLISHED: [&str; 3] = ["mlx-lab", "mlx-testing", "xtask"];

/// Files that every package needs. Licence files are links to those of the workspace, which cargo follows.
const FILES: [&str; 3] = ["README.md", "LICENSE-MIT", "LICENSE-APACHE"];

/// What crates.io allows.
const MOST_KEYWORDS: usize = 5;
const LONGEST_KEYWORD: usize = 20;

/// What is missing in the crate `name`. `files` are the workspace's files, `workspace` is the root manifest.
pub(super) fn missing(name: &str, files: &[String], workspace: &str, keywords: &[String]) -> Vec<String> {
    let is_published = !UNPUBLISHED.contains(&name);
    let mut problems = Vec::new();
    if is_published {
        let path = |file| format!("crates/{name}/{file}");
        let absent = FILES.into_iter().map(path).filter(|path| !files.contains(path));
        problems.extend(absent.map(|path| format!("{path}: is missing, and every package needs it")));
    }
    let row = workspace.lines().find(|line| line.starts_with(&format!("{name} = {{ path = ")));
    if row.is_some_and(|row| row.contains("version = ") != is_published) && name != "mlx-sys" {
        let needed = if is_published { "needs a version" } else { "must have no version" };
        problems.push(format!("Cargo.toml: {name} {needed} in [workspace.dependencies]"));
    }
    if keywords.len() > MOST_KEYWORDS || keywords.iter().any(|keyword| keyword.len() > LONGEST_KEYWORD) {
        problems.push(format!(
            "crates/{name}/Cargo.toml: at most {MOST_KEYWORDS} keywords of at most {LONGEST_KEYWORD} characters"
        ));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_published_crate_needs_a_readme_licences_and_a_version() {
        let files = FILES.map(|file| format!("crates/mlx-a/{file}"));
        let workspace = "mlx-a = { path = \"crates/mlx-a\", version = \"0.1.0\" }\n\
                         mlx-b = { path = \"crates/mlx-b\" }\n\
                         mlx-lab = { path = \"crates/mlx-lab\", version = \"0.1.0\" }";
        assert_eq!(missing("mlx-a", &files, workspace, &[]), [""; 0]);
        let problems = missing("mlx-b", &files, workspace, &[]);
        assert_eq!(problems.len(), FILES.len() + 1, "{problems:?}");
        assert!(problems[3].contains("mlx-b needs a version"), "{problems:?}");
        let problems = missing("mlx-lab", &files, workspace, &[]);
        assert!(problems.len() == 1 && problems[0].contains("must have no version"), "{problems:?}");
        let keywords = |count, word: &str| vec![word.to_owned(); count];
        assert_eq!(missing("mlx-a", &files, workspace, &keywords(5, "llm")), [""; 0]);
        assert_eq!(missing("mlx-a", &files, workspace, &keywords(6, "llm")).len(), 1);
        assert_eq!(missing("mlx-a", &files, workspace, &keywords(1, "a-keyword-of-21-letters")).len(), 1);
    }
}
