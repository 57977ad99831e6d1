//! Hostile files and killed programs.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![cfg(unix)]

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{FileTypeExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use mlx_files::{
    LARGEST_CONFIG, Partial, check_replaceable, is_present, open, read, read_to_string, write, write_with,
};

fn pipe(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn only_regular_files_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    pipe(&at("pipe"));
    symlink("/dev/zero", at("endless")).unwrap();
    let _socket = UnixListener::bind(at("socket")).unwrap();
    for (name, what) in
        [("pipe", "a named pipe"), ("endless", "a device"), ("socket", "a socket"), (".", "a folder")]
    {
        let errors = [
            open(at(name)).map(drop).unwrap_err(),
            read(at(name), LARGEST_CONFIG).map(drop).unwrap_err(),
            is_present(at(name)).map(drop).unwrap_err(),
            check_replaceable(at(name)).unwrap_err(),
            Partial::file(at(name)).map(drop).unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{name}");
            assert_eq!(error.to_string(), format!("it is {what}, and must be a regular file"));
        }
    }
    assert!(fs::metadata(at("pipe")).unwrap().file_type().is_fifo());
}

#[test]
fn a_broken_link_is_not_an_absent_file() {
    let folder = tempfile::tempdir().unwrap();
    let (absent, link) = (folder.path().join("absent"), folder.path().join("link"));
    symlink("nowhere", &link).unwrap();
    assert!(!is_present(&absent).unwrap());
    assert_eq!(open(&absent).unwrap_err().kind(), ErrorKind::NotFound);
    let problem = "it is a link to nowhere, and there is no such file";
    assert_eq!(is_present(&link).unwrap_err().to_string(), problem);
    assert_eq!(read(&link, 1).unwrap_err().to_string(), problem);
    assert_eq!(Partial::file(&link).unwrap_err().to_string(), problem);
}

#[test]
fn no_more_than_the_limit_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    fs::write(&path, "1234567").unwrap();
    assert_eq!(read(&path, 7).unwrap(), b"1234567");
    let error = read(&path, 6).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FileTooLarge);
    assert_eq!(error.to_string(), "it has 7 bytes or more, and may have at most 6");
    // Files of the kernel say that they have no bytes.
    assert_eq!(read("/proc/self/maps", 10).unwrap_err().kind(), ErrorKind::FileTooLarge);
}

#[test]
fn bytes_that_are_not_text() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    fs::write(&path, b"ab\xff").unwrap();
    assert_eq!(read_to_string(&path, 9).unwrap_err().to_string(), "it is not UTF-8 text: byte 2 is wrong");
}

#[test]
fn a_dropped_file_leaves_no_trace_and_a_committed_one_is_complete() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    fs::write(&path, "old").unwrap();
    let partial = Partial::file(&path).unwrap();
    partial.as_file().write_all(b"half").unwrap();
    assert_eq!(names(folder.path()).len(), 2);
    drop(partial);
    assert_eq!((names(folder.path()).len(), fs::read_to_string(&path).unwrap()), (1, "old".to_owned()));

    let partial = Partial::file(&path).unwrap();
    partial.as_file().write_all(b"new").unwrap();
    partial.commit().unwrap();
    assert_eq!((names(folder.path()).len(), fs::read_to_string(&path).unwrap()), (1, "new".to_owned()));
}

#[test]
fn a_file_is_replaced_in_one_step() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    write(&path, "old").unwrap();
    let error = write_with(&path, |out| {
        out.write_all(b"half")?;
        Err::<(), _>(ErrorKind::StorageFull.into())
    });
    assert_eq!(error.unwrap_err().kind(), ErrorKind::StorageFull);
    assert_eq!(fs::read_to_string(&path).unwrap(), "old");
    let answer = write_with(&path, |out| {
        out.write_all(b"new")?;
        Ok(fs::read_to_string(&path)?.len())
    });
    assert_eq!((answer.unwrap(), fs::read_to_string(&path).unwrap()), (3, "new".to_owned()));
    assert_eq!(names(folder.path()), ["file"]);
    assert_eq!(write(folder.path(), "new").unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn a_write_to_a_link_replaces_the_file_behind_it() {
    let folder = tempfile::tempdir().unwrap();
    let (file, link) = (folder.path().join("file"), folder.path().join("link"));
    fs::write(&file, "old").unwrap();
    symlink("file", &link).unwrap();
    let partial = Partial::file(&link).unwrap();
    partial.as_file().write_all(b"new").unwrap();
    partial.commit().unwrap();
    assert!(link.is_symlink());
    assert_eq!(fs::read_to_string(&file).unwrap(), "new");
}

#[test]
fn folders_replace_only_empty_folders() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    let partial = Partial::folder(&path).unwrap();
    fs::write(partial.path().join("a"), "").unwrap();
    partial.commit().unwrap();
    assert_eq!(names(&path), ["a"]);
    assert_eq!(Partial::folder(&path).unwrap_err().kind(), ErrorKind::AlreadyExists);
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let partial = Partial::folder(&empty).unwrap();
    fs::write(partial.path().join("b"), "").unwrap();
    partial.commit().unwrap();
    assert_eq!(names(&empty), ["b"]);
    assert_eq!(names(folder.path()), ["empty", "model"]);
    assert_eq!(Partial::folder("/").unwrap_err().kind(), ErrorKind::AlreadyExists);
}

#[test]
fn an_empty_folder_by_any_path() {
    let folder = tempfile::tempdir().unwrap();
    let (place, link) = (folder.path().join("place"), folder.path().join("link"));
    std::os::unix::fs::symlink("place", &link).unwrap();
    // A link to nowhere is in the way.
    assert_eq!(Partial::folder(&link).unwrap_err().kind(), ErrorKind::AlreadyExists);
    fs::create_dir(folder.path().join("other")).unwrap();
    for path in
        [link.clone(), place.join("."), folder.path().join("place/"), folder.path().join("other/../place")]
    {
        fs::create_dir(&place).unwrap();
        let partial = Partial::folder(&path).unwrap();
        fs::write(partial.path().join("a"), "").unwrap();
        partial.commit().unwrap();
        assert_eq!(names(&place), ["a"]);
        assert_eq!(names(folder.path()), ["link", "other", "place"]);
        fs::remove_dir_all(&place).unwrap();
    }
    assert!(link.is_symlink());
}

#[test]
fn files_of_killed_programs_are_removed_and_those_of_running_ones_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let at = |name: &str| folder.path().join(name);
    // Nobody holds the lock of the first two; the others are none of ours.
    fs::write(at(".file.123-0.partial"), "half").unwrap();
    fs::create_dir(at(".file.123-1.partial")).unwrap();
    fs::write(at(".file.123-1.partial").join("shard"), "half").unwrap();
    fs::write(at(".other.123-0.partial"), "").unwrap();
    fs::write(at(".file.notes.partial"), "").unwrap();
    let first = Partial::file(&path).unwrap();
    let second = Partial::file(&path).unwrap();
    assert!(first.path().exists() && second.path().exists());
    first.as_file().write_all(b"1").unwrap();
    first.commit().unwrap();
    second.as_file().write_all(b"2").unwrap();
    second.commit().unwrap();
    assert_eq!(names(folder.path()), [".file.notes.partial", ".other.123-0.partial", "file"]);
    assert_eq!(fs::read_to_string(&path).unwrap(), "2");
}

#[test]
fn a_name_of_the_longest_length() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ä".repeat(127));
    Partial::file(&path).unwrap().commit().unwrap();
    assert!(is_present(&path).unwrap());
}
