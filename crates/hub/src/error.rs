//! The one error type of this crate, and the way out of each.

use std::path::PathBuf;

/// The result of everything that can fail here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can be wrong with a name, a repository, a connection or a file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the messages say what each field is")]
pub enum Error {
    #[error("`{name}` is no model of the hub: {reason}")]
    Name { name: String, reason: &'static str },

    #[error("there is no repository {repository} at {endpoint}, or it is private")]
    NoRepository { repository: String, endpoint: String, has_token: bool },

    #[error("{repository} has no revision `{revision}`")]
    NoRevision { repository: String, revision: String },

    #[error("{repository} has no file `{file}`{}", others(there_are))]
    NoFile { repository: String, file: String, there_are: Vec<String> },

    #[error("{repository} is gated: its owner lets only those download it who have accepted its terms")]
    Gated { repository: String, page: String, has_token: bool },

    #[error("the hub refuses {url}: {reason}")]
    Refused { url: String, reason: String, has_token: bool },

    #[error(
        "{repository} has only pickled weights ({file}): such a file is a program, and this one runs none"
    )]
    PickleOnly { repository: String, file: String },

    #[error(
        "{repository} has no weights that can be trained on: no model.safetensors and no index of shards"
    )]
    NoWeights { repository: String, ggufs: Vec<String> },

    #[error("{file} of {repository} is one part of a GGUF that is split over several files")]
    SplitGguf { repository: String, file: String },

    #[error("{repository} lists a file `{name}`, which would lie outside its folder")]
    HostileName { repository: String, name: String },

    #[error("{url} answers with {status}: {reason}")]
    Status { url: String, status: u16, reason: String },

    #[error("{url} cannot be reached, tried {tries} times: {reason}")]
    Unreachable { url: String, tries: u32, reason: String },

    #[error("no safe connection to {url}: {reason}")]
    Untrusted { url: String, reason: String },

    #[error("the answer of {url} is not the hub's: {reason}")]
    Protocol { url: String, reason: String },

    #[error(
        "{file} came with the checksum {actual}, the hub names {expected}; what was downloaded is removed"
    )]
    Checksum { file: String, expected: String, actual: String },

    #[error("{id} is not in the cache {}: {} missing", cache.display(), missing.join(", "))]
    Offline { id: String, cache: PathBuf, missing: Vec<String> },

    #[error("the download was interrupted")]
    Interrupted,

    #[error("cannot {action} {}: {source}", path.display())]
    Io { path: PathBuf, action: &'static str, source: std::io::Error },

    #[error(transparent)]
    Formats(#[from] formats::Error),
}

impl Error {
    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Name { .. } => {
                "a model of the hub is OWNER/NAME, OWNER/NAME@REVISION or OWNER/NAME:FILE.gguf".into()
            }
            Self::NoRepository { has_token, .. } => {
                format!("check the name; {}", token("for a private repository", *has_token))
            }
            Self::NoRevision { repository, .. } => {
                format!("leave it out for the main branch: {repository}")
            }
            Self::Gated { page, has_token, .. } => {
                format!("accept the terms at {page}; {}", token("then", *has_token))
            }
            Self::Refused { has_token, .. } => token("if the repository is yours to read", *has_token),
            Self::PickleOnly { .. } => {
                "choose a repository with model.safetensors; many have a copy on a branch `refs/pr/N`".into()
            }
            Self::NoWeights { repository, ggufs } => {
                let Some(first) = ggufs.first() else {
                    return Some("choose a repository in transformers' layout".into());
                };
                format!("it has {} GGUF files; name one of them: {repository}:{first}", ggufs.len())
            }
            Self::SplitGguf { .. } => {
                "a base is one file: choose a smaller quantisation, or the 16-bit repository that it was made of".into()
            }
            Self::Unreachable { .. } => {
                "start it again when the network is back: what is here is continued".into()
            }
            Self::Untrusted { .. } => {
                "the system's certificates decide; SSL_CERT_FILE names those of a proxy that reads along"
                    .into()
            }
            Self::Checksum { .. } => "start it again; if it happens twice, a proxy changes the bytes".into(),
            Self::Offline { id, .. } => {
                format!("unset HF_HUB_OFFLINE and `tune pull {id}`, or copy the cache from where it is")
            }
            Self::Interrupted => "start it again: what is here is continued".into(),
            Self::Formats(formats::Error::DiskFull { .. }) => {
                "free some space, or name another place with HF_HOME".into()
            }
            _ => return None,
        };
        Some(hint)
    }
}

fn token(when: &str, has_token: bool) -> String {
    match has_token {
        true => format!("{when}, the token in HF_TOKEN must be of an account that may read it"),
        false => format!("{when}, set HF_TOKEN to a token of https://huggingface.co/settings/tokens"),
    }
}

fn others(there_are: &[String]) -> String {
    if there_are.is_empty() { String::new() } else { format!("; there are {}", there_are.join(", ")) }
}
