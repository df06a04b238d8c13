//! How the next token is chosen: what a request may override of a card.

use serde::{Deserialize, Serialize};

/// How the next token is chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sampling {
    /// 0: always the most likely token, so that a run can be repeated.
    pub temperature: f32,
    /// Only the most likely `top_k` tokens; 0: all.
    pub top_k: u32,
    /// Only the most likely tokens that hold this much probability together; 1: all.
    pub top_p: f32,
    /// Only tokens at least this likely, relative to the most likely; 0: all.
    pub min_p: f32,
    /// Above 1: tokens of the last `repeat_last_n` become less likely.
    pub repeat_penalty: f32,
    /// How far back `repeat_penalty` looks.
    pub repeat_last_n: u32,
    /// Seed of the draw; the same seed gives the same text.
    pub seed: u32,
    /// Most tokens of an answer; absent: to the end of the context.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.0,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            seed: 0,
            max_tokens: None,
        }
    }
}

impl Sampling {
    /// Refuses what no sampler can do.
    ///
    /// # Errors
    /// The key and the value, as text.
    pub fn check(&self) -> std::result::Result<(), String> {
        let within = |key: &str, value: f32, low: f32, high: f32| {
            if value.is_finite() && (low..=high).contains(&value) {
                return Ok(());
            }
            Err(format!("`{key}` is {value}, allowed is {low} to {high}"))
        };
        within("temperature", self.temperature, 0.0, 10.0)?;
        within("top_p", self.top_p, 0.0, 1.0)?;
        within("min_p", self.min_p, 0.0, 1.0)?;
        within("repeat_penalty", self.repeat_penalty, 0.1, 10.0)
    }
}
