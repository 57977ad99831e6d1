//! The table fits the code, and verdicts are computed correctly.

use super::*;

#[test]
fn the_table_fits_the_code() {
    let root = workspace::root();
    let cases: Vec<String> = fs::read_dir(root.join("xtask/cases"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    let mut names = BTreeSet::new();
    let mut crates = BTreeSet::new();
    for mutation in MUTATIONS {
        assert!(names.insert(mutation.name), "{} is there twice", mutation.name);
        let text = read(&root.join(mutation.file)).unwrap();
        let mutated = apply(mutation, &text).unwrap_or_else(|problem| panic!("{problem}"));
        assert_ne!(mutated, text, "{}", mutation.name);
        // Code that only tests use breaks no model.
        let code = text.split("#[cfg(test)]").next().unwrap();
        assert!(code.contains(mutation.find), "{} changes a test", mutation.name);
        assert!(cases.iter().any(|case| case.contains(mutation.filter)), "{}", mutation.name);
        crates.extend(mutation.file.split('/').nth(1));
    }
    assert!(MUTATIONS.len() >= 20 && crates.len() >= 10, "{} in {crates:?}", MUTATIONS.len());
}

#[test]
fn a_stale_row_is_an_error_that_says_so() {
    let mutation = Mutation { name: "a", file: "b.rs", find: "x + 1", replace: "x", filter: "" };
    assert_eq!(apply(&mutation, "let y = x + 1;").unwrap(), "let y = x;");
    for (text, times) in [("let y = x + 2;", "0 times"), ("x + 1 == x + 1", "2 times")] {
        let problem = apply(&mutation, text).unwrap_err();
        assert!(problem.contains("b.rs") && problem.contains(times), "{problem}");
    }
}

#[test]
fn changed_files_have_all_their_mutations_and_others_take_turns() {
    let asked = |files: &[&str], sample, seed: &str| Arguments {
        filter: String::new(),
        files: files.iter().map(|&file| file.to_owned()).collect(),
        sample,
        seed: seed.to_owned(),
        list: false,
    };
    let names = |arguments: Arguments| -> Vec<&str> {
        choose(MUTATIONS, &arguments).into_iter().map(|mutation| mutation.name).collect()
    };
    let all = names(asked(&[], None, ""));
    assert_eq!(all.len(), MUTATIONS.len());

    let file = MUTATIONS[0].file;
    let of_file = names(asked(&[file], None, ""));
    assert!(of_file.len() < all.len());
    assert!(
        of_file.iter().eq(all.iter().zip(MUTATIONS).filter(|(_, m)| m.file == file).map(|(name, _)| name))
    );

    let some = names(asked(&[file], Some(10), "a"));
    assert_eq!(some.len(), of_file.len() + 10);
    assert!(of_file.iter().all(|name| some.contains(name)));
    assert_eq!(some, names(asked(&[file], Some(10), "a")));
    assert_ne!(some, names(asked(&[file], Some(10), "b")));
    // After enough commits, every mutation had its turn.
    let tried: BTreeSet<&str> =
        (0..100).flat_map(|commit| names(asked(&[], Some(10), &commit.to_string()))).collect();
    assert_eq!(tried.len(), all.len());
    assert_eq!(names(asked(&[], Some(1000), "")), all);
}

#[test]
fn only_a_difference_catches() {
    let result = |name: &str, passed, differs| CaseResult {
        name: name.to_owned(),
        passed,
        differs,
        detail: "why".to_owned(),
    };
    let of = |results| verdict(Ok(results));
    let caught = of(vec![result("a", true, false), result("b", false, true), result("c", false, true)]);
    assert_eq!(caught, Verdict::Caught { by: "b".to_owned(), more: 1 });
    for (survived, needle) in [
        (of(vec![result("a", true, false)]), "all 1 cases passed"),
        (of(vec![result("a", true, false), result("b", false, false)]), "b cannot be run: why"),
        (verdict(Err("ran for over 300 s".to_owned())), "over 300 s"),
    ] {
        assert!(matches!(&survived, Verdict::Survived { why } if why.contains(needle)), "{survived:?}");
    }
}

#[test]
fn a_copy_is_what_the_tree_is() {
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path();
    let same = tree.join("same/file.rs");
    write_if_new(&same, b"same").unwrap();
    let old = File::options().write(true).open(&same).unwrap();
    let long_ago = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    old.set_modified(long_ago).unwrap();
    fs::write(tree.join("gone"), "").unwrap();

    write_if_new(&same, b"same").unwrap();
    remove_others(tree, tree, &BTreeSet::from(["same/file.rs".to_owned()])).unwrap();
    assert_eq!(fs::metadata(&same).unwrap().modified().unwrap(), long_ago);
    assert!(!tree.join("gone").exists());
    // A file that a mutation left behind is overwritten.
    write_if_new(&same, b"other").unwrap();
    assert_eq!(fs::read(&same).unwrap(), b"other");
}
