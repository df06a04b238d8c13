//! Files of other people: published vocabularies through both tokenizers. Skipped where the assets are absent.

mod assets;

use std::path::PathBuf;

use assets::assets;
use runner::engine::llama::Vocabulary;
use text::Tokenizer;

/// Chat markup of several families, each of whose parts is a control token in some vocabulary and text in others.
///
/// Not for Phi-3, which llama.cpp has rules of its own for that its file does not tell: it strips blanks right of
/// control tokens and overrides the type of `</s>`.
const MARKUP: &str =
    "<|im_start|>user\nHi<|im_end|>\n<s>[INST] x [/INST]</s><|user|>\n y <|end|><|endoftext|> z";

#[test]
fn engine_and_text_layer_give_the_same_ids_for_published_vocabularies() {
    let Some(assets) = assets() else { return };
    let mut compared = Vec::new();
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(assets.join("gguf-vocab")).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in
        entries.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "gguf"))
    {
        let file = formats::gguf::Reader::open(&path).unwrap();
        if path.ends_with("ggml-vocab-bert-bge.gguf") {
            assert!(Tokenizer::from_gguf(file.metadata()).is_err());
            continue;
        }
        let tokenizer = Tokenizer::from_gguf(file.metadata()).unwrap();
        // Its file names no pre-tokenizer. The engine then cuts as no published tokenizer does, and warns; the text
        // layer knows it by its architecture, and writes the name.
        if path.ends_with("ggml-vocab-gpt-neox.gguf") {
            continue;
        }
        let engine = Vocabulary::open(&path).unwrap();
        let texts = std::fs::read_to_string(path.with_extension("gguf.inp")).unwrap_or_default();
        let is_phi_3 = path.ends_with("ggml-vocab-phi-3.gguf");
        let markup = (!is_phi_3).then_some(MARKUP);
        for text in texts.split("\n__ggml_vocab_test__\n").chain(markup) {
            assert_eq!(tokenizer.encode(text), engine.tokenize(text, false), "{}: {text:?}", path.display());
            assert_eq!(
                tokenizer.encode_template(text),
                engine.tokenize(text, true),
                "{}: {text:?}",
                path.display()
            );
        }
        if let Some(eos) = tokenizer.eos() {
            assert!(engine.ends_generation(eos), "{}: {eos}", path.display());
        }
        compared.push(path);
    }
    assert_eq!(compared.len(), 10, "{compared:?}");
}
