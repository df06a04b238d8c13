//! The gate: what an exported file must do in the engine that will serve it.

use std::path::Path;

use text::Message;

/// Why an engine could not do something.
pub type EngineError = Box<dyn std::error::Error + Send + Sync>;

/// An engine that loads exported files. Implemented where exporter and runner meet.
pub trait Verifier {
    /// What the engine is and its version, for the receipt.
    fn engine(&self) -> String;

    /// Loads a file for a context of `num_ctx` tokens.
    ///
    /// # Errors
    /// When the engine refuses it.
    fn load(&self, file: &Path, num_ctx: usize) -> Result<Box<dyn LoadedModel>, EngineError>;
}

/// A model that an engine has loaded. Every call starts from an empty context.
pub trait LoadedModel {
    /// The ids which the engine computes for a conversation up to where the assistant is to answer, by the
    /// template and the tokenizer of the loaded file.
    ///
    /// # Errors
    /// When the engine fails.
    fn prompt_ids(&mut self, messages: &[Message]) -> Result<Vec<u32>, EngineError>;

    /// Continues `prompt` greedily until a token that ends generation or `max_new_tokens`.
    ///
    /// # Errors
    /// When the engine fails.
    fn generate(&mut self, prompt: &[u32], max_new_tokens: usize) -> Result<Generation, EngineError>;

    /// The summed negative log-likelihood (nats) of the tokens `i` of `ids` for which `is_target[i]`.
    ///
    /// # Errors
    /// When the engine fails.
    fn sum_nll(&mut self, ids: &[u32], is_target: &[bool]) -> Result<f64, EngineError>;
}

/// What a greedy generation gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Generation {
    /// The new tokens, the one that ended it included.
    pub ids: Vec<u32>,
    /// Their text without control tokens.
    pub text: String,
}
