//! The names of pre-tokenizers: each cuts text as llama.cpp does under that name.

mod shared;

use formats::gguf::{Metadata, Reader};
use shared::asset;
use shared::expected::pairs;
use shared::llama_cpp::{LlamaCpp, write};
use text::Tokenizer;

const PRE: &str = "tokenizer.ggml.pre";

/// Names whose cuts llama.cpp makes in another way, with the same ids from their own vocabularies alone, which have
/// no token of several digits; `published.rs` compares those.
const OWN_VOCABULARY_ONLY: [&str; 2] = ["deepseek-llm", "falcon"];

/// The names, as the refusal of another lists them.
fn known_names(vocabulary: &Metadata) -> Vec<String> {
    let mut metadata = vocabulary.clone();
    metadata.insert(PRE, "none");
    let message = Tokenizer::from_gguf(&metadata).unwrap_err().to_string();
    let (_, names) = message.split_once("known are ").unwrap();
    names.split(", ").map(str::to_owned).collect()
}

/// Ids of GPT-2's vocabulary under each name, and whether a text begins with BOS.
#[test]
fn names_mean_what_they_mean_in_llama_cpp() {
    let Some(path) = asset("gguf-vocab/ggml-vocab-gpt-2.gguf") else { return };
    let Some(texts) = pairs("llama.cpp/gpt-2") else { return };
    let published = Reader::open(&path).unwrap().metadata().clone();
    let names = known_names(&published);
    assert!(names.len() > 50, "{names:?}");
    for name in names {
        let mut metadata = published.clone();
        metadata.insert(PRE, name.as_str());
        let tokenizer = Tokenizer::from_gguf(&metadata).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let written = folder.path().join("vocabulary.gguf");
        let vocabulary = metadata.entries().iter().filter(|(key, _)| key.starts_with("tokenizer."));
        write(vocabulary.cloned(), &written);
        let llama_cpp = LlamaCpp::open(&written);
        let texts = texts.iter().map(|pair| &pair.text);
        for text in texts.filter(|_| !OWN_VOCABULARY_ONLY.contains(&name.as_str())) {
            assert_eq!(tokenizer.encode(text), llama_cpp.ids(text, false), "{name}: {text:?}");
        }
        assert_eq!(tokenizer.adds_bos(), llama_cpp.model.vocab().should_add_bos(), "{name}");
    }
}
