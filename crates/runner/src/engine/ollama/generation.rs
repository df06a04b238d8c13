//! Which Ollama a server is: its version, and what the generation of that version does with a file.

use std::fmt;

use serde::Serialize;

/// A server's version, as `/api/version` tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Version {
    major: u32,
    minor: u32,
    patch: u32,
}

/// The first version whose requests can forbid to cut a prompt and to shift a context.
pub(super) const OLDEST: Version = Version { major: 0, minor: 12, patch: 6 };

/// The three generations that differ in what they do with a GGUF file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Generation {
    /// Up to 0.29: a file is kept as it is, adapters are taken.
    Keeps,
    /// 0.30 to 0.34.0: a file is written anew, so that the stored digest is another one; adapters are taken.
    Rewrites,
    /// From 0.34.1: a file is kept as it is, adapters are refused.
    Wraps,
}

impl Version {
    /// Reads `0.32.15`, `v0.30.0-rc1`, `0.34.1+build`.
    ///
    /// # Errors
    /// What is wrong with it, as text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("the server calls its version `{}`", text.chars().take(40).collect::<String>());
        let plain = text.strip_prefix('v').unwrap_or(text);
        let numbers = plain.split(['-', '+']).next().unwrap_or_default();
        let mut parts = numbers.split('.').map(|part| part.parse::<u32>().map_err(|_| wrong()));
        let mut next = || parts.next().unwrap_or_else(|| Err(wrong()));
        let version = Self { major: next()?, minor: next()?, patch: next()? };
        if parts.next().is_some() { Err(wrong()) } else { Ok(version) }
    }

    /// Its generation. A build without a version (`0.0.0`) is held to what every generation keeps.
    pub fn generation(self) -> Generation {
        let at = |minor, patch| Self { major: 0, minor, patch };
        match self {
            _ if self == at(0, 0) => Generation::Rewrites,
            _ if self < at(30, 0) => Generation::Keeps,
            _ if self < at(34, 1) => Generation::Rewrites,
            _ => Generation::Wraps,
        }
    }

    /// Whether it is too old to be relied on.
    pub(super) fn is_too_old(self) -> bool {
        self < OLDEST && self != Self { major: 0, minor: 0, patch: 0 }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_fall_into_generations() {
        for (text, generation) in [
            ("0.12.6", Generation::Keeps),
            ("0.24.0", Generation::Keeps),
            ("0.29.9", Generation::Keeps),
            ("0.30.0-rc2", Generation::Rewrites),
            ("0.34.0", Generation::Rewrites),
            ("v0.34.1", Generation::Wraps),
            ("0.34.1+abc", Generation::Wraps),
            ("1.0.0", Generation::Wraps),
            ("0.0.0", Generation::Rewrites),
        ] {
            assert_eq!(Version::parse(text).unwrap().generation(), generation, "{text}");
        }
        assert!(Version::parse("0.12.5").unwrap().is_too_old());
        assert!(!Version::parse("0.12.6").unwrap().is_too_old());
        assert!(!Version::parse("0.0.0").unwrap().is_too_old());
    }

    #[test]
    fn what_is_no_version_is_refused() {
        for text in ["", "0.1", "latest", "0.1.2.3", "0.x.1", "-1.0.0", "0.1.99999999999"] {
            assert!(Version::parse(text).is_err(), "{text}");
        }
    }
}
