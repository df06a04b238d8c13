//! An Ollama server of any generation, in this process: its routes and shapes as the published API has them, those of
//! OpenAI's API among them, its rules
//! as `server/routes.go`, `create.go` and `sched.go` of the generation have them, and faults at will.
//!
//! It answers with the last message in braces, so that what came of which prompt can be told.

mod completions;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use formats::hash;
use futures::StreamExt;
use serde_json::{Value, json};
use text::{ChatTemplate, GenerationPrompt, Message, Tokenizer};
use tokio::sync::oneshot;

use crate::go_template;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    /// The connection ends after so many pieces of a stream, without a last line.
    DiesAfter(usize),
    /// 503, as a server says it whose queue is full.
    Busy,
    /// The answer takes longer than usual, but comes.
    Slow,
    /// `/api/tags` gives the model another digest.
    OtherDigest,
    /// An error as a line of a stream under 200, after so many pieces.
    ErrorLineAfter(usize),
    /// The model is not there any more.
    Vanished,
    /// A part of the model lies in main memory.
    Partial,
    /// The model stays in `/api/ps`.
    NeverLeaves,
    /// A line of JSON ends in its middle, and with it the stream, after so many pieces.
    CutLineAfter(usize),
    /// A line that does not end.
    EndlessLine,
    /// 500 and a page of HTML, as a proxy gives one.
    Html,
    /// No answer at all.
    Hangs,
    /// A stream that goes silent after so many pieces.
    SilentAfter(usize),
    /// An answer that ends for no reason that an answer has.
    OtherReason,
    /// 200 and something else than JSON.
    Garbage,
    /// The connection ends before the answer is complete.
    Reset,
    /// A shorter context than the model's parameters say.
    ShortContext,
    /// The runner ran out of memory while it loaded.
    NoMemory,
    /// 429, as a cloud says it.
    TooMany,
    /// 401, as a server says it that wants another key.
    NoKey,
    /// A stream that ends as if all were well after so many pieces, without a last one.
    EndsAfter(usize),
    /// The runner takes no adapter, as 0.24.0 says it of the architectures of its own engine.
    NoAdapter,
}

/// What is asked, by what the client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Asked {
    Version,
    Tags,
    Ps,
    Show,
    Load,
    Unload,
    Chat,
    Generate,
    Render,
    Create,
    Copy,
    Delete,
    HasBlob,
    PushBlob,
    Embed,
    /// `/v1/models`
    Models,
    /// `/v1/chat/completions`
    Complete,
    Other,
}

/// A fault, at the so-manieth request of a kind from now on, and for how many.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub wrong: Wrong,
    pub at: Asked,
    /// How many of the kind go well before.
    pub after: usize,
    /// How many go wrong.
    pub times: usize,
}

/// A model that is held.
#[derive(Debug, Clone)]
pub struct Stored {
    /// The blob it was made of, and what it is called now.
    pub file: String,
    pub stored_as: String,
    pub template: String,
    pub system: String,
    pub parameters: BTreeMap<String, Value>,
    pub has_adapter: bool,
    pub digest: String,
}

/// One request.
#[derive(Debug, Clone)]
pub struct Logged {
    pub asked: Asked,
    pub body: Value,
    pub went_wrong: bool,
}

#[derive(Default)]
pub struct Inside {
    pub version: String,
    pub models: BTreeMap<String, Stored>,
    pub blobs: BTreeMap<String, Vec<u8>>,
    /// Loaded models and how often each is still listed after it was told to go.
    pub loaded: BTreeMap<String, Option<u32>>,
    pub has_card: bool,
    /// Where models really run, if not there.
    pub remote_host: Option<&'static str>,
    pub plan: Option<Plan>,
    pub log: Vec<Logged>,
    /// Streams that were dropped by the client before they ended.
    pub dropped: usize,
    seen: usize,
}

/// The server; it ends with this.
pub struct Double {
    pub url: String,
    inside: Arc<Mutex<Inside>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Double {
    pub fn start(version: &str) -> Self {
        let inside = Arc::new(Mutex::new(Inside { version: version.to_owned(), ..Inside::default() }));
        let (stop, stopped) = oneshot::channel::<()>();
        let (told, address) = std::sync::mpsc::channel();
        let state = Arc::clone(&inside);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
                told.send(listener.local_addr().unwrap()).unwrap();
                let router = Router::new()
                    .fallback(answer)
                    .layer(axum::extract::DefaultBodyLimit::disable())
                    .with_state(state);
                let serve = async { axum::serve(listener, router).await };
                tokio::select! { _ = serve => {}, _ = stopped => {} }
            });
            runtime.shutdown_background();
        });
        let url = format!("http://{}", address.recv().unwrap());
        Self { url, inside, stop: Some(stop), thread: Some(thread) }
    }

    pub fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap()
    }

    /// A model whose file is nowhere: enough to be asked.
    pub fn hold(&self, name: &str) {
        let parameters = [("num_ctx".to_owned(), json!(512)), ("stop".to_owned(), json!(["<|im_end|>"]))];
        let stored = Stored {
            file: String::new(),
            stored_as: hash::sha256_bytes(name.as_bytes()),
            template: String::new(),
            system: String::new(),
            parameters: parameters.into_iter().collect(),
            has_adapter: false,
            digest: hash::sha256_bytes(format!("manifest of {name}").as_bytes()),
        };
        self.inside().models.insert(name.to_owned(), stored);
    }

    /// As new, with this version, but for the models that it holds.
    pub fn reset(&self, version: &str, plan: Option<Plan>) {
        let mut inside = self.inside();
        inside.version = version.to_owned();
        inside.loaded.clear();
        inside.log.clear();
        inside.has_card = false;
        (inside.plan, inside.seen) = (plan, 0);
    }

    /// Requests of a kind so far.
    pub fn count(&self, asked: Asked) -> usize {
        self.inside().log.iter().filter(|logged| logged.asked == asked).count()
    }
}

impl Drop for Double {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A server that panicked has failed its test already.
            let _ = thread.join();
        }
    }
}

type Shared = Arc<Mutex<Inside>>;

async fn answer(State(shared): State<Shared>, request: Request) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let bytes = axum::body::to_bytes(request.into_body(), usize::MAX).await.unwrap_or_default();
    let body: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    let asked = kind(&method, &path, &body);
    let wrong = note(&shared, asked, &body);
    if let Some(response) = instead(wrong).await {
        return response;
    }
    if wrong == Some(Wrong::Slow) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    match asked {
        Asked::Version => Body::from(json!({"version": lock(&shared).version}).to_string()).into_response(),
        Asked::Tags => tags(&lock(&shared), wrong),
        Asked::Ps => ps(&mut lock(&shared), wrong),
        Asked::Show => show(&lock(&shared), &body),
        Asked::Load | Asked::Unload | Asked::Chat | Asked::Generate | Asked::Render | Asked::Complete => {
            run(&shared, asked, &body, wrong)
        }
        Asked::Models => completions::models(&lock(&shared), wrong),
        Asked::Create => create(&mut lock(&shared), &body),
        Asked::Copy => copy(&mut lock(&shared), &body),
        Asked::Delete => delete(&mut lock(&shared), &body),
        Asked::HasBlob => match lock(&shared).blobs.contains_key(digest_of(&path)) {
            true => StatusCode::OK.into_response(),
            false => StatusCode::NOT_FOUND.into_response(),
        },
        Asked::PushBlob => push(&mut lock(&shared), digest_of(&path), &bytes),
        Asked::Embed => embed(&lock(&shared), &body),
        Asked::Other => error(StatusCode::NOT_FOUND, "404 page not found"),
    }
}

fn lock(shared: &Shared) -> MutexGuard<'_, Inside> {
    shared.lock().unwrap()
}

fn kind(method: &Method, path: &str, body: &Value) -> Asked {
    let is_empty = body["prompt"].as_str().is_none_or(str::is_empty);
    match (method.as_str(), path) {
        ("GET", "/api/version") => Asked::Version,
        ("GET", "/api/tags") => Asked::Tags,
        ("GET", "/api/ps") => Asked::Ps,
        ("POST", "/api/show") => Asked::Show,
        ("POST", "/api/generate") if is_empty && body["keep_alive"] == json!(0) => Asked::Unload,
        ("POST", "/api/generate") if is_empty => Asked::Load,
        ("POST", "/api/generate") => Asked::Generate,
        ("POST", "/api/chat") if body["_debug_render_only"] == json!(true) => Asked::Render,
        ("POST", "/api/chat") => Asked::Chat,
        ("POST", "/api/create") => Asked::Create,
        ("POST", "/api/copy") => Asked::Copy,
        ("DELETE", "/api/delete") => Asked::Delete,
        ("HEAD", path) if path.starts_with("/api/blobs/sha256:") => Asked::HasBlob,
        ("POST", path) if path.starts_with("/api/blobs/sha256:") => Asked::PushBlob,
        ("POST", "/api/embed") => Asked::Embed,
        ("GET", "/v1/models") => Asked::Models,
        ("POST", "/v1/chat/completions") => Asked::Complete,
        _ => Asked::Other,
    }
}

/// Writes a request down, and whether it is one that goes wrong.
fn note(shared: &Shared, asked: Asked, body: &Value) -> Option<Wrong> {
    let mut inside = lock(shared);
    let mut wrong = None;
    if let Some(plan) = inside.plan.filter(|plan| plan.at == asked) {
        let seen = inside.seen;
        inside.seen += 1;
        if seen >= plan.after && seen - plan.after < plan.times {
            wrong = Some(plan.wrong);
        }
    }
    inside.log.push(Logged { asked, body: body.clone(), went_wrong: wrong.is_some() });
    wrong
}

/// What is answered in the stead of everything else.
async fn instead(wrong: Option<Wrong>) -> Option<Response> {
    let busy = "server busy, please try again.  maximum pending requests exceeded";
    let html = "<html><body><h1>500 Internal Server Error</h1></body></html>";
    Some(match wrong? {
        Wrong::Busy => error(StatusCode::SERVICE_UNAVAILABLE, busy),
        Wrong::Html => (StatusCode::INTERNAL_SERVER_ERROR, html).into_response(),
        Wrong::Garbage => (StatusCode::OK, "bad gateway\nno JSON\n").into_response(),
        Wrong::NoMemory => error(
            StatusCode::INTERNAL_SERVER_ERROR,
            "model requires more system memory (12.0 GiB) than is available (3.1 GiB)",
        ),
        Wrong::NoAdapter => error(
            StatusCode::INTERNAL_SERVER_ERROR,
            "failed to initialize model: loras are not yet implemented",
        ),
        Wrong::TooMany => {
            let limited =
                completions::error(StatusCode::TOO_MANY_REQUESTS, "Rate limit reached for requests");
            ([("retry-after", "0")], limited).into_response()
        }
        Wrong::NoKey => completions::error(StatusCode::UNAUTHORIZED, "Incorrect API key provided"),
        Wrong::Hangs => futures::future::pending().await,
        Wrong::Reset => broken(vec![r#"{"mod"#.to_owned()]),
        _ => return None,
    })
}

pub fn error(status: StatusCode, words: &str) -> Response {
    (status, axum::Json(json!({"error": words}))).into_response()
}

/// These pieces, and then the connection ends.
fn broken(pieces: Vec<String>) -> Response {
    let pieces = pieces.into_iter().map(Ok).chain([Err(std::io::Error::other("gone"))]);
    // Without a pause the pieces and the end of the connection come as one.
    Body::from_stream(futures::stream::iter(pieces).then(|piece| async {
        tokio::task::yield_now().await;
        piece
    }))
    .into_response()
}

fn digest_of(path: &str) -> &str {
    path.rsplit(':').next().unwrap_or_default()
}

fn with_tag(name: &str) -> String {
    if name.contains(':') {
        name.to_ascii_lowercase()
    } else {
        format!("{}:latest", name.to_ascii_lowercase())
    }
}

fn tags(inside: &Inside, wrong: Option<Wrong>) -> Response {
    let models: Vec<Value> = inside
        .models
        .iter()
        .filter(|_| wrong != Some(Wrong::Vanished))
        .map(|(name, stored)| {
            let digest =
                if wrong == Some(Wrong::OtherDigest) { "f".repeat(64) } else { stored.digest.clone() };
            let mut tag = json!({"name": name, "model": name, "digest": digest, "size": 1_000_000,
                "modified_at": "", "details": {"format": "gguf", "family": "qwen3", "parameter_size": "1K",
                    "quantization_level": "F32"}});
            if let Some(host) = inside.remote_host {
                tag["remote_host"] = host.into();
            }
            tag
        })
        .collect();
    axum::Json(json!({"models": models})).into_response()
}

fn ps(inside: &mut Inside, wrong: Option<Wrong>) -> Response {
    const SIZE: u64 = 3_000_000;
    let never_leaves = wrong == Some(Wrong::NeverLeaves);
    inside.loaded.retain(|_, going| match going {
        None => true,
        Some(_) if never_leaves => true,
        Some(0) => false,
        Some(left) => {
            *left -= 1;
            true
        }
    });
    let models: Vec<Value> = inside
        .loaded
        .keys()
        .filter_map(|name| Some((name, inside.models.get(name)?)))
        .map(|(name, stored)| {
            let whole = if inside.has_card { SIZE } else { 0 };
            let size_vram = if wrong == Some(Wrong::Partial) { SIZE / 3 } else { whole };
            let context = stored.parameters.get("num_ctx").and_then(Value::as_u64).unwrap_or(4096);
            let context = if wrong == Some(Wrong::ShortContext) { context / 2 } else { context };
            json!({"name": name, "model": name, "digest": stored.digest, "size": SIZE, "size_vram": size_vram,
                "context_length": context, "expires_at": "2030-01-01T00:00:00Z"})
        })
        .collect();
    axum::Json(json!({"models": models})).into_response()
}

fn show(inside: &Inside, body: &Value) -> Response {
    let asked_for = body["model"].as_str().unwrap_or_default();
    let name = with_tag(asked_for);
    let Some(stored) = inside.models.get(&name) else {
        let name = if is_before(&inside.version, (30, 0)) { asked_for } else { &name };
        return error(StatusCode::NOT_FOUND, &format!("model '{name}' not found"));
    };
    let mut parameters = Vec::new();
    for (key, value) in &stored.parameters {
        match value {
            Value::Array(list) => parameters.extend(list.iter().map(|value| format!("{key:30} {value}"))),
            value => parameters.push(format!("{key:30} {value}")),
        }
    }
    let mut answer = json!({
        "modelfile": format!("# FROM {name}\n\nFROM /models/blobs/sha256-{}\n", stored.stored_as),
        "parameters": parameters.join("\n"), "template": stored.template, "system": stored.system,
        "details": {"family": "qwen3"}, "capabilities": ["completion"],
        "model_info": {"general.architecture": "qwen3", "qwen3.context_length": 512},
    });
    let lists = body["verbose"] == json!(true);
    if let Some(file) = inside.blobs.get(&stored.file).and_then(|bytes| open(bytes)) {
        let info = answer["model_info"].as_object_mut().unwrap();
        for (key, value) in file.metadata().entries() {
            let metadata = file.metadata();
            let listed = metadata.get_strings(key).map(|list| json!(list.iter().collect::<Vec<_>>()));
            let listed = listed.or_else(|| match value {
                formats::gguf::Value::Array(formats::gguf::Array::I32(list)) => Some(json!(list)),
                _ => None,
            });
            let plain = match value {
                formats::gguf::Value::String(text) => Some(json!(text)),
                formats::gguf::Value::Bool(truth) => Some(json!(truth)),
                formats::gguf::Value::F32(number) => Some(json!(number)),
                _ => metadata.get_u64(key).map(|number| json!(number)),
            };
            let value = match listed {
                Some(list) if lists => list,
                Some(_) => Value::Null,
                None => plain.unwrap_or(Value::Null),
            };
            if key != "tokenizer.chat_template" && key != "general.name" {
                info.insert(key.clone(), value);
            }
        }
        let tensor = |tensor: &formats::gguf::TensorInfo| json!({"name": tensor.name, "type": tensor.ty.name(), "shape": tensor.shape});
        answer["tensors"] = file.tensors().iter().map(tensor).collect();
    }
    axum::Json(answer).into_response()
}

fn open(bytes: &[u8]) -> Option<formats::gguf::Reader> {
    let file = tempfile::NamedTempFile::new().ok()?;
    std::fs::write(file.path(), bytes).ok()?;
    formats::gguf::Reader::open(file.path()).ok()
}

fn run(shared: &Shared, asked: Asked, body: &Value, wrong: Option<Wrong>) -> Response {
    let asked_for = body["model"].as_str().unwrap_or_default();
    let name = with_tag(asked_for);
    let (stored, file) = {
        let inside = lock(shared);
        let Some(stored) = inside.models.get(&name).filter(|_| wrong != Some(Wrong::Vanished)) else {
            let words = format!("model '{asked_for}' not found");
            return match asked {
                Asked::Complete => completions::error(StatusCode::NOT_FOUND, &words),
                _ => error(StatusCode::NOT_FOUND, &words),
            };
        };
        let file = inside.blobs.get(&stored.file).cloned();
        (stored.clone(), file)
    };
    if body["think"] == json!(true) {
        return error(StatusCode::BAD_REQUEST, &format!("\"{name}\" does not support thinking"));
    }
    if asked == Asked::Unload {
        if let Some(going) = lock(shared).loaded.get_mut(&name) {
            *going = Some(2);
        }
        return last(&name, "unload");
    }
    // Anything that is asked of a model loads it.
    lock(shared).loaded.insert(name.clone(), None);
    if asked == Asked::Load {
        return last(&name, if wrong == Some(Wrong::OtherReason) { "stop" } else { "load" });
    }
    let messages: Vec<(String, String)> = body["messages"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|m| (m["role"].as_str().unwrap().to_owned(), m["content"].as_str().unwrap().to_owned()))
        .collect();
    let has_system = messages.first().is_some_and(|(role, _)| role == "system");
    let system =
        (!has_system && !stored.system.is_empty()).then(|| ("system".to_owned(), stored.system.clone()));
    let messages: Vec<_> = system.into_iter().chain(messages).collect();
    if asked == Asked::Render {
        let rendered = rendered(&stored, file.as_deref(), &messages);
        return axum::Json(json!({"model": name, "_debug_info": {"rendered_template": rendered}}))
            .into_response();
    }
    let said = messages.last().map_or(body["prompt"].as_str().unwrap_or_default(), |(_, content)| content);
    stream(shared, &name, asked, &format!("({said})"), wrong)
}

/// Go's template where there is one, else the file's own.
fn rendered(stored: &Stored, file: Option<&[u8]>, messages: &[(String, String)]) -> String {
    if !stored.template.is_empty() {
        return go_template::render(&stored.template, messages);
    }
    let Some(file) = file.and_then(open) else { return String::new() };
    let tokenizer = Tokenizer::from_gguf(file.metadata()).unwrap();
    let template = ChatTemplate::from_gguf(file.metadata(), &tokenizer).unwrap().unwrap();
    let template = template.with_variable("enable_thinking", false);
    let messages: Vec<Message> =
        messages.iter().map(|(role, text)| Message::new(role, text.as_str())).collect();
    template.render(&messages, GenerationPrompt::Add).unwrap()
}

fn last(name: &str, reason: &str) -> Response {
    axum::Json(json!({"model": name, "created_at": "", "response": "", "done": true, "done_reason": reason}))
        .into_response()
}

/// An answer in pieces, its last one, and how an error stands among them.
struct Pieces {
    lines: Vec<String>,
    last: String,
    error: String,
}

/// What is said of a runner that died.
const KILLED: &str = "llama runner process has terminated: signal: killed";

fn in_lines(name: &str, asked: Asked, text: &str, wrong: Option<Wrong>) -> Pieces {
    let piece = |text: &str| match asked {
        Asked::Chat => {
            json!({"model": name, "created_at": "", "message": {"role": "assistant", "content": text},
            "done": false})
        }
        _ => json!({"model": name, "created_at": "", "response": text, "done": false}),
    };
    let lines: Vec<String> = fours(text).map(|text| format!("{}\n", piece(&text))).collect();
    let mut end = piece("");
    end["done"] = true.into();
    end["done_reason"] = if wrong == Some(Wrong::OtherReason) { "load" } else { "stop" }.into();
    for (key, value) in [
        ("prompt_eval_count", 7),
        ("prompt_eval_duration", 1000),
        ("eval_count", lines.len()),
        ("eval_duration", 2000),
    ] {
        end[key] = value.into();
    }
    Pieces { lines, last: format!("{end}\n"), error: format!("{}\n", json!({"error": KILLED})) }
}

/// Four characters at a time.
fn fours(text: &str) -> impl Iterator<Item = String> {
    let characters: Vec<char> = text.chars().collect();
    (0..characters.len()).step_by(4).map(move |i| characters[i..].iter().take(4).collect())
}

fn stream(shared: &Shared, name: &str, asked: Asked, text: &str, wrong: Option<Wrong>) -> Response {
    let Pieces { mut lines, last, error } = match asked {
        Asked::Complete => completions::pieces(name, text, wrong),
        _ => in_lines(name, asked, text, wrong),
    };
    let n = lines.len();
    lines.push(last);
    match wrong {
        Some(Wrong::DiesAfter(k)) => {
            lines.truncate(k.min(n));
            return broken(lines);
        }
        Some(Wrong::ErrorLineAfter(k)) => {
            lines.truncate(k.min(n));
            lines.push(error);
        }
        Some(Wrong::EndsAfter(k)) => lines.truncate(k.min(n)),
        Some(Wrong::CutLineAfter(k)) => {
            lines.truncate(k.min(n) + 1);
            let cut = lines.pop().unwrap();
            lines.push(cut[..cut.len() / 2].to_owned());
        }
        Some(Wrong::EndlessLine) => lines = vec!["x".repeat(1 << 20); 5],
        Some(Wrong::SilentAfter(k)) => {
            lines.truncate(k.min(n));
            let lines =
                futures::stream::iter(lines.into_iter().map(|line| Ok::<_, Infallible>(Bytes::from(line))));
            return Body::from_stream(lines.chain(futures::stream::pending())).into_response();
        }
        _ => {}
    }
    let watch = Dropped { shared: Arc::clone(shared), left: lines.len() };
    let lines = futures::stream::unfold((lines.into_iter(), watch), |(mut lines, mut watch)| async move {
        tokio::task::yield_now().await;
        let line = lines.next()?;
        watch.left -= 1;
        Some((Ok::<_, Infallible>(line), (lines, watch)))
    });
    Body::from_stream(lines).into_response()
}

/// Notices a stream that is dropped before its end.
struct Dropped {
    shared: Shared,
    left: usize,
}

impl Drop for Dropped {
    fn drop(&mut self) {
        if self.left > 0 {
            lock(&self.shared).dropped += 1;
        }
    }
}

fn is_before(version: &str, other: (u32, u32)) -> bool {
    let mut parts = version.split('.').skip(1).map(|part| part.parse::<u32>().unwrap());
    (parts.next().unwrap(), parts.next().unwrap()) < other
}

fn create(inside: &mut Inside, body: &Value) -> Response {
    let name = with_tag(body["model"].as_str().unwrap_or_default());
    let (rewrites, wraps) = (!is_before(&inside.version, (30, 0)), !is_before(&inside.version, (34, 1)));
    let has_adapter = body["adapters"].as_object().is_some_and(|adapters| !adapters.is_empty());
    if has_adapter && wraps {
        return error(StatusCode::BAD_REQUEST, "LoRA adapters are no longer supported");
    }
    let line = |value: Value| format!("{value}\n");
    let files = body["files"].as_object().cloned().unwrap_or_default();
    let Some(digest) =
        files.values().next().and_then(Value::as_str).map(|digest| digest_of(digest).to_owned())
    else {
        return Body::from(line(json!({"error": "neither 'from' or 'files' was specified"}))).into_response();
    };
    let Some(bytes) = inside.blobs.get(&digest) else {
        return Body::from(line(
            json!({"error": format!("open blobs/sha256-{digest}: no such file"), "status": 400}),
        ))
        .into_response();
    };
    if open(bytes).is_none() {
        return Body::from(line(json!({"error": "invalid file magic", "status": 400}))).into_response();
    }
    let stored_as = if rewrites && !wraps {
        hash::sha256_bytes(format!("rewritten {digest}").as_bytes())
    } else {
        digest.clone()
    };
    let parameters: BTreeMap<String, Value> =
        body["parameters"].as_object().cloned().unwrap_or_default().into_iter().collect();
    let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
    let digest_source = format!("{stored_as}{}{}{}", json!(parameters), text("template"), text("system"));
    let stored = Stored {
        file: digest,
        stored_as,
        template: text("template"),
        system: text("system"),
        parameters,
        has_adapter,
        digest: hash::sha256_bytes(digest_source.as_bytes()),
    };
    inside.models.insert(name, stored);
    let statuses = ["parsing GGUF", "using existing layer", "writing manifest", "success"];
    Body::from(statuses.map(|status| line(json!({"status": status}))).concat()).into_response()
}

fn copy(inside: &mut Inside, body: &Value) -> Response {
    let (from, to) =
        (with_tag(body["source"].as_str().unwrap()), with_tag(body["destination"].as_str().unwrap()));
    let Some(stored) = inside.models.get(&from).cloned() else {
        let asked_for = body["source"].as_str().unwrap();
        return error(StatusCode::NOT_FOUND, &format!("model \"{asked_for}\" not found"));
    };
    inside.models.insert(to, stored);
    StatusCode::OK.into_response()
}

fn delete(inside: &mut Inside, body: &Value) -> Response {
    let name = with_tag(body["model"].as_str().unwrap());
    match inside.models.remove(&name) {
        Some(_) => StatusCode::OK.into_response(),
        None => {
            let asked_for = body["model"].as_str().unwrap();
            error(StatusCode::NOT_FOUND, &format!("model '{asked_for}' not found"))
        }
    }
}

fn push(inside: &mut Inside, digest: &str, bytes: &[u8]) -> Response {
    if inside.blobs.contains_key(digest) {
        return StatusCode::OK.into_response();
    }
    let actual = hash::sha256_bytes(bytes);
    if actual != digest {
        let words = format!("digest mismatch, expected \"sha256:{digest}\", got \"sha256:{actual}\"");
        return error(StatusCode::BAD_REQUEST, &words);
    }
    inside.blobs.insert(actual, bytes.to_vec());
    StatusCode::CREATED.into_response()
}

fn embed(inside: &Inside, body: &Value) -> Response {
    let name = with_tag(body["model"].as_str().unwrap_or_default());
    if !inside.models.contains_key(&name) {
        return error(StatusCode::NOT_FOUND, &format!("model \"{name}\" not found, try pulling it first"));
    }
    let texts = body["input"].as_array().cloned().unwrap_or_default();
    let vector = |text: &Value| json!([text.as_str().unwrap_or_default().len() as f32, 1.0]);
    axum::Json(json!({"model": name, "embeddings": texts.iter().map(vector).collect::<Vec<_>>()}))
        .into_response()
}
