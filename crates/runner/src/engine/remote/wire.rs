//! One request on the wire: sent, waited for with an eye on who wants to cancel, read within bounds, tried again.
//!
//! A thread of the process drives all connections, so that a connection that is dropped closes at once and the server
//! stops generating. No connection is kept for a later request: the next one may be minutes away, and a connection
//! that died unseen would look like a server that failed. Redirects are not followed, since a key would follow them.

use std::future::Future;
use std::ops::ControlFlow;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

pub(crate) use reqwest::Method;
use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use serde_json::Value;
use tokio::runtime::Runtime;

use super::body::{self, Refused};
use super::{Address, Patience, Upload};
use crate::{Error, Result};

/// A host that does not answer at all is given up after this.
const CONNECT: Duration = Duration::from_secs(5);

/// A server that asks for a longer wait is not waited for.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(10);

/// Says, a few times a second, whether to give up.
pub(crate) type Poll<'a> = dyn FnMut() -> ControlFlow<()> + 'a;

/// Takes a piece of an answer; breaks when it wants no more.
pub(crate) type Each<'a> = dyn FnMut(&[u8]) -> std::result::Result<ControlFlow<()>, Fault> + 'a;

/// Why a try did not succeed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Fault {
    /// The network, or a server that may do better the next time; perhaps with the wait that it asks for.
    Passing { reason: String, wait: Option<Duration> },
    /// It will not be otherwise the next time.
    Lasting { reason: String, hint: Option<String> },
    /// Nobody waits for it any more.
    Cancelled,
}

impl Fault {
    pub fn passing(reason: impl Into<String>) -> Self {
        Self::Passing { reason: reason.into(), wait: None }
    }

    pub fn lasting(reason: impl Into<String>) -> Self {
        Self::Lasting { reason: reason.into(), hint: None }
    }

    /// The same, not to be tried again.
    pub fn made_lasting(self) -> Self {
        match self {
            Self::Passing { reason, .. } => Self::lasting(reason),
            other => other,
        }
    }
}

/// What can't be read the same way a second time: a bound that was passed, a shape that is not the API's.
impl From<String> for Fault {
    fn from(reason: String) -> Self {
        Self::lasting(reason)
    }
}

/// The largest answer that is read, and how long it is waited for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Until the first byte and between two.
    pub silence: Duration,
    /// All of an answer that is read whole; of a stream, all lines together.
    pub bytes: usize,
}

/// What is asked.
pub(crate) struct Ask<'a> {
    pub method: Method,
    pub address: &'a Address,
    pub route: &'a str,
    pub content: Content<'a>,
    pub key: Option<&'a str>,
    pub limits: Limits,
    /// How often a wish to cancel is looked for.
    pub poll_every: Duration,
}

/// What is sent.
pub(crate) enum Content<'a> {
    Nothing,
    Json(&'a Value),
    File(&'a Upload),
}

impl<'a> Ask<'a> {
    pub fn post(
        address: &'a Address,
        route: &'a str,
        json: &'a Value,
        patience: &Patience,
        limits: Limits,
    ) -> Self {
        Self::new(Method::POST, address, route, Content::Json(json), patience, limits)
    }

    pub fn new(
        method: Method,
        address: &'a Address,
        route: &'a str,
        content: Content<'a>,
        patience: &Patience,
        limits: Limits,
    ) -> Self {
        Self { method, address, route, content, key: None, limits, poll_every: patience.poll }
    }
}

/// The process's way to the network.
pub(crate) struct Wire {
    runtime: Runtime,
    client: reqwest::Client,
}

impl Wire {
    /// The one of this process, made at the first request.
    ///
    /// # Errors
    /// The system gives no thread, or no trusted certificates.
    pub fn get() -> Result<&'static Self> {
        static WIRE: OnceLock<std::result::Result<Wire, String>> = OnceLock::new();
        WIRE.get_or_init(Self::new).as_ref().map_err(|reason| Error::Remote {
            server: "the network".to_owned(),
            request: "get ready".to_owned(),
            tries: 1,
            reason: reason.clone(),
            hint: None,
        })
    }

    fn new() -> std::result::Result<Self, String> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("servers")
            .enable_all()
            .build()
            .map_err(|error| error.to_string())?;
        // An error means that the process has chosen one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .connect_timeout(CONNECT)
            .pool_max_idle_per_host(0)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .user_agent(concat!("tune/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| chain(&error))?;
        Ok(Self { runtime, client })
    }

    /// Asks once and reads a JSON answer whole; an answer without content is `null`.
    pub fn json(&self, ask: &Ask<'_>, poll: &mut Poll<'_>) -> std::result::Result<Value, Fault> {
        self.runtime.block_on(async {
            let mut watch = Watch::new(ask, poll);
            let response = self.answer(ask, &mut watch).await?;
            let bytes = body::whole(response, ask.limits.bytes, &mut watch).await?;
            body::json(&bytes).map_err(Fault::passing)
        })
    }

    /// Asks once for the status alone.
    pub fn status(&self, ask: &Ask<'_>, poll: &mut Poll<'_>) -> std::result::Result<u16, Fault> {
        self.runtime.block_on(async {
            let mut watch = Watch::new(ask, poll);
            Ok(self.send(ask, &mut watch).await?.status().as_u16())
        })
    }

    /// Asks once and gives each piece of the answer to `each` as it comes. The connection is dropped when this
    /// returns, for whatever reason.
    pub fn stream(
        &self,
        ask: &Ask<'_>,
        poll: &mut Poll<'_>,
        each: &mut Each<'_>,
    ) -> std::result::Result<(), Fault> {
        self.runtime.block_on(async {
            let mut watch = Watch::new(ask, poll);
            let mut response = self.answer(ask, &mut watch).await?;
            let mut left = ask.limits.bytes;
            loop {
                let piece = watch.over(response.chunk()).await?.map_err(|error| broken(&error))?;
                let Some(piece) = piece else { return Ok(()) };
                left = left.checked_sub(piece.len()).ok_or_else(|| {
                    Fault::lasting(format!("the answer is longer than {} bytes", ask.limits.bytes))
                })?;
                if each(&piece)?.is_break() {
                    return Ok(());
                }
            }
        })
    }

    /// The head of an answer that is a success; what else it is becomes a fault in the server's own words.
    async fn answer(
        &self,
        ask: &Ask<'_>,
        watch: &mut Watch<'_, '_>,
    ) -> std::result::Result<reqwest::Response, Fault> {
        let response = self.send(ask, watch).await?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let wait = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let wait = wait.map(Duration::from_secs).filter(|wait| *wait <= LONGEST_RETRY_AFTER);
        let refused = Refused::read(response, watch).await?;
        Err(refused.fault(status, wait))
    }

    async fn send(
        &self,
        ask: &Ask<'_>,
        watch: &mut Watch<'_, '_>,
    ) -> std::result::Result<reqwest::Response, Fault> {
        let mut request = self.client.request(ask.method.clone(), ask.address.route(ask.route));
        if let Some(key) = ask.key {
            request = request.header(AUTHORIZATION, format!("Bearer {key}"));
        }
        request = match &ask.content {
            Content::Nothing => request,
            Content::Json(value) => request.header(CONTENT_TYPE, "application/json").body(value.to_string()),
            Content::File(upload) => {
                let body = upload.body().map_err(|error| Fault::lasting(error.to_string()))?;
                request.header(CONTENT_LENGTH, upload.bytes()).body(body)
            }
        };
        watch.over(request.send()).await?.map_err(|error| broken(&error))
    }
}

/// Waits for parts of an answer, each for a limited time, and asks meanwhile whether anybody still wants it.
pub(super) struct Watch<'a, 'p> {
    pub(super) poll: &'a mut Poll<'p>,
    every: Duration,
    silence: Duration,
    upload: Option<&'a Upload>,
}

impl<'a, 'p> Watch<'a, 'p> {
    fn new(ask: &'a Ask<'_>, poll: &'a mut Poll<'p>) -> Self {
        let upload = if let Content::File(upload) = &ask.content { Some(*upload) } else { None };
        Self { poll, every: ask.poll_every, silence: ask.limits.silence, upload }
    }

    /// The result of a part, or a fault where it takes too long or nobody waits any more.
    pub(super) async fn over<T>(&mut self, part: impl Future<Output = T>) -> std::result::Result<T, Fault> {
        let mut part = std::pin::pin!(part);
        let (mut since, mut sent) = (Instant::now(), 0);
        loop {
            // Whoever waits is asked first: a server that always answers at once must not keep it from cancelling.
            if (self.poll)().is_break() {
                return Err(Fault::Cancelled);
            }
            if let Ok(done) = tokio::time::timeout(self.every, &mut part).await {
                return Ok(done);
            }
            // A file on its way is no silence.
            let now_sent = self.upload.map_or(0, Upload::sent);
            if now_sent != sent {
                (since, sent) = (Instant::now(), now_sent);
            }
            if since.elapsed() >= self.silence {
                return Err(Fault::passing(format!("nothing came for {}", seconds(self.silence))));
            }
        }
    }
}

/// Tries up to `patience.tries` times what may be tried again, with a longer wait before each try; also how often.
pub(crate) fn patiently<T>(
    patience: &Patience,
    poll: &mut Poll<'_>,
    mut ask: impl FnMut(&mut Poll<'_>) -> std::result::Result<T, Fault>,
) -> std::result::Result<T, (u32, Fault)> {
    let mut attempt = 1;
    loop {
        match ask(poll) {
            Ok(value) => return Ok(value),
            Err(Fault::Passing { wait, .. }) if attempt < patience.tries => {
                attempt += 1;
                let wait = wait.unwrap_or_default().max(patience.wait_before(attempt));
                pause(wait, patience.poll, poll).map_err(|fault| (attempt - 1, fault))?;
            }
            Err(fault) => return Err((attempt, fault)),
        }
    }
}

/// Waits, unless nobody wants to.
pub(crate) fn pause(
    mut time: Duration,
    every: Duration,
    poll: &mut Poll<'_>,
) -> std::result::Result<(), Fault> {
    loop {
        if poll().is_break() {
            return Err(Fault::Cancelled);
        }
        if time.is_zero() {
            return Ok(());
        }
        let slice = time.min(every);
        std::thread::sleep(slice);
        time -= slice;
    }
}

/// What went wrong below HTTP, in the words of the cause: reqwest's own say no more than that something did.
fn broken(error: &reqwest::Error) -> Fault {
    let reason = chain(error);
    if error.is_builder() { Fault::lasting(reason) } else { Fault::passing(reason) }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut last = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        last = source.to_string();
        next = source.source();
    }
    last
}

fn seconds(time: Duration) -> String {
    if time.as_secs() > 0 { format!("{} s", time.as_secs()) } else { format!("{} ms", time.as_millis()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patience() -> Patience {
        Patience { back_off: Duration::from_micros(1), poll: Duration::from_micros(1), ..Patience::default() }
    }

    #[test]
    fn what_passes_is_tried_three_times_and_what_lasts_once() {
        let mut on = || ControlFlow::Continue(());
        let mut n = 0;
        let ended = patiently(&patience(), &mut on, |_| {
            n += 1;
            Err::<(), _>(Fault::passing("busy"))
        });
        assert_eq!((ended, n), (Err((3, Fault::passing("busy"))), 3));
        let ended = patiently(&patience(), &mut on, |_| Err::<(), _>(Fault::lasting("no")));
        assert_eq!(ended, Err((1, Fault::lasting("no"))));
        let mut n = 0;
        let ended = patiently(&patience(), &mut on, |_| {
            n += 1;
            if n < 3 { Err(Fault::passing("busy")) } else { Ok(n) }
        });
        assert_eq!(ended, Ok(3));
        let ended =
            patiently(&patience(), &mut || ControlFlow::Break(()), |_| Err::<(), _>(Fault::passing("")));
        assert_eq!(ended, Err((1, Fault::Cancelled)));
    }

    #[test]
    fn waits_grow() {
        let patience = Patience::default();
        let waits: Vec<u128> = (1..=4).map(|n| patience.wait_before(n).as_millis()).collect();
        assert_eq!(waits, [0, 500, 1000, 2000]);
    }
}
