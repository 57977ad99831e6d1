//! `mlx-models download`: downloads a model from the Hugging Face Hub into the cache.

use std::io::{self, Write};
use std::path::PathBuf;

use mlx_hub::{Event, Hub, HubError, HubId, Revision, Settings, Snapshot};
use serde::Serialize;

use crate::failure::Failure;
use crate::interrupt;
use crate::progress::{Progress, Unit, bytes};

/// Arguments of `mlx-models download`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Download this model, named by its Hub id (owner/name)
    #[arg(value_name = "HUB-ID")]
    id: HubId,
    /// Download this branch, tag or commit
    #[arg(long, value_name = "REVISION", default_value_t)]
    revision: Revision,
    /// Print one JSON object instead of the path of the folder
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
    let Snapshot { folder, commit, files, downloaded, .. } = fetch(&id, revision.clone())?;
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

/// Downloads those files of a model that the cache does not have, with progress on standard error.
pub(crate) fn fetch(id: &HubId, revision: Revision) -> Result<Snapshot, HubError> {
    let model_types = mlx_models::known_model_types().into_iter().map(str::to_owned).collect();
    let hub = Hub::new(Settings {
        model_types: Some(model_types),
        user_agent: concat!("mlx-models/", env!("CARGO_PKG_VERSION")).to_owned(),
        ..Settings::from_environment()?
    })?;
    interrupt::end_at_once();
    let mut bar = Progress::new(Unit::Bytes);
    let download = hub.download(id).revision(revision).on_event(|event| match event {
        Event::Progress { done, total, file } => bar.set(done, total, file),
        Event::Waiting { file } => bar.say(&format!("waiting for another download of {file}")),
        Event::Retrying { problem } => bar.say(&format!("trying again: {problem}")),
        Event::UsingCache { problem } => bar.say(&format!("using {id} as it is in the cache: {problem}")),
        _ => {}
    });
    let snapshot = download.run()?;
    bar.clear();
    if snapshot.downloaded > 0 {
        bar.say(&format!("downloaded {} of {id}", bytes(snapshot.downloaded)));
    }
    Ok(snapshot)
}
