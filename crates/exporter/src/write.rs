//! Writing the planned tensors: each is read, merged, quantised and written tile by tile.
//!
//! A tile is shared out over the threads in pieces of a few rows; each piece goes from the base's 16 bits to its
//! blocks without leaving a core's cache. In memory are two tiles of blocks and one piece a thread, whatever the size
//! of the tensor.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Instant;

use formats::gguf::Writer;
use formats::{BlockType, Observer};
use rayon::prelude::*;

use crate::pending::Pending;
use crate::plan::{Content, Plan, PlannedTensor};
use crate::{Error, Event, Result};

/// Weights of a tile: large enough for long sequential writes.
const TILE_WEIGHTS: usize = 8 << 20;

/// Weights of a piece: in f32 they fit a core's second-level cache beside the adapter's A.
const PIECE_WEIGHTS: usize = 64 << 10;

/// The largest half-precision number. Scales of every block format are halves, and no sound weight is near it.
pub(crate) const HALF_MAX: f32 = 65504.0;

/// Writes the whole file and returns its BLAKE3, computed on the way. While a tile is written, the next one is made.
pub(crate) fn write(plan: &Plan, pending: &Pending, observer: &mut dyn Observer<Event>) -> Result<String> {
    let written_bytes = AtomicU64::new(0);
    let hashed = Hashed { out: pending.file(), hasher: blake3::Hasher::new(), bytes: &written_bytes };
    let out = BufWriter::with_capacity(1 << 20, hashed);
    let mut writer = Writer::begin(out, &plan.metadata, &plan.entries())?;
    std::thread::scope(|scope| {
        let mut syncing = Syncing::start(scope, pending.file());
        write_tiles(plan, &mut writer, &written_bytes, &mut syncing, observer)?;
        syncing.finish().map_err(|source| Error::Io {
            path: pending.temp().to_owned(),
            action: "sync",
            source,
        })
    })?;
    let mut out = writer.finish()?;
    out.flush().map_err(|source| Error::Io { path: pending.temp().to_owned(), action: "write", source })?;
    let written = written_bytes.load(Ordering::Relaxed);
    if written != plan.file_bytes {
        return Err(Error::Written {
            place: "its size".to_owned(),
            expected: plan.file_bytes.to_string(),
            actual: written.to_string(),
        });
    }
    Ok(out.get_ref().hasher.finalize().to_hex().to_string())
}

fn write_tiles<W: Write + Send>(
    plan: &Plan,
    writer: &mut Writer<W>,
    written_bytes: &AtomicU64,
    syncing: &mut Syncing<'_>,
    observer: &mut dyn Observer<Event>,
) -> Result<()> {
    let (mut next, mut ready) = (Vec::new(), Vec::new());
    let mut waiting: Option<Tile> = None;
    let progress = Progress { plan, written_bytes, started: Instant::now() };
    for tile in tiles(plan) {
        let (written, made) = rayon::join(
            || if waiting.is_some() { writer.write_part(&ready) } else { Ok(()) },
            || make(plan, tile, &mut next),
        );
        written?;
        syncing.have_written(written_bytes.load(Ordering::Relaxed));
        progress.report(waiting, observer);
        made?;
        std::mem::swap(&mut next, &mut ready);
        waiting = Some(tile);
    }
    writer.write_part(&ready)?;
    progress.report(waiting, observer);
    Ok(())
}

/// Bytes after which the disk is asked to begin.
const SYNC_BYTES: u64 = 128 << 20;

/// Brings to the disk what is written, while more is written: at the end little is left to wait for.
struct Syncing<'scope> {
    wake: mpsc::Sender<()>,
    thread: ScopedJoinHandle<'scope, std::io::Result<()>>,
    asked_at: u64,
}

impl<'scope> Syncing<'scope> {
    fn start(scope: &'scope Scope<'scope, '_>, file: &'scope File) -> Syncing<'scope> {
        let (wake, woken) = mpsc::channel();
        let thread = scope.spawn(move || {
            while woken.recv().is_ok() {
                while woken.try_recv().is_ok() {}
                file.sync_data()?;
            }
            Ok(())
        });
        Syncing { wake, thread, asked_at: 0 }
    }

    fn have_written(&mut self, bytes: u64) {
        if bytes - self.asked_at >= SYNC_BYTES {
            self.asked_at = bytes;
            // Where it has ended, it has failed, and says so at the end.
            let _ = self.wake.send(());
        }
    }

    /// What it has met: a failure is told once, and the sync at the end may not see it again.
    fn finish(self) -> std::io::Result<()> {
        drop(self.wake);
        self.thread.join().expect("it does not panic")
    }
}

/// Some rows of a tensor.
#[derive(Clone, Copy)]
struct Tile {
    /// The tensor's number.
    tensor: usize,
    first_row: usize,
    n_rows: usize,
}

/// All of the file, in its order.
fn tiles(plan: &Plan) -> impl Iterator<Item = Tile> + '_ {
    plan.tensors.iter().enumerate().flat_map(|(index, tensor)| {
        let at_once = tile_rows(tensor);
        (0..tensor.rows).step_by(at_once).map(move |first_row| {
            let n_rows = at_once.min(tensor.rows - first_row);
            Tile { tensor: index, first_row, n_rows }
        })
    })
}

/// How far the file is.
struct Progress<'a> {
    plan: &'a Plan,
    written_bytes: &'a AtomicU64,
    started: Instant,
}

impl Progress<'_> {
    /// Tells of a tensor once its last tile is written.
    fn report(&self, tile: Option<Tile>, observer: &mut dyn Observer<Event>) {
        let Some(Tile { tensor: index, first_row, n_rows }) = tile else { return };
        let tensor = &self.plan.tensors[index];
        if first_row + n_rows == tensor.rows {
            observer.observe(Event::Tensor {
                index,
                n_tensors: self.plan.tensors.len(),
                name: tensor.name.clone(),
                type_name: tensor.ty.name(),
                written_bytes: self.written_bytes.load(Ordering::Relaxed),
                file_bytes: self.plan.file_bytes,
                seconds: self.started.elapsed().as_secs_f64(),
            });
        }
    }
}

/// The blocks of a tile in the order of the file.
fn make(plan: &Plan, tile: Tile, blocks: &mut Vec<u8>) -> Result<()> {
    let Tile { tensor, first_row, n_rows } = tile;
    let tensor = &plan.tensors[tensor];
    let row_bytes = tensor.row_bytes()?;
    blocks.resize(n_rows * row_bytes, 0);
    encode_rows(plan, tensor, first_row, blocks)?;
    if let Content::Weight { spec, .. } = &tensor.content
        && spec.permute.is_some()
    {
        let in_order = std::mem::take(blocks);
        blocks.reserve(in_order.len());
        for row in first_row..first_row + n_rows {
            let at = (spec.hf_row(row) - first_row) * row_bytes;
            blocks.extend_from_slice(&in_order[at..at + row_bytes]);
        }
    }
    Ok(())
}

/// Rows of a tile: whole heads where rows move within a head.
fn tile_rows(tensor: &PlannedTensor) -> usize {
    let rows = (TILE_WEIGHTS / tensor.cols).max(1);
    match &tensor.content {
        Content::Weight { spec, .. } => match spec.permute {
            Some(n_heads) => {
                let head_rows = tensor.rows / n_heads;
                (rows / head_rows).max(1) * head_rows
            }
            None => rows,
        },
        Content::Computed(_) => rows,
    }
}

/// Fills `blocks` with consecutive rows in the order of the base.
fn encode_rows(plan: &Plan, tensor: &PlannedTensor, first_row: usize, blocks: &mut [u8]) -> Result<()> {
    let row_bytes = tensor.row_bytes()?;
    let piece_rows = (PIECE_WEIGHTS / tensor.cols).max(1);
    let pieces = blocks.par_chunks_mut(piece_rows * row_bytes).enumerate();
    pieces.try_for_each_init(Vec::new, |weights, (piece, blocks)| {
        let first_row = first_row + piece * piece_rows;
        merged_rows(plan, tensor, first_row, blocks.len() / row_bytes, weights)?;
        tensor.encode(first_row, weights, blocks)
    })
}

/// Rows of a tensor in the order of the base, with the adapter's update, checked to be numbers that the type holds.
pub(crate) fn merged_rows(
    plan: &Plan,
    tensor: &PlannedTensor,
    first_row: usize,
    n_rows: usize,
    out: &mut Vec<f32>,
) -> Result<()> {
    match &tensor.content {
        Content::Computed(values) => {
            out.clear();
            out.extend_from_slice(&values[first_row * tensor.cols..(first_row + n_rows) * tensor.cols]);
        }
        Content::Weight { spec, update } => {
            if spec.role.is_vector() {
                spec.read(&plan.base, out)?;
                out.truncate((first_row + n_rows) * tensor.cols);
                out.drain(..first_row * tensor.cols);
            } else {
                let merge = |rows: &mut [f32], first_row: usize| {
                    if let Some(update) = update {
                        update.add_to(rows, first_row);
                    }
                };
                spec.read_changed_rows(&plan.base, first_row..first_row + n_rows, &merge, out)?;
            }
            spec.held.of(out);
        }
    }
    check_range(tensor, first_row, out)
}

fn check_range(tensor: &PlannedTensor, first_row: usize, weights: &[f32]) -> Result<()> {
    let limit = match tensor.ty {
        BlockType::F32 | BlockType::BF16 => f32::MAX,
        _ => HALF_MAX,
    };
    // A comparison with NaN is false, so NaN does not fit either. The fold has no early exit and vectorises.
    let fits = |weight: f32| weight.abs() <= limit;
    if weights.iter().fold(true, |all, &weight| all & fits(weight)) {
        return Ok(());
    }
    let at = weights.iter().position(|&weight| !fits(weight)).expect("a weight did not fit above");
    Err(Error::OutOfRange {
        tensor: tensor.name.clone(),
        row: first_row + at / tensor.cols,
        column: at % tensor.cols,
        value: weights[at],
        type_name: tensor.ty.name(),
        limit,
    })
}

/// Passes bytes on, hashes and counts them.
struct Hashed<'a> {
    out: &'a File,
    hasher: blake3::Hasher,
    bytes: &'a AtomicU64,
}

impl Write for Hashed<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        self.bytes.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}
