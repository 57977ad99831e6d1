//! The names that a hub and its users give: models, revisions, files, addresses. All of them are checked.

use std::fmt;
use std::path::{Component, Path};
use std::str::FromStr;

/// The longest name of a revision or a file, in bytes. File systems have the same limit.
const LONGEST_NAME: usize = 255;

/// A model on the Hub: `OWNER/NAME`.
///
/// ```
/// use mlx_hub::HubId;
///
/// let id: HubId = "mlx-community/Qwen3-0.6B-4bit".parse()?;
/// assert!("../Qwen3".parse::<HubId>().is_err());
/// # Ok::<(), String>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubId(String);

impl FromStr for HubId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // These are the Hub's own rules.
        let part_is_fine = |part: &str| {
            !part.is_empty()
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
                && !part.starts_with(['-', '.'])
                && !part.ends_with(['-', '.'])
                && !part.contains("--")
                && !part.contains("..")
        };
        match text.split_once('/') {
            Some((owner, name)) if part_is_fine(owner) && part_is_fine(name) && text.len() <= 96 => {
                Ok(Self(text.to_owned()))
            }
            _ => Err(format!("{text:?} is not a Hub id, which has the form owner/name")),
        }
    }
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl HubId {
    /// The name of the model's folder in the cache.
    pub(crate) fn folder_name(&self) -> String {
        format!("models--{}", self.0.replace('/', "--"))
    }
}

/// A branch, tag or commit of a model. The default is the branch `main`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revision(String);

impl Default for Revision {
    fn default() -> Self {
        Self("main".to_owned())
    }
}

impl FromStr for Revision {
    type Err = String;

    /// Checks the name, since it becomes a path below the folder `refs` of the cache and must not lead out of it.
    fn from_str(text: &str) -> Result<Self, String> {
        // These are Git's own rules, as far as they matter here.
        let part_is_fine = |part: &str| {
            !part.is_empty()
                && !part.starts_with('.')
                && !part.contains("..")
                && !part.contains(|c: char| c.is_control() || c.is_whitespace() || "\\?*[:~^".contains(c))
        };
        if text.len() <= LONGEST_NAME && text.split('/').all(part_is_fine) {
            // The cache stores a commit under its name in lower case.
            return Ok(Self(if is_commit(text) { text.to_ascii_lowercase() } else { text.to_owned() }));
        }
        Err("it is not the name of a branch, a tag or a commit".to_owned())
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Revision {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is a commit, which never changes.
    pub(crate) fn is_commit(&self) -> bool {
        is_commit(&self.0)
    }
}

/// Whether this is the name of a commit.
pub(crate) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether a relative path stays inside its folder and can be the name of a file.
pub(crate) fn is_inside(path: &str) -> bool {
    !path.is_empty()
        && path.len() <= LONGEST_NAME
        && !path.contains(char::is_control)
        && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

/// Whether a file of a model is downloaded. These are the files that mlx-lm downloads, so that it can use the same cache.
pub(crate) fn is_needed(file: &str) -> bool {
    let ends = [".json", ".py", ".tiktoken", ".txt", ".jsonl", ".jinja"];
    file == "tokenizer.model"
        || ends.iter().any(|end| file.ends_with(end))
        || (file.starts_with("model") && file.ends_with(".safetensors"))
}

/// A text as a part of an address: other characters than letters, digits and `-_.~` are escaped, and slashes unless they are kept.
pub(crate) fn escaped(text: &str, keep_slashes: bool) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                escaped.push(char::from(byte))
            }
            b'/' if keep_slashes => escaped.push('/'),
            other => escaped += &format!("%{other:02X}"),
        }
    }
    escaped
}

/// The server in an address: everything before the path.
pub(crate) fn origin(url: &str) -> &str {
    let start = url.find("://").map_or(0, |scheme| scheme + 3);
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |length| start + length);
    &url[..end]
}

/// The address that a redirect from `url` leads to, or what is wrong with it.
///
/// Only http and https are followed, and never from https to http.
pub(crate) fn redirected(url: &str, place: &str) -> Result<String, String> {
    let scheme = |url: &str| url.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
    let from = scheme(url).unwrap_or_default();
    let next = match place.strip_prefix("//") {
        Some(rest) => format!("{from}://{rest}"),
        None if place.starts_with('/') => format!("{}{place}", origin(url)),
        None => place.to_owned(),
    };
    match (&*from, scheme(&next).as_deref()) {
        (_, Some("https")) | ("http", Some("http")) => Ok(next),
        (_, Some("http")) => {
            Err(format!("it redirects to {}, which is not encrypted", shortened(&format!("{place:?}"))))
        }
        _ => Err(format!(
            "it redirects to {}, which is not an http or https address",
            shortened(&format!("{place:?}"))
        )),
    }
}

/// A text of a server in an error message: at most a line or two of it.
pub(crate) fn shortened(text: &str) -> String {
    mlx_files::shortened(text, 200).into_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn ids_have_an_owner_and_a_name() {
        for right in ["owner/name", "a/b", "mlx-community/Qwen3-0.6B-4bit", "o_w/n.a-m_e"] {
            assert_eq!(right.parse::<HubId>().unwrap().to_string(), right);
        }
        let long = format!("a/{}", "b".repeat(95));
        for wrong in [
            "name", "", "/name", "owner/", "a/b/c", "../b", "./b", "a/-b", "a/b--c", "a/b..c", "a/b c",
            "a/b.", &long,
        ] {
            assert!(wrong.parse::<HubId>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn revisions_stay_in_their_folder() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        for right in ["main", "v1.0", commit, "a/branch", "refs/pr/1", "feature_x-2"] {
            assert_eq!(right.parse::<Revision>().unwrap().to_string(), right);
        }
        let long = "a".repeat(256);
        for wrong in [
            "", "..", ".", "../../x", "a/../b", "/etc", "a/", "a//b", "a..b", ".hidden", "a b", "a\0",
            "\x1b[2J", "a\\b", &long,
        ] {
            assert!(wrong.parse::<Revision>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn redirects_stay_on_the_web() {
        let from = "https://hub.example/a/b?c";
        for (place, next) in [
            ("/x", "https://hub.example/x"),
            ("https://far.example/y", "https://far.example/y"),
            ("//far.example/y", "https://far.example/y"),
            ("HTTPS://far.example/y", "HTTPS://far.example/y"),
        ] {
            assert_eq!(redirected(from, place).unwrap(), next);
        }
        assert_eq!(redirected("http://hub.example/", "http://far.example").unwrap(), "http://far.example");
        for place in ["file:///etc/passwd", "ftp://far.example/x", "far", "", "javascript:x", "data:,x"] {
            assert!(redirected(from, place).unwrap_err().contains("not an http or https address"), "{place}");
        }
        assert!(redirected(from, "http://far.example").unwrap_err().contains("not encrypted"));
    }
}
