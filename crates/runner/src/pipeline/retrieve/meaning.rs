//! Passages by meaning: the vectors of a corpus, kept on disk, and an exact search by products.
//!
//! ```text
//! runs/index/<key>      "tuneidx1", passages and width as u32, the vectors as f32, BLAKE3 of all before; little-endian
//! ```
//!
//! The key is what the vectors are made of: passages, expert, and the format. So an index is never out of date, and
//! one that is damaged is made again.

use std::path::{Path, PathBuf};

use formats::{atomic, hash};
use serde_json::json;

use super::{Hit, best};
use crate::card::ExpertCard;
use crate::{Error, Result};

const MAGIC: &[u8; 8] = b"tuneidx1";
const HEAD_BYTES: usize = 16;
const SUM_BYTES: usize = 32;

/// The vectors of a corpus.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::pipeline) struct Index {
    width: usize,
    vectors: Vec<f32>,
}

/// What an index over these passages by this expert is called.
pub(in crate::pipeline) fn key(corpus_blake3: &str, card: &ExpertCard) -> String {
    // Vectors depend on the file, and through the arithmetic of caches on their types; not on sampling or prompts.
    let (key_type, value_type) = (card.load.kv_type_k, card.load.kv_type_v);
    hash::blake3_bytes(
        json!(["tuneidx1", corpus_blake3, card.model.identity(), key_type, value_type])
            .to_string()
            .as_bytes(),
    )
}

impl Index {
    /// Vectors of one width; the error says what is wrong with them.
    pub(in crate::pipeline) fn new(vectors: &[Vec<f32>]) -> std::result::Result<Self, String> {
        let width = vectors.first().map_or(0, Vec::len);
        if width == 0 || vectors.iter().any(|vector| vector.len() != width) {
            return Err("the engine gave vectors of several widths, or of none".to_owned());
        }
        Ok(Self { width, vectors: vectors.concat() })
    }

    /// The kept index of that key, if it is there and whole, with so many passages.
    pub(in crate::pipeline) fn read(folder: &Path, key: &str, n_passages: usize) -> Option<Self> {
        let bytes = std::fs::read(path(folder, key)).ok()?;
        let (body, sum) = bytes.split_at_checked(bytes.len().checked_sub(SUM_BYTES)?)?;
        let (head, data) = body.split_at_checked(HEAD_BYTES)?;
        let number = |at: usize| Some(u32::from_le_bytes(head.get(at..at + 4)?.try_into().ok()?) as usize);
        let (n, width) = (number(8)?, number(12)?);
        let is_whole = head.get(..8)? == MAGIC
            && n == n_passages
            && width > 0
            && data.len() == n.checked_mul(width)?.checked_mul(4)?
            && hash::blake3_bytes(body) == hex(sum);
        let floats =
            data.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]));
        is_whole.then(|| Self { width, vectors: floats.collect() })
    }

    /// Keeps it.
    pub(in crate::pipeline) fn write(&self, folder: &Path, key: &str) -> Result<()> {
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
        let mut bytes = Vec::with_capacity(HEAD_BYTES + 4 * self.vectors.len() + SUM_BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&count(self.vectors.len() / self.width));
        bytes.extend_from_slice(&count(self.width));
        bytes.extend(self.vectors.iter().flat_map(|x| x.to_le_bytes()));
        let sum = blake3::hash(&bytes);
        bytes.extend_from_slice(sum.as_bytes());
        Ok(atomic::write_bytes(&path(folder, key), &bytes)?)
    }

    /// The passages nearest to a question, best first.
    pub(in crate::pipeline) fn find(
        &self,
        question: &[f32],
        top: usize,
    ) -> std::result::Result<Vec<Hit>, String> {
        if question.len() != self.width {
            return Err(format!("the question has {} numbers, the passages {}", question.len(), self.width));
        }
        let product = |vector: &[f32]| vector.iter().zip(question).map(|(a, b)| f64::from(a * b)).sum();
        let scores = self.vectors.chunks_exact(self.width).map(product);
        Ok(best(scores.enumerate().map(|(passage, score)| Hit { passage, score }), top))
    }
}

fn path(folder: &Path, key: &str) -> PathBuf {
    folder.join(key)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_found_again_and_never_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let index = Index::new(&[vec![1.0, 0.0], vec![0.6, 0.8], vec![0.0, -1.0]]).unwrap();
        index.write(folder.path(), "k").unwrap();
        assert_eq!(Index::read(folder.path(), "k", 3), Some(index.clone()));
        assert_eq!(Index::read(folder.path(), "k", 2), None);
        assert_eq!(Index::read(folder.path(), "other", 3), None);
        let order: Vec<usize> = index.find(&[0.0, 1.0], 2).unwrap().iter().map(|hit| hit.passage).collect();
        assert_eq!(order, [1, 0]);
        assert!(index.find(&[1.0], 2).is_err());

        let path = folder.path().join("k");
        let whole = std::fs::read(&path).unwrap();
        for i in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[i] ^= 1;
            std::fs::write(&path, &damaged).unwrap();
            assert_eq!(Index::read(folder.path(), "k", 3), None, "byte {i}");
            std::fs::write(&path, &whole[..i]).unwrap();
            assert_eq!(Index::read(folder.path(), "k", 3), None, "cut to {i}");
        }
        assert!(Index::new(&[vec![1.0], vec![]]).is_err() && Index::new(&[]).is_err());
    }
}
