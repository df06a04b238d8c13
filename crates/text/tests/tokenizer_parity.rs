//! Control tokens and odd text, on tokenizers as published: ids and texts as Hugging Face's tokenizers give them.
//!
//! Goldens: scripts/golden/text_ids.py.

mod shared;

use sha2::{Digest, Sha256};
use shared::asset;
use text::Tokenizer;

#[test]
fn control_tokens_and_odd_text() {
    let golden: serde_json::Value = serde_json::from_str(include_str!("golden/ids.json")).unwrap();
    let mut wrong = Vec::new();
    for (model, expected) in golden["models"].as_object().unwrap() {
        let Some(dir) = asset(model) else { continue };
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
