//! Who may ask: the Host a browser believes to talk to, the Origin a page comes from, and the key.
//!
//! A page of another site can make a browser send requests to loopback (and, by re-pointing its own name, even
//! read the answers); Host and Origin tell such requests apart. A plain client sends no Origin.

use std::net::SocketAddr;

use axum::http::{HeaderMap, StatusCode, header};

use super::refusal::Refusal;

/// The rules of one server.
#[derive(Debug, Clone)]
pub(super) struct Guard {
    address: SocketAddr,
    /// Its hash: comparing hashes takes the same time wherever two keys differ.
    key: Option<blake3::Hash>,
}

impl Guard {
    pub(super) fn new(address: SocketAddr, key: Option<&str>) -> Self {
        Self { address, key: key.map(|key| blake3::hash(key.as_bytes())) }
    }

    /// Checks a request's headers; `needs_key` is false for the page's own files.
    pub(super) fn check(&self, headers: &HeaderMap, needs_key: bool) -> Result<(), Refusal> {
        let forbidden = |message: &str| Refusal::new(StatusCode::FORBIDDEN, message);
        let host = text(headers, header::HOST).ok_or_else(|| Refusal::bad("there is no Host"))?;
        if self.address.ip().is_loopback() && !self.is_own(host) {
            return Err(forbidden("the Host of this request is not this server"));
        }
        if headers.contains_key(header::ORIGIN) {
            let origin = text(headers, header::ORIGIN).unwrap_or_default();
            let from = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
            if !from.is_some_and(|from| from.eq_ignore_ascii_case(host)) {
                return Err(forbidden("the Origin of this request is another site"));
            }
        }
        match self.key {
            Some(key) if needs_key && bearer(headers) != Some(key) => Err(Refusal::new(
                StatusCode::UNAUTHORIZED,
                "this server asks for its key: Authorization: Bearer <key>",
            )),
            _ => Ok(()),
        }
    }

    fn is_own(&self, host: &str) -> bool {
        let (name, port) = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => (name, port),
            _ => (host, "80"),
        };
        let ip = self.address.ip();
        let own = if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() };
        let named = name == own
            || ["localhost", "127.0.0.1", "[::1]"].iter().any(|own| name.eq_ignore_ascii_case(own));
        named && port == self.address.port().to_string()
    }
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn bearer(headers: &HeaderMap) -> Option<blake3::Hash> {
    let key = text(headers, header::AUTHORIZATION)?.strip_prefix("Bearer ")?;
    Some(blake3::hash(key.trim().as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(address: &str, key: Option<&str>, headers: &[(&'static str, &str)]) -> u16 {
        let guard = Guard::new(address.parse().unwrap(), key);
        let headers =
            headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        guard.check(&headers, true).map_or_else(|refusal| refusal.status.as_u16(), |()| 200)
    }

    #[test]
    fn only_this_server_is_meant() {
        for host in ["127.0.0.1:11500", "localhost:11500", "LocalHost:11500", "[::1]:11500"] {
            assert_eq!(check("127.0.0.1:11500", None, &[("host", host)]), 200, "{host}");
        }
        for host in ["evil.example:11500", "127.0.0.1:80", "localhost", "127.0.0.1.evil.example:11500", ""] {
            assert_eq!(check("127.0.0.1:11500", None, &[("host", host)]), 403, "{host}");
        }
        assert_eq!(check("127.0.0.1:11500", None, &[]), 400);
    }

    #[test]
    fn pages_of_other_sites_are_refused() {
        let from = |origin| check("127.0.0.1:1", None, &[("host", "localhost:1"), ("origin", origin)]);
        assert_eq!(from("http://localhost:1"), 200);
        assert_eq!((from("http://evil.example"), from("null"), from("http://localhost:2")), (403, 403, 403));
    }

    #[test]
    fn a_key_is_asked_for() {
        let with =
            |value| check("0.0.0.0:1", Some("secret"), &[("host", "box.local:1"), ("authorization", value)]);
        assert_eq!((with("Bearer secret"), with("Bearer secreT"), with("secret")), (200, 401, 401));
        assert_eq!(check("0.0.0.0:1", Some("secret"), &[("host", "box.local:1")]), 401);
    }
}
