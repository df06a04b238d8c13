//! What a hostile head may cost in memory: no more than a small multiple of the file itself.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use formats::gguf::{Metadata, Reader, Writer};
use formats::safetensors::SafetensorsFile;

/// The system's allocator, counting what is live and its peak.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
/// One measurement at a time.
static TURN: Mutex<()> = Mutex::new(());

// SAFETY: every call is passed on to the system's allocator with the same arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        // SAFETY: the caller keeps alloc's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps dealloc's contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Peak bytes allocated during `work`.
fn peak_of(work: impl FnOnce()) -> usize {
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    work();
    PEAK.load(Ordering::Relaxed) - before
}

const MIB: usize = 1 << 20;

fn on_disk(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    std::fs::write(&path, bytes).unwrap();
    (dir, path)
}

#[test]
fn an_array_of_bytes_costs_its_own_size() {
    let _turn = TURN.lock();
    let mut metadata = Metadata::new();
    metadata.insert("bytes", vec![7u8; 64 * MIB]);
    let file = Writer::begin(Vec::new(), &metadata, &[]).unwrap().finish().unwrap();
    let (_dir, path) = on_disk(&file);
    let peak = peak_of(|| drop(Reader::open(&path).unwrap()));
    assert!(peak < 65 * MIB, "{peak} bytes for a file of {}", file.len());
}

#[test]
fn counts_that_lie_cost_nothing() {
    let _turn = TURN.lock();
    let mut file = Writer::begin(Vec::new(), &Metadata::new(), &[]).unwrap().finish().unwrap();
    file.resize(1000, 0);
    for at in [8, 16] {
        let mut lying = file.clone();
        lying[at..at + 8].copy_from_slice(&(1u64 << 33).to_le_bytes());
        let (_dir, path) = on_disk(&lying);
        let peak = peak_of(|| assert!(Reader::open(&path).is_err()));
        assert!(peak < MIB, "{peak} bytes");
    }
}

#[test]
fn the_largest_header_costs_a_small_multiple() {
    let _turn = TURN.lock();
    let mut header = String::from("{");
    let mut n_tensors = 0;
    while header.len() < 16 * MIB - 100 {
        header += &format!("\"t{n_tensors}\":{{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}},");
        n_tensors += 1;
    }
    header.pop();
    header.push('}');
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    let (_dir, path) = on_disk(&file);
    let peak = peak_of(|| assert_eq!(SafetensorsFile::open(&path).unwrap().tensors().len(), n_tensors));
    assert!(peak < 12 * file.len(), "{} MiB for a header of {} MiB", peak / MIB, file.len() / MIB);
}
