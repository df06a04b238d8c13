//! Mapped blocks that come into memory and go: read ahead by a thread, released by the page.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use formats::BlockType;
use formats::map::Map;

use super::checks::{check, shape};
use super::memory::{HostBlocks, TILE_FLOATS};
use crate::Result;
use crate::arena::Arena;
use crate::device::Hold;

/// Stretches of mapped files.
type Stretches = Vec<(Arc<Map>, Range<usize>)>;

/// A frozen matrix of mapped blocks; those that stay are drawn from the arena.
pub(super) fn map(
    arena: &Arena,
    what: &str,
    ty: BlockType,
    (rows, cols): (usize, usize),
    (map, range): (&Arc<Map>, Range<usize>),
    hold: Hold,
) -> Result<HostBlocks> {
    check("map_weights", [("blocks", range.len(), rows * ty.row_bytes(cols)?)])?;
    check("map_weights", [("end of the blocks", range.end, range.end.min(map.bytes().len()))])?;
    if cols > TILE_FLOATS {
        return Err(shape("map_weights", "row", cols, TILE_FLOATS));
    }
    let drawn = match hold {
        Hold::Staying => Some(arena.draw(what, range.len() as u64)?),
        Hold::Passing => None,
    };
    HostBlocks::mapped(ty, (rows, cols), (map.clone(), range), drawn)
}

/// What lies between neighbours: padding, and the vectors of a layer.
const NEIGHBOURS_BYTES: usize = 1 << 20;

/// The one thread that reads ahead.
#[derive(Debug, Default)]
pub(super) struct Passing {
    reader: Mutex<Option<JoinHandle<()>>>,
}

impl Passing {
    /// Has a thread bring the pages of matrices; where none can be had, they come when they are touched.
    pub(super) fn read_ahead(&self, weights: &[&HostBlocks]) {
        let stretches = stretches(weights);
        let fetch = move || stretches.into_iter().for_each(|(map, stretch)| map.fetch(stretch));
        let reader = std::thread::Builder::new().name("read-ahead".to_owned()).spawn(fetch);
        self.replace(reader.ok());
    }

    /// Takes the pages of matrices out of memory, when what was being read is there: a thread that came late would bring
    /// back what was given back.
    pub(super) fn release(&self, weights: &[&HostBlocks]) {
        self.replace(None);
        stretches(weights).into_iter().for_each(|(map, stretch)| map.release(stretch));
    }

    /// Waits for the reader before.
    fn replace(&self, reader: Option<JoinHandle<()>>) {
        let mut place = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = std::mem::replace(&mut *place, reader) {
            // It only asks for pages: a reader that panicked has lost nothing.
            let _ = before.join();
        }
    }
}

/// Where matrices lie, neighbours taken together.
fn stretches(weights: &[&HostBlocks]) -> Stretches {
    let mut found = Stretches::new();
    for (map, range) in weights.iter().filter_map(|matrix| matrix.place()) {
        match found.last_mut() {
            Some((last, stretch))
                if Arc::ptr_eq(last, map)
                    && (stretch.end..stretch.end + NEIGHBOURS_BYTES).contains(&range.start) =>
            {
                stretch.end = range.end;
            }
            _ => found.push((map.clone(), range)),
        }
    }
    found
}
