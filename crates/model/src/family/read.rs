//! The rows of a model's tensors as they are held, from a checkpoint, whose tensors may be several, or more, than those, or
//! from a GGUF, whose rows may stand in another order.

use std::ops::Range;

use formats::source::Naming;
use formats::{Result, TensorSource};

use super::tensor::{KvSplit, Taken, TensorSpec};

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

    /// Names of a source's tensors that it is made of.
    pub fn names(&self, naming: Naming) -> Vec<String> {
        match naming {
            Naming::Hf => self.hf_names(),
            Naming::Gguf => vec![self.gguf.clone()],
        }
    }

    fn hf_name(&self, number: usize) -> String {
        self.hf.replacen('*', &number.to_string(), 1)
    }

    /// Clears `out` and fills it with the whole tensor as it is held.
    ///
    /// # Errors
    /// What reading meets.
    pub fn read(&self, source: &dyn TensorSource, out: &mut Vec<f32>) -> Result<()> {
        if self.taken != Taken::Whole || self.permute.is_some() {
            return self.read_rows(source, 0..self.rows, out);
        }
        // Some have other rows in a source: whole, they are the same numbers in the same order.
        source.read(self.name(source.naming()), out)?;
        self.hold(source, out);
        Ok(())
    }

    /// Clears `out` and fills it with rows as they are held, in the order of a checkpoint.
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
            Taken::Whole => self.read_whole(source, rows, change, out)?,
            Taken::Stacked(n) => self.read_stacked(source, n, rows, out)?,
            Taken::Keys(split) => self.read_keys(source, split, rows, change, out)?,
            Taken::Values(split) => self.read_values(source, split, rows, change, out)?,
        }
        self.hold(source, out);
        Ok(())
    }

    /// A GGUF has its values as they are held.
    fn hold(&self, source: &dyn TensorSource, values: &mut [f32]) {
        if source.naming() == Naming::Hf {
            self.held.of(values);
        }
    }

    fn read_whole(
        &self,
        source: &dyn TensorSource,
        rows: Range<usize>,
        change: &Change<'_>,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let (naming, first) = (source.naming(), rows.start);
        if naming == Naming::Hf || self.permute.is_none() {
            source.read_rows(self.name(naming), rows, out)?;
        } else {
            out.clear();
            let mut row = Vec::with_capacity(self.cols);
            for hf_row in rows {
                let gguf_row = self.gguf_row(hf_row);
                source.read_rows(&self.gguf, gguf_row..gguf_row + 1, &mut row)?;
                out.extend_from_slice(&row);
            }
        }
        change(out, first);
        Ok(())
    }

    /// No adapter widens single experts, so nothing changes here.
    fn read_stacked(
        &self,
        source: &dyn TensorSource,
        n: usize,
        rows: Range<usize>,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        if source.naming() == Naming::Gguf {
            return source.read_rows(&self.gguf, rows, out);
        }
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
            match source.naming() {
                Naming::Hf => source.read_rows(&self.hf, first..first + split.keys, &mut keys)?,
                Naming::Gguf => {
                    let mut held = Vec::new();
                    source.read_rows(&self.gguf, head * latent..(head + 1) * latent, &mut held)?;
                    keys.clear();
                    keys.extend((0..split.keys).flat_map(|key| held.iter().skip(key).step_by(split.keys)));
                }
            }
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
            let (name, start) = match source.naming() {
                Naming::Hf => (&self.hf, first),
                Naming::Gguf => (&self.gguf, head * split.values),
            };
            source.read_rows(name, start + within.start..start + within.end, &mut values)?;
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
