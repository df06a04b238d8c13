//! Programs of this machine that judge an output: listed in the pipeline, and allowed on the command line, or not run.
//!
//! No shell; the output goes in on standard input, exit code 0 means that there is no objection. The program gets a
//! path to find others by and nothing else of the environment, has so much time, and of what it prints so much is
//! kept. It runs with the rights of the user: listing a program is trusting it.
//!
//! Unsafe: one call, to end the program with all that it has started.
#![allow(unsafe_code)]

use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::step::OnFail;

/// Time that a program has where the step does not say.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes that are kept of what a program prints; the rest is read and dropped.
const KEPT_BYTES: usize = 64 << 10;

/// Lines of a program's words that become objections.
const OBJECTIONS_MAX: usize = 20;

/// Characters of each.
const OBJECTION_CHARS: usize = 500;

/// How soon it is looked whether a program has ended: twice as long each time, since most end at once or take long.
const FIRST_POLL: Duration = Duration::from_micros(200);
const LAST_POLL: Duration = Duration::from_millis(20);

/// Whether a pipeline may run the programs that it lists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Programs {
    /// It may not: a pipeline that lists one is refused.
    #[default]
    Refused,
    /// It may.
    Allowed {
        /// Where programs are found, as `PATH` has it.
        path: OsString,
    },
}

/// A program that a step lists.
#[derive(Debug, Clone)]
pub(super) struct Program {
    /// The program and its arguments.
    pub command: Vec<String>,
    directory: PathBuf,
    /// The step whose output it judges.
    pub of: usize,
    timeout: Duration,
    pub on_fail: OnFail,
}

/// How a program was ended.
enum Ended {
    Itself(std::process::ExitStatus),
    TimeIsUp,
    Cancelled,
}

impl Program {
    /// A program that runs in `directory`; its own path, where it has a slash, is relative to that too.
    pub(super) fn new(
        command: Vec<String>,
        directory: &Path,
        of: usize,
        timeout: Option<Duration>,
        on_fail: OnFail,
    ) -> Result<Self, String> {
        if command.first().is_none_or(String::is_empty) {
            return Err("the program has no name".to_owned());
        }
        if command.iter().any(|part| part.contains('\0')) {
            return Err("an argument holds a zero byte".to_owned());
        }
        // Whole, since whether a relative one is meant before or after the change of folder is up to the system.
        let directory = std::path::absolute(directory).map_err(|error| error.to_string())?;
        Ok(Self { command, directory, of, timeout: timeout.unwrap_or(TIMEOUT), on_fail })
    }

    /// What it objects to in a text; `None` once `cancelled` says so. The error is why there is no judgement.
    pub(super) fn objections(
        &self,
        text: &str,
        path: &OsString,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<Vec<String>>, String> {
        let name = &self.command[0];
        let mut child = self.start(path).map_err(|error| format!("`{name}` can't be run: {error}"))?;
        let (ended, printed) = std::thread::scope(|scope| {
            let stdin = child.stdin.take();
            let text = text.as_bytes();
            // A program may end without reading all: that is its right.
            scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(text)));
            let kept = [
                child.stdout.take().map(|pipe| scope.spawn(move || kept(pipe))),
                child.stderr.take().map(|pipe| scope.spawn(move || kept(pipe))),
            ];
            let ended = self.wait(&mut child, cancelled);
            // What it has started may hold the pipes open; nothing of it outlives the step.
            end_group(&child);
            let printed = kept.into_iter().flatten().filter_map(|thread| thread.join().ok());
            (ended, printed.collect::<Vec<_>>())
        });
        match ended.map_err(|error| format!("`{name}`: {error}"))? {
            Ended::Cancelled => Ok(None),
            Ended::TimeIsUp => Err(format!("`{name}` did not end within {} s", self.timeout.as_secs_f64())),
            Ended::Itself(status) if status.success() => Ok(Some(Vec::new())),
            Ended::Itself(status) => Ok(Some(said(&status.to_string(), &printed.concat()))),
        }
    }

    fn start(&self, path: &OsString) -> std::io::Result<Child> {
        use std::os::unix::process::CommandExt;
        // With a slash it is a file, without one it is looked for in the path.
        let name = &self.command[0];
        let program = if name.contains('/') { self.directory.join(name) } else { PathBuf::from(name) };
        Command::new(program)
            .args(&self.command[1..])
            .current_dir(&self.directory)
            .env_clear()
            .env("PATH", path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
    }

    fn wait(&self, child: &mut Child, cancelled: &dyn Fn() -> bool) -> std::io::Result<Ended> {
        let begun = Instant::now();
        let mut poll = FIRST_POLL;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(Ended::Itself(status));
            }
            let ended = match (cancelled(), begun.elapsed() >= self.timeout) {
                (true, _) => Some(Ended::Cancelled),
                (false, true) => Some(Ended::TimeIsUp),
                (false, false) => None,
            };
            if let Some(ended) = ended {
                end_group(child);
                child.wait()?;
                return Ok(ended);
            }
            std::thread::sleep(poll);
            poll = (poll * 2).min(LAST_POLL);
        }
    }
}

/// Ends a program's group: itself, if it still runs, and what it has started.
fn end_group(child: &Child) {
    if let Ok(id) = i32::try_from(child.id())
        && id > 1
    {
        // SAFETY: plain numbers. The group is the child's own, made for it at its start; a group of which nothing is
        // left is an error that is passed over.
        unsafe { libc::kill(-id, libc::SIGKILL) };
    }
}

fn kept(mut pipe: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = pipe.by_ref().take(KEPT_BYTES as u64).read_to_end(&mut bytes);
    // Read on, or the program would wait for room in the pipe for ever.
    let _ = std::io::copy(&mut pipe, &mut std::io::sink());
    bytes
}

/// A program's own words as objections; a program that says nothing objects with its exit code.
fn said(status: &str, printed: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(printed);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let lines = lines.map(|line| line.chars().take(OBJECTION_CHARS).collect::<String>());
    let lines: Vec<String> = lines.take(OBJECTIONS_MAX).collect();
    if lines.is_empty() { vec![format!("the program ended with {status}")] } else { lines }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(script: &str, text: &str, seconds: f64) -> Result<Option<Vec<String>>, String> {
        let command = ["sh", "-c", script].map(str::to_owned).to_vec();
        let timeout = Some(Duration::from_secs_f64(seconds));
        let program = Program::new(command, Path::new("/"), 0, timeout, OnFail::Record).unwrap();
        program.objections(text, &"/usr/bin:/bin".into(), &|| false)
    }

    #[test]
    fn exit_code_and_words_are_the_objections() {
        assert_eq!(judge("cat > /dev/null", "x", 10.0), Ok(Some(Vec::new())));
        assert_eq!(
            judge("cat; echo ' twice ' >&2; exit 3", "no good\n", 10.0),
            Ok(Some(vec!["no good".to_owned(), "twice".to_owned()]))
        );
        let silent = judge("exit 2", "x", 10.0).unwrap().unwrap();
        assert!(silent[0].contains("exit status: 2"), "{silent:?}");
    }

    #[test]
    fn it_gets_the_text_a_path_and_nothing_else() {
        let long = "line\n".repeat(100_000);
        assert_eq!(judge("test $(wc -c) = 500000", &long, 10.0), Ok(Some(Vec::new())));
        let said =
            judge("env | grep -v -e ^PATH= -e ^PWD= -e ^_= -e ^SHLVL= -e ^OLDPWD=; pwd; exit 1", "", 10.0);
        assert_eq!(said, Ok(Some(vec!["/".to_owned()])));
    }

    #[test]
    fn time_output_and_children_are_bounded() {
        let begun = Instant::now();
        assert!(judge("sleep 60", "x", 0.2).unwrap_err().contains("did not end within 0.2 s"));
        // A child that was left behind holds the pipes.
        assert_eq!(judge("sleep 60 & exit 0", "x", 10.0), Ok(Some(Vec::new())));
        let loud = judge("head -c 50000000 /dev/zero | tr '\\0' x; exit 1", "x", 30.0).unwrap().unwrap();
        assert_eq!((loud.len(), loud[0].len()), (1, OBJECTION_CHARS));
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        let command = vec!["/nowhere/program".to_owned()];
        let absent = Program::new(command, Path::new("/"), 0, None, OnFail::Record).unwrap();
        assert!(absent.objections("", &OsString::new(), &|| false).unwrap_err().contains("can't be run"));
    }

    #[test]
    fn a_run_that_is_stopped_ends_its_program() {
        let command = ["sh", "-c", "sleep 60"].map(str::to_owned).to_vec();
        let program = Program::new(command, Path::new("/"), 0, None, OnFail::Record).unwrap();
        assert_eq!(program.objections("x", &"/usr/bin:/bin".into(), &|| true), Ok(None));
    }
}
