//! Every special token of every tokenizer in the assets, placed in a step's output, stays text in the next step.
//!
//! Skipped where the assets are absent.

mod assets;
mod scripted;
mod tiny;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use assets::assets;
use runner::budget::Place;
use runner::engine::{Engine, ExpertMemory, Finish, Generated, Loaded, Progress, Prompt, Request};
use runner::memory::MemoryState;
use runner::pipeline::{Event, RunOptions, run};
use runner::{ExpertCard, Residency, Result};
use scripted::Stand;
use serde_json::json;
use text::{ChatTemplate, Tokenizer};

/// For tokenizers whose folder has no template: one that ends turns with a token of the vocabulary.
const PLAIN: &str = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}";

/// A tokenizer and a template, and the ids that are not text.
struct Speech {
    tokenizer: Tokenizer,
    template: ChatTemplate,
}

/// An engine that makes prompts as the embedded one does, notes their ids, and says what it is told.
struct Speaker {
    speech: Arc<Speech>,
    says: Arc<Vec<String>>,
    prompts: Arc<Mutex<Vec<Vec<u32>>>>,
}

struct Speaking {
    card: ExpertCard,
    speech: Arc<Speech>,
    says: Arc<Vec<String>>,
    prompts: Arc<Mutex<Vec<Vec<u32>>>>,
}

impl Engine for Speaker {
    fn name(&self) -> String {
        "speaker".to_owned()
    }

    fn load(
        &mut self,
        card: &ExpertCard,
        _progress: &mut dyn FnMut(f32) -> ControlFlow<()>,
    ) -> Result<Box<dyn Loaded>> {
        let (speech, says, prompts) =
            (Arc::clone(&self.speech), Arc::clone(&self.says), Arc::clone(&self.prompts));
        Ok(Box::new(Speaking { card: card.clone(), speech, says, prompts }))
    }

    fn place(&self) -> Place {
        Place::Main
    }

    fn memory(&self) -> MemoryState {
        MemoryState::default()
    }
}

impl Loaded for Speaking {
    fn card(&self) -> &ExpertCard {
        &self.card
    }

    fn context_tokens(&self) -> usize {
        1 << 20
    }

    fn tokens(&self, text: &str) -> Result<usize> {
        Ok(self.speech.tokenizer.encode(text).len())
    }

    fn prompt_tokens(&self, _prompt: &Prompt) -> Result<usize> {
        Ok(1)
    }

    fn generate(
        &mut self,
        request: &Request,
        _sink: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Generated> {
        let Prompt::Chat(messages) = &request.prompt else { panic!("a pipeline asks in messages") };
        let ids = text::encode_prompt(&self.speech.tokenizer, &self.speech.template, messages.as_slice());
        let ids = ids.map_err(|source| runner::Error::Text { expert: self.card.name.clone(), source })?;
        let prompt_tokens = ids.len();
        self.prompts.lock().unwrap().push(ids);
        let item = messages.last().unwrap().content.strip_prefix("number ").and_then(|n| n.parse().ok());
        let text = item.and_then(|n: usize| self.says.get(n)).cloned().unwrap_or_else(|| "done".to_owned());
        Ok(Generated {
            text,
            finish: Finish::Stop,
            prompt_tokens,
            output_tokens: 1,
            prompt_ns: 0,
            decode_ns: 0,
        })
    }

    fn switch_to(&mut self, card: &ExpertCard) -> runner::Result<()> {
        self.card = card.clone();
        Ok(())
    }

    fn memory(&self) -> ExpertMemory {
        ExpertMemory::default()
    }

    fn unload(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

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
            "experts": {"one": {"file": "one.gguf"}},
            "steps": [
                {"name": "say", "expert": "one", "map": "lines", "prompt": "number {{ item }}"},
                {"name": "next", "expert": "one", "prompt": "{{ steps.say.output }}"},
            ],
        }))
        .unwrap();
    let speech = Arc::new(Speech { tokenizer, template });
    let (says, prompts) = (Arc::new(says), Arc::default());
    let engine =
        Speaker { speech: Arc::clone(&speech), says: Arc::clone(&says), prompts: Arc::clone(&prompts) };
    let mut residency = Residency::new(Box::new(engine));
    let options = RunOptions { runs: stand.runs(), ..RunOptions::default() };
    let outcome = run(&pipeline, &input, &options, &mut residency, &|| false, &mut |_: Event| {});
    let outcome = outcome.unwrap_or_else(|error| panic!("{name}: {error}"));
    for (result, said) in outcome.results.iter().zip(says.iter()) {
        assert_eq!(result.output, *said, "{name}: the output is what was said");
    }
    let prompts = prompts.lock().unwrap();
    let (_, next) = prompts.split_at(says.len());
    let control =
        |ids: &[u32]| -> Vec<u32> { ids.iter().copied().filter(|id| tokens.contains_key(id)).collect() };
    // The control tokens of a prompt are those of its template: the same whatever stands in the message.
    let expected = control(next.last().unwrap());
    for (said, ids) in says.iter().zip(next) {
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
