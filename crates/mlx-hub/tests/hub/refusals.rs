//! What the Hub refuses, and what it says to users.

use mlx_hub::Token;

use super::*;

#[test]
fn refusals_say_what_to_do() {
    let error = refused(Reply::status(401, "RepoNotFound"));
    assert!(matches!(error, HubError::NoModel { .. }), "{error}");
    assert!(
        error.to_string().contains("a private model needs a token, in HF_TOKEN or in here/token"),
        "{error}"
    );
    let error = refused(Reply::status(404, "RepoNotFound"));
    assert!(matches!(error, HubError::NoModel { .. }), "{error}");
    for status in [401, 403] {
        let error = refused(Reply::status(status, "GatedRepo"));
        assert!(matches!(error, HubError::Gated { .. }), "{error}");
        assert!(error.to_string().contains("accept its conditions at"), "{error}");
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
fn a_model_without_a_checkpoint_is_refused_before_the_download() {
    let files = [("config.json", b"{}".to_vec()), ("pytorch_model.bin", vec![0; 9])];
    let (server, cache) = (Server::start(&files, no_fault), tempfile::tempdir().unwrap());
    let error = fetch(&hub(&server, &cache)).unwrap_err();
    assert!(matches!(error, HubError::NoCheckpoint { missing: "model*.safetensors", .. }), "{error}");
    assert_eq!(server.requests().len(), 1);
    for (names, needle) in [
        (&["config.json", "pytorch_model.bin"][..], "files of PyTorch"),
        (&["README.md", "name-q4.gguf"], "only GGUF files"),
        (&["adapter_config.json", "adapter_model.safetensors"], "their base model as the model"),
        (&["adapter_config.json", "adapter_model.bin", "config.json"], "their base model as the model"),
        (&["config.json", "tf_model.h5"], "files of other formats"),
    ] {
        let files: Vec<(&str, Vec<u8>)> = names.iter().map(|name| (*name, b"{}".to_vec())).collect();
        let (server, cache) = (Server::start(&files, no_fault), tempfile::tempdir().unwrap());
        let error = fetch(&hub(&server, &cache)).unwrap_err();
        assert!(error.to_string().contains(needle), "{error}");
    }
}

#[test]
fn an_unsupported_model_is_refused_before_its_weights() {
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
fn an_unknown_revision_is_named() {
    let (server, cache) = (Server::start(&files(), no_fault), tempfile::tempdir().unwrap());
    let error = fetch_revision(&hub(&server, &cache), "v9").unwrap_err();
    assert!(matches!(&error, HubError::NoRevision { revision, .. } if revision == "v9"), "{error}");
}

#[test]
fn a_token_goes_to_the_hub_only() {
    let elsewhere = Server::start(&files(), no_fault);
    let far = elsewhere.endpoint.clone();
    let fault = move |_: &Request, right: &Reply| {
        let mut reply = right.clone();
        let place =
            reply.headers.iter_mut().find(|(name, value)| name == "Location" && value.starts_with("http"));
        place?.1 = format!("{far}/far/model.safetensors");
        Some(reply)
    };
    let (server, cache) = (Server::start(&files(), fault), tempfile::tempdir().unwrap());
    let token = Token::new("secret", "HF_TOKEN").unwrap();
    let hub = hub_with(&server, &cache, |settings| settings.token = Some(token));
    fetch(&hub).unwrap();
    let there = |request: &Request| {
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
fn a_refused_token_is_not_shown() {
    let fault = |_: &Request, _: &Reply| Some(Reply::status(401, ""));
    let (server, cache) = (Server::start(&files(), fault), tempfile::tempdir().unwrap());
    let token = Token::new("secret", "HF_TOKEN").unwrap();
    let error = fetch(&hub_with(&server, &cache, |settings| settings.token = Some(token))).unwrap_err();
    assert!(matches!(error, HubError::Token { status: 401, .. }), "{error}");
    assert!(!format!("{error} {error:?}").contains("secret"));
}

#[test]
fn a_file_that_is_gone_is_named() {
    let fault = |request: &Request, _: &Reply| {
        (request.method == "HEAD" && request.path.ends_with("tokenizer.json"))
            .then(|| Reply::status(404, "EntryNotFound"))
    };
    let (server, cache) = (Server::start(&files(), fault), tempfile::tempdir().unwrap());
    let error = fetch(&hub(&server, &cache)).unwrap_err();
    assert!(matches!(&error, HubError::NoFile { file, .. } if file == "tokenizer.json"), "{error}");
}

#[test]
fn settings_that_cannot_be_used_are_named() {
    let error = |settings: Settings| Hub::new(settings).err().unwrap().to_string();
    let cache = tempfile::tempdir().unwrap();
    let settings = || Settings::new(cache.path());
    let found = error(Settings { endpoint: "ftp://hub.example".to_owned(), ..settings() });
    assert!(found.starts_with("endpoint: ") && found.ends_with("not an http or https address"), "{found}");
    let found = error(Settings { certificates: Some(cache.path().join("none.pem")), ..settings() });
    assert!(found.starts_with("certificates (SSL_CERT_FILE): ") && found.contains("none.pem"), "{found}");
    assert!(matches!(Token::new("a\nb", "here"), Err(HubError::Setting { name, .. }) if name == "here"));
    assert!(!format!("{:?}", Token::new("secret", "here")).contains("secret"));
}
