//! The server: Ollama's API and the OpenAI API over all experts, runs as server-sent events, and one web page.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use formats::Observer;

use crate::engine::Engine;
use crate::pipeline::Pipeline;
use crate::{Registry, Result};

/// What is served, and to whom.
pub struct ServeConfig {
    /// Where to listen.
    pub address: SocketAddr,
    /// The key every request must carry; required beyond loopback.
    pub api_key: Option<String>,
    /// The engine.
    pub engine: Box<dyn Engine>,
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
    Residency(crate::residency::ResidencyEvent),
}

/// Serves until `shutdown` is done.
///
/// # Errors
/// [`crate::Error::Listen`] if the port is taken, [`crate::Error::Server`] if the options don't fit together.
pub async fn serve(
    config: ServeConfig,
    shutdown: impl Future<Output = ()> + Send,
    observer: Box<dyn Observer<ServeEvent> + Send>,
) -> Result<()> {
    let _ = (config, shutdown, observer);
    todo!()
}
