//! llama.cpp's layout of a graph in one buffer, replayed: which tensors are alive when, and where the gaps are.
//!
//! Source: `ggml_gallocr_alloc_graph_impl` and `ggml_dyn_tallocr` of ggml's `src/ggml-alloc.c` as vendored by
//! llama-cpp-sys-2 0.1.160. Inputs are laid out first; a tensor then takes the smallest gap that holds it, or the place of
//! a parent that nobody else reads; it is given back after its last reader.

/// What every tensor's size is rounded up to.
const ALIGNMENT: u64 = 32;

/// A tensor of the tape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tensor(usize);

/// Whether an operation may write over its operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Writes {
    /// Into memory of its own.
    Anew,
    /// Over an operand of the same shape that nobody else reads.
    InPlace,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Input,
    Node(Writes),
    /// Of this tensor's memory.
    View(usize),
    /// Of memory outside the buffer.
    Outside,
}

#[derive(Debug)]
struct Entry {
    kind: Kind,
    bytes: u64,
    parents: Vec<usize>,
    is_output: bool,
}

/// The tensors of a graph, in the order in which they are computed.
#[derive(Debug, Default)]
pub(super) struct Tape {
    entries: Vec<Entry>,
}

impl Tape {
    /// Something handed to the pass.
    pub(super) fn input(&mut self, bytes: u64) -> Tensor {
        self.push(Kind::Input, bytes, &[])
    }

    /// The result of an operation; weights and caches are no parents, they lie elsewhere.
    pub(super) fn node(&mut self, bytes: u64, parents: &[Tensor], writes: Writes) -> Tensor {
        self.push(Kind::Node(writes), bytes, parents)
    }

    /// The same memory in another shape.
    pub(super) fn view(&mut self, of: Tensor) -> Tensor {
        let root = match self.entries[of.0].kind {
            Kind::View(root) => root,
            _ => of.0,
        };
        self.push(Kind::View(root), 0, &[of])
    }

    /// A view that is written to by an operation with further operands.
    pub(super) fn written(&mut self, into: Tensor, parents: &[Tensor]) -> Tensor {
        self.push(Kind::View(into.0), 0, parents)
    }

    /// Something written to a cache.
    pub(super) fn store(&mut self, parents: &[Tensor]) {
        self.push(Kind::Outside, 0, parents);
    }

    /// Keeps a tensor to the end.
    pub(super) fn keep(&mut self, tensor: Tensor) {
        self.entries[tensor.0].is_output = true;
    }

    fn push(&mut self, kind: Kind, bytes: u64, parents: &[Tensor]) -> Tensor {
        let parents = parents.iter().map(|parent| parent.0).collect();
        self.entries.push(Entry {
            kind,
            bytes: bytes.next_multiple_of(ALIGNMENT),
            parents,
            is_output: false,
        });
        Tensor(self.entries.len() - 1)
    }

    /// Bytes of the buffer.
    pub(super) fn buffer_bytes(&self) -> u64 {
        let mut replay = Replay::new(&self.entries);
        for (i, entry) in self.entries.iter().enumerate() {
            if entry.kind == Kind::Input {
                replay.states[i].offset = Some(replay.buffer.take(entry.bytes));
            }
        }
        for i in 0..self.entries.len() {
            replay.compute(i);
        }
        replay.buffer.highest
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    /// Where it lies, while it does.
    offset: Option<u64>,
    readers: u32,
    views: u32,
}

struct Replay<'a> {
    entries: &'a [Entry],
    states: Vec<State>,
    buffer: Buffer,
}

impl<'a> Replay<'a> {
    fn new(entries: &'a [Entry]) -> Self {
        let mut states = vec![State::default(); entries.len()];
        for entry in entries {
            if let Kind::View(root) = entry.kind {
                states[root].views += 1;
            }
            entry.parents.iter().for_each(|&parent| states[parent].readers += 1);
        }
        Self { entries, states, buffer: Buffer::default() }
    }

    fn compute(&mut self, i: usize) {
        let entry = &self.entries[i];
        if let Kind::Node(writes) = entry.kind {
            let over = if writes == Writes::InPlace { self.parent_to_write_over(entry) } else { None };
            let offset = match over {
                Some(parent) => self.states[parent].offset.take(),
                None => Some(self.buffer.take(entry.bytes)),
            };
            self.states[i].offset = offset;
        }
        for &parent in &entry.parents {
            self.states[parent].readers -= 1;
            self.give_back_after_last_reader(parent);
        }
    }

    fn parent_to_write_over(&self, entry: &Entry) -> Option<usize> {
        entry.parents.iter().copied().find(|&parent| {
            let (of, state) = (&self.entries[parent], &self.states[parent]);
            let is_alone = state.readers == 1 && state.views == 0;
            is_alone && state.offset.is_some() && !of.is_output && of.bytes == entry.bytes
        })
    }

    fn give_back_after_last_reader(&mut self, i: usize) {
        let state = self.states[i];
        if state.readers > 0 || state.views > 0 {
            return;
        }
        match self.entries[i].kind {
            Kind::View(root) => {
                self.states[root].views -= 1;
                let state = self.states[root];
                if state.views == 0 && state.readers == 0 {
                    self.give_back(root);
                }
            }
            _ => self.give_back(i),
        }
    }

    fn give_back(&mut self, i: usize) {
        if self.entries[i].is_output {
            return;
        }
        if let Some(offset) = self.states[i].offset.take() {
            self.buffer.give_back(offset, self.entries[i].bytes);
        }
    }
}

/// Gaps of the buffer by offset; beyond the last one nothing was ever laid out.
#[derive(Debug, Default)]
struct Buffer {
    gaps: Vec<(u64, u64)>,
    end: u64,
    highest: u64,
}

impl Buffer {
    /// The smallest gap that is large enough, the last of several; else the end.
    fn take(&mut self, bytes: u64) -> u64 {
        let mut best: Option<usize> = None;
        for (i, &(_, size)) in self.gaps.iter().enumerate() {
            if size >= bytes && best.is_none_or(|best| size <= self.gaps[best].1) {
                best = Some(i);
            }
        }
        let Some(best) = best else {
            let offset = self.end;
            self.end = self.end.saturating_add(bytes);
            self.highest = self.highest.max(self.end);
            return offset;
        };
        let (offset, size) = self.gaps[best];
        if size == bytes {
            self.gaps.remove(best);
        } else {
            self.gaps[best] = (offset + bytes, size - bytes);
        }
        offset
    }

    fn give_back(&mut self, offset: u64, bytes: u64) {
        let at = self.gaps.partition_point(|&(other, _)| other < offset);
        self.gaps.insert(at, (offset, bytes));
        if at + 1 < self.gaps.len() && offset + bytes == self.gaps[at + 1].0 {
            self.gaps[at].1 += self.gaps.remove(at + 1).1;
        }
        if at > 0 && self.gaps[at - 1].0 + self.gaps[at - 1].1 == offset {
            self.gaps[at - 1].1 += self.gaps.remove(at).1;
        }
        // What reaches the end is no gap.
        if let Some(&(offset, size)) = self.gaps.last()
            && offset + size == self.end
        {
            self.gaps.pop();
            self.end = offset;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_filled_by_what_fits_it_best() {
        let mut buffer = Buffer::default();
        let offsets: Vec<u64> = [64, 32, 96, 32, 64].into_iter().map(|bytes| buffer.take(bytes)).collect();
        assert_eq!(offsets, [0, 64, 96, 192, 224]);
        buffer.give_back(0, 64);
        buffer.give_back(96, 96);
        assert_eq!(buffer.take(64), 0, "the smaller of the two gaps");
        assert_eq!(buffer.take(32), 96);
        buffer.give_back(64, 32);
        buffer.give_back(96, 32);
        assert_eq!(buffer.gaps, [(64, 128)], "neighbours become one");
        buffer.give_back(224, 64);
        assert_eq!((buffer.end, buffer.highest), (224, 288));
    }

    #[test]
    fn a_chain_takes_two_places_and_one_in_place_takes_one() {
        let chain = |writes| {
            let mut tape = Tape::default();
            let mut last = tape.input(320);
            for _ in 0..5 {
                last = tape.node(320, &[last], writes);
            }
            tape.buffer_bytes()
        };
        assert_eq!((chain(Writes::Anew), chain(Writes::InPlace)), (640, 320));
    }

    #[test]
    fn a_view_keeps_what_it_looks_at() {
        let mut tape = Tape::default();
        let x = tape.node(320, &[], Writes::Anew);
        let view = tape.view(x);
        let y = tape.node(320, &[], Writes::Anew);
        let sum = tape.node(320, &[view, y], Writes::InPlace);
        tape.keep(sum);
        // Not over the view, but over y.
        assert_eq!(tape.buffer_bytes(), 640);
    }
}
