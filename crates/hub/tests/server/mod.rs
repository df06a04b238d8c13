//! A hub on loopback: it speaks the hub's protocol, and fails where a test wants it to.
//!
//! Small files come by a relative redirect or at once, large ones by a redirect to a storage at another address, which
//! must never see a token. <https://huggingface.co/docs/hub/api>

#![allow(dead_code, reason = "each test file uses its part of it")]

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use sha1::Digest as _;

pub const TOKEN: &str = "hf_good";

/// One repository with one commit.
#[derive(Clone, Default)]
pub struct Repository {
    pub commit: String,
    pub files: BTreeMap<String, Vec<u8>>,
    /// Files in large-file storage.
    pub large: Vec<String>,
    pub is_gated: bool,
}

/// What goes wrong, and what was asked.
#[derive(Default)]
pub struct State {
    pub repositories: BTreeMap<String, Repository>,
    /// Of a file's next answers with a body, after how many bytes the connection drops.
    pub drops: Vec<(String, VecDeque<usize>)>,
    /// Statuses of the next requests, instead of an answer.
    pub statuses: VecDeque<u16>,
    /// A file whose bytes the storage changes.
    pub corrupt: Option<String>,
    /// Whether ranges are answered with the whole file.
    pub ignores_ranges: bool,
    /// Whether ranges are answered with 416.
    pub refuses_ranges: bool,
    /// A file and the size that the hub claims it to have.
    pub claimed_size: Option<(String, u64)>,
    /// `METHOD PATH [RANGE] [if TAG]` of every request, in order.
    pub asked: Vec<String>,
    /// Whether the storage was ever shown a token.
    pub storage_saw_token: bool,
}

pub struct Hub {
    pub endpoint: String,
    state: Arc<Mutex<State>>,
}

impl Hub {
    pub fn start() -> Hub {
        let state = Arc::new(Mutex::new(State::default()));
        let (hub, storage) = (listener(), listener());
        let storage_address = address(&storage);
        let endpoint = address(&hub);
        for (listener, is_storage) in [(hub, false), (storage, true)] {
            let (state, storage_address) = (Arc::clone(&state), storage_address.clone());
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let (state, storage) = (Arc::clone(&state), storage_address.clone());
                    std::thread::spawn(move || answer(stream, &state, &storage, is_storage));
                }
            });
        }
        Hub { endpoint, state }
    }

    /// What goes wrong, and what was asked.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread of the server panics with the lock")
    }

    pub fn add(&self, id: &str, repository: Repository) {
        self.state().repositories.insert(id.to_owned(), repository);
    }

    /// The requests since the last call, in order.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.state().asked)
    }
}

impl Repository {
    /// Files by name and content; those that end in `.safetensors` or `.gguf` are large.
    pub fn new(files: &[(&str, &[u8])]) -> Repository {
        let files: BTreeMap<String, Vec<u8>> =
            files.iter().map(|(name, content)| ((*name).to_owned(), content.to_vec())).collect();
        let is_large = |name: &&String| name.ends_with(".safetensors") || name.ends_with(".gguf");
        let large = files.keys().filter(is_large).cloned().collect();
        let commit = sha1(format!("{files:?}").as_bytes());
        Repository { commit, files, large, is_gated: false }
    }

    /// All files of a folder.
    pub fn of_folder(folder: &Path) -> Repository {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
            let name = entry.file_name().into_string().expect("a name in UTF-8");
            files.push((name, std::fs::read(entry.path()).expect("a file")));
        }
        let files: Vec<(&str, &[u8])> =
            files.iter().map(|(name, content)| (name.as_str(), content.as_slice())).collect();
        Repository::new(&files)
    }

    pub fn etag(&self, file: &str) -> String {
        let content = &self.files[file];
        match self.large.iter().any(|large| large == file) {
            true => hex(&sha2::Sha256::digest(content)),
            false => sha1(&[format!("blob {}\0", content.len()).as_bytes(), content].concat()),
        }
    }
}

fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").expect("a port on loopback")
}

fn address(listener: &TcpListener) -> String {
    format!("http://{}", listener.local_addr().expect("a bound port"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sha1(bytes: &[u8]) -> String {
    hex(&sha1::Sha1::digest(bytes))
}

struct Request {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let mut words = first.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?);
    let path = target.split('?').next()?.replace("%2F", "/");
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line.ok()?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    Some(Request { method, path, headers })
}

/// One connection, one answer.
fn answer(stream: TcpStream, state: &Mutex<State>, storage: &str, is_storage: bool) {
    let Some(request) = read_request(&stream) else { return };
    let mut state = state.lock().expect("no thread of the server panics with the lock");
    let range = request.headers.get("range").map_or_else(String::new, |range| format!(" {range}"));
    let condition = request.headers.get("if-range").map_or_else(String::new, |tag| format!(" if {tag}"));
    let place = if is_storage { "storage " } else { "" };
    state.asked.push(format!("{place}{} {}{range}{condition}", request.method, request.path));
    let reply = match state.statuses.pop_front() {
        Some(status) => Reply::new(status),
        None if is_storage => {
            state.storage_saw_token |= request.headers.contains_key("authorization");
            from_storage(&request, &state)
        }
        None => from_hub(&request, &state, storage),
    };
    let drop_after = reply.file.as_ref().filter(|_| request.method == "GET").and_then(|file| {
        let (_, drops) = state.drops.iter_mut().find(|(name, _)| name == file)?;
        drops.pop_front()
    });
    drop(state);
    reply.send(stream, &request, drop_after);
}

#[derive(Default)]
struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// The file whose bytes the body is.
    file: Option<String>,
}

impl Reply {
    fn new(status: u16) -> Reply {
        Reply { status, ..Reply::default() }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Reply {
        self.headers.push((name, value.into()));
        self
    }

    fn refused(status: u16, code: &str, message: &str) -> Reply {
        Reply::new(status).with("X-Error-Code", code).with("X-Error-Message", message)
    }

    fn send(self, mut stream: TcpStream, request: &Request, drop_after: Option<usize>) {
        let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", self.status);
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += &format!("Content-Length: {}\r\n\r\n", self.body.len());
        // A client that has gone away is none of the server's business.
        let _ = stream.write_all(head.as_bytes());
        if request.method != "HEAD" {
            let _ =
                stream.write_all(&self.body[..drop_after.unwrap_or(self.body.len()).min(self.body.len())]);
        }
    }
}

fn from_hub(request: &Request, state: &State, storage: &str) -> Reply {
    let parts: Vec<&str> = request.path.trim_start_matches('/').splitn(3, '/').collect();
    let (id, rest) = match parts[..] {
        ["api", "models", rest] => {
            let parts: Vec<&str> = rest.splitn(3, '/').collect();
            (parts[..parts.len().min(2)].join("/"), format!("api/{}", parts.get(2).unwrap_or(&"")))
        }
        ["api", "resolve-cache", rest] => {
            let parts: Vec<&str> = rest.splitn(4, '/').collect();
            (parts[1..3].join("/"), format!("cached/{}", parts[3]))
        }
        [owner, name, rest] => (format!("{owner}/{name}"), rest.to_owned()),
        _ => return Reply::new(400),
    };
    let has_token =
        request.headers.get("authorization").is_some_and(|token| *token == format!("Bearer {TOKEN}"));
    let Some(repository) = state.repositories.get(&id) else {
        return Reply::refused(if has_token { 404 } else { 401 }, "RepoNotFound", "Repository not found");
    };
    let (kind, rest) = rest.split_once('/').unwrap_or((&rest, ""));
    match kind {
        "api" => listing(&id, repository, rest),
        "cached" | "resolve" => {
            let (revision, file) = split_revision(repository, rest);
            if repository.is_gated && !has_token {
                let has_any = request.headers.contains_key("authorization");
                let message = format!("Access to model {id} is restricted.");
                return Reply::refused(if has_any { 403 } else { 401 }, "GatedRepo", &message);
            }
            if !is_revision(repository, revision) {
                return Reply::refused(404, "RevisionNotFound", "Invalid rev id");
            }
            resolve(request, (state, &id, repository), file, kind == "cached", storage)
        }
        _ => Reply::new(404),
    }
}

fn split_revision<'a>(repository: &Repository, rest: &'a str) -> (&'a str, &'a str) {
    let is_commit = rest.starts_with(&repository.commit);
    rest.split_at(if is_commit { 40 } else { rest.find('/').unwrap_or(rest.len()) })
}

fn is_revision(repository: &Repository, revision: &str) -> bool {
    revision == "main" || revision == repository.commit
}

fn listing(id: &str, repository: &Repository, rest: &str) -> Reply {
    let revision = rest.split_once('/').map_or("main", |(_, revision)| revision);
    if !is_revision(repository, revision) {
        return Reply::refused(404, "RevisionNotFound", "Invalid rev id");
    }
    let json = if rest.starts_with("tree") {
        let files = repository.files.iter().map(|(name, content)| {
            let (size, etag) = (content.len(), repository.etag(name));
            match repository.large.contains(name) {
                true => serde_json::json!({"type": "file", "path": name, "size": size, "oid": sha1(etag.as_bytes()),
                    "lfs": {"oid": etag, "size": size, "pointerSize": 134}}),
                false => serde_json::json!({"type": "file", "path": name, "size": size, "oid": etag}),
            }
        });
        serde_json::Value::Array(files.collect())
    } else {
        let files: Vec<_> =
            repository.files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
        serde_json::json!({"_id": "0", "id": id, "modelId": id, "sha": repository.commit, "private": false,
            "gated": repository.is_gated, "downloads": 0, "likes": 0, "tags": [], "siblings": files})
    };
    Reply { body: json.to_string().into_bytes(), ..Reply::new(200).with("Content-Type", "application/json") }
}

fn resolve(
    request: &Request,
    (state, id, repository): (&State, &str, &Repository),
    file: &str,
    is_cached: bool,
    storage: &str,
) -> Reply {
    let file = file.trim_start_matches('/');
    let commit = repository.commit.clone();
    let Some(content) = repository.files.get(file) else {
        return Reply::refused(404, "EntryNotFound", "Entry not found").with("X-Repo-Commit", commit);
    };
    let etag = format!("\"{}\"", repository.etag(file));
    let claimed = state.claimed_size.as_ref().filter(|(name, _)| name == file).map(|(_, size)| *size);
    if repository.large.iter().any(|large| large == file) {
        return Reply::new(302)
            .with("X-Repo-Commit", commit)
            .with("X-Linked-Etag", etag)
            .with("X-Linked-Size", claimed.unwrap_or(content.len() as u64).to_string())
            .with("Location", format!("{storage}/{id}/{file}?X-Amz-Signature=secret"));
    }
    if !is_cached && file.starts_with("config") {
        let location = format!("/api/resolve-cache/models/{id}/{commit}/{file}?etag=x");
        return Reply::new(307).with("X-Repo-Commit", commit).with("Location", location);
    }
    body(request, state, file, content, &etag).with("X-Repo-Commit", commit)
}

fn from_storage(request: &Request, state: &State) -> Reply {
    let parts: Vec<&str> = request.path.trim_start_matches('/').splitn(3, '/').collect();
    let (id, file) = (parts[..2].join("/"), parts[2]);
    let content = &state.repositories[&id].files[file];
    // As a storage does it: a tag of its own.
    body(request, state, file, content, "\"a-tag-of-the-storage-itself\"")
}

fn body(request: &Request, state: &State, file: &str, content: &[u8], etag: &str) -> Reply {
    let mut content = content.to_vec();
    if state.corrupt.as_deref() == Some(file) {
        content[0] ^= 1;
    }
    let is_same = request.headers.get("if-range").is_none_or(|tag| tag == etag);
    let from = request.headers.get("range").filter(|_| is_same && !state.ignores_ranges);
    let from = from.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let reply = Reply { file: Some(file.to_owned()), ..Reply::new(200) };
    let reply = reply.with("ETag", etag).with("Accept-Ranges", "bytes");
    let total = content.len();
    match from {
        Some(from) if from >= total || state.refuses_ranges => Reply::new(416),
        Some(from) => {
            let range = format!("bytes {from}-{}/{total}", total - 1);
            Reply { status: 206, body: content.split_off(from), ..reply.with("Content-Range", range) }
        }
        None => Reply { body: content, ..reply },
    }
}
