//! Memory that the process really takes, as the system tells it.
//!
//! Only anonymous memory counts: pages of a memory-mapped checkpoint belong to the system's cache, which takes them
//! back whenever it needs them.

use std::cell::Cell;

/// Anonymous resident memory of this process in bytes; `None` where the system does not tell.
pub fn anonymous_bytes() -> Option<u64> {
    parse(&std::fs::read_to_string("/proc/self/status").ok()?)
}

fn parse(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// What a run adds to the process that hosts it: the highest of all samples, less what was there before.
#[derive(Debug)]
pub struct Growth {
    before_bytes: Option<u64>,
    peak_bytes: Cell<Option<u64>>,
}

impl Growth {
    /// Takes what the process has now as the ground.
    pub fn start() -> Self {
        Self { before_bytes: anonymous_bytes(), peak_bytes: Cell::new(None) }
    }

    /// Samples once more; the step's memory stays allocated between steps, so a sample a step finds the peak.
    pub fn sample(&self) -> Option<u64> {
        let now = anonymous_bytes()?.saturating_sub(self.before_bytes?);
        self.peak_bytes.set(self.peak_bytes.get().max(Some(now)));
        self.peak_bytes.get()
    }

    /// The highest sample.
    pub fn peak_bytes(&self) -> Option<u64> {
        self.peak_bytes.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_kibibytes() {
        assert_eq!(parse("Name:\tx\nRssAnon:\t    2048 kB\nRssFile:\t 1 kB\n"), Some(2 << 20));
        assert_eq!(parse("RssAnon: x kB\n"), None);
    }

    #[test]
    fn an_allocation_shows_where_the_system_tells() {
        let growth = Growth::start();
        let block = std::hint::black_box(vec![1_u8; 256 << 20]);
        let Some(peak) = growth.sample() else {
            println!("skipped: this system does not tell its memory");
            return;
        };
        // Other tests of this process take and give back memory meanwhile.
        assert!(peak >= block.len() as u64 / 2, "{peak}");
        drop(block);
        assert!(growth.sample() >= Some(peak));
    }
}
