//! The licence under which a base was published: it goes where the result goes.

use std::path::Path;

/// Licences and notices are longer than this nowhere.
const MAX_BYTES: u64 = 1 << 20;

/// Whether a file beside the weights holds the licence, or notices that it asks to pass on.
pub(crate) fn is_license(file_name: &str) -> bool {
    file_name.starts_with("LICENSE") || file_name.starts_with("NOTICE")
}

/// The texts of a base's licence and notices, by file name; a base that has none, or none that is text, gives none.
pub(crate) fn texts(base: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(base) else { return Vec::new() };
    let mut paths: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(is_license))
        .filter(|path| path.metadata().is_ok_and(|found| found.is_file() && found.len() <= MAX_BYTES))
        .collect();
    paths.sort();
    paths.iter().filter_map(|path| std::fs::read_to_string(path).ok()).collect()
}
