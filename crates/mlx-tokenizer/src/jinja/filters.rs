//! Jinja2's filters.

use std::cmp::Ordering;
use std::rc::Rc;

use super::args::Args;
use super::ast::Operator;
use super::compare::sort;
use super::error::{Error, Result, short};
use super::html::{escape, strip_tags};
use super::numbers::{negative, too_large, whole};
use super::texts::{in_case, joined, justified, lines, repeat, replace};
use super::value::{Dict, Value, View};
use super::{attributes, dumps, format, methods, names, ops, python, run, sequences, tests, wrap};

/// `value | name(args)`.
#[allow(clippy::too_many_lines, reason = "a table of the filters")]
pub(super) fn call(name: &str, value: &Value, args: Args) -> Result<Value> {
    run::reads(value.as_str().map_or(0, |text| text.len()))?;
    match name {
        "attr" => {
            let [attribute] = args.bind(name, ["name"], 1)?;
            let attribute = attribute.unwrap_or(Value::None);
            let attribute = attribute.as_str().ok_or_else(|| Error::new("attribute name must be string"))?;
            attributes::only_attribute(value, attribute)
        }
        "batch" => {
            let [count, fill] = args.bind(name, ["linecount", "fill_with"], 1)?;
            let (count, fill) = (count.unwrap_or(Value::None), fill.filter(|fill| !fill.is_none()));
            generator("do_batch", || batch(value, &count, fill))
        }
        "center" => {
            let [width] = args.bind(name, ["width"], 0)?;
            let width = width.map_or(Ok(80), |width| width.index())?;
            Value::text(justified(&value.to_text()?, width, " ", "center")?)
        }
        "d" | "default" => {
            let [default, boolean] = args.bind(name, ["default_value", "boolean"], 0)?;
            let missing = value.is_undefined() || boolean.is_some_and(|of| of.is_true()) && !value.is_true();
            Ok(if missing { default.unwrap_or_else(|| "".into()) } else { value.clone() })
        }
        "dictsort" => dict_sort(value, args),
        "filesizeformat" => file_size(value, args),
        "float" => {
            let [default] = args.bind(name, ["default"], 0)?;
            let default = default.unwrap_or(Value::Float(0.0));
            Ok(to_float(value)?.map_or(default, Value::Float))
        }
        "format" => format_percent(value, args),
        "groupby" => group_by(value, args),
        "indent" => indent(value, args),
        "int" => to_int(value, args),
        "join" => join(value, args),
        "map" => map(value, args),
        "max" | "min" => extreme(name, value, args),
        "select" | "reject" | "selectattr" | "rejectattr" => select(name, value, args),
        "replace" => {
            let [old, new, count] = args.bind(name, ["old", "new", "count"], 2)?;
            let text = |value: Option<Value>| value.unwrap_or(Value::None).to_text();
            let count = count.filter(|count| !count.is_none()).map_or(Ok(-1), |count| count.index())?;
            Value::text(replace(&value.to_text()?, &text(old)?, &text(new)?, count)?)
        }
        "round" => round(value, args),
        "slice" => {
            let [count, fill] = args.bind(name, ["slices", "fill_with"], 1)?;
            let (count, fill) = (count.unwrap_or(Value::None), fill.filter(|fill| !fill.is_none()));
            generator("sync_do_slice", || slices(value, &count, fill))
        }
        "sort" => sort_elements(value, args),
        "sum" => sum(value, args),
        "tojson" => to_json(value, args),
        "trim" => {
            let [chars] = args.bind(name, ["chars"], 0)?;
            let args = Args { positional: chars.into_iter().collect(), named: Vec::new() };
            methods::call(&Value::Str(value.to_text()?), "strip", args)
        }
        "truncate" => truncate(value, args),
        "unique" => unique(value, args),
        "wordwrap" => wrap::word_wrap(value, args),
        "xmlattr" => xml_attributes(value, args),
        "urlize" => Err(Error::new("the filter urlize is not supported")),
        _ if !names::is_filter(name) => Err(Error::new(format!("no filter named {name:?} found"))),
        _ => {
            args.bind::<0>(name, [], 0)?;
            without_arguments(name, value)
        }
    }
}

/// The filters that take no arguments.
fn without_arguments(name: &str, value: &Value) -> Result<Value> {
    match name {
        "abs" => match value.defined()? {
            Value::Float(of) => Ok(Value::Float(of.abs())),
            of => match of.as_int() {
                Some(number) if number < 0 => negative(of),
                Some(number) => Ok(Value::Int(number)),
                None => Err(Error::new(format!("bad operand type for abs(): '{}'", value.type_name()))),
            },
        },
        "capitalize" | "lower" | "upper" | "title" | "string" | "wordcount" => simple_text(name, value),
        "count" | "length" => Ok(Value::Int(value.length()? as i128)),
        "e" | "escape" => Ok(Value::Markup(escape(value)?)),
        "first" => first(value),
        "forceescape" => Ok(Value::Markup(escape(&Value::Str(value.to_text()?))?)),
        "items" => generator("do_items", || match value {
            Value::Undefined(_) => Ok((Vec::new(), None)),
            Value::Dict(dict) => {
                let pair = |(key, value): &(Value, Value)| Value::tuple(vec![key.clone(), value.clone()]);
                Ok((dict.entries().iter().map(pair).collect::<Result<_>>()?, None))
            }
            _ => Err(Error::new("can only get item pairs from a mapping")),
        }),
        "last" => match value {
            Value::Iterator(_) | Value::Loop(_) => {
                Err(Error::new(format!("'{}' object is not reversible", value.type_name())))
            }
            _ => {
                let last = value.iterate()?.last().cloned();
                Ok(last.unwrap_or_else(|| Value::undefined("no last item, sequence was empty")))
            }
        },
        "list" => {
            let items = value.iterate()?;
            run::elements(items.len())?;
            Value::list(items.to_vec())
        }
        "pprint" => Value::text(wrap::pretty(value)?),
        "random" => random(value),
        "reverse" => reverse(value),
        "safe" => Ok(Value::Markup(value.to_text()?)),
        "striptags" => Value::text(strip_tags(&value.to_text()?)?),
        "urlencode" => url_encode(value),
        _ => Err(Error::new(format!("no filter named {name:?} found"))),
    }
}

/// The filter `format`: Python's `value % args`.
fn format_percent(value: &Value, args: Args) -> Result<Value> {
    if !args.positional.is_empty() && !args.named.is_empty() {
        return Err(Error::new("can't handle positional and keyword arguments at the same time"));
    }
    let arguments = if args.named.is_empty() {
        Value::tuple(args.positional)?
    } else {
        let pairs = args.named.into_iter().map(|(name, value)| (Value::Str(name), value));
        Value::dict(Dict::from_pairs(pairs)?)
    };
    Value::text(format::percent(&value.to_text()?, &arguments, false)?)
}

fn join(value: &Value, args: Args) -> Result<Value> {
    let [separator, attribute] = args.bind("join", ["d", "attribute"], 0)?;
    let getter = Getter::new(attribute.as_ref(), None, true)?;
    let items = value.iterate()?;
    run::bytes(16 * items.len() as u64)?;
    let mut parts = Vec::with_capacity(items.len());
    for item in items.iter() {
        parts.push(getter.get(item)?.to_text()?);
    }
    let separator = separator.map_or(Ok("".into()), |separator| separator.to_text())?;
    Value::text(joined(&parts, &separator)?)
}

fn reverse(value: &Value) -> Result<Value> {
    if let Some(text) = value.as_str() {
        run::bytes(text.len() as u64)?;
        return Value::text(text.chars().rev().collect::<String>());
    }
    if !value.is_iterable() {
        return Err(Error::new("argument must be iterable"));
    }
    let items = value.iterate()?;
    run::elements(items.len())?;
    let mut items = items.to_vec();
    items.reverse();
    match value {
        Value::Iterator(_) => Value::list(items),
        _ => Value::iterator("list_reverseiterator", items, None),
    }
}

/// The filter `sort`.
fn sort_elements(value: &Value, args: Args) -> Result<Value> {
    let [reverse, case_sensitive, attribute] =
        args.bind("sort", ["reverse", "case_sensitive", "attribute"], 0)?;
    let reverse = is_reverse(reverse)?;
    let folds = !case_sensitive.is_some_and(|of| of.is_true());
    let getters = match attribute.as_ref().and_then(Value::as_str) {
        Some(names) => {
            let count = names.matches(',').count() + 1;
            run::bytes((count * size_of::<Getter>()) as u64)?;
            let getter = |name: &str| Getter::new(Some(&name.into()), None, !folds);
            names.split(',').map(getter).collect::<Result<Vec<_>>>()?
        }
        None => vec![Getter::new(attribute.as_ref(), None, !folds)?],
    };
    let items = value.iterate()?;
    run::elements(2 * items.len())?;
    let mut keyed = Vec::with_capacity(items.len());
    for item in items.iter() {
        run::elements(getters.len())?;
        let keys = getters.iter().map(|getter| getter.get(item)).collect::<Result<Vec<_>>>()?;
        keyed.push((Value::list(keys)?, item.clone()));
    }
    sort(&mut keyed, reverse)?;
    Value::list(keyed.into_iter().map(|(_, item)| item).collect())
}

fn sum(value: &Value, args: Args) -> Result<Value> {
    let [attribute, start] = args.bind("sum", ["attribute", "start"], 0)?;
    let getter = Getter::new(attribute.as_ref().filter(|of| !of.is_none()), None, true)?;
    let mut sum = start.unwrap_or(Value::Int(0));
    if sum.as_str().is_some() {
        return Err(Error::new("sum() can't sum strings [use ''.join(seq) instead]"));
    }
    for item in value.iterate()?.iter() {
        sum = ops::binary(Operator::Add, &sum, &getter.get(item)?)?;
    }
    Ok(sum)
}

fn unique(value: &Value, args: Args) -> Result<Value> {
    let [case_sensitive, attribute] = args.bind("unique", ["case_sensitive", "attribute"], 0)?;
    let sensitive = case_sensitive.is_some_and(|of| of.is_true());
    let getter = Getter::new(attribute.as_ref(), None, sensitive)?;
    generator("sync_do_unique", || {
        let mut seen = Dict::default();
        taken(value, |item| {
            let key = getter.get(item)?;
            let new = seen.get(&key)?.is_none();
            if new {
                seen.insert(key, Value::None)?;
            }
            Ok(new.then(|| item.clone()))
        })
    })
}

/// The elements of a generator, and the error after the last of them.
type Elements = (Vec<Value>, Option<Error>);

/// A generator. Its error is returned when the elements are read, except an error of a limit, which is returned
/// at once.
fn generator(name: &'static str, elements: impl FnOnce() -> Result<Elements>) -> Result<Value> {
    let (items, error) = match elements() {
        Ok(elements) => elements,
        Err(error) => (Vec::new(), Some(error)),
    };
    match error {
        Some(error) if error.is_limit() => Err(error),
        error => Value::iterator(name, items, error),
    }
}

/// Like [`taken`], but a false value such as an undefined one has no elements.
fn filtered(value: &Value, with: impl FnMut(&Value) -> Result<Option<Value>>) -> Result<Elements> {
    if value.is_true() { taken(value, with) } else { Ok((Vec::new(), None)) }
}

/// The results of a function for each element, up to the first error.
fn taken(value: &Value, mut with: impl FnMut(&Value) -> Result<Option<Value>>) -> Result<Elements> {
    let mut out = Vec::new();
    let items = value.iterate()?;
    run::elements(items.len())?;
    for item in items.iter() {
        match with(item) {
            Ok(found) => out.extend(found),
            Err(error) => return Ok((out, Some(error))),
        }
    }
    Ok((out, None))
}

/// A function that returns an element, or the value at a path of attributes in it.
struct Getter {
    path: Vec<Value>,
    default: Option<Value>,
    case_sensitive: bool,
}

impl Getter {
    fn new(attribute: Option<&Value>, default: Option<Value>, case_sensitive: bool) -> Result<Self> {
        let path = match attribute {
            None | Some(Value::None) => Vec::new(),
            Some(attribute) => match attribute.as_str() {
                Some(path) => {
                    run::reads(path.len())?;
                    run::elements(path.matches('.').count() + 1)?;
                    let part = |name: &str| match name.parse::<i128>() {
                        Ok(place) if name.bytes().all(|byte| byte.is_ascii_digit()) => Ok(Value::Int(place)),
                        _ => Value::text(name),
                    };
                    path.split('.').map(part).collect::<Result<_>>()?
                }
                None => vec![attribute.clone()],
            },
        };
        Ok(Self { path, default: default.filter(|default| !default.is_none()), case_sensitive })
    }

    fn get(&self, item: &Value) -> Result<Value> {
        let mut item = item.clone();
        for name in &self.path {
            item = attributes::item(&item, name)?;
            if let Some(default) = self.default.as_ref().filter(|_| item.is_undefined()) {
                item = default.clone();
            }
        }
        match &item {
            Value::Str(text) if !self.case_sensitive => in_case(text, python::lower),
            _ => Ok(item),
        }
    }
}

/// The filter `title`. Unlike in the method, words begin only after a space, a hyphen or an opening bracket.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for c in text.chars() {
        if python::is_space(c) || matches!(c, '-' | '(' | '{' | '[' | '<') {
            inside = false;
            out.push(c);
        } else if inside {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
            inside = true;
        }
    }
    out
}

fn simple_text(name: &str, value: &Value) -> Result<Value> {
    let text = value.to_text()?;
    run::reads(text.len())?;
    match name {
        "string" => Ok(match value {
            Value::Markup(text) => Value::Markup(Rc::clone(text)),
            _ => Value::Str(text),
        }),
        "capitalize" => in_case(&text, python::capitalize),
        "lower" => in_case(&text, python::lower),
        "upper" => in_case(&text, str::to_uppercase),
        "wordcount" => {
            let words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
            Ok(Value::Int(words.filter(|word| !word.is_empty()).count() as i128))
        }
        _ => in_case(&text, title),
    }
}

fn batch(value: &Value, count: &Value, fill: Option<Value>) -> Result<Elements> {
    let items = value.iterate()?;
    if let (Some(fill), None) = (&fill, count.as_int())
        && !items.is_empty()
    {
        let problem = format!("'<' not supported between instances of 'int' and '{}'", count.type_name());
        return Err(fill.defined().err().unwrap_or_else(|| Error::new(problem)));
    }
    // Jinja2 counts this as a comparison with `==`.
    let count = count.as_int().unwrap_or(-1);
    run::elements(items.len())?;
    let mut out = Vec::new();
    let mut row: Vec<Value> = Vec::new();
    for item in items.iter() {
        if row.len() as i128 == count {
            out.push(Value::list(std::mem::take(&mut row))?);
        }
        row.push(item.clone());
    }
    if !row.is_empty() {
        if let Some(fill) = fill {
            let missing = usize::try_from(count.saturating_sub(row.len() as i128)).unwrap_or(0);
            run::elements(missing)?;
            row.extend(std::iter::repeat_n(fill, missing));
        }
        out.push(Value::list(row)?);
    }
    Ok((out, None))
}

fn slices(value: &Value, count: &Value, fill: Option<Value>) -> Result<Elements> {
    let items = value.iterate()?;
    let slices = count.index()?;
    if slices == 0 {
        return Err(Error::new("integer division or modulo by zero"));
    }
    let Ok(slices) = usize::try_from(slices) else { return Ok((Vec::new(), None)) };
    run::elements(slices.saturating_mul(2))?;
    let (each, more) = (items.len() / slices, items.len() % slices);
    let mut out = Vec::new();
    let mut at = 0;
    for index in 0..slices {
        let end = at + each + usize::from(index < more);
        run::elements(each + 2)?;
        let mut part = items[at..end].to_vec();
        if index >= more {
            part.extend(fill.clone());
        }
        out.push(Value::list(part)?);
        at = end;
    }
    Ok((out, None))
}

/// The argument `reverse`, which may be a number.
fn is_reverse(reverse: Option<Value>) -> Result<bool> {
    reverse.map_or(Ok(false), |reverse| Ok(reverse.index()? != 0))
}

fn dict_sort(value: &Value, args: Args) -> Result<Value> {
    let [case_sensitive, by, reverse] = args.bind("dictsort", ["case_sensitive", "by", "reverse"], 0)?;
    let is = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let by_value = match by.as_ref().and_then(Value::as_str).map(|by| &**by) {
        Some("value") => true,
        Some("key") => false,
        None if by.is_none() => false,
        _ => return Err(Error::new("you can only sort by either \"key\" or \"value\"")),
    };
    let Value::Dict(dict) = value.defined()? else {
        return Err(Error::new(format!("'{}' object has no attribute 'items'", value.type_name())));
    };
    let getter = Getter::new(None, None, is(case_sensitive))?;
    run::elements(2 * dict.len())?;
    let mut keyed = Vec::with_capacity(dict.len());
    for (key, value) in dict.entries() {
        let sorted_by = getter.get(if by_value { value } else { key })?;
        keyed.push((sorted_by, Value::tuple(vec![key.clone(), value.clone()])?));
    }
    sort(&mut keyed, is_reverse(reverse)?)?;
    Value::list(keyed.into_iter().map(|(_, item)| item).collect())
}

fn first(value: &Value) -> Result<Value> {
    let found = match value {
        Value::Iterator(iterator) => {
            let next = iterator.items.borrow_mut().pop_front();
            match next {
                Some(item) => Some(item),
                None => match iterator.error.take() {
                    Some(error) => return Err(error),
                    None => None,
                },
            }
        }
        Value::List(list) | Value::Tuple(list) => list.items.first().cloned(),
        Value::Str(text) | Value::Markup(text) => text.chars().next().map(Value::from),
        _ => value.iterate()?.first().cloned(),
    };
    Ok(found.unwrap_or_else(|| Value::undefined("no first item, sequence was empty")))
}

fn file_size(value: &Value, args: Args) -> Result<Value> {
    let [binary] = args.bind("filesizeformat", ["binary"], 0)?;
    let binary = binary.is_some_and(|binary| binary.is_true());
    let problem = || Error::new(format!("could not convert {} to float", value.type_name()));
    let bytes = to_float(value)?.ok_or_else(problem)?;
    let base: f64 = if binary { 1024.0 } else { 1000.0 };
    if bytes == 1.0 {
        return Ok("1 Byte".into());
    }
    if bytes < base {
        return Value::text(format!("{} Bytes", whole(bytes)?));
    }
    let mut unit = base;
    let prefixes = ["k", "M", "G", "T", "P", "E", "Z", "Y"];
    let mut text = String::new();
    for (index, prefix) in prefixes.iter().enumerate() {
        unit *= base;
        let prefix = if binary { format!("{}iB", prefix.to_uppercase()) } else { format!("{prefix}B") };
        text = format!("{:.1} {prefix}", base * bytes / unit);
        if bytes < unit || index + 1 == prefixes.len() {
            break;
        }
    }
    Value::text(text)
}

/// Python's `float`; `None` if it raises a `TypeError` or a `ValueError`.
fn to_float(value: &Value) -> Result<Option<f64>> {
    Ok(match value.defined()?.as_str() {
        Some(text) => python::parse_float(text),
        None => value.as_number(),
    })
}

fn to_int(value: &Value, args: Args) -> Result<Value> {
    let [default, base] = args.bind("int", ["default", "base"], 0)?;
    // An invalid base is an error, after which the second attempt runs.
    let base = base.map_or(Some(10), |base| base.as_int());
    let number = match value.defined()? {
        Value::Float(number) if number.is_infinite() || number.is_nan() => None,
        Value::Float(number) => Some(whole(*number)?),
        _ => match value.as_str() {
            Some(text) => {
                match python::parse_int(text, base.and_then(|base| u32::try_from(base).ok()).unwrap_or(1)) {
                    Some(number) => Some(number),
                    None => match python::parse_float(text).filter(|number| number.is_finite()) {
                        Some(number) => Some(whole(number)?),
                        None => None,
                    },
                }
            }
            None => value.as_int(),
        },
    };
    if matches!(value, Value::Float(number) if number.is_infinite()) {
        // The first attempt raises an OverflowError, which only the second attempt catches.
        return Err(Error::new("cannot convert float infinity to integer"));
    }
    Ok(number.map_or_else(|| default.unwrap_or(Value::Int(0)), Value::Int))
}

fn group_by(value: &Value, args: Args) -> Result<Value> {
    let [attribute, default, case_sensitive] =
        args.bind("groupby", ["attribute", "default", "case_sensitive"], 1)?;
    let sensitive = case_sensitive.is_some_and(|of| of.is_true());
    let getter = Getter::new(attribute.as_ref(), default.clone(), sensitive)?;
    let name = Getter::new(attribute.as_ref(), default, true)?;
    let items = value.iterate()?;
    run::elements(2 * items.len())?;
    let mut keyed = Vec::with_capacity(items.len());
    for item in items.iter() {
        keyed.push((getter.get(item)?, item.clone()));
    }
    sort(&mut keyed, false)?;
    let mut groups: Vec<(Value, Vec<Value>)> = Vec::new();
    for (key, item) in keyed {
        match groups.last_mut() {
            Some((of, items)) if of.equals(&key)? => items.push(item),
            _ => {
                run::elements(6)?;
                groups.push((key, vec![item]));
            }
        }
    }
    let mut out = Vec::with_capacity(groups.len());
    for (key, items) in groups {
        let key = if sensitive { key } else { name.get(&items[0])? };
        out.push(Value::group(key, items)?);
    }
    Value::list(out)
}

fn indent(value: &Value, args: Args) -> Result<Value> {
    let [width, first, blank] = args.bind("indent", ["width", "first", "blank"], 0)?;
    let is = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let indention: Rc<str> = match width {
        None => "    ".into(),
        Some(width) => match width.as_str() {
            Some(text) => Rc::clone(text),
            None => repeat(" ", usize::try_from(width.index()?.max(0)).unwrap_or(usize::MAX))?.into(),
        },
    };
    let Some(text) = value.defined()?.as_str() else {
        let problem = format!("unsupported operand type(s) for +=: '{}' and 'str'", value.type_name());
        return Err(Error::new(problem));
    };
    // The text gets a line break at its end. So one that already ends with a line break has one more line.
    run::bytes(text.len() as u64)?;
    let text = format!("{text}\n");
    let (first, blank) = (is(first), is(blank));
    let lines = lines(&text, false)?;
    run::bytes(
        (text.len() as u64).saturating_add((lines.len() as u64).saturating_mul(indention.len() as u64)),
    )?;
    let mut out = String::new();
    for (index, line) in lines.iter().enumerate() {
        if index > 0 {
            out.push('\n');
        }
        if if index == 0 { first } else { blank || !line.is_empty() } {
            out += &indention;
        }
        out += line;
    }
    match value {
        Value::Markup(_) => Value::markup(out),
        _ => Value::text(out),
    }
}

fn map(value: &Value, mut args: Args) -> Result<Value> {
    generator("sync_do_map", || {
        if !value.is_true() {
            return Ok((Vec::new(), None));
        }
        if args.positional.is_empty() && args.named.iter().any(|(name, _)| **name == *"attribute") {
            let [attribute, default] = args.bind("map", ["attribute", "default"], 0)?;
            let getter = Getter::new(attribute.as_ref(), default, true)?;
            return filtered(value, |item| getter.get(item).map(Some));
        }
        if args.positional.is_empty() {
            return Err(Error::new("map requires a filter argument"));
        }
        let name = args.positional.remove(0);
        let name = name.as_str().cloned().unwrap_or_else(|| "".into());
        if !names::is_filter(&name) {
            return Err(Error::new(format!("no filter named {:?}", short(&name))));
        }
        // The filter may be `map` again, and each call of it takes the stack of two levels.
        let _levels = (run::deeper()?, run::deeper()?);
        filtered(value, |item| call(&name, item, args.copied()?).map(Some))
    })
}

fn select(name: &str, value: &Value, mut args: Args) -> Result<Value> {
    let rejects = name.starts_with("reject");
    generator("select_or_reject", || {
        if !value.is_true() {
            return Ok((Vec::new(), None));
        }
        let mut next = || (!args.positional.is_empty()).then(|| args.positional.remove(0));
        let getter = if name.ends_with("attr") {
            let attribute = next().ok_or_else(|| Error::new("missing parameter for attribute name"))?;
            Getter::new(Some(&attribute), None, true)?
        } else {
            Getter::new(None, None, true)?
        };
        let test = match next() {
            None => None,
            Some(name) => {
                let name = name.as_str().cloned().unwrap_or_else(|| "".into());
                if !names::is_test(&name) {
                    return Err(Error::new(format!("no test named {:?}", short(&name))));
                }
                Some(name)
            }
        };
        filtered(value, |item| {
            let of = getter.get(item)?;
            let holds = match &test {
                Some(test) => tests::call(test, &of, args.copied()?)?,
                None => of.is_true(),
            };
            Ok((holds != rejects).then(|| item.clone()))
        })
    })
}

fn extreme(name: &str, value: &Value, args: Args) -> Result<Value> {
    let [case_sensitive, attribute] = args.bind(name, ["case_sensitive", "attribute"], 0)?;
    let getter = Getter::new(attribute.as_ref(), None, case_sensitive.is_some_and(|of| of.is_true()))?;
    let mut best: Option<(Value, Value)> = None;
    let (wanted, operator) = if name == "max" { (Ordering::Greater, ">") } else { (Ordering::Less, "<") };
    for item in value.iterate()?.iter() {
        let key = getter.get(item)?;
        let better = match &best {
            Some((of, _)) => key.compare(of, operator)? == Some(wanted),
            None => true,
        };
        if better {
            best = Some((key, item.clone()));
        }
    }
    Ok(best.map_or_else(|| Value::undefined("no aggregated item, sequence was empty"), |(_, item)| item))
}

fn random(value: &Value) -> Result<Value> {
    use std::hash::{BuildHasher as _, RandomState};
    let length = value.length()?;
    if !matches!(
        value,
        Value::Undefined(_)
            | Value::Str(_)
            | Value::Markup(_)
            | Value::List(_)
            | Value::Tuple(_)
            | Value::Range(..)
    ) {
        return Err(Error::new(format!("'{}' object is not a sequence", value.type_name())));
    }
    if length == 0 {
        return Ok(Value::undefined("no random item, sequence was empty"));
    }
    let place = RandomState::new().hash_one(length) % length as u64;
    Ok(sequences::element(value, i128::from(place))?.unwrap_or(Value::None))
}

fn round(value: &Value, args: Args) -> Result<Value> {
    let [precision, method] = args.bind("round", ["precision", "method"], 0)?;
    let precision = precision.map_or(Ok(0), |precision| precision.index())?;
    let method = method.map_or(Ok("common".into()), |method| method.to_text())?;
    if !matches!(&*method, "common" | "ceil" | "floor") {
        return Err(Error::new("method must be common, ceil or floor"));
    }
    value.defined()?;
    let problem = || Error::new(format!("type {} doesn't define __round__ method", value.type_name()));
    if &*method == "common" {
        if let Some(number) = value.as_int() {
            if precision >= 0 {
                return Ok(Value::Int(number));
            }
            let places = u32::try_from(precision.unsigned_abs()).ok();
            let Some(unit) = places.and_then(|places| 10_i128.checked_pow(places)) else {
                return Ok(Value::Int(0));
            };
            let rest = number.rem_euclid(unit);
            let down = number.checked_sub(rest).ok_or_else(too_large)?;
            // `rest * 2` could overflow.
            let up = match rest.cmp(&(unit - rest)) {
                Ordering::Equal => (down / unit) % 2 != 0,
                order => order.is_gt(),
            };
            let rounded = if up { down.checked_add(unit) } else { Some(down) };
            return rounded.map(Value::Int).ok_or_else(too_large);
        }
        let number = value.as_number().ok_or_else(problem)?;
        return round_float(number, precision).map(Value::Float);
    }
    let number = value.as_number().ok_or_else(problem)?;
    let scale = if precision >= 0 {
        10_f64.powi(precision.min(400) as i32)
    } else {
        10_f64.powi(precision.max(-400) as i32)
    };
    let scaled = number * scale;
    if !scaled.is_finite() {
        return Err(Error::new("cannot convert float infinity to integer"));
    }
    let rounded = if &*method == "ceil" { scaled.ceil() } else { scaled.floor() };
    // The result is an integer in Python, which has no negative zero.
    Ok(Value::Float(rounded / scale + 0.0))
}

/// Python's `round` of a float: the nearest decimal, and of two equally near ones the even one.
fn round_float(number: f64, precision: i128) -> Result<f64> {
    if !number.is_finite() || precision > 320 {
        return Ok(number);
    }
    if precision < -310 {
        return Ok(0.0_f64.copysign(number));
    }
    let problem = |_| Error::new("this cannot be rounded");
    if precision >= 0 {
        return format!("{number:.*}", precision as usize).parse().map_err(problem);
    }
    // The digits before the point, from the exact decimals of the number.
    let text = format!("{:.*e}", 400, number.abs());
    let exponent: i128 = text.split_once('e').and_then(|(_, exponent)| exponent.parse().ok()).unwrap_or(0);
    let places = exponent + precision;
    let rounded: f64 = if places < 0 {
        let half = 0.5 * 10_f64.powi(-precision as i32);
        if number.abs() > half { 10_f64.powi(-precision as i32) } else { 0.0 }
    } else {
        format!("{:.*e}", places as usize, number.abs()).parse().map_err(problem)?
    };
    Ok(rounded.copysign(number))
}

fn truncate(value: &Value, args: Args) -> Result<Value> {
    let [length, kill_words, end, leeway] =
        args.bind("truncate", ["length", "killwords", "end", "leeway"], 0)?;
    let int = |value: Option<Value>, default| match value {
        None | Some(Value::None) => Ok(default),
        Some(value) => value.index(),
    };
    let no_text = |end: &Value| Error::new(format!("object of type '{}' has no len()", end.type_name()));
    let end: Rc<str> = match &end {
        None => "...".into(),
        Some(end) => Rc::clone(end.as_str().ok_or_else(|| no_text(end))?),
    };
    let (length, leeway) = (int(length, 255)?, int(leeway, 5)?);
    let end_length = end.chars().count() as i128;
    if length < end_length {
        return Err(Error::new(format!("expected length >= {end_length}, got {length}")));
    }
    if leeway < 0 {
        return Err(Error::new(format!("expected leeway >= 0, got {leeway}")));
    }
    if value.length()? as i128 <= length.saturating_add(leeway) {
        return Ok(value.clone());
    }
    let cut = sequences::slice(value, [None, Some(Value::Int(length - end_length)), None])?;
    let cut = cut.as_str().cloned().ok_or_else(|| Error::new("only a text can be truncated"))?;
    let kept = if kill_words.is_some_and(|of| of.is_true()) {
        &*cut
    } else {
        cut.rsplit_once(' ').map_or(&*cut, |(kept, _)| kept)
    };
    run::bytes((kept.len() + end.len()) as u64)?;
    Value::text(format!("{kept}{end}"))
}

fn url_quote(value: &Value, for_query: bool) -> Result<String> {
    let text = value.to_text()?;
    run::bytes(3 * text.len() as u64)?;
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' => out.push(char::from(byte)),
            b'/' if !for_query => out.push('/'),
            b' ' if for_query => out.push('+'),
            _ => out += &format!("%{byte:02X}"),
        }
    }
    Ok(out)
}

fn url_encode(value: &Value) -> Result<Value> {
    if value.as_str().is_some() || !value.is_iterable() {
        return Value::text(url_quote(value, false)?);
    }
    let pairs = match value {
        Value::Dict(dict) => Value::View(View::Items, Rc::clone(dict)).iterate()?,
        _ => value.iterate()?,
    };
    let mut out = String::new();
    for pair in pairs.iter() {
        let pair = pair.iterate()?;
        let [key, value] = &pair[..] else {
            return Err(Error::new("urlencode needs pairs of a key and a value"));
        };
        if !out.is_empty() {
            out.push('&');
        }
        let (key, value) = (url_quote(key, true)?, url_quote(value, true)?);
        run::bytes((key.len() + value.len() + 2) as u64)?;
        out += &key;
        out.push('=');
        out += &value;
    }
    Value::text(out)
}

fn xml_attributes(value: &Value, args: Args) -> Result<Value> {
    let [space] = args.bind("xmlattr", ["autospace"], 0)?;
    let Value::Dict(dict) = value.defined()? else {
        return Err(Error::new(format!("'{}' object has no attribute 'items'", value.type_name())));
    };
    let mut text = String::new();
    for (key, value) in dict.entries() {
        if value.is_none() || value.is_undefined() {
            continue;
        }
        let name = key.as_str().ok_or_else(|| Error::new("expected string or bytes-like object"))?;
        let space = |c: char| c.is_ascii_whitespace() || c == '\u{b}';
        if name.contains(|c: char| space(c) || matches!(c, '/' | '>' | '=')) {
            return Err(Error::new(format!("invalid character in attribute name: {:?}", short(name))));
        }
        let (key, value) = (escape(key)?, escape(value)?);
        run::bytes((key.len() + value.len() + 4) as u64)?;
        // Each has a space before it.
        for part in [" ", &*key, "=\"", &*value, "\""] {
            text += part;
        }
    }
    let spaced = space.is_none_or(|space| space.is_true());
    Value::text(if spaced { &text } else { text.strip_prefix(' ').unwrap_or(&text) })
}

/// Python's `json.dumps`, with transformers' arguments. Jinja2's own `tojson` also escapes characters for HTML.
fn to_json(value: &Value, args: Args) -> Result<Value> {
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let [ensure_ascii, indent, separators, sort_keys] =
        args.bind("tojson", names, 0)?.map(|value| value.filter(|value| !value.is_none()));
    let is = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let indent = match indent {
        None => None,
        Some(indent) => Some(match indent.as_str() {
            Some(text) => {
                run::bytes(text.len() as u64)?;
                text.to_string()
            }
            None => repeat(" ", usize::try_from(indent.index()?.max(0)).unwrap_or(usize::MAX))?,
        }),
    };
    let separators = match separators {
        None => None,
        Some(pair) => {
            let pair = pair.iterate()?;
            for of in pair.iter() {
                run::bytes(of.as_str().map_or(0, |text| text.len()) as u64)?;
            }
            let text = |value: &Value| value.as_str().map(ToString::to_string);
            let strings = match &pair[..] {
                [item, key] => text(item).zip(text(key)),
                _ => None,
            };
            Some(strings.ok_or_else(|| Error::new("separators of tojson must be two strings"))?)
        }
    };
    let style = dumps::Style { ensure_ascii: is(ensure_ascii), indent, separators, sort_keys: is(sort_keys) };
    Value::text(dumps::dumps_value(value, &style)?)
}
