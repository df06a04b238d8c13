//! Memory that the process really takes, as the system tells it.
//!
//! Anonymous memory counts, and of the files that are mapped the kept base alone: a step reads all of its blocks, so
//! that they are as needed as memory that was allocated. Pages of a memory-mapped checkpoint are read once and belong
//! to the system's cache, which takes them back whenever it needs them.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use formats::map::Map;
use model::base::AtTurn;

/// Anonymous resident memory of this process in bytes; `None` where the system does not tell.
fn anonymous_bytes() -> Option<u64> {
    of_status("RssAnon:")
}

/// Resident memory of this process in bytes, of whatever kind.
fn process_bytes() -> Option<u64> {
    of_status("VmRSS:")
}

fn of_status(field: &str) -> Option<u64> {
    kibibytes(&std::fs::read_to_string("/proc/self/status").ok()?, field)
}

/// Bytes of these maps that are resident in this process.
fn mapped_bytes(maps: &[Arc<Map>]) -> Option<u64> {
    if maps.is_empty() {
        return Some(0);
    }
    let ranges = maps.iter().map(|map| map.bytes().as_ptr_range());
    let ranges: Vec<_> = ranges.map(|range| range.start.addr()..range.end.addr()).collect();
    Some(resident_bytes(&std::fs::read_to_string("/proc/self/smaps").ok()?, &ranges))
}

/// The sum over the areas of `smaps` that begin in one of these ranges of addresses.
fn resident_bytes(smaps: &str, ranges: &[Range<usize>]) -> u64 {
    let (mut is_ours, mut sum) = (false, 0);
    for line in smaps.lines() {
        if let Some(start) = area_start(line) {
            is_ours = ranges.iter().any(|range| range.contains(&start));
        } else if is_ours {
            sum += kibibytes(line, "Rss:").unwrap_or(0);
        }
    }
    sum
}

/// Where the area begins that a line is the head of, as in `7f0a1c000000-7f0a1c021000 r--s …`.
fn area_start(line: &str) -> Option<usize> {
    usize::from_str_radix(line.split_once('-')?.0, 16).ok()
}

fn kibibytes(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// What a run adds to the process that hosts it: the highest of all samples, less what was there before.
#[derive(Debug)]
pub struct Growth(Arc<Meter>);

#[derive(Debug)]
struct Meter {
    before_bytes: Option<u64>,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    maps: Vec<Arc<Map>>,
    peak_bytes: Option<u64>,
    /// The most that the whole process had at a turn of a window.
    process_bytes: u64,
}

impl Growth {
    /// Takes what the process has now as the ground.
    pub fn start() -> Self {
        Self(Arc::new(Meter { before_bytes: anonymous_bytes(), taken: Mutex::default() }))
    }

    /// Counts what is resident of a map from now on.
    pub fn count_map(&self, map: &Arc<Map>) {
        self.0.taken().maps.push(map.clone());
    }

    /// Samples once more; the step's memory stays allocated between steps, so a sample a step finds the peak.
    pub fn sample(&self) -> Option<u64> {
        self.0.sample(&mut self.0.taken())
    }

    /// Samples at the turns of a window, of which one is the peak of what passes.
    pub fn watch(&self) -> AtTurn {
        let meter = self.0.clone();
        Box::new(move || meter.turn())
    }

    /// The highest sample.
    pub fn peak_bytes(&self) -> Option<u64> {
        self.0.taken().peak_bytes
    }
}

impl Meter {
    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sample(&self, taken: &mut Taken) -> Option<u64> {
        let anonymous = anonymous_bytes()?.saturating_sub(self.before_bytes?);
        let now = anonymous + mapped_bytes(&taken.maps)?;
        taken.peak_bytes = taken.peak_bytes.max(Some(now));
        taken.peak_bytes
    }

    /// What is resident of single maps takes the system milliseconds to say: it is asked where the process has grown.
    fn turn(&self) {
        let mut taken = self.taken();
        let process = process_bytes().unwrap_or(u64::MAX);
        if process > taken.process_bytes {
            taken.process_bytes = process;
            self.sample(&mut taken);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_kibibytes() {
        let status = "Name:\tx\nRssAnon:\t    2048 kB\nRssFile:\t 1 kB\n";
        assert_eq!(kibibytes(status, "RssAnon:"), Some(2 << 20));
        assert_eq!(kibibytes("RssAnon: x kB\n", "RssAnon:"), None);
    }

    #[test]
    fn of_all_areas_only_the_maps_that_were_named_count() {
        let smaps = "1000-3000 r--s 00000000 fe:00 7 /cache/x.blocks\nSize: 8 kB\nRss: 4 kB\nPss: 4 kB\n\
                     VmFlags: rd mr\n3000-4000 rw-p 00000000 00:00 0\nRss: 64 kB\n\
                     7000-8000 r--s 00000000 fe:00 8 /cache/y-z.blocks (deleted)\nRss: 16 kB\n";
        let one = 0x1000..0x2ff0;
        assert_eq!(resident_bytes(smaps, std::slice::from_ref(&one)), 4 << 10);
        assert_eq!(resident_bytes(smaps, &[one, 0x7000..0x7001]), 20 << 10);
        assert_eq!(resident_bytes(smaps, &[]), 0);
    }

    #[test]
    fn a_map_counts_by_what_was_read_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, vec![1; 64 << 20]).unwrap();
        let map = Arc::new(Map::open(&path).unwrap());
        let read = |bytes: &[u8]| bytes.iter().step_by(4096).map(|&byte| u64::from(byte)).sum::<u64>();
        let Some(before) = mapped_bytes(std::slice::from_ref(&map)).filter(|_| anonymous_bytes().is_some())
        else {
            println!("skipped: this system does not tell its memory");
            return;
        };
        assert_eq!(read(&map.bytes()[..32 << 20]), 32 << 8);
        let half = mapped_bytes(std::slice::from_ref(&map)).unwrap();
        assert_eq!(read(map.bytes()), 64 << 8);
        // The system maps a little around what was read.
        assert!(before < 4 << 20 && (32 << 20..36 << 20).contains(&half), "{before}, {half}");
        assert_eq!(mapped_bytes(std::slice::from_ref(&map)).unwrap(), 64 << 20);
        if Map::CAN_RELEASE {
            map.release(8 << 20..40 << 20);
            assert_eq!(mapped_bytes(std::slice::from_ref(&map)).unwrap(), 32 << 20);
            map.fetch(8 << 20..16 << 20);
            assert_eq!(mapped_bytes(std::slice::from_ref(&map)).unwrap(), 40 << 20);
            assert_eq!(read(map.bytes()), 64 << 8);
        }
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
