//! The checksums that name a file on the hub: SHA-256 for large ones, git's SHA-1 of a blob for the others.

use sha1::Digest as _;

/// What a file's bytes must hash to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Digest {
    /// Of files in large-file storage.
    Sha256(String),
    /// Of files in git itself: SHA-1 of `blob SIZE\0` and the bytes.
    GitBlob(String),
}

impl Digest {
    /// Reads an entity tag, with or without quotes and mark of weakness; `None` when it is no checksum.
    pub(crate) fn from_etag(etag: &str) -> Option<Self> {
        let hex = etag.trim().trim_start_matches("W/").trim_matches('"');
        let is_hex = hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        match hex.len() {
            64 if is_hex => Some(Self::Sha256(hex.to_owned())),
            40 if is_hex => Some(Self::GitBlob(hex.to_owned())),
            _ => None,
        }
    }

    /// The name of the blob in the cache.
    pub(crate) fn hex(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::GitBlob(hex) => hex,
        }
    }

    /// A hasher of the same kind, for a file of `size` bytes.
    pub(crate) fn hasher(&self, size: u64) -> Hasher {
        match self {
            Self::Sha256(_) => Hasher::Sha256(sha2::Sha256::new()),
            Self::GitBlob(_) => Hasher::GitBlob(sha1::Sha1::new_with_prefix(format!("blob {size}\0"))),
        }
    }
}

/// Hashes a file as it comes in.
pub(crate) enum Hasher {
    Sha256(sha2::Sha256),
    GitBlob(sha1::Sha1),
}

impl Hasher {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::GitBlob(hasher) => hasher.update(bytes),
        }
    }

    pub(crate) fn hex(&self) -> String {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        match self {
            Self::Sha256(hasher) => hex(&hasher.clone().finalize()),
            Self::GitBlob(hasher) => hex(&hasher.clone().finalize()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_agree_with_git_and_sha256sum() {
        // printf abc | git hash-object --stdin; printf abc | sha256sum
        for hex in [
            "f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f",
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        ] {
            let digest = Digest::from_etag(&format!("W/\"{hex}\"")).unwrap();
            let mut hasher = digest.hasher(3);
            hasher.update(b"a");
            hasher.update(b"bc");
            assert_eq!((hasher.hex().as_str(), digest.hex()), (hex, hex));
        }
    }

    #[test]
    fn other_tags_are_no_checksums() {
        for etag in ["", "\"abc\"", "\"../../../../../../../../../../../../../etc/pw\"", &"g".repeat(40)] {
            assert_eq!(Digest::from_etag(etag), None, "{etag}");
        }
    }
}
