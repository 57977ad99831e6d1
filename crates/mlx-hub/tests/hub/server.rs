//! A hub for tests: a server on this machine that has one model and can fail in several ways.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use sha2::{Digest, Sha256};

/// The commit that the branch `main` of the model stands for.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A request that arrived.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    /// Their names are in lower case.
    pub(crate) headers: BTreeMap<String, String>,
}

/// What the server answers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// The connection ends after this many bytes of the body.
    pub(crate) cut: Option<usize>,
    /// The connection stays open and silent for this long before it ends.
    pub(crate) stall: Duration,
    /// The body has no announced length, and goes on until the client has left, or for [`ENDLESS`] bytes.
    pub(crate) is_endless: bool,
}

/// More bytes than a client should read. A test ends even if the client reads them all.
pub(crate) const ENDLESS: u64 = 64 << 20;

impl Reply {
    pub(crate) fn status(status: u16, code: &str) -> Self {
        Self { status, headers: vec![("X-Error-Code".to_owned(), code.to_owned())], ..Self::default() }
    }
}

/// The server. It ends with the test.
pub(crate) struct Server {
    pub(crate) endpoint: String,
    requests: Arc<Mutex<Vec<Request>>>,
    /// Bytes of endless bodies that were sent.
    sent: Arc<AtomicU64>,
}

impl Server {
    /// A hub with a model `owner/name` of these files. `fault` may replace an answer.
    pub(crate) fn start(
        files: &[(&str, Vec<u8>)],
        mut fault: impl FnMut(&Request, &Reply) -> Option<Reply> + Send + 'static,
    ) -> Self {
        let files: BTreeMap<String, Vec<u8>> =
            files.iter().map(|(name, contents)| ((*name).to_owned(), contents.clone())).collect();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let requests: Arc<Mutex<Vec<Request>>> = Arc::default();
        let seen = Arc::clone(&requests);
        let sent = Arc::<AtomicU64>::default();
        let counted = Arc::clone(&sent);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let Some(request) = read(&stream) else { continue };
                seen.lock().unwrap().push(request.clone());
                let reply = answer(&files, &request);
                let reply = fault(&request, &reply).unwrap_or(reply);
                let counted = Arc::clone(&counted);
                thread::spawn(move || {
                    // The client may have left.
                    let _ = write(&mut stream, &request, &reply, &counted);
                    thread::sleep(reply.stall);
                });
            }
        });
        Self { endpoint, requests, sent }
    }

    /// All requests since the last call.
    pub(crate) fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }

    /// How many bytes of endless bodies were sent, including those still on their way.
    #[allow(dead_code, reason = "not every test program uses it")]
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line.ok()?;
        let Some((name, value)) = line.split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    Some(Request { method, path, headers })
}

fn write(stream: &mut TcpStream, request: &Request, reply: &Reply, sent: &AtomicU64) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {} Reply\r\nConnection: close\r\n", reply.status);
    if reply.is_endless {
        head += "Transfer-Encoding: chunked\r\n";
    } else if !reply.headers.iter().any(|(name, _)| name == "Content-Length") {
        let _ = write!(head, "Content-Length: {}\r\n", reply.body.len());
    }
    for (name, value) in &reply.headers {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    if reply.is_endless && request.method != "HEAD" {
        let mut piece = reply.body.clone();
        piece.resize(piece.len().max(1 << 16), b' ');
        let mut total = 0;
        while total < ENDLESS {
            write!(stream, "{:x}\r\n", piece.len())?;
            stream.write_all(&piece)?;
            stream.write_all(b"\r\n")?;
            total += piece.len() as u64;
            sent.fetch_add(piece.len() as u64, Ordering::SeqCst);
        }
        stream.write_all(b"0\r\n\r\n")?;
    } else if request.method != "HEAD" {
        let length = reply.cut.unwrap_or(reply.body.len()).min(reply.body.len());
        stream.write_all(&reply.body[..length])?;
    }
    stream.flush()
}

/// The answer of a hub without faults.
fn answer(files: &BTreeMap<String, Vec<u8>>, request: &Request) -> Reply {
    let page = |body: String| Reply { status: 200, body: body.into_bytes(), ..Reply::default() };
    if let Some(revision) = request.path.strip_prefix("/api/models/owner/name/revision/") {
        if revision != "main" && revision != COMMIT && revision != "a%2Fbranch" {
            return Reply::status(404, "RevisionNotFound");
        }
        let names: Vec<String> = files.keys().map(|name| format!(r#"{{"rfilename": "{name}"}}"#)).collect();
        return page(format!(r#"{{"sha": "{COMMIT}", "siblings": [{}]}}"#, names.join(", ")));
    }
    let of_model = format!("/owner/name/resolve/{COMMIT}/");
    let near = "/api/resolve-cache/";
    let far = "/far/";
    let Some((name, contents)) = [&*of_model, near, far]
        .into_iter()
        .find_map(|start| files.get_key_value(request.path.strip_prefix(start)?))
    else {
        return Reply::status(404, "RepoNotFound");
    };
    let mut reply = Reply { status: 200, body: contents.clone(), ..Reply::default() };
    let mut header = |name: &str, value: String| reply.headers.push((name.to_owned(), value));
    header("X-Repo-Commit", COMMIT.to_owned());
    let is_large = name.ends_with(".safetensors");
    if request.path.starts_with(&of_model) {
        // The Hub redirects to another server for large files and to another page for small ones.
        reply.status = if is_large { 302 } else { 307 };
        reply.body.clear();
        if is_large {
            header("X-Linked-Etag", format!("\"{}\"", sha256(contents)));
            header("X-Linked-Size", contents.len().to_string());
            header("Location", format!("http://{}{far}{name}", request.headers["host"]));
        } else {
            header("Location", format!("{near}{name}"));
        }
        return reply;
    }
    if !is_large {
        header("ETag", format!("W/\"{}\"", &sha256(contents)[..40]));
    }
    if let Some(from) = request.headers.get("range") {
        let from: usize = from.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap();
        if from >= contents.len() {
            return Reply::status(416, "");
        }
        header("Content-Range", format!("bytes {from}-{}/{}", contents.len() - 1, contents.len()));
        reply.status = 206;
        reply.body = contents[from..].to_vec();
    }
    reply
}

pub(crate) fn sha256(contents: &[u8]) -> String {
    Sha256::digest(contents).iter().map(|byte| format!("{byte:02x}")).collect()
}
