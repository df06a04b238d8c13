//! The importance of a model's columns, in llama.cpp's files: for each matrix the sums of the squares of what it was
//! multiplied with, and how often.
//!
//! Read are the GGUF that `llama-imatrix` writes and the layout before it; written is the GGUF. Source: llama.cpp's
//! `common/imatrix-loader.cpp`.

use std::collections::BTreeMap;
use std::io::BufWriter;
use std::path::Path;

use crate::gguf::{Metadata, Planned, Reader, Texts, Writer};
use crate::map::Map;
use crate::{BlockType, Error, Result, TensorSource, atomic};

const DATASETS: &str = "imatrix.datasets";
const CHUNK_COUNT: &str = "imatrix.chunk_count";
const CHUNK_SIZE: &str = "imatrix.chunk_size";
const MADE_OF: &str = "tune.made_of_blake3";
const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";

/// What was measured of a model's matrices.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ImportanceMatrix {
    /// The texts it was measured on.
    pub datasets: Vec<String>,
    /// Pieces of text.
    pub n_chunks: u32,
    /// Tokens of a piece; 0 where the file does not say.
    pub chunk_tokens: u32,
    /// Of the model and the texts, where we measured it: what is made of the same need not be measured again.
    pub made_of: Option<String>,
    /// By name in a GGUF.
    pub entries: BTreeMap<String, Entry>,
}

/// What was measured of one matrix, or of as many as are stacked under one name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Entry {
    /// Σ x² of each column, one matrix after the other.
    pub sums: Vec<f32>,
    /// Of each matrix how many x were measured.
    pub counts: Vec<f32>,
}

impl Entry {
    /// Mean of x² of each column, one matrix after the other; 1 for a matrix that met nothing.
    #[must_use]
    pub fn means(&self) -> Vec<f32> {
        let of_matrix = |(sums, &count): (&[f32], &f32)| -> Vec<f32> {
            sums.iter().map(|sum| if count > 0.0 { sum / count } else { 1.0 }).collect()
        };
        let cols = self.sums.len() / self.counts.len().max(1);
        self.sums.chunks_exact(cols.max(1)).zip(&self.counts).flat_map(of_matrix).collect()
    }
}

impl ImportanceMatrix {
    /// Reads a file of either layout.
    ///
    /// # Errors
    /// What is wrong with the file, and where.
    pub fn read(path: &Path) -> Result<Self> {
        let is_gguf = Map::open(path)?.bytes().starts_with(b"GGUF");
        let matrix = if is_gguf { read_gguf(path)? } else { read_legacy(path)? };
        for (name, entry) in &matrix.entries {
            let place = |what: &str| format!("{what} of `{name}`");
            let fits = entry.counts.len().max(1);
            if entry.counts.is_empty() || !entry.sums.len().is_multiple_of(fits) || entry.sums.is_empty() {
                let expected = format!("a multiple of {} counts", entry.counts.len());
                return Err(malformed(path, place("the number of sums"), &expected, entry.sums.len()));
            }
            let mut numbers = entry.sums.iter().chain(&entry.counts);
            if let Some(wrong) = numbers.find(|x| !(x.is_finite() && **x >= 0.0)) {
                return Err(malformed(path, place("a sum"), "a finite number of 0 or more", wrong));
            }
        }
        Ok(matrix)
    }

    /// Writes a GGUF, whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut metadata = Metadata::new();
        metadata.push("general.type", "imatrix");
        metadata.push(DATASETS, self.datasets.clone());
        metadata.push(CHUNK_COUNT, self.n_chunks);
        metadata.push(CHUNK_SIZE, self.chunk_tokens);
        if let Some(hash) = &self.made_of {
            metadata.push(MADE_OF, hash.as_str());
        }
        let mut tensors: Vec<Planned> = Vec::new();
        for (name, Entry { sums, counts }) in &self.entries {
            let n = counts.len().max(1) as u64;
            tensors.push((format!("{name}{SUMS}"), vec![sums.len() as u64 / n, n], BlockType::F32));
            tensors.push((format!("{name}{COUNTS}"), vec![1, n], BlockType::F32));
        }
        let mut bytes = Vec::new();
        let mut writer = Writer::begin(BufWriter::new(&mut bytes), &metadata, &tensors)?;
        for Entry { sums, counts } in self.entries.values() {
            for numbers in [sums, counts] {
                let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
                writer.write_tensor(&bytes)?;
            }
        }
        drop(writer.finish()?);
        atomic::write_bytes(path, &bytes)
    }
}

fn malformed(path: &Path, place: String, expected: &str, actual: impl std::fmt::Display) -> Error {
    Error::Malformed {
        path: path.to_owned(),
        place,
        expected: expected.to_owned(),
        actual: actual.to_string(),
    }
}

fn read_gguf(path: &Path) -> Result<ImportanceMatrix> {
    let reader = Reader::open(path)?;
    let metadata = reader.metadata();
    let (mut entries, mut numbers) = (BTreeMap::new(), Vec::new());
    for tensor in reader.tensors() {
        let Some(name) = tensor.name.strip_suffix(SUMS) else { continue };
        let counts_name = format!("{name}{COUNTS}");
        let counts = reader
            .tensor(&counts_name)
            .ok_or_else(|| Error::NoSuchTensor { path: path.to_owned(), tensor: counts_name.clone() })?;
        let mut floats = |tensor: &crate::gguf::TensorInfo| -> Result<Vec<f32>> {
            if tensor.ty != BlockType::F32 {
                return Err(malformed(path, format!("the type of `{}`", tensor.name), "F32", tensor.ty));
            }
            let shape = tensor.torch_shape();
            let rows = if shape.len() > 1 { shape[0] } else { 1 };
            reader.read_rows(&tensor.name, 0..rows, &mut numbers)?;
            Ok(std::mem::take(&mut numbers))
        };
        let entry = Entry { sums: floats(tensor)?, counts: floats(counts)? };
        entries.insert(name.to_owned(), entry);
    }
    if entries.is_empty() {
        return Err(malformed(
            path,
            "the tensors".to_owned(),
            "sums and counts (`….in_sum2`, `….counts`)",
            "none",
        ));
    }
    Ok(ImportanceMatrix {
        datasets: metadata.get_strings(DATASETS).map(Texts::to_strings).unwrap_or_default(),
        n_chunks: metadata.get_u32(CHUNK_COUNT).unwrap_or(0),
        chunk_tokens: metadata.get_u32(CHUNK_SIZE).unwrap_or(0),
        made_of: metadata.get_str(MADE_OF).map(str::to_owned),
        entries,
    })
}

/// Numbers of a file of the older layout, in order.
struct Numbers<'a> {
    path: &'a Path,
    rest: &'a [u8],
}

impl<'a> Numbers<'a> {
    fn bytes(&mut self, n: usize, place: impl Fn() -> String) -> Result<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(n).ok_or_else(|| Error::Truncated {
            path: self.path.to_owned(),
            place: place(),
            expected: n as u64,
            actual: self.rest.len() as u64,
        })?;
        self.rest = rest;
        Ok(taken)
    }

    /// A number of things, which is not negative.
    fn count(&mut self, place: impl Fn() -> String) -> Result<usize> {
        let bytes = self.bytes(4, &place)?;
        let number = i32::from_le_bytes(*bytes.first_chunk().expect("four bytes"));
        usize::try_from(number).map_err(|_| malformed(self.path, place(), "0 or more", number))
    }

    fn text(&mut self, place: impl Fn() -> String) -> Result<String> {
        let n = self.count(&place)?;
        Ok(String::from_utf8_lossy(self.bytes(n, place)?).into_owned())
    }
}

fn read_legacy(path: &Path) -> Result<ImportanceMatrix> {
    let map = Map::open(path)?;
    let mut numbers = Numbers { path, rest: map.bytes() };
    let n_entries = numbers.count(|| "the number of entries".to_owned())?;
    let mut matrix = ImportanceMatrix::default();
    for index in 0..n_entries {
        let name = numbers.text(|| format!("the name of entry {index}"))?;
        let place = || format!("entry `{name}`");
        let count = numbers.count(place)?;
        let n = numbers.count(place)?;
        let size = n.checked_mul(4).ok_or_else(|| malformed(path, place(), "a number of sums", n))?;
        let sums = numbers.bytes(size, place)?.as_chunks::<4>().0.iter();
        let entry =
            Entry { sums: sums.map(|x| f32::from_le_bytes(*x)).collect(), counts: vec![count as f32] };
        if matrix.entries.insert(name.clone(), entry).is_some() {
            return Err(Error::Duplicate { path: path.to_owned(), place: "an entry", name });
        }
    }
    if matrix.entries.is_empty() {
        return Err(malformed(path, "the number of entries".to_owned(), "1 or more", 0));
    }
    // The number of pieces and the text's name may follow.
    if !numbers.rest.is_empty() {
        let n_chunks = numbers.count(|| "the number of pieces".to_owned())?;
        matrix.n_chunks = u32::try_from(n_chunks).expect("31 bits");
        matrix.datasets.extend(numbers.text(|| "the name of the text".to_owned()).ok());
    }
    Ok(matrix)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix() -> ImportanceMatrix {
        let one = Entry { sums: vec![1.0, 4.0, 9.0], counts: vec![2.0] };
        let stacked = Entry { sums: vec![1.0, 2.0, 3.0, 4.0], counts: vec![4.0, 0.0] };
        ImportanceMatrix {
            datasets: vec!["wiki.txt".to_owned()],
            n_chunks: 7,
            chunk_tokens: 512,
            made_of: Some("0f".repeat(32)),
            entries: [("blk.0.attn_q.weight", one), ("blk.1.ffn_up_exps.weight", stacked)]
                .map(|(name, entry)| (name.to_owned(), entry))
                .into(),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("imatrix.gguf");
        matrix().write(&path).unwrap();
        assert_eq!(ImportanceMatrix::read(&path).unwrap(), matrix());
    }

    #[test]
    fn means_are_sums_over_counts_and_one_where_nothing_was_met() {
        let matrix = matrix();
        assert_eq!(matrix.entries["blk.0.attn_q.weight"].means(), [0.5, 2.0, 4.5]);
        assert_eq!(matrix.entries["blk.1.ffn_up_exps.weight"].means(), [0.25, 0.5, 1.0, 1.0]);
    }

    fn legacy() -> Vec<u8> {
        let mut bytes = Vec::new();
        let number = |bytes: &mut Vec<u8>, n: i32| bytes.extend(n.to_le_bytes());
        number(&mut bytes, 1);
        number(&mut bytes, 4);
        bytes.extend(b"a.b.");
        number(&mut bytes, 2);
        number(&mut bytes, 3);
        [1f32, 4.0, 9.0].iter().for_each(|x| bytes.extend(x.to_le_bytes()));
        number(&mut bytes, 5);
        number(&mut bytes, 2);
        bytes.extend(b"tx");
        bytes
    }

    #[test]
    fn the_older_layout_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("imatrix.dat");
        std::fs::write(&path, legacy()).unwrap();
        let found = ImportanceMatrix::read(&path).unwrap();
        assert_eq!((found.n_chunks, &found.datasets[..]), (5, &["tx".to_owned()][..]));
        assert_eq!(found.entries["a.b."].means(), [0.5, 2.0, 4.5]);
    }

    /// Whatever is cut off or changed, there is an error or another matrix, never a panic.
    #[test]
    fn hostile_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("imatrix");
        matrix().write(&path).unwrap();
        for whole in [std::fs::read(&path).unwrap(), legacy()] {
            for length in 0..whole.len() {
                std::fs::write(&path, &whole[..length]).unwrap();
                let _ = ImportanceMatrix::read(&path);
            }
            for at in 0..whole.len() {
                let mut bytes = whole.clone();
                bytes[at] ^= 0xff;
                std::fs::write(&path, bytes).unwrap();
                let _ = ImportanceMatrix::read(&path);
            }
        }
        let mut infinite = legacy();
        infinite[20..24].copy_from_slice(&f32::INFINITY.to_le_bytes());
        std::fs::write(&path, infinite).unwrap();
        let error = ImportanceMatrix::read(&path).unwrap_err().to_string();
        assert!(error.ends_with("a sum of `a.b.` is inf, expected a finite number of 0 or more"), "{error}");
    }
}
