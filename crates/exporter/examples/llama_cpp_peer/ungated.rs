//! Exports of which only the bytes are looked at: a gate that is always open, and a request without rows or limits.

use std::ops::ControlFlow;
use std::path::Path;

use exporter::{
    EngineError, Generation, ImportanceSource, Limits, LoadedModel, Provenance, Reference, Request, Template,
    Verifier,
};
use formats::gguf::Reader;
use model::policy::Quant;
use text::{Chat, ChatTemplate, Tokenizer};

/// The base alone, as it is.
pub fn request(checkpoint: &Path, quant: Quant, out_dir: &Path, name: &str) -> Request {
    Request {
        base: checkpoint.to_owned(),
        adapters: Vec::new(),
        allow_requantising: false,
        quant,
        types: Vec::new(),
        importance: ImportanceSource::None,
        output: out_dir.to_owned(),
        matrix_dir: out_dir.to_owned(),
        name: name.to_owned(),
        tokenizer: checkpoint.to_owned(),
        template: Template::FromTokenizer,
        num_ctx: 256,
        system: None,
        evaluation: Vec::new(),
        comparison_tokens: 0,
        reference: Reference::default(),
        limits: Limits::NONE,
        provenance: Provenance::default(),
    }
}

/// The subject here are bytes; what an engine makes of them is the gate's, and tested where the engine is. Chats are
/// rendered by the text crate from what the file says, so that at least both sides of the text agree.
pub struct NoEngine;

impl Verifier for NoEngine {
    fn engine(&self) -> String {
        "none".into()
    }

    fn free_bytes(&self) -> Option<u64> {
        None
    }

    fn load(&self, file: &Path, _num_ctx: usize) -> Result<Box<dyn LoadedModel>, EngineError> {
        let reader = Reader::open(file)?;
        let tokenizer = Tokenizer::from_gguf(reader.metadata())?;
        let text_of = |id: Option<u32>| id.and_then(|id| tokenizer.token(id)).unwrap_or_default();
        let template = match reader.metadata().get_str("tokenizer.chat_template") {
            Some(source) => {
                Some(ChatTemplate::from_source(source, text_of(tokenizer.bos()), text_of(tokenizer.eos()))?)
            }
            None => None,
        };
        Ok(Box::new(NoModel { tokenizer, template }))
    }
}

struct NoModel {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
}

impl LoadedModel for NoModel {
    fn prompt_ids(&mut self, chat: Chat<'_>) -> Result<Vec<u32>, EngineError> {
        let template = self.template.as_ref().ok_or("there is no template")?;
        Ok(text::encode_prompt(&self.tokenizer, template, chat)?)
    }

    fn generate(&mut self, _prompt: &[u32], _max_new_tokens: usize) -> Result<Generation, EngineError> {
        Err("there is no engine".into())
    }

    fn sum_nll(&mut self, _ids: &[u32], _is_target: &[bool]) -> Result<f64, EngineError> {
        Ok(0.0)
    }

    fn memory_bytes(&self) -> Option<u64> {
        None
    }

    fn logits(
        &mut self,
        _ids: &[u32],
        _each: &mut dyn FnMut(usize, &[f32]) -> ControlFlow<()>,
    ) -> Result<(), EngineError> {
        Err("there is no engine".into())
    }
}
