//! The server: Ollama's API and the OpenAI API over all experts, runs as server-sent events, and one web page.

mod accept;
mod generation;
mod guard;
mod log;
mod models;
mod offers;
mod ollama;
mod openai;
mod page;
mod pipelines;
mod refusal;
mod reply;
mod runs;
mod worker;

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use formats::Observer;
use tokio::net::TcpListener;

use self::guard::Guard;
use self::log::Log;
use self::offers::Offers;
use self::refusal::Refusal;
use self::worker::{KeepAlive, Worker};
use crate::pipeline::{Pipeline, Programs};
use crate::residency::ResidencyEvent;
use crate::{Error, ExpertCard, Registry, Residency, Result, clock};

/// What is served, and to whom.
pub struct ServeConfig {
    /// Where to listen; port 0 takes any free one.
    pub address: SocketAddr,
    /// The key every request must carry; required beyond loopback.
    pub api_key: Option<String>,
    /// The engine, and how many experts stay loaded in it.
    pub residency: Residency,
    /// The expert that is loaded before anybody asks.
    pub preload: Option<ExpertCard>,
    /// The experts.
    pub registry: Registry,
    /// The pipelines.
    pub pipelines: Vec<Pipeline>,
    /// Where runs are kept.
    pub runs: PathBuf,
    /// How long an idle expert stays loaded unless a request says otherwise.
    pub keep_alive: Duration,
    /// Requests that may wait; one more is answered 503.
    pub max_queue: usize,
    /// Whether pipelines may run the programs that they list.
    pub programs: Programs,
}

/// What the server tells.
#[derive(Debug, Clone, PartialEq)]
pub enum ServeEvent {
    /// It listens.
    Listening {
        /// Where.
        address: SocketAddr,
    },
    /// A request was answered.
    Request {
        /// Method and path.
        line: String,
        /// Status.
        status: u16,
        /// Time to the head of the answer.
        ms: f64,
    },
    /// An expert came or went.
    Residency(ResidencyEvent),
}

/// What every request sees.
#[derive(Clone)]
struct Server {
    worker: Worker,
    offers: Offers,
    runs: Arc<Path>,
    programs: Programs,
    engine_name: Arc<str>,
    guard: Guard,
    log: Log,
    /// When it was started, since 1970.
    since: Duration,
}

/// Serves until `shutdown` is done.
///
/// # Errors
/// [`Error::Listen`] if the port is taken, [`Error::Server`] if the options don't fit together.
pub async fn serve(
    config: ServeConfig,
    shutdown: impl Future<Output = ()> + Send,
    observer: Box<dyn Observer<ServeEvent> + Send>,
) -> Result<()> {
    let wrong = |reason: &str| Error::Server { reason: reason.to_owned() };
    if !config.address.ip().is_loopback() && config.api_key.is_none() {
        return Err(wrong("an address beyond this machine needs an API key"));
    }
    if config.api_key.as_ref().is_some_and(|key| key.trim().len() < 8) {
        return Err(wrong("an API key has at least 8 characters"));
    }
    let listen = |source| Error::Listen { address: config.address, source };
    let listener = TcpListener::bind(config.address).await.map_err(listen)?;
    let address = listener.local_addr().map_err(listen)?;
    let log = Log::new(observer);
    let offers = Offers::new(config.registry, config.pipelines)?;
    let engine_name = Arc::from(config.residency.engine().name());
    let keep_alive = KeepAlive::For(config.keep_alive);
    let (worker, thread) = Worker::start(config.residency, keep_alive, config.max_queue, log.clone())
        .map_err(|error| wrong(&format!("the engine's thread can't be started: {error}")))?;
    let server = Server {
        worker,
        offers,
        runs: Arc::from(config.runs),
        programs: config.programs,
        engine_name,
        guard: Guard::new(address, config.api_key.as_deref().map(str::trim)),
        log: log.clone(),
        since: clock::now(),
    };
    log.write(ServeEvent::Listening { address });
    if let Some(card) = config.preload {
        server.worker.preload(card);
    }
    accept::run(listener, router(server), shutdown).await;
    // The last handle on the worker went with the router: the thread unloads the expert and ends.
    let joined = tokio::task::spawn_blocking(move || thread.join()).await;
    joined.ok().and_then(std::result::Result::ok).ok_or_else(|| wrong("the engine's thread failed"))
}

fn router(server: Server) -> Router {
    Router::new()
        .route("/", get(page::index))
        .route("/page.css", get(page::style))
        .route("/page.js", get(page::script))
        .route("/icon.svg", get(page::icon))
        .route("/api/version", get(models::version))
        .route("/api/tags", get(models::tags))
        .route("/api/ps", get(models::ps))
        .route("/api/show", post(models::show))
        .route("/api/generate", post(ollama::generate))
        .route("/api/chat", post(ollama::chat))
        .route("/v1/models", get(openai::models))
        .route("/v1/chat/completions", post(openai::completions))
        .route("/api/status", get(pipelines::status))
        .route("/api/pipelines", get(pipelines::list))
        .route("/api/pipelines/{name}/run", post(pipelines::run))
        .route("/api/runs", get(pipelines::history))
        .route("/api/runs/{run}", get(pipelines::read))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(server.clone(), admit))
        .with_state(server)
}

/// Lets a request in if the guard does, and notes what came of it.
async fn admit(State(server): State<Server>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let line = format!("{} {}", request.method(), request.uri().path());
    // The page's own files hold nothing, and a browser can't send a key for them.
    let is_page = request.method() == Method::GET
        && matches!(request.uri().path(), "/" | "/page.css" | "/page.js" | "/icon.svg");
    let response = match server.guard.check(request.headers(), !is_page) {
        Ok(()) => next.run(request).await,
        Err(refusal) if request.uri().path().starts_with("/v1/") => {
            openai::Wrong::from(refusal).into_response()
        }
        Err(refusal) => refusal.into_response(),
    };
    let (status, ms) = (response.status().as_u16(), begun.elapsed().as_secs_f64() * 1e3);
    server.log.write(ServeEvent::Request { line, status, ms });
    response
}

async fn unknown_path() -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, "404 page not found")
}

async fn wrong_method() -> Refusal {
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "405 method not allowed")
}
