//! An engine for tests of everything around it: it opens the file, tokenises by the text crate, and answers as told.

use std::ops::ControlFlow;
use std::path::Path;

use exporter::{EngineError, Generation, LoadedModel, Verifier};
use formats::gguf::Reader;
use text::{Chat, ChatTemplate, Tokenizer};

use crate::forward;

/// What the engine does wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    #[default]
    None,
    DoesNotLoad,
    OtherIds,
    OtherAnswers,
    NeverStops,
    NotANumber,
}

/// Answers every question with `answer`.
#[derive(Clone, Debug)]
pub struct FakeEngine {
    pub answer: &'static str,
    pub fault: Fault,
    /// What it says that is free.
    pub free_bytes: Option<u64>,
}

impl FakeEngine {
    pub fn sound() -> FakeEngine {
        FakeEngine { answer: "{\"n\": 5}", fault: Fault::None, free_bytes: None }
    }

    pub fn with(fault: Fault) -> FakeEngine {
        FakeEngine { fault, ..FakeEngine::sound() }
    }
}

impl Verifier for FakeEngine {
    fn engine(&self) -> String {
        "fake 1".into()
    }

    fn free_bytes(&self) -> Option<u64> {
        self.free_bytes
    }

    fn load(&self, file: &Path, _num_ctx: usize) -> Result<Box<dyn LoadedModel>, EngineError> {
        if self.fault == Fault::DoesNotLoad {
            return Err("unknown architecture".into());
        }
        assert!(
            file.extension().is_some_and(|extension| extension == "tmp"),
            "the gate came after the rename"
        );
        let reader = Reader::open(file)?;
        let tokenizer = Tokenizer::from_gguf(reader.metadata())?;
        let source = reader.metadata().get_str("tokenizer.chat_template").ok_or("no template")?;
        let template = ChatTemplate::from_source(source, "", "<|im_end|>")?;
        Ok(Box::new(FakeModel { engine: self.clone(), tokenizer, template, reader }))
    }
}

struct FakeModel {
    engine: FakeEngine,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    reader: Reader,
}

impl LoadedModel for FakeModel {
    fn prompt_ids(&mut self, chat: Chat<'_>) -> Result<Vec<u32>, EngineError> {
        let mut ids = text::encode_prompt(&self.tokenizer, &self.template, chat)?;
        if self.engine.fault == Fault::OtherIds {
            ids[3] += 1;
        }
        Ok(ids)
    }

    fn generate(&mut self, _prompt: &[u32], max_new_tokens: usize) -> Result<Generation, EngineError> {
        let text = if self.engine.fault == Fault::OtherAnswers { "no" } else { self.engine.answer };
        let mut ids = self.tokenizer.encode(text);
        assert!(ids.len() < max_new_tokens, "there is no room for the answer");
        if self.engine.fault != Fault::NeverStops {
            ids.push(self.tokenizer.id("<|im_end|>").unwrap());
        }
        Ok(Generation { ids, text: text.into() })
    }

    fn sum_nll(&mut self, ids: &[u32], is_target: &[bool]) -> Result<f64, EngineError> {
        assert_eq!(ids.len(), is_target.len());
        let n = is_target.iter().filter(|&&is_target| is_target).count();
        Ok(if self.engine.fault == Fault::NotANumber { f64::NAN } else { 0.25 * n as f64 })
    }

    fn memory_bytes(&self) -> Option<u64> {
        None
    }

    /// Those of our own forward on the file's blocks.
    fn logits(
        &mut self,
        ids: &[u32],
        each: &mut dyn FnMut(usize, &[f32]) -> ControlFlow<()>,
    ) -> Result<(), EngineError> {
        let rows = forward::logits(&self.reader, ids);
        let _ = rows.iter().enumerate().try_for_each(|(at, row)| each(at, row));
        Ok(())
    }
}
