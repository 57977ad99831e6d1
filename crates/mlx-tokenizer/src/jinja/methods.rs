//! The methods of Python's texts, lists, tuples, dictionaries and numbers.

use std::rc::Rc;

use super::args::Args;
use super::compare::contains;
use super::error::{Error, Result, short};
use super::html::{escape, strip_tags, unescape};
use super::numbers::{positive, too_large, whole};
use super::texts::{in_case, joined, justified, lines, replace};
use super::value::{Dict, Value, View};
use super::{format, python, run, store};

/// The text of an argument.
fn text(value: &Option<Value>) -> Result<Option<Rc<str>>> {
    match value {
        None | Some(Value::None) => Ok(None),
        Some(value) => match value.defined()?.as_str() {
            Some(text) => Ok(Some(Rc::clone(text))),
            None => Err(Error::new(format!("expected str, got {}", value.type_name()))),
        },
    }
}

fn required_text(value: &Option<Value>) -> Result<Rc<str>> {
    text(value)?.ok_or_else(|| Error::new("must be str, not NoneType"))
}

fn int(value: &Option<Value>, default: i128) -> Result<i128> {
    value.as_ref().map_or(Ok(default), Value::index)
}

/// Calls a method.
pub(super) fn call(of: &Value, name: &str, args: Args) -> Result<Value> {
    match of {
        Value::Str(text) => text_method(text, name, args),
        Value::Markup(text) => markup_method(text, name, args),
        Value::List(list) if name == "copy" => {
            args.places::<0>(name, 0)?;
            Value::list(list.items.to_vec())
        }
        Value::List(_) | Value::Tuple(_) | Value::Range(..) => sequence_method(of, name, args),
        Value::Dict(dict) => dict_method(dict, name, args),
        Value::Bool(_) | Value::Int(_) | Value::Float(_) => {
            args.places::<0>(name, 0)?;
            number_method(of, name)
        }
        Value::View(..) => {
            let [other] = args.places(name, 1)?;
            let items = other.unwrap_or(Value::None).iterate()?;
            for item in items.iter() {
                if contains(of.clone(), item)? {
                    return Ok(Value::Bool(false));
                }
            }
            Ok(Value::Bool(true))
        }
        Value::Loop(number) if name == "cycle" => {
            if args.positional.is_empty() {
                return Err(Error::new("no items for cycling given"));
            }
            let index = store::with_loop(*number, |of| of.index).unwrap_or_default();
            let count = args.positional.len();
            Ok(args.positional.into_iter().nth(index % count).unwrap_or(Value::None))
        }
        Value::Loop(number) => {
            let before = store::with_loop(*number, |of| of.changed.take()).flatten();
            let changed = match &before {
                None => true,
                Some(before) => {
                    run::elements(2 * before.len())?;
                    let a = Value::tuple(before.clone())?;
                    !a.equals(&Value::tuple(args.positional.clone())?)?
                }
            };
            run::elements(args.positional.len())?;
            store::with_loop(*number, |of| of.changed = Some(args.positional));
            Ok(Value::Bool(changed))
        }
        Value::Cycler(cycler) => {
            args.places::<0>(name, 0)?;
            if name == "reset" {
                cycler.at.set(0);
                return Ok(Value::None);
            }
            let current = cycler.items.get(cycler.at.get()).cloned();
            cycler.at.set((cycler.at.get() + 1) % cycler.items.len().max(1));
            Ok(current.unwrap_or(Value::None))
        }
        _ if name == "fromkeys" => from_keys(args),
        _ => Err(Error::new(format!("'{}' object has no method {name}", of.type_name()))),
    }
}

fn from_keys(args: Args) -> Result<Value> {
    let [keys, value] = args.places("fromkeys", 1)?;
    let value = value.unwrap_or(Value::None);
    let keys = keys.unwrap_or(Value::None).iterate()?;
    Ok(Value::dict(Dict::from_pairs(keys.iter().map(|key| (key.clone(), value.clone())))?))
}

fn number_method(of: &Value, name: &str) -> Result<Value> {
    Ok(match (of, name) {
        (_, "conjugate") => positive(of)?,
        (Value::Float(value), "is_integer") => Value::Bool(value.fract() == 0.0),
        (_, "is_integer") => Value::Bool(true),
        (_, "bit_length") => Value::Int(i128::from(128 - of.index()?.unsigned_abs().leading_zeros())),
        (_, "bit_count") => Value::Int(i128::from(of.index()?.unsigned_abs().count_ones())),
        (Value::Float(value), _) => {
            // An error if there is no such integer.
            whole(*value)?;
            let (mut value, mut denominator) = (*value, 1_i128);
            while value.fract() != 0.0 {
                value *= 2.0;
                denominator = denominator.checked_mul(2).ok_or_else(too_large)?;
            }
            Value::tuple(vec![Value::Int(whole(value)?), Value::Int(denominator)])?
        }
        _ => Value::tuple(vec![positive(of)?, Value::Int(1)])?,
    })
}

fn sequence_method(of: &Value, name: &str, args: Args) -> Result<Value> {
    let [item, start, stop] = if name == "count" || matches!(of, Value::Range(..)) {
        let [item] = args.places(name, 1)?;
        [item, None, None]
    } else {
        args.places(name, 1)?
    };
    let item = item.unwrap_or(Value::None);
    let items = of.iterate()?;
    let length = items.len() as i128;
    let bound = |value: i128| {
        (if value < 0 { value.saturating_add(length) } else { value }).clamp(0, length) as usize
    };
    let (start, stop) = (bound(int(&start, 0)?), bound(int(&stop, length)?));
    let mut count = 0;
    for (place, of) in items.iter().enumerate() {
        if of.is(&item) || of.equals(&item)? {
            if name == "index" && start <= place && place < stop {
                return Ok(Value::Int(place as i128));
            }
            count += 1;
        }
    }
    if name == "index" {
        return Err(Error::new(format!("{} is not in {}", short(&item.repr()?), of.type_name())));
    }
    Ok(Value::Int(count))
}

fn dict_method(dict: &Rc<Dict>, name: &str, args: Args) -> Result<Value> {
    let view = |view| Value::View(view, Rc::clone(dict));
    Ok(match name {
        "get" => {
            let [key, default] = args.places(name, 1)?;
            let found = dict.get(&key.unwrap_or(Value::None))?.cloned();
            found.or(default).unwrap_or(Value::None)
        }
        "fromkeys" => from_keys(args)?,
        _ => {
            args.places::<0>(name, 0)?;
            match name {
                "keys" => view(View::Keys),
                "values" => view(View::Values),
                "items" => view(View::Items),
                _ => Value::dict(dict.copied()?),
            }
        }
    })
}

/// Escapes the texts for markup. The result is markup.
fn markup_method(text: &Rc<str>, name: &str, mut args: Args) -> Result<Value> {
    match name {
        "striptags" => return Value::text(strip_tags(text)?),
        "unescape" => {
            run::bytes(text.len() as u64)?;
            return Value::text(unescape(text));
        }
        "format" | "join" | "replace" | "center" | "ljust" | "rjust" => {
            for value in &mut args.positional {
                if value.as_str().is_some() {
                    *value = Value::Markup(escape(value)?);
                }
            }
        }
        _ => {}
    }
    let markup = |value: Value| match value {
        Value::Str(text) => Value::Markup(text),
        value => value,
    };
    Ok(match text_method(text, name, args)? {
        Value::List(list) => Value::list(list.items.iter().cloned().map(markup).collect())?,
        Value::Tuple(list) => Value::tuple(list.items.iter().cloned().map(markup).collect())?,
        value => markup(value),
    })
}

#[allow(clippy::too_many_lines, reason = "a table of the methods")]
fn text_method(of: &Rc<str>, name: &str, args: Args) -> Result<Value> {
    run::reads(of.len())?;
    match name {
        "format" => {
            let named =
                Dict::from_pairs(args.named.into_iter().map(|(name, value)| (Value::Str(name), value)))?;
            Value::text(format::format(of, &args.positional, &named)?)
        }
        "format_map" => {
            let [mapping] = args.places(name, 1)?;
            // Any value is accepted, but only a dictionary has names to look up.
            let empty = Dict::default();
            let named = if let Some(Value::Dict(mapping)) = &mapping { mapping } else { &empty };
            Value::text(format::format(of, &[], named)?)
        }
        "split" | "rsplit" => {
            let [separator, most] = args.bind(name, ["sep", "maxsplit"], 0)?;
            split(of, text(&separator)?.as_deref(), int(&most, -1)?, name == "rsplit")
        }
        "splitlines" => {
            let [keep] = args.bind(name, ["keepends"], 0)?;
            texts(&lines(of, int(&keep, 0)? != 0)?)
        }
        "expandtabs" => {
            let [size] = args.bind(name, ["tabsize"], 0)?;
            expand_tabs(of, int(&size, 8)?)
        }
        "strip" | "lstrip" | "rstrip" => strip(of, name, args),
        "join" => join(of, args),
        "replace" => {
            let [old, new, count] = args.places(name, 2)?;
            let (old, new) = (required_text(&old)?, required_text(&new)?);
            Value::text(replace(of, &old, &new, int(&count, -1)?)?)
        }
        "startswith" | "endswith" => starts_or_ends_with(of, name, args),
        "find" | "rfind" | "index" | "rindex" | "count" => find(of, name, args),
        "center" | "ljust" | "rjust" => {
            let [width, fill] = args.places(name, 1)?;
            let fill = if fill.is_some() { required_text(&fill)? } else { " ".into() };
            if fill.chars().count() != 1 {
                return Err(Error::new("the fill character must be exactly one character long"));
            }
            Value::text(justified(of, int(&width, 0)?, &fill, name)?)
        }
        "zfill" => {
            let [width] = args.places(name, 1)?;
            let digits = of.strip_prefix(['-', '+']).unwrap_or(of);
            let sign = &of[..of.len() - digits.len()];
            let width = int(&width, 0)?.saturating_sub(sign.len() as i128);
            let digits = justified(digits, width, "0", "rjust")?;
            run::bytes(digits.len() as u64)?;
            Value::text(format!("{sign}{digits}"))
        }
        "partition" | "rpartition" => partition(of, name, args),
        "removeprefix" | "removesuffix" => {
            let [affix] = args.places(name, 1)?;
            let affix = required_text(&affix)?;
            let rest =
                if name == "removeprefix" { of.strip_prefix(&*affix) } else { of.strip_suffix(&*affix) };
            Value::text(rest.unwrap_or(of))
        }
        "encode" | "maketrans" | "translate" => {
            Err(Error::new(format!("the method {name} of str is not supported")))
        }
        _ => {
            args.places::<0>(name, 0)?;
            text_method_without_arguments(of, name)
        }
    }
}

fn text_method_without_arguments(of: &Rc<str>, name: &str) -> Result<Value> {
    let is = |found: bool| Ok(Value::Bool(found));
    // All characters must match, and there must be at least one.
    let all = |test: fn(char) -> bool| is(!of.is_empty() && of.chars().all(test));
    let cased = |is_right: fn(char) -> bool, is_wrong: fn(char) -> bool| {
        is(of.chars().any(is_right) && !of.chars().any(is_wrong))
    };
    match name {
        "upper" => in_case(of, str::to_uppercase),
        "lower" => in_case(of, python::lower),
        "casefold" => in_case(of, |of| python::lower(of).replace('ß', "ss").replace('ς', "σ")),
        "title" => in_case(of, python::title),
        "capitalize" => in_case(of, python::capitalize),
        "swapcase" => in_case(of, python::swapcase),
        "isalnum" => all(char::is_alphanumeric),
        "isalpha" => all(char::is_alphabetic),
        "isascii" => is(of.is_ascii()),
        "isdecimal" => all(|c| c.is_ascii_digit() || !c.is_ascii() && is_decimal(c)),
        "isdigit" => all(|c| c.is_ascii_digit() || !c.is_ascii() && (is_decimal(c) || is_super(c))),
        "isnumeric" => all(char::is_numeric),
        "isidentifier" => is(of.chars().next().is_some_and(|c| c.is_alphabetic() || c == '_')
            && of.chars().all(|c| c.is_alphanumeric() || c == '_')),
        "isprintable" => is(of.chars().all(python::is_printable)),
        "isspace" => all(python::is_space),
        "istitle" => is(python::is_title(of)),
        "islower" => cased(char::is_lowercase, char::is_uppercase),
        "isupper" => cased(char::is_uppercase, char::is_lowercase),
        _ => Err(Error::new(format!("'str' object has no method {name}"))),
    }
}

fn strip(of: &Rc<str>, name: &str, args: Args) -> Result<Value> {
    let [chars] = args.places(name, 0)?;
    let chars = text(&chars)?;
    let strips = |c: char| chars.as_ref().map_or_else(|| python::is_space(c), |chars| chars.contains(c));
    run::reads(of.len().saturating_mul(chars.as_ref().map_or(0, |chars| chars.len())))?;
    let mut stripped = &**of;
    if name != "rstrip" {
        stripped = stripped.trim_start_matches(strips);
    }
    if name != "lstrip" {
        stripped = stripped.trim_end_matches(strips);
    }
    Value::text(stripped)
}

fn join(of: &Rc<str>, args: Args) -> Result<Value> {
    let [items] = args.places("join", 1)?;
    let items = items.unwrap_or(Value::None).defined()?.iterate()?;
    run::bytes(16 * items.len() as u64)?;
    let mut parts = Vec::with_capacity(items.len());
    for item in items.iter() {
        let problem = || Error::new(format!("sequence item: expected str, found {}", item.type_name()));
        parts.push(Rc::clone(item.as_str().ok_or_else(problem)?));
    }
    Value::text(joined(&parts, of)?)
}

fn starts_or_ends_with(of: &Rc<str>, name: &str, args: Args) -> Result<Value> {
    let [affixes, start, stop] = args.places(name, 1)?;
    if !matches!(affixes, Some(Value::Tuple(_))) {
        required_text(&affixes)?;
    }
    let Some((part, _)) = part(of, &start, &stop)? else { return Ok(Value::Bool(false)) };
    let matches =
        |affix: &str| if name == "startswith" { part.starts_with(affix) } else { part.ends_with(affix) };
    let Some(Value::Tuple(list)) = &affixes else {
        return Ok(Value::Bool(matches(&required_text(&affixes)?)));
    };
    let mut any = false;
    for affix in list.items.iter() {
        let affix = required_text(&Some(affix.clone()))?;
        run::reads(affix.len().min(part.len()))?;
        any |= matches(&affix);
    }
    Ok(Value::Bool(any))
}

/// The methods `find`, `rfind`, `index`, `rindex` and `count`.
fn find(of: &Rc<str>, name: &str, args: Args) -> Result<Value> {
    let [sub, start, stop] = args.places(name, 1)?;
    let sub = required_text(&sub)?;
    let part = part(of, &start, &stop)?;
    run::reads(of.len())?;
    if name == "count" {
        let count = part.map_or(0, |(part, _)| match sub.len() {
            0 => part.chars().count() + 1,
            _ => part.matches(&*sub).count(),
        });
        return Ok(Value::Int(count as i128));
    }
    let place = part.and_then(|(part, before)| {
        let place = if name.starts_with('r') { part.rfind(&*sub) } else { part.find(&*sub) };
        place.map(|place| part[..place].chars().count() + before)
    });
    match place {
        Some(place) => Ok(Value::Int(place as i128)),
        None if name.ends_with("index") => Err(Error::new("substring not found")),
        None => Ok(Value::Int(-1)),
    }
}

fn partition(of: &Rc<str>, name: &str, args: Args) -> Result<Value> {
    let [separator] = args.places(name, 1)?;
    let separator = required_text(&separator)?;
    if separator.is_empty() {
        return Err(Error::new("empty separator"));
    }
    let last = name == "rpartition";
    let found = if last { of.rsplit_once(&*separator) } else { of.split_once(&*separator) };
    let parts = match found {
        Some((before, after)) => [before, &separator, after],
        None if last => ["", "", of],
        None => [of, "", ""],
    };
    run::bytes(of.len() as u64)?;
    Value::tuple(parts.map(Value::from).to_vec())
}

/// Reads digits of other scripts, which come in blocks of ten.
fn is_decimal(c: char) -> bool {
    let zeros = [
        0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66, 0xe50, 0xed0,
        0xf20, 0x1040, 0x17e0, 0x1810, 0xff10,
    ];
    zeros.iter().any(|&zero| (zero..zero + 10).contains(&u32::from(c)))
}

fn is_super(c: char) -> bool {
    matches!(c, '²' | '³' | '¹' | '⁰' | '⁴'..='⁹' | '₀'..='₉' | '①'..='⑨')
}

/// The text between two positions, and the number of characters before it; `None` if the first is after the
/// end.
fn part<'a>(of: &'a str, start: &Option<Value>, stop: &Option<Value>) -> Result<Option<(&'a str, usize)>> {
    let number = |value: &Option<Value>| match value {
        None | Some(Value::None) => Ok(None),
        Some(value) => value.index().map(Some),
    };
    let (start, stop) = (number(start)?, number(stop)?);
    if start.is_none() && stop.is_none() {
        return Ok(Some((of, 0)));
    }
    let length = of.chars().count() as i128;
    let bound = |value: i128| if value < 0 { value.saturating_add(length).max(0) } else { value };
    let (start, stop) = (bound(start.unwrap_or(0)), bound(stop.unwrap_or(length)).min(length));
    if start > length || start > stop {
        return Ok(None);
    }
    let place = |index: i128| of.char_indices().nth(index as usize).map_or(of.len(), |(place, _)| place);
    Ok(Some((&of[place(start)..place(stop)], start as usize)))
}

fn split(of: &str, separator: Option<&str>, most: i128, from_right: bool) -> Result<Value> {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    run::reads(of.len())?;
    let count = match separator {
        Some("") | None => of.split(python::is_space).filter(|word| !word.is_empty()).count(),
        Some(separator) => of.matches(separator).count(),
    };
    run::bytes(16 * (count.min(most) as u64 + 1))?;
    let mut parts: Vec<&str> = Vec::new();
    match separator {
        Some("") => return Err(Error::new("empty separator")),
        Some(separator) if from_right => {
            parts.extend(of.rsplitn(most.saturating_add(1), separator));
            parts.reverse();
        }
        Some(separator) => parts.extend(of.splitn(most.saturating_add(1), separator)),
        None if from_right => {
            let mut rest = of.trim_end_matches(python::is_space);
            while !rest.is_empty() {
                let space = if parts.len() < most {
                    rest.char_indices().rev().find(|(_, c)| python::is_space(*c))
                } else {
                    None
                };
                let Some((place, c)) = space else {
                    parts.push(rest);
                    break;
                };
                parts.push(&rest[place + c.len_utf8()..]);
                rest = rest[..place].trim_end_matches(python::is_space);
            }
            parts.reverse();
        }
        None => {
            let mut rest = of.trim_start_matches(python::is_space);
            while !rest.is_empty() {
                let space = if parts.len() < most { rest.find(python::is_space) } else { None };
                let Some(place) = space else {
                    parts.push(if parts.len() < most {
                        rest.trim_end_matches(python::is_space)
                    } else {
                        rest
                    });
                    break;
                };
                parts.push(&rest[..place]);
                rest = rest[place..].trim_start_matches(python::is_space);
            }
        }
    }
    texts(&parts)
}

fn texts(parts: &[&str]) -> Result<Value> {
    run::elements(parts.len())?;
    Value::list(parts.iter().map(Value::text).collect::<Result<_>>()?)
}

fn expand_tabs(of: &str, size: i128) -> Result<Value> {
    let size = usize::try_from(size.max(0)).unwrap_or(usize::MAX);
    let tabs = of.matches('\t').count() as u64;
    run::bytes((of.len() as u64).saturating_add(tabs.saturating_mul(size as u64)))?;
    let mut out = String::new();
    let mut column = 0;
    for c in of.chars() {
        match c {
            '\t' if size > 0 => {
                let spaces = size - column % size;
                out.extend(std::iter::repeat_n(' ', spaces));
                column += spaces;
            }
            '\t' => {}
            _ => {
                column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
                out.push(c);
            }
        }
    }
    Value::text(out)
}
