//! An Ollama that this program starts because it was asked to, and ends again.
//!
//! `unsafe` for one call, since std can end a child only by killing it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::server::OllamaServer;
use crate::engine::remote::Patience;
use crate::{Error, Result};

/// A server that does not answer by then will not.
const STARTS_WITHIN: Duration = Duration::from_secs(30);

/// A server that is asked to end and does not is killed.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

/// An Ollama of ours; it ends when this is dropped.
#[derive(Debug)]
pub struct Started {
    child: Option<Child>,
}

/// Starts `program serve` on a server's address and waits until it answers; one that answers already is used, and is
/// not ours to end. One model at a time, as the engine has it.
///
/// # Errors
/// [`Error::Remote`] if the address is another machine's, the program can't be run, or nothing answers.
pub fn start(
    program: &Path,
    server: &OllamaServer,
    log: Option<PathBuf>,
    cancelled: &dyn Fn() -> bool,
) -> Result<Started> {
    let refuse = |reason: String| server.refusal("start Ollama", reason);
    // Whoever is there already is asked once.
    let once = OllamaServer { patience: Patience { tries: 1, ..server.patience.clone() }, ..server.clone() };
    match once.version() {
        Ok(_) => return Ok(Started { child: None }),
        Err(Error::Remote { hint, .. }) if !server.is_local() => {
            let reason = "it is another machine's address, where this one starts nothing".to_owned();
            return Err(hinted(refuse(reason), hint));
        }
        Err(_) => {}
    }
    let output = || -> std::io::Result<Stdio> {
        let Some(log) = &log else { return Ok(Stdio::null()) };
        Ok(std::fs::OpenOptions::new().create(true).append(true).open(log)?.into())
    };
    let piped = output().and_then(|out| Ok((out, output()?)));
    let (out, err) = piped.map_err(Error::io(log.clone().unwrap_or_default()))?;
    let child = Command::new(program)
        .arg("serve")
        .env("OLLAMA_HOST", server.address.host_and_port())
        .env("OLLAMA_MAX_LOADED_MODELS", "1")
        .env("OLLAMA_NUM_PARALLEL", "1")
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .spawn()
        .map_err(|error| {
            let hint = Some("is Ollama installed? See https://ollama.com/download".to_owned());
            hinted(refuse(format!("{} can't be run: {error}", program.display())), hint)
        })?;
    let mut started = Started { child: Some(child) };
    let begun = Instant::now();
    while once.version().is_err() {
        if let Some(status) = started.ended() {
            return Err(refuse(format!("it ended at once, with {status}")));
        }
        if begun.elapsed() >= STARTS_WITHIN {
            return Err(refuse(format!("it does not answer after {} s", STARTS_WITHIN.as_secs())));
        }
        if cancelled() {
            return Err(Error::Cancelled);
        }
        std::thread::sleep(server.patience.poll);
    }
    Ok(started)
}

fn hinted(error: Error, hint: Option<String>) -> Error {
    match error {
        Error::Remote { server, request, tries, reason, .. } => {
            Error::Remote { server, request, tries, reason, hint }
        }
        other => other,
    }
}

impl Started {
    /// Whether it was started here.
    pub fn is_ours(&self) -> bool {
        self.child.is_some()
    }

    fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.child.as_mut().and_then(|child| child.try_wait().ok().flatten())
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        ask_to_end(&child);
        let begun = Instant::now();
        while matches!(child.try_wait(), Ok(None)) {
            if begun.elapsed() >= ENDS_WITHIN {
                // Its own children end when their pipes do.
                let _ = child.kill();
                let _ = child.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A server that is told to end takes its model's process with it; one that is killed leaves it behind.
#[cfg(unix)]
#[allow(unsafe_code, reason = "std sends no other signal than SIGKILL")]
fn ask_to_end(child: &Child) {
    let Ok(pid) = libc::pid_t::try_from(child.id()) else { return };
    // SAFETY: kill takes plain numbers; the child was not waited for yet, so that its id is still its own.
    unsafe { libc::kill(pid, libc::SIGTERM) };
}

#[cfg(not(unix))]
fn ask_to_end(_child: &Child) {}
