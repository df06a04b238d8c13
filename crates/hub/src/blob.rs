//! One file's way into the cache: locked, continued where a part is here, verified, and only then given its name.
//!
//! A part lies in `ETAG.incomplete`. The tag is the checksum of the content, so a part can only ever be continued with
//! bytes of the same file, and a file that has changed on the hub starts over under its new name.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use formats::lock::LockedFile;

use crate::cache::{Blob, Repository, make_parent};
use crate::client::{Answer, Client, Trouble, protocol};
use crate::digest::{Digest, Hasher};
use crate::meter::Meter;
use crate::{Error, Event, Result};

const CHUNK_BYTES: usize = 256 << 10;
/// How soon it is seen that another process has let go of a file.
const LOCK_POLL: Duration = Duration::from_millis(200);

/// A file on the hub, as it describes it.
#[derive(Debug, Clone)]
pub(crate) struct Remote {
    pub(crate) file: String,
    url: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

/// Asks the hub for a file's checksum and size.
///
/// # Errors
/// [`Error::Gated`], [`Error::NoFile`] and other refusals; [`Error::Protocol`] when there is no checksum or size.
pub(crate) fn look_up(client: &mut Client<'_>, commit: &str, file: &str) -> Result<Remote> {
    let url = client.file_url(commit, file);
    let answer = client.patiently(&url, |client| client.head(&url))?;
    if answer.hub_header("x-repo-commit").is_some_and(|found| found != commit) {
        return Err(protocol(&url, format!("it is of another commit than {commit}")));
    }
    let etag = answer.hub_header("x-linked-etag").or_else(|| answer.hub_header("etag"));
    let size = answer.hub_header("x-linked-size").or_else(|| answer.hub_header("content-length"));
    let digest = etag.and_then(Digest::from_etag);
    let digest = digest.ok_or_else(|| protocol(&url, "it names no checksum".to_owned()))?;
    let size = size.and_then(|size| size.parse().ok());
    let size = size.ok_or_else(|| protocol(&url, "it names no size".to_owned()))?;
    Ok(Remote { file: file.to_owned(), url, digest, size })
}

impl Remote {
    /// Bytes that are not in the cache yet.
    pub(crate) fn lacking_bytes(&self, cache: &Repository) -> u64 {
        if has_size(&cache.blob(&self.digest), self.size) {
            return 0;
        }
        let have = fs::metadata(cache.partial(&self.digest)).map_or(0, |part| part.len());
        if have <= self.size { self.size - have } else { self.size }
    }
}

/// Brings a file's bytes into the cache.
///
/// # Errors
/// [`Error::Checksum`], after which nothing of the file is left; [`Error::Unreachable`] and [`Error::Interrupted`],
/// after which the part that came is kept.
pub(crate) fn fetch(
    client: &mut Client<'_>,
    cache: &Repository,
    remote: &Remote,
    meter: &mut Meter,
) -> Result<Blob> {
    let blob = cache.blob(&remote.digest);
    make_parent(&blob)?;
    let _lock = lock(client, &cache.lock(&remote.digest))?;
    if has_size(&blob, remote.size) {
        return Ok(Blob::Old);
    }
    let mut part = Part::open(cache.partial(&remote.digest), remote)?;
    if part.have > 0 {
        let (file, have_bytes, bytes) = (remote.file.clone(), part.have, remote.size);
        client.observer.observe(Event::PullResumed { file, have_bytes, bytes });
    }
    let mut failures = 0;
    while part.have < remote.size {
        let had = part.have;
        if let Err(trouble) = read_on(client, remote, &mut part, meter) {
            failures = if part.have > had { 0 } else { failures };
            client.pause(&remote.url, &mut failures, trouble)?;
        }
    }
    meter.report(&remote.file, client.observer);
    part.finish(remote, &blob)?;
    client.observer.observe(Event::PullFile { file: remote.file.clone(), bytes: remote.size });
    Ok(Blob::New)
}

fn has_size(path: &Path, size: u64) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() == size)
}

/// Waits for the lock that Python's `huggingface_hub` takes too; `None` on a file system without locks.
fn lock(client: &mut Client<'_>, path: &Path) -> Result<Option<LockedFile>> {
    make_parent(path)?;
    let opened = OpenOptions::new().write(true).create(true).truncate(false).open(path);
    let mut file = opened.map_err(|source| Error::Io { path: path.into(), action: "open", source })?;
    let mut is_said = false;
    loop {
        match LockedFile::try_new(file) {
            Ok(locked) => return Ok(Some(locked)),
            // The checksum still finds what two writers would do to each other.
            Err((_, TryLockError::Error(_))) => return Ok(None),
            Err((same, TryLockError::WouldBlock)) => file = same,
        }
        if !is_said {
            client.observer.observe(Event::PullWaiting { path: path.to_owned() });
            is_said = true;
        }
        client.sleep(LOCK_POLL)?;
    }
}

/// One request for what is missing, and its bytes as far as they come.
fn read_on(
    client: &mut Client<'_>,
    remote: &Remote,
    part: &mut Part,
    meter: &mut Meter,
) -> Result<(), Trouble> {
    client.check_cancelled()?;
    let answer = match client.get(&remote.url, &range(remote, part.have)) {
        Err(Trouble::Lasting(Error::Status { status: 416, .. })) => {
            start_over(client, remote, part, meter, "the server has no such range of it")?;
            return Err(Trouble::passing("the range was refused"));
        }
        answer => answer?,
    };
    if part.have > 0 && !continues(&answer, remote, part.have) {
        start_over(client, remote, part, meter, "the server sends it whole")?;
        if answer.response.status() == 206 {
            return Err(Trouble::passing("it sent another range than was asked for"));
        }
    }
    let mut body = answer.response.into_body().into_reader();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        client.check_cancelled()?;
        match body.read(&mut chunk) {
            Ok(0) if part.have < remote.size => return Err(Trouble::passing("the connection ended early")),
            Ok(0) => return Ok(()),
            Ok(n) => {
                part.append(remote, &chunk[..n])?;
                meter.add(&remote.file, n as u64, client.observer);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Trouble::passing(error)),
        }
    }
}

/// Asks for the rest. A file in git is served by the hub under its own tag, which makes the range conditional; the tag
/// of a storage is not the hub's, and there the checksum in the part's name and at the end stands for it.
fn range(remote: &Remote, have: u64) -> Vec<(&'static str, String)> {
    if have == 0 {
        return Vec::new();
    }
    let mut headers = vec![("range", format!("bytes={have}-"))];
    if let Digest::GitBlob(hex) = &remote.digest {
        headers.push(("if-range", format!("\"{hex}\"")));
    }
    headers
}

/// Whether an answer goes on where the part ends.
fn continues(answer: &Answer, remote: &Remote, have: u64) -> bool {
    let expected = format!("bytes {have}-{}/{}", remote.size - 1, remote.size);
    answer.response.status() == 206 && answer.header("content-range") == Some(expected.as_str())
}

fn start_over(
    client: &mut Client<'_>,
    remote: &Remote,
    part: &mut Part,
    meter: &mut Meter,
    reason: &str,
) -> Result<()> {
    meter.again(part.have);
    part.clear(remote)?;
    let (file, reason) = (remote.file.clone(), reason.to_owned());
    client.observer.observe(Event::PullStartedOver { file, reason });
    Ok(())
}

/// A file that is not whole yet, and the hash of what is there.
struct Part {
    path: PathBuf,
    file: File,
    hasher: Hasher,
    have: u64,
}

impl Part {
    /// Opens what an earlier download has left, or a new file.
    fn open(path: PathBuf, remote: &Remote) -> Result<Self> {
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = match opened {
            Ok(file) => file,
            Err(source) => return Err(Error::Io { path, action: "open", source }),
        };
        let mut part = Self { path, file, hasher: remote.digest.hasher(remote.size), have: 0 };
        part.hash_what_is_here()?;
        if part.have > remote.size {
            part.clear(remote)?;
        }
        Ok(part)
    }

    fn hash_what_is_here(&mut self) -> Result<()> {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            match self.file.read(&mut chunk) {
                Ok(0) => return Ok(()),
                Ok(n) => {
                    self.hasher.update(&chunk[..n]);
                    self.have += n as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(self.failed("read", source)),
            }
        }
    }

    fn append(&mut self, remote: &Remote, bytes: &[u8]) -> Result<()> {
        if self.have + bytes.len() as u64 > remote.size {
            self.remove();
            return Err(protocol(&remote.url, format!("more than the {} bytes it names", remote.size)));
        }
        self.file.write_all(bytes).map_err(|source| self.failed("write", source))?;
        self.hasher.update(bytes);
        self.have += bytes.len() as u64;
        Ok(())
    }

    fn clear(&mut self, remote: &Remote) -> Result<()> {
        let cleared = self.file.set_len(0).and_then(|()| self.file.rewind());
        cleared.map_err(|source| self.failed("empty", source))?;
        (self.hasher, self.have) = (remote.digest.hasher(remote.size), 0);
        Ok(())
    }

    /// Compares the checksum, syncs, and gives the file its name.
    fn finish(self, remote: &Remote, blob: &Path) -> Result<()> {
        let (expected, actual) = (remote.digest.hex(), self.hasher.hex());
        if actual != expected {
            self.remove();
            let (file, expected) = (remote.file.clone(), expected.to_owned());
            return Err(Error::Checksum { file, expected, actual });
        }
        self.file.sync_all().map_err(|source| self.failed("sync", source))?;
        fs::rename(&self.path, blob).map_err(|source| self.failed("rename", source))
    }

    fn remove(&self) {
        // Should it stay, its hash refuses it the next time.
        let _ = fs::remove_file(&self.path);
    }

    fn failed(&self, action: &'static str, source: io::Error) -> Error {
        Error::Io { path: self.path.clone(), action, source }
    }
}
