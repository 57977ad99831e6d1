//! Breaks text into lines: the filters `wordwrap` and `pprint`.

use std::ops::Range;
use std::rc::Rc;

use super::args::Args;
use super::compare::sort;
use super::error::{Error, Result};
use super::texts::lines;
use super::value::{Dict, Value};
use super::{python, run};

/// Python's `textwrap.wrap` of each line.
pub(super) fn word_wrap(value: &Value, args: Args) -> Result<Value> {
    let names = ["width", "break_long_words", "wrapstring", "break_on_hyphens"];
    let [width, break_long, between, hyphens] = args.bind("wordwrap", names, 0)?;
    let is = |value: Option<Value>| value.is_none_or(|value| value.is_true());
    let width = width.map_or(Ok(79), |width| width.index())?;
    let (break_long, hyphens) = (is(break_long), is(hyphens));
    let between: Rc<str> =
        between.filter(|between| !between.is_none()).map_or(Ok("\n".into()), |between| between.to_text())?;
    let problem = || Error::new(format!("'{}' object has no attribute 'splitlines'", value.type_name()));
    let text = value.defined()?.as_str().ok_or_else(problem)?;
    let mut out = String::new();
    for (index, line) in lines(text, false)?.into_iter().enumerate() {
        if width <= 0 && !line.is_empty() {
            return Err(Error::new(format!("invalid width {width} (must be > 0)")));
        }
        if index > 0 {
            run::bytes(between.len() as u64)?;
            out += &between;
        }
        let mut words = Words::new(line, hyphens)?;
        let mut first = true;
        while let Some(row) = words.row(usize::try_from(width).unwrap_or(1), break_long, first)? {
            // A row takes at most four bytes for each character.
            run::bytes(4 * row.len() as u64 + between.len() as u64)?;
            if !std::mem::take(&mut first) {
                out += &between;
            }
            out.extend(row);
        }
    }
    Value::text(out)
}

fn is_blank(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\u{b}' | '\u{c}' | '\r' | ' ')
}

/// The words of a line, and the spaces between them, that are not yet in a row.
struct Words {
    chars: Vec<char>,
    hyphens: bool,
    /// The next word, which is empty at the end.
    next: Range<usize>,
}

impl Words {
    fn new(line: &str, hyphens: bool) -> Result<Self> {
        run::bytes(4 * line.len() as u64)?;
        let chars: Vec<char> = line.chars().collect();
        let mut words = Self { chars, hyphens, next: 0..0 };
        words.next = words.word(0);
        Ok(words)
    }

    /// The length of the word or space at a position. Words also end after hyphens between letters.
    fn word(&self, start: usize) -> Range<usize> {
        let Self { chars, hyphens, .. } = self;
        let letter = |at: usize| chars.get(at).is_some_and(|c| c.is_alphabetic() || *c == '_');
        let word = |at: usize| chars.get(at).is_some_and(|c| c.is_alphanumeric() || *c == '_');
        let punctuated = |at: usize| word(at) || chars.get(at).is_some_and(|c| "!\"'&.,?".contains(*c));
        let Some(first) = chars.get(start) else { return start..start };
        let blank = is_blank(*first);
        let mut only_dashes = *first == '-';
        let mut end = start + 1;
        while end < chars.len() && is_blank(chars[end]) == blank {
            if !blank && *hyphens {
                let dash = chars[end - 1] == '-';
                let before = end >= start + 3
                    && letter(end - 2)
                    && (letter(end - 3) || chars[end - 3] == '-' && end >= start + 4 && letter(end - 4));
                let after =
                    letter(end) && (letter(end + 1) || chars.get(end + 1) == Some(&'-') && letter(end + 2));
                if dash && before && after {
                    break;
                }
                // Before and after a dash of two or more hyphens.
                if !dash && chars[end] == '-' && punctuated(end - 1) {
                    let run = chars[end..].iter().take_while(|c| **c == '-').count();
                    if run >= 2 && word(end + run) {
                        break;
                    }
                }
                let long = only_dashes && end - start >= 2;
                if long && chars[end] != '-' && word(end) && start > 0 && punctuated(start - 1) {
                    break;
                }
            }
            only_dashes &= chars[end] == '-';
            end += 1;
        }
        start..end
    }

    fn take(&mut self) -> Range<usize> {
        let after = self.word(self.next.end);
        std::mem::replace(&mut self.next, after)
    }

    fn is_space(&self, word: &Range<usize>) -> bool {
        self.chars[word.clone()].iter().all(|c| python::is_space(*c))
    }

    /// The next row of at most this many characters, if a word can be broken; `None` at the end.
    fn row(&mut self, width: usize, break_long: bool, first: bool) -> Result<Option<Vec<char>>> {
        while !self.next.is_empty() {
            run::steps(1)?;
            if !first && self.is_space(&self.next) {
                self.take();
            }
            let start = self.next.start;
            let mut last = start..start;
            while !self.next.is_empty() && self.next.end - start <= width {
                last = self.take();
            }
            if self.next.len() > width {
                if break_long {
                    // After a hyphen, if there is one that is not at the beginning.
                    let word = &self.chars[self.next.clone()];
                    let mut end = width - (self.next.start - start);
                    let hyphen = word[..end].iter().rposition(|c| *c == '-').filter(|_| self.hyphens);
                    if let Some(hyphen) = hyphen.filter(|&at| word[..at].iter().any(|c| *c != '-')) {
                        end = hyphen + 1;
                    }
                    // The rest of it is a word.
                    let middle = self.next.start + end;
                    last = self.next.start..middle;
                    self.next = middle..self.next.end;
                } else if last.is_empty() {
                    last = self.take();
                }
            }
            let end = if self.is_space(&last) { last.start } else { last.end };
            if end > start {
                return Ok(Some(self.chars[start..end].to_vec()));
            }
        }
        Ok(None)
    }
}

/// The maximum length of a line of `pprint`.
const WIDTH: usize = 80;

/// Python's `pprint.pformat`, except that long texts stay on one line.
pub(super) fn pretty(value: &Value) -> Result<String> {
    let mut out = String::new();
    write(value, 0, 0, &mut out)?;
    Ok(out)
}

/// A value whose dictionaries have their keys in order.
fn sorted(value: &Value) -> Result<Value> {
    Ok(match value {
        Value::Dict(dict) => {
            let mut keyed: Vec<_> = dict
                .entries()
                .iter()
                .map(|(key, value)| (key.clone(), (key.clone(), value.clone())))
                .collect();
            if sort(&mut keyed, false).is_err_and(|error| error.is_limit()) {
                return Err(Error::limit("it sorts too much"));
            }
            let mut pairs = Vec::new();
            for (_, (key, value)) in keyed {
                pairs.push((key, sorted(&value)?));
            }
            Value::dict(Dict::from_pairs(pairs)?)
        }
        Value::List(list) => Value::list(list.items.iter().map(sorted).collect::<Result<_>>()?)?,
        Value::Tuple(list) => Value::tuple(list.items.iter().map(sorted).collect::<Result<_>>()?)?,
        _ => value.clone(),
    })
}

/// `allowance` is the number of characters that follow on the same line.
fn write(value: &Value, indent: usize, allowance: usize, out: &mut String) -> Result<()> {
    let value = sorted(value)?;
    let text = value.repr()?;
    if text.chars().count() + indent + allowance <= WIDTH {
        *out += &text;
        return Ok(());
    }
    let pad = |out: &mut String, indent: usize| {
        *out += ",\n";
        *out += &" ".repeat(indent);
    };
    match &value {
        Value::Dict(dict) => {
            out.push('{');
            let count = dict.len();
            for (index, (key, value)) in dict.entries().iter().enumerate() {
                if index > 0 {
                    pad(out, indent + 1);
                }
                let key = key.repr()?;
                *out += &key;
                *out += ": ";
                let behind = if index + 1 == count { allowance + 1 } else { 1 };
                write(value, indent + 3 + key.chars().count(), behind, out)?;
            }
            out.push('}');
        }
        Value::List(list) | Value::Tuple(list) => {
            let is_list = matches!(value, Value::List(_));
            out.push(if is_list { '[' } else { '(' });
            let end = if is_list {
                "]"
            } else if list.items.len() == 1 {
                ",)"
            } else {
                ")"
            };
            for (index, item) in list.items.iter().enumerate() {
                if index > 0 {
                    pad(out, indent + 1);
                }
                let behind = if index + 1 == list.items.len() { allowance + end.len() } else { 1 };
                write(item, indent + 1, behind, out)?;
            }
            *out += end;
        }
        _ => *out += &text,
    }
    run::bytes(indent as u64)
}
