//! Tokens to text, one at a time: the decoders of the `tokenizers` crate as stages that tokens go through.

use std::collections::VecDeque;
use std::mem;

use tokenizers::decoders::DecoderWrapper;
use tokenizers::decoders::strip::Strip;
use tokenizers::{Decoder as _, Result};

use crate::check;

/// A decoder of `tokenizer.json` that takes a token and answers with the text that is certain by now.
///
/// A decoder there is a function of all tokens. Each kind looks at little of them, though: at a
/// token and whether it is the first, at the one before, at the bytes of a character that is not
/// complete. So each is a stage here that keeps just that, and where a token is decoded the code of
/// the `tokenizers` crate does it. Its own `DecodeStream` decodes a window of tokens twice for each
/// token, lets that window grow while bytes are no character, and fails where a byte takes back
/// characters that it has given already.
#[derive(Debug, Clone)]
pub(crate) struct Decoder {
    stages: Vec<Stage>,
}

/// The longest text of a token, in bytes, where the token is not longer itself. Real ones have some hundred bytes, and
/// what waits for a character or for the next token is short.
const LONGEST_TOKEN: usize = 1 << 20;

/// The longest text of a decoder that has to see all of it.
const LONGEST_WHOLE: usize = 256 << 20;

#[derive(Debug, Clone)]
enum Stage {
    /// Kinds that look at a token and at whether it is the first.
    Each { decoder: DecoderWrapper, place: Place },
    /// No decoder: spaces between the tokens.
    Spaces { place: Place },
    /// Characters at both ends of each token.
    Strip(Strip),
    /// Kinds that look at whether a token is the last.
    UnlessLast { decoder: DecoderWrapper, held: Option<String> },
    /// Repeated tokens count once.
    Deduplicate { decoder: DecoderWrapper, last: Option<String> },
    /// `<0x..>` for a byte.
    ByteFallback(Utf8),
    /// GPT-2's alphabet of bytes. What comes out are parts of one token.
    ByteLevel(Utf8),
    /// Characters at the start of one token that comes in parts.
    StripStart { content: char, left: usize },
    /// What has to see all of the text. Nothing comes before the end.
    Whole { decoders: Vec<DecoderWrapper>, text: String },
}

/// Where a token stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    First,
    Later,
    /// A part of the only token, so that each part is the first.
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
                // It looks at single characters, so that parts of a token do.
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

    /// Takes a token and answers with the text that is complete by now.
    pub(crate) fn push(&mut self, token: String) -> Result<String> {
        let longest = LONGEST_TOKEN.max(token.len());
        let mut tokens = vec![token];
        for stage in &mut self.stages {
            tokens = stage.push_within(longest, tokens)?;
        }
        Ok(tokens.concat())
    }

    /// The rest of the text.
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

/// The kinds that a decoder is a sequence of.
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
    /// As [`Self::push_all`], where all of it stays within bounds: stages may follow each other.
    fn push_within(&mut self, longest: usize, tokens: Vec<String>) -> Result<Vec<String>> {
        if let Self::Each { decoder, .. } = self {
            let made = most_made(decoder, &tokens, longest)?;
            if made > longest {
                return Err(format!(
                    "the decoder would make {made} bytes of one token, of at most {longest}"
                )
                .into());
            }
        }
        let tokens = self.push_all(tokens)?;
        if length(&tokens) > longest {
            return Err(format!("the decoder makes more than {longest} bytes of one token").into());
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
                // Behind another token, so that it is not the first.
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
                    // Before another token, so that it is not the last.
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
                        return Err(
                            format!("the decoder makes more than {longest} bytes of all tokens").into()
                        );
                    }
                    tokens = match decoder {
                        // That of the crate panics where it strips all of a token.
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

/// How many bytes a decoder makes of tokens, or at most makes where that is within bounds.
fn most_made(decoder: &DecoderWrapper, tokens: &[String], longest: usize) -> Result<usize> {
    let length = length(tokens);
    Ok(match decoder {
        DecoderWrapper::Replace(replace) => {
            // A pattern may match between all bytes.
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

/// A token without the characters at its ends.
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

/// Bytes that become characters. What can become none is one U+FFFD for each longest beginning of a
/// character, as in `String::from_utf8_lossy` and in Python's `bytes.decode("utf-8", "replace")`.
#[derive(Debug, Clone, Default)]
struct Utf8 {
    /// The beginning of a character.
    waiting: Vec<u8>,
}

impl Utf8 {
    /// The characters that are complete by now, if any.
    fn push(&mut self, bytes: &[u8]) -> Option<String> {
        self.waiting.extend_from_slice(bytes);
        let mut text = String::new();
        loop {
            match str::from_utf8(&self.waiting) {
                Ok(valid) => {
                    text.push_str(valid);
                    self.waiting.clear();
                    break;
                }
                Err(error) => {
                    let (valid, rest) = self.waiting.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    let wrong = error.error_len();
                    self.waiting = rest[wrong.unwrap_or(0)..].to_vec();
                    if wrong.is_none() {
                        break;
                    }
                    text.push(char::REPLACEMENT_CHARACTER);
                }
            }
        }
        (!text.is_empty()).then_some(text)
    }

    /// What waits will be no character.
    fn finish(&mut self) -> Option<String> {
        let rest = mem::take(&mut self.waiting);
        (!rest.is_empty()).then(|| String::from_utf8_lossy(&rest).into_owned())
    }
}

/// The byte of a token such as `<0x0A>`.
fn fallback_byte(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() == 2 { u8::from_str_radix(hex, 16).ok() } else { None }
}

/// The byte that a character stands for in GPT-2's alphabet: itself where Latin-1 shows it; the
/// others, which are space, control characters and the soft hyphen, have the characters from 256 on.
fn alphabet_byte(character: char) -> Option<u8> {
    match u32::from(character) {
        code @ (33..=126 | 161..=172 | 174..=255) => u8::try_from(code).ok(),
        code @ 256..=288 => u8::try_from(code - 256).ok(),
        code @ 289..=322 => u8::try_from(code - 289 + 127).ok(),
        323 => Some(173),
        _ => None,
    }
}
