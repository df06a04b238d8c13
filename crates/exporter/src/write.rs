//! Writing the planned tensors of one or several files: each is read, merged, quantised and written tile by tile, so that the
//! base is read once however many files are made of it. In memory are two tiles of blocks a file and one piece a thread,
//! whatever the size of the tensor.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Instant;

use formats::gguf::Writer;
use formats::{Observer, page_cache};

use crate::journal::Journal;
use crate::merged::Merged;
use crate::pending::{Pending, failed};
use crate::plan::Plan;
use crate::tiles::{Making, Spare, Tile, make, tiles};
use crate::{Error, Event, Result};

/// A file that is to be written, and where.
pub(crate) struct Target<'a> {
    pub(crate) plan: &'a Plan<'a>,
    pub(crate) pending: &'a mut Pending,
}

/// Writes files that are made from the same model, all of them in one pass over it, and returns the BLAKE3 of each,
/// computed on the way. While a tile is written, the next one is made.
///
/// A file that fails does not hold up the others.
///
/// # Errors
/// What reading meets, which ends all.
pub(crate) fn write(
    merged: &Merged,
    targets: Vec<Target<'_>>,
    observer: &mut dyn Observer<Event>,
) -> Result<Vec<Result<String>>> {
    std::thread::scope(|scope| {
        let mut files: Vec<Writing<'_>> = Vec::with_capacity(targets.len());
        for Target { plan, pending } in targets {
            files.push(Writing::begin(scope, plan, pending));
        }
        write_tiles(merged, &mut files, observer)?;
        Ok(files.into_iter().map(Writing::finish).collect())
    })
}

fn write_tiles(merged: &Merged, files: &mut [Writing<'_>], observer: &mut dyn Observer<Event>) -> Result<()> {
    let mut waiting: Option<Tile> = None;
    let (progress, spare) = (Progress::begin(merged, files), Spare::default());
    for tile in tiles(merged) {
        if files.iter().all(|file| !file.wants(tile)) {
            continue;
        }
        let (mut ready, mut next): (Vec<_>, Vec<_>) = files.iter_mut().map(Writing::halves).unzip();
        let (_, made) = rayon::join(
            || {
                if let Some(tile) = waiting {
                    ready.iter_mut().for_each(|half| half.put(tile));
                }
            },
            || make(merged, tile, &mut next, &spare),
        );
        made?;
        progress.report(waiting, files, observer);
        files.iter_mut().for_each(Writing::turn);
        waiting = Some(tile);
    }
    if let Some(tile) = waiting {
        files.iter_mut().for_each(|file| file.halves().0.put(tile));
    }
    progress.report(waiting, files, observer);
    Ok(())
}

/// A file under construction.
struct Writing<'a> {
    next: Making<'a>,
    ready: Putting<'a>,
}

/// The half of it from which a tile is written.
struct Putting<'a> {
    plan: &'a Plan<'a>,
    blocks: Vec<u8>,
    n_kept: usize,
    out: Option<Out<'a>>,
    failure: Option<Error>,
}

/// Where it is written.
struct Out<'a> {
    writer: Writer<BufWriter<Hashed<'a>>>,
    journal: &'a mut Journal,
    syncing: Syncing<'a>,
    temp: PathBuf,
}

impl<'a> Writing<'a> {
    fn begin(scope: &'a Scope<'a, '_>, plan: &'a Plan<'a>, pending: &'a mut Pending) -> Writing<'a> {
        let n_kept = pending.kept().map_or(0, |kept| kept.n_tensors);
        let (out, failure) = match Out::begin(scope, plan, pending) {
            Ok(out) => (Some(out), None),
            Err(error) => (None, Some(error)),
        };
        Writing {
            next: Making { plan, blocks: Vec::new(), n_kept, failure: None },
            ready: Putting { plan, blocks: Vec::new(), n_kept, out, failure },
        }
    }

    fn has_failed(&self) -> bool {
        self.next.failure.is_some() || self.ready.failure.is_some()
    }

    fn wants(&self, tile: Tile) -> bool {
        self.ready.failure.is_none() && self.next.wants(tile)
    }

    fn halves(&mut self) -> (&mut Putting<'a>, &mut Making<'a>) {
        (&mut self.ready, &mut self.next)
    }

    /// What was made is ready.
    fn turn(&mut self) {
        std::mem::swap(&mut self.next.blocks, &mut self.ready.blocks);
        if self.next.failure.is_some() && self.ready.failure.is_none() {
            self.ready.failure = self.next.failure.take();
        }
        // Nothing more is made for a file that has failed.
        if self.ready.failure.is_some() {
            self.next.n_kept = usize::MAX;
        }
    }

    fn written_bytes(&self) -> u64 {
        self.ready.out.as_ref().map_or(0, |out| out.writer.get_ref().get_ref().bytes)
    }

    fn finish(self) -> Result<String> {
        match (self.ready.failure, self.ready.out) {
            (Some(error), _) => Err(error),
            (None, Some(out)) => out.finish(self.ready.plan.file_bytes),
            (None, None) => unreachable!("a file without an end has failed"),
        }
    }
}

impl Putting<'_> {
    fn put(&mut self, tile: Tile) {
        if self.failure.is_some() || tile.tensor < self.n_kept {
            return;
        }
        let is_last = tile.first_row + tile.n_rows == self.plan.tensors[tile.tensor].tensor.rows;
        let out = self.out.as_mut().expect("a file without an end has failed");
        self.failure = out.put(&self.blocks, is_last.then_some(tile.tensor + 1)).err();
    }
}

impl<'a> Out<'a> {
    fn begin(scope: &'a Scope<'a, '_>, plan: &'a Plan<'a>, pending: &'a mut Pending) -> Result<Out<'a>> {
        let temp = pending.temp().to_owned();
        let kept = pending.kept().map(|kept| (kept.n_tensors, kept.bytes, kept.hasher.clone()));
        let (file, journal) = pending.parts();
        let entries = plan.entries();
        let hashed = |bytes, hasher| BufWriter::with_capacity(1 << 20, Hashed { out: file, hasher, bytes });
        let writer = match kept {
            Some((n_tensors, bytes, hasher)) => {
                Writer::go_on(hashed(bytes, hasher), &plan.metadata, &entries, n_tensors)?
            }
            None => Writer::begin(hashed(0, blake3::Hasher::new()), &plan.metadata, &entries)?,
        };
        Ok(Out { writer, journal, syncing: Syncing::start(scope, file), temp })
    }

    /// Writes a tile; after the last of a tensor so many tensors are complete.
    fn put(&mut self, blocks: &[u8], n_complete: Option<usize>) -> Result<()> {
        self.writer.write_part(blocks)?;
        let bytes = self.writer.get_ref().get_ref().bytes;
        self.syncing.have_written(bytes);
        if let Some(n_tensors) = n_complete
            && self.journal.wants(bytes)
        {
            let out = self.writer.get_mut();
            out.flush().map_err(failed(&self.temp, "write"))?;
            let hashed = out.get_ref();
            self.journal.line(n_tensors, hashed.bytes, &hashed.hasher)?;
        }
        Ok(())
    }

    fn finish(self, file_bytes: u64) -> Result<String> {
        let mut out = self.writer.finish()?;
        out.flush().map_err(failed(&self.temp, "write"))?;
        self.syncing.finish().map_err(failed(&self.temp, "sync"))?;
        let Hashed { bytes: written, hasher, .. } = out.get_ref();
        if *written != file_bytes {
            return Err(Error::Written {
                place: "its size".to_owned(),
                expected: file_bytes.to_string(),
                actual: written.to_string(),
            });
        }
        Ok(hasher.finalize().to_hex().to_string())
    }
}

/// Bytes after which the disk is asked to begin.
const SYNC_BYTES: u64 = 16 << 20;

/// Brings to the disk what is written, while more is written: at the end little is left to wait for. What the disk has is
/// no longer kept in memory, which the base needs, and where the rest is written.
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
                page_cache::forget(file);
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

/// How far the files are, all of them together.
struct Progress<'a> {
    merged: &'a Merged,
    file_bytes: u64,
    started: Instant,
}

impl<'a> Progress<'a> {
    fn begin(merged: &'a Merged, files: &[Writing<'_>]) -> Progress<'a> {
        let file_bytes = files.iter().map(|file| file.ready.plan.file_bytes).sum();
        Progress { merged, file_bytes, started: Instant::now() }
    }

    /// Tells of a tensor once its last tile is written.
    fn report(&self, tile: Option<Tile>, files: &[Writing<'_>], observer: &mut dyn Observer<Event>) {
        let Some(Tile { tensor: index, first_row, n_rows }) = tile else { return };
        let tensor = &self.merged.tensors[index];
        let Some(first) = files.iter().find(|file| !file.has_failed()) else { return };
        if first_row + n_rows == tensor.rows {
            observer.observe(Event::Tensor {
                index,
                n_tensors: self.merged.tensors.len(),
                name: tensor.name.clone(),
                type_name: first.ready.plan.tensors[index].ty.name(),
                written_bytes: files.iter().map(Writing::written_bytes).sum(),
                file_bytes: self.file_bytes,
                seconds: self.started.elapsed().as_secs_f64(),
            });
        }
    }
}

/// Passes bytes on, hashes and counts them.
struct Hashed<'a> {
    out: &'a File,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl Write for Hashed<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}
