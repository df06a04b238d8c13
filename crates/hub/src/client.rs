//! HTTP as the hub speaks it: redirects without leaking the token, its error codes, and patience with the network.
//!
//! Redirects are followed by hand, since the headers that name a file's checksum stand on the hub's own answer and not
//! on that of the storage it leads to, and since the token is for the hub alone.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use formats::observe::Observer;
use ureq::http::header::{ACCEPT_ENCODING, AUTHORIZATION, LOCATION, RETRY_AFTER};
use ureq::http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

use crate::pull::Options;
use crate::{Error, Event, ModelId, Result};

const MAX_REDIRECTS: usize = 10;
/// Failures in a row, without a byte between them, before giving up.
const MAX_TRIES: u32 = 5;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection that brings nothing for so long is dead.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How soon an interrupt is seen while waiting.
const WAIT_SLICE: Duration = Duration::from_millis(50);

/// Why a request did not succeed: whether it is worth another try.
pub(crate) enum Trouble {
    /// The network or a busy server; perhaps with the time after which the server wants to be asked again.
    Passing { reason: String, wait: Option<Duration> },
    /// It will not be otherwise the next time.
    Lasting(Error),
}

impl Trouble {
    pub(crate) fn passing(reason: impl ToString) -> Self {
        Self::Passing { reason: reason.to_string(), wait: None }
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Lasting(error)
    }
}

/// The last answer of a chain of redirects.
pub(crate) struct Answer {
    pub(crate) response: Response<Body>,
    /// Whether it comes from the hub itself, and not from a storage that it led to.
    pub(crate) is_of_hub: bool,
    /// Headers of the hub's own answers on the way, the latest first.
    hub_headers: Vec<HeaderMap>,
}

impl Answer {
    /// A header of the hub itself.
    pub(crate) fn hub_header(&self, name: &str) -> Option<&str> {
        self.hub_headers.iter().find_map(|headers| headers.get(name)?.to_str().ok())
    }

    /// A header of the last answer.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }
}

/// One model's conversation with the hub.
pub(crate) struct Client<'a> {
    agent: Agent,
    pub(crate) id: &'a ModelId,
    pub(crate) options: &'a Options,
    pub(crate) observer: &'a mut dyn Observer<Event>,
    cancel: &'a AtomicBool,
}

impl<'a> Client<'a> {
    pub(crate) fn new(
        id: &'a ModelId,
        options: &'a Options,
        observer: &'a mut dyn Observer<Event>,
        cancel: &'a AtomicBool,
    ) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build())
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_per_read(Some(READ_TIMEOUT))
            .user_agent(concat!("tune/", env!("CARGO_PKG_VERSION")))
            .build();
        Self { agent: config.new_agent(), id, options, observer, cancel }
    }

    /// Where a file of the repository is asked for.
    pub(crate) fn file_url(&self, commit: &str, file: &str) -> String {
        let path: Vec<String> = file.split('/').map(encode).collect();
        format!("{}/{}/resolve/{commit}/{}", self.options.endpoint, self.id.repository(), path.join("/"))
    }

    /// Where the files of a revision are listed.
    pub(crate) fn listing_url(&self) -> String {
        let (endpoint, id) = (&self.options.endpoint, self.id);
        format!("{endpoint}/api/models/{}/revision/{}", id.repository(), encode(id.revision()))
    }

    /// Asks for a file's headers; stops where they name its checksum.
    pub(crate) fn head(&self, url: &str) -> Result<Answer, Trouble> {
        self.ask(&Method::HEAD, url, &[])
    }

    /// Asks for a file's bytes.
    pub(crate) fn get(&self, url: &str, headers: &[(&str, String)]) -> Result<Answer, Trouble> {
        self.ask(&Method::GET, url, headers)
    }

    /// An error when the user has asked for an end.
    pub(crate) fn check_cancelled(&self) -> Result<()> {
        if self.cancel.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// Asks until there is an answer, or no hope for one.
    pub(crate) fn patiently<T>(
        &mut self,
        what: &str,
        ask: impl Fn(&Self) -> Result<T, Trouble>,
    ) -> Result<T> {
        let mut failures = 0;
        loop {
            match ask(self) {
                Ok(value) => return Ok(value),
                Err(trouble) => self.pause(what, &mut failures, trouble)?,
            }
        }
    }

    /// Waits after a failure, longer after each; an error when it is not worth another try.
    pub(crate) fn pause(&mut self, what: &str, failures: &mut u32, trouble: Trouble) -> Result<()> {
        let (reason, asked) = match trouble {
            Trouble::Lasting(error) => return Err(error),
            Trouble::Passing { reason, wait } => (reason, wait),
        };
        *failures += 1;
        if *failures >= MAX_TRIES {
            return Err(Error::Unreachable { url: what.to_owned(), tries: *failures, reason });
        }
        let own = self.options.backoff * 2u32.pow(*failures - 1);
        let wait = own.max(asked.unwrap_or_default()).min(LONGEST_WAIT);
        let wait_ms = wait.as_millis() as u64;
        self.observer.observe(Event::PullRetry { what: what.to_owned(), reason, wait_ms });
        self.sleep(wait)
    }

    /// Sleeps unless interrupted.
    pub(crate) fn sleep(&self, mut time: Duration) -> Result<()> {
        while !time.is_zero() {
            self.check_cancelled()?;
            let slice = time.min(WAIT_SLICE);
            std::thread::sleep(slice);
            time -= slice;
        }
        self.check_cancelled()
    }

    fn ask(&self, method: &Method, url: &str, headers: &[(&str, String)]) -> Result<Answer, Trouble> {
        let mut at = parse(url)?;
        let mut hub_headers = Vec::new();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send(method, &at, headers)?;
            let is_of_hub = self.is_hub(&at);
            if is_of_hub {
                hub_headers.insert(0, response.headers().clone());
            }
            let answer = Answer { response, is_of_hub, hub_headers };
            let names_file = answer.header("x-linked-etag").is_some();
            let status = answer.response.status();
            if status.is_success() || (method == Method::HEAD && status.is_redirection() && names_file) {
                return Ok(answer);
            }
            if !status.is_redirection() {
                return Err(self.refusal(&at, &answer));
            }
            at = self.redirected(&at, &answer)?;
            hub_headers = answer.hub_headers;
        }
        Err(protocol(url, format!("more than {MAX_REDIRECTS} redirects")).into())
    }

    fn send(&self, method: &Method, at: &Uri, headers: &[(&str, String)]) -> Result<Response<Body>, Trouble> {
        // Compressed bytes would have another length and another checksum.
        let mut request = Request::builder().method(method).uri(at).header(ACCEPT_ENCODING, "identity");
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        if let Some(token) = self.options.token.as_ref().filter(|_| self.is_hub(at)) {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(()).map_err(|error| protocol(&at.to_string(), error.to_string()))?;
        self.agent.run(request).map_err(|error| match error {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::InvalidProxyUrl => {
                protocol(&at.to_string(), error.to_string()).into()
            }
            ureq::Error::Tls(_) | ureq::Error::Rustls(_) | ureq::Error::Pem(_) => {
                untrusted(at, &error).into()
            }
            // The handshake is part of the first write, which can only tell of it as of any broken data.
            ureq::Error::Io(ref source) if source.kind() == io::ErrorKind::InvalidData => {
                untrusted(at, &error).into()
            }
            _ => Trouble::passing(error),
        })
    }

    /// Whether an address is the hub's own: the only one that ever sees the token.
    fn is_hub(&self, at: &Uri) -> bool {
        let Ok(endpoint) = self.options.endpoint.parse::<Uri>() else { return false };
        endpoint.scheme() == at.scheme() && endpoint.authority() == at.authority()
    }

    fn redirected(&self, at: &Uri, answer: &Answer) -> Result<Uri> {
        let url = without_query(at);
        let location = answer.header(LOCATION.as_str());
        let location = location.ok_or_else(|| protocol(&url, "a redirect that leads nowhere".into()))?;
        let to = join(at, location).ok_or_else(|| protocol(&url, format!("a redirect to `{location}`")))?;
        if at.scheme_str() == Some("https") && to.scheme_str() != Some("https") {
            return Err(protocol(&url, "a redirect from https to an unprotected address".into()));
        }
        Ok(to)
    }

    /// What an answer other than success or redirect means.
    fn refusal(&self, at: &Uri, answer: &Answer) -> Trouble {
        let status = answer.response.status();
        let message = answer.header("x-error-message").unwrap_or_else(|| plain(status)).to_owned();
        let (repository, has_token) = (self.id.repository().to_owned(), self.options.token.is_some());
        let (endpoint, url) = (&self.options.endpoint, without_query(at));
        let lasting = match (answer.header("x-error-code").unwrap_or_default(), status.as_u16()) {
            ("GatedRepo", _) => {
                let page = format!("{endpoint}/{repository}");
                Error::Gated { repository, page, has_token }
            }
            ("RepoNotFound", _) => Error::NoRepository { repository, endpoint: endpoint.clone(), has_token },
            ("RevisionNotFound", _) => {
                Error::NoRevision { repository, revision: self.id.revision().to_owned() }
            }
            ("EntryNotFound", _) => {
                let file = url.rsplit('/').next().unwrap_or_default().to_owned();
                Error::NoFile { repository, file, there_are: Vec::new() }
            }
            (_, 408 | 429 | 500..) => {
                let seconds = answer.header(RETRY_AFTER.as_str()).and_then(|text| text.parse().ok());
                let reason = format!("{} {message}", status.as_u16());
                return Trouble::Passing { reason, wait: seconds.map(Duration::from_secs) };
            }
            // The links into a storage are signed for some time; the hub is asked for a new one.
            (_, 403) if !answer.is_of_hub => return Trouble::passing("the link to the storage has expired"),
            (_, 401 | 403) => Error::Refused { url, reason: message, has_token },
            (_, status) => Error::Status { url, status, reason: message },
        };
        Trouble::Lasting(lasting)
    }
}

fn untrusted(at: &Uri, error: &ureq::Error) -> Error {
    Error::Untrusted { url: without_query(at), reason: error.to_string() }
}

fn plain(status: StatusCode) -> &'static str {
    status.canonical_reason().unwrap_or("no reason given")
}

/// An answer that the hub would not give.
pub(crate) fn protocol(url: &str, reason: String) -> Error {
    Error::Protocol { url: url.to_owned(), reason }
}

fn parse(url: &str) -> Result<Uri> {
    let uri = url.parse::<Uri>().ok().filter(|uri| uri.authority().is_some());
    uri.ok_or_else(|| {
        protocol(url, "this is no address; HF_ENDPOINT is one as https://huggingface.co".into())
    })
}

/// What a redirect's target is relative to.
fn join(at: &Uri, location: &str) -> Option<Uri> {
    let (scheme, authority) = (at.scheme_str()?, at.authority()?);
    let is_absolute = location.starts_with("https://") || location.starts_with("http://");
    let text = match location {
        _ if is_absolute => location.to_owned(),
        _ if location.starts_with("//") => format!("{scheme}:{location}"),
        _ if location.starts_with('/') => format!("{scheme}://{authority}{location}"),
        _ => {
            let folder = at.path().rsplit_once('/').map_or("", |(folder, _)| folder);
            format!("{scheme}://{authority}{folder}/{location}")
        }
    };
    text.parse().ok()
}

/// Queries of links into a storage hold signatures, which are nobody's to read.
fn without_query(at: &Uri) -> String {
    at.to_string().split('?').next().unwrap_or_default().to_owned()
}

/// Percent-encodes what is not plain in a path.
fn encode(part: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    part.bytes()
        .map(|byte| if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_joined_as_browsers_do() {
        let at: Uri = "https://hub.test:81/a/b?x=1".parse().unwrap();
        for (location, expected) in [
            ("https://cdn.test/c?sig=2", "https://cdn.test/c?sig=2"),
            ("//cdn.test/c", "https://cdn.test/c"),
            ("/c/d", "https://hub.test:81/c/d"),
            ("c", "https://hub.test:81/a/c"),
        ] {
            assert_eq!(join(&at, location).unwrap().to_string(), expected);
        }
        assert_eq!(without_query(&at), "https://hub.test:81/a/b");
    }

    #[test]
    fn names_are_encoded_in_paths() {
        assert_eq!(encode("refs/pr/1"), "refs%2Fpr%2F1");
        assert_eq!(encode("a b+ü"), "a%20b%2B%C3%BC");
    }
}
