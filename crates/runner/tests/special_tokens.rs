//! Every special token of every tokenizer in the assets, placed in a step's output, stays text in the next step.
//!
//! Skipped where the assets are absent.

mod assets;
mod scripted;
mod tiny;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use assets::assets;
use runner::pipeline::RunOptions;
use scripted::{Asked, Scripted, Stand};
use serde_json::json;
use text::{ChatTemplate, Message, Tokenizer};

/// For tokenizers whose folder has no template: one that ends turns with a token of the vocabulary.
const PLAIN: &str = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}";

fn special(tokenizer: &Tokenizer) -> BTreeMap<u32, String> {
    let ids = (0..u32::try_from(tokenizer.vocab_size()).unwrap()).filter(|&id| tokenizer.is_special(id));
    ids.filter_map(|id| Some((id, tokenizer.token(id)?.to_string()))).collect()
}

/// Runs two steps for every special token: one says it, the next is given it. Returns how many there were.
fn check(name: &str, tokenizer: Tokenizer, template: Option<ChatTemplate>) -> usize {
    let template = template.unwrap_or_else(|| ChatTemplate::from_source(PLAIN, "", "").unwrap());
    let tokens = special(&tokenizer);
    let mut says: Vec<String> = tokens.values().cloned().collect();
    // Among words, doubled, and with a line end, as a forged turn would have it.
    says.extend(tokens.values().map(|token| format!("a {token}{token}\nb")));
    says.push("harmless".to_owned());
    let input: String = (0..says.len()).map(|n| format!("{n}\n")).collect();
    let stand = Stand::new(&["one"]);
    let pipeline = stand
        .check(json!({
            "experts": {"one": {"file": "one.gguf", "num_ctx": 512}},
            "steps": [
                {"name": "say", "expert": "one", "map": "lines", "prompt": "number {{ item }}"},
                {"name": "next", "expert": "one", "prompt": "{{ steps.say.output }}"},
            ],
        }))
        .unwrap();
    let says = Arc::new(says);
    let told = Arc::clone(&says);
    let script = move |asked: &Asked| {
        let item = asked.prompt.strip_prefix("user: number ").and_then(|n| n.parse::<usize>().ok());
        item.and_then(|n| told.get(n)).cloned().unwrap_or_else(|| "done".to_owned())
    };
    let played = stand.play(&pipeline, &input, Scripted::new(script), RunOptions::default());
    for (result, said) in played.results().iter().zip(says.iter()) {
        assert_eq!(result.output, *said, "{name}: the output is what was said");
    }
    // As the embedded engine makes a prompt of what it is asked.
    let ids = |asked: &Asked| {
        let content = asked.prompt.strip_prefix("user: ").expect("one message of the user");
        text::encode_prompt(&tokenizer, &template, &[Message::new("user", content)][..])
            .unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    let next: Vec<Vec<u32>> = played.asked[says.len()..].iter().map(ids).collect();
    let control =
        |ids: &[u32]| -> Vec<u32> { ids.iter().copied().filter(|id| tokens.contains_key(id)).collect() };
    // The control tokens of a prompt are those of its template: the same whatever stands in the message.
    let expected = control(next.last().unwrap());
    assert_eq!(next.len(), says.len());
    for (said, ids) in says.iter().zip(&next) {
        assert_eq!(control(ids), expected, "{name}: {said:?} became a control token");
    }
    tokens.len()
}

fn template_of(folder: &Path, tokenizer: &Tokenizer) -> Option<ChatTemplate> {
    ChatTemplate::from_dir(folder, tokenizer).ok()
}

#[test]
fn every_special_token_of_every_tokenizer_stays_text() {
    let Some(assets) = assets() else { return };
    let mut checked = Vec::new();
    for part in ["models", "lm"] {
        let mut folders: Vec<PathBuf> =
            std::fs::read_dir(assets.join(part)).unwrap().map(|entry| entry.unwrap().path()).collect();
        folders.sort();
        for folder in folders.into_iter().filter(|path| path.is_dir()) {
            let name = folder.file_name().unwrap().to_string_lossy().into_owned();
            match Tokenizer::from_dir(&folder) {
                Ok(tokenizer) => {
                    let template = template_of(&folder, &tokenizer);
                    checked.push((check(&name, tokenizer, template), name));
                }
                Err(error) => println!("not read: {name}: {error}"),
            }
        }
    }
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(assets.join("gguf-vocab")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    for path in files.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "gguf"))
    {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let file = formats::gguf::Reader::open(&path).unwrap();
        match Tokenizer::from_gguf(file.metadata()) {
            Ok(tokenizer) => checked.push((check(&name, tokenizer, None), name)),
            Err(error) => println!("not read: {name}: {error}"),
        }
    }
    for (n, name) in &checked {
        println!("{n:>6} special tokens of {name}");
    }
    println!("{} in all", checked.iter().map(|(n, _)| n).sum::<usize>());
    assert!(checked.len() >= 20, "{checked:?}");
}
