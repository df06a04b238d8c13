//! Hashes of files and bytes as lower-case hex: BLAKE3 for our own records, SHA-256 where others expect it.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::OnceLock;

use sha2::Digest;

use crate::page_cache::{FromDisk, Pages};
use crate::{Error, Result};

/// Large enough for the hashers' wide paths and for two threads to take turns, small enough to stay in the cache.
const CHUNK_BYTES: usize = 1 << 20;

/// Of what is read from the disk: requests that keep it busy.
const FROM_DISK_BYTES: usize = 4 << 20;

/// Of a mapped file, shared out over the threads.
const WINDOW_BYTES: usize = 16 << 20;

/// The BLAKE3 of a file, on all threads but read and not mapped: what is hashed does not count as resident.
///
/// # Errors
/// [`Error::Io`] when the file cannot be read.
pub fn blake3_file(path: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    read_chunks(open(path)?, path, CHUNK_BYTES, |bytes| {
        hasher.update_rayon(bytes);
    })?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// The SHA-256 of a file.
///
/// # Errors
/// [`Error::Io`] when the file cannot be read.
pub fn sha256_file(path: &Path) -> Result<String> {
    let mut hasher = sha2::Sha256::new();
    read_chunks(open(path)?, path, CHUNK_BYTES, |bytes| hasher.update(bytes))?;
    Ok(hex(&hasher.finalize()))
}

/// Both hashes of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hashes {
    /// The BLAKE3.
    pub blake3: String,
    /// The SHA-256.
    pub sha256: String,
}

/// Both hashes of a file as the disk holds it, where the system lets it be read past the page cache. What is read, and
/// where in the file it begins, is handed to `look` as well.
///
/// # Errors
/// [`Error::Io`] when the file cannot be read.
pub fn from_disk(path: &Path, mut look: impl FnMut(u64, &[u8]) + Send) -> Result<Hashes> {
    let file = FromDisk::open(path).map_err(failed(path))?;
    let (mut blake3, mut sha256) = (blake3::Hasher::new(), sha2::Sha256::new());
    let mut position = 0;
    read_chunks(file, path, FROM_DISK_BYTES, |bytes| {
        look(position, bytes);
        position += bytes.len() as u64;
        rayon::join(|| sha256.update(bytes), || blake3.update(bytes));
    })?;
    Ok(Hashes { blake3: blake3.finalize().to_hex().to_string(), sha256: hex(&sha256.finalize()) })
}

/// The BLAKE3 of a mapped file, on all threads but nearly in the file's order, so that a disk reads ahead.
#[must_use]
pub fn blake3_mapped(bytes: &[u8]) -> String {
    let mut hasher = blake3::Hasher::new();
    for window in bytes.chunks(WINDOW_BYTES) {
        hasher.update_rayon(window);
    }
    hasher.finalize().to_hex().to_string()
}

/// A hash that is made once, and known from then on.
///
/// # Errors
/// What hashing meets.
pub(crate) fn once(known: &OnceLock<String>, hash: impl FnOnce() -> Result<String>) -> Result<String> {
    if let Some(known) = known.get() {
        return Ok(known.clone());
    }
    let hash = hash()?;
    Ok(known.get_or_init(|| hash).clone())
}

/// The BLAKE3 of bytes in memory.
#[must_use]
pub fn blake3_bytes(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// The SHA-256 of bytes in memory.
#[must_use]
pub fn sha256_bytes(bytes: &[u8]) -> String {
    hex(&sha2::Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Hands a file on chunk after chunk; while one is taken, the next is read.
fn read_chunks(
    mut file: impl Read + Send,
    path: &Path,
    chunk_bytes: usize,
    mut take: impl FnMut(&[u8]) + Send,
) -> Result<()> {
    let (mut next, mut ready) = (Pages::new(chunk_bytes), Pages::new(chunk_bytes));
    let mut n_ready = read_some(&mut file, path, ready.bytes_mut())?;
    while n_ready > 0 {
        let (n_next, ()) =
            rayon::join(|| read_some(&mut file, path, next.bytes_mut()), || take(&ready.bytes()[..n_ready]));
        n_ready = n_next?;
        std::mem::swap(&mut next, &mut ready);
    }
    Ok(())
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(failed(path))
}

fn read_some(file: &mut impl Read, path: &Path, chunk: &mut [u8]) -> Result<usize> {
    loop {
        match file.read(chunk) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            read => return read.map_err(failed(path)),
        }
    }
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::Io { path: path.to_owned(), action: "read", source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_and_bytes_agree_with_the_published_vectors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("abc");
        std::fs::write(&path, "abc").unwrap();
        let sha = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let blake = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85";
        assert_eq!(sha256_file(&path).unwrap(), sha);
        assert_eq!(sha256_bytes(b"abc"), sha);
        assert_eq!(blake3_file(&path).unwrap(), blake);
        assert_eq!(blake3_bytes(b"abc"), blake);
        assert_eq!(blake3_mapped(b"abc"), blake);
        assert_eq!(
            from_disk(&path, |_, _| ()).unwrap(),
            Hashes { blake3: blake.to_owned(), sha256: sha.to_owned() }
        );
        let long = vec![7; 2 * WINDOW_BYTES + 5];
        assert_eq!(blake3_mapped(&long), blake3_bytes(&long));
        std::fs::write(&path, &long).unwrap();
        let expected = Hashes { blake3: blake3_bytes(&long), sha256: sha256_bytes(&long) };
        let mut seen = Vec::new();
        let found = from_disk(&path, |position, bytes| {
            assert_eq!(position, seen.len() as u64);
            seen.extend_from_slice(bytes);
        });
        assert_eq!((found.unwrap(), seen), (expected, long));
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = blake3_file(Path::new("/nowhere/x")).unwrap_err();
        assert_eq!(error.to_string(), "cannot read /nowhere/x: No such file or directory (os error 2)");
    }
}
