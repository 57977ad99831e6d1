//! Circles between the files of a crate: two modules must not use each other.
//!
//! A module and its parent may: a `mod.rs` calls its parts, and the parts use its types.

use std::collections::{BTreeMap, BTreeSet};

/// Folders of modules that call each other by design, and why.
const EXCEPT: &[(&str, &str)] = &[
    // The values of a template are printed by its operators, filters and formats, which make values.
    ("crates/mlx-tokenizer/src/jinja/", "an interpreter"),
];

/// A module as the path of its names.
type Module = Vec<String>;

/// The pairs of files that use each other. `files` are the paths of Rust files below one `src` folder with their
/// contents.
pub(super) fn between(source: &str, files: &[(&str, String)]) -> Vec<(String, String)> {
    let modules: BTreeMap<Module, &str> =
        files.iter().map(|(file, _)| (module(&file[source.len()..]), *file)).collect();
    let mut uses = BTreeSet::new();
    for (file, text) in
        files.iter().filter(|(file, _)| !EXCEPT.iter().any(|(folder, _)| file.starts_with(folder)))
    {
        let from = module(&file[source.len()..]);
        for path in paths(&from, text) {
            // The longest beginning of the path that is a module; the rest is an item in it.
            let to = (0..=path.len()).rev().map(|end| &path[..end]).find(|path| modules.contains_key(*path));
            if let Some(to) = to {
                uses.insert((from.clone(), to.to_vec()));
            }
        }
    }
    let circles = uses.iter().filter(|(from, to)| {
        let related = from.starts_with(to) || to.starts_with(from);
        from < to && !related && uses.contains(&(to.clone(), from.clone()))
    });
    circles.map(|(from, to)| (modules[from].to_owned(), modules[to].to_owned())).collect()
}

/// The module of a file, by its path below the `src` folder.
fn module(file: &str) -> Module {
    let mut names: Module = file.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
    if names.last().is_some_and(|name| matches!(name.as_str(), "mod" | "lib" | "main")) {
        names.pop();
    }
    names
}

/// The paths from `crate`, `super` and `self` in a file, without those in comments and in its tests.
fn paths(from: &Module, text: &str) -> Vec<Module> {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let code: String =
        code.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join(" ");
    let mut paths = Vec::new();
    for start in ["crate::", "super::", "self::"] {
        for (at, _) in code.match_indices(start) {
            let before = code[..at].chars().next_back();
            if !before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '_' | ':')) {
                paths.extend(tree(&code[at..]).iter().filter_map(|path| absolute(from, path)));
            }
        }
    }
    paths
}

/// The paths of a use tree such as `super::{a, b::{c, d}}` at the beginning of a text.
fn tree(text: &str) -> Vec<Module> {
    let mut found = Vec::new();
    let (mut prefix, mut open): (Module, Vec<usize>) = (Vec::new(), Vec::new());
    let mut rest = text;
    loop {
        let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
        if end > 0 {
            prefix.push(rest[..end].to_owned());
        }
        rest = &rest[end..];
        if let Some(after) = rest.strip_prefix("::") {
            rest = after;
            if let Some(inside) = rest.strip_prefix('{') {
                open.push(prefix.len());
                rest = inside.trim_start();
            }
            continue;
        }
        found.push(prefix.clone());
        loop {
            rest = rest.trim_start();
            let Some(&level) = open.last() else { return found };
            if let Some(after) = rest.strip_prefix(',') {
                prefix.truncate(level);
                rest = after.trim_start();
                break;
            } else if let Some(after) = rest.strip_prefix('}') {
                open.pop();
                rest = after;
            } else if let Some(after) = rest.strip_prefix("as ") {
                rest = after.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_');
            } else {
                return found;
            }
        }
    }
}

/// A path from the root of the crate.
fn absolute(from: &Module, path: &Module) -> Option<Module> {
    let mut base = if path.first()? == "crate" { Vec::new() } else { from.clone() };
    let mut rest = path.as_slice();
    while let Some((first, after)) =
        rest.split_first().filter(|(first, _)| matches!(first.as_str(), "crate" | "super" | "self"))
    {
        if first == "super" {
            base.pop()?;
        }
        rest = after;
    }
    base.extend(rest.iter().cloned());
    Some(base)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_files_that_use_each_other_are_found() {
        let file = |name: &'static str, text: &str| (name, text.to_owned());
        let files = [
            file("x/src/lib.rs", "mod a; mod b; mod c; pub use a::A;"),
            file("x/src/a.rs", "use super::{c::C, b::{B, other}};\n"),
            file("x/src/b/mod.rs", "mod inner;\nfn f() -> crate::a::A { todo() }\n"),
            file("x/src/b/inner.rs", "use super::B;\nuse super::super::c;\n"),
            file("x/src/c.rs", "//! See `crate::a`.\n#[cfg(test)]\nmod tests {\n    use crate::a::A;\n}\n"),
        ];
        let found = between("x/src/", &files);
        assert_eq!(found, [("x/src/a.rs".to_owned(), "x/src/b/mod.rs".to_owned())]);
    }

    #[test]
    fn use_trees_are_read() {
        let paths: Vec<String> =
            tree("super::{a, b::{c as d, e}, f}; rest").iter().map(|path| path.join("::")).collect();
        assert_eq!(paths, ["super::a", "super::b::c", "super::b::e", "super::f"]);
        assert_eq!(tree("crate::a::f(super)")[0], ["crate", "a", "f"]);
    }
}
