//! Checks of the command line: that it is consistent, that the tables of docs/generation.md list its options, and that its
//! help is plain.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::{BTreeMap, BTreeSet};

use super::*;

#[test]
fn the_command_line_is_consistent() {
    Arguments::command().debug_assert();
}

/// Options in backticks, such as `--model`.
fn options(cell: &str) -> BTreeSet<String> {
    cell.split('`').skip(1).step_by(2).filter(|text| text.starts_with('-')).map(str::to_owned).collect()
}

/// The names of the options of a subcommand: all of them, and those that its help shows.
fn ours(command: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let program = Arguments::command();
    let command = program.find_subcommand(command).unwrap();
    let (mut names, mut shown) = (BTreeSet::new(), BTreeSet::new());
    for argument in command.get_arguments() {
        shown.extend(argument.get_long().map(|name| format!("--{name}")));
        shown.extend(argument.get_short().map(|name| format!("-{name}")));
        names.extend(argument.get_all_aliases().iter().flatten().map(|name| format!("--{name}")));
    }
    names.extend(shown.clone());
    (names, shown)
}

#[test]
fn the_tables_of_options_are_complete() {
    let document = include_str!("../../../docs/generation.md");
    let fixture = include_str!("../tests/fixtures/mlx_lm_options.json");
    let fixture: serde_json::Value = serde_json::from_str(fixture).unwrap();
    let (mut programs, mut named) = (BTreeSet::new(), BTreeMap::<_, BTreeSet<String>>::new());
    for section in document.split("\n## ").filter(|section| section.starts_with("`mlx_lm.")) {
        let mut names = section.split('`').skip(1).step_by(2);
        let program = names.next().unwrap().strip_prefix("mlx_lm.").unwrap();
        let command = names.next().unwrap().strip_prefix("mlx-models ").unwrap();
        let (mut theirs, known) = (BTreeSet::new(), ours(command).0);
        for row in section.lines().filter_map(|line| line.strip_prefix('|')) {
            let cells: Vec<&str> = row.split('|').collect();
            let here = options(cells[1]);
            let unknown: Vec<_> = here.difference(&known).collect();
            assert!(unknown.is_empty(), "{command} has no {unknown:?}");
            let is_option = cells[0].contains("`-");
            assert_eq!(cells[2].contains("missing"), is_option && here.is_empty(), "{row}");
            named.entry(command).or_default().extend(here);
            theirs.extend(options(cells[0]));
        }
        let expected: Vec<Vec<String>> =
            serde_json::from_value(fixture["programs"][program].clone()).unwrap();
        assert_eq!(theirs, expected.concat().into_iter().collect(), "options of mlx_lm.{program}");
        programs.insert(program);
    }
    assert_eq!(programs.len(), fixture["programs"].as_object().unwrap().len());
    for (command, named) in named {
        let missing: Vec<_> = ours(command).1.into_iter().filter(|name| !named.contains(name)).collect();
        assert!(missing.is_empty(), "the table of {command} lacks {missing:?}");
    }
}

/// The verbs that begin the help of a subcommand or an option. A help text that says what something is, and not what
/// the user gets, begins with another word.
const VERBS: &str = "Add Apply Begin Chat Choose Continue Convert Cut Dequantize Download Draft End Exclude Fuse Generate \
                     Keep Limit Measure Multiply Omit Overlap Penalize Print Quantize Read Repeat Resume Run Sample Save \
                     Search Set Show Skip Split Stop Store Subtract Use Write";

/// The help texts of a command, its arguments and its subcommands, each with where it stands.
fn helps(command: &clap::Command, path: &str) -> Vec<(String, String)> {
    let text =
        |styled: Option<&clap::builder::StyledStr>| styled.map(ToString::to_string).unwrap_or_default();
    let mut found = vec![(path.to_owned(), text(command.get_about()))];
    for argument in command.get_arguments() {
        found.push((format!("{path} {}", argument.get_id()), text(argument.get_help())));
    }
    for subcommand in command.get_subcommands() {
        found.extend(helps(subcommand, &format!("{path} {}", subcommand.get_name())));
    }
    found
}

#[test]
fn help_begins_with_a_verb_and_says_what_the_user_gets() {
    let mut program = Arguments::command();
    program.build();
    let found = helps(&program, "mlx-models");
    assert!(found.len() > 100, "{}", found.len());
    for (place, help) in found {
        let verb = help.split_whitespace().next().unwrap_or_default();
        assert!(VERBS.split_whitespace().any(|known| known == verb), "{place}: {help:?}");
        assert!(
            !help.ends_with('.') && !help.contains(concat!("so m", "any")) && !help.contains("may be given"),
            "{place}: {help:?}"
        );
    }
}
