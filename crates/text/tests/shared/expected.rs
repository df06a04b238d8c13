//! Texts with the ids that others give them: llama.cpp's vocabulary tests and kitoken's.

use super::asset;

/// A text and its ids.
pub struct Pair {
    /// Whose ids these are.
    pub by: String,
    pub text: String,
    pub ids: Vec<u32>,
    /// Whether control tokens were recognised in the text.
    pub trusted: bool,
}

/// The pairs called `name`: `llama.cpp/VOCABULARY`, or `kitoken/LIBRARY/VOCABULARY`.
pub fn pairs(name: &str) -> Option<Vec<Pair>> {
    match name.split('/').collect::<Vec<_>>()[..] {
        ["llama.cpp", vocabulary] => llama_cpp(name, vocabulary),
        ["kitoken", library, vocabulary] => kitoken(name, library, vocabulary),
        _ => panic!("{name}"),
    }
}

/// Texts in `.inp`, ids in `.out`, of text that is data.
fn llama_cpp(name: &str, vocabulary: &str) -> Option<Vec<Pair>> {
    let read = |ending: &str| {
        let path = asset(&format!("gguf-vocab/ggml-vocab-{vocabulary}.gguf.{ending}"))?;
        Some(std::fs::read_to_string(path).unwrap())
    };
    let (texts, ids) = (read("inp")?, read("out")?);
    let pairs = texts.split("\n__ggml_vocab_test__\n").zip(ids.lines()).map(|(text, ids)| Pair {
        by: name.to_owned(),
        text: text.to_owned(),
        ids: ids.split_whitespace().map(|id| id.parse().unwrap()).collect(),
        trusted: false,
    });
    let pairs: Vec<Pair> = pairs.collect();
    assert!(pairs.len() > 30, "{name}: only {} texts", pairs.len());
    Some(pairs)
}

/// A text a line, with `\n` for a newline and `\s` for a space, or one text. Control tokens are recognised, other
/// than by SentencePiece itself.
fn kitoken(name: &str, library: &str, vocabulary: &str) -> Option<Vec<Pair>> {
    let mut pairs = Vec::new();
    for input in ["small", "mixed", "utf8"] {
        let texts = asset(&format!("tokenizer-tests/kitoken/{input}_input.txt"))?;
        let ids = asset(&format!("tokenizer-tests/kitoken/{library}/{input}_tokens_{vocabulary}.txt"))?;
        let (texts, ids) = (std::fs::read_to_string(texts).unwrap(), std::fs::read_to_string(ids).unwrap());
        let whole = ids.trim_end().lines().count() == 1;
        let unescape = |text: &str| text.replace(r"\n", "\n").replace(r"\s", " ");
        let texts: Vec<String> = if whole { vec![texts] } else { texts.lines().map(unescape).collect() };
        pairs.extend(texts.into_iter().zip(ids.lines()).map(|(text, ids)| Pair {
            by: format!("{name}, {input}"),
            text,
            ids: ids.split(", ").map(|id| id.parse().unwrap()).collect(),
            trusted: library != "sentencepiece",
        }));
    }
    assert!(pairs.len() > 20, "{name}: only {} texts", pairs.len());
    Some(pairs)
}
