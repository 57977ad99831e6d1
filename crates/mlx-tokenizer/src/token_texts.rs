//! The texts of a vocabulary: texts by ids, and ids by texts.

use std::hash::{BuildHasher, RandomState};

/// The texts of tokens, in one piece of memory, with a table that finds the id of a text.
///
/// A text is found by its hash, and the hash of two texts, one after the other, follows from their hashes. So whether two
/// neighbouring tokens form another token takes the same time however long they are.
#[derive(Debug)]
pub(crate) struct TokenTexts {
    all: String,
    /// Where each text ends in `all`.
    ends: Vec<usize>,
    /// For each place of the table the upper half of a hash and an id plus one; 0 for a free place.
    slots: Vec<u64>,
    /// The powers of a random number, up to the length of the longest text in bytes.
    powers: Vec<u64>,
    /// How many ids have a text.
    count: usize,
    /// The tokens of the first characters of Unicode, which are most of most texts: those of the alphabet of bytes.
    characters: Vec<Option<TextPlace>>,
}

/// The number of characters whose tokens are found without their hash.
const CHARACTERS: u32 = 0x180;

/// The hash of a text: a number in base `powers[1]`, whose digits are the bytes plus one, modulo [`PRIME`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct TextHash(u64);

/// A text of the table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TextPlace {
    pub(crate) id: u32,
    pub(crate) hash: TextHash,
}

/// A Mersenne prime, so that the remainder takes no division.
const PRIME: u64 = (1 << 61) - 1;

fn product(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    let sum = (product as u64 & PRIME) + (product >> 61) as u64;
    if sum >= PRIME { sum - PRIME } else { sum }
}

fn sum(a: u64, b: u64) -> u64 {
    let sum = a + b;
    if sum >= PRIME { sum - PRIME } else { sum }
}

impl TokenTexts {
    /// A table of texts. An id without a text has an empty one. The error is the ids of two tokens with the same text.
    pub(crate) fn new(texts: impl ExactSizeIterator<Item = impl AsRef<str>>) -> Result<Self, (u32, u32)> {
        let mut all = String::with_capacity(8 * texts.len());
        let ends = texts.map(|text| {
            all.push_str(text.as_ref());
            all.len()
        });
        let ends: Vec<usize> = ends.collect();
        let starts = std::iter::once(0).chain(ends.iter().copied());
        let longest = ends.iter().zip(starts).map(|(end, start)| end - start).max().unwrap_or(0);
        // Chosen at random, so that nobody can make a vocabulary whose hashes are equal.
        let base = RandomState::new().hash_one(0) % (PRIME - 1000) + 500;
        let mut powers = vec![1; longest.max(1) + 1];
        (1..powers.len()).for_each(|place| powers[place] = product(powers[place - 1], base));
        let slots = vec![0; (2 * ends.len()).next_power_of_two()];
        let mut table = Self { all, ends, slots, powers, count: 0, characters: Vec::new() };
        for id in 0..table.ends.len() as u32 {
            table.insert(id).map_err(|first| (first, id))?;
        }
        let characters =
            (0..CHARACTERS).map(|code| table.place(char::from_u32(code)?.encode_utf8(&mut [0; 4])));
        table.characters = characters.collect();
        Ok(table)
    }

    /// Adds an id to the table. The error is the id that has the same text.
    fn insert(&mut self, id: u32) -> Result<(), u32> {
        let Some(text) = self.text(id).filter(|text| !text.is_empty()) else { return Ok(()) };
        let hash = self.hash(text);
        match self.find(hash, |other| other == text) {
            Ok(first) => Err(first),
            Err(place) => {
                self.slots[place] = hash.0 << 3 & !u64::from(u32::MAX) | u64::from(id + 1);
                self.count += 1;
                Ok(())
            }
        }
    }

    /// The id of a text, or the free place where the table would have it. `equals` compares a text with it.
    fn find(&self, hash: TextHash, equals: impl Fn(&str) -> bool) -> Result<u32, usize> {
        let mask = self.slots.len() - 1;
        let mut place = hash.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) as usize >> 20 & mask;
        loop {
            let slot = self.slots[place];
            if slot == 0 {
                return Err(place);
            }
            let id = slot as u32 - 1;
            if slot >> 32 == hash.0 << 3 >> 32 && self.text(id).is_some_and(&equals) {
                return Ok(id);
            }
            place = (place + 1) & mask;
        }
    }

    /// The hash of a text that is no longer than the longest token; of a longer one, any.
    pub(crate) fn hash(&self, text: &str) -> TextHash {
        let base = self.powers[1];
        TextHash(text.bytes().fold(0, |hash, byte| sum(product(hash, base), u64::from(byte) + 1)))
    }

    /// The hash of two texts, one after the other, from their hashes and the length of the second in bytes; `None` if the
    /// second is longer than any token.
    pub(crate) fn joined(&self, first: TextHash, second: TextHash, length: usize) -> Option<TextHash> {
        Some(TextHash(sum(product(first.0, *self.powers.get(length)?), second.0)))
    }

    /// The number of ids, those without a text included.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// The number of ids that have a text.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// The length of the longest text in bytes.
    pub(crate) fn longest(&self) -> usize {
        self.powers.len() - 1
    }

    /// The text of an id; empty if it has none, `None` if there is no such id.
    pub(crate) fn text(&self, id: u32) -> Option<&str> {
        let end = *self.ends.get(id as usize)?;
        let start = if id == 0 { 0 } else { self.ends[id as usize - 1] };
        self.all.get(start..end)
    }

    /// The id of a text.
    pub(crate) fn id(&self, text: &str) -> Option<u32> {
        self.place(text).map(|place| place.id)
    }

    /// The id of a text with its hash.
    pub(crate) fn place(&self, text: &str) -> Option<TextPlace> {
        if text.len() > self.longest() {
            return None;
        }
        let hash = self.hash(text);
        Some(TextPlace { id: self.id_of(hash, text)?, hash })
    }

    /// The id of a character with its hash. `text` is the character.
    pub(crate) fn character(&self, character: char, text: &str) -> Option<TextPlace> {
        match self.characters.get(character as usize) {
            Some(&place) => place,
            None => self.place(text),
        }
    }

    /// The id of a text whose hash is known.
    pub(crate) fn id_of(&self, hash: TextHash, text: &str) -> Option<u32> {
        self.find(hash, |other| other == text).ok()
    }

    /// The id of two texts, one after the other, whose common hash is known.
    pub(crate) fn id_of_parts(&self, hash: TextHash, left: &str, right: &str) -> Option<u32> {
        self.find(hash, |other| other.strip_prefix(left) == Some(right)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_is_found_and_no_other() {
        let texts: Vec<String> = (0..5000).map(|number: u32| format!("{number:x}▁")).collect();
        let table = TokenTexts::new(texts.iter()).unwrap();
        for (id, text) in texts.iter().enumerate() {
            assert_eq!(table.id(text), Some(id as u32));
            assert_eq!(table.text(id as u32), Some(&**text));
        }
        assert_eq!((table.len(), table.count(), table.longest()), (5000, 5000, 7));
        assert_eq!(
            (table.id(""), table.id("zz"), table.id("1388▁ and more"), table.text(5000)),
            (None, None, None, None)
        );
    }

    #[test]
    fn the_hash_of_two_texts_follows_from_theirs() {
        let table = TokenTexts::new(["abcdefg", "", "é"].iter()).unwrap();
        let joined = table.joined(table.hash("ab"), table.hash("cdé"), "cdé".len());
        assert_eq!(joined, Some(table.hash("abcdé")));
        assert_eq!(table.joined(table.hash("a"), table.hash("bcdefghi"), 8), None);
    }

    #[test]
    fn a_text_that_occurs_twice_is_an_error_and_an_empty_text_is_none() {
        assert_eq!(TokenTexts::new(["a", "", "b", "", "a"].iter()).unwrap_err(), (0, 4));
        let table = TokenTexts::new(std::iter::empty::<&str>()).unwrap();
        assert_eq!((table.id("a"), table.id("")), (None, None));
    }
}
