//! Patterns for the names of modules, as PEFT compares them.

use regex::{Regex, RegexBuilder, RegexSet, RegexSetBuilder};

use crate::text::shortened;

/// Names, patterns or numbers that one key of the config may have. A model of 126 blocks has 882 linear layers.
pub(super) const MOST_ENTRIES: usize = 4096;
/// Memory that all regular expressions of one key may take, in bytes as `regex` counts them.
const LARGEST_PATTERNS: usize = 4 << 20;

/// Which part of the name of a module a pattern must fit. The part begins at the beginning of the name or after a dot.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place {
    /// The part ends at the end of the name.
    End,
    /// The part ends at the end of the name or before a dot.
    Anywhere,
}

/// The patterns of one key of the config, in their order. Patterns that are plain names are compared letter by letter,
/// since a regular expression takes about twenty kilobytes of memory.
#[derive(Debug, Clone)]
pub(super) struct Patterns {
    place: Place,
    /// The plain names, each with its position among the patterns. `None` fits any letter.
    names: Vec<(usize, Vec<Option<char>>)>,
    regexes: RegexSet,
    /// The positions of the regular expressions among the patterns.
    pub(super) numbers: Vec<usize>,
}

impl Patterns {
    pub(super) fn new(key: &str, place: Place, patterns: Vec<String>) -> Result<Self, String> {
        check_count(key, patterns.len())?;
        let (mut names, mut regexes, mut numbers) = (Vec::new(), Vec::new(), Vec::new());
        for (i, pattern) in patterns.into_iter().enumerate() {
            match letters(&pattern) {
                Some(letters) => names.push((i, letters)),
                None => {
                    numbers.push(i);
                    regexes.push(match place {
                        Place::End => format!(r"^(.*\.)?({pattern})$"),
                        Place::Anywhere => format!(r"(?:^|\.)(?:{pattern})(?:$|\.)"),
                    });
                }
            }
        }
        let built = RegexSetBuilder::new(&regexes).size_limit(LARGEST_PATTERNS).build();
        let regexes = built.map_err(|_| {
            // With a limit of 0 an expression that can be read fails because of its size, and only another one because of
            // its syntax.
            let parse = |pattern: &str| RegexBuilder::new(pattern).size_limit(0).build();
            let wrong = regexes.iter().find(|p| matches!(parse(p), Err(regex::Error::Syntax(_))));
            wrong.map_or_else(
                || {
                    let megabytes = LARGEST_PATTERNS >> 20;
                    format!("the regular expressions of {key} need more than {megabytes} MB; name the layers instead")
                },
                |pattern| unreadable(key, pattern),
            )
        })?;
        Ok(Self { place, names, regexes, numbers })
    }

    /// The position of the first pattern that fits.
    pub(super) fn first(&self, module: &str) -> Option<usize> {
        let name = self.names.iter().find(|(_, letters)| self.fits(letters, module)).map(|(i, _)| *i);
        let regex = self.regexes.matches(module).iter().next().map(|i| self.numbers[i]);
        name.into_iter().chain(regex).min()
    }

    fn fits(&self, letters: &[Option<char>], module: &str) -> bool {
        let behind_dots = module.match_indices('.').map(|(dot, _)| dot + 1);
        std::iter::once(0).chain(behind_dots).any(|start| {
            let mut rest = module[start..].chars();
            let same = letters.iter().all(|&l| rest.next().is_some_and(|found| l.is_none_or(|l| l == found)));
            same && match self.place {
                Place::End => rest.next().is_none(),
                Place::Anywhere => rest.next().is_none_or(|next| next == '.'),
            }
        })
    }
}

/// The letters of a pattern that is a plain name, with `None` for a dot, which fits any letter; `None` for any other
/// pattern.
fn letters(pattern: &str) -> Option<Vec<Option<char>>> {
    let mut letters = Vec::with_capacity(pattern.len());
    let mut rest = pattern.chars();
    while let Some(letter) = rest.next() {
        letters.push(match letter {
            '.' => None,
            '\\' if rest.next() == Some('.') => Some('.'),
            _ if letter.is_alphanumeric() || matches!(letter, '_' | '-') => Some(letter),
            _ => return None,
        });
    }
    Some(letters)
}

/// Checks that a key of the config does not have too many entries.
pub(super) fn check_count(key: &str, count: usize) -> Result<(), String> {
    if count <= MOST_ENTRIES {
        return Ok(());
    }
    Err(format!("{key} has {count} entries, and may have at most {MOST_ENTRIES}"))
}

/// Compiles a pattern of Python, if it uses only what Rust has too. Its size is limited, since it may come from a
/// download; matching takes time in proportion to the name.
pub(super) fn compile(key: &str, pattern: &str) -> Result<Regex, String> {
    let built = RegexBuilder::new(pattern).size_limit(1 << 20).build();
    built.map_err(|_| unreadable(key, pattern))
}

fn unreadable(key: &str, pattern: &str) -> String {
    format!("{key} has a pattern that cannot be read: {}", shortened(pattern))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A plain name fits as Python's `re` would have it, whatever way it is looked for.
    #[test]
    fn names_fit_as_regular_expressions_do() {
        let names = [
            "",
            "q_proj",
            "proj",
            "self_attn",
            "layers.1",
            r"layers\.1",
            "layers.1.self_attn",
            "self.attn",
            "é",
        ];
        let modules = [
            "",
            "q_proj",
            "x.q_proj",
            "xq_proj",
            "layers.1.self_attn.q_proj",
            "layersx1",
            "a.layers.10",
            "é",
            "a..b",
        ];
        for place in [Place::End, Place::Anywhere] {
            for name in names {
                let plain = Patterns::new("key", place, vec![name.to_owned()]).unwrap();
                assert_eq!(plain.names.len(), 1, "{name}");
                let regex = Patterns::new("key", place, vec![format!("(?:{name})")]).unwrap();
                assert_eq!(regex.numbers.len(), 1, "{name}");
                for module in modules {
                    assert_eq!(plain.first(module), regex.first(module), "{name} {module} {place:?}");
                }
            }
        }
    }
}
