//! What the model reads: prompts, and a long text.

use std::fs;
use std::io;

/// Ten prompts: languages, code, numbers, a list, a conversation.
pub(super) const PROMPTS: [&str; 10] = [
    "The capital of France is",
    "Once upon a time, in a village at the foot of a mountain, there lived",
    "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n",
    "Die drei größten Städte Deutschlands sind",
    "La photosynthèse est le processus par lequel",
    "日本の首都は",
    "1, 1, 2, 3, 5, 8, 13,",
    "Ingredients:\n- 200 g of flour\n- 3 eggs\n-",
    "Q: Why is the sky blue?\nA:",
    "<table>\n  <tr><th>Year</th><th>Population</th></tr>\n  <tr><td>1950</td><td>",
];

/// The documents whose text is read: prose, tables and code of this project, long enough for the longest prompt.
const DOCUMENTS: [&str; 8] = [
    "kv-caches.md",
    "rope.md",
    "architecture.md",
    "generation.md",
    "differences.md",
    "platforms.md",
    "performance-notes.md",
    "chat-templates.md",
];

/// The documents, one behind the other.
pub(super) fn text() -> io::Result<String> {
    let folder = workspace::root().join("docs");
    DOCUMENTS.iter().map(|name| fs::read_to_string(folder.join(name))).collect()
}

/// The beginning of a text, of at most this many characters.
pub(super) fn beginning(text: &str, characters: usize) -> &str {
    text.char_indices().nth(characters).map_or(text, |(end, _)| &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beginning_has_whole_characters() {
        assert_eq!(beginning("größer", 3), "grö");
        assert_eq!(beginning("größer", 60), "größer");
    }

    #[test]
    fn the_documents_are_long_enough() -> io::Result<()> {
        // English has about four characters a token; the longest prompt has 20,000 tokens.
        assert!(text()?.chars().count() > 100_000);
        Ok(())
    }
}
