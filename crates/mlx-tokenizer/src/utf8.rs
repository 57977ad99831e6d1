//! Decodes UTF-8 that arrives in parts.

/// Decodes UTF-8. Bytes that cannot form a character become U+FFFD, one for each longest beginning of a
/// character, as in `String::from_utf8_lossy` and in Python's `bytes.decode("utf-8", "replace")`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Utf8 {
    /// The bytes of an incomplete character.
    waiting: Vec<u8>,
}

impl Utf8 {
    /// Returns the characters that are complete.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Option<String> {
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

    /// The bytes of an incomplete character at the end become U+FFFD.
    pub(crate) fn finish(&mut self) -> Option<String> {
        let rest = std::mem::take(&mut self.waiting);
        (!rest.is_empty()).then(|| String::from_utf8_lossy(&rest).into_owned())
    }
}
