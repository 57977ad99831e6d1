//! Writes numbers and texts as Python does, and defines what Python counts as white space.

use std::fmt::Write as _;

/// The characters that `str.strip` removes.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// The characters that end a line for `str.splitlines`.
pub(super) fn ends_line(c: char) -> bool {
    matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// Python's `repr` of a float: the shortest digits that read back as the same number, with an
/// exponent below 1e-4 and from 1e16 on.
pub(crate) fn float(number: f64) -> String {
    if !number.is_finite() {
        let sign = if number < 0.0 { "-" } else { "" };
        return if number.is_nan() { "nan".to_owned() } else { format!("{sign}inf") };
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>() {
        Ok(exponent) if number != 0.0 && !(-4..16).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
        _ => format!("{number:?}"),
    }
}

/// The maximum number of bytes that [`quote`] makes of a text.
pub(super) fn longest_quote(text: &str) -> u64 {
    let longest = |byte: u8| match byte {
        b'\\' | b'\'' | b'"' => 2,
        b' '..=b'~' => 1,
        // The first byte of a multi-byte character stands for all of them.
        0x80..0xc0 => 0,
        0..0xe0 => 4,
        0xe0..0xf0 => 6,
        0xf0.. => 10,
    };
    2 + text.bytes().map(longest).sum::<u64>()
}

/// Python's `repr` of a text.
pub(super) fn quote(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => *out += "\\\\",
            '\n' => *out += "\\n",
            '\r' => *out += "\\r",
            '\t' => *out += "\\t",
            _ if c == quote => {
                out.push('\\');
                out.push(c);
            }
            _ if is_printable(c) => out.push(c),
            _ => escape(c, out),
        }
    }
    out.push(quote);
}

/// `\x01`, `\u200b`, `\U000e0001`.
fn escape(c: char, out: &mut String) {
    // Writing to a string cannot fail.
    let _ = match u32::from(c) {
        code @ 0..256 => write!(out, "\\x{code:02x}"),
        code @ 256..0x1_0000 => write!(out, "\\u{code:04x}"),
        code => write!(out, "\\U{code:08x}"),
    };
}

/// Python's `ascii`, from the output of `repr`.
pub(super) fn ascii(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii() { out.push(c) } else { escape(c, &mut out) }
    }
    out
}

/// `str.isprintable` of a character. Rust escapes the same categories in its debug format, except combining
/// marks after a letter.
pub(super) fn is_printable(c: char) -> bool {
    if c.is_ascii() {
        return !c.is_ascii_control();
    }
    let mut text = [0; 5];
    text[0] = b'a';
    let length = 1 + c.encode_utf8(&mut text[1..]).len();
    str::from_utf8(&text[..length]).is_ok_and(|text| text.escape_debug().nth(1) == Some(c))
}

/// A character at the beginning of a title-case word.
pub(super) fn title_char(c: char, out: &mut String) {
    let digraph = match u32::from(c) {
        0x1c4..=0x1c6 => Some('\u{1c5}'),
        0x1c7..=0x1c9 => Some('\u{1c8}'),
        0x1ca..=0x1cc => Some('\u{1cb}'),
        0x1f1..=0x1f3 => Some('\u{1f2}'),
        _ => None,
    };
    if let Some(digraph) = digraph {
        out.push(digraph);
        return;
    }
    let mut upper = c.to_uppercase();
    out.extend(upper.next());
    // Of the `SS` for `ß`, only the first letter stays upper case.
    out.extend(upper.flat_map(char::to_lowercase));
}

/// `str.lower`. Rust handles the final sigma too.
pub(super) fn lower(text: &str) -> String {
    text.to_lowercase()
}

fn is_cased(c: char) -> bool {
    c.is_uppercase() || c.is_lowercase() || matches!(u32::from(c), 0x1c5 | 0x1c8 | 0x1cb | 0x1f2)
}

/// `str.title`: each run of letters begins with an upper-case letter.
pub(super) fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for c in text.chars() {
        if inside {
            out.extend(c.to_lowercase())
        } else {
            title_char(c, &mut out)
        }
        inside = is_cased(c);
    }
    out
}

/// `str.istitle`.
pub(super) fn is_title(text: &str) -> bool {
    let mut inside = false;
    let mut any = false;
    for c in text.chars() {
        let digraph = matches!(u32::from(c), 0x1c5 | 0x1c8 | 0x1cb | 0x1f2);
        if c.is_uppercase() || digraph {
            if inside {
                return false;
            }
            (inside, any) = (true, true);
        } else if c.is_lowercase() {
            if !inside {
                return false;
            }
            any = true;
        } else {
            inside = false;
        }
    }
    any
}

/// `str.capitalize`.
pub(super) fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    let mut out = String::with_capacity(text.len());
    if let Some(first) = chars.next() {
        title_char(first, &mut out);
    }
    out + &lower(chars.as_str())
}

/// `str.swapcase`.
pub(super) fn swapcase(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_uppercase() {
            out.extend(c.to_lowercase());
        } else if c.is_lowercase() {
            out.extend(c.to_uppercase());
        } else {
            out.push(c);
        }
    }
    out
}

/// Python's `float` of a text.
pub(super) fn parse_float(text: &str) -> Option<f64> {
    let text = text.trim_matches(is_space);
    let lower = text.to_ascii_lowercase();
    let unsigned = lower.trim_start_matches(['+', '-']);
    if lower.len() - unsigned.len() > 1 {
        return None;
    }
    if !matches!(unsigned, "inf" | "infinity" | "nan")
        && !unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.')
    {
        return None;
    }
    let digits = without_underscores(&lower)?;
    digits.parse().ok()
}

/// Python's `int` of a text in a base; `None` if Python raises an exception.
pub(super) fn parse_int(text: &str, base: u32) -> Option<i128> {
    let text = text.trim_matches(is_space).to_ascii_lowercase();
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(&text)),
    };
    let prefixed = [("0x", 16), ("0o", 8), ("0b", 2)].into_iter().find_map(|(prefix, of)| {
        let digits = digits.strip_prefix(prefix).filter(|_| base == of || base == 0)?;
        Some((digits.strip_prefix('_').unwrap_or(digits), of))
    });
    let (digits, base) = prefixed.unwrap_or((digits, if base == 0 { 10 } else { base }));
    if !(2..=36).contains(&base) || digits.starts_with(['+', '-']) {
        return None;
    }
    let number = i128::from_str_radix(&without_underscores(digits)?, base).ok()?;
    Some(if negative { -number } else { number })
}

/// The digits without the underscores between them; `None` if an underscore is in another place.
fn without_underscores(digits: &str) -> Option<String> {
    let bytes = digits.as_bytes();
    let between = |place: usize| {
        let is_digit = |at: Option<&u8>| at.is_some_and(u8::is_ascii_alphanumeric);
        place > 0 && is_digit(bytes.get(place - 1)) && is_digit(bytes.get(place + 1))
    };
    if digits.match_indices('_').any(|(place, _)| !between(place)) {
        return None;
    }
    Some(digits.replace('_', ""))
}
