//! An engine that says what a test tells it to, over cards of real files, and notes everything it is asked.
#![allow(dead_code, reason = "each test file uses its own part of it")]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use runner::budget::Place;
use runner::engine::{Engine, ExpertMemory, Finish, Generated, Loaded, Progress, Prompt, Request};
use runner::memory::MemoryState;
use runner::pipeline::{Event, ItemResult, Outcome, Pipeline, PipelineSpec, RunOptions, run};
use runner::residency::Keeping;
use runner::{Error, ExpertCard, Registry, Residency, Result};
use serde_json::Value;
use tempfile::TempDir;
use text::Message;

use super::tiny::{self, Says};

/// What an expert was asked: its name, and all messages as `role: content`, a line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub expert: String,
    pub prompt: String,
}

/// What an expert says to a prompt.
pub type Script = Arc<dyn Fn(&Asked) -> String + Send + Sync>;

/// Everything that was asked of the engine's experts, in order.
pub type Log = Arc<Mutex<Vec<Asked>>>;

pub struct Scripted {
    script: Script,
    pub log: Log,
}

impl Scripted {
    pub fn new(script: impl Fn(&Asked) -> String + Send + Sync + 'static) -> Self {
        Self { script: Arc::new(script), log: Log::default() }
    }
}

impl Engine for Scripted {
    fn name(&self) -> String {
        "scripted".to_owned()
    }

    fn load(
        &mut self,
        card: &ExpertCard,
        _progress: &mut dyn FnMut(f32) -> ControlFlow<()>,
    ) -> Result<Box<dyn Loaded>> {
        let (script, log) = (Arc::clone(&self.script), Arc::clone(&self.log));
        Ok(Box::new(Actor { card: card.clone(), script, log }))
    }

    fn place(&self) -> Place {
        Place::Main
    }

    fn memory(&self) -> MemoryState {
        MemoryState::default()
    }
}

struct Actor {
    card: ExpertCard,
    script: Script,
    log: Log,
}

fn shown(messages: &[Message]) -> String {
    let lines = messages.iter().map(|message| format!("{}: {}", message.role, message.content));
    lines.collect::<Vec<_>>().join("\n")
}

/// A token is a word.
fn count(text: &str) -> usize {
    text.split_whitespace().count()
}

impl Loaded for Actor {
    fn card(&self) -> &ExpertCard {
        &self.card
    }

    fn context_tokens(&self) -> usize {
        self.card.load.num_ctx as usize
    }

    fn tokens(&self, text: &str) -> Result<usize> {
        Ok(count(text))
    }

    fn prompt_tokens(&self, prompt: &Prompt) -> Result<usize> {
        let Prompt::Chat(messages) = prompt else { panic!("a pipeline asks in messages") };
        Ok(messages.iter().map(|message| count(&message.content) + 1).sum())
    }

    fn generate(
        &mut self,
        request: &Request,
        sink: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Generated> {
        let Prompt::Chat(messages) = &request.prompt else { panic!("a pipeline asks in messages") };
        let prompt_tokens = self.prompt_tokens(&request.prompt)?;
        let context_tokens = self.context_tokens();
        if prompt_tokens >= context_tokens {
            let expert = self.card.name.clone();
            return Err(Error::PromptTooLong { expert, prompt_tokens, context_tokens });
        }
        let asked = Asked { expert: self.card.name.clone(), prompt: shown(messages) };
        let mut text = (self.script)(&asked);
        self.log.lock().unwrap().push(asked);
        let mut finish = Finish::Stop;
        if let Some(most) = request.sampling.max_tokens.map(|most| most as usize)
            && count(&text) > most
        {
            text = text.split_whitespace().take(most).collect::<Vec<_>>().join(" ");
            finish = Finish::Length;
        }
        let read = sink(Progress::Prompt { done: prompt_tokens, total: prompt_tokens });
        if read.is_break() || sink(Progress::Text(&text)).is_break() {
            (finish, text) = (Finish::Cancelled, String::new());
        }
        let output_tokens = count(&text);
        Ok(Generated { text, finish, prompt_tokens, output_tokens, prompt_ns: 1, decode_ns: 1 })
    }

    /// A place for each letter: nearness is the letters that two texts share.
    fn embed(
        &mut self,
        texts: &[String],
        _go_on: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Vec<Vec<f32>>> {
        let prompt = texts.join("\n");
        self.log.lock().unwrap().push(Asked { expert: self.card.name.clone(), prompt });
        let vector = |text: &String| {
            let mut vector = [0.0_f32; 26];
            for letter in text.bytes().map(|byte| byte.to_ascii_lowercase()).filter(u8::is_ascii_lowercase) {
                vector[usize::from(letter - b'a')] += 1.0;
            }
            let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-9);
            vector.iter().map(|x| x / length).collect()
        };
        Ok(texts.iter().map(vector).collect())
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

/// A folder with a file for each of some experts.
pub struct Stand {
    directory: TempDir,
}

impl Stand {
    /// Files `<name>.gguf`, each of its own.
    pub fn new(experts: &[&str]) -> Self {
        // In memory where that is to be had: a journal syncs every line.
        let memory = Path::new("/dev/shm");
        let directory = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let directory = directory.unwrap();
        for name in experts {
            tiny::write(&directory.path().join(format!("{name}.gguf")), &Says::Once(&[name]));
        }
        Self { directory }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn runs(&self) -> PathBuf {
        self.path().join("runs")
    }

    pub fn check(&self, spec: Value) -> Result<Pipeline> {
        let spec: PipelineSpec = serde_json::from_value(spec).unwrap();
        spec.check("stand", self.path(), &Registry::at(self.path().join("experts")))
    }

    /// Runs a pipeline, checked anew.
    pub fn run(&self, spec: Value, input: &str, engine: Scripted) -> Played {
        self.play(&self.check(spec).unwrap(), input, engine, RunOptions::default())
    }

    pub fn play(&self, pipeline: &Pipeline, input: &str, engine: Scripted, options: RunOptions) -> Played {
        let log = Arc::clone(&engine.log);
        // Loads are counted as on a machine that holds one expert.
        let mut residency = Residency::new(Box::new(engine)).keeping(Keeping::One);
        let options = RunOptions { runs: self.runs(), ..options };
        let mut events = Vec::new();
        let outcome =
            run(pipeline, input, &options, &mut residency, &|| false, &mut |event: Event| events.push(event));
        let asked = log.lock().unwrap().clone();
        Played { outcome, events, asked }
    }
}

/// What came of a run.
pub struct Played {
    pub outcome: Result<Outcome>,
    pub events: Vec<Event>,
    pub asked: Vec<Asked>,
}

impl Played {
    #[track_caller]
    pub fn results(&self) -> &[ItemResult] {
        &self.outcome.as_ref().unwrap().results
    }

    /// `step item: output`, or the state and why.
    #[track_caller]
    pub fn lines(&self) -> String {
        let line = |result: &ItemResult| {
            let what = match &result.note {
                Some(note) => format!("({:?}: {note})", result.state),
                None => result.output.replace('\n', " / "),
            };
            format!("{} {}: {what}\n", result.step, result.item + 1)
        };
        self.results().iter().map(line).collect()
    }

    #[track_caller]
    pub fn n_loads(&self) -> u64 {
        self.outcome.as_ref().unwrap().n_loads
    }

    #[track_caller]
    pub fn error(&self) -> String {
        self.outcome.as_ref().unwrap_err().to_string()
    }
}
