//! The tables of the results.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

/// The tables stand between these two lines of the document.
const BEGIN: &str = "<!-- cargo xtask real: begin -->\n";
const END: &str = "<!-- cargo xtask real: end -->";

/// One result.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) what: String,
    pub(super) found: String,
    /// Whether it is as it must be; `None` where nothing is asked of it.
    pub(super) holds: Option<bool>,
}

impl Row {
    /// A result of which something is asked.
    pub(super) fn compared(what: &str, found: String, holds: bool) -> Self {
        Self { what: what.to_owned(), found, holds: Some(holds) }
    }

    /// A result that is only shown.
    pub(super) fn shown(what: &str, found: String) -> Self {
        Self { what: what.to_owned(), found, holds: None }
    }
}

/// All results.
#[derive(Debug)]
pub(super) struct Report {
    text: String,
    holds: bool,
}

impl Report {
    pub(super) fn new(sha256: &str, licence: &str) -> Self {
        let mut text = String::new();
        let _ = writeln!(text, "Measured on {} at commit {}.", today(), commit());
        let _ = writeln!(text, "Processor: {}.", processor());
        let _ = writeln!(text, "Model: Gemma 3 270M, GGUF, Q4_K_M, SHA-256 `{sha256}`. {licence}");
        Self { text, holds: true }
    }

    /// Adds a table.
    pub(super) fn add(&mut self, title: &str, rows: Vec<Row>) {
        let _ = write!(self.text, "\n### {title}\n\n| check | result | |\n|---|---|---|\n");
        for Row { what, found, holds } in rows {
            let mark = match holds {
                None => "",
                Some(true) => "holds",
                Some(false) => "FAILS",
            };
            let _ = writeln!(self.text, "| {what} | {found} | {mark} |");
            self.holds &= holds != Some(false);
        }
    }

    pub(super) fn markdown(&self) -> &str {
        &self.text
    }

    /// Whether everything is as it must be.
    pub(super) fn holds(&self) -> bool {
        self.holds
    }
}

/// Puts the tables into the document, in place of the earlier ones.
pub(super) fn write(document: &Path, tables: &str) -> io::Result<()> {
    let text = fs::read_to_string(document)?;
    let parts = text.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, behind) = parts
        .ok_or_else(|| io::Error::other(format!("{} has no place for the tables", document.display())))?;
    fs::write(document, format!("{before}{BEGIN}\n{tables}\n{END}{behind}"))
}

/// The date, as year-month-day.
fn today() -> String {
    jiff::Zoned::now().date().to_string()
}

fn commit() -> String {
    let mut git = Command::new("git");
    git.args(["describe", "--always", "--dirty"]).current_dir(workspace::root());
    let said = git.output().map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    said.ok().filter(|commit| !commit.is_empty()).unwrap_or_else(|| "unknown".to_owned())
}

/// The processor's name, where Linux says it, and the number of cores.
fn processor() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned())
    };
    let name = field("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let flags = field("flags").unwrap_or_default();
    let has = ["avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile"];
    let has: Vec<&str> = has.into_iter().filter(|flag| flags.split(' ').any(|f| f == *flag)).collect();
    format!("{name}, {cores} cores, {}", has.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_take_the_place_of_the_earlier_ones() -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("a.md");
        fs::write(&file, format!("# A\n\n{BEGIN}old\n{END}\n\nmore\n"))?;
        write(&file, "new\n")?;
        write(&file, "newer\n")?;
        assert_eq!(fs::read_to_string(&file)?, format!("# A\n\n{BEGIN}\nnewer\n\n{END}\n\nmore\n"));
        fs::write(&file, "# A\n")?;
        assert!(write(&file, "x").is_err());
        Ok(())
    }

    #[test]
    fn a_report_holds_if_all_rows_do() {
        let mut report = Report::new("0", "");
        report.add("A", vec![Row::shown("a", "1".to_owned()), Row::compared("b", "2".to_owned(), true)]);
        assert!(report.holds());
        report.add("B", vec![Row::compared("c", "3".to_owned(), false)]);
        assert!(!report.holds());
        assert!(report.markdown().contains("| c | 3 | FAILS |"));
    }
}
