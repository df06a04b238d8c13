//! Bases that were quantised once, kept on disk by the hash of what they were made from, and mapped the next time.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use formats::atomic;
use formats::block_file::{BlockFile, BlockWriter};
use formats::checkpoint::Checkpoint;
use formats::hash;
use formats::hash_index::HashIndex;
use formats::observe::Observer;
use model::base::{LoadEvent, Residence, encode, kept_tensors};
use model::memory::weights_bytes;
use model::{Base, Device, ModelConfig, Quant};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::event::Event;
use crate::memory_use::Growth;

/// Where bases and tokenised rows are kept, and which.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CacheOptions {
    /// The folder; `None` keeps none.
    pub dir: Option<PathBuf>,
    /// Bases that take fewer bytes in memory are quantised each time, which is as fast.
    pub least_bytes: u64,
    /// Data files that are smaller together are tokenised each time.
    pub least_data_bytes: u64,
}

/// How the blocks are encoded and laid out: another number for bytes that an older program would not have written.
const CODEC_VERSION: u32 = 2;

/// Bases that are kept; the one that was not used for longest goes first.
const MOST_KEPT: usize = 4;

const SUFFIX: &str = "blocks";

/// The folder of kept bases.
pub struct BaseCache<'a> {
    options: &'a CacheOptions,
}

impl<'a> BaseCache<'a> {
    /// The cache of these options, which may keep nothing.
    pub fn new(options: &'a CacheOptions) -> Self {
        Self { options }
    }

    /// Hashes of files, remembered beside the bases.
    pub fn hash_index(&self) -> Option<HashIndex> {
        self.options.dir.as_deref().map(|dir| HashIndex::open(&dir.join("hashes.json")))
    }

    /// Brings a base to a device: mapped where it is kept, else quantised and kept for the next time. A map is
    /// counted in `growth`. Weights that pass are quantised into the cache, whatever they take, and mapped there.
    ///
    /// # Errors
    /// What quantising meets. What goes wrong with the cache alone is a warning, unless weights are to pass.
    pub fn load<D: Device>(
        &self,
        device: &D,
        (checkpoint, config, quant): (&Checkpoint, &ModelConfig, Quant),
        residence: Residence,
        growth: &Growth,
        observer: &mut dyn Observer<Event>,
    ) -> Result<Base<D>> {
        let mut path = None;
        if let Some(dir) = &self.options.dir
            && (residence != Residence::All || weights_bytes(config, quant)? >= self.options.least_bytes)
        {
            // The run has hashed the checkpoint before: this asks for what is known.
            path = Some((dir, key(&formats::TensorSource::content_hash(checkpoint)?, config, quant)));
        }
        let Some((dir, key)) = path else {
            return Ok(Base::load(device, config, checkpoint, quant, &mut loading(observer))?);
        };
        let path = dir.join(format!("{}.{SUFFIX}", hash::blake3_bytes(key.as_bytes())));
        match mapped(device, (config, quant), (&path, &key), residence, growth, observer) {
            Ok(base) => return Ok(base),
            Err(Error::Model(error @ model::Error::OutOfMemory { .. })) => return Err(error.into()),
            // There is none, or a damaged one, which is written anew.
            Err(_) => {}
        }
        if residence != Residence::All {
            // Without room for more than a few rows of it.
            keep((config, quant), (&path, &key), observer, |keep, observer| {
                encode(config, checkpoint, quant, keep, &mut loading(observer))
            })?;
            return mapped(device, (config, quant), (&path, &key), residence, growth, observer);
        }
        let kept = keep((config, quant), (&path, &key), observer, |keep, observer| {
            Base::load_and_keep(device, config, checkpoint, quant, keep, &mut loading(observer))
        });
        match kept {
            Err(Error::Formats(error)) => {
                let message = format!("the base is not kept for the next start: {error}");
                observer.observe(Event::Warning { message });
                Ok(Base::load(device, config, checkpoint, quant, &mut loading(observer))?)
            }
            other => other,
        }
    }
}

/// Writes a base's blocks to the cache while `quantise` hands them out, and gives what it gives.
fn keep<T>(
    (config, quant): (&ModelConfig, Quant),
    (path, key): (&Path, &str),
    observer: &mut dyn Observer<Event>,
    quantise: impl FnOnce(&mut Keep<'_>, &mut dyn Observer<Event>) -> model::Result<T>,
) -> Result<T> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let failed = |source| formats::Error::Io { path: dir.to_owned(), action: "make", source };
    std::fs::create_dir_all(dir).map_err(failed)?;
    let made = atomic::write_file(path, |out| {
        let mut writer = BlockWriter::begin(out, key, &kept_tensors(config, quant))?;
        let made = quantise(&mut |bytes: &[u8]| writer.write(bytes), observer)?;
        writer.finish()?;
        Ok::<_, Error>(made)
    })?;
    observer.observe(Event::BaseKept { path: path.to_owned(), bytes: weights_bytes(config, quant)? });
    remove_oldest(dir);
    Ok(made)
}

/// What takes blocks as they are made.
type Keep<'a> = dyn FnMut(&[u8]) -> formats::Result<()> + 'a;

/// A kept base.
fn mapped<D: Device>(
    device: &D,
    (config, quant): (&ModelConfig, Quant),
    (path, key): (&Path, &str),
    residence: Residence,
    growth: &Growth,
    observer: &mut dyn Observer<Event>,
) -> Result<Base<D>> {
    let file = BlockFile::open(path, key)?;
    let mut base = Base::from_blocks(device, (config, quant), &file, residence, &mut loading(observer))?;
    growth.count_map(file.map());
    base.watch(growth.watch());
    // When it was last used; a cache on a disk that cannot be written is of use all the same.
    let _ =
        std::fs::File::options().write(true).open(path).and_then(|file| file.set_modified(SystemTime::now()));
    observer.observe(Event::BaseMapped { path: path.to_owned(), bytes: base.bytes() });
    Ok(base)
}

/// Tells an observer of a run how far loading is.
pub fn loading(observer: &mut dyn Observer<Event>) -> impl FnMut(LoadEvent) {
    move |event| {
        if let LoadEvent::Tensor { n_done: done, n_tensors: total, .. } = event {
            observer.observe(Event::Loading { done, total });
        }
    }
}

/// Everything that the blocks follow from.
fn key(content_hash: &str, config: &ModelConfig, quant: Quant) -> String {
    format!("codec {CODEC_VERSION}, weights {content_hash}, as {quant}, {config:?}")
}

fn remove_oldest(dir: &Path) {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let kept = entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == SUFFIX));
    let used = |path: PathBuf| Some((path.metadata().and_then(|metadata| metadata.modified()).ok()?, path));
    let mut kept: Vec<_> = kept.filter_map(used).collect();
    kept.sort();
    for (_, path) in kept.iter().rev().skip(MOST_KEPT) {
        let _ = std::fs::remove_file(path);
    }
}
