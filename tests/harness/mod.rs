//! Runs the `tune` binary on the small base that ships with the project.

#![allow(dead_code, reason = "each test file uses its part of it")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The workspace's root, from which the shipped recipes name their files.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the workspace")
}

/// Other people's material to test against; a fresh clone has none.
pub fn shared(path: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("TUNE_SHARED").map_or_else(|| root().join("../shared"), PathBuf::from);
    let found = folder.join(path);
    if found.exists() {
        return Some(found);
    }
    println!("skipped: {} is not on this machine", found.display());
    None
}

/// The command, to be run in the workspace's root.
pub fn tune(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tune"));
    command
        .args(arguments)
        .current_dir(root())
        .stdin(Stdio::null())
        .env("NO_COLOR", "1")
        .env("TUNE_CACHE", "");
    command
}

/// A folder for one test, with what tests write into it.
pub struct Folder(pub tempfile::TempDir);

impl Folder {
    pub fn new() -> Folder {
        Folder(tempfile::tempdir().expect("a temporary folder"))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(&path, content).expect("a file");
        self.text(name)
    }

    /// Copies a folder of the repository here.
    pub fn copy(&self, from: &Path, name: &str) -> PathBuf {
        let to = self.path(name);
        std::fs::create_dir_all(&to).expect("a folder");
        for entry in std::fs::read_dir(from).expect("a folder to copy").flatten() {
            if entry.path().is_file() {
                std::fs::copy(entry.path(), to.join(entry.file_name())).expect("a copied file");
            }
        }
        to
    }

    /// What a command printed on both streams and its exit code, without what changes from run to run.
    pub fn shown(&self, output: &Output) -> String {
        let text =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let text = text
            .replace(&self.0.path().display().to_string(), "DIR")
            .replace(&root().display().to_string(), "ROOT");
        format!("{text}exit {}\n", output.status.code().map_or("by a signal".into(), |code| code.to_string()))
    }
}

/// A recipe of a few steps on the shipped base and data; `changes` replace whole lines or are appended to a table.
pub fn recipe(changes: &[(&str, &str)]) -> String {
    let mut text = String::from(
        "[model]\nbase = \"recipes/pocket\"\n\
         [data]\ntrain = \"datasets/quickstart/train.jsonl\"\nmax_seq_len = 256\n\
         [train]\nmax_steps = 6\nbatch_size = 4\nlearning_rate = 1e-3\neval_every = 3\ncheckpoint_every = 2\n\
         [eval]\ntest = \"datasets/quickstart/test.jsonl\"\nrows = 4\nmax_new_tokens = 64\n\
         [budget]\nmemory = \"2GB\"\nreserve = \"100MB\"\n",
    );
    for (key, line) in changes {
        text = match text.lines().find(|l| l.starts_with(key)) {
            Some(old) => text.replace(old, line),
            None => panic!("the recipe has no line {key}"),
        };
    }
    text
}
