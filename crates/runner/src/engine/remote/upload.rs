//! A file as the body of a request, a piece at a time; how far it is, and when it last moved, for who waits.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Bytes read at once.
const PIECE_BYTES: usize = 1 << 20;

/// A file that is sent.
#[derive(Debug, Clone)]
pub(crate) struct Upload {
    path: PathBuf,
    bytes: u64,
    sent: Arc<AtomicU64>,
}

impl Upload {
    pub fn new(path: &Path, bytes: u64) -> Self {
        Self { path: path.to_owned(), bytes, sent: Arc::default() }
    }

    /// Its length.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes that are on their way.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// The body of one try, from the start. A thread reads ahead of the connection by a few pieces, and ends with it.
    ///
    /// # Errors
    /// The file can't be opened, or the thread not be started.
    pub fn body(&self) -> std::io::Result<reqwest::Body> {
        let mut file = std::fs::File::open(&self.path)?;
        let (sender, receiver) = mpsc::channel::<std::io::Result<Vec<u8>>>(2);
        self.sent.store(0, Ordering::Relaxed);
        let sent = Arc::clone(&self.sent);
        std::thread::Builder::new().name("upload".to_owned()).spawn(move || {
            loop {
                let mut piece = Vec::with_capacity(PIECE_BYTES);
                let read = (&mut file).take(PIECE_BYTES as u64).read_to_end(&mut piece);
                let (n, item) = match read {
                    Ok(0) => break,
                    Ok(n) => (n as u64, Ok(piece)),
                    Err(error) => (0, Err(error)),
                };
                let failed = item.is_err();
                if sender.blocking_send(item).is_err() || failed {
                    break;
                }
                sent.fetch_add(n, Ordering::Relaxed);
            }
        })?;
        Ok(reqwest::Body::wrap_stream(ReceiverStream::new(receiver)))
    }
}
