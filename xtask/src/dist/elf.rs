//! Checks that the libraries of a Linux program find each other, and need no newer system than MLX's own package does.

use std::collections::BTreeSet;
use std::io;

use object::Endianness;
use object::elf::{DT_NEEDED, DT_RPATH, DT_RUNPATH, DT_SONAME, FileHeader64};
use object::read::elf::{Dyn, FileHeader, SectionTable};

use super::tree::Tree;

/// The newest version that a library of the system may be asked for: that of Ubuntu 22.04 (glibc 2.35, GCC 12).
const NEWEST: [(&str, &[u32]); 4] =
    [("GLIBC", &[2, 35]), ("GLIBCXX", &[3, 4, 30]), ("CXXABI", &[1, 3, 13]), ("GCC", &[12, 0, 0])];

/// Libraries that every such system has.
const OF_THE_SYSTEM: [&str; 9] = [
    "ld-linux-aarch64.so.1",
    "ld-linux-x86-64.so.2",
    "libc.so.6",
    "libdl.so.2",
    "libgcc_s.so.1",
    "libm.so.6",
    "libpthread.so.0",
    "librt.so.1",
    "libstdc++.so.6",
];

/// What an ELF file asks the dynamic linker for.
#[derive(Debug, Default)]
struct Needs {
    name: Option<String>,
    libraries: Vec<String>,
    rpaths: Vec<String>,
    /// Whether the folders of `LD_LIBRARY_PATH` precede the rpaths.
    has_late_rpaths: bool,
    /// Libraries, each with the name of a version of its symbols, such as `GLIBC_2.35`.
    versions: Vec<(String, String)>,
}

/// What is wrong with the ELF files of a tree, a sentence each. The second result is the number of files.
pub(super) fn problems(tree: &Tree) -> io::Result<(Vec<String>, usize)> {
    let mut problems = Vec::new();
    let mut files = 0;
    for (path, file) in tree {
        let bytes = file.read()?;
        if !bytes.starts_with(b"\x7fELF") {
            continue;
        }
        files += 1;
        let needs = read(&bytes).map_err(|e| io::Error::other(format!("{path}: {e}")))?;
        problems.extend(check(path, &needs, tree).into_iter().map(|problem| format!("{path}: {problem}")));
    }
    Ok((problems, files))
}

fn check(path: &str, needs: &Needs, tree: &Tree) -> BTreeSet<String> {
    let mut problems = BTreeSet::new();
    for name in needs.name.iter().chain(&needs.libraries).filter(|name| name.contains('/')) {
        problems.insert(format!("{name} is a path of the machine that built it"));
    }
    for rpath in needs.rpaths.iter().filter(|rpath| folder(path, rpath).is_none()) {
        problems.insert(format!("the rpath {rpath} does not begin at the file's own folder"));
    }
    if needs.has_late_rpaths {
        problems.insert("libraries in LD_LIBRARY_PATH would precede those of its rpaths".to_owned());
    }
    let ours = |library: &str| {
        let mut folders = needs.rpaths.iter().filter_map(|rpath| folder(path, rpath));
        folders.any(|folder| tree.contains_key(&format!("{folder}{library}")))
    };
    for library in &needs.libraries {
        if !ours(library) && !OF_THE_SYSTEM.contains(&&**library) {
            problems
                .insert(format!("{library} is neither in a folder of its rpath nor part of every system"));
        }
    }
    for (library, version) in &needs.versions {
        if !ours(library) && !is_old_enough(version) {
            problems.insert(format!("needs {version} of {library}, which Ubuntu 22.04 does not have"));
        }
    }
    problems
}

/// The folder that an rpath means to a file, ending in `/`, or empty for the top folder.
fn folder(file: &str, rpath: &str) -> Option<String> {
    let below = rpath.strip_prefix("$ORIGIN").filter(|rest| rest.is_empty() || rest.starts_with('/'))?;
    let mut parts: Vec<&str> = file.split('/').collect();
    parts.pop();
    for part in below.split('/').filter(|part| !part.is_empty() && *part != ".") {
        match part {
            ".." if parts.pop().is_none() => return Some("/".to_owned()),
            ".." => {}
            part => parts.push(part),
        }
    }
    Some(parts.iter().map(|part| format!("{part}/")).collect())
}

/// Whether the oldest system that we support has this version of a symbol. Names without a number, such as
/// `GLIBC_PRIVATE` and `GLIBC_ABI_DT_RELR`, are for other systems.
fn is_old_enough(version: &str) -> bool {
    let Some((prefix, number)) = version.rsplit_once('_') else { return false };
    let Ok(numbers) = number.split('.').map(str::parse).collect::<Result<Vec<u32>, _>>() else {
        return false;
    };
    NEWEST.iter().any(|(name, newest)| *name == prefix && numbers.as_slice() <= *newest)
}

fn read(bytes: &[u8]) -> object::read::Result<Needs> {
    let header = FileHeader64::<Endianness>::parse(bytes)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, bytes)?;
    let mut needs = Needs { versions: versions(&sections, endian, bytes)?, ..Needs::default() };
    let Some((entries, strings)) = sections.dynamic(endian, bytes)? else { return Ok(needs) };
    let strings = sections.strings(endian, bytes, strings)?;
    for entry in entries {
        let tag = entry.tag(endian);
        if ![DT_NEEDED, DT_RPATH, DT_RUNPATH, DT_SONAME].contains(&tag) {
            continue;
        }
        let text = String::from_utf8_lossy(entry.string(endian, strings)?).into_owned();
        match tag {
            DT_NEEDED => needs.libraries.push(text),
            DT_SONAME => needs.name = Some(text),
            _ => {
                needs.has_late_rpaths |= tag == DT_RUNPATH;
                needs.rpaths.extend(text.split(':').map(str::to_owned));
            }
        }
    }
    Ok(needs)
}

fn versions(
    sections: &SectionTable<'_, FileHeader64<Endianness>>,
    endian: Endianness,
    bytes: &[u8],
) -> object::read::Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    let Some((mut libraries, strings)) = sections.gnu_verneed(endian, bytes)? else { return Ok(found) };
    let strings = sections.strings(endian, bytes, strings)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    while let Some((library, mut versions)) = libraries.next()? {
        let library = text(library.file(endian, strings)?);
        while let Some(version) = versions.next()? {
            found.push((library.clone(), text(version.name(endian, strings)?)));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::tree::File;
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        for old in [
            "GLIBC_2.35",
            "GLIBC_2.4",
            "GLIBC_2.2.5",
            "GLIBCXX_3.4",
            "GLIBCXX_3.4.30",
            "CXXABI_1.3.9",
            "GCC_3.0",
        ] {
            assert!(is_old_enough(old), "{old}");
        }
        let new =
            ["GLIBC_2.36", "GLIBC_3.0", "GLIBC_2.35.1", "GLIBCXX_3.4.31", "CXXABI_1.3.14", "GCC_13.0.0"];
        for new in new.into_iter().chain(["GLIBC_PRIVATE", "GLIBC_ABI_DT_RELR", "QUADMATH_1.0", "GLIBC"]) {
            assert!(!is_old_enough(new), "{new}");
        }
    }

    #[test]
    fn rpaths_are_followed_from_the_folder_of_a_file() {
        let of = |rpath| folder("lib/mlx/lib/libmlx.so", rpath);
        assert_eq!(of("$ORIGIN").unwrap(), "lib/mlx/lib/");
        assert_eq!(of("$ORIGIN/../../mlx_cpu.libs").unwrap(), "lib/mlx_cpu.libs/");
        assert_eq!(of("$ORIGIN/../../../").unwrap(), "");
        assert_eq!(
            of("$ORIGIN/../../../../up").unwrap(),
            "/",
            "outside of the tree there is nothing of ours"
        );
        assert_eq!((of("/usr/lib"), of("$ORIGINAL/lib"), of("lib")), (None, None, None));
    }

    fn needs(name: &str, libraries: &[&str], rpaths: &[&str], versions: &[(&str, &str)]) -> Needs {
        let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
        Needs {
            name: Some(name.to_owned()),
            libraries: texts(libraries),
            rpaths: texts(rpaths),
            has_late_rpaths: false,
            versions: versions
                .iter()
                .map(|&(library, version)| (library.to_owned(), version.to_owned()))
                .collect(),
        }
    }

    #[test]
    fn libraries_are_ours_or_those_of_every_system() {
        let tree = Tree::from([("lib/libours.so".to_owned(), File::new(""))]);
        let check = |needs: &Needs| check("bin/program", needs, &tree).into_iter().collect::<Vec<_>>();
        let rpath = ["$ORIGIN/../lib"];
        let good = needs(
            "program",
            &["libours.so", "libc.so.6"],
            &rpath,
            &[("libours.so", "OURS_99"), ("libc.so.6", "GLIBC_2.4")],
        );
        assert_eq!(check(&good), [""; 0]);
        let found = check(&needs("program", &["libours.so"], &["$ORIGIN"], &[]));
        assert!(found.len() == 1 && found[0].starts_with("libours.so is neither"), "{found:?}");
        let found = check(&needs("program", &[], &rpath, &[("libc.so.6", "GLIBC_2.38")]));
        assert!(found.len() == 1 && found[0].starts_with("needs GLIBC_2.38 of libc.so.6"), "{found:?}");
        let found = check(&needs("/opt/libx.so", &[], &["/opt"], &[]));
        assert!(found.len() == 2 && found[0].starts_with("/opt/libx.so is a path"), "{found:?}");
        let found = check(&Needs { has_late_rpaths: true, ..good });
        assert_eq!(found, ["libraries in LD_LIBRARY_PATH would precede those of its rpaths"]);
    }

    #[cfg(all(target_os = "linux", target_pointer_width = "64"))]
    #[test]
    fn a_program_of_this_system_is_read() {
        let needs = read(&std::fs::read(std::env::current_exe().unwrap()).unwrap()).unwrap();
        assert!(needs.libraries.iter().any(|library| library == "libc.so.6"), "{needs:?}");
        let of_libc =
            |(library, version): &(String, String)| library == "libc.so.6" && version.starts_with("GLIBC_2.");
        assert!(needs.versions.iter().any(of_libc), "{needs:?}");
    }
}
