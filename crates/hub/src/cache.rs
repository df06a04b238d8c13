//! The hub's cache on disk, shared with Python's `huggingface_hub`.
//!
//! ```text
//! models--OWNER--NAME/blobs/ETAG               one file's bytes, named by their checksum
//!                     blobs/ETAG.incomplete    a part of them
//!                     refs/REVISION            the commit that a branch or tag stood for
//!                     snapshots/COMMIT/FILE    a link to the blob
//!                     .no_exist/COMMIT/FILE    empty: known to be in no such commit
//! .locks/models--OWNER--NAME/ETAG.lock         locked while a process writes the blob
//! ```
//! Layout: <https://huggingface.co/docs/huggingface_hub/guides/manage-cache>.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::digest::Digest;
use crate::listing::is_commit;
use crate::{Error, ModelId, Result};

/// A repository's part of the cache.
#[derive(Debug, Clone)]
pub(crate) struct Repository {
    folder: PathBuf,
    locks: PathBuf,
}

/// Whether a blob was written just now, and is nobody else's yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blob {
    New,
    Old,
}

impl Repository {
    pub(crate) fn new(cache: &Path, id: &ModelId) -> Self {
        let name = format!("models--{}", id.repository().replace('/', "--"));
        Self { folder: cache.join(&name), locks: cache.join(".locks").join(name) }
    }

    /// The repository's folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.folder.join("blobs").join(digest.hex())
    }

    /// A part of a blob, to be continued.
    pub(crate) fn partial(&self, digest: &Digest) -> PathBuf {
        self.folder.join("blobs").join(format!("{}.incomplete", digest.hex()))
    }

    pub(crate) fn lock(&self, digest: &Digest) -> PathBuf {
        self.locks.join(format!("{}.lock", digest.hex()))
    }

    /// The folder that has one commit's files under their names.
    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// The commit that a revision stood for when it was last downloaded.
    pub(crate) fn commit_of(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let text = fs::read_to_string(self.folder.join("refs").join(revision)).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// Remembers what a revision stands for.
    pub(crate) fn write_ref(&self, revision: &str, commit: &str) -> Result<()> {
        if revision == commit || self.commit_of(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        Ok(formats::atomic::write_bytes(&self.folder.join("refs").join(revision), commit.as_bytes())?)
    }

    /// Remembers that a commit has no such file.
    pub(crate) fn mark_absent(&self, commit: &str, file: &str) -> Result<()> {
        let path = self.folder.join(".no_exist").join(commit).join(file);
        if path.exists() {
            return Ok(());
        }
        make_parent(&path)?;
        File::create(&path).map(drop).map_err(|source| Error::Io { path, action: "make", source })
    }

    /// Which of some files a commit may have although its snapshot has not, as far as the cache knows.
    pub(crate) fn unknown<'f>(&self, commit: &str, files: &[&'f str]) -> Vec<&'f str> {
        let (snapshot, absent) = (self.snapshot(commit), self.folder.join(".no_exist").join(commit));
        let tree = self.tree(commit);
        let is_known = |file: &str| {
            let not_in_tree = tree.as_ref().is_some_and(|tree| !tree.files.contains_key(file));
            snapshot.join(file).is_file() || absent.join(file).is_file() || not_in_tree
        };
        files.iter().copied().filter(|file| !is_known(file)).collect()
    }

    /// The listing that newer versions of `huggingface_hub` keep of a commit.
    fn tree(&self, commit: &str) -> Option<Tree> {
        let tree: Tree =
            formats::json::read(&self.folder.join("trees").join(format!("{commit}.json"))).ok()?;
        Some(tree).filter(|tree| tree.format_version == 1)
    }

    /// Lets a commit have a blob under a file's name.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn link(&self, commit: &str, file: &str, digest: &Digest, blob: Blob) -> Result<()> {
        self.link_with(commit, file, digest, blob, symlink)
    }

    /// As [`Repository::link`]; where links cannot be made, a new blob moves to its name, and an old one, which other
    /// commits may use, is copied.
    fn link_with(
        &self,
        commit: &str,
        file: &str,
        digest: &Digest,
        blob: Blob,
        symlink: impl Fn(&Path, &Path) -> io::Result<()>,
    ) -> Result<()> {
        let (pointer, blob_path) = (self.snapshot(commit).join(file), self.blob(digest));
        if pointer.is_file() {
            return Ok(());
        }
        make_parent(&pointer)?;
        // What is here leads nowhere: its blob was removed by hand.
        let _ = fs::remove_file(&pointer);
        let target = format!("{}blobs/{}", "../".repeat(2 + file.matches('/').count()), digest.hex());
        if symlink(Path::new(&target), &pointer).is_ok() || pointer.is_file() {
            return Ok(());
        }
        match blob {
            Blob::New => fs::rename(&blob_path, &pointer).map_err(|source| Error::Io {
                path: pointer,
                action: "move a file to",
                source,
            }),
            Blob::Old => formats::atomic::write_file(&pointer, |out| {
                let copied = File::open(&blob_path).and_then(|mut from| io::copy(&mut from, out));
                copied.map(drop).map_err(|source| Error::Io { path: blob_path, action: "copy", source })
            }),
        }
    }
}

#[derive(Deserialize)]
struct Tree {
    format_version: u32,
    files: BTreeMap<String, IgnoredAny>,
}

/// Makes the folder that a file is to lie in.
pub(crate) fn make_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(|source| Error::Io { path: parent.into(), action: "make", source })
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, link)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789012345678901234567890123456789";

    fn repository(content: &str) -> (tempfile::TempDir, Repository, Digest) {
        let dir = tempfile::tempdir().unwrap();
        let repository = Repository::new(dir.path(), &"a/b".parse().unwrap());
        let digest = Digest::from_etag(&"c".repeat(64)).unwrap();
        make_parent(&repository.blob(&digest)).unwrap();
        fs::write(repository.blob(&digest), content).unwrap();
        (dir, repository, digest)
    }

    #[test]
    fn links_lead_from_every_depth_to_the_blob() {
        let (dir, repository, digest) = repository("x");
        for file in ["config.json", "a/b/c.gguf"] {
            repository.link(COMMIT, file, &digest, Blob::New).unwrap();
            let pointer = dir.path().join("models--a--b/snapshots").join(COMMIT).join(file);
            assert_eq!(fs::read_to_string(&pointer).unwrap(), "x");
            assert!(pointer.is_symlink() || cfg!(windows));
        }
    }

    #[test]
    fn without_links_a_new_blob_moves_and_an_old_one_is_copied() {
        let never = |_: &Path, _: &Path| Err(io::Error::from(io::ErrorKind::PermissionDenied));
        for (blob, stays) in [(Blob::New, false), (Blob::Old, true)] {
            let (_dir, repository, digest) = repository("x");
            repository.link_with(COMMIT, "f", &digest, blob, never).unwrap();
            assert_eq!(fs::read_to_string(repository.snapshot(COMMIT).join("f")).unwrap(), "x");
            assert_eq!(repository.blob(&digest).is_file(), stays);
        }
    }

    #[test]
    fn a_link_that_leads_nowhere_is_replaced() {
        let (_dir, repository, digest) = repository("x");
        let pointer = repository.snapshot(COMMIT).join("f");
        make_parent(&pointer).unwrap();
        symlink(Path::new("../../blobs/gone"), &pointer).unwrap();
        repository.link(COMMIT, "f", &digest, Blob::Old).unwrap();
        assert_eq!(fs::read_to_string(pointer).unwrap(), "x");
    }

    #[test]
    fn what_a_commit_lacks_is_remembered() {
        let (_dir, repository, digest) = repository("x");
        repository.link(COMMIT, "f", &digest, Blob::Old).unwrap();
        assert_eq!(repository.unknown(COMMIT, &["f", "g", "h"]), ["g", "h"]);
        repository.mark_absent(COMMIT, "g").unwrap();
        assert_eq!(repository.unknown(COMMIT, &["f", "g", "h"]), ["h"]);
        let tree = repository.folder.join("trees").join(format!("{COMMIT}.json"));
        make_parent(&tree).unwrap();
        fs::write(&tree, r#"{"format_version": 1, "files": {"i": {"size": 1}}}"#).unwrap();
        assert_eq!(repository.unknown(COMMIT, &["f", "g", "h", "i"]), ["i"]);
    }

    #[test]
    fn refs_name_commits_or_nothing() {
        let (_dir, repository, _) = repository("x");
        assert_eq!(repository.commit_of("main"), None);
        repository.write_ref("refs/pr/1", COMMIT).unwrap();
        assert_eq!(repository.commit_of("refs/pr/1").as_deref(), Some(COMMIT));
        fs::write(repository.folder.join("refs/main"), "../../x").unwrap();
        assert_eq!(repository.commit_of("main"), None);
        assert_eq!(repository.commit_of(COMMIT).as_deref(), Some(COMMIT));
    }
}
