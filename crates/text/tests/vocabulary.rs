//! GGUF metadata of published tokenizers: as llama.cpp's converter writes it, read back to the same ids, and
//! read by llama.cpp to the same ids.
//!
//! Goldens: scripts/golden/text_vocabulary.py.

mod shared;

use std::path::Path;

use formats::gguf::{Array, Reader, Value};
use sha2::{Digest, Sha256};
use shared::llama_cpp::{LlamaCpp, write_vocabulary};
use shared::{asset, tokenizer};
use text::Tokenizer;

const GOLDEN: &str = include_str!("golden/vocabulary.json");

/// What the files of a golden hold of a value.
fn recorded(value: &Value) -> serde_json::Value {
    let mut hashed = Sha256::new();
    let length = match value {
        Value::U32(number) => return (*number).into(),
        Value::Bool(flag) => return (*flag).into(),
        Value::String(text) => return text.as_str().into(),
        Value::Array(Array::String(texts)) => {
            texts.iter().for_each(|text| hashed.update([text.as_bytes(), b"\0"].concat()));
            texts.len()
        }
        Value::Array(Array::F32(numbers)) => {
            numbers.iter().for_each(|number| hashed.update(number.to_le_bytes()));
            numbers.len()
        }
        Value::Array(Array::I32(numbers)) => {
            numbers.iter().for_each(|number| hashed.update(number.to_le_bytes()));
            numbers.len()
        }
        other => panic!("{other:?}"),
    };
    let digest: String = hashed.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("{length} {digest}").into()
}

#[test]
fn metadata_as_the_converter_writes_it() {
    let golden: serde_json::Value = serde_json::from_str(GOLDEN).unwrap();
    for (name, expected) in golden["vocabularies"].as_object().unwrap() {
        let Some(dir) = asset(name) else { continue };
        let tokenizer = Tokenizer::from_dir(&dir).unwrap();
        let rows = expected["rows"].as_u64().unwrap() as usize;
        let written = tokenizer.gguf_metadata(rows).unwrap();
        let mut got: serde_json::Map<_, _> =
            written.iter().map(|(key, value)| (key.clone(), recorded(value))).collect();
        let mut expected = expected.as_object().unwrap().clone();
        expected.shift_remove("rows");
        if name == "lm/stories260K-hf" {
            // The converter has no scores for it; see `Tokenizer::gguf_metadata`.
            got.shift_remove("tokenizer.ggml.scores");
            expected.shift_remove("tokenizer.ggml.scores");
        }
        if name == "models/Mistral-7B-Instruct-v0.3" {
            assert_eq!(got.shift_remove("tokenizer.ggml.add_space_prefix"), Some(false.into()));
        }
        let lines = |map: serde_json::Map<_, _>| format!("{:#}", serde_json::Value::Object(map));
        assert_eq!(lines(got), lines(expected), "{name}");
    }
}

/// Published vocabulary files, and folders of the same vocabularies, where what is written is not what stands in
/// the file.
const DIFFERENCES: &[(&str, &[&str])] = &[
    // Its converter knew no pre-tokenizers; today's writes this for every SentencePiece model.
    ("gguf-vocab/ggml-vocab-baichuan.gguf", &["tokenizer.ggml.pre is added: default"]),
    // The same, and today's converter writes this where Mamba has that tokenizer.
    ("gguf-vocab/ggml-vocab-gpt-neox.gguf", &["tokenizer.ggml.pre is added: mpt"]),
    // The template is the exporter's to write, from the adapter's folder.
    ("gguf-vocab/ggml-vocab-phi-3.gguf", &["tokenizer.chat_template is left out"]),
    // A relative: the same tokens and merges, but for those that were added; and its folder as the one below.
    (
        "models/DeepSeek-Coder-V2-Lite-Instruct",
        &[
            "tokenizer.ggml.tokens is 102400 0441a91b8a726291 instead of 102400 0c2208968bfb10cc",
            "tokenizer.ggml.token_type is 102400 6e56b6e1df1cb47b instead of 102400 693f0f1ce047bc67",
            "tokenizer.ggml.bos_token_id is left out",
            "tokenizer.ggml.eos_token_id is left out",
            "tokenizer.ggml.padding_token_id is left out",
            "tokenizer.ggml.add_bos_token is false instead of true",
        ],
    ),
    // The folder holds tokenizer.json alone, which gives no token a role.
    (
        "models/starcoder2-3b",
        &[
            "tokenizer.ggml.bos_token_id is left out",
            "tokenizer.ggml.eos_token_id is left out",
            "tokenizer.ggml.unknown_token_id is left out",
        ],
    ),
];

/// The vocabulary-only files of the assets.
fn published_files() -> Vec<String> {
    let Some(folder) = asset("gguf-vocab") else { return Vec::new() };
    let names =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let files = names.filter(|name| name.ends_with(".gguf") && !name.contains("bert"));
    files.map(|name| format!("gguf-vocab/{name}")).collect()
}

/// What is written of `source`, against a published file, key by key.
fn differences(source: &Path, file: &Path) -> Vec<String> {
    let metadata = Reader::open(file).unwrap().metadata().clone();
    let theirs: Vec<_> = metadata.entries().iter().filter(|(key, _)| key.starts_with("tokenizer.")).collect();
    let rows = metadata.get_strings("tokenizer.ggml.tokens").unwrap().len();
    let ours = tokenizer(source).gguf_metadata(rows).unwrap();
    let mut differences = Vec::new();
    for (key, value) in theirs {
        match ours.iter().find(|(other, _)| other == key) {
            None => differences.push(format!("{key} is left out")),
            Some((_, written)) if written != value => {
                let difference = format!("{key} is {} instead of {}", recorded(written), recorded(value));
                differences.push(difference.replace('"', ""));
            }
            Some(_) => {}
        }
    }
    let added = ours.iter().filter(|(key, _)| metadata.get(key).is_none());
    differences
        .extend(added.map(|(key, value)| format!("{key} is added: {}", recorded(value).as_str().unwrap())));
    differences
}

#[test]
fn metadata_as_published_files_have_it() {
    let mut pairs: Vec<_> = published_files().into_iter().map(|file| (file.clone(), file)).collect();
    for (folder, file) in
        [("starcoder2-3b", "starcoder"), ("DeepSeek-Coder-V2-Lite-Instruct", "deepseek-llm")]
    {
        pairs.push((format!("models/{folder}"), format!("gguf-vocab/ggml-vocab-{file}.gguf")));
    }
    for (source, file) in pairs {
        let (Some(source_path), Some(file)) = (asset(&source), asset(&file)) else { continue };
        let expected = DIFFERENCES.iter().find(|(name, _)| *name == source).map_or(&[][..], |(_, list)| list);
        assert_eq!(differences(&source_path, &file), expected, "{source}");
    }
}

#[test]
fn models_with_one_tokenizer_have_one_vocabulary() {
    for (model, other, rows) in [
        ("models/Qwen3-4B", "models/Qwen3-0.6B", 151_936),
        ("models/Llama-3.1-8B-Instruct", "models/Llama-3.2-1B-Instruct", 128_256),
    ] {
        if let (Some(model), Some(other)) = (asset(model), asset(other)) {
            let written = |folder: &Path| tokenizer(folder).gguf_metadata(rows).unwrap();
            assert!(written(&model) == written(&other), "{}", model.display());
        }
    }
}

/// Text of many kinds, without decomposed characters (llama.cpp does not compose them) and without anything
/// that looks like a control token.
const MIXED: &[&str] = &[
    "",
    " ",
    "Hello world",
    "  two  spaces\tand\ttabs \n\n\nand lines\r\n ",
    "I've said 'he'll', WE'RE, it'S 3.14159 and 1234567890 in 2026.",
    "fn main() { println!(\"{:?}\", vec![1, 2, 3]); } // 100 %",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich",
    "我想在apple工作1314151天～ នឹងកំពុង 한국어 日本語 العربية हिन्दी",
    "🚀🦙👩‍👩‍👧 and ℝ²→∑ € ½ … “quotes” — dashes",
    "{\"name\": \"Ada\", \"age\": 36}\n{\"name\": \"\"}",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa          b",
];

/// Writes the vocabulary, and compares ids: ours, those of the tokenizer read back, and llama.cpp's.
fn check_round_trip(name: &str, tokenizer: &Tokenizer, rows: usize) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vocabulary.gguf");
    write_vocabulary(tokenizer, rows, &path);
    let read_back = Tokenizer::from_gguf(formats::gguf::Reader::open(&path).unwrap().metadata()).unwrap();
    let llama_cpp = LlamaCpp::open(&path);
    let llama = llama_cpp.model.vocab();
    let theirs = |text: &str, trusted: bool| llama_cpp.ids(text, trusted);
    // llama.cpp's version of GPT-4o's expression knows no combining marks.
    let has_marks = |text: &str| text.contains("हिन्दी");
    for text in MIXED.iter().filter(|text| !(name.contains("Phi-4") && has_marks(text))) {
        // Mistral's puts a space in front of the very first text only, which llama.cpp cannot.
        let text = &if name.contains("Mistral") { format!("[INST]{text}") } else { (*text).to_owned() };
        let ids = tokenizer.encode_template(text);
        assert_eq!(read_back.encode_template(text), ids, "{name}, read back: {text:?}");
        assert_eq!(read_back.decode_with_special(&ids), *text, "{name}, read back");
        assert_eq!(theirs(text, true), ids, "{name}, llama.cpp: {text:?}");
    }
    for id in 0..rows as u32 {
        let token = llama_cpp_2::token::LlamaToken(id as i32);
        // llama.cpp makes a control token of any `</s>`, even where it is a piece of HTML as in Qwen's, and of
        // tokens for filling in the middle.
        // What a tokenizer.model calls unknown, and Phi-3's file its padding, has a type of its own.
        let text = read_back.token(id).unwrap_or_default();
        let overridden =
            matches!(text, "</s>" | "<unk>") || text.starts_with("[PAD") || text.contains("fim▁");
        let control = read_back.is_special(id);
        assert!(overridden || llama.is_control(token) == control, "{name}, {:?}", read_back.token(id));
        if read_back.is_special(id) && !name.contains("Mistral") {
            let text = format!("a{}b", read_back.token(id).unwrap());
            assert_eq!(theirs(&text, false), tokenizer.encode(&text), "{name}, as data: {text:?}");
            assert_eq!(theirs(&text, true), tokenizer.encode_template(&text), "{name}, trusted: {text:?}");
        }
    }
    assert_eq!(llama.should_add_bos(), tokenizer.adds_bos(), "{name}");
    assert_eq!(llama.should_add_eos(), tokenizer.adds_eos(), "{name}");
    assert_eq!(llama.bos().0 as u32, tokenizer.bos().unwrap_or(llama.bos().0 as u32), "{name}");
    assert_eq!(llama.eos().0 as u32, tokenizer.eos().unwrap_or(llama.eos().0 as u32), "{name}");
    let same = |a: &Tokenizer, b: &Tokenizer| {
        (a.bos(), a.eos(), a.pad(), a.adds_bos(), a.adds_eos())
            == (b.bos(), b.eos(), b.pad(), b.adds_bos(), b.adds_eos())
    };
    assert!(same(&read_back, tokenizer), "{name}");
    let sorted = |tokenizer: &Tokenizer| {
        let mut entries = tokenizer.gguf_metadata(rows).unwrap();
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        entries
    };
    for (ours, read) in sorted(tokenizer).into_iter().zip(sorted(&read_back)) {
        assert!(ours == read, "{name}: {} does not survive", ours.0);
    }
}

#[test]
fn ids_of_llama_cpp_for_folders() {
    let pocket = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes/pocket");
    check_round_trip("pocket", &Tokenizer::from_dir(&pocket).unwrap(), 2048);
    for (name, rows) in [
        ("lm/stories260K-hf", 512),
        ("models/DeepSeek-Coder-V2-Lite-Instruct", 102_400),
        ("models/Qwen2.5-1.5B-Instruct", 151_936),
        ("models/Qwen3-0.6B", 151_936),
        ("models/Qwen3-4B", 151_936),
        ("models/Llama-3.1-8B-Instruct", 128_256),
        ("models/Llama-3.2-1B-Instruct", 128_256),
        ("models/Phi-4-mini-instruct", 200_064),
        ("models/Mistral-7B-Instruct-v0.3", 32_768),
        ("models/gemma-3-1b-it", 262_144),
        ("models/starcoder2-3b", 49_152),
    ] {
        if let (Some(dir), Some(_)) = (asset(name), asset(&format!("{name}/tokenizer.json"))) {
            check_round_trip(name, &tokenizer(&dir), rows);
        }
    }
}

#[test]
fn ids_of_llama_cpp_for_files() {
    for name in published_files() {
        if let Some(file) = asset(&name) {
            let tokenizer = tokenizer(&file);
            check_round_trip(&name, &tokenizer, tokenizer.vocab_size());
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let pocket = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes/pocket");
    let tokenizer = Tokenizer::from_dir(&pocket).unwrap();
    let too_small = tokenizer.gguf_metadata(2047).unwrap_err().to_string();
    assert!(too_small.ends_with("has ids up to 2047, the model has 2047 rows of embedding"), "{too_small}");
    let padded = tokenizer.gguf_metadata(2050).unwrap();
    let tokens = padded.iter().find(|(key, _)| key == "tokenizer.ggml.tokens").unwrap();
    let Value::Array(Array::String(tokens)) = &tokens.1 else { panic!("{:?}", tokens.1) };
    assert_eq!(tokens.iter().skip(2047).collect::<Vec<_>>(), ["<|im_end|>", "[PAD2048]", "[PAD2049]"]);
}

/// The pocket model's tokenizer with a token for images behind its last row, which a tokenizer_config.json names or
/// does not.
fn with_image_token(tokenizer_config: &str) -> Tokenizer {
    let pocket = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes/pocket/tokenizer.json");
    let mut file: serde_json::Value = serde_json::from_slice(&std::fs::read(pocket).unwrap()).unwrap();
    let token = serde_json::json!({"id": 2048, "content": "<image>", "special": true});
    file["added_tokens"].as_array_mut().unwrap().push(token);
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("tokenizer.json", file.to_string().as_str()),
        ("tokenizer_config.json", tokenizer_config),
        ("config.json", r#"{"vocab_size": 2048}"#),
    ] {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    Tokenizer::from_dir(folder.path()).unwrap()
}

#[test]
fn a_placeholder_without_a_row_is_no_token() {
    let named = with_image_token(r#"{"image_token": "<image>"}"#);
    assert_eq!((named.vocab_size(), named.id("<image>")), (2048, None));
    assert!(named.gguf_metadata(2048).is_ok());
    let unnamed = with_image_token("{}");
    assert_eq!(unnamed.id("<image>"), Some(2048));
    assert!(unnamed.gguf_metadata(2048).is_err());
}
