//! The results in `docs/parity.md`: where they stand in the document, and whether they are about the existing cases.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;

use serde::Deserialize;
use serde::de::IgnoredAny;

/// The line before the results.
pub const BEGIN: &str = "<!-- results: `cargo xtask parity --document` writes from here -->\n";
/// The line after the results.
pub const END: &str = "<!-- results: to here -->";

/// The results of mlx-lm for the cases of transformers, written by a script.
pub const MLX_LM: &str = "xtask/python/mlx_lm_on_transformers_cases.json";

/// Returns the text before the results, the results with the mark before them, and the text after the results.
///
/// # Errors
///
/// The document lacks one of the marks.
pub fn parts(document: &str) -> Result<(&str, &str, &str), String> {
    let (begin, end) = (document.find(BEGIN), document.find(END));
    match (begin, end) {
        (Some(begin), Some(end)) if begin < end => {
            Ok((&document[..begin], &document[begin..end], &document[end + END.len()..]))
        }
        _ => Err(format!("docs/parity.md: the results belong between the lines {BEGIN:?} and {END:?}")),
    }
}

/// Checks that the document lists exactly the existing cases, and that there is a result of mlx-lm for exactly the cases
/// of transformers. `names` are the folders of the cases.
///
/// # Errors
///
/// The document or the results of mlx-lm cannot be read.
pub fn check(root: &Path, names: &BTreeSet<&str>, problems: &mut Vec<String>) -> io::Result<()> {
    #[derive(Deserialize)]
    struct MlxLm {
        cases: BTreeMap<String, IgnoredAny>,
    }
    match parts(&fs::read_to_string(root.join("docs/parity.md"))?) {
        Err(problem) => problems.push(problem),
        Ok((_, results, _)) => check_list(results, names, problems),
    }
    let error = |e: io::Error| io::Error::new(e.kind(), format!("{MLX_LM}: {e}"));
    let text = fs::read(root.join(MLX_LM)).map_err(error)?;
    let mlx_lm: MlxLm = serde_json::from_slice(&text).map_err(|e| error(e.into()))?;
    check_answers(&mlx_lm.cases, names.iter().copied(), problems);
    Ok(())
}

fn check_list(results: &str, names: &BTreeSet<&str>, problems: &mut Vec<String>) {
    let name = |line| str::strip_prefix(line, "| `").and_then(|rest| rest.split('`').next());
    let listed: BTreeSet<&str> = results.lines().filter_map(name).collect();
    for (missing, what) in [(names.difference(&listed), "lacks"), (listed.difference(names), "still lists")] {
        for case in missing {
            problems
                .push(format!("docs/parity.md: {what} the case {case}; run `cargo xtask parity --document`"));
        }
    }
}

/// Checks that mlx-lm has a result for exactly the cases of transformers. The keys of `answers` are the cases with a
/// result, and `names` are all cases.
pub fn check_answers<'a, T>(
    answers: &BTreeMap<String, T>,
    names: impl Iterator<Item = &'a str>,
    problems: &mut Vec<String>,
) {
    let of_transformers: BTreeSet<&str> = names.filter(|name| name.starts_with("hf_")).collect();
    let answered: BTreeSet<&str> = answers.keys().map(String::as_str).collect();
    for case in of_transformers.symmetric_difference(&answered) {
        problems.push(format!(
            "{MLX_LM}: {case} must be a case and have a result here; run mlx_lm_on_transformers_cases.py"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_lists_exactly_the_cases() {
        let mut problems = Vec::new();
        let results = "| case | result |\n| `a` | passed |\n| `b` | passed |\n| what `x` does | `y` |\n";
        check_list(results, &BTreeSet::from(["a", "b"]), &mut problems);
        assert_eq!(problems, [""; 0]);
        check_list(results, &BTreeSet::from(["a", "c"]), &mut problems);
        assert_eq!(problems.len(), 2);
        assert!(problems[0].contains("lacks the case c") && problems[1].contains("still lists the case b"));
    }

    #[test]
    fn every_case_of_transformers_has_a_result_of_mlx_lm() {
        let answers = BTreeMap::from([("hf_a", ()), ("hf_gone", ())].map(|(name, ())| (name.to_owned(), ())));
        let mut problems = Vec::new();
        check_answers(&answers, ["a", "hf_a", "hf_new"].into_iter(), &mut problems);
        let names: Vec<&str> = problems.iter().filter_map(|problem| problem.split(' ').nth(1)).collect();
        assert_eq!(names, ["hf_gone", "hf_new"]);
    }
}
