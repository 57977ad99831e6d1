//! Checks a `tokenizer.json` before the `tokenizers` crate reads it.
//!
//! The crate was made for files that it has written itself. Other files can make it panic, or make a text grow
//! without bounds, while the file is read or later when a text is encoded. So this module checks each part by
//! its name. [`guarded`] catches the panics of cases that these checks miss.

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::normalizers::replace::{Replace, ReplacePattern};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::processors::PostProcessorWrapper;
use tokenizers::{Decoder as _, NormalizedString, Normalizer as _};

use crate::pipeline::Pipeline;

/// The maximum depth of nested components, and the maximum number of components in one part of the file. Real
/// files have a sequence of ten.
const MOST_LEVELS: usize = 8;
const MOST_COMPONENTS: usize = 256;

/// The maximum length of a pattern, in bytes. Released tokenizers have a few hundred, and searching takes
/// longer with the length.
const LONGEST_PATTERN: usize = 16 << 10;

/// The maximum length of a replacement text, in bytes. Real ones have one character.
const LONGEST_CONTENT: usize = 256;

/// The maximum length of a text that is put before each part of a text, in bytes. Real ones have one character.
const LONGEST_PREFIX: usize = 16;

/// The maximum number of pieces of a template for special tokens, and of pieces that stand for the text. Real
/// templates have five and one.
const MOST_PIECES: usize = 64;
const MOST_TEXTS: usize = 4;

/// The maximum number of ids of a special token in a template. Real ones have one.
const MOST_IDS: usize = 16;

/// The maximum number of pre-tokenizers, and of those that may replace characters, because each of these makes
/// a text longer. Real files have up to eight, and one.
const MOST_PRE_TOKENIZERS: usize = 32;
const MOST_REWRITES: usize = 2;

/// The maximum length of a normalized text, in bytes, if the text is short. The crate needs 17 bytes of memory
/// for each byte.
const LONGEST_NORMALIZED: usize = 16 << 20;

/// The maximum factor by which normalizing may lengthen a long text. A text of spaces becomes three times as
/// long if they are written as `▁`.
const MOST_GROWTH: usize = 4;

/// The parts of the file, without the vocabulary.
#[derive(Deserialize)]
struct Outline {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    model: Option<Model>,
}

#[derive(Deserialize)]
struct Model {
    continuing_subword_prefix: Option<String>,
    merges: Option<IgnoredAny>,
}

/// The file again, to check the merges.
#[derive(Deserialize)]
struct WithMerges {
    model: Merges,
}

#[derive(Deserialize)]
struct Merges {
    merges: Value,
}

/// Checks all parts of a `tokenizer.json`.
pub(crate) fn check(json: &[u8]) -> Result<(), String> {
    let outline: Outline = serde_json::from_slice(json).map_err(|e| e.to_string())?;
    let Some(model) = outline.model else { return Err("model: it is missing".to_owned()) };
    let prefix = model.continuing_subword_prefix.unwrap_or_default();
    if !prefix.is_empty() && model.merges.is_some() {
        merges(json, &prefix)?;
    }
    let mut count = 0;
    part("normalizer", &outline.normalizer, "normalizers", normalizer, 0, &mut count)?;
    part("pre_tokenizer", &outline.pre_tokenizer, "pretokenizers", pre_tokenizer, 0, &mut count)?;
    part("post_processor", &outline.post_processor, "processors", post_processor, 0, &mut count)?;
    part("decoder", &outline.decoder, "decoders", decoder, 0, &mut count)
}

/// The crate removes the prefix from the second part of a merge, so the part must have it.
fn merges(json: &[u8], prefix: &str) -> Result<(), String> {
    let file: WithMerges = serde_json::from_slice(json).map_err(|e| e.to_string())?;
    for (index, merge) in file.model.merges.as_array().into_iter().flatten().enumerate() {
        let second = match merge {
            Value::String(pair) => pair.split_once(' ').map(|(_, second)| second),
            pair => pair.get(1).and_then(Value::as_str),
        };
        if !second.is_some_and(|second| second.is_char_boundary(prefix.len())) {
            return Err(format!(
                "model.merges[{index}]: its second part must begin with continuing_subword_prefix, which is {prefix:?}"
            ));
        }
    }
    Ok(())
}

/// Checks limits over all parts, in the crate's own representation. This includes parts without a type, which
/// the crate accepts.
pub(crate) fn check_whole(tokenizer: &Pipeline) -> Result<(), String> {
    let mut leaves = Vec::new();
    tokenizer.get_pre_tokenizer().into_iter().for_each(|of| pre_tokenizers(of, &mut leaves));
    let is_rewrite = |of: &&&PreTokenizerWrapper| {
        matches!(of, PreTokenizerWrapper::ByteLevel(_) | PreTokenizerWrapper::Metaspace(_))
    };
    if leaves.len() > MOST_PRE_TOKENIZERS {
        let count = leaves.len();
        return Err(format!(
            "pre_tokenizer: it has {count} parts, and may have at most {MOST_PRE_TOKENIZERS}"
        ));
    }
    let rewrites = leaves.iter().filter(is_rewrite).count();
    if rewrites > MOST_REWRITES {
        return Err(format!(
            "pre_tokenizer: ByteLevel and Metaspace occur {rewrites} times, and may occur at most {MOST_REWRITES} times"
        ));
    }
    // Each text becomes as many texts as the template has pieces for it.
    let templates = tokenizer.get_post_processor().map_or(0, templates);
    if templates > 1 {
        return Err(format!(
            "post_processor: there are {templates} TemplateProcessing, and at most one is allowed"
        ));
    }
    Ok(())
}

fn pre_tokenizers<'a>(of: &'a PreTokenizerWrapper, out: &mut Vec<&'a PreTokenizerWrapper>) {
    match of {
        PreTokenizerWrapper::Sequence(sequence) => {
            sequence.as_ref().iter().for_each(|of| pre_tokenizers(of, out))
        }
        leaf => out.push(leaf),
    }
}

fn templates(of: &PostProcessorWrapper) -> usize {
    match of {
        PostProcessorWrapper::Sequence(sequence) => sequence.as_ref().iter().map(templates).sum(),
        PostProcessorWrapper::Template(_) => 1,
        _ => 0,
    }
}

type Check = fn(&Value, Option<&str>) -> Result<(), String>;

/// Checks a component and, if it is a sequence, the components inside.
fn part(
    path: &str,
    value: &Value,
    inside: &str,
    check: Check,
    level: usize,
    count: &mut usize,
) -> Result<(), String> {
    if value.is_null() {
        return Ok(());
    }
    let Value::Object(fields) = value else {
        return Err(format!("{path}: it must be an object with a type"));
    };
    *count += 1;
    if level > MOST_LEVELS || *count > MOST_COMPONENTS {
        return Err(format!(
            "{path}: there are more than {MOST_COMPONENTS} components, or {MOST_LEVELS} nested ones"
        ));
    }
    let kind = match fields.get("type") {
        None => None,
        Some(Value::String(kind)) => Some(&**kind),
        Some(other) => return Err(format!("{path}: its type is {other}, and must be a text")),
    };
    if let Some(components) = fields.get(inside) {
        let Value::Array(components) = components else {
            return Err(format!("{path}.{inside}: it must be a list"));
        };
        for (index, component) in components.iter().enumerate() {
            if component.is_null() {
                return Err(format!("{path}.{inside}[{index}]: it must be an object with a type"));
            }
            part(&format!("{path}.{inside}[{index}]"), component, inside, check, level + 1, count)?;
        }
    }
    check(value, kind).map_err(|problem| format!("{path}: {problem}"))
}

fn text<'a>(component: &'a Value, name: &str) -> Option<&'a str> {
    component.get(name)?.as_str()
}

fn normalizer(component: &Value, kind: Option<&str>) -> Result<(), String> {
    replacement(component)?;
    if let Some(prefix) = text(component, "prepend").filter(|prefix| prefix.len() > LONGEST_PREFIX) {
        let length = prefix.len();
        return Err(format!("prepend has {length} bytes, and may have at most {LONGEST_PREFIX}"));
    }
    if text(component, "prepend") == Some("") {
        return Err("prepend is empty; leave the normalizer out".to_owned());
    }
    if kind == Some("Precompiled") || component.get("precompiled_charsmap").is_some() {
        let map = text(component, "precompiled_charsmap").ok_or("precompiled_charsmap must be a text")?;
        let bytes = base64(map).ok_or("precompiled_charsmap is not base64")?;
        charsmap(&bytes).map_err(|problem| format!("precompiled_charsmap: {problem}"))?;
    }
    Ok(())
}

/// Checks the length of a pattern.
fn check_length(pattern: &str) -> Result<(), String> {
    match pattern.len() {
        0..=LONGEST_PATTERN => Ok(()),
        length => Err(format!("the pattern has {length} bytes, and may have at most {LONGEST_PATTERN}")),
    }
}

/// Checks a pattern and its replacement.
fn replacement(component: &Value) -> Result<(), String> {
    let Some(pattern) = component.get("pattern") else { return Ok(()) };
    let Some((_, of)) = pattern.as_object().and_then(|pattern| pattern.iter().next()) else {
        return Err("pattern must be an object with a String or a Regex".to_owned());
    };
    match of.as_str() {
        Some("") => return Err("the pattern is empty, and would match everywhere".to_owned()),
        Some(pattern) => check_length(pattern)?,
        None => return Err("pattern must be an object with a String or a Regex".to_owned()),
    }
    if let Some(content) = text(component, "content").filter(|content| content.len() > LONGEST_CONTENT) {
        let length = content.len();
        return Err(format!("content has {length} bytes, and may have at most {LONGEST_CONTENT}"));
    }
    if let Some(regex) = text(pattern, "Regex") {
        let read = guarded(|| Replace::new(ReplacePattern::Regex(regex.to_owned()), "x").map(drop))?;
        read.map_err(|e| format!("the pattern {regex:?} is not a regular expression: {e}"))?;
    }
    Ok(())
}

fn pre_tokenizer(component: &Value, _: Option<&str>) -> Result<(), String> {
    if component.get("length").is_some_and(|length| length == 0) {
        return Err("length is 0, and must be at least 1".to_owned());
    }
    if let Some(pattern) = component.get("pattern") {
        let empty = pattern.as_object().is_some_and(|pattern| pattern.values().any(|of| of == ""));
        if empty {
            return Err("the pattern is empty, and would split everywhere".to_owned());
        }
        pattern
            .as_object()
            .into_iter()
            .flatten()
            .filter_map(|(_, of)| of.as_str())
            .try_for_each(check_length)?;
    }
    Ok(())
}

fn decoder(component: &Value, _: Option<&str>) -> Result<(), String> {
    replacement(component)
}

fn post_processor(component: &Value, kind: Option<&str>) -> Result<(), String> {
    // The crate looks at the fields, not at the type.
    if kind != Some("TemplateProcessing") && component.get("single").is_none() {
        return Ok(());
    }
    let tokens = component.get("special_tokens").and_then(Value::as_object);
    for (name, sequences) in [("single", &["A"][..]), ("pair", &["A", "B"][..])] {
        let Some(pieces) = component.get(name).and_then(Value::as_array) else {
            return Err(format!("{name} must be a list of pieces"));
        };
        if pieces.len() > MOST_PIECES {
            return Err(format!("{name} has {} pieces, and may have at most {MOST_PIECES}", pieces.len()));
        }
        let mut texts = 0;
        for (index, piece) in pieces.iter().enumerate() {
            let id = |kind: &str| piece.get(kind).map(|piece| text(piece, "id").unwrap_or_default());
            if let Some(sequence) = id("Sequence") {
                texts += 1;
                if !sequences.contains(&sequence) {
                    let known = sequences.join(" or ");
                    return Err(format!("{name}[{index}] is the sequence {sequence:?}, and must be {known}"));
                }
            } else if let Some(token) = id("SpecialToken") {
                let Some(described) = tokens.and_then(|tokens| tokens.get(token)) else {
                    return Err(format!(
                        "{name}[{index}] is the token {token:?}, which special_tokens does not have"
                    ));
                };
                let length = |key| described.get(key).and_then(Value::as_array).map(Vec::len);
                if length("ids").is_none() || length("ids") != length("tokens") {
                    return Err(format!("{name}[{index}]: ids and tokens must be two lists of one length"));
                }
                if let Some(count) = length("ids").filter(|&count| count > MOST_IDS) {
                    return Err(format!(
                        "{name}[{index}]: {token:?} stands for {count} ids, and may stand for at most {MOST_IDS}"
                    ));
                }
            } else {
                return Err(format!("{name}[{index}] must be a Sequence or a SpecialToken"));
            }
        }
        if texts > MOST_TEXTS {
            return Err(format!(
                "{name} contains the text {texts} times, and may contain it at most {MOST_TEXTS} times"
            ));
        }
    }
    Ok(())
}

/// Decodes base64 with padding.
fn base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    if !text.len().is_multiple_of(4) || text.len() - digits.len() > 2 {
        return None;
    }
    let mut out = Vec::with_capacity(digits.len() * 3 / 4);
    let (mut bits, mut count) = (0_u32, 0);
    for byte in digits.bytes() {
        let digit = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(digit);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    (bits == 0).then_some(out)
}

/// Checks SentencePiece's table of replacements: the size of a double array in bytes, the array, and texts that
/// end with a zero byte. Every place that a search in the array can reach must exist.
fn charsmap(bytes: &[u8]) -> Result<(), &'static str> {
    let (length, rest) = bytes.split_first_chunk().ok_or("it is too short")?;
    let length = u32::from_le_bytes(*length) as usize / 4;
    let (units, texts) = rest.split_at_checked(length * 4).ok_or("its array is cut off")?;
    let units: Vec<usize> =
        units.as_chunks().0.iter().map(|unit| u32::from_le_bytes(*unit) as usize).collect();
    let texts = str::from_utf8(texts).map_err(|_| "its texts are not UTF-8")?;

    let offset = |unit: usize| (unit >> 10) << ((unit & (1 << 9)) >> 6);
    let Some(&root) = units.first() else { return Err("its array is empty") };
    let start = offset(root);
    let mut seen = vec![false; units.len()];
    let mut waiting = vec![start];
    while let Some(place) = waiting.pop() {
        for byte in 1..=255 {
            let child = place ^ byte;
            let unit = *units.get(child).ok_or("its array points outside of itself")?;
            if unit & (1 << 31 | 0xff) != byte || std::mem::replace(&mut seen[child], true) {
                continue;
            }
            let next = child ^ offset(unit);
            if unit >> 8 & 1 == 1 {
                let leaf = *units.get(next).ok_or("its array points outside of itself")?;
                if !texts.is_char_boundary(leaf & ((1 << 31) - 1)) {
                    return Err("its array points to a text outside");
                }
            }
            waiting.push(next);
        }
    }
    Ok(())
}

/// Checks that normalizing a text stays within the limit; normalizers in a sequence can each make the text
/// longer.
///
/// Only a text that might become too long is normalized step by step. Each step runs only if its result is
/// known to be short enough.
pub(crate) fn grows_within_bounds(normalizer: Option<&NormalizerWrapper>, text: &str) -> Result<(), String> {
    let Some(normalizer) = normalizer else { return Ok(()) };
    let longest = LONGEST_NORMALIZED.max(text.len().saturating_mul(MOST_GROWTH));
    if text.len().saturating_mul(most_growth(normalizer)) <= longest {
        return Ok(());
    }
    let mut normalized = NormalizedString::from(text);
    let mut steps = Vec::new();
    leaves(normalizer, &mut steps);
    for step in steps {
        let length = normalized.get().len();
        let result = match step {
            NormalizerWrapper::Replace(of) if length.saturating_mul(most_growth(step)) > longest => {
                replaced_length(of, normalized.get()).map_err(|e| e.to_string())?
            }
            // An upper bound, if it is within the limit.
            NormalizerWrapper::Replace(_) | NormalizerWrapper::Prepend(_) => length,
            other => length.saturating_mul(match other {
                NormalizerWrapper::Precompiled(_) => 1,
                other => most_growth(other).min(4),
            }),
        };
        if result > longest {
            return Err(format!(
                "the normalizer would make more than {} MiB from {} bytes of text",
                longest >> 20,
                text.len()
            ));
        }
        step.normalize(&mut normalized).map_err(|e| e.to_string())?;
        if normalized.get().len() > longest {
            return Err(format!(
                "the normalizer would make more than {} MiB from {} bytes of text",
                longest >> 20,
                text.len()
            ));
        }
    }
    Ok(())
}

fn leaves<'a>(normalizer: &'a NormalizerWrapper, out: &mut Vec<&'a NormalizerWrapper>) {
    match normalizer {
        NormalizerWrapper::Sequence(sequence) => {
            for normalizer in sequence.as_ref() {
                leaves(normalizer, out);
            }
        }
        leaf => out.push(leaf),
    }
}

/// Computes the length of a text after normalizing, in bytes, without making that text.
pub(crate) fn replaced_length(replace: &Replace, text: &str) -> tokenizers::Result<usize> {
    // Once with one byte for each match, and once with none.
    let with = |content: &str| -> tokenizers::Result<usize> {
        let json = serde_json::to_value(replace)?;
        let mut json = json.as_object().cloned().unwrap_or_default();
        json.insert("content".to_owned(), content.into());
        let replace: Replace = serde_json::from_value(Value::Object(json))?;
        Ok(replace.decode_chain(vec![text.to_owned()])?.concat().len())
    };
    let rest = with("")?;
    let matches = with("x")?.saturating_sub(rest);
    Ok(rest.saturating_add(matches.saturating_mul(replace.content.len())))
}

/// The largest factor by which a text can become longer.
fn most_growth(normalizer: &NormalizerWrapper) -> usize {
    match normalizer {
        NormalizerWrapper::Sequence(sequence) => {
            sequence.as_ref().iter().map(most_growth).fold(1, usize::saturating_mul)
        }
        // A pattern may match between any two bytes.
        NormalizerWrapper::Replace(replace) => replace.content.len() + 1,
        NormalizerWrapper::Prepend(prepend) => prepend.prepend.len() + 1,
        // U+FDFA has 3 bytes, and 33 in its compatibility form.
        NormalizerWrapper::NFKC(_) | NormalizerWrapper::NFKD(_) | NormalizerWrapper::Precompiled(_) => 11,
        NormalizerWrapper::NFC(_) | NormalizerWrapper::NFD(_) | NormalizerWrapper::BertNormalizer(_) => 4,
        NormalizerWrapper::Lowercase(_) | NormalizerWrapper::ByteLevel(_) => 3,
        _ => 1,
    }
}

/// Calls the `tokenizers` crate and turns its panics into errors.
///
/// A panic leaves no broken state behind: the crate works on values that it owns, and on caches that it locks.
/// The panic's message goes through the program's panic hook first. The hook belongs to the program, so this
/// library does not change it. A program that is built with `panic = "abort"` ends.
pub(crate) fn guarded<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|panic| {
        let message = panic.downcast_ref::<String>().map(String::as_str);
        let message = message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        format!("the tokenizers crate panicked: {message}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error() {
        assert_eq!(guarded(|| 5), Ok(5));
        let empty: [u8; 0] = [];
        let place = empty.len();
        let problem = guarded(|| empty[place]).unwrap_err();
        assert!(problem.starts_with("the tokenizers crate panicked: index out of bounds"), "{problem}");
    }

    #[test]
    fn base64_is_strict() {
        assert_eq!(base64("").as_deref(), Some(&[][..]));
        assert_eq!(base64("aGk=").as_deref(), Some(&b"hi"[..]));
        assert_eq!(base64("aGV5").as_deref(), Some(&b"hey"[..]));
        for wrong in ["a", "aGk", "aGl=", "a===", "a-k=", "aGk=aGk="] {
            assert_eq!(base64(wrong), None, "{wrong}");
        }
    }
}
