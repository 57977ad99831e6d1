//! The archive: a `.tar.gz` whose bytes depend on its files alone.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use flate2::{Compression, GzBuilder};

use super::tree::Tree;

/// The date of every file, in seconds since 1970: the first day of 1980, which wheels can express too.
pub(super) const DATE: u64 = 315_532_800;

/// Writes the files into an archive, in a folder with the name `top`.
pub(super) fn write(tree: &Tree, top: &str, archive: &Path) -> io::Result<()> {
    // A run that is interrupted leaves no half of an archive under the final name.
    let partial = archive.with_extension("partial");
    let file = BufWriter::new(File::create(&partial)?);
    let compressor = GzBuilder::new().mtime(0).write(file, Compression::best());
    let mut tar = tar::Builder::new(compressor);
    for (path, file) in tree {
        let bytes = file.read()?;
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(file.mode());
        header.set_mtime(DATE);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, format!("{top}/{path}"), &*bytes)?;
    }
    tar.into_inner()?.finish()?.flush()?;
    fs::rename(&partial, archive)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;

    use super::super::tree::File as Entry;
    use super::*;

    fn tree(folder: &Path) -> Tree {
        let source = folder.join("program");
        fs::write(&source, "bytes").unwrap();
        let long = format!("{}file", "folder/".repeat(20));
        Tree::from([
            ("bin/program".to_owned(), Entry::program(source)),
            ("README.md".to_owned(), Entry::new("text")),
            (long, Entry::new("")),
        ])
    }

    #[test]
    fn an_archive_has_the_same_bytes_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let [one, two] = ["one.tar.gz", "two.tar.gz"].map(|name| folder.path().join(name));
        write(&tree(folder.path()), "name-1.0", &one).unwrap();
        // The file is written again, so it has another date.
        std::thread::sleep(std::time::Duration::from_millis(20));
        write(&tree(folder.path()), "name-1.0", &two).unwrap();
        assert_eq!(fs::read(one).unwrap(), fs::read(two).unwrap());
        let left = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, 3, "the program and two archives");
    }

    #[test]
    fn an_archive_holds_its_files_in_one_folder() {
        let folder = tempfile::tempdir().unwrap();
        let archive = folder.path().join("a.tar.gz");
        write(&tree(folder.path()), "name-1.0", &archive).unwrap();
        let mut tar = tar::Archive::new(GzDecoder::new(File::open(&archive).unwrap()));
        let mut found = Vec::new();
        for entry in tar.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            let header = entry.header();
            assert_eq!((header.mtime().unwrap(), header.uid().unwrap(), header.gid().unwrap()), (DATE, 0, 0));
            found.push((entry.path().unwrap().display().to_string(), header.mode().unwrap(), text));
        }
        let long = format!("name-1.0/{}file", "folder/".repeat(20));
        let expected = [
            ("name-1.0/README.md", 0o644, "text"),
            ("name-1.0/bin/program", 0o755, "bytes"),
            (&long, 0o644, ""),
        ];
        assert_eq!(found, expected.map(|(path, mode, text)| (path.to_owned(), mode, text.to_owned())));
    }
}
