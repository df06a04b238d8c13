//! Ids against llama.cpp's vocabulary tests, kitoken's and Hugging Face's, on tokenizers as published.

mod shared;

use sha2::{Digest, Sha256};
use shared::{asset, gguf_tokenizer, model_tokenizer};
use text::Tokenizer;

/// llama.cpp's pairs: texts in `.inp`, ids in `.out`.
fn check_llama_cpp(tokenizer: &Tokenizer, vocabulary: &str) {
    let read = |ending: &str| {
        let path = asset(&format!("gguf-vocab/ggml-vocab-{vocabulary}.gguf.{ending}"))?;
        Some(std::fs::read_to_string(path).unwrap())
    };
    let (Some(texts), Some(ids)) = (read("inp"), read("out")) else { return };
    let mut checked = 0;
    for (text, ids) in texts.split("\n__ggml_vocab_test__\n").zip(ids.lines()) {
        let expected: Vec<u32> = ids.split_whitespace().map(|id| id.parse().unwrap()).collect();
        assert_eq!(tokenizer.encode(text), expected, "{vocabulary}: {text:?}");
        checked += 1;
    }
    assert!(checked > 30, "{vocabulary}: only {checked} texts");
}

/// kitoken's pairs: a text a line, with `\n` for a newline and `\s` for a space, control tokens recognised.
fn check_kitoken(tokenizer: &Tokenizer, folder: &str, name: &str) {
    for input in ["small", "mixed", "utf8"] {
        let texts = asset(&format!("tokenizer-tests/kitoken/{input}_input.txt"));
        let ids = asset(&format!("tokenizer-tests/kitoken/{folder}/{input}_tokens_{name}.txt"));
        let (Some(texts), Some(ids)) = (texts, ids) else { return };
        let (texts, ids) = (std::fs::read_to_string(texts).unwrap(), std::fs::read_to_string(ids).unwrap());
        let whole = ids.trim_end().lines().count() == 1;
        let unescape = |text: &str| text.replace(r"\n", "\n").replace(r"\s", " ");
        let texts: Vec<String> = if whole { vec![texts] } else { texts.lines().map(unescape).collect() };
        for (text, ids) in texts.iter().zip(ids.lines()) {
            let expected: Vec<u32> = ids.split(", ").map(|id| id.parse().unwrap()).collect();
            assert_eq!(tokenizer.encode_template(text), expected, "{name}, {input}: {text:?}");
            // Neither can a `▁` be told from a space, nor a first space from one put in front.
            let lossy = text.contains('▁') || text.starts_with(' ');
            if !expected.iter().any(|id| tokenizer.is_special(*id)) && !lossy {
                assert_eq!(tokenizer.decode(&expected), *text, "{name}, {input}");
            }
        }
    }
}

#[test]
fn byte_level_from_gguf() {
    for name in ["gpt-2", "starcoder", "refact", "deepseek-coder", "deepseek-llm", "falcon", "mpt"] {
        let Some(tokenizer) = gguf_tokenizer(&format!("gguf-vocab/ggml-vocab-{name}.gguf")) else { return };
        check_llama_cpp(&tokenizer, name);
    }
}

#[test]
fn sentencepiece_from_gguf() {
    for name in ["llama-spm", "phi-3"] {
        let Some(tokenizer) = gguf_tokenizer(&format!("gguf-vocab/ggml-vocab-{name}.gguf")) else { return };
        check_llama_cpp(&tokenizer, name);
    }
}

#[test]
fn qwen() {
    let Some(tokenizer) = model_tokenizer("Qwen2.5-1.5B-Instruct") else { return };
    check_llama_cpp(&tokenizer, "qwen2");
    check_llama_cpp(&tokenizer, "deepseek-r1-qwen");
    let Some(tokenizer) = model_tokenizer("Qwen3-0.6B") else { return };
    check_llama_cpp(&tokenizer, "qwen2");
}

#[test]
fn llama_3() {
    let Some(tokenizer) = model_tokenizer("Llama-3.2-1B-Instruct") else { return };
    check_llama_cpp(&tokenizer, "llama-bpe");
    check_kitoken(&tokenizer, "tokenizers", "llama32");
}

#[test]
fn llama_2_and_mistral() {
    let Some(tokenizer) = gguf_tokenizer("gguf-vocab/ggml-vocab-llama-spm.gguf") else { return };
    check_kitoken(&tokenizer, "tokenizers", "llama2");
    let Some(tokenizer) = model_tokenizer("Mistral-7B-Instruct-v0.3") else { return };
    check_kitoken(&tokenizer, "tokenizers", "mistral03");
}

#[test]
fn phi_4_mini() {
    let Some(tokenizer) = model_tokenizer("Phi-4-mini-instruct") else { return };
    check_kitoken(&tokenizer, "tiktoken", "o200k_base");
}

#[test]
fn deepseek_coder_v2_and_starcoder_2() {
    for (model, reference) in [
        ("DeepSeek-Coder-V2-Lite-Instruct", "gguf-vocab/ggml-vocab-deepseek-llm.gguf"),
        ("starcoder2-3b", "gguf-vocab/ggml-vocab-starcoder.gguf"),
    ] {
        let Some(tokenizer) = model_tokenizer(model) else { return };
        let Some(reference) = gguf_tokenizer(reference) else { return };
        let Some(texts) = asset("gguf-vocab/ggml-vocab-starcoder.gguf.inp") else { return };
        for text in std::fs::read_to_string(texts).unwrap().split("\n__ggml_vocab_test__\n") {
            assert_eq!(tokenizer.encode(text).len(), reference.encode(text).len(), "{model}: {text:?}");
            assert_eq!(tokenizer.decode(&tokenizer.encode(text)), text, "{model}");
        }
    }
}

/// Ids and texts as Hugging Face's tokenizers give them. Goldens: scripts/golden/text_ids.py.
#[test]
fn control_tokens_and_odd_text() {
    let golden: serde_json::Value = serde_json::from_str(include_str!("golden/ids.json")).unwrap();
    let mut wrong = Vec::new();
    for (model, expected) in golden["models"].as_object().unwrap() {
        let Some(dir) = asset(model) else { return };
        let tokenizer = Tokenizer::from_dir(&dir).unwrap();
        for case in expected["texts"].as_array().unwrap() {
            let text = case[0].as_str().unwrap();
            let ids = tokenizer.encode_template(text);
            let joined = ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
            if digest(&joined) != case[2].as_str().unwrap() {
                wrong.push(format!(
                    "{model}: {text:?} gives {} ids, {} expected: {joined}",
                    ids.len(),
                    case[1]
                ));
            } else if digest(&tokenizer.decode(&ids)) != case[3].as_str().unwrap() {
                wrong.push(format!("{model}: {text:?} is decoded to {:?}", tokenizer.decode(&ids)));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn digest(text: &str) -> String {
    Sha256::digest(text).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
