//! llama.cpp over files of nothing but a vocabulary.

use std::path::Path;
use std::sync::OnceLock;

use formats::gguf::{Metadata, Value, Writer};
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use text::Tokenizer;

/// The vocabulary of a file as llama.cpp reads it.
pub struct LlamaCpp {
    pub model: LlamaModel,
}

impl LlamaCpp {
    pub fn open(path: &Path) -> LlamaCpp {
        static BACKEND: OnceLock<LlamaBackend> = OnceLock::new();
        let backend = BACKEND.get_or_init(|| {
            let mut backend = LlamaBackend::init().unwrap();
            backend.void_logs();
            backend
        });
        let parameters = LlamaModelParams::default().with_vocab_only(true);
        LlamaCpp { model: LlamaModel::load_from_file(backend, path, &parameters).unwrap() }
    }

    /// Ids without anything in front or behind; `trusted` makes control tokens of their text.
    pub fn ids(&self, text: &str, trusted: bool) -> Vec<u32> {
        let tokens = self.model.vocab().tokenize(text.as_bytes(), false, trusted);
        tokens.into_iter().map(|token| token.0 as u32).collect()
    }
}

/// Writes a GGUF of nothing but the vocabulary that `tokenizer` writes for `rows` rows.
pub fn write_vocabulary(tokenizer: &Tokenizer, rows: usize, path: &Path) {
    write(tokenizer.gguf_metadata(rows).unwrap(), path);
}

/// Writes a GGUF of nothing but these `tokenizer.ggml.*` keys.
pub fn write(vocabulary: impl IntoIterator<Item = (String, Value)>, path: &Path) {
    let mut metadata = Metadata::new();
    for (key, value) in [("general.architecture", "llama"), ("general.name", "vocabulary")] {
        metadata.push(key, value);
    }
    for (key, value) in
        [("context_length", 8_u32), ("embedding_length", 8), ("block_count", 1), ("feed_forward_length", 8)]
    {
        metadata.push(format!("llama.{key}"), value);
    }
    metadata.push("llama.attention.head_count", 1_u32);
    metadata.push("llama.attention.layer_norm_rms_epsilon", 1e-5_f32);
    metadata.extend(vocabulary);
    let file = std::fs::File::create(path).unwrap();
    Writer::begin(std::io::BufWriter::new(file), &metadata, &[]).unwrap().finish().unwrap();
}
