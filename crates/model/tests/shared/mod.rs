//! Where real material to test against lies; a fresh clone has none of it.

use std::path::PathBuf;

/// A path under `$TUNE_SHARED`, or under `shared` beside the workspace; `None`, said aloud, where it is absent.
pub fn shared(path: &str) -> Option<PathBuf> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared");
    let root = std::env::var_os("TUNE_SHARED").map_or_else(|| PathBuf::from(beside), PathBuf::from);
    let path = root.join(path);
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: {} is absent (set TUNE_SHARED to the folder that holds `assets`)", path.display());
    None
}
