//! The download of one file: continues the part of it that the cache has, and checks the whole.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use sha2::{Digest, Sha256};

use crate::error::HubError;
use crate::events::{Caller, Event};
use crate::http::{ATTEMPTS, Client, Failed};
use crate::names::HubId;
use crate::pace::{self, Pace};
use crate::remote::{RemoteFile, largest};

/// Bytes that are read at once.
const CHUNK: usize = 1 << 20;

/// The part of a file that is in the cache.
pub(crate) struct Part {
    path: PathBuf,
    file: File,
    hash: Sha256,
    /// Bytes that the part has.
    done: u64,
}

impl Part {
    /// The part at this path, or an empty one. What is there instead of a regular file is removed: a link must not make
    /// the download write to another place.
    pub(crate) fn open(path: &Path) -> Result<Self, HubError> {
        let open = || {
            if fs::symlink_metadata(path).is_ok_and(|about| !about.is_file()) {
                fs::remove_file(path)?;
            }
            let mut options = OpenOptions::new();
            #[cfg(unix)]
            std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, nix::libc::O_NOFOLLOW);
            options.read(true).write(true).create(true).truncate(false).open(path)
        };
        match open() {
            Ok(file) => Ok(Self { path: path.to_path_buf(), file, hash: Sha256::new(), done: 0 }),
            Err(source) => Err(HubError::Write { file: path.to_path_buf(), source }),
        }
    }

    /// Locks the part, unless another process has locked it. A file system without locks counts as locked.
    pub(crate) fn try_lock(&self) -> bool {
        !matches!(self.file.try_lock(), Err(TryLockError::WouldBlock))
    }

    /// Reads what is there, up to the length that the file will have.
    fn read_beginning(&mut self, size: Option<u64>) -> Result<(), HubError> {
        let held = self.file.metadata().map_err(|source| self.unreadable(source))?.len();
        let mut buffer = vec![0; CHUNK];
        while self.done < held {
            let most = CHUNK.min(usize::try_from(held - self.done).unwrap_or(CHUNK));
            match self.file.read(&mut buffer[..most]) {
                Ok(0) => break,
                Ok(length) => {
                    self.hash.update(&buffer[..length]);
                    self.done += length as u64;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(self.unreadable(e)),
            }
        }
        if size.is_some_and(|size| self.done > size) {
            self.done = 0;
        }
        Ok(())
    }

    /// Begins at the first byte again.
    fn restart(&mut self) -> Result<(), HubError> {
        let mut restart = || {
            if self.file.metadata()?.len() > 0 {
                self.file.set_len(0)?;
            }
            self.file.seek(SeekFrom::Start(0))
        };
        restart().map_err(|source| self.unwritable(source))?;
        self.hash = Sha256::new();
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), HubError> {
        self.file.write_all(bytes).map_err(|source| self.unwritable(source))?;
        self.hash.update(bytes);
        self.done += bytes.len() as u64;
        Ok(())
    }

    fn remove(&self) -> Result<(), HubError> {
        fs::remove_file(&self.path).map_err(|source| self.unwritable(source))
    }

    /// Checks the whole file against the hash that the Hub announced, and writes it to the disk.
    fn finish(&mut self, file: &RemoteFile) -> Result<(), HubError> {
        let found: String = self.hash.finalize_reset().iter().map(|byte| format!("{byte:02x}")).collect();
        // Small files have the name of a Git object, which is another hash.
        if file.etag.len() == found.len() && file.etag != found {
            self.remove()?;
            return Err(HubError::Hash { file: file.name.clone(), expected: file.etag.clone(), found });
        }
        self.file.sync_all().map_err(|source| self.unwritable(source))
    }

    fn unreadable(&self, source: io::Error) -> HubError {
        HubError::Read { file: self.path.clone(), source }
    }

    fn unwritable(&self, source: io::Error) -> HubError {
        HubError::Write { file: self.path.clone(), source }
    }
}

/// The download of one file.
pub(crate) struct Transfer<'a, 'c> {
    pub(crate) client: &'a Client,
    pub(crate) id: &'a HubId,
    pub(crate) file: &'a RemoteFile,
    pub(crate) part: Part,
    /// The limit where the Hub does not announce the file's length, in bytes.
    pub(crate) largest_unannounced: u64,
    pub(crate) caller: &'a mut Caller<'c>,
}

impl Transfer<'_, '_> {
    /// Downloads what is missing. Answers how many bytes came over the network.
    pub(crate) fn run(mut self) -> Result<u64, HubError> {
        let (mut failures, mut restarts, mut downloaded) = (0, 0, 0);
        self.part.read_beginning(self.file.size)?;
        loop {
            if self.part.done == 0 {
                self.part.restart()?;
            }
            self.caller.tell_progress(self.part.done, &self.file.name);
            if self.file.size == Some(self.part.done) {
                break;
            }
            let before = self.part.done;
            let received = self.receive();
            downloaded += self.part.done - before;
            let problem = match received {
                Ok(Received::All) if self.file.size.is_none_or(|size| self.part.done >= size) => break,
                Ok(Received::All) => format!("it ended early, at {} bytes", self.part.done),
                Ok(Received::TooMuch) => return Err(self.too_long()?),
                Ok(Received::Nothing) => {
                    self.part.done = 0;
                    restarts += 1;
                    "the Hub does not continue it from the middle".to_owned()
                }
                Err(Failed::ForGood(error)) => return Err(error),
                Err(Failed::ForNow(problem)) => problem,
            };
            // An attempt that brought much begins the count of failures anew. Without these conditions a server could
            // hold the program forever: with one byte for each connection, or with the same bytes again and again.
            let is_progress = restarts == 0 && self.part.done >= before + pace::LEAST;
            failures = if is_progress { 1 } else { failures + 1 };
            if failures >= ATTEMPTS {
                let (file, done, total) = (self.file.name.clone(), self.part.done, self.file.size);
                return Err(HubError::Broken { file, done, total, attempts: ATTEMPTS, problem });
            }
            self.caller.tell(Event::Retrying { problem: &format!("{}: {problem}", self.file.name) });
            self.client.pause(failures, self.caller)?;
        }
        self.part.finish(self.file)?;
        Ok(downloaded)
    }

    /// One request for what is missing, and as much of the answer as arrives.
    fn receive(&mut self) -> Result<Received, Failed> {
        let Self { client, id, file, part, largest_unannounced, caller } = self;
        caller.check()?;
        let answer = client.get_file(id, &file.commit, &file.name, part.done)?;
        let Some(answer) = answer else { return Ok(Received::Nothing) };
        let most = file.size.unwrap_or_else(|| largest(&file.name).min(*largest_unannounced));
        let left = most.saturating_sub(part.done);
        pour(&mut answer.into_body().into_reader(), left, &mut |bytes| {
            caller.check()?;
            part.append(bytes)?;
            caller.tell_progress(part.done, &file.name);
            Ok(())
        })
    }

    /// Removes a file that goes on where it should end.
    fn too_long(&self) -> Result<HubError, HubError> {
        self.part.remove()?;
        let file = self.file.name.clone();
        Ok(match self.file.size {
            Some(expected) => HubError::TooLong { file, expected },
            None => HubError::Endless { file, limit: self.part.done },
        })
    }
}

/// How an attempt ended.
#[derive(Debug, PartialEq, Eq)]
enum Received {
    /// At the end of the answer.
    All,
    /// The Hub gives the file from its beginning only.
    Nothing,
    /// The answer goes on where the file should end.
    TooMuch,
}

/// Hands over everything that arrives, up to `most` bytes. A connection that is too slow counts as broken.
fn pour(
    from: &mut dyn Read,
    most: u64,
    append: &mut dyn FnMut(&[u8]) -> Result<(), HubError>,
) -> Result<Received, Failed> {
    let mut buffer = vec![0; CHUNK];
    let (mut pace, started, mut left) = (Pace::default(), Instant::now(), most);
    loop {
        let length = match from.read(&mut buffer) {
            Ok(0) => return Ok(Received::All),
            Ok(length) => length,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => return Err(Failed::ForNow(e.to_string())),
        };
        let wanted = length.min(usize::try_from(left).unwrap_or(usize::MAX));
        append(&buffer[..wanted])?;
        left -= wanted as u64;
        if wanted < length {
            return Ok(Received::TooMuch);
        }
        if !pace.is_fast_enough(length, started.elapsed()) {
            return Err(Failed::ForNow(format!("fewer than {} bytes arrived in a minute", pace::LEAST)));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    #[test]
    fn a_full_disk_differs_from_a_broken_connection() {
        let mut disk = |_: &[u8]| {
            let source = ErrorKind::StorageFull.into();
            Err(HubError::Write { file: PathBuf::from("part"), source })
        };
        let poured = pour(&mut &[0_u8; 9][..], u64::MAX, &mut disk);
        assert!(
            matches!(&poured, Err(Failed::ForGood(HubError::Write { source, .. })) if source.kind() == ErrorKind::StorageFull),
            "{poured:?}"
        );

        struct Broken;

        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(ErrorKind::ConnectionReset.into())
            }
        }

        let poured = pour(&mut Broken, u64::MAX, &mut |_| Ok(()));
        assert!(matches!(poured, Err(Failed::ForNow(_))), "{poured:?}");
    }

    #[test]
    fn no_more_is_handed_over_than_the_limit() {
        let mut arrived = Vec::new();
        let mut append = |bytes: &[u8]| {
            arrived.extend_from_slice(bytes);
            Ok(())
        };
        assert_eq!(pour(&mut &b"abcde"[..], 5, &mut append).unwrap(), Received::All);
        assert_eq!(pour(&mut &b"fghij"[..], 3, &mut append).unwrap(), Received::TooMuch);
        assert_eq!(arrived, b"abcdefgh");
    }
}
