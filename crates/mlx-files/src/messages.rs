//! Texts from outside, as messages show them.

use std::borrow::Cow;

/// A text of a file or of a caller for a message: the whole text up to `longest` bytes; of a longer text its beginning and
/// its end, and how many bytes lie between them.
///
/// A hostile file may have a key of a million letters, and a message that repeats it helps nobody.
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

/// An error of MLX for a message: without the places in the source of MLX and of mlx-rs that it ends with, which are
/// paths of the machine that they were built on.
///
/// ```
/// let error = "\"[read] Unable to read from file. at /build/io.cpp:73\" at /build/error.rs:9:5";
/// assert_eq!(mlx_files::without_source_place(error), "[read] Unable to read from file.");
/// ```
pub fn without_source_place(message: &str) -> String {
    let end = message.find(" at /").unwrap_or(message.len());
    message[..end].trim_matches('"').to_owned()
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

    /// As MLX said it of a file that lost its end after its header was read.
    #[test]
    fn errors_of_mlx_name_no_place_in_its_source() {
        let message = "\"[read] Unable to read from file. at /build/mlx-c/mlx/c/transforms.cpp:73\" at /build/mlx-rs/src/error.rs:9:5";
        assert_eq!(without_source_place(message), "[read] Unable to read from file.");
        assert_eq!(without_source_place("[add] shapes do not fit"), "[add] shapes do not fit");
    }
}
