//! Targets of a conversation, to be looked at.

use std::path::Path;

use text::{Encoded, Tokenizer};

/// The text with what is to be learnt between `⟦` and `⟧`.
pub fn shown(tokenizer: &Tokenizer, encoded: &Encoded) -> String {
    let mut text = String::new();
    let mut start = 0;
    while start < encoded.ids.len() {
        let target = encoded.is_target[start];
        let length = encoded.is_target[start..].iter().take_while(|is_target| **is_target == target).count();
        let piece = tokenizer.decode_with_special(&encoded.ids[start..start + length]);
        text += &if target { format!("⟦{piece}⟧") } else { piece };
        start += length;
    }
    text
}

/// The pocket model's tokenizer with more control tokens, for templates whose own vocabulary is not at hand.
pub fn with_control_tokens(tokens: &[&str]) -> Tokenizer {
    let pocket = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes/pocket/tokenizer.json");
    let mut file: serde_json::Value = serde_json::from_slice(&std::fs::read(pocket).unwrap()).unwrap();
    let listed = file["added_tokens"].as_array_mut().unwrap();
    let first = listed.iter().map(|token| token["id"].as_u64().unwrap()).max().unwrap() + 1;
    for (id, token) in (first..).zip(tokens) {
        listed.push(serde_json::json!({"id": id, "content": token, "special": true}));
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), file.to_string()).unwrap();
    Tokenizer::from_dir(folder.path()).unwrap()
}
