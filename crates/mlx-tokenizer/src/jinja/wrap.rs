//! Text in lines: the filters `wordwrap` and `pprint`.

use std::rc::Rc;

use super::methods::{Args, lines};
use super::value::{Value, sort};
use super::{Error, Result, run};

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
    let mut out: Vec<String> = Vec::new();
    for line in lines(text, false)? {
        if width <= 0 && !line.is_empty() {
            return Err(Error::new(format!("invalid width {width} (must be > 0)")));
        }
        let wrapped = wrap(line, usize::try_from(width).unwrap_or(1), break_long, hyphens)?;
        out.push(wrapped.join(&between));
        run::bytes((between.len() as u64 + 1) * (wrapped.len() as u64 + 1))?;
    }
    Value::text(out.join(&between))
}

fn is_blank(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\u{b}' | '\u{c}' | '\r' | ' ')
}

/// Words and the space between them; words end behind hyphens between letters too.
fn chunks(line: &str, hyphens: bool) -> Vec<Vec<char>> {
    let chars: Vec<char> = line.chars().collect();
    let letter = |at: usize| chars.get(at).is_some_and(|c| c.is_alphabetic() || *c == '_');
    let word = |at: usize| chars.get(at).is_some_and(|c| c.is_alphanumeric() || *c == '_');
    let punctuated = |at: usize| word(at) || chars.get(at).is_some_and(|c| "!\"'&.,?".contains(*c));
    let mut out = Vec::new();
    let mut start = 0;
    while start < chars.len() {
        let blank = is_blank(chars[start]);
        let mut end = start + 1;
        while end < chars.len() && is_blank(chars[end]) == blank {
            if !blank && hyphens {
                let dash = chars[end - 1] == '-';
                let before = end >= start + 3
                    && letter(end - 2)
                    && (letter(end - 3) || chars[end - 3] == '-' && end >= start + 4 && letter(end - 4));
                let after =
                    letter(end) && (letter(end + 1) || chars.get(end + 1) == Some(&'-') && letter(end + 2));
                if dash && before && after {
                    break;
                }
                // Before and behind a dash of two hyphens or more.
                let run = chars[end..].iter().take_while(|c| **c == '-').count();
                if run >= 2 && chars[end - 1] != '-' && punctuated(end - 1) && word(end + run) {
                    break;
                }
                let run = chars[start..end].iter().all(|c| *c == '-');
                if run
                    && end - start >= 2
                    && chars[end] != '-'
                    && word(end)
                    && start > 0
                    && punctuated(start - 1)
                {
                    break;
                }
            }
            end += 1;
        }
        out.push(chars[start..end].to_vec());
        start = end;
    }
    out
}

fn wrap(line: &str, width: usize, break_long: bool, hyphens: bool) -> Result<Vec<String>> {
    run::bytes(4 * line.len() as u64)?;
    let mut chunks = chunks(line, hyphens);
    chunks.reverse();
    let mut out: Vec<String> = Vec::new();
    let blank = |chunk: &Vec<char>| chunk.iter().all(|c| super::python::is_space(*c));
    while !chunks.is_empty() {
        let mut row: Vec<Vec<char>> = Vec::new();
        let mut length = 0;
        if !out.is_empty() && chunks.last().is_some_and(blank) {
            chunks.pop();
        }
        while let Some(chunk) = chunks.pop_if(|chunk| length + chunk.len() <= width) {
            length += chunk.len();
            row.push(chunk);
        }
        if let Some(chunk) = chunks.pop_if(|chunk| chunk.len() > width) {
            let space = width.saturating_sub(length).max(usize::from(width < 1));
            if break_long {
                // Behind a hyphen, if there is one that is not at the beginning.
                let mut end = space;
                if hyphens && chunk.len() > space {
                    let hyphen = chunk[..space].iter().rposition(|c| *c == '-');
                    if let Some(hyphen) = hyphen.filter(|&at| at > 0 && chunk[..at].iter().any(|c| *c != '-'))
                    {
                        end = hyphen + 1;
                    }
                }
                row.push(chunk[..end].to_vec());
                if end < chunk.len() {
                    chunks.push(chunk[end..].to_vec());
                }
                run::bytes(chunk.len() as u64)?;
            } else if row.is_empty() {
                row.push(chunk);
            } else {
                chunks.push(chunk);
            }
        }
        if row.last().is_some_and(blank) {
            row.pop();
        }
        if !row.is_empty() {
            out.push(row.concat().into_iter().collect());
        }
    }
    Ok(out)
}

/// The longest line of `pprint`.
const WIDTH: usize = 80;

/// Python's `pprint.pformat`, but that long texts stay on one line.
pub(super) fn pretty(value: &Value) -> Result<String> {
    let mut out = String::new();
    write(value, 0, 0, &mut out)?;
    Ok(out)
}

/// A value with the keys of dictionaries in order.
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
            Value::dict(super::value::Dict::from_pairs(pairs)?)
        }
        Value::List(list) => Value::list(list.items.iter().map(sorted).collect::<Result<_>>()?)?,
        Value::Tuple(list) => Value::tuple(list.items.iter().map(sorted).collect::<Result<_>>()?)?,
        _ => value.clone(),
    })
}

/// `allowance` is what comes behind on the same line.
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
