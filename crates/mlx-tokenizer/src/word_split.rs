//! How byte-level tokenizers cut a text into words, by the names that GGUF files have for it.

use serde_json::{Value, json};

/// A way to cut a text into words before the bytes of each word are joined to tokens.
///
/// A `tokenizer.json` defines it ([`normalizer`](Self::normalizer), [`pre_tokenizer`](Self::pre_tokenizer)), and a GGUF file
/// names it (`tokenizer.ggml.pre`). [`named`](Self::named) finds it by its name, [`of`](Self::of) by its definition.
#[derive(Debug, PartialEq, Eq)]
pub struct WordSplit {
    /// The names in GGUF files, the usual one first.
    pub names: &'static [&'static str],
    /// Whether composed and decomposed characters are made equal first (Unicode's form C).
    pub composes: bool,
    /// The cuts, one after the other.
    pub cuts: &'static [Cut],
    /// Whether a word that is a token becomes this token, even if joining pairs gives others (`ignore_merges`).
    pub whole_words: bool,
    /// Whether a file that does not say it puts the beginning-of-text token before a text.
    pub begins: bool,
}

/// A cut of a text into words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// At the matches of a regular expression: each match is a word, and what lies between two matches.
    Matches(&'static str),
    /// Around each digit.
    Digits,
    /// At the words of GPT-2.
    Gpt2,
}

/// The words of GPT-4: letters, up to three digits, other characters, line ends, spaces.
const GPT4: Cut = Cut::Matches(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// The words of GPT-4, with single digits.
const GPT4_DIGITS: Cut = Cut::Matches(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// The words of GPT-4o, which also cut at a change from lower to upper case.
const GPT4O: Cut = Cut::Matches(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// The words of Mistral's tokenizer: those of GPT-4o with single digits, without English endings.
const TEKKEN: Cut = Cut::Matches(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// What llama.cpp does with files that name nothing.
const UNNAMED: &[Cut] = &[
    Cut::Matches(r"[\p{P}\$\+<=>\^~\|]+"),
    Cut::Matches(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"),
    Cut::Matches(r"\p{N}+"),
    Cut::Matches(r"[0-9][0-9][0-9]"),
];

const fn split(names: &'static [&'static str], cuts: &'static [Cut]) -> WordSplit {
    WordSplit { names, composes: false, cuts, whole_words: false, begins: false }
}

/// All known ways. Of two with the same definition, the first is the one that a file is written with.
pub const WORD_SPLITS: &[WordSplit] = &[
    // Llama 3.
    WordSplit { whole_words: true, begins: true, ..split(&["llama-bpe", "llama3", "llama-v3"], &[GPT4]) },
    // SmolLM3.
    WordSplit { whole_words: true, ..split(&["smaug-bpe"], &[GPT4]) },
    // OLMo 2 and 3, Phi-4, Granite 4.
    split(&["dbrx"], &[GPT4]),
    // Qwen 2 and 3.
    WordSplit { composes: true, ..split(&["qwen2"], &[GPT4_DIGITS]) },
    // DeepSeek's models that are made from Qwen 2.
    split(&["deepseek-r1-qwen"], &[GPT4_DIGITS]),
    // Phi-4-mini.
    split(&["gpt-4o"], &[GPT4O]),
    // Mistral Nemo, Ministral.
    WordSplit { whole_words: true, begins: true, ..split(&["tekken"], &[TEKKEN]) },
    // SmolLM and SmolLM2, Granite 3.
    split(&["smollm", "refact", "starcoder"], &[Cut::Digits, Cut::Gpt2]),
    // Lille has no name, and Phi-2 the same words as GPT-2.
    split(&["gpt-2", "phi-2"], &[Cut::Gpt2]),
    split(&["default"], UNNAMED),
];

impl WordSplit {
    /// The way with this name in GGUF files.
    pub fn named(name: &str) -> Option<&'static Self> {
        WORD_SPLITS.iter().find(|split| split.names.contains(&name))
    }

    /// The way that a `tokenizer.json` defines with its `normalizer`, its `pre_tokenizer` and `ignore_merges` of its model.
    pub fn of(normalizer: &Value, pre_tokenizer: &Value, ignore_merges: bool) -> Option<&'static Self> {
        let composes = flat(normalizer, "normalizers").iter().any(|of| of["type"] == "NFC");
        let cuts = cuts(pre_tokenizer)?;
        let equal = |split: &&Self| {
            split.composes == composes && split.cuts.iter().map(Cut::key).eq(cuts.iter().copied())
        };
        let mut found = WORD_SPLITS.iter().filter(equal);
        found.clone().find(|split| split.whole_words == ignore_merges).or_else(|| found.next())
    }

    /// The `normalizer` of a `tokenizer.json`.
    pub fn normalizer(&self) -> Value {
        if self.composes { json!({"type": "NFC"}) } else { Value::Null }
    }

    /// The `pre_tokenizer` of a `tokenizer.json`.
    pub fn pre_tokenizer(&self) -> Value {
        let mut steps: Vec<Value> = self.cuts.iter().filter_map(Cut::step).collect();
        let gpt2 = self.cuts.contains(&Cut::Gpt2);
        steps.push(
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": gpt2}),
        );
        json!({"type": "Sequence", "pretokenizers": steps})
    }
}

impl Cut {
    /// The component of a `tokenizer.json`. GPT-2's words are a setting of the component that is last anyway.
    fn step(&self) -> Option<Value> {
        match self {
            Self::Matches(regex) => Some(
                json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false}),
            ),
            Self::Digits => Some(json!({"type": "Digits", "individual_digits": true})),
            Self::Gpt2 => None,
        }
    }

    /// What tells the cut from others: a regular expression or a name.
    fn key(&self) -> &'static str {
        match self {
            Self::Matches(regex) => regex,
            Self::Digits => DIGITS,
            Self::Gpt2 => GPT2,
        }
    }
}

const DIGITS: &str = "each digit";
const GPT2: &str = "the words of GPT-2";

/// The keys of the cuts that a `pre_tokenizer` defines; `None` if it has another component, or does not end with the bytes of
/// words.
fn cuts(pre_tokenizer: &Value) -> Option<Vec<&str>> {
    let steps = flat(pre_tokenizer, "pretokenizers");
    let (last, steps) = steps.split_last()?;
    let mut cuts = Vec::new();
    for step in steps {
        cuts.push(match step["type"].as_str()? {
            "Split" => {
                // Both keep the matches, and the patterns of tokenizers leave nothing between them.
                let kept = step["behavior"] == "Isolated" && step["invert"] != true
                    || step["behavior"] == "Removed" && step["invert"] == true;
                step["pattern"]["Regex"].as_str().filter(|_| kept)?
            }
            "Digits" if step["individual_digits"] == true => DIGITS,
            _ => return None,
        });
    }
    if last["type"] != "ByteLevel" || last["add_prefix_space"] == true {
        return None;
    }
    if last["use_regex"] != false {
        cuts.push(GPT2);
    }
    Some(cuts)
}

/// The components of a sequence, or the component itself.
fn flat<'a>(component: &'a Value, inside: &str) -> Vec<&'a Value> {
    match component[inside].as_array() {
        Some(components) => components.iter().flat_map(|of| flat(of, inside)).collect(),
        None if component.is_null() => Vec::new(),
        None => vec![component],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_definition_leads_back_to_its_name() {
        for split in WORD_SPLITS {
            for name in split.names {
                assert_eq!(WordSplit::named(name), Some(split));
            }
            let found =
                WordSplit::of(&split.normalizer(), &split.pre_tokenizer(), split.whole_words).unwrap();
            assert_eq!(
                (found.cuts, found.composes, found.whole_words),
                (split.cuts, split.composes, split.whole_words)
            );
        }
        assert_eq!(WordSplit::named("llama"), None);
    }

    #[test]
    fn other_ways_to_write_a_definition_are_understood() {
        let Cut::Matches(regex) = GPT4 else { unreachable!() };
        let removed = json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Removed", "invert": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        ]});
        assert_eq!(WordSplit::of(&Value::Null, &removed, false).unwrap().names, ["dbrx"]);
        assert_eq!(WordSplit::of(&Value::Null, &removed, true).unwrap().names[0], "llama-bpe");
        let alone = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true});
        assert_eq!(
            WordSplit::of(&json!({"type": "Sequence", "normalizers": []}), &alone, false).unwrap().names[0],
            "gpt-2"
        );
        for unknown in [
            json!({"type": "Whitespace"}),
            json!({"type": "ByteLevel", "add_prefix_space": true}),
            Value::Null,
        ] {
            assert_eq!(WordSplit::of(&Value::Null, &unknown, false), None);
        }
    }
}
