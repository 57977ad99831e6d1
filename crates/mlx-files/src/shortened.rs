//! Texts from outside in messages.

use std::borrow::Cow;

/// A text of a file or of a caller as messages show it: all of it up to `longest` bytes, or the beginning and the end of a
/// longer one, with how much was left out.
///
/// A file may be of one key with a million letters, and a message that repeats it is of no use.
///
/// ```
/// assert_eq!(mlx_files::shortened("model.norm.weight", 240), "model.norm.weight");
/// assert_eq!(mlx_files::shortened(&"é".repeat(100), 12), "ééé... (192 bytes) ...é");
/// ```
pub fn shortened(text: &str, longest: usize) -> Cow<'_, str> {
    if text.len() <= longest {
        return text.into();
    }
    let start = text.floor_char_boundary(longest / 2);
    let end = text.ceil_char_boundary(text.len() - longest / 4);
    format!("{}... ({} bytes) ...{}", &text[..start], end - start, &text[end..]).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_text_and_any_length() {
        let text = "aé漢👩".repeat(20);
        for longest in 0..=text.len() {
            let short = shortened(&text, longest);
            assert!(short.len() <= longest + 25, "{longest}: {short}");
            let kept: Vec<&str> = short.split("...").collect();
            assert!(text.starts_with(kept[0]) && text.ends_with(kept[kept.len() - 1]), "{longest}: {short}");
        }
    }
}
