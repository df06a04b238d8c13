//! How far a download is and how fast it goes, reported a few times a second.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use formats::observe::Observer;

use crate::Event;

const BETWEEN_REPORTS: Duration = Duration::from_millis(250);
/// The rate is that of this many reports: some five seconds.
const WINDOW: usize = 20;

/// Counts the bytes of one download over all its files.
pub(crate) struct Meter {
    total_bytes: u64,
    done_bytes: u64,
    last: Instant,
    window: VecDeque<(Instant, u64)>,
}

impl Meter {
    pub(crate) fn new(total_bytes: u64) -> Self {
        let last = Instant::now();
        Self { total_bytes, done_bytes: 0, last, window: VecDeque::from([(last, 0)]) }
    }

    /// Bytes that came in.
    pub(crate) fn done_bytes(&self) -> u64 {
        self.done_bytes
    }

    /// Counts bytes that came in.
    pub(crate) fn add(&mut self, file: &str, bytes: u64, observer: &mut dyn Observer<Event>) {
        self.done_bytes += bytes;
        if self.last.elapsed() >= BETWEEN_REPORTS {
            self.report(file, observer);
        }
    }

    /// Makes room for bytes that have to come again.
    pub(crate) fn again(&mut self, bytes: u64) {
        self.total_bytes += bytes;
    }

    /// Reports now.
    pub(crate) fn report(&mut self, file: &str, observer: &mut dyn Observer<Event>) {
        self.last = Instant::now();
        let (since, then) = self.window.front().copied().unwrap_or((self.last, self.done_bytes));
        let seconds = (self.last - since).as_secs_f64();
        let bytes_per_second = if seconds > 0.0 { (self.done_bytes - then) as f64 / seconds } else { 0.0 };
        self.window.push_back((self.last, self.done_bytes));
        if self.window.len() > WINDOW {
            self.window.pop_front();
        }
        let (done_bytes, total_bytes) = (self.done_bytes, self.total_bytes);
        observer.observe(Event::PullProgress {
            file: file.to_owned(),
            done_bytes,
            total_bytes,
            bytes_per_second,
        });
    }
}
