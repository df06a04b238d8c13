//! The hub as this machine's environment describes it, and a download from it on the terminal.
//!
//! The variables are those of Python's `huggingface_hub`, so that both work with one cache and one token.

use crate::bytes;
use crate::failure::Failure;
use crate::show;
use crate::terminal::Terminal;
use formats::Observer;
use hub::{Error, Event, ModelId, Options, Pulled};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// Where no screen shows a progress bar, a line of progress at most this often.
const BETWEEN_LINES: Duration = Duration::from_secs(5);
/// A commit's digits that people read.
const SHOWN_COMMIT: usize = 12;

/// Brings what the hub has now.
pub fn pull(id: &ModelId, terminal: &mut Terminal, cancel: &AtomicBool) -> Result<Pulled, Failure> {
    watched(terminal, |observer| hub::pull(id, &options()?, observer, cancel).map_err(failure))
}

/// Finds a model in the cache, and downloads it only when it is not there.
pub fn resolve(id: &ModelId, terminal: &mut Terminal, cancel: &AtomicBool) -> Result<Pulled, Failure> {
    watched(terminal, |observer| hub::resolve(id, &options()?, observer, cancel).map_err(failure))
}

/// The error with its way out.
pub fn failure(error: Error) -> Failure {
    let failure = match &error {
        Error::Interrupted => Failure::interrupted(&error),
        _ => Failure::new(&error),
    };
    match error.hint() {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// Endpoint, token, cache and offline mode, as the environment sets them.
fn options() -> Result<Options, Failure> {
    let home = home()?;
    let cache = variable("HF_HUB_CACHE").or_else(|| variable("HUGGINGFACE_HUB_CACHE"));
    let cache = cache.map_or_else(|| home.join("hub"), PathBuf::from);
    let mut options = Options::new(std::path::absolute(cache)?);
    if let Some(endpoint) = variable("HF_ENDPOINT") {
        options.endpoint = endpoint.trim_end_matches('/').to_owned();
    }
    let token_file = variable("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
    let token = variable("HF_TOKEN").or_else(|| variable("HUGGING_FACE_HUB_TOKEN"));
    let token = token.or_else(|| std::fs::read_to_string(token_file).ok());
    options.token = token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
    options.is_offline = is_set("HF_HUB_OFFLINE") || is_set("TRANSFORMERS_OFFLINE");
    Ok(options)
}

/// The folder of token and cache.
fn home() -> Result<PathBuf, Failure> {
    if let Some(told) = variable("HF_HOME") {
        return Ok(told.into());
    }
    if let Some(caches) = variable("XDG_CACHE_HOME") {
        return Ok(PathBuf::from(caches).join("huggingface"));
    }
    let home = variable("HOME").or_else(|| variable("USERPROFILE"));
    let home = home.ok_or_else(|| {
        Failure::new("there is no place for downloads: neither HF_HOME nor HOME is set")
            .hint("set HF_HOME to a folder with room for models")
    })?;
    Ok(PathBuf::from(home).join(".cache/huggingface"))
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn is_set(name: &str) -> bool {
    let value = variable(name).unwrap_or_default().to_uppercase();
    ["1", "ON", "YES", "TRUE"].contains(&value.as_str())
}

/// A commit as people write it.
pub fn short(commit: &str) -> &str {
    commit.get(..SHOWN_COMMIT).unwrap_or(commit)
}

/// Runs a download and shows what it reports.
fn watched(
    terminal: &mut Terminal,
    work: impl FnOnce(&mut dyn Observer<Event>) -> Result<Pulled, Failure>,
) -> Result<Pulled, Failure> {
    let mut last_line = Instant::now();
    let result = work(&mut |event: Event| show(terminal, &mut last_line, &event));
    terminal.clear_bar();
    result
}

fn show(terminal: &mut Terminal, last_line: &mut Instant, event: &Event) {
    if terminal.is_json() {
        terminal.json(event);
        return;
    }
    match event {
        Event::PullPlan { id, commit, n_files, total_bytes, download_bytes, folder } => {
            let (download, total) = (bytes::show(*download_bytes), bytes::show(*total_bytes));
            let what = match download_bytes {
                0 => format!("all {total} of {n_files} files are here"),
                _ => format!("download {download} of {total} in {n_files} files"),
            };
            terminal.row("hub", format!("{id} at {} · {what} · {}", short(commit), folder.display()));
        }
        Event::PullProgress { file, done_bytes, total_bytes, bytes_per_second } => {
            let (done, total) = (bytes::show(*done_bytes), bytes::show(*total_bytes));
            let line = format!("{file} · {done} of {total} · {}/s", bytes::show(*bytes_per_second as u64));
            if last_line.elapsed() >= BETWEEN_LINES {
                *last_line = Instant::now();
                terminal.progress(*done_bytes, *total_bytes, &line);
            } else {
                terminal.progress_on_screen(*done_bytes, *total_bytes, &line);
            }
        }
        Event::PullResumed { file, have_bytes, bytes } => {
            let (have, size) = (bytes::show(*have_bytes), bytes::show(*bytes));
            terminal.more(format!("{file} goes on after {have} of {size}"));
        }
        Event::PullStartedOver { file, reason } => terminal.warning(format!("{file} starts over: {reason}")),
        Event::PullRetry { what, reason, wait_ms } => {
            let wait = show::duration(Duration::from_millis(*wait_ms));
            terminal.warning(format!("{what}: {reason}; again in {wait}"));
        }
        Event::PullWaiting { path } => {
            terminal.row("wait", format!("another process holds {}", path.display()))
        }
        Event::PullUnasked { id, reason } => {
            terminal
                .warning(format!("{id} is taken from the cache as it is, the hub was not reached: {reason}"));
        }
        Event::PullFinished { downloaded_bytes: 0, .. } => {}
        Event::PullFinished { path, downloaded_bytes, seconds } => terminal.row(
            "wrote",
            format!("{} ({}) in {}", path.display(), bytes::show(*downloaded_bytes), show::seconds(*seconds)),
        ),
        _ => {}
    }
}
