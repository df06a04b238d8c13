//! `[data]`: which files, how their rows are read, and what of them is learned.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::refuse;
use crate::data::row;
use crate::error::{Error, Result};

/// Where rows come from and what becomes of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DataOptions {
    /// Training files.
    pub train: Vec<Source>,
    /// Files of rows for the validation loss; without any, [`DataOptions::val_split`] of the training rows.
    #[serde(with = "none_one_or_more")]
    pub validation: Vec<Source>,
    /// Files of rows for exact match, never trained on; without any, validation rows are used.
    #[serde(with = "none_one_or_more")]
    pub test: Vec<Source>,
    /// Share of the training rows set aside for validation, 0 to 0.5.
    pub val_split: f32,
    /// Longest row in tokens.
    pub max_seq_len: usize,
    /// What becomes of a longer one.
    pub on_too_long: OnTooLong,
    /// Which turns are learned.
    pub train_on: TrainOn,
    /// Whether rows are put together, as many as [`DataOptions::max_seq_len`] holds; a batch then counts these.
    #[serde(skip_serializing_if = "is_false")]
    pub packing: bool,
    /// A chat template in place of the base's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<PathBuf>,
    /// What the template's `enable_thinking` is from now on, in training and wherever the result is run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thinking: Option<bool>,
    /// Rows that may be left out because something is wrong with them.
    #[serde(skip_serializing_if = "is_zero")]
    pub max_bad_rows: u64,
}

fn is_false(value: &bool) -> bool {
    !value
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}

impl Default for DataOptions {
    fn default() -> Self {
        Self {
            train: Vec::new(),
            validation: Vec::new(),
            test: Vec::new(),
            val_split: 0.05,
            max_seq_len: 2048,
            on_too_long: OnTooLong::Error,
            train_on: TrainOn::Assistant,
            packing: false,
            chat_template: None,
            thinking: None,
            max_bad_rows: 0,
        }
    }
}

/// A data file and how it is read. One that is read as it comes is written as its path alone.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "WrittenSource", into = "WrittenSource")]
pub struct Source {
    /// JSONL or one JSON array, gzipped or not.
    pub path: PathBuf,
    /// How often its rows are seen in an epoch: 2 is twice, 0.5 every other one, another half each epoch.
    pub weight: Weight,
    /// What its rows are.
    pub format: Format,
    /// Keys that are called differently in this file: what they are called here, and there.
    pub fields: BTreeMap<String, String>,
}

/// A source's weight, above 0.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Weight(pub f64);

impl Default for Weight {
    fn default() -> Self {
        Self(1.0)
    }
}

/// What the rows of a file are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Each row's keys tell; a row whose keys tell of two formats is refused.
    #[default]
    Auto,
    /// `messages` of `role` and `content`, and perhaps `tools`.
    Messages,
    /// `conversations` of `from` and `value`, and perhaps `system` and `tools`.
    #[serde(rename = "sharegpt")]
    ShareGpt,
    /// `instruction`, `output`, and perhaps `input`, `system`, `history`.
    Alpaca,
    /// `prompt` and `completion`, texts or lists of messages.
    PromptCompletion,
    /// `text`, all of which is learned.
    Text,
    /// `chosen` and `rejected`, with what both answer.
    Preference,
}

impl Source {
    /// A file that is read as it comes.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), ..Self::default() }
    }
}

impl From<PathBuf> for Source {
    fn from(path: PathBuf) -> Self {
        Self::new(path)
    }
}

impl DataOptions {
    /// Checks every value that can be checked without opening a file.
    ///
    /// # Errors
    /// [`Error::Option`].
    pub(super) fn validate(&self) -> Result<()> {
        refuse(self.train.is_empty(), "data.train", "names no file")?;
        for source in self.train.iter().chain(&self.validation).chain(&self.test) {
            source.validate()?;
        }
        for (key, sources) in [("data.validation", &self.validation), ("eval.test", &self.test)] {
            let is_weighed = sources.iter().any(|source| source.weight != Weight::default());
            refuse(is_weighed, key, "has a weight, but each row that is held out is measured once")?;
        }
        let no_role = matches!(&self.train_on, TrainOn::Roles(roles) if roles.is_empty());
        refuse(no_role, "data.train_on", "names no role")?;
        let is_share = self.val_split.is_finite() && (0.0..=0.5).contains(&self.val_split);
        refuse(!is_share, "data.val_split", "must lie between 0 and 0.5")?;
        refuse(self.max_seq_len < 2, "data.max_seq_len", "must be at least 2")
    }
}

impl Source {
    fn validate(&self) -> Result<()> {
        let weight = self.weight.0;
        let is_weight = weight > 0.0 && weight <= LARGEST_WEIGHT;
        refuse(!is_weight, "data.train", "has a weight that is not above 0, or more than 1000")?;
        let Some(key) = self.fields.keys().find(|key| !row::KEYS.contains(&key.as_str())) else {
            return Ok(());
        };
        let known = row::KEYS.join(", ");
        let reason = format!("has `{key}` under `fields`, where only these can stand: {known}");
        Err(Error::Option { key: "data.train", reason })
    }
}

/// No row is worth a thousand others.
const LARGEST_WEIGHT: f64 = 1000.0;

/// Files as records have them since there was one at most: nothing, the one, or a list.
mod none_one_or_more {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Source;

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Written {
        One(Source),
        More(Vec<Source>),
    }

    pub fn serialize<S: Serializer>(sources: &[Source], to: S) -> Result<S::Ok, S::Error> {
        match sources {
            [] => None,
            [one] => Some(Written::One(one.clone())),
            more => Some(Written::More(more.to_vec())),
        }
        .serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Source>, D::Error> {
        Ok(match Option::<Written>::deserialize(from)? {
            None => Vec::new(),
            Some(Written::One(one)) => vec![one],
            Some(Written::More(more)) => more,
        })
    }
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum WrittenSource {
    Path(PathBuf),
    Table(SourceTable),
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SourceTable {
    path: PathBuf,
    #[serde(default, skip_serializing_if = "is_whole")]
    weight: Weight,
    #[serde(default)]
    format: Format,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    fields: BTreeMap<String, String>,
}

fn is_whole(weight: &Weight) -> bool {
    weight.0 == 1.0
}

impl From<WrittenSource> for Source {
    fn from(written: WrittenSource) -> Self {
        match written {
            WrittenSource::Path(path) => path.into(),
            WrittenSource::Table(SourceTable { path, weight, format, fields }) => {
                Self { path, weight, format, fields }
            }
        }
    }
}

impl From<Source> for WrittenSource {
    fn from(source: Source) -> Self {
        if source == Source::new(&source.path) {
            return Self::Path(source.path);
        }
        let Source { path, weight, format, fields } = source;
        Self::Table(SourceTable { path, weight, format, fields })
    }
}

/// What becomes of a row over [`DataOptions::max_seq_len`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnTooLong {
    /// The run is refused, naming the row.
    #[default]
    Error,
    /// The row is left out and counted.
    Drop,
    /// The row's end is cut off and counted.
    Truncate,
}

/// Which turns of a conversation are learned.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "WrittenTrainOn", into = "WrittenTrainOn")]
pub enum TrainOn {
    /// Every assistant turn with its end-of-turn token.
    #[default]
    Assistant,
    /// The last assistant turn alone.
    Last,
    /// Every token.
    All,
    /// What messages of these roles say.
    Roles(Vec<String>),
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected \"assistant\", \"last\", \"all\" or a list of roles")]
enum WrittenTrainOn {
    Named(NamedTrainOn),
    Roles(Vec<String>),
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum NamedTrainOn {
    Assistant,
    Last,
    All,
}

impl From<WrittenTrainOn> for TrainOn {
    fn from(written: WrittenTrainOn) -> Self {
        match written {
            WrittenTrainOn::Named(NamedTrainOn::Assistant) => Self::Assistant,
            WrittenTrainOn::Named(NamedTrainOn::Last) => Self::Last,
            WrittenTrainOn::Named(NamedTrainOn::All) => Self::All,
            WrittenTrainOn::Roles(roles) => Self::Roles(roles),
        }
    }
}

impl From<TrainOn> for WrittenTrainOn {
    fn from(train_on: TrainOn) -> Self {
        match train_on {
            TrainOn::Assistant => Self::Named(NamedTrainOn::Assistant),
            TrainOn::Last => Self::Named(NamedTrainOn::Last),
            TrainOn::All => Self::Named(NamedTrainOn::All),
            TrainOn::Roles(roles) => Self::Roles(roles),
        }
    }
}
