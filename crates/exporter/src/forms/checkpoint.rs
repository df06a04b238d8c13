//! Base and adapter merged into a checkpoint that transformers loads: the base's types, shards and an index.

use std::path::Path;
use std::time::Instant;

use formats::checkpoint::Checkpoint;
use formats::safetensors::{PlannedTensor, write_safetensors_in_parts};
use formats::{BlockType, Observer, TensorSource, atomic, disk, json};
use model::family;
use model::lora::init::Shifted;

use super::{FormReceipt, FormRequest, Inputs};
use crate::license::is_license;
use crate::{Error, Event, Result, pending};

/// Bytes of a shard: what transformers writes.
const SHARD_BYTES: u64 = 5_000_000_000;

/// Weights that are in memory at a time.
const PART_VALUES: usize = 4 << 20;

const INDEX: &str = "model.safetensors.index.json";

/// The longest file beside the weights that is copied.
const MAX_SMALL_FILE_BYTES: u64 = 64 << 20;

/// Writes `<name>-merged`, a directory that appears whole or not at all, and returns what is recorded in it.
///
/// # Errors
/// Everything in [`crate::Error`].
pub fn export_checkpoint(request: &FormRequest, observer: &mut dyn Observer<Event>) -> Result<FormReceipt> {
    let inputs = Inputs::open(request)?;
    let path = request.output.join(format!("{}-merged", request.name));
    let base = inputs.base.folder("a merged checkpoint")?;
    let shards = shards(base)?;
    let need_bytes: u64 = shards.iter().flatten().map(|(_, _, bytes)| bytes).sum();
    disk::check_room(&path, need_bytes)?;
    pending::create_dir(&request.output)?;
    let mut progress = Progress::begin(observer, &shards);
    let receipt = atomic::write_dir(&path, |dir| {
        let mut names = write_weights(dir, (&inputs, base), &shards, &mut progress)?;
        names.extend(copy_small_files(&request.base, dir)?);
        check(dir, &inputs, base)?;
        let receipt = inputs.receipt(request, "merged-hf", dir, &names)?;
        let receipt = FormReceipt { path: path.clone(), ..receipt };
        json::write(&dir.join("receipt.json"), &receipt)?;
        Ok::<_, Error>(receipt)
    })?;
    Ok(receipt)
}

/// A tensor of the base: name, type, bytes.
type Entry = (String, BlockType, u64);

/// The base's tensors in its own order, cut into shards.
fn shards(base: &Checkpoint) -> Result<Vec<Vec<Entry>>> {
    let (mut shards, mut shard_bytes): (Vec<Vec<Entry>>, u64) = (Vec::new(), 0);
    for name in base.tensor_names() {
        let tensor = base.tensor(&name).ok_or_else(|| missing(base, &name))?;
        let ty = tensor.block_type().ok_or_else(|| missing(base, &name))?;
        let bytes = (tensor.shape.iter().product::<usize>() * ty.block_bytes()) as u64;
        if shards.is_empty() || shard_bytes + bytes > SHARD_BYTES {
            shards.push(Vec::new());
            shard_bytes = 0;
        }
        shard_bytes += bytes;
        shards.last_mut().expect("one was pushed where there was none").push((name, ty, bytes));
    }
    Ok(shards)
}

fn missing(base: &Checkpoint, name: &str) -> Error {
    formats::Error::NoSuchTensor { path: base.dir().to_owned(), tensor: name.to_owned() }.into()
}

struct Progress<'a> {
    observer: &'a mut dyn Observer<Event>,
    n_tensors: usize,
    file_bytes: u64,
    done: usize,
    written_bytes: u64,
    started: Instant,
}

impl<'a> Progress<'a> {
    fn begin(observer: &'a mut dyn Observer<Event>, shards: &[Vec<Entry>]) -> Progress<'a> {
        let file_bytes = shards.iter().flatten().map(|(.., bytes)| bytes).sum();
        let n_tensors = shards.iter().map(Vec::len).sum();
        Progress { observer, n_tensors, file_bytes, done: 0, written_bytes: 0, started: Instant::now() }
    }

    fn have_written(&mut self, (name, ty, bytes): &Entry) {
        self.written_bytes += bytes;
        self.observer.observe(Event::Tensor {
            index: self.done,
            n_tensors: self.n_tensors,
            name: name.clone(),
            type_name: ty.name(),
            written_bytes: self.written_bytes,
            file_bytes: self.file_bytes,
            seconds: self.started.elapsed().as_secs_f64(),
        });
        self.done += 1;
    }
}

/// The adapter's updates by the names of the base's tensors.
fn merged(inputs: &Inputs) -> Shifted<'_> {
    let specs = family::tensors(&inputs.base.config).into_iter();
    let updates = specs.filter_map(|spec| {
        let update = inputs.adapter.updates.get(spec.module())?.clone();
        Some((spec, update))
    });
    Shifted::by(inputs.base.source(), updates)
}

fn write_weights(
    dir: &Path,
    (inputs, base): (&Inputs, &Checkpoint),
    shards: &[Vec<Entry>],
    progress: &mut Progress<'_>,
) -> Result<Vec<String>> {
    let source = merged(inputs);
    let mut names = Vec::with_capacity(shards.len());
    let mut places = serde_json::Map::new();
    for (index, shard) in shards.iter().enumerate() {
        let file = match shards.len() {
            1 => "model.safetensors".to_owned(),
            n => format!("model-{:05}-of-{n:05}.safetensors", index + 1),
        };
        let planned: Vec<PlannedTensor> = shard
            .iter()
            .map(|(name, ty, _)| (name.clone(), base.shape(name).unwrap_or_default(), *ty))
            .collect();
        write_safetensors_in_parts(&dir.join(&file), &planned, |at, put| {
            let (name, shape, ty) = &planned[at];
            write_tensor(&source, name, shape, *ty, put)?;
            progress.have_written(&shard[at]);
            Ok::<_, Error>(())
        })?;
        for (name, ..) in shard {
            places.insert(name.clone(), file.clone().into());
        }
        names.push(file);
    }
    if shards.len() > 1 {
        let total: u64 = shards.iter().flatten().map(|(_, _, bytes)| bytes).sum();
        let index = serde_json::json!({ "metadata": { "total_size": total }, "weight_map": places });
        atomic::write_bytes(&dir.join(INDEX), format!("{index:#}\n").as_bytes())?;
        names.push(INDEX.to_owned());
    }
    Ok(names)
}

fn write_tensor(
    source: &Shifted<'_>,
    name: &str,
    shape: &[usize],
    ty: BlockType,
    put: &mut dyn FnMut(&[f32]) -> formats::Result<()>,
) -> Result<()> {
    let (rows, cols) = formats::source::rows_and_cols(shape);
    let (at_once, mut values) = ((PART_VALUES / cols.max(1)).max(1), Vec::new());
    let limit = if ty == BlockType::F16 { crate::tiles::HALF_MAX } else { f32::MAX };
    for first in (0..rows).step_by(at_once) {
        source.read_rows(name, first..(first + at_once).min(rows), &mut values)?;
        if let Some(at) = values.iter().position(|value| !matches!(value.abs(), size if size <= limit)) {
            return Err(Error::OutOfRange {
                tensor: name.to_owned(),
                row: first + at / cols,
                column: at % cols,
                value: values[at],
                type_name: ty.name(),
                limit,
            });
        }
        put(&values)?;
    }
    Ok(())
}

/// Configuration, tokenizer, template and licence; nothing that is weights, and nothing that is run.
fn copy_small_files(base: &Path, dir: &Path) -> Result<Vec<String>> {
    let failed = |path: &Path, source| Error::Io { path: path.to_owned(), action: "copy", source };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(base).map_err(|source| failed(base, source))? {
        let path = entry.map_err(|source| failed(base, source))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let extension = path.extension().unwrap_or_default().to_string_lossy().into_owned();
        let is_text = matches!(extension.as_str(), "json" | "txt" | "model" | "jinja");
        let is_small = std::fs::metadata(&path)
            .is_ok_and(|metadata| metadata.is_file() && metadata.len() <= MAX_SMALL_FILE_BYTES);
        let is_of_weights = name.ends_with(".safetensors.index.json") || name == "receipt.json";
        if (is_text || is_license(&name)) && is_small && !is_of_weights {
            std::fs::copy(&path, dir.join(&name)).map_err(|source| failed(&path, source))?;
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// What was written opens as a checkpoint of the model, and rows of every tensor are those of the merge.
fn check(dir: &Path, inputs: &Inputs, base: &Checkpoint) -> Result<()> {
    let (written, source) = (Checkpoint::open(dir)?, merged(inputs));
    family::check(&inputs.base.config, &written)?;
    let (mut found, mut expected) = (Vec::new(), Vec::new());
    for name in base.tensor_names() {
        let tensor = base.tensor(&name).ok_or_else(|| missing(base, &name))?;
        let (rows, cols) = formats::source::rows_and_cols(&tensor.shape);
        let ty = tensor.block_type().ok_or_else(|| missing(base, &name))?;
        for row in [0, rows / 2, rows - 1] {
            source.read_rows(&name, row..row + 1, &mut expected)?;
            written.read_rows(&name, row..row + 1, &mut found)?;
            let mut rounded = vec![0; cols * ty.block_bytes()];
            formats::block::encode(ty, &expected, cols, None, &mut rounded)?;
            formats::block::decode(ty, &rounded, &mut expected)?;
            if found != expected {
                return Err(Error::Written {
                    place: format!("row {row} of `{name}`"),
                    expected: "the merged weights".to_owned(),
                    actual: "something else".to_owned(),
                });
            }
        }
    }
    Ok(())
}
