//! The rows of a model's tensors from a checkpoint, whose tensors may be several, or more, than those that are held.

use std::ops::Range;

use formats::TensorSource;

use super::tensor::{KvSplit, Taken, TensorSpec};
use crate::Result;

/// Changes consecutive rows of a checkpoint's module, the first of which has this number.
pub type Change<'a> = dyn Fn(&mut [f32], usize) + Sync + 'a;

impl TensorSpec {
    /// Names of the checkpoint's tensors that it is made of; each has the shape that [`TensorSpec::shape`] tells.
    pub fn hf_names(&self) -> Vec<String> {
        match self.taken {
            Taken::Stacked(n) => (0..n).map(|number| self.hf_name(number)).collect(),
            _ => vec![self.hf.clone()],
        }
    }

    fn hf_name(&self, number: usize) -> String {
        self.hf.replacen('*', &number.to_string(), 1)
    }

    /// Clears `out` and fills it with the whole tensor as it is held, but for [`TensorSpec::held`].
    ///
    /// # Errors
    /// What reading meets.
    pub fn read(&self, source: &dyn TensorSource, out: &mut Vec<f32>) -> Result<()> {
        match self.taken {
            // Some have other rows in a checkpoint: whole, they are the same numbers in the same order.
            Taken::Whole => Ok(source.read(&self.hf, out)?),
            _ => self.read_rows(source, 0..self.rows, out),
        }
    }

    /// Clears `out` and fills it with rows as they are held, but for [`TensorSpec::held`].
    ///
    /// # Errors
    /// What reading meets.
    pub fn read_rows(&self, source: &dyn TensorSource, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        self.read_changed_rows(source, rows, &|_, _| {}, out)
    }

    /// As [`TensorSpec::read_rows`], of a module that was changed before: where a merged adapter comes in.
    ///
    /// # Errors
    /// What reading meets.
    pub fn read_changed_rows(
        &self,
        source: &dyn TensorSource,
        rows: Range<usize>,
        change: &Change<'_>,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        match self.taken {
            Taken::Whole => {
                source.read_rows(&self.hf, rows.clone(), out)?;
                change(out, rows.start);
                Ok(())
            }
            Taken::Stacked(n) => self.read_stacked(source, n, rows, out),
            Taken::Keys(split) => self.read_keys(source, split, rows, change, out),
            Taken::Values(split) => self.read_values(source, split, rows, change, out),
        }
    }

    /// No adapter widens single experts, so nothing changes here.
    fn read_stacked(
        &self,
        source: &dyn TensorSource,
        n: usize,
        rows: Range<usize>,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        out.clear();
        let mut part = Vec::new();
        for (number, within) in pieces(rows, self.rows / n) {
            source.read_rows(&self.hf_name(number), within, &mut part)?;
            out.extend_from_slice(&part);
        }
        Ok(())
    }

    /// Row l of a head is column l of its keys.
    fn read_keys(
        &self,
        source: &dyn TensorSource,
        split: KvSplit,
        rows: Range<usize>,
        change: &Change<'_>,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        out.clear();
        let (latent, mut keys) = (self.rows / split.n_heads, Vec::new());
        for (head, within) in pieces(rows, latent) {
            let first = head * split.of_head();
            source.read_rows(&self.hf, first..first + split.keys, &mut keys)?;
            change(&mut keys, first);
            for l in within {
                out.extend(keys.chunks_exact(latent).map(|key| key[l]));
            }
        }
        Ok(())
    }

    fn read_values(
        &self,
        source: &dyn TensorSource,
        split: KvSplit,
        rows: Range<usize>,
        change: &Change<'_>,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        out.clear();
        let mut values = Vec::new();
        for (head, within) in pieces(rows, split.values) {
            let first = head * split.of_head() + split.keys;
            source.read_rows(&self.hf, first + within.start..first + within.end, &mut values)?;
            change(&mut values, first + within.start);
            out.extend_from_slice(&values);
        }
        Ok(())
    }
}

/// The parts of a range that lie in one block of `block` rows each: the block's number, and the rows within it.
fn pieces(rows: Range<usize>, block: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
    let blocks = rows.start / block..rows.end.div_ceil(block);
    blocks.map(move |number| {
        let start = number * block;
        (number, rows.start.max(start) - start..rows.end.min(start + block) - start)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_cut_at_the_ends_of_blocks() {
        let cut = |rows, block| pieces(rows, block).collect::<Vec<_>>();
        assert_eq!(cut(3..9, 4), [(0, 3..4), (1, 0..4), (2, 0..1)]);
        assert_eq!(cut(4..8, 4), [(1, 0..4)]);
        assert_eq!(cut(0..0, 4), []);
    }
}
