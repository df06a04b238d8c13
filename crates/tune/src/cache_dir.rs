//! Where things are kept that can be made again: quantised bases.

use std::path::PathBuf;

/// `TUNE_CACHE`, or `tune` in the user's cache folder; `None` where there is no such place, or `TUNE_CACHE` is empty.
pub fn cache_dir() -> Option<PathBuf> {
    if let Some(told) = std::env::var_os("TUNE_CACHE") {
        return (!told.is_empty()).then(|| told.into());
    }
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let home = || {
        folder("HOME")
            .map(|home| home.join(if cfg!(target_os = "macos") { "Library/Caches" } else { ".cache" }))
    };
    folder("XDG_CACHE_HOME").or_else(|| folder("LOCALAPPDATA")).or_else(home).map(|cache| cache.join("tune"))
}
