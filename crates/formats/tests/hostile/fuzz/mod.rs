//! Files with the right structure and lies in it, in any number.

mod gguf;
mod harness;
mod liar;
mod safetensors;

use std::path::Path;

use formats::Error;
use harness::{Target, variant};
use liar::Liar;

/// Bytes that opening may hold: twice the file, and room for what does not depend on it.
fn allowed(file_bytes: usize) -> usize {
    2 * file_bytes + (1 << 20)
}

fn fuzz<F>(make: fn(&mut Liar) -> Vec<u8>, open: fn(&Path) -> Result<F, Error>, look: fn(&F, &mut Liar)) {
    harness::fuzz(&Target { make, open, look, allowed, kind: variant, names_file: true });
}
