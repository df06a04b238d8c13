//! The accept loop: connections with time limits for heads and bodies, which `axum::serve` has none of.

use std::future::Future;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::Request;
use axum::http::StatusCode;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::de::DeserializeOwned;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::refusal::Refusal;

/// Connections at once; one more waits in the system's queue.
const CONNECTIONS: usize = 256;

/// Time for the head of a request, and how long a connection may stay idle.
const HEAD_TIME: Duration = Duration::from_secs(30);

/// Time for the body of a request.
const BODY_TIME: Duration = Duration::from_secs(30);

/// Bytes of the body of a request.
const BODY_BYTES: usize = 16 << 20;

/// Bytes of the head of a request.
const HEAD_BYTES: usize = 64 << 10;

/// A pause after a failed accept: the process may be out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts connections until `shutdown`, then closes those that are left.
pub(super) async fn run(listener: TcpListener, router: Router, shutdown: impl Future<Output = ()>) {
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        let has_room = connections.len() < CONNECTIONS;
        tokio::select! {
            () = &mut shutdown => break,
            _ = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept(), if has_room => match accepted {
                Ok((stream, _)) => drop(connections.spawn(serve(stream, router.clone()))),
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
        }
    }
    // Dropping a connection drops its answer, which cancels the generation behind it.
    connections.shutdown().await;
}

async fn serve(stream: TcpStream, router: Router) {
    // Tokens are small and are to arrive at once.
    let _ = stream.set_nodelay(true);
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    // A client that breaks off is no failure of the server.
    let _ = connection.await;
}

/// The JSON body of a request; an empty body reads as `{}`.
pub(super) async fn body<T: DeserializeOwned>(request: Request) -> Result<T, Refusal> {
    let read = axum::body::to_bytes(request.into_body(), BODY_BYTES);
    let bytes: Bytes = tokio::time::timeout(BODY_TIME, read)
        .await
        .map_err(|_| {
            Refusal::new(StatusCode::REQUEST_TIMEOUT, "the body of the request did not come in time")
        })?
        .map_err(|error| {
            let message =
                format!("the body of the request can't be read: {error} (at most {BODY_BYTES} bytes)");
            Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, message)
        })?;
    let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
    serde_json::from_slice(text).map_err(|error| Refusal::bad(error.to_string()))
}
