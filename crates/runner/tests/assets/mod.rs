//! Other people's files to test against; a fresh clone has none.

use std::path::{Path, PathBuf};

pub fn assets() -> Option<PathBuf> {
    let given = std::env::var_os("TUNE_SHARED").map(PathBuf::from);
    let shared = given.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"));
    let assets = shared.join("assets");
    if assets.is_dir() {
        return Some(assets);
    }
    eprintln!("skipped: {} is not there", assets.display());
    None
}
