//! What a hostile head may cost in memory: no more than a small multiple of the file itself.

use std::path::PathBuf;

use formats::gguf::{Metadata, Reader, Texts, Writer};
use formats::safetensors::SafetensorsFile;

use crate::counting::peak_of;

const MIB: usize = 1 << 20;

fn on_disk(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    std::fs::write(&path, bytes).unwrap();
    (dir, path)
}

#[test]
fn an_array_of_bytes_costs_its_own_size() {
    let mut metadata = Metadata::new();
    metadata.insert("bytes", vec![7u8; 64 * MIB]);
    let file = Writer::begin(Vec::new(), &metadata, &[]).unwrap().finish().unwrap();
    let (_dir, path) = on_disk(&file);
    let ((), peak) = peak_of(|| drop(Reader::open(&path).unwrap()));
    assert!(peak < 65 * MIB, "{peak} bytes for a file of {}", file.len());
}

/// As strings of their own they would take seven times the file.
#[test]
fn an_array_of_short_texts_costs_its_own_size() {
    let mut metadata = Metadata::new();
    metadata.insert("texts", Texts::from(vec!["x"; 2 * MIB]));
    let file = Writer::begin(Vec::new(), &metadata, &[]).unwrap().finish().unwrap();
    let (_dir, path) = on_disk(&file);
    let ((), peak) = peak_of(|| drop(Reader::open(&path).unwrap()));
    assert!(peak < file.len() + MIB, "{peak} bytes for a file of {}", file.len());
}

#[test]
fn counts_that_lie_cost_nothing() {
    let mut file = Writer::begin(Vec::new(), &Metadata::new(), &[]).unwrap().finish().unwrap();
    file.resize(1000, 0);
    for at in [8, 16] {
        let mut lying = file.clone();
        lying[at..at + 8].copy_from_slice(&(1u64 << 33).to_le_bytes());
        let (_dir, path) = on_disk(&lying);
        let ((), peak) = peak_of(|| assert!(Reader::open(&path).is_err()));
        assert!(peak < MIB, "{peak} bytes");
    }
}

/// A safetensors file of the largest header, of entries as short as they can be.
fn largest_header(begin: &str, entry: impl Fn(usize) -> String, end: &str) -> (Vec<u8>, usize) {
    let (mut header, mut n_entries) = (begin.to_owned(), 0);
    while header.len() < 16 * MIB - 100 {
        header += &entry(n_entries);
        n_entries += 1;
    }
    header.pop();
    header += end;
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    (file, n_entries)
}

/// As strings and lists of their own its tensors would take twelve times the file, its texts nine times.
#[test]
fn the_largest_header_costs_less_than_twice_the_file() {
    let tensor = |n| format!("\"{n:x}\":{{\"dtype\":\"\",\"shape\":[],\"data_offsets\":[0,0]}},");
    let text = |n| format!("\"{n:x}\":\"\",");
    let counted = |file: &SafetensorsFile| file.tensors().len() + file.metadata().len();
    for (file, n_entries) in
        [largest_header("{", tensor, "}"), largest_header("{\"__metadata__\":{", text, "}}")]
    {
        let (_dir, path) = on_disk(&file);
        let ((), peak) = peak_of(|| assert_eq!(counted(&SafetensorsFile::open(&path).unwrap()), n_entries));
        assert!(peak < 2 * file.len() + MIB, "{} MiB for a header of {}", peak / MIB, file.len() / MIB);
    }
}

/// Texts with escapes are put together by the JSON reader.
#[test]
fn the_longest_texts_cost_less_than_twice_the_file() {
    let escaped = "\\n".repeat(130_000);
    for text in [escaped, "n".repeat(15 * MIB)] {
        let header = format!("{{\"__metadata__\":{{\"{text}\":\"{text}\"}}}}");
        let header = if header.len() > 16 * MIB { header.replacen(&text, "n", 1) } else { header };
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        let (_dir, path) = on_disk(&file);
        let (opened, peak) = peak_of(|| SafetensorsFile::open(&path).unwrap().metadata().len());
        assert_eq!(opened, 1);
        assert!(peak < 2 * file.len() + MIB, "{} KiB for a file of {}", peak >> 10, file.len() >> 10);
    }
}

/// The most keys and tensors that are read, each as small as it can be.
#[test]
fn the_most_entries_cost_a_few_megabytes() {
    let n = 65_536u64;
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    file.extend([n, n].iter().flat_map(|count| count.to_le_bytes()));
    for index in 0..n {
        string(&format!("{index:x}"), &mut file);
        file.extend([0, 0, 0, 0, 7]);
    }
    for index in 0..n {
        string(&format!("{index:x}"), &mut file);
        file.extend(1u32.to_le_bytes());
        file.extend(1u64.to_le_bytes());
        file.extend(0u32.to_le_bytes());
        file.extend((index * 32).to_le_bytes());
    }
    file.resize(file.len().next_multiple_of(32) + 32 * n as usize, 0);
    let (_dir, path) = on_disk(&file);
    let ((), peak) = peak_of(|| assert_eq!(Reader::open(&path).unwrap().tensors().len() as u64, n));
    assert!(peak < 32 * MIB, "{} MiB for a file of {}", peak / MIB, file.len() / MIB);
    file[16..24].copy_from_slice(&(n + 1).to_le_bytes());
    let (_dir, path) = on_disk(&file);
    assert!(
        Reader::open(&path)
            .unwrap_err()
            .to_string()
            .contains("the number of keys is 65537, the limit is 65536")
    );
}

fn string(text: &str, file: &mut Vec<u8>) {
    file.extend((text.len() as u64).to_le_bytes());
    file.extend(text.as_bytes());
}

/// Every key is compared with those before it, but not one by one.
#[test]
fn half_a_million_texts_beside_the_tensors_are_read_at_once() {
    let texts: Vec<String> = (0..500_000).map(|index| format!("\"{index}\":\"\"")).collect();
    let header = format!("{{\"__metadata__\":{{{}}}}}", texts.join(","));
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    let (_dir, path) = on_disk(&file);
    assert_eq!(SafetensorsFile::open(&path).unwrap().metadata().len(), texts.len());
}
