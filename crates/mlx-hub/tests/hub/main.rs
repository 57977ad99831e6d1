//! Downloads from a hub on this machine.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod cache;
mod downloads;
mod limits;
mod refusals;
mod server;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use mlx_hub::{Event, Hub, HubError, HubId, Revision, Settings, Snapshot, Timeouts};
use server::{COMMIT, Reply, Request, Server, sha256};
use tempfile::TempDir;

fn id() -> HubId {
    "owner/name".parse().unwrap()
}

/// Contents that arrive in more than one piece.
fn tensors() -> Vec<u8> {
    (0..3_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

fn files() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("config.json", br#"{"model_type": "test"}"#.to_vec()),
        ("model.safetensors", tensors()),
        ("onnx/config.json", b"{}".to_vec()),
        ("pytorch_model.bin", vec![1; 100]),
        ("README.md", b"# Model".to_vec()),
        ("tokenizer.json", b"{}".to_vec()),
    ]
}

fn no_fault(_: &Request, _: &Reply) -> Option<Reply> {
    None
}

fn commit() -> Revision {
    COMMIT.parse().unwrap()
}

fn hub(server: &Server, cache: &TempDir) -> Hub {
    hub_with(server, cache, |_| {})
}

/// A hub whose settings are changed first.
fn hub_with(server: &Server, cache: &TempDir, change: impl FnOnce(&mut Settings)) -> Hub {
    let mut settings = Settings {
        endpoint: server.endpoint.clone(),
        token_places: "HF_TOKEN or in here/token".to_owned(),
        model_types: Some(vec!["test".to_owned()]),
        timeouts: Timeouts { first_pause: Duration::ZERO, ..Timeouts::default() },
        ..Settings::new(cache.path())
    };
    change(&mut settings);
    Hub::new(settings).unwrap()
}

fn fetch(hub: &Hub) -> Result<Snapshot, HubError> {
    hub.download(&id()).run()
}

fn fetch_revision(hub: &Hub, revision: &str) -> Result<Snapshot, HubError> {
    hub.download(&id()).revision(revision.parse().unwrap()).run()
}

fn blobs(cache: &TempDir) -> Vec<String> {
    let folder = cache.path().join("models--owner--name/blobs");
    let mut names: Vec<String> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn partial(cache: &TempDir) -> PathBuf {
    cache.path().join(format!("models--owner--name/blobs/{}.incomplete", sha256(&tensors())))
}

/// A fault that happens once, where the contents of the tensors are asked for.
fn once_for_tensors(
    reply: impl Fn(&Reply) -> Reply + Send + 'static,
) -> impl FnMut(&Request, &Reply) -> Option<Reply> + Send + 'static {
    let mut done = false;
    move |request, right| {
        if done || request.method != "GET" || request.path != "/far/model.safetensors" {
            return None;
        }
        done = true;
        Some(reply(right))
    }
}

/// The error when the Hub gives this answer to the first request.
fn refused(reply: Reply) -> HubError {
    let fault =
        move |request: &Request, _: &Reply| request.path.starts_with("/api/models").then(|| reply.clone());
    let (server, cache) = (Server::start(&files(), fault), tempfile::tempdir().unwrap());
    fetch(&hub(&server, &cache)).unwrap_err()
}
