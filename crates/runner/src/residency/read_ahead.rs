//! Reading the next expert's file into the page cache while this one decodes, so that its load finds it there.
//!
//! A thread reads in pieces and gives every piece's bytes away: what counts is that the system keeps them. It holds a
//! rate, so that the disk and one core are not taken from who works; it reads no more than a share of the memory that
//! is to spare, since what it reads would else push out what is in use; it ends when memory gets short, when it is told
//! to, and at the end of the file.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::memory;

/// Bytes of one read: the longest that a cancelled one goes on.
const PIECE_BYTES: usize = 1 << 20;

/// How much and how fast a file is read ahead.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReadAheadLimits {
    /// Bytes in a second.
    pub bytes_per_second: u64,
    /// Of the memory that is to spare, this much at most.
    pub share_of_spare: f64,
    /// Below this part of the machine's memory being available nothing is read.
    pub least_available: f64,
    /// Above this part of the time that tasks wait for memory (in the last ten seconds) nothing is read.
    pub most_pressure: f64,
}

impl Default for ReadAheadLimits {
    fn default() -> Self {
        Self { bytes_per_second: 1 << 30, share_of_spare: 0.5, least_available: 0.1, most_pressure: 0.05 }
    }
}

/// A file that is being read ahead; dropped, it ends at once.
#[derive(Debug)]
pub struct ReadAhead {
    path: PathBuf,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    read_bytes: AtomicU64,
}

impl ReadAhead {
    /// Begins with a file; `spare_bytes` are available and held by nobody. `None` where there is no room for any of it,
    /// or no thread to be had: nothing is owed to who asked.
    pub fn start(path: &Path, spare_bytes: u64, limits: ReadAheadLimits) -> Option<Self> {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a size")]
        let most = (spare_bytes as f64 * limits.share_of_spare.clamp(0.0, 1.0)) as u64;
        if most < PIECE_BYTES as u64 || is_short(&limits) {
            return None;
        }
        let shared = Arc::new(Shared::default());
        let (of_thread, file) = (Arc::clone(&shared), path.to_owned());
        let thread = std::thread::Builder::new().name("read ahead".to_owned());
        // A file that can't be read is found by the load, which has words for it.
        let thread = thread.spawn(move || drop(read(&file, most, limits, &of_thread))).ok()?;
        Some(Self { path: path.to_owned(), shared, thread: Some(thread) })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes read so far.
    pub fn read_bytes(&self) -> u64 {
        self.shared.read_bytes.load(Ordering::Relaxed)
    }

    /// Whether it has come to its end.
    pub fn is_done(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It ends after the piece that it is at.
            let _ = thread.join();
        }
    }
}

fn read(path: &Path, most: u64, limits: ReadAheadLimits, shared: &Shared) -> std::io::Result<()> {
    /// Bytes between two looks at the machine's memory.
    const LOOK_BYTES: u64 = 32 << 20;
    let mut file = File::open(path)?;
    let mut piece = vec![0; PIECE_BYTES];
    let begun = Instant::now();
    let mut done = 0;
    while done < most && !shared.stop.load(Ordering::Relaxed) {
        let n = file.read(&mut piece)? as u64;
        if n == 0 {
            break;
        }
        done += n;
        shared.read_bytes.store(done, Ordering::Relaxed);
        if done % LOOK_BYTES < n && is_short(&limits) {
            break;
        }
        pause(begun, done, limits.bytes_per_second, &shared.stop);
    }
    Ok(())
}

/// Waits until so many bytes are due, in slices that are short enough to be told to stop.
fn pause(begun: Instant, done: u64, bytes_per_second: u64, stop: &AtomicBool) {
    const SLICE: Duration = Duration::from_millis(5);
    let due = Duration::from_secs_f64(done as f64 / bytes_per_second.max(1) as f64);
    while !stop.load(Ordering::Relaxed) {
        let left = due.saturating_sub(begun.elapsed());
        if left.is_zero() {
            return;
        }
        std::thread::sleep(left.min(SLICE));
    }
}

fn is_short(limits: &ReadAheadLimits) -> bool {
    let now = memory::main_memory();
    let available = now.free_bytes as f64 / now.total_bytes.max(1) as f64;
    available < limits.least_available || memory::pressure().is_some_and(|part| part > limits.most_pressure)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE_BYTES: u64 = 24 << 20;

    fn file() -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![7_u8; usize::try_from(FILE_BYTES).unwrap()]).unwrap();
        file
    }

    /// Never short of memory, as fast as it goes.
    fn free() -> ReadAheadLimits {
        ReadAheadLimits {
            bytes_per_second: u64::MAX,
            share_of_spare: 1.0,
            least_available: 0.0,
            most_pressure: 1.0,
        }
    }

    fn wait(ahead: &ReadAhead) {
        while !ahead.is_done() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_file_is_read_to_its_end_or_to_its_share() {
        let file = file();
        let ahead = ReadAhead::start(file.path(), u64::MAX, free()).unwrap();
        wait(&ahead);
        assert_eq!((ahead.path(), ahead.read_bytes()), (file.path(), FILE_BYTES));
        let half = ReadAheadLimits { share_of_spare: 0.5, ..free() };
        let ahead = ReadAhead::start(file.path(), FILE_BYTES, half).unwrap();
        wait(&ahead);
        assert_eq!(ahead.read_bytes(), FILE_BYTES / 2);
        assert!(ReadAhead::start(file.path(), 1000, free()).is_none(), "there is no room for one piece");
        let gone = ReadAhead::start(Path::new("/nowhere/at/all"), u64::MAX, free()).unwrap();
        wait(&gone);
        assert_eq!(gone.read_bytes(), 0);
    }

    #[test]
    fn nothing_is_read_while_memory_is_short() {
        let never = ReadAheadLimits { least_available: 1.1, ..free() };
        assert!(ReadAhead::start(file().path(), u64::MAX, never).is_none());
    }

    #[test]
    fn a_rate_is_held_and_a_drop_ends_it_at_once() {
        let file = file();
        // A day for the whole file.
        let slow = ReadAheadLimits { bytes_per_second: FILE_BYTES / 86_400, ..free() };
        let ahead = ReadAhead::start(file.path(), u64::MAX, slow).unwrap();
        while ahead.read_bytes() == 0 {
            std::thread::yield_now();
        }
        assert_eq!(ahead.read_bytes(), PIECE_BYTES as u64, "the second piece is due in an hour");
        // This would take as long, if the thread did not hear of it.
        drop(ahead);
    }
}
