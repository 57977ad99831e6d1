//! The cache and the hub, with a server on this machine.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

#[path = "../../tests/common/hub_server.rs"]
mod hub_server;

use std::sync::Mutex;

use hub_server::{COMMIT, Reply, Server, sha256};
use tempfile::TempDir;

use super::*;

fn id() -> HubId {
    "owner/name".parse().unwrap()
}

/// Long enough for more than one piece.
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

fn no_fault(_: &hub_server::Request, _: &Reply) -> Option<Reply> {
    None
}

fn main() -> Revision {
    Revision::default()
}

fn commit() -> Revision {
    COMMIT.parse().unwrap()
}

fn hub(server: &Server, cache: &TempDir) -> Hub {
    Hub {
        endpoint: server.endpoint.clone(),
        cache: cache.path().to_path_buf(),
        token: None,
        token_file: "here/token".to_owned(),
        offline: false,
        agent: agent(None).unwrap(),
        pause: Duration::ZERO,
        largest_unsized: LARGEST_UNSIZED,
        model_types: vec!["test"],
    }
}

fn fetch(hub: &Hub) -> Result<Snapshot, HubError> {
    hub.fetch(&id(), &main(), &mut |_| {})
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

/// Once and only once, for the tensors' contents.
fn once_for_tensors(
    reply: impl Fn(&Reply) -> Reply + Send + 'static,
) -> impl FnMut(&hub_server::Request, &Reply) -> Option<Reply> + Send + 'static {
    let mut done = false;
    move |request, right| {
        if done || request.method != "GET" || request.path != "/far/model.safetensors" {
            return None;
        }
        done = true;
        Some(reply(right))
    }
}

#[test]
fn ids_have_an_owner_and_a_name() {
    for right in ["owner/name", "a/b", "mlx-community/Qwen3-0.6B-4bit", "o_w/n.a-m_e"] {
        assert_eq!(right.parse::<HubId>().unwrap().to_string(), right);
    }
    let long = format!("a/{}", "b".repeat(95));
    for wrong in [
        "name", "", "/name", "owner/", "a/b/c", "../b", "./b", "a/-b", "a/b--c", "a/b..c", "a/b c", "a/b.",
        &long,
    ] {
        assert!(wrong.parse::<HubId>().is_err(), "{wrong}");
    }
}

#[test]
fn a_model_comes_into_the_cache_as_the_hubs_own_library_lays_it_out() {
    let (server, cache) = (Server::start(&files(), no_fault), tempfile::tempdir().unwrap());
    let hub = hub(&server, &cache);
    let mut seen = Vec::new();
    let snapshot = hub
        .fetch(&id(), &main(), &mut |event| {
            if let Event::Bytes { done, total, .. } = event {
                seen.push((done, total));
            }
        })
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
    // The two equal files come once.
    let bytes = (tensors().len() + files()[0].1.len() + 2) as u64;
    assert_eq!(snapshot.downloaded, bytes);
    assert!(
        seen.is_sorted() && seen.iter().all(|&(done, total)| done <= total && total == bytes + 2),
        "{seen:?}"
    );
    let requests = server.requests();
    assert!(requests.iter().all(|request| !request.headers.contains_key("authorization")));
    assert!(!requests.iter().any(|request| request.path.contains(".bin") || request.path.contains("README")));

    // A second time, one question is asked; for a commit, none.
    let again = fetch(&hub).unwrap();
    assert_eq!((&again.folder, again.downloaded), (&snapshot.folder, 0));
    assert_eq!(server.requests().len(), 1);
    hub.fetch(&id(), &commit(), &mut |_| {}).unwrap();
    assert_eq!(server.requests().len(), 0);
    // A branch whose name is a path.
    hub.fetch(&id(), &"a/branch".parse().unwrap(), &mut |_| {}).unwrap();
    assert_eq!(fs::read_to_string(model.join("refs/a/branch")).unwrap(), COMMIT);
}

#[test]
fn what_is_there_of_a_file_is_gone_on_with() {
    let (server, cache) = (Server::start(&files(), no_fault), tempfile::tempdir().unwrap());
    fs::create_dir_all(partial(&cache).parent().unwrap()).unwrap();
    fs::write(partial(&cache), &tensors()[..1_234_567]).unwrap();
    let snapshot = fetch(&hub(&server, &cache)).unwrap();
    assert_eq!(fs::read(snapshot.folder.join("model.safetensors")).unwrap(), tensors());
    assert_eq!(snapshot.downloaded, (tensors().len() - 1_234_567 + files()[0].1.len() + 2) as u64);
    let ranges: Vec<String> =
        server.requests().into_iter().filter_map(|request| request.headers.get("range").cloned()).collect();
    // Of the request and of what it was redirected to.
    assert_eq!(ranges, ["bytes=1234567-"; 2]);
}

#[test]
fn a_part_of_a_file_that_is_whole_is_removed() {
    let (server, cache) = (Server::start(&files(), no_fault), tempfile::tempdir().unwrap());
    fs::create_dir_all(partial(&cache).parent().unwrap()).unwrap();
    fs::write(partial(&cache), &tensors()[..1000]).unwrap();
    fs::write(partial(&cache).with_extension(""), tensors()).unwrap();
    let snapshot = fetch(&hub(&server, &cache)).unwrap();
    assert!(snapshot.downloaded < 1000 && !partial(&cache).exists());
}

#[test]
fn a_file_whose_rest_alone_is_not_to_be_had_comes_whole() {
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
fn a_connection_that_breaks_off_is_made_again_from_there() {
    let fault = once_for_tensors(|right| Reply { cut: Some(2_000_000), ..right.clone() });
    let (server, cache) = (Server::start(&files(), fault), tempfile::tempdir().unwrap());
    let mut problems = Vec::new();
    let snapshot = hub(&server, &cache)
        .fetch(&id(), &main(), &mut |event| {
            if let Event::Again { problem } = event {
                problems.push(problem.to_owned());
            }
        })
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
fn a_connection_that_keeps_breaking_off_leaves_what_came() {
    // A little more each time, then nothing.
    let mut times = 0;
    let fault = move |request: &hub_server::Request, right: &Reply| {
        let is_it = request.method == "GET" && request.path == "/far/model.safetensors";
        times += u32::from(is_it);
        is_it.then(|| Reply { cut: Some(if times < 9 { 100_000 } else { 0 }), ..right.clone() })
    };
    let (server, cache) = (Server::start(&files(), fault), tempfile::tempdir().unwrap());
    let error = fetch(&hub(&server, &cache)).unwrap_err();
    assert!(matches!(error, HubError::Broken { done: 800_000, total: Some(3_000_000), .. }), "{error}");
    assert!(error.to_string().ends_with("run it again to go on from there"), "{error}");
    assert_eq!(fs::read(partial(&cache)).unwrap(), tensors()[..800_000]);
    // No snapshot that looks whole.
    let offline = Hub { offline: true, ..hub(&server, &cache) };
    assert!(matches!(fetch(&offline).unwrap_err(), HubError::Offline { .. }));
}

#[test]
fn wrong_contents_are_removed() {
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
    assert!(error.to_string().contains("it was removed"), "{error}");
    assert!(!partial(&cache).exists());
    assert!(!blobs(&cache).contains(&sha256(&tensors())));
    // The next time it is right.
    fetch(&hub).unwrap();
}

#[test]
fn a_wrong_beginning_that_was_there_is_found_out() {
    let (server, cache) = (Server::start(&files(), no_fault), tempfile::tempdir().unwrap());
    let hub = hub(&server, &cache);
    fs::create_dir_all(partial(&cache).parent().unwrap()).unwrap();
    fs::write(partial(&cache), vec![0; 1000]).unwrap();
    assert!(matches!(fetch(&hub).unwrap_err(), HubError::Hash { .. }));
    fetch(&hub).unwrap();
    // One that is longer than the file is begun anew at once.
    let other = tempfile::tempdir().unwrap();
    fs::create_dir_all(partial(&other).parent().unwrap()).unwrap();
    fs::write(partial(&other), vec![0; 4_000_000]).unwrap();
    fetch(&Hub { cache: other.path().to_path_buf(), ..hub }).unwrap();
}

/// What the hub answers to the first question.
fn refused(reply: Reply) -> HubError {
    let fault = move |request: &hub_server::Request, _: &Reply| {
        request.path.starts_with("/api/models").then(|| reply.clone())
    };
    let (server, cache) = (Server::start(&files(), fault), tempfile::tempdir().unwrap());
    fetch(&hub(&server, &cache)).unwrap_err()
}

#[test]
fn refusals_say_what_to_do() {
    let error = refused(Reply::status(401, "RepoNotFound"));
    assert!(matches!(error, HubError::NoModel { .. }), "{error}");
    assert!(error.to_string().contains("a token is needed, in HF_TOKEN or in here/token"), "{error}");
    let error = refused(Reply::status(404, "RepoNotFound"));
    assert!(matches!(error, HubError::NoModel { .. }), "{error}");
    for status in [401, 403] {
        let error = refused(Reply::status(status, "GatedRepo"));
        assert!(matches!(error, HubError::Gated { .. }), "{error}");
        assert!(error.to_string().contains("accepted its conditions"), "{error}");
    }
    let error = refused(Reply::status(400, ""));
    assert!(matches!(error, HubError::Status { status: 400, .. }), "{error}");
    let error = refused(Reply::status(503, ""));
    assert!(matches!(error, HubError::Unreachable { .. }) && error.to_string().contains("503"), "{error}");
    for body in ["<html>", r#"{"sha": "x", "siblings": []}"#] {
        let error = refused(Reply { status: 200, body: body.into(), ..Reply::default() });
        assert!(matches!(error, HubError::Answer { .. }), "{error}");
    }
    let outside = format!(r#"{{"sha": "{COMMIT}", "siblings": [{{"rfilename": "../../x.json"}}]}}"#);
    let error = refused(Reply { status: 200, body: outside.into(), ..Reply::default() });
    assert!(
        matches!(&error, HubError::Answer { problem, .. } if problem.contains("../../x.json")),
        "{error}"
    );
}

#[test]
fn a_model_without_what_a_checkpoint_needs_is_refused_before_anything_comes() {
    let files = [("config.json", b"{}".to_vec()), ("pytorch_model.bin", vec![0; 9])];
    let (server, cache) = (Server::start(&files, no_fault), tempfile::tempdir().unwrap());
    let error = fetch(&hub(&server, &cache)).unwrap_err();
    assert!(matches!(error, HubError::NoCheckpoint { missing: "model*.safetensors", .. }), "{error}");
    assert_eq!(server.requests().len(), 1);
    for (names, needle) in [
        (&["config.json", "pytorch_model.bin"][..], "files of PyTorch"),
        (&["README.md", "name-q4.gguf"], "only GGUF files"),
        (&["adapter_config.json", "adapter_model.safetensors"], "its base model in --model"),
        (&["adapter_config.json", "adapter_model.bin", "config.json"], "its base model in --model"),
        (&["config.json", "tf_model.h5"], "files of other formats"),
    ] {
        let files: Vec<(&str, Vec<u8>)> = names.iter().map(|name| (*name, b"{}".to_vec())).collect();
        let (server, cache) = (Server::start(&files, no_fault), tempfile::tempdir().unwrap());
        let error = fetch(&hub(&server, &cache)).unwrap_err();
        assert!(error.to_string().contains(needle), "{error}");
    }
}

#[test]
fn a_model_of_another_kind_is_refused_before_its_weights_come() {
    for (config, needle) in [
        (r#"{"model_type": "bert"}"#, r#"the model_type "bert", which is not supported; supported are test"#),
        ("{}", "it has no model_type"),
        (r#"{"model_type": 3}"#, "it has no model_type"),
        ("[", "config.json of the model owner/name"),
    ] {
        let mut files = files();
        files[0].1 = config.into();
        let (server, cache) = (Server::start(&files, no_fault), tempfile::tempdir().unwrap());
        let error = fetch(&hub(&server, &cache)).unwrap_err();
        assert!(error.to_string().contains(needle), "{error}");
        let asked = server.requests();
        assert!(asked.iter().all(|request| !request.path.contains("safetensors")), "{asked:?}");
        assert!(!cache.path().join("models--owner--name/refs").exists());
    }
}

#[test]
fn a_commit_is_whole_when_all_its_files_are_here() {
    let (server, cache) = (Server::start(&files(), no_fault), tempfile::tempdir().unwrap());
    let hub = hub(&server, &cache);
    let offline = Hub { offline: true, ..self::hub(&server, &cache) };
    let folder = hub.fetch(&id(), &commit(), &mut |_| {}).unwrap().folder;
    // As after a download that was broken off.
    fs::remove_file(folder.join("tokenizer.json")).unwrap();
    let error = offline.fetch(&id(), &commit(), &mut |_| {}).unwrap_err();
    assert!(matches!(&error, HubError::Offline { missing, .. } if missing == "tokenizer.json"), "{error}");
    hub.fetch(&id(), &commit(), &mut |_| {}).unwrap();
    assert!(folder.join("tokenizer.json").is_file());

    // Another program downloaded it, and nothing here says which files it has: the hub is asked once.
    fs::remove_dir_all(cache.path().join("models--owner--name/.mlx-models")).unwrap();
    let listed = |request: &hub_server::Request| request.path.starts_with("/api/models");
    server.requests();
    for asked in [1, 0] {
        hub.fetch(&id(), &commit(), &mut |_| {}).unwrap();
        assert_eq!(server.requests().iter().filter(|request| listed(request)).count(), asked);
    }
    // Without the hub it serves as it is, and where the hub has it no longer.
    fs::remove_dir_all(cache.path().join("models--owner--name/.mlx-models")).unwrap();
    assert_eq!(offline.fetch(&id(), &commit(), &mut |_| {}).unwrap().folder, folder);
    let gone = Server::start(&[], |_, _| Some(Reply::status(404, "RepoNotFound")));
    let gone = Hub { endpoint: gone.endpoint.clone(), ..self::hub(&server, &cache) };
    let mut said = Vec::new();
    let found = gone.fetch(&id(), &commit(), &mut |event| {
        if let Event::FromCache { problem } = event {
            said.push(problem.to_owned());
        }
    });
    assert_eq!(found.unwrap().folder, folder);
    assert!(said.len() == 1 && said[0].contains("the hub has no model"), "{said:?}");
}

#[test]
fn a_body_that_goes_on_is_cut_off() {
    // Behind the length that the hub says.
    let fault = once_for_tensors(|right| Reply { is_endless: true, ..right.clone() });
    let (server, cache) = (Server::start(&files(), fault), tempfile::tempdir().unwrap());
    let mut most = 0;
    let error = hub(&server, &cache).fetch(&id(), &main(), &mut |event| {
        if let Event::Bytes { done, total, .. } = event {
            assert!(done <= total, "{done} of {total}");
            most = most.max(done);
        }
    });
    assert!(matches!(error, Err(HubError::TooLong { expected: 3_000_000, .. })), "{error:?}");
    assert!(!partial(&cache).exists() && server.sent() < hub_server::ENDLESS / 2, "{} sent", server.sent());
    fetch(&hub(&server, &cache)).unwrap();

    // The list of files.
    let fault = |request: &hub_server::Request, right: &Reply| {
        let body = br#"{"sha": ""#.to_vec();
        request.path.starts_with("/api/models").then(|| Reply { is_endless: true, body, ..right.clone() })
    };
    let (server, cache) = (Server::start(&files(), fault), tempfile::tempdir().unwrap());
    let error = fetch(&hub(&server, &cache)).unwrap_err();
    assert!(matches!(&error, HubError::Answer { problem, .. } if problem.contains("more than")), "{error}");
    assert!(server.sent() < hub_server::ENDLESS / 2, "{} sent", server.sent());
    assert_eq!(server.requests().len(), 1, "it is not asked again");
}

/// The hub says this of each file.
fn with_header(name: &'static str, value: &'static str) -> Result<Snapshot, HubError> {
    let fault = move |request: &hub_server::Request, right: &Reply| {
        let is_it = request.method == "HEAD";
        let mut reply = right.clone();
        reply.headers.retain(|(known, _)| known != name);
        reply.headers.push((name.to_owned(), value.to_owned()));
        is_it.then_some(reply)
    };
    let (server, cache) = (Server::start(&files(), fault), tempfile::tempdir().unwrap());
    fetch(&hub(&server, &cache))
}

#[test]
fn what_the_hub_says_of_a_file_is_bounded() {
    // A name that no file system takes, and one that leads elsewhere.
    let long: &'static str = "a".repeat(300).leak();
    for etag in [long, "", "..", "a/b"] {
        let error = with_header("X-Linked-Etag", etag).unwrap_err();
        assert!(matches!(&error, HubError::Answer { problem, .. } if problem.contains("ETag")), "{error}");
    }
    for size in ["-1", "", "many", "1e3"] {
        let error = with_header("X-Linked-Size", size).unwrap_err();
        assert!(matches!(&error, HubError::Answer { problem, .. } if problem.contains("size")), "{error}");
    }
    // No small file is as large as that.
    let error = with_header("X-Linked-Size", "18446744073709551615").unwrap_err();
    assert!(matches!(&error, HubError::TooLarge { file, .. } if file == "config.json"), "{error}");
}

#[test]
fn sizes_that_together_are_more_than_a_number_holds() {
    let fault = |request: &hub_server::Request, right: &Reply| {
        let mut reply = right.clone();
        let size = reply.headers.iter_mut().find(|(name, _)| name == "X-Linked-Size")?;
        size.1 = u64::MAX.to_string();
        (request.method == "HEAD").then_some(reply)
    };
    let mut files = files();
    files.push(("model-2.safetensors", tensors()));
    let (server, cache) = (Server::start(&files, fault), tempfile::tempdir().unwrap());
    let error = fetch(&hub(&server, &cache)).unwrap_err();
    assert!(matches!(error, HubError::Broken { total: Some(u64::MAX), .. }), "{error}");
}

#[test]
fn names_of_files_stay_in_the_folder() {
    let listing = |names: &[String]| {
        let names: Vec<String> = names.iter().map(|name| format!(r#"{{"rfilename": {name}}}"#)).collect();
        let body = format!(r#"{{"sha": "{COMMIT}", "siblings": [{}]}}"#, names.join(", "));
        refused(Reply { status: 200, body: body.into(), ..Reply::default() })
    };
    let long = format!("{}.json", "a".repeat(300));
    for name in ["../x.json", "/etc/x.json", "a/../../x.json", "a\\u0000.json", "\\u001b[2J.json", &long] {
        let error = listing(&[format!("\"{name}\"")]);
        assert!(
            matches!(&error, HubError::Answer { problem, .. } if problem.contains("a file named")),
            "{error}"
        );
        assert!(error.to_string().len() < 400 && !error.to_string().contains(char::is_control), "{error}");
    }
    let many: Vec<String> = (0..10_001).map(|number| format!("\"{number}.json\"")).collect();
    let error = listing(&many);
    assert!(error.to_string().contains("10001 files"), "{error}");
}

#[test]
fn a_file_that_is_named_twice_comes_once() {
    let fault = |request: &hub_server::Request, right: &Reply| {
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
fn revisions_lead_nowhere_else() {
    for right in ["main", "v1.0", COMMIT, "a/branch", "refs/pr/1", "feature_x-2"] {
        assert_eq!(right.parse::<Revision>().unwrap().to_string(), right);
    }
    let long = "a".repeat(256);
    for wrong in [
        "", "..", ".", "../../x", "a/../b", "/etc", "a/", "a//b", "a..b", ".hidden", "a b", "a\0", "\x1b[2J",
        "a\\b", &long,
    ] {
        assert!(wrong.parse::<Revision>().is_err(), "{wrong:?}");
    }
}

#[test]
fn redirects_stay_on_the_web() {
    let from = "https://hub.example/a/b?c";
    for (place, next) in [
        ("/x", "https://hub.example/x"),
        ("https://far.example/y", "https://far.example/y"),
        ("//far.example/y", "https://far.example/y"),
        ("HTTPS://far.example/y", "HTTPS://far.example/y"),
    ] {
        assert_eq!(redirected(from, place).unwrap(), next);
    }
    assert_eq!(redirected("http://hub.example/", "http://far.example").unwrap(), "http://far.example");
    for place in ["file:///etc/passwd", "ftp://far.example/x", "far", "", "javascript:x", "data:,x"] {
        assert!(redirected(from, place).unwrap_err().contains("no address of the web"), "{place}");
    }
    assert!(redirected(from, "http://far.example").unwrap_err().contains("not encrypted"));

    // It is an answer, and no reason to ask again.
    let fault = |request: &hub_server::Request, right: &Reply| {
        let headers = vec![("Location".to_owned(), "file:///etc/passwd".to_owned())];
        request.path.starts_with("/api/models").then(|| Reply { status: 302, headers, ..right.clone() })
    };
    let (server, cache) = (Server::start(&files(), fault), tempfile::tempdir().unwrap());
    let error = fetch(&hub(&server, &cache)).unwrap_err();
    assert!(
        matches!(&error, HubError::Answer { problem, .. } if problem.contains("file:///etc/passwd")),
        "{error}"
    );
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn the_home_folder_is_known_or_an_error() {
    let at = |path: &str, home: Option<&str>| at_home("HF_HOME", PathBuf::from(path), home.map(Path::new));
    assert_eq!(at("~/x", Some("/h")).unwrap(), Path::new("/h/x"));
    assert_eq!(at("~", Some("/h")).unwrap(), Path::new("/h"));
    for path in ["/x", "x", "x/~"] {
        assert_eq!(at(path, None).unwrap(), Path::new(path));
    }
    for home in [None, Some("")] {
        let error = at("~/x", home).unwrap_err().to_string();
        assert!(error.contains("HOME is not set"), "{error}");
    }
    assert!(at("~someone/x", Some("/h")).unwrap_err().to_string().contains("write the home folder out"));
}

#[test]
fn a_token_is_read_within_limits() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    assert!(token_in(&file).unwrap().is_none());
    fs::write(&file, "secret\n").unwrap();
    assert_eq!(token_in(&file).unwrap().unwrap().0, "secret\n");
    fs::write(&file, vec![b'a'; 100_000]).unwrap();
    assert!(matches!(token_in(&file).unwrap_err(), HubError::Read { .. }));
}

#[test]
fn a_connection_for_each_byte_ends() {
    let mut times = 0;
    let fault = move |request: &hub_server::Request, right: &Reply| {
        let is_it = request.method == "GET" && request.path == "/far/model.safetensors";
        times += u32::from(is_it);
        assert!(times < 100);
        is_it.then(|| Reply { cut: Some(1), ..right.clone() })
    };
    let (server, cache) = (Server::start(&files(), fault), tempfile::tempdir().unwrap());
    let error = fetch(&hub(&server, &cache)).unwrap_err();
    assert!(matches!(error, HubError::Broken { done: 5, .. }), "{error}");
}

#[test]
fn a_revision_that_is_not_there() {
    let (server, cache) = (Server::start(&files(), no_fault), tempfile::tempdir().unwrap());
    let error = hub(&server, &cache).fetch(&id(), &"v9".parse().unwrap(), &mut |_| {}).unwrap_err();
    assert!(matches!(&error, HubError::NoRevision { revision, .. } if revision == "v9"), "{error}");
}

#[test]
fn a_token_goes_to_the_hub_and_not_beyond() {
    let elsewhere = Server::start(&files(), no_fault);
    let far = elsewhere.endpoint.clone();
    let fault = move |_: &hub_server::Request, right: &Reply| {
        let mut reply = right.clone();
        let place =
            reply.headers.iter_mut().find(|(name, value)| name == "Location" && value.starts_with("http"));
        place?.1 = format!("{far}/far/model.safetensors");
        Some(reply)
    };
    let (server, cache) = (Server::start(&files(), fault), tempfile::tempdir().unwrap());
    let token = Token { header: "Bearer secret".parse().unwrap(), from: "HF_TOKEN".to_owned() };
    let hub = Hub { token: Some(token), ..hub(&server, &cache) };
    fetch(&hub).unwrap();
    let there = |request: &hub_server::Request| {
        request.headers.get("authorization").is_some_and(|token| token == "Bearer secret")
    };
    let asked = server.requests();
    assert!(
        asked.iter().filter(|request| !request.path.starts_with("/api/resolve-cache")).all(there),
        "{asked:?}"
    );
    let beyond = elsewhere.requests();
    assert!(beyond.len() == 1 && !beyond.iter().any(there), "{beyond:?}");
}

#[test]
fn a_token_that_is_not_accepted_is_not_shown() {
    let fault = |_: &hub_server::Request, _: &Reply| Some(Reply::status(401, ""));
    let (server, cache) = (Server::start(&files(), fault), tempfile::tempdir().unwrap());
    let token = Token { header: "Bearer secret".parse().unwrap(), from: "HF_TOKEN".to_owned() };
    let error = fetch(&Hub { token: Some(token), ..hub(&server, &cache) }).unwrap_err();
    assert!(matches!(error, HubError::Token { status: 401, .. }), "{error}");
    assert!(!format!("{error} {error:?}").contains("secret"));
}

#[test]
fn without_the_hub_the_cache_serves() {
    let (server, cache) = (Server::start(&files(), no_fault), tempfile::tempdir().unwrap());
    let here = fetch(&hub(&server, &cache)).unwrap();
    server.requests();
    let offline = Hub { offline: true, ..hub(&server, &cache) };
    assert_eq!(fetch(&offline).unwrap().folder, here.folder);
    assert_eq!(server.requests().len(), 0);

    // A port that nobody listens at.
    let unreachable = || Hub { endpoint: "http://127.0.0.1:9".to_owned(), ..hub(&server, &cache) };
    let said = Mutex::new(false);
    let found = unreachable().fetch(&id(), &main(), &mut |event| {
        *said.lock().unwrap() |= matches!(event, Event::FromCache { .. });
    });
    assert_eq!(found.unwrap().folder, here.folder);
    assert!(said.into_inner().unwrap());

    for missing in ["model.safetensors", "config.json"] {
        fs::remove_file(here.folder.join(missing)).unwrap();
        let error = fetch(&offline).unwrap_err();
        assert!(matches!(&error, HubError::Offline { missing: found, .. } if found == missing), "{error}");
    }
    assert!(matches!(fetch(&unreachable()).unwrap_err(), HubError::Unreachable { .. }));
    // Of a snapshot that another program downloaded, the index names the weights.
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
fn a_full_disk_is_told_from_a_broken_connection() {
    struct Full;

    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    let mut arrived = 0;
    let poured = pour(&mut &tensors()[..], &mut Full, u64::MAX, &mut |bytes| arrived += bytes.len());
    assert!(matches!(poured, Err(Poured::Writing(e)) if e.kind() == io::ErrorKind::StorageFull));
    assert_eq!(arrived, 0);
}

#[test]
#[cfg(unix)]
fn a_part_that_is_no_file_is_not_written_to() {
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
fn a_blob_of_another_length_comes_again() {
    let (server, cache) = (Server::start(&files(), no_fault), tempfile::tempdir().unwrap());
    let blob = partial(&cache).with_extension("");
    fs::create_dir_all(blob.parent().unwrap()).unwrap();
    fs::write(&blob, &tensors()[..1000]).unwrap();
    let folder = fetch(&hub(&server, &cache)).unwrap().folder;
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), tensors());
}

#[test]
fn files_of_one_name_have_one_size() {
    let fault = |request: &hub_server::Request, right: &Reply| {
        let mut reply = right.clone();
        let size = reply.headers.iter_mut().find(|(name, _)| name == "X-Linked-Size")?;
        size.1 = "5".to_owned();
        (request.method == "HEAD" && request.path.ends_with("model-2.safetensors")).then_some(reply)
    };
    let mut files = files();
    files.push(("model-2.safetensors", tensors()));
    let (server, cache) = (Server::start(&files, fault), tempfile::tempdir().unwrap());
    let error = fetch(&hub(&server, &cache)).unwrap_err();
    assert!(error.to_string().contains("the ETag of model-2.safetensors, which has 5"), "{error}");
    assert_eq!(blobs(&cache).len(), 1, "only the config");
}

#[test]
fn a_file_of_a_length_that_nobody_says_is_bounded() {
    let unsized_file = |request: &hub_server::Request, right: &Reply| {
        let mut reply = right.clone();
        reply.headers.retain(|(name, _)| name != "X-Linked-Size");
        (request.method == "HEAD").then_some(reply)
    };
    let (server, cache) = (Server::start(&files(), unsized_file), tempfile::tempdir().unwrap());
    let bounded = Hub { largest_unsized: 1_000_000, ..hub(&server, &cache) };
    let error = fetch(&bounded).unwrap_err();
    assert!(matches!(&error, HubError::Endless { limit: 1_000_000, .. }), "{error}");
    assert!(!partial(&cache).exists());
    // Below the limit it comes, and never more than all of it.
    let snapshot = hub(&server, &cache).fetch(&id(), &main(), &mut |event| {
        if let Event::Bytes { done, total, .. } = event {
            assert!(done <= total, "{done} of {total}");
        }
    });
    assert_eq!(fs::read(snapshot.unwrap().folder.join("model.safetensors")).unwrap(), tensors());
}

#[test]
fn parts_that_nobody_goes_on_with_are_removed() {
    let (server, cache) = (Server::start(&files(), no_fault), tempfile::tempdir().unwrap());
    let folder = partial(&cache).parent().unwrap().to_path_buf();
    fs::create_dir_all(&folder).unwrap();
    let part = |name: &str, age: Duration| {
        let file = File::create_new(folder.join(name)).unwrap();
        file.set_modified(std::time::SystemTime::now() - age).unwrap();
        file
    };
    part("old.incomplete", STALE * 2);
    part("new.incomplete", STALE / 2);
    part("old", STALE * 2);
    let locked = part("locked.incomplete", STALE * 2);
    locked.lock().unwrap();
    fetch(&hub(&server, &cache)).unwrap();
    let left: Vec<String> = blobs(&cache).into_iter().filter(|name| name.len() < 40).collect();
    assert_eq!(left, ["locked.incomplete", "new.incomplete", "old"]);
}

#[test]
fn a_cache_that_is_only_read_serves() {
    let (server, cache) = (Server::start(&files(), no_fault), tempfile::tempdir().unwrap());
    let hub = hub(&server, &cache);
    fetch(&hub).unwrap();
    // As another program leaves it, and no list can be written.
    let model = cache.path().join("models--owner--name");
    fs::remove_dir_all(model.join(".mlx-models")).unwrap();
    fs::write(model.join(".mlx-models"), "").unwrap();
    let reference = model.join("refs/main");
    fs::write(&reference, format!("{COMMIT}\n")).unwrap();
    fetch(&hub).unwrap();
    assert_eq!(fs::read_to_string(&reference).unwrap(), format!("{COMMIT}\n"), "it is not written again");
    hub.fetch(&id(), &commit(), &mut |_| {}).unwrap();
}

#[test]
fn hashes_in_capitals_are_the_same_ones() {
    let capitals = |request: &hub_server::Request, right: &Reply| {
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
    let snapshot = hub(&server, &cache).fetch(&id(), &revision, &mut |_| {}).unwrap();
    assert_eq!((&*snapshot.commit, snapshot.folder.ends_with(COMMIT)), (COMMIT, true));
    assert!(blobs(&cache).contains(&sha256(&tensors())));
}

#[test]
fn a_branch_whose_place_is_taken_is_refused_before_anything_comes() {
    let (server, cache) = (Server::start(&files(), no_fault), tempfile::tempdir().unwrap());
    let refs = cache.path().join("models--owner--name/refs");
    let refused = || {
        let branch: Revision = "a/branch".parse().unwrap();
        let error = hub(&server, &cache).fetch(&id(), &branch, &mut |_| {}).unwrap_err();
        assert!(error.to_string().contains("no place in the cache"), "{error}");
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
fn two_runs_at_once_download_once() {
    let slow = |_: &hub_server::Request, _: &Reply| {
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
