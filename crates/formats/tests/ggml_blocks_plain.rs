//! The tests of `ggml_blocks` in plain arithmetic, as processors without AVX2 have it.

#[path = "ggml_blocks.rs"]
mod ggml_blocks;
