//! Circles between the files of a crate: no module may use another one that uses it, directly or through others.
//!
//! A module and its parent may use each other: a `mod.rs` calls its parts, and the parts use its types. An item that a
//! module re-exports from one of its parts belongs to that part.

use std::collections::{BTreeMap, BTreeSet};

/// A module as the path of its names.
type Module = Vec<String>;

/// The circles of files: in each one, every file uses every other, directly or through others. `files` are the paths of
/// Rust files below one `src` folder with their contents.
pub(super) fn between(source: &str, files: &[(&str, String)]) -> Vec<Vec<String>> {
    let mut by_module: BTreeMap<Module, (&str, String)> = BTreeMap::new();
    for (file, text) in files {
        // A library and its program have one root.
        let (_, code) = by_module.entry(module(&file[source.len()..])).or_insert((file, String::new()));
        *code += &without_comments_and_tests(text);
    }
    let files = by_module;
    let exports: BTreeMap<&Module, BTreeMap<String, Module>> =
        files.iter().map(|(module, (_, code))| (module, exports(module, code, &files))).collect();
    let mut uses: BTreeMap<&Module, BTreeSet<Module>> = BTreeMap::new();
    for (from, (_, code)) in &files {
        let targets = paths(from, code).into_iter().filter_map(|path| target(path, &files, &exports));
        let targets = targets.filter(|to| !from.starts_with(to) && !to.starts_with(from));
        uses.insert(from, targets.collect());
    }
    let reached: BTreeMap<&Module, BTreeSet<&Module>> =
        uses.keys().map(|from| (*from, reached(from, &uses))).collect();
    let mut circles = BTreeSet::new();
    for (from, others) in &reached {
        let circle: Vec<String> = others
            .iter()
            .filter(|to| reached[*to].contains(from))
            .map(|module| files[*module].0.to_owned())
            .collect();
        if !circle.is_empty() {
            circles.insert(circle);
        }
    }
    circles.into_iter().collect()
}

/// The modules that a module uses, directly or through others.
fn reached<'a>(from: &Module, uses: &'a BTreeMap<&Module, BTreeSet<Module>>) -> BTreeSet<&'a Module> {
    let mut found = BTreeSet::new();
    let mut next: Vec<&Module> = uses[from].iter().collect();
    while let Some(module) = next.pop() {
        if found.insert(module) {
            next.extend(&uses[module]);
        }
    }
    found
}

/// The module that contains the item at a path.
fn target<T>(
    mut path: Module,
    files: &BTreeMap<Module, T>,
    exports: &BTreeMap<&Module, BTreeMap<String, Module>>,
) -> Option<Module> {
    // A re-export leads to another path. The limit ends modules that re-export each other's items.
    for _ in 0..8 {
        // The longest beginning of the path that is a module; the rest is an item in it.
        let end = (0..=path.len()).rev().find(|&end| files.contains_key(&path[..end]))?;
        let exported = path.get(end).and_then(|item| exports[&path[..end].to_vec()].get(item));
        match exported {
            Some(part) => path = [part, &path[end..]].concat(),
            None => return Some(path[..end].to_vec()),
        }
    }
    None
}

/// The items that a module takes from its own parts with `use`, each with the part.
fn exports<T>(of: &Module, code: &str, files: &BTreeMap<Module, T>) -> BTreeMap<String, Module> {
    let mut found = BTreeMap::new();
    for (at, _) in code.match_indices("use ") {
        for mut path in tree(code[at + "use ".len()..].trim_start_matches("self::")) {
            let Some(item) = path.pop() else { continue };
            let part = [of.as_slice(), &path].concat();
            if !path.is_empty() && files.contains_key(&part) {
                found.insert(item, part);
            }
        }
    }
    found
}

/// The module of a file, by its path below the `src` folder.
fn module(file: &str) -> Module {
    let mut names: Module = file.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
    if names.last().is_some_and(|name| matches!(name.as_str(), "mod" | "lib" | "main")) {
        names.pop();
    }
    names
}

pub(super) fn without_comments_and_tests(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    code.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join(" ")
}

/// The paths from `crate`, `super` and `self` in the code of a file.
fn paths(from: &Module, code: &str) -> Vec<Module> {
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
        assert_eq!(found, [["x/src/a.rs", "x/src/b/mod.rs"]]);
    }

    #[test]
    fn longer_circles_are_found_also_through_re_exports() {
        let file = |name: &'static str, text: &str| (name, text.to_owned());
        let files = [
            file("x/src/lib.rs", "mod a; mod b; mod c; mod d; pub use a::A; pub(crate) use b::{B, D as E};"),
            file("x/src/a.rs", "use crate::B;\n"),
            file("x/src/b.rs", "use crate::c::C;\n"),
            file("x/src/c.rs", "fn f() -> super::A { todo() }\n"),
            file("x/src/d.rs", "use crate::{A, B};\n"),
        ];
        let found = between("x/src/", &files);
        assert_eq!(found, [["x/src/a.rs", "x/src/b.rs", "x/src/c.rs"]]);
    }

    #[test]
    fn use_trees_are_read() {
        let paths: Vec<String> =
            tree("super::{a, b::{c as d, e}, f}; rest").iter().map(|path| path.join("::")).collect();
        assert_eq!(paths, ["super::a", "super::b::c", "super::b::e", "super::f"]);
        assert_eq!(tree("crate::a::f(super)")[0], ["crate", "a", "f"]);
    }
}
