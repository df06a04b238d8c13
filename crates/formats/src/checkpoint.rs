//! A model directory's weights: `model.safetensors`, or the shards its index names.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde::Deserialize;

use crate::json::Entries;
use crate::safetensors::{SafetensorsFile, Tensor};
use crate::{Error, Result, TensorSource, hash, json};

pub use crate::safetensors::{Data, write_safetensors};

const SINGLE_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";

/// All weights of a Hugging Face model directory, memory-mapped.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    files: Vec<SafetensorsFile>,
    /// Names in file order, and the file that holds each.
    names: Vec<String>,
    file_of: HashMap<String, usize>,
    content_hash: OnceLock<String>,
}

impl Checkpoint {
    /// Opens `model.safetensors`, or the shards of `model.safetensors.index.json`.
    ///
    /// # Errors
    /// [`Error::MissingFile`] when the directory or a shard is not there; [`Error::NoSuchTensor`] when a shard
    /// lacks what the index promises; as [`SafetensorsFile::open`].
    pub fn open(dir: &Path) -> Result<Self> {
        let (single, index) = (dir.join(SINGLE_FILE), dir.join(INDEX_FILE));
        if single.is_file() {
            return Self::from_file(dir, &single);
        }
        if index.is_file() {
            return Self::from_index(dir, &index);
        }
        Err(Error::MissingFile {
            path: single,
            expected: "weights: this file, or model.safetensors.index.json",
        })
    }

    /// [`TensorSource::content_hash`] with another way to hash a file: one that remembers, say.
    ///
    /// # Errors
    /// What hashing meets.
    pub fn content_hash_by(&self, hash_file: &mut dyn FnMut(&Path) -> Result<String>) -> Result<String> {
        hash::once(&self.content_hash, || hash_files(&self.files(), hash_file))
    }

    fn from_file(dir: &Path, path: &Path) -> Result<Self> {
        let file = SafetensorsFile::open(path)?;
        let names: Vec<String> = file.tensors().map(|tensor| tensor.name.to_owned()).collect();
        let file_of = names.iter().map(|name| (name.clone(), 0)).collect();
        Ok(Self { dir: dir.to_owned(), files: vec![file], names, file_of, content_hash: OnceLock::new() })
    }

    fn from_index(dir: &Path, index_path: &Path) -> Result<Self> {
        let index: Index = json::read(index_path)?;
        let mut files: Vec<SafetensorsFile> = Vec::new();
        let mut number_of: HashMap<String, usize> = HashMap::new();
        let mut names = Vec::with_capacity(index.weight_map.0.len());
        let mut file_of = HashMap::with_capacity(index.weight_map.0.len());
        for (name, shard) in index.weight_map.0 {
            let number = match number_of.get(&shard) {
                Some(&number) => number,
                None => {
                    files.push(open_shard(dir, index_path, &name, &shard)?);
                    number_of.insert(shard, files.len() - 1);
                    files.len() - 1
                }
            };
            if files[number].tensor(&name).is_none() {
                let path = files[number].path().to_owned();
                return Err(Error::NoSuchTensor { path, tensor: name });
            }
            if file_of.insert(name.clone(), number).is_some() {
                let (path, place) = (index_path.to_owned(), "a tensor");
                return Err(Error::Duplicate { path, place, name });
            }
            names.push(name);
        }
        Ok(Self { dir: dir.to_owned(), files, names, file_of, content_hash: OnceLock::new() })
    }

    /// The weight files, in the order they are hashed.
    #[must_use]
    pub fn files(&self) -> Vec<&Path> {
        let mut files: Vec<&Path> = self.files.iter().map(SafetensorsFile::path).collect();
        files.sort();
        files
    }

    /// The model directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A tensor's type, shape and size as its file states them.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<Tensor<'_>> {
        self.file_of(name)?.tensor(name)
    }

    fn file_of(&self, name: &str) -> Option<&SafetensorsFile> {
        self.file_of.get(name).map(|&number| &self.files[number])
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: Entries<String>,
}

/// Opens a shard; a name that leads out of the directory is refused.
fn open_shard(dir: &Path, index_path: &Path, tensor: &str, shard: &str) -> Result<SafetensorsFile> {
    let is_plain = Path::new(shard).file_name().is_some_and(|name| name == shard) && !shard.contains('\\');
    if !is_plain {
        let key = format!("weight_map.{tensor}");
        let (expected, actual) = ("the name of a file beside it".to_owned(), format!("`{shard}`"));
        return Err(Error::Key { path: index_path.to_owned(), key, expected, actual });
    }
    let path = dir.join(shard);
    if !path.exists() {
        return Err(Error::MissingFile { path, expected: "a shard that model.safetensors.index.json names" });
    }
    SafetensorsFile::open(&path)
}

impl TensorSource for Checkpoint {
    fn tensor_names(&self) -> Vec<String> {
        self.names.clone()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        Some(self.tensor(name)?.shape)
    }

    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        match self.file_of(name) {
            Some(file) => file.read_rows(name, rows, out),
            None => Err(Error::NoSuchTensor { path: self.dir.clone(), tensor: name.to_owned() }),
        }
    }

    /// One file: its BLAKE3. Shards: the BLAKE3 of what `b3sum` prints for them, in the order of their names.
    fn content_hash(&self) -> Result<String> {
        self.content_hash_by(&mut |path| match self.files.iter().find(|file| file.path() == path) {
            Some(file) => Ok(hash::blake3_mapped(file.bytes())),
            None => hash::blake3_file(path),
        })
    }

    fn label(&self) -> PathBuf {
        self.dir.clone()
    }
}

fn hash_files(files: &[&Path], hash_file: &mut dyn FnMut(&Path) -> Result<String>) -> Result<String> {
    if let [only] = files {
        return hash_file(only);
    }
    let mut lines = String::new();
    for path in files {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        lines += &format!("{}  {name}\n", hash_file(path)?);
    }
    Ok(hash::blake3_bytes(lines.as_bytes()))
}
