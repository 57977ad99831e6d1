//! What a hub and its users may name: models, revisions, files, addresses.

use std::fmt;
use std::path::{Component, Path};
use std::str::FromStr;

/// The longest name of a revision or a file, in bytes: file systems take no longer names either.
const LONGEST_NAME: usize = 255;

/// A model on the hub: `OWNER/NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HubId(String);

impl FromStr for HubId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // The hub's own rule.
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
            _ => Err(format!("{text:?} is not a hub id, which has the form owner/name")),
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
    pub(super) fn folder_name(&self) -> String {
        format!("models--{}", self.0.replace('/', "--"))
    }
}

/// A branch, tag or commit of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Revision(String);

impl Default for Revision {
    fn default() -> Self {
        Self("main".to_owned())
    }
}

impl FromStr for Revision {
    type Err = String;

    /// A revision is a path below the folder `refs` of the cache, so that it must not lead out of it.
    fn from_str(text: &str) -> Result<Self, String> {
        // Git's own rules, as far as they matter here.
        let part_is_fine = |part: &str| {
            !part.is_empty()
                && !part.starts_with('.')
                && !part.contains("..")
                && !part.contains(|c: char| c.is_control() || c.is_whitespace() || "\\?*[:~^".contains(c))
        };
        if text.len() <= LONGEST_NAME && text.split('/').all(part_is_fine) {
            // The cache has a commit under its name in small letters.
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
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is a commit, which never changes.
    pub(super) fn is_commit(&self) -> bool {
        is_commit(&self.0)
    }
}

/// Whether this is the name of a commit.
pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether a path stays inside of the folder that it begins at, and can be the name of a file.
pub(super) fn is_inside(path: &str) -> bool {
    !path.is_empty()
        && path.len() <= LONGEST_NAME
        && !path.contains(char::is_control)
        && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

/// Whether a file of a model is one that is downloaded: those that mlx-lm downloads, so that it finds all that it
/// wants.
pub(super) fn is_needed(file: &str) -> bool {
    let ends = [".json", ".py", ".tiktoken", ".txt", ".jsonl", ".jinja"];
    file == "tokenizer.model"
        || ends.iter().any(|end| file.ends_with(end))
        || (file.starts_with("model") && file.ends_with(".safetensors"))
}

/// A part of an address.
pub(super) fn escaped(text: &str, slashes: bool) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                escaped.push(char::from(byte))
            }
            b'/' if slashes => escaped.push('/'),
            other => escaped += &format!("%{other:02X}"),
        }
    }
    escaped
}

/// Who answers at an address: all before the path.
pub(super) fn origin(url: &str) -> &str {
    let start = url.find("://").map_or(0, |scheme| scheme + 3);
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |length| start + length);
    &url[..end]
}

/// The address that a redirect from `url` leads to, or what is wrong with it.
///
/// Only the web is followed, and nobody is led from an encrypted connection to a plain one.
pub(super) fn redirected(url: &str, place: &str) -> Result<String, String> {
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
            "it redirects to {}, which is no address of the web",
            shortened(&format!("{place:?}"))
        )),
    }
}

/// A text of somebody else's in an error message: not more than a line or two of it.
pub(super) fn shortened(text: &str) -> String {
    const LONGEST: usize = 200;
    match text.char_indices().nth(LONGEST) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}... ({} bytes)", &text[..end], text.len()),
    }
}
