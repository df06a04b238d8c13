//! The embedded engine: llama.cpp in this process, prompts as token ids made by our own text layer.

pub mod session;

use std::ops::ControlFlow;

pub use session::{Session, SessionOptions};

use super::{Engine, ExpertMemory, Loaded};
use crate::Result;
use crate::card::ExpertCard;
use crate::memory::MemoryState;

/// The embedded llama.cpp.
#[derive(Debug)]
pub struct LlamaEngine {
    _private: (),
}

impl LlamaEngine {
    /// Starts it, once the processor is checked.
    ///
    /// # Errors
    /// [`crate::Error::Processor`].
    pub fn new() -> Result<Self> {
        super::processor::check()?;
        Ok(Self { _private: () })
    }
}

impl Engine for LlamaEngine {
    fn name(&self) -> String {
        "llama.cpp (llama-cpp-2 0.1.160)".to_owned()
    }

    fn load(
        &mut self,
        card: &ExpertCard,
        progress: &mut dyn FnMut(f32) -> ControlFlow<()>,
    ) -> Result<Box<dyn Loaded>> {
        let _ = (card, progress);
        todo!()
    }

    fn needs(&self, card: &ExpertCard) -> Result<ExpertMemory> {
        let _ = card;
        todo!()
    }

    fn memory(&self) -> MemoryState {
        todo!()
    }
}
