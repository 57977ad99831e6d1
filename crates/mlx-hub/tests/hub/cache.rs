//! The cache: what is used without the Hub, and what is repaired.

use std::fs::File;
use std::path::Path;
use std::sync::Mutex;

use super::*;

const WEEK: Duration = Duration::from_secs(7 * 24 * 60 * 60);

#[test]
fn a_commit_is_complete_when_all_its_files_are_here() {
    let (server, cache) = (Server::start(&files(), no_fault), tempfile::tempdir().unwrap());
    let hub = hub(&server, &cache);
    let offline = hub_with(&server, &cache, |settings| settings.offline = true);
    let folder = fetch_revision(&hub, COMMIT).unwrap().folder;
    // The state after a download that was interrupted.
    fs::remove_file(folder.join("tokenizer.json")).unwrap();
    let error = fetch_revision(&offline, COMMIT).unwrap_err();
    assert!(matches!(&error, HubError::Offline { missing, .. } if missing == "tokenizer.json"), "{error}");
    fetch_revision(&hub, COMMIT).unwrap();
    assert!(folder.join("tokenizer.json").is_file());

    // Without the list of files, as after a download by another program, the Hub is asked once.
    fs::remove_dir_all(cache.path().join("models--owner--name/.mlx-models")).unwrap();
    let listed = |request: &Request| request.path.starts_with("/api/models");
    server.requests();
    for asked in [1, 0] {
        fetch_revision(&hub, COMMIT).unwrap();
        assert_eq!(server.requests().iter().filter(|request| listed(request)).count(), asked);
    }
    // Without the list, the snapshot is still used offline, and where the Hub no longer has the model.
    fs::remove_dir_all(cache.path().join("models--owner--name/.mlx-models")).unwrap();
    assert_eq!(fetch_revision(&offline, COMMIT).unwrap().folder, folder);
    let gone = Server::start(&[], |_, _| Some(Reply::status(404, "RepoNotFound")));
    let gone = hub_with(&gone, &cache, |_| {});
    let mut said = Vec::new();
    let found = gone
        .download(&id())
        .revision(commit())
        .on_event(|event| {
            if let Event::UsingCache { problem } = event {
                said.push(problem.to_owned());
            }
        })
        .run();
    assert_eq!(found.unwrap().folder, folder);
    assert!(said.len() == 1 && said[0].contains("the Hub has no public model"), "{said:?}");
}

#[test]
fn the_cache_is_used_where_the_hub_cannot_be_reached() {
    let (server, cache) = (Server::start(&files(), no_fault), tempfile::tempdir().unwrap());
    let here = fetch(&hub(&server, &cache)).unwrap();
    server.requests();
    let offline = hub_with(&server, &cache, |settings| settings.offline = true);
    assert_eq!(fetch(&offline).unwrap().folder, here.folder);
    assert_eq!(server.requests().len(), 0);

    // No program listens at this port.
    let unreachable =
        || hub_with(&server, &cache, |settings| settings.endpoint = "http://127.0.0.1:9".to_owned());
    let said = Mutex::new(false);
    let found = unreachable()
        .download(&id())
        .on_event(|event| {
            *said.lock().unwrap() |= matches!(event, Event::UsingCache { .. });
        })
        .run();
    assert_eq!(found.unwrap().folder, here.folder);
    assert!(said.into_inner().unwrap());

    for missing in ["model.safetensors", "config.json"] {
        fs::remove_file(here.folder.join(missing)).unwrap();
        let error = fetch(&offline).unwrap_err();
        assert!(matches!(&error, HubError::Offline { missing: found, .. } if found == missing), "{error}");
    }
    assert!(matches!(fetch(&unreachable()).unwrap_err(), HubError::Unreachable { .. }));
    // Without the list, the index names the weights that are missing.
    fs::remove_dir_all(cache.path().join("models--owner--name/.mlx-models")).unwrap();
    let index = br#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#.to_vec();
    for (file, contents) in [
        ("config.json", b"{}".to_vec()),
        ("model.safetensors.index.json", index),
        ("model-1.safetensors", vec![]),
    ] {
        fs::write(here.folder.join(file), contents).unwrap();
    }
    let error = fetch(&offline).unwrap_err();
    assert!(
        matches!(&error, HubError::Offline { missing, .. } if missing == "model-2.safetensors"),
        "{error}"
    );
}

#[test]
#[cfg(unix)]
fn a_part_that_is_a_link_or_a_pipe_is_not_written_to() {
    let elsewhere = tempfile::NamedTempFile::new().unwrap();
    let link = |place: &Path| std::os::unix::fs::symlink(elsewhere.path(), place).unwrap();
    let pipe = |place: &Path| {
        assert!(std::process::Command::new("mkfifo").arg(place).status().unwrap().success());
    };
    for make in [&link as &dyn Fn(&Path), &pipe] {
        let (server, cache) = (Server::start(&files(), no_fault), tempfile::tempdir().unwrap());
        fs::create_dir_all(partial(&cache).parent().unwrap()).unwrap();
        make(&partial(&cache));
        let folder = fetch(&hub(&server, &cache)).unwrap().folder;
        assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), tensors());
        assert!(partial(&cache).with_extension("").symlink_metadata().unwrap().is_file());
        assert_eq!(fs::read(elsewhere.path()).unwrap(), b"");
    }
}

#[test]
fn contents_of_another_length_are_downloaded_again() {
    let (server, cache) = (Server::start(&files(), no_fault), tempfile::tempdir().unwrap());
    let blob = partial(&cache).with_extension("");
    fs::create_dir_all(blob.parent().unwrap()).unwrap();
    fs::write(&blob, &tensors()[..1000]).unwrap();
    let folder = fetch(&hub(&server, &cache)).unwrap().folder;
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), tensors());
}

#[test]
fn old_parts_are_removed() {
    let (server, cache) = (Server::start(&files(), no_fault), tempfile::tempdir().unwrap());
    let folder = partial(&cache).parent().unwrap().to_path_buf();
    fs::create_dir_all(&folder).unwrap();
    let part = |name: &str, age: Duration| {
        let file = File::create_new(folder.join(name)).unwrap();
        file.set_modified(std::time::SystemTime::now() - age).unwrap();
        file
    };
    part("old.incomplete", WEEK * 2);
    part("new.incomplete", WEEK / 2);
    part("old", WEEK * 2);
    let locked = part("locked.incomplete", WEEK * 2);
    locked.lock().unwrap();
    fetch(&hub(&server, &cache)).unwrap();
    let left: Vec<String> = blobs(&cache).into_iter().filter(|name| name.len() < 40).collect();
    assert_eq!(left, ["locked.incomplete", "new.incomplete", "old"]);
}

#[test]
fn a_read_only_cache_is_used() {
    let (server, cache) = (Server::start(&files(), no_fault), tempfile::tempdir().unwrap());
    let hub = hub(&server, &cache);
    fetch(&hub).unwrap();
    // A file in place of the folder of lists: no list can be written.
    let model = cache.path().join("models--owner--name");
    fs::remove_dir_all(model.join(".mlx-models")).unwrap();
    fs::write(model.join(".mlx-models"), "").unwrap();
    let reference = model.join("refs/main");
    fs::write(&reference, format!("{COMMIT}\n")).unwrap();
    fetch(&hub).unwrap();
    assert_eq!(fs::read_to_string(&reference).unwrap(), format!("{COMMIT}\n"), "it is not written again");
    fetch_revision(&hub, COMMIT).unwrap();
}

#[test]
fn a_branch_whose_place_is_taken_is_refused_before_the_download() {
    let (server, cache) = (Server::start(&files(), no_fault), tempfile::tempdir().unwrap());
    let refs = cache.path().join("models--owner--name/refs");
    let refused = || {
        let branch: Revision = "a/branch".parse().unwrap();
        let error = hub(&server, &cache).download(&id()).revision(branch).run().unwrap_err();
        assert!(error.to_string().contains("cannot be stored in the cache"), "{error}");
        assert_eq!(blobs(&cache).len(), 0);
    };
    fs::create_dir_all(&refs).unwrap();
    fs::write(refs.join("a"), COMMIT).unwrap();
    refused();
    fs::remove_file(refs.join("a")).unwrap();
    fs::create_dir_all(refs.join("a/branch/b")).unwrap();
    refused();
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let (server, cache) = (Server::start(&files(), no_fault), tempfile::tempdir().unwrap());
    fs::write(cache.path().join("models--owner--name"), "").unwrap();
    let error = fetch(&hub(&server, &cache)).unwrap_err();
    assert!(matches!(&error, HubError::Write { file, .. } if file.starts_with(cache.path())), "{error}");
}
