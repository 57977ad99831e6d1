//! `'%s' % x`, `'{}'.format(x)` and the formats of numbers.

use std::rc::Rc;

use super::error::{Error, Result, short};
use super::html::escape;
use super::numbers::whole;
use super::texts::repeat;
use super::value::{Dict, Value};
use super::{attributes, python, run};

/// The maximum width or precision, in characters.
const WIDEST: usize = 1 << 20;

/// Python's `ascii`.
fn ascii(value: &Value) -> Result<String> {
    let text = value.repr()?;
    run::bytes(3 * text.len() as u64)?;
    Ok(python::ascii(&text))
}

fn bounded(width: i128) -> Result<usize> {
    let width = usize::try_from(width).unwrap_or(usize::MAX);
    if width > WIDEST {
        return Err(Error::limit(format!("the format has a width or precision of more than {WIDEST}")));
    }
    run::bytes(width as u64)?;
    Ok(width)
}

/// Reads a number from the text of a format.
fn digits(text: &str) -> Result<(Option<usize>, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    if end == 0 {
        return Ok((None, text));
    }
    Ok((Some(bounded(text[..end].parse().unwrap_or(i128::MAX))?), &text[end..]))
}

/// Python's `text % arguments`. Texts in markup are escaped.
pub(super) fn percent(text: &str, arguments: &Value, markup: bool) -> Result<String> {
    let (mut positional, mapping) = match arguments {
        Value::Tuple(list) => {
            run::elements(list.items.len())?;
            (list.items.to_vec(), None)
        }
        Value::Dict(dict) => (vec![arguments.clone()], Some(dict)),
        _ => (vec![arguments.clone()], None),
    };
    positional.reverse();
    run::bytes(text.len() as u64)?;
    let mut out = String::new();
    let mut rest = text;
    let mut used_mapping = false;
    while let Some(place) = rest.find('%') {
        out += &rest[..place];
        rest = &rest[place + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            out.push('%');
            rest = after;
            continue;
        }
        let mut next =
            || positional.pop().ok_or_else(|| Error::new("not enough arguments for format string"));
        let conversion;
        (conversion, rest) = Conversion::parse(rest, &mut next)?;
        let value = match conversion.key {
            Some(key) => {
                let dict = mapping.ok_or_else(|| Error::new("format requires a mapping"))?;
                used_mapping = true;
                let missing = || Error::new(format!("no key {:?} for the format", short(key)));
                dict.get_str(key).cloned().ok_or_else(missing)?
            }
            None => next()?,
        };
        conversion.write(&value, markup, &mut out)?;
    }
    out += rest;
    if !positional.is_empty() && mapping.is_none() && !used_mapping {
        // A single argument that can be indexed counts as a mapping, whose items need not all be used.
        let spare = matches!(arguments, Value::List(_) | Value::Range(..) | Value::Undefined(_));
        if !spare {
            return Err(Error::new("not all arguments converted during string formatting"));
        }
    }
    Ok(out)
}

/// A conversion such as `%(name)-5.2f`.
struct Conversion<'a> {
    key: Option<&'a str>,
    sign: Sign,
    left: bool,
    alternate: bool,
    zero: bool,
    width: usize,
    precision: Option<usize>,
    kind: char,
}

impl<'a> Conversion<'a> {
    /// Parses a conversion after its `%`, and returns it with the rest of the text. `next` gives the argument for a width
    /// or precision that is written as `*`.
    fn parse(text: &'a str, mut next: impl FnMut() -> Result<Value>) -> Result<(Self, &'a str)> {
        let mut rest = text;
        let mut key = None;
        if let Some(inside) = rest.strip_prefix('(') {
            let end = closing(inside, ['(', ')']).ok_or_else(|| Error::new("incomplete format key"))?;
            key = Some(&inside[..end]);
            rest = &inside[end + 1..];
        }
        let (flags, after) =
            rest.split_at(rest.len() - rest.trim_start_matches(['-', '+', ' ', '#', '0']).len());
        rest = after;
        let mut number = |rest: &mut &str| -> Result<Option<i128>> {
            if let Some(after) = rest.strip_prefix('*') {
                *rest = after;
                return match next()? {
                    Value::Int(number) => Ok(Some(number)),
                    _ => Err(Error::new("* wants int")),
                };
            }
            let (number, after) = digits(rest)?;
            *rest = after;
            Ok(number.map(|number| number as i128))
        };
        let width = number(&mut rest)?;
        let left = flags.contains('-') || width.is_some_and(i128::is_negative);
        let width = bounded(width.unwrap_or(0).saturating_abs())?;
        let precision = match rest.strip_prefix('.') {
            Some(after) => {
                rest = after;
                Some(bounded(number(&mut rest)?.unwrap_or(0).max(0))?)
            }
            None => None,
        };
        rest = rest.trim_start_matches(['h', 'l', 'L']);
        let Some(kind) = rest.chars().next() else { return Err(Error::new("incomplete format")) };
        let sign = if flags.contains('+') {
            Sign::Plus
        } else if flags.contains(' ') {
            Sign::Space
        } else {
            Sign::Minus
        };
        let (alternate, zero) = (flags.contains('#'), flags.contains('0'));
        let conversion = Self { key, sign, left, alternate, zero, width, precision, kind };
        Ok((conversion, &rest[kind.len_utf8()..]))
    }

    /// Writes a value, padded to the width.
    fn write(&self, value: &Value, markup: bool, out: &mut String) -> Result<()> {
        let kind = self.kind;
        let (prefix, body) = match kind {
            's' | 'r' | 'a' => (String::new(), self.text(value, markup)?),
            'c' => (String::new(), character(value)?),
            'd' | 'i' | 'u' | 'o' | 'x' | 'X' => self.integer(value)?,
            'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
                value.defined()?;
                let number = value
                    .as_number()
                    .ok_or_else(|| Error::new(format!("must be real number, not {}", value.type_name())))?;
                let body = float(number.abs(), kind, self.precision.unwrap_or(6), self.alternate);
                (self.sign.of(number.is_sign_negative() && !number.is_nan()).to_owned(), body)
            }
            _ => return Err(Error::new(format!("unsupported format character '{kind}'"))),
        };
        let is_number = !matches!(kind, 's' | 'r' | 'a' | 'c');
        let length = prefix.chars().count() + body.chars().count();
        let padding = self.width.saturating_sub(length);
        run::bytes((body.len() + padding) as u64)?;
        if self.left {
            *out += &prefix;
            *out += &body;
            *out += &" ".repeat(padding);
        } else if self.zero && is_number {
            *out += &prefix;
            *out += &"0".repeat(padding);
            *out += &body;
        } else {
            *out += &" ".repeat(padding);
            *out += &prefix;
            *out += &body;
        }
        Ok(())
    }

    /// `%s`, `%r` and `%a`.
    fn text(&self, value: &Value, markup: bool) -> Result<String> {
        let text = match self.kind {
            's' if markup => escape(value)?,
            's' => value.to_text()?,
            'r' => value.repr()?.into(),
            _ => ascii(value)?.into(),
        };
        run::bytes(text.len() as u64)?;
        let end = self.precision.and_then(|most| text.char_indices().nth(most));
        Ok(text[..end.map_or(text.len(), |(end, _)| end)].to_owned())
    }

    /// The sign and the digits of `%d`, `%x` and the like.
    fn integer(&self, value: &Value) -> Result<(String, String)> {
        let kind = self.kind;
        value.defined()?;
        let is_decimal = !matches!(kind, 'o' | 'x' | 'X');
        let number = match value {
            Value::Float(number) if is_decimal => whole(*number)?,
            _ => value.as_int().ok_or_else(|| {
                let needed = if is_decimal { "a real number" } else { "an integer" };
                Error::new(format!("%{kind} format: {needed} is required, not {}", value.type_name()))
            })?,
        };
        let magnitude = number.unsigned_abs();
        let (base, body) = match kind {
            'o' => ("0o", format!("{magnitude:o}")),
            'x' => ("0x", format!("{magnitude:x}")),
            'X' => ("0X", format!("{magnitude:X}")),
            _ => ("", magnitude.to_string()),
        };
        let body = match self.precision {
            Some(precision) => "0".repeat(precision.saturating_sub(body.len())) + &body,
            None => body,
        };
        Ok((self.sign.of(number < 0).to_owned() + if self.alternate { base } else { "" }, body))
    }
}

/// `%c`: a character, given by its code or as a text.
fn character(value: &Value) -> Result<String> {
    let character = match value {
        Value::Int(_) | Value::Bool(_) => {
            u32::try_from(value.index()?).ok().and_then(char::from_u32).map(String::from)
        }
        _ => value.as_str().filter(|text| text.chars().count() == 1).map(|text| text.to_string()),
    };
    character.ok_or_else(|| Error::new("%c requires int or char"))
}

/// The place of the bracket that closes the one before `text`.
fn closing(text: &str, [open, close]: [char; 2]) -> Option<usize> {
    let mut level = 1;
    let end = text.char_indices().find(|&(_, c)| {
        level += i32::from(c == open) - i32::from(c == close);
        level == 0
    });
    end.map(|(end, _)| end)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sign {
    Minus,
    Plus,
    Space,
}

impl Sign {
    fn of(self, negative: bool) -> &'static str {
        match self {
            _ if negative => "-",
            Self::Minus => "",
            Self::Plus => "+",
            Self::Space => " ",
        }
    }
}

/// Formats a number that is not negative, as C's `printf` does.
fn float(number: f64, kind: char, precision: usize, alternate: bool) -> String {
    // Computing a digit of a float takes longer than copying it.
    run::looked(8 * precision.min(MOST_DIGITS));
    let upper = kind.is_ascii_uppercase();
    let text = if number.is_nan() {
        "nan".to_owned()
    } else if number.is_infinite() {
        "inf".to_owned()
    } else {
        match kind.to_ascii_lowercase() {
            'f' => {
                let text = fixed(number, precision);
                if alternate && precision == 0 { text + "." } else { text }
            }
            'e' => exponential(number, precision, alternate),
            _ => {
                let precision = precision.max(1);
                let scientific = format!("{number:.*e}", (precision - 1).min(MOST_DIGITS));
                let exponent: i32 =
                    scientific.split_once('e').and_then(|(_, exponent)| exponent.parse().ok()).unwrap_or(0);
                let text = if exponent < -4 || exponent >= precision as i32 {
                    exponential(number, precision - 1, alternate)
                } else {
                    let places = (precision as i32 - 1 - exponent).max(0) as usize;
                    fixed(number, places)
                };
                if alternate { text } else { without_zeros(&text) }
            }
        }
    };
    if upper { text.to_uppercase() } else { text }
}

/// The maximum number of decimals of a float, in either notation. All further digits are zeros. Rust supports a
/// smaller precision than Python.
const MOST_DIGITS: usize = 1100;

fn fixed(number: f64, precision: usize) -> String {
    format!("{number:.*}", precision.min(MOST_DIGITS)) + &"0".repeat(precision.saturating_sub(MOST_DIGITS))
}

fn exponential(number: f64, precision: usize, alternate: bool) -> String {
    let text = format!("{number:.*e}", precision.min(MOST_DIGITS));
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let point = if alternate && precision == 0 { "." } else { "" };
    let sign = if exponent < 0 { '-' } else { '+' };
    let zeros = "0".repeat(precision.saturating_sub(MOST_DIGITS));
    format!("{digits}{zeros}{point}e{sign}{:02}", exponent.abs())
}

/// Removes the zeros at the end of the fraction.
fn without_zeros(text: &str) -> String {
    let (digits, exponent) = text.find('e').map_or((text, ""), |place| text.split_at(place));
    if !digits.contains('.') {
        return text.to_owned();
    }
    format!("{}{exponent}", digits.trim_end_matches('0').trim_end_matches('.'))
}

/// Python's `text.format(*positional, **named)`, in Jinja2's sandbox.
pub(super) fn format(text: &str, positional: &[Value], named: &Dict) -> Result<String> {
    let mut arguments = Fields { positional, named, next: 0, manual: false };
    arguments.format(text, 3)
}

struct Fields<'a> {
    positional: &'a [Value],
    named: &'a Dict,
    next: usize,
    manual: bool,
}

impl Fields<'_> {
    fn format(&mut self, text: &str, levels: usize) -> Result<String> {
        run::bytes(text.len() as u64)?;
        if levels == 0 {
            return Err(Error::new("max string recursion exceeded"));
        }
        let mut out = String::new();
        let mut rest = text;
        while let Some(place) = rest.find(['{', '}']) {
            out += &rest[..place];
            let brace = &rest[place..=place];
            rest = &rest[place + 1..];
            if rest.starts_with(brace) {
                out += brace;
                rest = &rest[1..];
                continue;
            }
            if brace == "}" {
                return Err(Error::new("single '}' encountered in format string"));
            }
            let end =
                closing(rest, ['{', '}']).ok_or_else(|| Error::new("expected '}' before end of string"))?;
            let (name, conversion, spec) = split_field(&rest[..end])?;
            rest = &rest[end + 1..];
            let mut value = self.field(name)?;
            match conversion {
                None => {}
                Some('s') => value = Value::Str(value.to_text()?),
                Some('r') => value = Value::text(value.repr()?)?,
                Some('a') => value = Value::text(ascii(&value)?)?,
                Some(c) => return Err(Error::new(format!("unknown conversion specifier {c}"))),
            }
            let spec = self.format(spec, levels - 1)?;
            let formatted = format_value(&value, &spec)?;
            run::bytes(formatted.len() as u64)?;
            out += &formatted;
        }
        Ok(out + rest)
    }

    fn field(&mut self, name: &str) -> Result<Value> {
        let end = name.find(['.', '[']).unwrap_or(name.len());
        let (first, mut path) = name.split_at(end);
        let numbered = |place: usize| {
            let missing =
                || Error::new(format!("replacement index {place} out of range for positional args tuple"));
            self.positional.get(place).cloned().ok_or_else(missing)
        };
        let mut value = if first.is_empty() {
            if self.manual {
                return Err(Error::new(
                    "cannot switch from manual field specification to automatic field numbering",
                ));
            }
            let value = numbered(self.next)?;
            self.next += 1;
            value
        } else if first.bytes().all(|byte| byte.is_ascii_digit()) {
            if self.next > 0 {
                return Err(Error::new(
                    "cannot switch from automatic field numbering to manual field specification",
                ));
            }
            self.manual = true;
            numbered(first.parse().unwrap_or(usize::MAX))?
        } else {
            let missing = || Error::new(format!("no argument {:?} for the format", short(first)));
            self.named.get_str(first).cloned().ok_or_else(missing)?
        };
        while !path.is_empty() {
            run::steps(1)?;
            if let Some(after) = path.strip_prefix('.') {
                let end = after.find(['.', '[']).unwrap_or(after.len());
                value = attributes::attribute(&value, &after[..end].into())?;
                path = &after[end..];
            } else {
                let inside = path.strip_prefix('[').and_then(|after| after.split_once(']'));
                let (key, after) = inside
                    .ok_or_else(|| Error::new("only '.' or '[' may follow ']' in format field specifier"))?;
                let key = match key.parse::<i128>() {
                    Ok(place) if key.bytes().all(|byte| byte.is_ascii_digit()) => Value::Int(place),
                    _ => Value::from(key),
                };
                value = attributes::item(&value, &key)?;
                path = after;
            }
        }
        Ok(value)
    }
}

/// Splits `name!conversion:spec`, of which only the name is required.
fn split_field(field: &str) -> Result<(&str, Option<char>, &str)> {
    // The name ends at the first `!` or `:` outside of brackets.
    let mut bracket = false;
    let stop = field.char_indices().find(|(_, c)| {
        match c {
            '[' => bracket = true,
            ']' => bracket = false,
            _ => {}
        }
        !bracket && matches!(c, '!' | ':')
    });
    let (name, after) = stop.map_or((field, ""), |(place, _)| field.split_at(place));
    let Some(after) = after.strip_prefix('!') else {
        return Ok((name, None, after.strip_prefix(':').unwrap_or("")));
    };
    let mut chars = after.chars();
    let conversion = chars.next();
    let spec = chars.as_str();
    match spec.strip_prefix(':') {
        Some(spec) => Ok((name, conversion, spec)),
        None if spec.is_empty() && conversion.is_some() => Ok((name, conversion, "")),
        None => Err(Error::new("expected ':' after conversion specifier")),
    }
}

/// Python's `format(value, spec)`.
fn format_value(value: &Value, spec: &str) -> Result<Rc<str>> {
    if spec.is_empty() {
        return value.to_text();
    }
    let written = spec;
    let spec = Spec::parse(spec, value.as_str().is_some())?;
    let (negative, prefix, body) = match value.defined()? {
        Value::Str(_) | Value::Markup(_) => return spec.text(value, written),
        Value::Bool(_) if spec.kind.is_none() && spec.precision.is_none() => {
            (false, "", value.as_int().unwrap_or_default().to_string())
        }
        Value::Int(_) | Value::Bool(_) if spec.kind.is_none_or(|kind| "bcdoxXn".contains(kind)) => {
            spec.integer(value)?
        }
        Value::Int(_) | Value::Bool(_) | Value::Float(_) => spec.float(value)?,
        _ => {
            return Err(Error::new(format!(
                "unsupported format string passed to {}.__format__",
                value.type_name()
            )));
        }
    };
    let Spec { fill, width, .. } = spec;
    let prefix = format!("{}{prefix}", spec.sign.of(negative));
    let align = spec.align.unwrap_or('>');
    let zeros = if align == '=' && fill == '0' { width.saturating_sub(prefix.len()) } else { 0 };
    let body = match spec.grouping {
        Some(grouping) => {
            let radix = if spec.kind.is_some_and(|kind| "boxX".contains(kind)) { 16 } else { 10 };
            run::bytes(10 * zeros as u64)?;
            grouped(&body, grouping, radix, zeros)
        }
        None => body,
    };
    padded(&prefix, &body, width, fill, align).map(Into::into)
}

/// A format specifier such as `*>+#12,.3f`.
struct Spec {
    fill: char,
    align: Option<char>,
    /// Whether `=` is written as the alignment.
    equals: bool,
    sign: Sign,
    alternate: bool,
    width: usize,
    grouping: Option<char>,
    precision: Option<usize>,
    kind: Option<char>,
}

impl Spec {
    fn parse(spec: &str, is_text: bool) -> Result<Self> {
        run::bytes(8 * spec.len() as u64)?;
        let mut chars: Vec<char> = spec.chars().collect();
        chars.push('\0');
        let mut at = 0;
        let (mut fill, mut align, mut filled) = (' ', None, false);
        if chars.len() > 2 && matches!(chars[1], '<' | '>' | '=' | '^') {
            (fill, align, at, filled) = (chars[0], Some(chars[1]), 2, true);
        } else if matches!(chars[0], '<' | '>' | '=' | '^') {
            (align, at) = (Some(chars[0]), 1);
        }
        let mut take = |of: &[char]| {
            let found = of.contains(&chars[at]).then(|| chars[at]);
            at += usize::from(found.is_some());
            found
        };
        let sign = match take(&['+', '-', ' ']) {
            Some('+') => Sign::Plus,
            Some(' ') => Sign::Space,
            Some(_) if is_text => return Err(invalid_spec(spec)),
            _ => Sign::Minus,
        };
        take(&['z']);
        let alternate = take(&['#']).is_some();
        let equals = align == Some('=');
        if !filled && take(&['0']).is_some() {
            (fill, align) = ('0', align.or(Some('=')));
        }
        let rest: String = chars[at..chars.len() - 1].iter().collect();
        let (width, rest) = digits(&rest)?;
        let (grouping, rest) = match rest.chars().next() {
            Some(c @ (',' | '_')) => (Some(c), &rest[1..]),
            _ => (None, rest),
        };
        let (precision, rest) = match rest.strip_prefix('.') {
            Some(after) => match digits(after)? {
                (None, _) => return Err(Error::new("format specifier missing precision")),
                found => found,
            },
            None => (None, rest),
        };
        let mut kinds = rest.chars();
        let kind = kinds.next();
        if kinds.next().is_some() {
            return Err(invalid_spec(spec));
        }
        let width = width.unwrap_or(0);
        Ok(Self { fill, align, equals, sign, alternate, width, grouping, precision, kind })
    }

    fn text(&self, value: &Value, written: &str) -> Result<Rc<str>> {
        if self.kind.is_some_and(|kind| kind != 's') {
            return Err(self.unknown_kind(value));
        }
        if self.sign != Sign::Minus || self.alternate || self.grouping.is_some() || self.equals {
            return Err(invalid_spec(written));
        }
        let text = value.to_text()?;
        run::bytes(text.len() as u64)?;
        let text: String = match self.precision {
            Some(precision) => text.chars().take(precision).collect(),
            None => text.to_string(),
        };
        let align = if self.align == Some('=') { '<' } else { self.align.unwrap_or('<') };
        padded("", &text, self.width, self.fill, align).map(Into::into)
    }

    /// Whether the number is negative, its prefix and its digits.
    fn integer(&self, value: &Value) -> Result<(bool, &'static str, String)> {
        if self.precision.is_some() {
            return Err(Error::new("precision not allowed in integer format specifier"));
        }
        let number = value.index()?;
        let magnitude = number.unsigned_abs();
        let (prefix, body) = match self.kind {
            Some('b') => ("0b", format!("{magnitude:b}")),
            Some('o') => ("0o", format!("{magnitude:o}")),
            Some('x') => ("0x", format!("{magnitude:x}")),
            Some('X') => ("0X", format!("{magnitude:X}")),
            Some('c') => {
                let c = u32::try_from(number).ok().and_then(char::from_u32);
                ("", c.ok_or_else(|| Error::new("%c arg not in range(0x110000)"))?.to_string())
            }
            _ => ("", magnitude.to_string()),
        };
        Ok((number < 0, if self.alternate { prefix } else { "" }, body))
    }

    /// Whether the number is negative, an empty prefix and its digits.
    fn float(&self, value: &Value) -> Result<(bool, &'static str, String)> {
        let number = value.as_number().unwrap_or_default();
        let negative = number.is_sign_negative() && !number.is_nan();
        let magnitude = number.abs();
        let (precision, alternate) = (self.precision.unwrap_or(6), self.alternate);
        let body = match self.kind {
            None if self.precision.is_none() => python::float(magnitude),
            // Like `g`, but with at least one digit after the point.
            None => {
                let text = float(magnitude, 'g', precision, alternate);
                if text.contains(['.', 'e', 'n']) { text } else { text + ".0" }
            }
            Some('%') => float(magnitude * 100.0, 'f', precision, alternate) + "%",
            Some('n') => float(magnitude, 'g', precision, alternate),
            Some(kind @ ('e' | 'E' | 'f' | 'F' | 'g' | 'G')) => float(magnitude, kind, precision, alternate),
            Some(_) => return Err(self.unknown_kind(value)),
        };
        Ok((negative, "", body))
    }

    fn unknown_kind(&self, value: &Value) -> Error {
        let kind = self.kind.unwrap_or('?');
        Error::new(format!("unknown format code '{kind}' for object of type '{}'", value.type_name()))
    }
}

fn invalid_spec(spec: &str) -> Error {
    Error::new(format!("invalid format specifier {:?}", short(spec)))
}

/// Puts the digits before the point into groups, with zeros before them up to a width.
fn grouped(number: &str, separator: char, radix: u32, width: usize) -> String {
    let size = if radix == 10 { 3 } else { 4 };
    let end = number.find(|c: char| !c.is_digit(radix)).unwrap_or(number.len());
    let (whole, rest) = number.split_at(end);
    if whole.is_empty() {
        return number.to_owned();
    }
    let mut count = whole.len();
    while count + count.saturating_sub(1) / size + rest.len() < width {
        count += 1;
    }
    let zeros = std::iter::repeat_n('0', count - whole.len());
    let mut out = String::new();
    for (index, digit) in zeros.chain(whole.chars()).enumerate() {
        if index > 0 && (count - index).is_multiple_of(size) {
            out.push(separator);
        }
        out.push(digit);
    }
    out + rest
}

fn padded(prefix: &str, body: &str, width: usize, fill: char, align: char) -> Result<String> {
    let length = prefix.chars().count() + body.chars().count();
    let padding = width.saturating_sub(length);
    let before = match align {
        '<' => 0,
        '^' => padding / 2,
        _ => padding,
    };
    let fill = fill.to_string();
    let (before, after) = (repeat(&fill, before)?, repeat(&fill, padding - before)?);
    run::bytes((2 * body.len() + padding) as u64)?;
    Ok(match align {
        '=' => format!("{prefix}{before}{body}"),
        _ => format!("{before}{prefix}{body}{after}"),
    })
}
