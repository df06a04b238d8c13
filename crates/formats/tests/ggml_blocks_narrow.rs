//! The tests of `ggml_blocks` with vectors of eight, as processors without AVX-512 have.

#[path = "ggml_blocks.rs"]
mod ggml_blocks;
