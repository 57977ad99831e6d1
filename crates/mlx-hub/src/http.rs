//! Requests to the Hub: redirects, repeated attempts, and what the status of an answer means.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mlx_files::LARGEST_CONFIG;
use ureq::http::{HeaderMap, Method, Request, Response};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use crate::error::HubError;
use crate::events::{Caller, Event};
use crate::names::{HubId, Revision, escaped, origin, redirected, shortened};
use crate::settings::{Settings, Timeouts, Token};

/// How often a request is made that fails without having brought anything.
pub(crate) const ATTEMPTS: u32 = 5;

/// Redirects that are followed, one after the other.
const REDIRECTS: usize = 5;

/// The header with the name of a file's contents, where these are on another server.
pub(crate) const LINKED_ETAG: &str = "x-linked-etag";

/// Why an attempt failed.
#[derive(Debug)]
pub(crate) enum Failed {
    /// Another attempt may succeed.
    ForNow(String),
    /// Every attempt would fail.
    ForGood(HubError),
}

impl From<HubError> for Failed {
    fn from(error: HubError) -> Self {
        Self::ForGood(error)
    }
}

/// Makes requests to one hub.
pub(crate) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<Token>,
    token_places: String,
    timeouts: Timeouts,
}

impl Client {
    pub(crate) fn new(settings: &Settings) -> Result<Self, HubError> {
        Ok(Self {
            agent: agent(settings)?,
            endpoint: settings.endpoint.clone(),
            token: settings.token.clone(),
            token_places: settings.token_places.clone(),
            timeouts: settings.timeouts,
        })
    }

    /// The list of the files that a revision of a model has.
    pub(crate) fn get_listing(&self, id: &HubId, revision: &Revision) -> Result<Response<Body>, Failed> {
        let revision = revision.as_str();
        let url = format!("{}/api/models/{id}/revision/{}", self.endpoint, escaped(revision, false));
        let answer = self.send(Method::GET, url, 0, Some(self.timeouts.listing))?;
        self.check_status(&answer, id, revision, None)?;
        Ok(answer)
    }

    /// The headers of a file.
    pub(crate) fn head_file(&self, id: &HubId, commit: &str, file: &str) -> Result<Response<Body>, Failed> {
        let answer = self.send(Method::HEAD, self.url(id, commit, file), 0, None)?;
        self.check_status(&answer, id, commit, Some(file))?;
        Ok(answer)
    }

    /// The contents of a file after its first `from` bytes, or `None` where the Hub gives only the whole file.
    pub(crate) fn get_file(
        &self,
        id: &HubId,
        commit: &str,
        file: &str,
        from: u64,
    ) -> Result<Option<Response<Body>>, Failed> {
        let answer = self.send(Method::GET, self.url(id, commit, file), from, None)?;
        if from > 0 && (answer.status() == 416 || answer.status() == 200) {
            return Ok(None);
        }
        self.check_status(&answer, id, commit, Some(file))?;
        let range = header(answer.headers(), "content-range");
        let is_another = range.is_some_and(|range| !range.starts_with(&format!("bytes {from}-")));
        Ok(Some(answer).filter(|_| from == 0 || !is_another))
    }

    fn url(&self, id: &HubId, commit: &str, file: &str) -> String {
        format!("{}/{id}/resolve/{commit}/{}", self.endpoint, escaped(file, true))
    }

    /// The answer to a request for what comes after `from` bytes. All of it arrives `within` this time, if one is given.
    ///
    /// The token goes to the Hub and not to the servers that the Hub redirects to. Of a file whose contents are on
    /// another server, the Hub's own answer says its name and size.
    fn send(
        &self,
        method: Method,
        mut url: String,
        from: u64,
        within: Option<Duration>,
    ) -> Result<Response<Body>, Failed> {
        let for_now = |problem: String| Failed::ForNow(shortened(&problem));
        let asked = url.clone();
        let wrong = |problem: String| HubError::Answer { what: asked.clone(), problem };
        for _ in 0..=REDIRECTS {
            let mut request =
                Request::builder().method(&method).uri(&url).header("Accept-Encoding", "identity");
            if from > 0 {
                request = request.header("Range", format!("bytes={from}-"));
            }
            if let Some(token) = self.token.as_ref().filter(|_| origin(&url) == origin(&self.endpoint)) {
                request = request.header("Authorization", token.header.clone());
            }
            let request = request.body(()).map_err(|e| wrong(e.to_string()))?;
            let request = self.agent.configure_request(request).timeout_global(within).build();
            let answer = self.agent.run(request).map_err(|e| for_now(e.to_string()))?;
            let is_known = method == Method::HEAD && answer.headers().contains_key(LINKED_ETAG);
            let place = header(answer.headers(), "location")
                .filter(|_| answer.status().is_redirection() && !is_known);
            let Some(place) = place else { return Ok(answer) };
            url = redirected(&url, place).map_err(wrong)?;
        }
        Err(for_now("it redirects without end".to_owned()))
    }

    /// Makes an attempt until one succeeds, one fails for good, or `attempts` have failed.
    pub(crate) fn retry<T>(
        &self,
        attempts: u32,
        caller: &mut Caller<'_>,
        mut attempt: impl FnMut() -> Result<T, Failed>,
    ) -> Result<T, HubError> {
        let mut failures = 0;
        loop {
            caller.check()?;
            let problem = match attempt() {
                Ok(done) => return Ok(done),
                Err(Failed::ForGood(error)) => return Err(error),
                Err(Failed::ForNow(problem)) => problem,
            };
            failures += 1;
            if failures >= attempts {
                return Err(HubError::Unreachable { endpoint: self.endpoint.clone(), problem });
            }
            caller.tell(Event::Retrying { problem: &problem });
            self.pause(failures, caller)?;
        }
    }

    /// Waits after this many failures in a row.
    pub(crate) fn pause(&self, failures: u32, caller: &Caller<'_>) -> Result<(), HubError> {
        caller.pause(self.timeouts.first_pause * (1 << (failures - 1)))
    }

    /// Fails where the status of an answer says that something is wrong.
    fn check_status(
        &self,
        answer: &Response<Body>,
        id: &HubId,
        revision: &str,
        file: Option<&str>,
    ) -> Result<(), Failed> {
        let status = answer.status();
        if status.is_success() || status.is_redirection() {
            return Ok(());
        }
        let headers = answer.headers();
        let code = header(headers, "x-error-code").unwrap_or_default();
        let (id, token_places) = (id.clone(), self.token_places.clone());
        let error = match (status.as_u16(), code) {
            (429 | 500..=599, _) => {
                return Err(Failed::ForNow(format!("the Hub answers with status {status}")));
            }
            (401 | 403, "GatedRepo") => HubError::Gated { id, endpoint: self.endpoint.clone(), token_places },
            (404, "RevisionNotFound") => HubError::NoRevision { id, revision: revision.to_owned() },
            (404, "EntryNotFound") => {
                HubError::NoFile { id, file: file.unwrap_or("with this name").to_owned() }
            }
            (401 | 404, "RepoNotFound") | (404, _) => HubError::NoModel { id, token_places },
            (401 | 403, _) => match &self.token {
                Some(token) => HubError::Token { found_in: token.found_in.clone(), status: status.as_u16() },
                None => HubError::NoModel { id, token_places },
            },
            (status, _) => {
                let message = header(headers, "x-error-message");
                let message = message.map(|message| format!(": {}", shortened(message))).unwrap_or_default();
                HubError::Status { what: format!("the model {id}"), status, message }
            }
        };
        Err(error.into())
    }
}

/// A header that is text.
pub(crate) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn agent(settings: &Settings) -> Result<Agent, HubError> {
    let tls = match &settings.certificates {
        Some(file) => TlsConfig::builder().root_certs(root_certificates(file)?),
        None => TlsConfig::builder(),
    };
    let silence = Some(settings.timeouts.silence);
    let config = Agent::config_builder()
        .tls_config(tls.build())
        .http_status_as_error(false)
        .user_agent(&settings.user_agent)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .timeout_connect(silence)
        .timeout_recv_response(silence)
        .timeout_per_read(silence);
    Ok(config.build().into())
}

/// The certificates in a PEM file.
fn root_certificates(file: &Path) -> Result<RootCerts, HubError> {
    let wrong =
        |problem: String| HubError::Setting { name: "certificates (SSL_CERT_FILE)".to_owned(), problem };
    let pem = mlx_files::read(file, LARGEST_CONFIG).map_err(|e| wrong(format!("{}: {e}", file.display())))?;
    let mut trusted = Vec::new();
    for item in parse_pem(&pem) {
        if let PemItem::Certificate(certificate) = item.map_err(|e| wrong(e.to_string()))? {
            trusted.push(certificate);
        }
    }
    Ok(RootCerts::Specific(Arc::new(trusted)))
}
