//! Downloads: what arrives, what continues, and what is checked.

use std::path::Path;
use std::thread;

use mlx_hub::Cancel;

use super::*;

#[test]
fn the_layout_is_that_of_the_python_library() {
    let (server, cache) = (Server::start(&files(), no_fault), tempfile::tempdir().unwrap());
    let hub = hub(&server, &cache);
    let mut seen = Vec::new();
    let snapshot = hub
        .download(&id())
        .on_event(|event| {
            if let Event::Progress { done, total, .. } = event {
                seen.push((done, total));
            }
        })
        .run()
        .unwrap();
    let model = cache.path().join("models--owner--name");
    assert_eq!(snapshot.folder, model.join("snapshots").join(COMMIT));
    assert_eq!(snapshot.files, ["config.json", "model.safetensors", "onnx/config.json", "tokenizer.json"]);
    assert_eq!(fs::read_to_string(model.join("refs/main")).unwrap(), COMMIT);
    assert_eq!(fs::read(snapshot.folder.join("model.safetensors")).unwrap(), tensors());
    let target = |file: &str| fs::read_link(snapshot.folder.join(file)).unwrap();
    let small = &sha256(b"{}")[..40];
    assert_eq!(target("model.safetensors"), Path::new("../../blobs").join(sha256(&tensors())));
    assert_eq!(target("onnx/config.json"), Path::new("../../../blobs").join(small));
    assert_eq!(target("tokenizer.json"), Path::new("../../blobs").join(small));
    assert_eq!(blobs(&cache).len(), 3);
    // Two of the files are equal, and are downloaded once.
    let bytes = (tensors().len() + files()[0].1.len() + 2) as u64;
    assert_eq!(snapshot.downloaded, bytes);
    assert!(
        seen.is_sorted() && seen.iter().all(|&(done, total)| done <= total && total == bytes + 2),
        "{seen:?}"
    );
    let requests = server.requests();
    assert!(requests.iter().all(|request| !request.headers.contains_key("authorization")));
    assert!(!requests.iter().any(|request| request.path.contains(".bin") || request.path.contains("README")));

    // The second time takes one request, and for a commit none.
    let again = fetch(&hub).unwrap();
    assert_eq!((&again.folder, again.downloaded), (&snapshot.folder, 0));
    assert_eq!(server.requests().len(), 1);
    fetch_revision(&hub, COMMIT).unwrap();
    assert_eq!(server.requests().len(), 0);
    // The name of a branch may be a path.
    fetch_revision(&hub, "a/branch").unwrap();
    assert_eq!(fs::read_to_string(model.join("refs/a/branch")).unwrap(), COMMIT);
}

#[test]
fn a_part_of_a_file_is_continued() {
    let (server, cache) = (Server::start(&files(), no_fault), tempfile::tempdir().unwrap());
    fs::create_dir_all(partial(&cache).parent().unwrap()).unwrap();
    fs::write(partial(&cache), &tensors()[..1_234_567]).unwrap();
    let snapshot = fetch(&hub(&server, &cache)).unwrap();
    assert_eq!(fs::read(snapshot.folder.join("model.safetensors")).unwrap(), tensors());
    assert_eq!(snapshot.downloaded, (tensors().len() - 1_234_567 + files()[0].1.len() + 2) as u64);
    let ranges: Vec<String> =
        server.requests().into_iter().filter_map(|request| request.headers.get("range").cloned()).collect();
    // One in the request to the Hub, one in the request that it was redirected to.
    assert_eq!(ranges, ["bytes=1234567-"; 2]);
}

#[test]
fn a_partial_file_beside_the_complete_one_is_removed() {
    let (server, cache) = (Server::start(&files(), no_fault), tempfile::tempdir().unwrap());
    fs::create_dir_all(partial(&cache).parent().unwrap()).unwrap();
    fs::write(partial(&cache), &tensors()[..1000]).unwrap();
    fs::write(partial(&cache).with_extension(""), tensors()).unwrap();
    let snapshot = fetch(&hub(&server, &cache)).unwrap();
    assert!(snapshot.downloaded < 1000 && !partial(&cache).exists());
}

#[test]
fn a_file_comes_whole_where_the_hub_cannot_continue_it() {
    for status in [200, 416] {
        let fault = once_for_tensors(move |_| Reply { status, body: tensors(), ..Reply::default() });
        let (server, cache) = (Server::start(&files(), fault), tempfile::tempdir().unwrap());
        fs::create_dir_all(partial(&cache).parent().unwrap()).unwrap();
        fs::write(partial(&cache), &tensors()[..1000]).unwrap();
        let snapshot = fetch(&hub(&server, &cache)).unwrap();
        assert_eq!(fs::read(snapshot.folder.join("model.safetensors")).unwrap(), tensors());
    }
}

#[test]
fn a_broken_connection_is_continued() {
    let fault = once_for_tensors(|right| Reply { cut: Some(2_000_000), ..right.clone() });
    let (server, cache) = (Server::start(&files(), fault), tempfile::tempdir().unwrap());
    let mut problems = Vec::new();
    let snapshot = hub(&server, &cache)
        .download(&id())
        .on_event(|event| {
            if let Event::Retrying { problem } = event {
                problems.push(problem.to_owned());
            }
        })
        .run()
        .unwrap();
    assert_eq!(fs::read(snapshot.folder.join("model.safetensors")).unwrap(), tensors());
    assert!(problems.len() == 1 && problems[0].starts_with("model.safetensors: "), "{problems:?}");
    assert!(
        server
            .requests()
            .iter()
            .any(|request| request.headers.get("range").is_some_and(|r| r == "bytes=2000000-"))
    );
}

#[test]
fn a_partial_file_is_kept_when_the_connection_stays_broken() {
    // 100,000 bytes at each attempt, then none.
    let mut times = 0;
    let fault = move |request: &Request, right: &Reply| {
        let is_it = request.method == "GET" && request.path == "/far/model.safetensors";
        times += u32::from(is_it);
        is_it.then(|| Reply { cut: Some(if times < 9 { 100_000 } else { 0 }), ..right.clone() })
    };
    let (server, cache) = (Server::start(&files(), fault), tempfile::tempdir().unwrap());
    let error = fetch(&hub(&server, &cache)).unwrap_err();
    assert!(matches!(error, HubError::Broken { done: 800_000, total: Some(3_000_000), .. }), "{error}");
    assert!(error.to_string().ends_with("run the download again to continue from there"), "{error}");
    assert_eq!(fs::read(partial(&cache)).unwrap(), tensors()[..800_000]);
    // The snapshot does not look complete.
    let offline = hub_with(&server, &cache, |settings| settings.offline = true);
    assert!(matches!(fetch(&offline).unwrap_err(), HubError::Offline { .. }));
}

#[test]
fn damaged_contents_are_removed() {
    let fault = once_for_tensors(|right| {
        let mut wrong = right.clone();
        wrong.body[5] ^= 1;
        wrong
    });
    let (server, cache) = (Server::start(&files(), fault), tempfile::tempdir().unwrap());
    let hub = hub(&server, &cache);
    let error = fetch(&hub).unwrap_err();
    assert!(
        matches!(&error, HubError::Hash { file, expected, .. } if file == "model.safetensors" && *expected == sha256(&tensors()))
    );
    assert!(error.to_string().contains("the file was removed"), "{error}");
    assert!(!partial(&cache).exists());
    assert!(!blobs(&cache).contains(&sha256(&tensors())));
    // The next run downloads the right contents.
    fetch(&hub).unwrap();
}

#[test]
fn a_damaged_part_is_detected() {
    let (server, cache) = (Server::start(&files(), no_fault), tempfile::tempdir().unwrap());
    let hub = hub(&server, &cache);
    fs::create_dir_all(partial(&cache).parent().unwrap()).unwrap();
    fs::write(partial(&cache), vec![0; 1000]).unwrap();
    assert!(matches!(fetch(&hub).unwrap_err(), HubError::Hash { .. }));
    fetch(&hub).unwrap();
    // A part that is longer than the file starts again at once.
    let other = tempfile::tempdir().unwrap();
    fs::create_dir_all(partial(&other).parent().unwrap()).unwrap();
    fs::write(partial(&other), vec![0; 4_000_000]).unwrap();
    fetch(&self::hub(&server, &other)).unwrap();
}

#[test]
fn a_file_that_is_listed_twice_is_downloaded_once() {
    let fault = |request: &Request, right: &Reply| {
        let body = String::from_utf8_lossy(&right.body).replace(
            r#"{"rfilename": "tokenizer.json"}"#,
            r#"{"rfilename": "tokenizer.json"}, {"rfilename": "tokenizer.json"}"#,
        );
        request.path.starts_with("/api/models").then(|| Reply { body: body.into(), ..right.clone() })
    };
    let (server, cache) = (Server::start(&files(), fault), tempfile::tempdir().unwrap());
    let snapshot = fetch(&hub(&server, &cache)).unwrap();
    assert_eq!(snapshot.files, ["config.json", "model.safetensors", "onnx/config.json", "tokenizer.json"]);
}

#[test]
fn hashes_may_be_in_upper_case() {
    let capitals = |request: &Request, right: &Reply| {
        let mut reply = right.clone();
        for (name, value) in &mut reply.headers {
            if name == "X-Linked-Etag" {
                value.make_ascii_uppercase();
            }
        }
        if request.path.starts_with("/api/models") {
            let body = String::from_utf8_lossy(&reply.body).replace(COMMIT, &COMMIT.to_uppercase());
            reply.body = body.into();
        }
        Some(reply)
    };
    let (server, cache) = (Server::start(&files(), capitals), tempfile::tempdir().unwrap());
    let revision: Revision = COMMIT.to_uppercase().parse().unwrap();
    let snapshot = hub(&server, &cache).download(&id()).revision(revision).run().unwrap();
    assert_eq!((&*snapshot.commit, snapshot.folder.ends_with(COMMIT)), (COMMIT, true));
    assert!(blobs(&cache).contains(&sha256(&tensors())));
}

#[test]
fn two_runs_at_once_download_one_copy() {
    let slow = |_: &Request, _: &Reply| {
        thread::sleep(Duration::from_millis(20));
        None
    };
    let (server, cache) = (Server::start(&files(), slow), tempfile::tempdir().unwrap());
    let hubs = [hub(&server, &cache), hub(&server, &cache)];
    thread::scope(|scope| {
        for run in hubs.each_ref().map(|hub| scope.spawn(|| fetch(hub).unwrap())) {
            let folder = run.join().unwrap().folder;
            assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), tensors());
        }
    });
    assert!(!blobs(&cache).iter().any(|name| name.ends_with(".incomplete")), "{:?}", blobs(&cache));
}

/// A cancelled download leaves what arrived, and the next one continues from there.
#[test]
fn a_download_that_is_cancelled_continues_later() {
    let (server, cache) = (Server::start(&files(), no_fault), tempfile::tempdir().unwrap());
    let hub = hub(&server, &cache);
    let cancel = Cancel::new();
    let cancelled = hub.download(&id()).cancelled_by(&cancel).on_event(|event| {
        if matches!(event, Event::Progress { done, file, .. } if file == "model.safetensors" && done > 1000) {
            cancel.cancel();
        }
    });
    assert!(matches!(cancelled.run(), Err(HubError::Cancelled)));
    let held = fs::metadata(partial(&cache)).unwrap().len();
    assert!(held > 900 && held < 3_000_000, "{held}");
    // A download that was cancelled before it started makes no request.
    server.requests();
    assert!(matches!(hub.download(&id()).cancelled_by(&cancel).run(), Err(HubError::Cancelled)));
    assert_eq!(server.requests().len(), 0);
    let snapshot = fetch(&hub).unwrap();
    assert_eq!(fs::read(snapshot.folder.join("model.safetensors")).unwrap(), tensors());
}

/// It waits for another process that downloads the file, and between two attempts.
#[test]
fn a_download_that_waits_can_be_cancelled() {
    let (server, cache) = (Server::start(&files(), no_fault), tempfile::tempdir().unwrap());
    fs::create_dir_all(partial(&cache).parent().unwrap()).unwrap();
    let other = fs::File::create(partial(&cache)).unwrap();
    other.lock().unwrap();
    let cancelled_at = |hub: &Hub, is_it: fn(&Event<'_>) -> bool| {
        let cancel = Cancel::new();
        let download = hub.download(&id()).cancelled_by(&cancel);
        let ended = download
            .on_event(|event| {
                if is_it(&event) {
                    cancel.cancel()
                }
            })
            .run();
        assert!(matches!(ended, Err(HubError::Cancelled)), "{ended:?}");
    };
    cancelled_at(&hub(&server, &cache), |event| matches!(event, Event::Waiting { .. }));
    let unreachable = hub_with(&server, &cache, |settings| {
        settings.endpoint = "http://127.0.0.1:9".to_owned();
        settings.timeouts.first_pause = Duration::from_secs(3600);
    });
    cancelled_at(&unreachable, |event| matches!(event, Event::Retrying { .. }));
}
