//! What experts take on disk: a file that several share is counted once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::card::ExpertCard;

/// What the files of several experts take.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct DiskUse {
    /// Each expert, in the order of the cards.
    pub experts: Vec<ExpertDisk>,
    /// All files, each once.
    pub total_bytes: u64,
}

/// What the files of an expert take.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ExpertDisk {
    /// The expert.
    pub expert: String,
    /// Model file and adapters.
    pub total_bytes: u64,
    /// Of that, what no other expert uses.
    pub own_bytes: u64,
    /// The others that use one of its files.
    pub shared_with: Vec<String>,
    /// Files that are gone.
    pub missing: Vec<PathBuf>,
}

/// Which file it is, by whatever name: hard and symbolic links are one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Identity {
    #[cfg(unix)]
    Inode(u64, u64),
    #[cfg(not(unix))]
    Path(PathBuf),
}

impl DiskUse {
    /// Measures the files of these experts.
    pub fn of(cards: &[ExpertCard]) -> Self {
        let mut users: BTreeMap<Identity, (u64, Vec<usize>)> = BTreeMap::new();
        let mut experts: Vec<ExpertDisk> = cards
            .iter()
            .map(|card| ExpertDisk { expert: card.name.clone(), ..ExpertDisk::default() })
            .collect();
        for (index, card) in cards.iter().enumerate() {
            for path in files(card) {
                match identify(path) {
                    Some((identity, bytes)) => {
                        let (_, of) = users.entry(identity).or_insert((bytes, Vec::new()));
                        if !of.contains(&index) {
                            of.push(index);
                        }
                    }
                    None => experts[index].missing.push(path.to_owned()),
                }
            }
        }
        for (bytes, of) in users.values() {
            for &index in of {
                let others =
                    of.iter().filter(|&&other| other != index).map(|&other| cards[other].name.clone());
                let expert = &mut experts[index];
                expert.total_bytes += bytes;
                expert.own_bytes += if of.len() == 1 { *bytes } else { 0 };
                expert.shared_with.extend(others);
                expert.shared_with.sort();
                expert.shared_with.dedup();
            }
        }
        Self { experts, total_bytes: users.values().map(|(bytes, _)| bytes).sum() }
    }
}

/// The files of an expert: none, where its model is on a server.
pub fn files(card: &ExpertCard) -> impl Iterator<Item = &Path> {
    let model = card.file().into_iter();
    model.flat_map(|file| {
        let adapters = file.adapters.iter().map(|adapter| adapter.file.as_path());
        std::iter::once(file.file.as_path()).chain(adapters)
    })
}

#[cfg(unix)]
fn identify(path: &Path) -> Option<(Identity, u64)> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(path).ok()?;
    Some((Identity::Inode(metadata.dev(), metadata.ino()), metadata.len()))
}

#[cfg(not(unix))]
fn identify(path: &Path) -> Option<(Identity, u64)> {
    let whole = std::fs::canonicalize(path).ok()?;
    let bytes = std::fs::metadata(&whole).ok()?.len();
    Some((Identity::Path(whole), bytes))
}
