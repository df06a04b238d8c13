//! The exporter's gate looks through the runner's embedded engine: the engine that will serve the file.

use exporter::{EngineError, Generation, LoadedModel, Verifier};
use runner::card::LoadOptions;
use runner::engine::Engine;
use runner::engine::llama::{LlamaEngine, Session, SessionOptions};
use std::cell::Cell;
use std::ops::ControlFlow;
use std::path::Path;
use std::rc::Rc;
use text::{Chat, GenerationPrompt};

/// Verifies with the embedded llama.cpp.
pub struct EngineVerifier {
    engine: LlamaEngine,
    prompts: Rc<Prompts>,
}

/// How many prompts llama.cpp's own tokenizer reads as training does.  Here ids are given, so that nothing depends
/// on it; a server that tokenises by itself (Ollama) depends on it.
#[derive(Debug, Default)]
pub struct Prompts {
    pub n_seen: Cell<usize>,
    pub n_differing: Cell<usize>,
}

impl EngineVerifier {
    pub fn new() -> Result<EngineVerifier, runner::Error> {
        Ok(EngineVerifier { engine: LlamaEngine::new()?, prompts: Rc::default() })
    }

    /// What was seen so far.
    pub fn prompts(&self) -> &Prompts {
        &self.prompts
    }
}

impl Verifier for EngineVerifier {
    fn engine(&self) -> String {
        self.engine.name()
    }

    fn free_bytes(&self) -> Option<u64> {
        Some(runner::memory::main_memory().free_bytes).filter(|&free| free > 0)
    }

    fn load(&self, file: &Path, num_ctx: usize) -> Result<Box<dyn LoadedModel>, EngineError> {
        let load = LoadOptions { num_ctx: u32::try_from(num_ctx)?, ..LoadOptions::default() };
        let options = SessionOptions { load, check_tensors: true, all_logits: true };
        Ok(Box::new(EngineModel {
            session: Session::open(file, &options)?,
            prompts: Rc::clone(&self.prompts),
        }))
    }
}

struct EngineModel {
    session: Session,
    prompts: Rc<Prompts>,
}

impl LoadedModel for EngineModel {
    /// What serving gives the engine; compared with what llama.cpp's own tokenizer makes of the rendered text.
    fn prompt_ids(&mut self, chat: Chat<'_>) -> Result<Vec<u32>, EngineError> {
        let ids = self.session.chat_ids(chat)?;
        let Some(template) = self.session.template() else { return Ok(ids) };
        let rendered = template.render(chat, GenerationPrompt::Add)?;
        let own = self.session.engine_tokenize(&rendered, true);
        // A template without the begin-of-text token leaves it to the tokenizer, which adds it to `ids` alone.
        let is_same = own == ids || ids.split_first().is_some_and(|(_, rest)| rest == own);
        self.prompts.n_seen.update(|n| n + 1);
        self.prompts.n_differing.update(|n| n + usize::from(!is_same));
        Ok(ids)
    }

    fn generate(&mut self, prompt: &[u32], max_new_tokens: usize) -> Result<Generation, EngineError> {
        let session = &mut self.session;
        let end =
            session.template().and_then(|template| text::end_of_turn(session.tokenizer(), template).ok());
        let stop: Vec<u32> = end.into_iter().collect();
        let mut ids = session.greedy(prompt, &stop, max_new_tokens)?;
        let ended = ids.len() < max_new_tokens.min(session.context_tokens() - prompt.len());
        // Serving also stops at the other tokens that end generation; what came after them is no answer.
        if let Some(at) = ids.iter().position(|id| session.stop_ids().contains(id)) {
            ids.truncate(at + 1);
        } else if let (true, Some(end)) = (ended, end) {
            ids.push(end);
        }
        Ok(Generation { text: session.tokenizer().decode(&ids), ids })
    }

    fn sum_nll(&mut self, ids: &[u32], is_target: &[bool]) -> Result<f64, EngineError> {
        let log_probs = self.session.log_probs(ids)?;
        let targets = log_probs.iter().zip(is_target.iter().skip(1));
        Ok(-targets.filter(|(_, is_target)| **is_target).map(|(log_prob, _)| log_prob).sum::<f64>())
    }

    fn memory_bytes(&self) -> Option<u64> {
        Some(self.session.memory().total_bytes())
    }

    fn logits(
        &mut self,
        ids: &[u32],
        each: &mut dyn FnMut(usize, &[f32]) -> ControlFlow<()>,
    ) -> Result<(), EngineError> {
        Ok(self.session.decode_logits(ids, each)?)
    }
}
