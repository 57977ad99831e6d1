//! The download of a model: which files are missing, and in which order they come.

use std::fs;
use std::path::Path;

use mlx_files::LARGEST_CONFIG;

use crate::cache::{Found, ModelFolder, Snapshot};
use crate::error::HubError;
use crate::events::{Caller, Cancel, Event};
use crate::http::{ATTEMPTS, Client};
use crate::names::{HubId, Revision, shortened};
use crate::remote::{Listing, RemoteFile, check_sizes};
use crate::settings::{Settings, check_endpoint};
use crate::transfer::{Part, Transfer};

/// A hub, and the cache for its models.
pub struct Hub {
    settings: Settings,
    client: Client,
}

impl Hub {
    /// A hub with these settings. Makes no request.
    ///
    /// # Errors
    ///
    /// [`HubError::Setting`] for an address that is not one of the web, or certificates that cannot be read.
    pub fn new(settings: Settings) -> Result<Self, HubError> {
        check_endpoint("endpoint", &settings.endpoint)?;
        Ok(Self { client: Client::new(&settings)?, settings })
    }

    /// The settings of this hub.
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// A download of the model `id`, at its branch `main`. [`Download::run`] starts it.
    pub fn download(&self, id: &HubId) -> Download<'_> {
        Download {
            settings: &self.settings,
            client: &self.client,
            id: id.clone(),
            revision: Revision::default(),
            caller: Caller::silent(),
        }
    }
}

/// A download of one model.
#[must_use = "a download starts with `run`"]
pub struct Download<'a> {
    settings: &'a Settings,
    client: &'a Client,
    id: HubId,
    revision: Revision,
    caller: Caller<'a>,
}

impl<'a> Download<'a> {
    /// Downloads this branch, tag or commit.
    pub fn revision(mut self, revision: Revision) -> Self {
        self.revision = revision;
        self
    }

    /// Calls `on_event` with everything that happens, on the thread of [`run`](Self::run).
    pub fn on_event(mut self, on_event: impl FnMut(Event<'_>) + 'a) -> Self {
        self.caller.on_event = Box::new(on_event);
        self
    }

    /// Ends the download with [`HubError::Cancelled`] once this handle is cancelled.
    pub fn cancelled_by(mut self, cancel: &Cancel) -> Self {
        self.caller.cancel = cancel.clone();
        self
    }

    /// Downloads those files of the model that the cache does not have, and answers where the model is.
    ///
    /// Blocks until the model is complete. A commit that the cache has is found without a request. Where the Hub cannot
    /// be reached, the model that is in the cache is the answer, and [`Event::UsingCache`] says so.
    ///
    /// # Errors
    ///
    /// Every variant of [`HubError`] but [`HubError::Setting`].
    pub fn run(mut self) -> Result<Snapshot, HubError> {
        let folder = ModelFolder::new(&self.settings.cache, &self.id);
        let cached = folder.find(&self.revision);
        if self.settings.offline {
            let cache = self.settings.cache.clone();
            return cached.map(|found| found.snapshot).map_err(|missing| HubError::Offline {
                id: self.id,
                cache,
                missing,
            });
        }
        let cached = match cached {
            // A commit never changes.
            Ok(Found { snapshot, is_listed: true }) if self.revision.is_commit() => return Ok(snapshot),
            cached => cached.ok().map(|found| found.snapshot),
        };
        match (self.listing(cached.is_some()), cached) {
            (Ok(listing), _) => self.complete(&folder, listing),
            (Err(HubError::Cancelled), _) => Err(HubError::Cancelled),
            (Err(error), Some(snapshot))
                if self.revision.is_commit() || matches!(error, HubError::Unreachable { .. }) =>
            {
                self.caller.tell(Event::UsingCache { problem: &error.to_string() });
                Ok(snapshot)
            }
            (Err(error), _) => Err(error),
        }
    }

    /// Asks for the files of the revision: once where the cache can serve if the Hub cannot be reached.
    fn listing(&mut self, cache_can_serve: bool) -> Result<Listing, HubError> {
        let Self { client, id, revision, caller, .. } = self;
        let attempts = if cache_can_serve { 1 } else { ATTEMPTS };
        client.retry(attempts, caller, || Listing::read(id, client.get_listing(id, revision)?))
    }

    /// Completes the snapshot of the commit that the Hub listed.
    fn complete(&mut self, folder: &ModelFolder, listing: Listing) -> Result<Snapshot, HubError> {
        let files = listing.needed_files(&self.id, &self.revision)?;
        let commit = listing.commit;
        if !self.revision.is_commit() {
            folder.check_revision(&self.revision)?;
        }
        folder.remember_files(&commit, &files);
        let snapshot = folder.snapshot(&commit);
        let missing: Vec<&String> = files.iter().filter(|file| !snapshot.join(file).is_file()).collect();
        let downloaded = self.download_missing(folder, &commit, &missing)?;
        if downloaded > 0 {
            folder.remove_stale_parts();
        }
        // Last, so that the revision stands for an older snapshot until this one is complete.
        if !self.revision.is_commit() {
            folder.set_revision(&self.revision, &commit)?;
        }
        Ok(Snapshot { folder: snapshot, commit, files, downloaded })
    }

    /// Downloads these files. Answers how many bytes came over the network.
    fn download_missing(
        &mut self,
        folder: &ModelFolder,
        commit: &str,
        missing: &[&String],
    ) -> Result<u64, HubError> {
        let mut downloaded = 0;
        let (configs, others): (Vec<&String>, Vec<_>) =
            missing.iter().copied().partition(|file| *file == "config.json");
        let mut files = Vec::with_capacity(missing.len());
        // First the config, which says whether the other files are of any use. Its few bytes are worth no event.
        self.caller.hears_progress = false;
        for name in configs {
            let config = self.remote_file(commit, name)?;
            downloaded += self.download_file(folder, &config)?;
            self.caller.bytes_before = folder.length(&config);
            self.caller.bytes_in_all = self.caller.bytes_before;
            files.push(config);
        }
        self.caller.hears_progress = true;
        if !others.is_empty() {
            self.check_model_type(&folder.snapshot(commit))?;
        }
        let first = files.len();
        for name in others {
            let file = self.remote_file(commit, name)?;
            let total = self.caller.bytes_in_all.saturating_add(file.size.unwrap_or_default());
            self.caller.bytes_in_all = total;
            files.push(file);
        }
        check_sizes(&files)?;
        for file in &files[first..] {
            downloaded += self.download_file(folder, file)?;
            let length = folder.length(file);
            let Caller { bytes_before, bytes_in_all, .. } = &mut self.caller;
            *bytes_before = bytes_before.saturating_add(length);
            if file.size.is_none() {
                *bytes_in_all = bytes_in_all.saturating_add(length);
            }
        }
        Ok(downloaded)
    }

    /// Fails where the caller does not support the `model_type` of this snapshot's config.
    fn check_model_type(&self, snapshot: &Path) -> Result<(), HubError> {
        let Some(supported) = &self.settings.model_types else { return Ok(()) };
        let file = snapshot.join("config.json");
        let text =
            mlx_files::read(&file, LARGEST_CONFIG).map_err(|source| HubError::Read { file, source })?;
        let what = || format!("config.json of the model {}", self.id);
        let wrong = |problem: String| HubError::Answer { what: what(), problem };
        let config: serde_json::Value = serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))?;
        let found = config.get("model_type").and_then(serde_json::Value::as_str);
        let found = found.ok_or_else(|| wrong("it has no model_type".to_owned()))?;
        if supported.iter().any(|supported| supported == found) {
            return Ok(());
        }
        Err(HubError::Unsupported {
            id: self.id.clone(),
            found: shortened(found),
            supported: supported.clone(),
        })
    }

    /// Asks for the name and the size of a file's contents.
    fn remote_file(&mut self, commit: &str, file: &str) -> Result<RemoteFile, HubError> {
        let Self { client, id, caller, .. } = self;
        client.retry(ATTEMPTS, caller, || {
            Ok(RemoteFile::read(id, commit, file, &client.head_file(id, commit, file)?)?)
        })
    }

    /// Puts a file into the cache, unless it is there. Answers how many bytes came over the network.
    fn download_file(&mut self, folder: &ModelFolder, file: &RemoteFile) -> Result<u64, HubError> {
        let (blob, part) = (folder.blob(file), folder.part(file));
        let mut downloaded = 0;
        if folder.has_blob(file) {
            folder.remove_part(file);
        } else if let Some(opened) = self.lock_part(folder, file)? {
            let Self { settings, client, id, caller, .. } = self;
            let largest_unannounced = settings.largest_unannounced;
            downloaded = Transfer { client, id, file, part: opened, largest_unannounced, caller }.run()?;
            fs::rename(&part, &blob).map_err(|source| HubError::Write { file: part, source })?;
        }
        folder.link(&blob, &folder.snapshot(&file.commit).join(&file.name))?;
        Ok(downloaded)
    }

    /// Opens the part of a file for this process alone; `None` where another process has completed the file meanwhile.
    fn lock_part(&mut self, folder: &ModelFolder, file: &RemoteFile) -> Result<Option<Part>, HubError> {
        let path = folder.part(file);
        fs::create_dir_all(folder.blobs())
            .map_err(|source| HubError::Write { file: path.clone(), source })?;
        let mut part = Part::open(&path)?;
        while !part.try_lock() {
            self.caller.tell(Event::Waiting { file: &file.name });
            self.caller.wait_until(|| part.try_lock())?;
            if folder.has_blob(file) {
                return Ok(None);
            }
            // The other process may have removed its part.
            part = Part::open(&path)?;
        }
        Ok(if folder.has_blob(file) { None } else { Some(part) })
    }
}
