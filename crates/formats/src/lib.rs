//! Every byte layout that crosses a stage: safetensors, GGUF, ggml blocks, HF configuration, adapters.
//!
//! A reader and its writer stand in one module. Every file is treated as hostile: lengths are capped by what
//! the file can hold before anything is allocated, arithmetic is checked, and each error names the file, the
//! tensor or key, what was expected and what was found.

#![deny(missing_docs)]
#![deny(unsafe_code)]

pub mod adapter;
pub mod atomic;
pub mod block;
pub mod block_file;
pub mod checkpoint;
pub mod column;
pub mod config;
pub mod date;
pub mod disk;
pub mod error;
pub mod gguf;
pub mod hash;
pub mod hash_index;
pub mod imatrix;
pub mod isa;
pub mod journal;
pub mod json;
pub mod lock;
pub mod map;
mod names;
pub mod observe;
pub mod ollama;
pub mod page_cache;
pub mod safetensors;
pub mod source;
pub mod tensorboard;

pub use block::BlockType;
pub use error::{Error, Result};
pub use observe::Observer;
pub use source::TensorSource;
