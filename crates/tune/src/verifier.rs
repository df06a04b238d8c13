//! The exporter's gate looks through the runner's embedded engine: the engine that will serve the file.

use exporter::{EngineError, Generation, LoadedModel, Verifier};
use runner::card::LoadOptions;
use runner::engine::Engine;
use runner::engine::llama::{LlamaEngine, Session, SessionOptions};
use std::path::Path;
use text::{GenerationPrompt, Message};

/// Verifies with the embedded llama.cpp.
pub struct EngineVerifier {
    engine: LlamaEngine,
}

impl EngineVerifier {
    pub fn new() -> Result<EngineVerifier, runner::Error> {
        Ok(EngineVerifier { engine: LlamaEngine::new()? })
    }
}

impl Verifier for EngineVerifier {
    fn engine(&self) -> String {
        self.engine.name()
    }

    fn load(&self, file: &Path, num_ctx: usize) -> Result<Box<dyn LoadedModel>, EngineError> {
        let load = LoadOptions { num_ctx: u32::try_from(num_ctx)?, ..LoadOptions::default() };
        let options = SessionOptions { load, check_tensors: true, all_logits: true };
        Ok(Box::new(EngineModel(Session::open(file, &options)?)))
    }
}

struct EngineModel(Session);

impl LoadedModel for EngineModel {
    /// What serving gives the engine, which must also be what llama.cpp's own tokenizer makes of the rendered text.
    fn prompt_ids(&mut self, messages: &[Message]) -> Result<Vec<u32>, EngineError> {
        let ids = self.0.chat_ids(messages)?;
        let Some(template) = self.0.template() else { return Ok(ids) };
        let rendered = template.render(messages, GenerationPrompt::Add)?;
        let own = self.0.engine_tokenize(&rendered, true);
        // A template without the begin-of-text token leaves it to the tokenizer, which adds it to `ids` alone.
        if own == ids || ids.split_first().is_some_and(|(_, rest)| rest == own) {
            return Ok(ids);
        }
        Err(format!("llama.cpp's own tokenizer reads the rendered chat as {own:?}, training as {ids:?}").into())
    }

    fn generate(&mut self, prompt: &[u32], max_new_tokens: usize) -> Result<Generation, EngineError> {
        let session = &mut self.0;
        let end = session.template().and_then(|template| text::end_of_turn(session.tokenizer(), template).ok());
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
        let log_probs = self.0.log_probs(ids)?;
        let targets = log_probs.iter().zip(is_target.iter().skip(1));
        Ok(-targets.filter(|(_, is_target)| **is_target).map(|(log_prob, _)| log_prob).sum::<f64>())
    }
}
