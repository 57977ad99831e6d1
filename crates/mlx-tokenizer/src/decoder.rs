//! Decodes tokens one at a time, with a stage for each decoder of the `tokenizers` crate.

use std::collections::VecDeque;
use std::mem;

use tokenizers::decoders::DecoderWrapper;
use tokenizers::decoders::strip::Strip;
use tokenizers::{Decoder as _, Result};

use crate::check;
use crate::utf8::Utf8;

/// A decoder of `tokenizer.json` that takes one token at a time and returns the text that is final.
///
/// In the `tokenizers` crate, a decoder is a function of all tokens. But each kind only needs a little state:
/// whether a token is the first, the token before it, or the bytes of an incomplete character. So each decoder
/// is a stage here that keeps this state, and calls the code of the crate to decode a token. The crate's own
/// `DecodeStream` decodes a window of tokens twice for each token, enlarges the window while bytes do not form
/// a character, and fails if a byte changes characters that it has already returned.
#[derive(Debug, Clone)]
pub(crate) struct Decoder {
    stages: Vec<Stage>,
}

/// The maximum length of a token's text, in bytes, if the token itself is not longer. Real ones have a few
/// hundred bytes, and a stage holds back only a short text.
const LONGEST_TOKEN: usize = 1 << 20;

/// The maximum length of the text of a decoder that needs all tokens at once.
const LONGEST_WHOLE: usize = 256 << 20;

#[derive(Debug, Clone)]
enum Stage {
    /// Decoders that need a token and whether it is the first.
    Each { decoder: DecoderWrapper, place: Place },
    /// No decoder: spaces are put between the tokens.
    Spaces { place: Place },
    /// Removes characters from both ends of each token.
    Strip(Strip),
    /// Decoders that need to know whether a token is the last.
    UnlessLast { decoder: DecoderWrapper, held: Option<String> },
    /// Drops repeated tokens.
    Deduplicate { decoder: DecoderWrapper, last: Option<String> },
    /// Decodes `<0x..>` to a byte.
    ByteFallback(Utf8),
    /// Decodes GPT-2's byte alphabet. The results are parts of one token.
    ByteLevel(Utf8),
    /// Removes characters from the start of one token that arrives in parts.
    StripStart { content: char, left: usize },
    /// A decoder that needs all tokens. It returns nothing before the end.
    Whole { decoders: Vec<DecoderWrapper>, text: String },
}

/// The position of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    First,
    Later,
    /// A part of the only token, so each part counts as the first.
    Only,
}

impl Decoder {
    /// The stages of a decoder.
    pub(crate) fn new(decoder: Option<&DecoderWrapper>) -> Self {
        let Some(decoder) = decoder else {
            return Self { stages: vec![Stage::Spaces { place: Place::First }] };
        };
        let mut kinds = VecDeque::new();
        flatten(decoder, &mut kinds);

        let mut stages = Vec::new();
        let mut place = Place::First;
        while let Some(decoder) = kinds.pop_front() {
            let fused = place == Place::Only;
            stages.push(match decoder {
                DecoderWrapper::Fuse(_) => {
                    place = Place::Only;
                    continue;
                }
                DecoderWrapper::Strip(Strip { content, start, stop: 0, .. }) if fused => {
                    Stage::StripStart { content, left: start }
                }
                // It replaces single characters, so it can be applied to parts of a token.
                DecoderWrapper::Metaspace(_) => Stage::Each { decoder, place },
                _ if fused => Stage::Whole {
                    decoders: [decoder].into_iter().chain(kinds.drain(..)).collect(),
                    text: String::new(),
                },
                DecoderWrapper::Strip(strip) => Stage::Strip(strip),
                DecoderWrapper::BPE(_) => Stage::UnlessLast { decoder, held: None },
                DecoderWrapper::CTC(_) => Stage::Deduplicate { decoder, last: None },
                DecoderWrapper::ByteFallback(_) => Stage::ByteFallback(Utf8::default()),
                DecoderWrapper::ByteLevel(_) => {
                    place = Place::Only;
                    Stage::ByteLevel(Utf8::default())
                }
                DecoderWrapper::WordPiece(_) | DecoderWrapper::Replace(_) | DecoderWrapper::Sequence(_) => {
                    Stage::Each { decoder, place }
                }
            });
        }
        Self { stages }
    }

    /// Takes a token and returns the text that is final.
    pub(crate) fn push(&mut self, token: String) -> Result<String> {
        let longest = LONGEST_TOKEN.max(token.len());
        let mut tokens = vec![token];
        for stage in &mut self.stages {
            tokens = stage.push_within(longest, tokens)?;
        }
        Ok(tokens.concat())
    }

    /// Returns the rest of the text.
    pub(crate) fn finish(mut self) -> Result<String> {
        let mut tokens = Vec::new();
        let mut longest = LONGEST_TOKEN;
        for stage in &mut self.stages {
            tokens = stage.push_within(longest, tokens)?;
            tokens.extend(stage.finish()?);
            longest = longest.max(length(&tokens));
        }
        Ok(tokens.concat())
    }
}

/// The decoders in a sequence of decoders.
fn flatten(decoder: &DecoderWrapper, kinds: &mut VecDeque<DecoderWrapper>) {
    match decoder {
        DecoderWrapper::Sequence(sequence) => {
            for decoder in sequence.get_decoders() {
                flatten(decoder, kinds);
            }
        }
        decoder => kinds.push_back(decoder.clone()),
    }
}

impl Stage {
    /// Like [`Self::push_all`], with a limit on the length, because each stage may make the text longer.
    fn push_within(&mut self, longest: usize, tokens: Vec<String>) -> Result<Vec<String>> {
        if let Self::Each { decoder, .. } = self {
            let made = most_made(decoder, &tokens, longest)?;
            if made > longest {
                return Err(format!(
                    "the decoder would make {made} bytes from one token, and at most {longest} are allowed"
                )
                .into());
            }
        }
        let tokens = self.push_all(tokens)?;
        if length(&tokens) > longest {
            return Err(format!("the decoder would make more than {longest} bytes from one token").into());
        }
        Ok(tokens)
    }

    fn push_all(&mut self, tokens: Vec<String>) -> Result<Vec<String>> {
        let mut out = Vec::new();
        for token in tokens {
            self.push(token, &mut out)?;
        }
        Ok(out)
    }

    fn push(&mut self, token: String, out: &mut Vec<String>) -> Result<()> {
        match self {
            Self::Each { decoder, place } => {
                let later = *place == Place::Later;
                // Decoded after another token, so that it is not the first.
                let tokens = if later { vec![String::new(), token] } else { vec![token] };
                out.extend(decoder.decode_chain(tokens)?.into_iter().skip(usize::from(later)));
                place.advance();
            }
            Self::Spaces { place } => {
                if *place == Place::Later {
                    out.push(" ".to_owned());
                }
                out.push(token);
                place.advance();
            }
            Self::Strip(strip) => {
                out.push(stripped(strip, &token));
            }
            Self::UnlessLast { decoder, held } => {
                if let Some(held) = held.replace(token) {
                    // Decoded before another token, so that it is not the last.
                    out.extend(decoder.decode_chain(vec![held, String::new()])?.into_iter().take(1));
                }
            }
            Self::Deduplicate { decoder, last } => {
                if last.as_ref() != Some(&token) {
                    out.extend(decoder.decode_chain(vec![token.clone()])?);
                    *last = Some(token);
                }
            }
            Self::ByteFallback(utf8) => match fallback_byte(&token) {
                Some(byte) => out.extend(utf8.push(&[byte])),
                None => {
                    out.extend(utf8.finish());
                    out.push(token);
                }
            },
            Self::ByteLevel(utf8) => {
                let bytes: Option<Vec<u8>> = token.chars().map(alphabet_byte).collect();
                out.extend(utf8.push(&bytes.unwrap_or_else(|| token.into_bytes())));
            }
            Self::StripStart { content, left } => {
                let stripped = token.chars().take(*left).take_while(|c| c == content).count();
                if stripped < token.chars().count() {
                    *left = 0;
                    out.push(token.chars().skip(stripped).collect());
                } else {
                    *left -= stripped;
                }
            }
            Self::Whole { text, .. } => text.push_str(&token),
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<Vec<String>> {
        match self {
            Self::UnlessLast { decoder, held: Some(held) } => decoder.decode_chain(vec![mem::take(held)]),
            Self::ByteFallback(utf8) | Self::ByteLevel(utf8) => Ok(utf8.finish().into_iter().collect()),
            Self::Whole { decoders, text } => {
                let mut tokens = vec![mem::take(text)];
                for decoder in decoders {
                    let longest = LONGEST_WHOLE.max(length(&tokens));
                    if most_made(decoder, &tokens, longest)? > longest {
                        return Err(format!(
                            "the decoder would make more than {longest} bytes from all tokens"
                        )
                        .into());
                    }
                    tokens = match decoder {
                        // The crate's version panics if it strips all of a token.
                        DecoderWrapper::Strip(strip) => {
                            tokens.iter().map(|token| stripped(strip, token)).collect()
                        }
                        decoder => decoder.decode_chain(tokens)?,
                    };
                }
                Ok(tokens)
            }
            _ => Ok(Vec::new()),
        }
    }
}

fn length(tokens: &[String]) -> usize {
    tokens.iter().map(String::len).sum()
}

/// The length of a decoder's output in bytes, or an upper bound that is within the limit.
fn most_made(decoder: &DecoderWrapper, tokens: &[String], longest: usize) -> Result<usize> {
    let length = length(tokens);
    Ok(match decoder {
        DecoderWrapper::Replace(replace) => {
            // A pattern may match between any two bytes.
            let most = (length + tokens.len()).saturating_mul(replace.content.len() + 1);
            if most <= longest {
                return Ok(most);
            }
            let mut made = 0_usize;
            for token in tokens {
                made = made.saturating_add(check::replaced_length(replace, token)?);
            }
            made
        }
        // A space between all characters.
        DecoderWrapper::CTC(ctc) if ctc.word_delimiter_token.is_empty() => 2 * length + tokens.len(),
        _ => length,
    })
}

/// A token without the characters that are stripped from its ends.
fn stripped(strip: &Strip, token: &str) -> String {
    let start = token.chars().take(strip.start).take_while(|&c| c == strip.content).count();
    let stop = token.chars().rev().take(strip.stop).take_while(|&c| c == strip.content).count();
    let kept = token.chars().count().saturating_sub(start + stop);
    token.chars().skip(start).take(kept).collect()
}

impl Place {
    fn advance(&mut self) {
        if *self == Self::First {
            *self = Self::Later;
        }
    }
}

/// The byte of a token such as `<0x0A>`.
fn fallback_byte(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() == 2 { u8::from_str_radix(hex, 16).ok() } else { None }
}

/// The byte that a character represents in GPT-2's alphabet. Printable characters of Latin-1 represent
/// themselves. The other bytes (space, control characters and the soft hyphen) have the characters from 256 on.
fn alphabet_byte(character: char) -> Option<u8> {
    match u32::from(character) {
        code @ (33..=126 | 161..=172 | 174..=255) => u8::try_from(code).ok(),
        code @ 256..=288 => u8::try_from(code - 256).ok(),
        code @ 289..=322 => u8::try_from(code - 289 + 127).ok(),
        323 => Some(173),
        _ => None,
    }
}
