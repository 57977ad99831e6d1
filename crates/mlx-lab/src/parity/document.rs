//! Writes the results into `docs/parity.md`, between two lines that mark their place.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use serde_json::Value;
use workspace::parity_list::{self, BEGIN, END, MLX_LM};

use super::Row;

#[derive(Deserialize)]
struct MlxLm {
    mlx_lm: String,
    cases: BTreeMap<String, Answer>,
}

/// The result of mlx-lm for one of these cases.
#[derive(Deserialize)]
#[serde(tag = "outcome", rename_all = "lowercase")]
enum Answer {
    Within { worst: f64 },
    Differs { worst: f64, why: Vec<String> },
    Raises { error: String, why: Vec<String> },
}

impl Answer {
    fn why(&self) -> &[String] {
        match self {
            Self::Within { .. } => &[],
            Self::Differs { why, .. } | Self::Raises { why, .. } => why,
        }
    }

    /// The text for a cell of a table.
    fn in_words(&self) -> String {
        match self {
            Self::Within { worst } => format!("within {worst:.0e}"),
            Self::Differs { worst, .. } => format!("differs by {worst:.1}"),
            Self::Raises { error, .. } => format!("raises `{}`", error.replace('`', "'").replace('|', "/")),
        }
    }
}

/// A row with what the report says about its case.
struct Described<'a> {
    row: &'a Row,
    group: String,
    /// The version of MLX that computed the reference, if MLX did.
    mlx: Option<String>,
}

/// Returns the document with its results replaced by these.
///
/// # Errors
///
/// The marks are missing, a case cannot be read, or the file with mlx-lm's results lacks a case or has another one.
pub(super) fn with_results(root: &Path, document: &str, rows: &[Row]) -> io::Result<String> {
    let (before, _, after) = parity_list::parts(document).map_err(io::Error::other)?;
    let cases: Vec<Described<'_>> = rows.iter().map(describe).collect::<io::Result<_>>()?;
    let mlx_lm = mlx_lm(root)?;
    let mut problems = Vec::new();
    parity_list::check_answers(&mlx_lm.cases, rows.iter().map(|row| row.name.as_str()), &mut problems);
    if let Some(problem) = problems.into_iter().next() {
        return Err(io::Error::other(problem));
    }

    let mut text = format!("{BEGIN}\n{}\n", heading(&cases));
    text += &summary(&cases);
    text += &reasons(&cases, &mlx_lm);
    text += &every_case(&cases, &mlx_lm);
    Ok(format!("{before}{text}\n{END}{after}"))
}

fn mlx_lm(root: &Path) -> io::Result<MlxLm> {
    let file = root.join(MLX_LM);
    let error = |e: io::Error| io::Error::new(e.kind(), format!("{MLX_LM}: {e}"));
    serde_json::from_slice(&fs::read(file).map_err(error)?).map_err(|e| error(e.into()))
}

fn describe(row: &Row) -> io::Result<Described<'_>> {
    let read = |file: &str| -> io::Result<Value> {
        let file = row.folder.join(file);
        let error = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", file.display()));
        serde_json::from_slice(&fs::read(&file).map_err(error)?).map_err(|e| error(e.into()))
    };
    let case = read("case.json")?;
    let group = match case["kind"].as_str() {
        Some("rope") => "rotations".to_owned(),
        Some("cache") => "caches".to_owned(),
        _ if case.get("adapters").is_some() => "adapters".to_owned(),
        _ => read("config.json")?["model_type"].as_str().unwrap_or("models").to_owned(),
    };
    // A text model, and the same model with a vision part, are one architecture.
    let group = group.strip_suffix("_text").unwrap_or(&group).to_owned();
    Ok(Described { row, group, mlx: case["mlx"].as_str().map(str::to_owned) })
}

/// The date, the device and the versions.
fn heading(cases: &[Described<'_>]) -> String {
    let oracles: BTreeSet<&str> = cases.iter().map(|case| case.row.oracle.as_str()).collect();
    let mlx: BTreeSet<&str> = cases.iter().filter_map(|case| case.mlx.as_deref()).collect();
    let list = |names: BTreeSet<&str>| names.into_iter().collect::<Vec<_>>().join(", ");
    let (count, passed) = (cases.len(), cases.iter().filter(|case| case.row.passed).count());
    format!(
        "{}, on `{}`: {passed} of {count} cases pass. References: {}; MLX {}.\n",
        today(),
        super::case::this_device(),
        list(oracles),
        list(mlx)
    )
}

/// A row for each architecture and oracle.
fn summary(cases: &[Described<'_>]) -> String {
    let mut groups: BTreeMap<(&str, &str), Vec<&Row>> = BTreeMap::new();
    for case in cases {
        groups.entry((&case.group, &case.row.oracle)).or_default().push(case.row);
    }
    let mut text = "| | reference | cases | passed | exact | worst difference of the others |\n".to_owned();
    text += "|---|---|---|---|---|---|\n";
    for ((group, oracle), rows) in groups {
        let passed = rows.iter().filter(|row| row.passed).count();
        let (exact, close): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(|row| row.compare == "exact");
        let worst = close
            .iter()
            .filter_map(|row| row.worst)
            .fold(None, |worst: Option<f64>, this| Some(worst.map_or(this, |worst| worst.max(this))));
        let worst = worst.map_or_else(String::new, |worst| format!("{worst:.0e}"));
        let (count, exact) = (rows.len(), exact.len());
        let _ = writeln!(text, "| {group} | {oracle} | {count} | {passed} | {exact} | {worst} |");
    }
    text
}

/// The reasons why mlx-lm's results differ from transformers', with the cases that show each.
fn reasons(cases: &[Described<'_>], mlx_lm: &MlxLm) -> String {
    let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let answers = cases.iter().filter_map(|case| mlx_lm.cases.get_key_value(&case.row.name));
    let (mut right, mut count) = (0, 0);
    for (name, answer) in answers {
        count += 1;
        right += usize::from(answer.why().is_empty());
        for why in answer.why() {
            reasons.entry(why).or_default().push(name);
        }
    }
    let mut text = format!(
        "\nmlx-lm {} itself is within the tolerance of {right} of the {count} cases of transformers. The others differ for \
         these reasons:\n\n| what mlx-lm does | cases |\n|---|---|\n",
        mlx_lm.mlx_lm
    );
    for (why, names) in reasons {
        let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
        let _ = writeln!(text, "| {why} | {} |", names.join(", "));
    }
    text
}

/// All cases, in a folded table for each group.
fn every_case(cases: &[Described<'_>], mlx_lm: &MlxLm) -> String {
    let mut groups: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
    for case in cases {
        groups.entry(&case.group).or_default().push(case.row);
    }
    let mut text = "\nEvery case:\n".to_owned();
    for (group, rows) in groups {
        let has_answers = rows.iter().any(|row| mlx_lm.cases.contains_key(&row.name));
        let _ = writeln!(text, "\n<details><summary>{group}, {} cases</summary>\n", rows.len());
        text += "| case | reference | comparison | result | worst difference |";
        text +=
            if has_answers { " mlx-lm |\n|---|---|---|---|---|---|\n" } else { "\n|---|---|---|---|---|\n" };
        for Row { name, oracle, compare, worst, passed, .. } in rows {
            let result = if *passed { "passed" } else { "FAILED" };
            let worst = match worst {
                Some(0.0) => "0".to_owned(),
                Some(worst) => format!("{worst:.1e}"),
                None => String::new(),
            };
            let _ = write!(text, "| `{name}` | {oracle} | {compare} | {result} | {worst} |");
            if has_answers {
                let answer = mlx_lm.cases.get(name).map(Answer::in_words);
                let _ = write!(text, " {} |", answer.unwrap_or_default());
            }
            text.push('\n');
        }
        text += "\n</details>\n";
    }
    text
}

/// Today's date in UTC, as year, month and day.
fn today() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    date((seconds / 86_400) as i64)
}

/// The date this many days after the first of January 1970, in the Gregorian calendar.
fn date(days: i64) -> String {
    let (mut year, mut left) = (1970, days);
    let is_leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let length = |year| if is_leap(year) { 366 } else { 365 };
    while left >= length(year) {
        left -= length(year);
        year += 1;
    }
    let february = if is_leap(year) { 29 } else { 28 };
    let mut month = 1;
    for days in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if left < days {
            break;
        }
        left -= days;
        month += 1;
    }
    format!("{year}-{month:02}-{:02}", left + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        // From `date -u -d @SECONDS`.
        for (days, expected) in [
            (0, "1970-01-01"),
            (58, "1970-02-28"),
            (59, "1970-03-01"),
            (789, "1972-02-29"),
            (11_016, "2000-02-29"),
            (20_453, "2025-12-31"),
            (20_778, "2026-11-21"),
            (47_541, "2100-03-01"),
        ] {
            assert_eq!(date(days), expected);
        }
    }

    #[test]
    fn results_take_the_place_of_the_old_ones_and_of_nothing_else() {
        let root = workspace::root();
        let row = |name: &str, oracle: &str| Row {
            name: name.to_owned(),
            oracle: oracle.to_owned(),
            compare: "exact".to_owned(),
            worst: Some(0.0),
            passed: true,
            differs: false,
            detail: String::new(),
            folder: root.join("xtask/cases").join(name),
        };
        let mut rows = vec![row("lora_f32", "mlx-lm 0.32.2"), row("gemma3_f32_whole", "mlx-lm 0.32.2")];
        rows.push(row("cache_full_bf16", "numpy"));
        let document = format!("before\n{BEGIN}old\n{END}\nbehind\n");
        let error = with_results(&root, &document, &rows).unwrap_err().to_string();
        assert!(error.contains("hf_") && error.contains("run mlx_lm_on_transformers_cases.py"), "{error}");

        rows.extend(mlx_lm(&root).unwrap().cases.keys().map(|name| row(name, "transformers 5.23.0")));
        let found = with_results(&root, &document, &rows).unwrap();
        assert!(
            found.starts_with(&format!("before\n{BEGIN}")) && found.ends_with(&format!("{END}\nbehind\n"))
        );
        assert!(!found.contains("old\n"));
        for part in [
            "| gemma3 | mlx-lm 0.32.2 | 1 | 1 | 1 |  |",
            "| caches | numpy | 1 | 1 | 1 |  |",
            "| `hf_phi3_window` | transformers 5.23.0 | exact | passed | 0 | differs by 22.0 |",
            "| `hf_gemma3_multimodal_inner_keys` | transformers 5.23.0 | exact | passed | 0 | raises `KeyError: 'language_model'` |",
            "| ignores `sliding_window` (`phi3.py` has no window) | `hf_phi3_window`, ",
        ] {
            assert!(found.contains(part), "{part}\n{found}");
        }
        // The second time, it replaces its own output.
        assert_eq!(with_results(&root, &found, &rows).unwrap(), found);
        assert!(with_results(&root, "no marks", &rows).is_err());
    }
}
