//! Tokenizers that are refused, and in what words.

mod shared;

use std::path::Path;

use expect_test::{Expect, expect};
use formats::gguf::{Metadata, Reader};
use serde_json::{Value, json};
use shared::asset;
use text::{Error, Tokenizer};

/// The message, `DIR` for the folder and `…` for the list of known pre-tokenizers.
fn message(error: &Error, folder: &Path) -> String {
    let message = error.to_string().replace(folder.to_str().unwrap(), "DIR");
    for opening in ["known are the ways of ", "known are "] {
        if let Some((before, names)) = message.split_once(opening) {
            assert!(names.starts_with("qwen2, ") && names.split(", ").count() > 50, "{names}");
            return format!("{before}{opening}…");
        }
    }
    message
}

#[track_caller]
fn check_gguf(metadata: &Metadata, expected: Expect) {
    expected.assert_eq(&message(&Tokenizer::from_gguf(metadata).unwrap_err(), Path::new("/none")));
}

/// A folder with these files.
#[track_caller]
fn check_folder(files: &[(&str, &[u8])], expected: Expect) {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    expected.assert_eq(&message(&Tokenizer::from_dir(folder.path()).unwrap_err(), folder.path()));
}

/// The least that is a byte-level vocabulary, of an architecture, with a name of its pre-tokenizer or none.
fn byte_level(architecture: &str, pre: Option<&str>) -> Metadata {
    let mut metadata = Metadata::new();
    metadata.push("general.architecture", architecture);
    metadata.push("tokenizer.ggml.model", "gpt2");
    metadata.push("tokenizer.ggml.tokens", vec!["a".to_owned()]);
    metadata.push("tokenizer.ggml.merges", Vec::<String>::new());
    if let Some(pre) = pre {
        metadata.push("tokenizer.ggml.pre", pre);
    }
    metadata
}

#[test]
fn pre_tokenizers_without_a_row() {
    check_gguf(
        &byte_level("llama", Some("bloom")),
        expect!["metadata key `tokenizer.ggml.pre`: `bloom` is not known; known are …"],
    );
    check_gguf(
        &byte_level("llama", None),
        expect![
            "metadata key `tokenizer.ggml.pre`: it is absent, and `llama` models have several; known are …"
        ],
    );
    // Known: what is amiss is another thing.
    check_gguf(
        &byte_level("gptneox", None),
        expect![
            "metadata key `tokenizer.ggml.tokens`: no token for the byte 0x09, text that has it would be lost"
        ],
    );
    let pocket = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes/pocket/tokenizer.json");
    let mut file: Value = serde_json::from_slice(&std::fs::read(pocket).unwrap()).unwrap();
    file["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "\\w+"}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
    ]});
    check_folder(
        &[("tokenizer.json", file.to_string().as_bytes())],
        expect![[
            r#"the tokenizer of `DIR/tokenizer.json` cuts text in a way that is not known, {"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"\\w+"},"behavior":"Isolated","invert":false},{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false}]}; known are the ways of …"#
        ]],
    );
}

#[test]
fn other_models() {
    if let Some(path) = asset("gguf-vocab/ggml-vocab-bert-bge.gguf") {
        check_gguf(
            Reader::open(&path).unwrap().metadata(),
            expect!["metadata key `tokenizer.ggml.model`: `bert` is not known, only `gpt2` and `llama`"],
        );
    }
    if let Some(path) = asset("models/bert-base-uncased-bge/tokenizer.json") {
        check_folder(
            &[("tokenizer.json", &std::fs::read(path).unwrap())],
            expect![
                "the tokenizer of `DIR/tokenizer.json` cannot be used: its model is of type WordPiece; BPE, byte-level or with byte fallback, is known"
            ],
        );
    }
}

/// One piece, and nothing of how it was made: SentencePiece's defaults.
const UNIGRAM: &[u8] = &[0x0A, 0x08, 0x0A, 0x01, b'x', 0x15, 0, 0, 0x80, 0x3F];

#[test]
fn folders_without_a_tokenizer_json() {
    check_folder(&[], expect!["cannot read `DIR/tokenizer.json`: entity not found"]);
    check_folder(
        &[("tokenizer.model", UNIGRAM)],
        expect![
            "the tokenizer of `DIR/tokenizer.model` cannot be used: its model is unigram, not bpe, and there is no tokenizer.json"
        ],
    );
    check_folder(
        &[("tokenizer.model", &UNIGRAM[..9])],
        expect![
            "the tokenizer of `DIR/tokenizer.model` cannot be used: it is no SentencePiece model, or a torn one, and there is no tokenizer.json"
        ],
    );
    // tiktoken's.
    check_folder(
        &[("tokenizer.model", b"IQ== 0\nIg== 1\n")],
        expect![
            "the tokenizer of `DIR/tokenizer.model` cannot be used: it is no SentencePiece model, or a torn one, and there is no tokenizer.json"
        ],
    );
}

#[test]
fn a_torn_model_beside_a_tokenizer_json() {
    let Some(path) = asset("lm/stories260K-hf/tokenizer.json") else { return };
    let file = std::fs::read(path).unwrap();
    check_folder(
        &[("tokenizer.json", &file), ("tokenizer.model", &UNIGRAM[..9])],
        expect![
            "the tokenizer of `DIR/tokenizer.model` cannot be used: it is no SentencePiece model, or a torn one"
        ],
    );
}
