//! `mlx-models download`: brings a model from the hub into the cache.

use std::io::{self, Write};
use std::path::PathBuf;

use serde::Serialize;

use crate::failure::Failure;
use crate::hub::{Event, Hub, HubError, HubId, Revision, Snapshot};
use crate::interrupt;
use crate::progress::{Progress, Unit, bytes};

/// Arguments of `mlx-models download`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Hub id: owner/name
    #[arg(value_name = "HUB-ID")]
    id: HubId,
    /// Branch, tag or commit
    #[arg(long, value_name = "R", default_value_t)]
    revision: Revision,
    /// Write one JSON object instead of the folder
    #[arg(long)]
    json: bool,
}

/// What `--json` writes.
#[derive(Serialize)]
struct Report {
    model: String,
    revision: String,
    commit: String,
    folder: PathBuf,
    files: Vec<String>,
    downloaded_bytes: u64,
}

pub(crate) fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments { id, revision, json } = arguments;
    let Snapshot { folder, commit, files, downloaded } = fetch(&id, &revision)?;
    let mut out = io::stdout().lock();
    if json {
        let report = Report {
            model: id.to_string(),
            revision: revision.to_string(),
            commit,
            folder,
            files,
            downloaded_bytes: downloaded,
        };
        serde_json::to_writer(&mut out, &report).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        writeln!(out, "{}", folder.display())?;
    }
    Ok(())
}

/// The model in the cache, after a download with its progress on standard error where that is needed.
pub(crate) fn fetch(id: &HubId, revision: &Revision) -> Result<Snapshot, HubError> {
    let hub = Hub::from_environment()?;
    interrupt::end_at_once();
    let mut bar = Progress::new(Unit::Bytes);
    let snapshot = hub.fetch(id, revision, &mut |event| match event {
        Event::Bytes { done, total, file } => bar.set(done, total, file),
        Event::Waiting { file } => bar.say(&format!("waiting for another download of {file}")),
        Event::Again { problem } => bar.say(&format!("trying again: {problem}")),
        Event::FromCache { problem } => bar.say(&format!("using {id} as it is in the cache: {problem}")),
    })?;
    bar.clear();
    if snapshot.downloaded > 0 {
        bar.say(&format!("downloaded {} of {id}", bytes(snapshot.downloaded)));
    }
    Ok(snapshot)
}
