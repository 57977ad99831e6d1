//! Plain English: phrases that a reader has to decode must not occur in code, documents and help texts.

/// Each phrase, and what to write instead. In this table `_` stands for a space, so that this
/// file does not contain the phrases.
const PHRASES: &[(&str, &str)] = &[
    ("so_many", "this many, a number, or a limit"),
    ("who_ever", "who it is: the caller, the user, another thread"),
    ("fore_tell", "predict"),
    ("fore_tells", "predicts"),
    ("fore_told", "predicted"),
    ("as_the_next_one_does", "the name of the thing"),
];

/// Files with text that people read.
const EXTENSIONS: [&str; 9] = ["rs", "md", "py", "toml", "cpp", "h", "def", "yml", "sh"];

/// Whether a tracked file is checked: not if it is copied from elsewhere, or a test's data.
pub(super) fn is_checked(file: &str) -> bool {
    let extension = file.rsplit_once('.').map_or("", |(_, extension)| extension);
    let copied = ["/upstream/", "/fixtures/", "xtask/cases/"].iter().any(|part| file.contains(part));
    EXTENSIONS.contains(&extension) && !copied
}

/// The line number of each forbidden phrase in a text, with the problem. A phrase may continue on the next line, also in
/// comments.
pub(super) fn forbidden(text: &str) -> Vec<(usize, String)> {
    let phrases: Vec<(Vec<String>, &str)> = PHRASES
        .iter()
        .map(|(phrase, instead)| {
            // A prefix that ends in `_` belongs to one word.
            let phrase = phrase.replacen("who_", "who", 1).replacen("fore_", "fore", 1);
            (phrase.split('_').map(str::to_owned).collect(), *instead)
        })
        .collect();
    let words: Vec<(usize, String)> = text
        .lines()
        .enumerate()
        .flat_map(|(number, line)| {
            let words =
                line.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty());
            words.map(move |word| (number + 1, word.to_lowercase()))
        })
        .collect();
    let mut found = Vec::new();
    for at in 0..words.len() {
        for (phrase, instead) in &phrases {
            let here = words[at..].iter().map(|(_, word)| word).take(phrase.len());
            if words.len() - at >= phrase.len() && here.eq(phrase) {
                found.push((
                    words[at].0,
                    format!("{:?} is not plain English; write {instead}", phrase.join(" ")),
                ));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phrases_are_found_with_their_lines() {
        let [a, b] = ["so", "told"];
        let text = format!("//! Reads {a} many\n/// bytes, {a}\n// many of them; whatever\n//! Fore{b}.");
        let found = forbidden(&text);
        let lines: Vec<usize> = found.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [1, 2, 4], "{found:?}");
        assert!(found[2].1.contains("write predicted"), "{found:?}");
        assert_eq!(forbidden("so that many see it, as many as there are").len(), 0);
    }

    #[test]
    fn copied_files_and_data_are_not_checked() {
        assert!(is_checked("README.md") && is_checked("crates/mlx-sys/native/table.cpp"));
        assert!(!is_checked("crates/mlx-sys/upstream/lib.rs") && !is_checked("xtask/cases/a/case.json"));
        assert!(!is_checked("crates/mlx-tokenizer/tests/fixtures/chats.json"));
    }
}
