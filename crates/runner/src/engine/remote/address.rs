//! Where a server is: an address as people write it, checked before anything is sent there.

use std::fmt;
use std::net::IpAddr;

use reqwest::Url;

/// A server's address up to where its routes begin, without a slash at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    url: Url,
}

impl Address {
    /// Reads an address as `OLLAMA_HOST` has it: a port, a host, both, or a URL; what is missing is Ollama's own.
    ///
    /// # Errors
    /// What is wrong with it, as text.
    pub fn of_ollama(text: &str) -> Result<Self, String> {
        let text = text.trim().trim_matches(['"', '\'']);
        let text = if text.is_empty() { "127.0.0.1" } else { text };
        let (has_scheme, written) = match text.split_once("://") {
            Some((scheme, _)) => (Some(scheme), text.to_owned()),
            None if text.starts_with(':') => (None, format!("http://127.0.0.1{text}")),
            None if text.bytes().all(|b| b.is_ascii_digit()) => (None, format!("http://127.0.0.1:{text}")),
            None => (None, format!("http://{text}")),
        };
        let mut address = Self::parse(&written)?;
        // With a scheme a port that is not given is the scheme's own, as Ollama reads it.
        if has_scheme.is_none() && address.url.port().is_none() {
            address.url.set_port(Some(11434)).map_err(|()| wrong(text, "it can have no port"))?;
        }
        // A server that listens everywhere is asked here.
        if matches!(address.url.host_str(), Some("0.0.0.0" | "[::]")) {
            address.url.set_host(Some("127.0.0.1")).map_err(|error| wrong(text, &error.to_string()))?;
        }
        Ok(address)
    }

    /// Reads a URL.
    ///
    /// # Errors
    /// What is wrong with it, as text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut url: Url = text.trim().parse().map_err(|error| wrong(text, &format!("{error}")))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(wrong(text, "it begins with neither http:// nor https://"));
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err(wrong(text, "it names no host"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong("the address", "a password has no place in it"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(wrong(text, "it ends with the path of the API, with nothing after it"));
        }
        let path = url.path().trim_end_matches('/').to_owned();
        url.set_path(&path);
        Ok(Self { url })
    }

    /// The address of a route, which begins with a slash.
    pub fn route(&self, route: &str) -> Url {
        let mut url = self.url.clone();
        url.set_path(&format!("{}{route}", self.url.path().trim_end_matches('/')));
        url
    }

    /// Whether it is this machine: nothing that is sent there leaves it.
    pub fn is_loopback(&self) -> bool {
        let Some(host) = self.url.host_str() else { return false };
        let plain = host.trim_start_matches('[').trim_end_matches(']');
        match plain.parse::<IpAddr>() {
            Ok(ip) => ip.to_canonical().is_loopback(),
            Err(_) => plain.eq_ignore_ascii_case("localhost"),
        }
    }

    /// Whether what is sent there can't be read on the way.
    pub fn is_private(&self) -> bool {
        self.url.scheme() == "https" || self.is_loopback()
    }

    /// `host:port`, as a server listens on.
    pub fn host_and_port(&self) -> String {
        let host = self.url.host_str().unwrap_or_default();
        format!("{host}:{}", self.url.port_or_known_default().unwrap_or(11434))
    }
}

fn wrong(text: &str, reason: &str) -> String {
    format!("`{text}` is no address of a server: {reason}")
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.url.as_str().trim_end_matches('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ollama_hosts_are_read_as_ollama_reads_them() {
        let cases = [
            ("", "http://127.0.0.1:11434"),
            ("11500", "http://127.0.0.1:11500"),
            (":11500", "http://127.0.0.1:11500"),
            ("0.0.0.0", "http://127.0.0.1:11434"),
            ("[::]:11500", "http://127.0.0.1:11500"),
            ("[::1]:11500", "http://[::1]:11500"),
            ("box", "http://box:11434"),
            ("box:1", "http://box:1"),
            ("http://box:11434/", "http://box:11434"),
            ("http://box", "http://box"),
            ("https://box/ollama/", "https://box/ollama"),
            (" \"localhost:11434\" ", "http://localhost:11434"),
        ];
        for (text, expected) in cases {
            assert_eq!(Address::of_ollama(text).unwrap().to_string(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in ["ftp://box", "http://", "file:///etc/passwd", "http://a:b@box", "https://box?x=1", "a b"]
        {
            assert!(Address::of_ollama(text).is_err(), "{text}");
        }
        let secret = Address::parse("https://me:hush@box").unwrap_err();
        assert!(!secret.contains("hush"), "{secret}");
    }

    #[test]
    fn this_machine_is_known() {
        for (text, is_loopback) in [
            ("http://localhost:1", true),
            ("http://127.0.0.9:1", true),
            ("http://[::1]:1", true),
            ("http://[::ffff:127.0.0.1]:1", true),
            ("http://192.168.0.2:1", false),
            ("http://localhost.example.com", false),
            ("http://127.0.0.1.example.com", false),
        ] {
            assert_eq!(Address::parse(text).unwrap().is_loopback(), is_loopback, "{text}");
        }
        assert_eq!(
            Address::parse("https://box/v1").unwrap().route("/models").as_str(),
            "https://box/v1/models"
        );
        assert_eq!(Address::parse("https://box").unwrap().route("/models").as_str(), "https://box/models");
    }
}
