//! Splits a template into tokens, by the rules of Jinja2's lexer with `trim_blocks` and `lstrip_blocks`.

use std::rc::Rc;

use super::error::{Error, Result};
use super::python::is_space;
use super::run;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    /// Text outside of tags.
    Data(Rc<str>),
    BlockBegin,
    BlockEnd,
    VariableBegin,
    VariableEnd,
    Name(Rc<str>),
    Text(Rc<str>),
    Int(i128),
    Float(f64),
    Symbol(&'static str),
    End,
}

impl Token {
    /// The name of a token in errors.
    pub(super) fn said(&self) -> String {
        match self {
            Self::Data(_) => "template data / text".to_owned(),
            Self::BlockBegin => "begin of statement block".to_owned(),
            Self::BlockEnd => "end of statement block".to_owned(),
            Self::VariableBegin => "begin of print statement".to_owned(),
            Self::VariableEnd => "end of print statement".to_owned(),
            Self::Name(name) => name.to_string(),
            Self::Text(_) => "string".to_owned(),
            Self::Int(_) => "integer".to_owned(),
            Self::Float(_) => "float".to_owned(),
            Self::Symbol(symbol) => (*symbol).to_owned(),
            Self::End => "end of template".to_owned(),
        }
    }
}

/// Longer operators come first.
const SYMBOLS: [&str; 26] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<",
    "=", ".", ":", "|", ",", ";",
];

/// The tokens of a template with their lines.
pub(super) fn tokens(source: &str) -> Result<Vec<(usize, Token)>> {
    let mut source = source.replace("\r\n", "\n").replace('\r', "\n");
    if source.ends_with('\n') {
        source.pop();
    }
    let mut lexer = Lexer { source: &source, at: 0, line: 1, line_starting: true, tokens: Vec::new() };
    lexer.template().map_err(|error| error.at(lexer.line))?;
    let line = lexer.line;
    lexer.tokens.push((line, Token::End));
    Ok(lexer.tokens)
}

struct Lexer<'a> {
    source: &'a str,
    at: usize,
    line: usize,
    /// Whether the last text ends with a line break.
    line_starting: bool,
    tokens: Vec<(usize, Token)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Tag {
    Block,
    Variable,
    Comment,
    /// The beginning of `{% raw %}`, with its length after the sign.
    Raw(usize),
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    fn push(&mut self, token: Token) {
        run::made(size_of::<(usize, Token)>() + run::OBJECT);
        self.tokens.push((self.line, token));
    }

    fn advance(&mut self, length: usize) {
        let read = &self.rest()[..length];
        self.line += read.matches('\n').count();
        self.line_starting = read.ends_with('\n');
        self.at += length;
    }

    fn template(&mut self) -> Result<()> {
        while let Some((place, tag)) = self.next_tag() {
            let sign = sign(&self.rest()[place + 2..]);
            let data = self.stripped(place, sign, tag == Tag::Variable);
            self.data(data);
            self.advance(place + 2 + sign.len());
            match tag {
                Tag::Comment => self.comment()?,
                Tag::Raw(length) => self.raw(length)?,
                Tag::Block => self.tag(Token::BlockBegin)?,
                Tag::Variable => self.tag(Token::VariableBegin)?,
            }
        }
        self.data(self.rest());
        self.advance(self.rest().len());
        Ok(())
    }

    fn data(&mut self, text: &str) {
        if !text.is_empty() {
            self.push(Token::Data(text.into()));
        }
    }

    fn next_tag(&self) -> Option<(usize, Tag)> {
        let rest = self.rest();
        let places = rest.match_indices('{').map(|(place, _)| place);
        places.into_iter().find_map(|place| {
            let tag = match rest.as_bytes().get(place + 1)? {
                b'%' => raw_length(&rest[place + 2..], "raw", false).map_or(Tag::Block, Tag::Raw),
                b'{' => Tag::Variable,
                b'#' => Tag::Comment,
                _ => return None,
            };
            Some((place, tag))
        })
    }

    /// The text before a tag, without the white space that the tag removes.
    fn stripped(&self, length: usize, sign: &str, variable: bool) -> &'a str {
        let text = &self.rest()[..length];
        if sign == "-" {
            return text.trim_end_matches(is_space);
        }
        let start = text.rfind('\n').map_or(0, |place| place + 1);
        let blank = start < text.len() && text[start..].chars().all(is_space);
        if sign.is_empty() && !variable && (start > 0 || self.line_starting) && blank {
            return &text[..start];
        }
        text
    }

    fn comment(&mut self) -> Result<()> {
        let Some(end) = self.rest().find("#}") else {
            return Err(Error::syntax("missing end of comment tag"));
        };
        let before = self.rest()[..end].chars().next_back();
        self.advance(end + 2);
        self.after_block(before);
        Ok(())
    }

    /// Skips white space after the end of a tag, depending on the sign before that end.
    fn after_block(&mut self, sign: Option<char>) {
        let rest = self.rest();
        match sign {
            Some('-') => {
                let space = rest.len() - rest.trim_start_matches(is_space).len();
                if space > 0 {
                    self.advance(space);
                }
            }
            Some('+') => {}
            _ if rest.starts_with('\n') => self.advance(1),
            _ => {}
        }
    }

    fn raw(&mut self, length: usize) -> Result<()> {
        self.advance(length);
        let rest = self.rest();
        let ends = rest.match_indices("{%").map(|(place, _)| place);
        for place in ends {
            let sign = sign(&rest[place + 2..]);
            if let Some(length) = raw_length(&rest[place + 2..], "endraw", true) {
                let data = self.stripped(place, sign, false);
                self.data(data);
                let tag = &rest[place + 2..place + 2 + sign.len() + length];
                let before = tag.trim_end_matches("%}").chars().next_back();
                self.advance(place + 2 + sign.len() + length);
                self.after_block(before.filter(|&c| c == '-' || c == '+'));
                return Ok(());
            }
        }
        Err(Error::syntax("missing end of raw directive"))
    }

    /// Reads the tokens of `{{ }}` or `{% %}`.
    fn tag(&mut self, begin: Token) -> Result<()> {
        let variable = begin == Token::VariableBegin;
        self.push(begin);
        let mut open = Vec::new();
        loop {
            let rest = self.rest();
            let Some(first) = rest.chars().next() else { return Ok(()) };
            if open.is_empty() {
                let ends: &[&str] = if variable { &["-}}", "}}"] } else { &["+%}", "-%}", "%}"] };
                if let Some(end) = ends.iter().find(|end| rest.starts_with(**end)) {
                    self.push(if variable { Token::VariableEnd } else { Token::BlockEnd });
                    self.advance(end.len());
                    let sign = end.chars().next();
                    if !variable || sign == Some('-') {
                        self.after_block(sign);
                    }
                    return Ok(());
                }
            }
            if is_space(first) {
                self.advance(rest.len() - rest.trim_start_matches(is_space).len());
                continue;
            }
            let after_dot = self.source[..self.at].ends_with('.');
            if let Some((length, token)) = number(rest, after_dot)? {
                self.push(token);
                self.advance(length);
            } else if first.is_alphanumeric() || first == '_' {
                let length = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
                if first.is_numeric() {
                    return Err(Error::syntax("invalid character in identifier"));
                }
                self.push(Token::Name(rest[..length].into()));
                self.advance(length);
            } else if let Some(length) = string_length(rest) {
                let text = unescaped(&rest[1..length - 1])?;
                self.push(Token::Text(text.into()));
                self.advance(length);
            } else if let Some(symbol) = SYMBOLS.iter().find(|symbol| rest.starts_with(**symbol)) {
                match *symbol {
                    "(" => open.push(")"),
                    "[" => open.push("]"),
                    "{" => open.push("}"),
                    ")" | "]" | "}" => match open.pop() {
                        None => return Err(Error::syntax(format!("unexpected '{symbol}'"))),
                        Some(expected) if expected != *symbol => {
                            return Err(Error::syntax(format!(
                                "unexpected '{symbol}', expected '{expected}'"
                            )));
                        }
                        Some(_) => {}
                    },
                    _ => {}
                }
                self.push(Token::Symbol(symbol));
                self.advance(symbol.len());
            } else {
                return Err(Error::syntax(format!("unexpected char {first:?}")));
            }
        }
    }
}

/// `-`, `+` or nothing at the beginning of a tag.
fn sign(inside: &str) -> &str {
    if inside.starts_with(['-', '+']) { &inside[..1] } else { "" }
}

/// If a tag of this name follows the sign, returns the length up to its end. The end is `%}` with an optional
/// sign, and for the beginning of a raw block also the white space after `-%}`.
fn raw_length(inside: &str, name: &str, end: bool) -> Option<usize> {
    let inside = &inside[sign(inside).len()..];
    let after = inside.trim_start_matches(is_space).strip_prefix(name)?.trim_start_matches(is_space);
    let stripping = after.strip_prefix("-%}");
    let after = match stripping {
        Some(after) if !end => after.trim_start_matches(is_space),
        Some(after) => after,
        None => after.strip_prefix(if end && after.starts_with('+') { "+%}" } else { "%}" })?,
    };
    Some(inside.len() - after.len())
}

/// A run of digits with single underscores between them.
fn digits(text: &str, radix: u32) -> usize {
    let mut length = 0;
    for (place, c) in text.char_indices() {
        if c.is_digit(radix) {
            length = place + 1;
        } else if c != '_' || place != length || length == 0 {
            break;
        }
    }
    length
}

/// Reads a number at the beginning of a text.
fn number(text: &str, after_dot: bool) -> Result<Option<(usize, Token)>> {
    let whole = digits(text, 10);
    if whole == 0 {
        return Ok(None);
    }
    if !after_dot {
        let mut length = whole;
        if let Some(fraction) = text[length..].strip_prefix('.') {
            let digits = digits(fraction, 10);
            if digits > 0 {
                length += 1 + digits;
            }
        }
        if let Some(exponent) = text[length..].strip_prefix(['e', 'E']) {
            let sign = sign(exponent).len();
            let digits = digits(&exponent[sign..], 10);
            if digits > 0 {
                length += 1 + sign + digits;
            }
        }
        if length > whole {
            let number = text[..length].replace('_', "").parse();
            let number = number.map_err(|_| Error::syntax("this is not a number"))?;
            return Ok(Some((length, Token::Float(number))));
        }
    }
    let (start, radix) = match text.get(..2) {
        Some("0b" | "0B") => (2, 2),
        Some("0o" | "0O") => (2, 8),
        Some("0x" | "0X") => (2, 16),
        _ => (0, 10),
    };
    let after = &text[start..];
    let underscore = usize::from(start > 0 && after.starts_with('_'));
    let length = match digits(&after[underscore..], radix) {
        // Only a zero may begin with zero.
        0 => return Ok(Some((1, Token::Int(0)))),
        length => start + underscore + length,
    };
    let decimal_zero = start == 0 && text.starts_with('0');
    let length = if decimal_zero {
        text[..length]
            .find(|c| c != '0' && c != '_')
            .map_or(length, |end| text[..end].trim_end_matches('_').len())
    } else {
        length
    };
    let number = i128::from_str_radix(&text[start..length].replace('_', ""), radix);
    let number = number.map_err(|_| Error::limit("a number has more than 127 bits"))?;
    Ok(Some((length, Token::Int(number))))
}

/// The length of a string literal at the beginning of a text, including its quotes.
fn string_length(text: &str) -> Option<usize> {
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let mut escaped = false;
    for (place, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return Some(place + 1),
            _ => {}
        }
    }
    None
}

/// The text of a string literal: Python's `encode("ascii", "backslashreplace").decode("unicode-escape")`.
fn unescaped(text: &str) -> Result<String> {
    if !text.contains('\\') {
        return Ok(text.to_owned());
    }
    let mut ascii = String::with_capacity(text.len());
    for c in text.chars() {
        match u32::from(c) {
            0..128 => ascii.push(c),
            code @ 128..256 => ascii += &format!("\\x{code:02x}"),
            code @ 256..0x1_0000 => ascii += &format!("\\u{code:04x}"),
            code => ascii += &format!("\\U{code:08x}"),
        }
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = &*ascii;
    while let Some(place) = rest.find('\\') {
        out += &rest[..place];
        let after = &rest[place + 1..];
        let Some(c) = after.chars().next() else {
            return Err(Error::syntax("\\ at end of string"));
        };
        if let Some(simple) = simple_escape(c) {
            out += simple;
            rest = &after[1..];
            continue;
        }
        let (radix, start, length, exact) = match c {
            '0'..='7' => (8, 0, 3, false),
            'x' => (16, 1, 2, true),
            'u' => (16, 1, 4, true),
            'U' => (16, 1, 8, true),
            'N' => return Err(Error::syntax("names of characters (\\N) are not supported")),
            _ => {
                out.push('\\');
                out.push(c);
                rest = &after[1..];
                continue;
            }
        };
        let digits = after[start..].chars().take(length).take_while(|c| c.is_digit(radix)).count();
        if exact && digits < length {
            return Err(Error::syntax(format!("truncated \\{c} escape")));
        }
        let code = u32::from_str_radix(&after[start..start + digits], radix).unwrap_or(u32::MAX);
        let Some(character) = char::from_u32(code) else {
            return Err(Error::syntax("an escape is half of a surrogate pair, or not a character"));
        };
        out.push(character);
        rest = &after[start + digits..];
    }
    Ok(out + rest)
}

/// The text of an escape of one character after the backslash.
fn simple_escape(c: char) -> Option<&'static str> {
    Some(match c {
        '\n' => "",
        '\\' => "\\",
        '\'' => "'",
        '"' => "\"",
        'a' => "\u{7}",
        'b' => "\u{8}",
        'f' => "\u{c}",
        'n' => "\n",
        'r' => "\r",
        't' => "\t",
        'v' => "\u{b}",
        _ => return None,
    })
}
