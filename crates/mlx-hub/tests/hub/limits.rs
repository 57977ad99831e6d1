//! Servers that send too much, too slowly, or answers that are not valid.

use super::*;

#[test]
fn an_endless_body_is_cut_off() {
    // A file that goes on after the announced length.
    let fault = once_for_tensors(|right| Reply { is_endless: true, ..right.clone() });
    let (server, cache) = (Server::start(&files(), fault), tempfile::tempdir().unwrap());
    let mut most = 0;
    let error = hub(&server, &cache)
        .download(&id())
        .on_event(|event| {
            if let Event::Progress { done, total, .. } = event {
                assert!(done <= total, "{done} of {total}");
                most = most.max(done);
            }
        })
        .run();
    assert!(matches!(error, Err(HubError::TooLong { expected: 3_000_000, .. })), "{error:?}");
    assert!(!partial(&cache).exists() && server.sent() < server::ENDLESS / 2, "{} sent", server.sent());
    fetch(&hub(&server, &cache)).unwrap();

    // A list of files that never ends.
    let fault = |request: &Request, right: &Reply| {
        let body = br#"{"sha": ""#.to_vec();
        request.path.starts_with("/api/models").then(|| Reply { is_endless: true, body, ..right.clone() })
    };
    let (server, cache) = (Server::start(&files(), fault), tempfile::tempdir().unwrap());
    let error = fetch(&hub(&server, &cache)).unwrap_err();
    assert!(matches!(&error, HubError::Answer { problem, .. } if problem.contains("more than")), "{error}");
    assert!(server.sent() < server::ENDLESS / 2, "{} sent", server.sent());
    assert_eq!(server.requests().len(), 1, "it is not asked again");
}

/// A download from a hub that sends this header with each file.
fn with_header(name: &'static str, value: &'static str) -> Result<Snapshot, HubError> {
    let fault = move |request: &Request, right: &Reply| {
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
fn headers_of_a_file_are_checked() {
    // A name that no file system accepts, and names that lead out of the folder.
    let long: &'static str = "a".repeat(300).leak();
    for etag in [long, "", "..", "a/b"] {
        let error = with_header("X-Linked-Etag", etag).unwrap_err();
        assert!(matches!(&error, HubError::Answer { problem, .. } if problem.contains("ETag")), "{error}");
    }
    for size in ["-1", "", "many", "1e3"] {
        let error = with_header("X-Linked-Size", size).unwrap_err();
        assert!(matches!(&error, HubError::Answer { problem, .. } if problem.contains("size")), "{error}");
    }
    // Only weights may be this large.
    let error = with_header("X-Linked-Size", "18446744073709551615").unwrap_err();
    assert!(matches!(&error, HubError::TooLarge { file, .. } if file == "config.json"), "{error}");
}

#[test]
fn sizes_do_not_overflow() {
    let fault = |request: &Request, right: &Reply| {
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
fn names_of_files_stay_in_their_folder() {
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
fn redirects_stay_on_the_web() {
    // The redirect is refused, and the request is not repeated.
    let fault = |request: &Request, right: &Reply| {
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
fn a_server_that_sends_one_byte_per_connection_is_given_up() {
    let mut times = 0;
    let fault = move |request: &Request, right: &Reply| {
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
fn files_with_the_same_contents_have_one_size() {
    let fault = |request: &Request, right: &Reply| {
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
fn a_file_without_an_announced_length_has_a_limit() {
    let unsized_file = |request: &Request, right: &Reply| {
        let mut reply = right.clone();
        reply.headers.retain(|(name, _)| name != "X-Linked-Size");
        (request.method == "HEAD").then_some(reply)
    };
    let (server, cache) = (Server::start(&files(), unsized_file), tempfile::tempdir().unwrap());
    let bounded = hub_with(&server, &cache, |settings| settings.largest_unannounced = 1_000_000);
    let error = fetch(&bounded).unwrap_err();
    assert!(matches!(&error, HubError::Endless { limit: 1_000_000, .. }), "{error}");
    assert!(!partial(&cache).exists());
    // A file below the limit is downloaded, and the progress never exceeds its total.
    let snapshot = hub(&server, &cache)
        .download(&id())
        .on_event(|event| {
            if let Event::Progress { done, total, .. } = event {
                assert!(done <= total, "{done} of {total}");
            }
        })
        .run();
    assert_eq!(fs::read(snapshot.unwrap().folder.join("model.safetensors")).unwrap(), tensors());
}
