//! The rules by which a base is suggested: a table, each row with its reason.

use serde::{Deserialize, Serialize};

/// What an expert is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Writing and changing code.
    Coding,
    /// Thinking before answering.
    Reasoning,
    /// Conversations and general texts.
    Chat,
    /// Choosing the next step, labelling, extracting: short answers in a fixed form.
    Routing,
    /// Vectors of texts, to find them again.
    Embedding,
}

/// What every base for a role is held to.
#[derive(Debug, Clone, Copy)]
pub struct Demand {
    /// The role.
    pub role: Role,
    /// Tokens of context that the role should have.
    pub wanted_context: u32,
    /// With fewer the base is passed over.
    pub least_context: u32,
    /// Why so many.
    pub reason: &'static str,
}

/// A base for a role; rows of a role stand from the most to the least wanted.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// The role.
    pub role: Role,
    /// Owner and name on the hub.
    pub base: &'static str,
    /// Why, and why here.
    pub reason: &'static str,
}

/// Weights from the best to the smallest that is suggested.
///
/// Four bits are the floor: below them a base loses more than the next smaller one in four bits has less. What room
/// is left goes into more bits only after context and cache have what the role wants.
pub const QUANTS: [&str; 4] = ["q8_0", "q6_k", "q5_k_m", "q4_k_m"];

/// Bases below so many billion parameters are not suggested in fewer than [`SMALL_QUANT`]: rounding costs a small model
/// most, and eight bits of it are little.
pub const SMALL_BILLIONS: f64 = 2.0;

/// See [`SMALL_BILLIONS`].
pub const SMALL_QUANT: &str = "q8_0";

/// On a processor no base is suggested of which more than so many billion parameters answer for each token: it reads 20
/// to 60 GB/s, so that 8 B in four bits give 4 to 12 tokens a second.
pub const MOST_BILLIONS_ON_A_PROCESSOR: f64 = 9.0;

/// What each role is held to.
#[rustfmt::skip]
pub const DEMANDS: [Demand; 5] = [
    Demand { role: Role::Coding,    wanted_context: 16_384, least_context: 8192,
        reason: "a file of code with what it uses takes 4,000 to 12,000 tokens, the change as many again" },
    Demand { role: Role::Reasoning, wanted_context: 16_384, least_context: 8192,
        reason: "a chain of thought takes 2,000 to 10,000 tokens before the answer begins" },
    Demand { role: Role::Chat,      wanted_context: 8192,   least_context: 4096,
        reason: "some pages of text and a few turns" },
    Demand { role: Role::Routing,   wanted_context: 2048,   least_context: 1024,
        reason: "a request, the choices and one word; a longer prompt costs more time than the choice" },
    Demand { role: Role::Embedding, wanted_context: 2048,   least_context: 512,
        reason: "one passage at a time; longer ones blur into one vector" },
];

/// Which bases for which role.
#[rustfmt::skip]
pub const RULES: [Rule; 23] = [
    Rule { role: Role::Coding, base: "Qwen/Qwen2.5-Coder-32B-Instruct",
        reason: "the largest of the family that was trained on code with tests as judge" },
    Rule { role: Role::Coding, base: "Qwen/Qwen2.5-Coder-14B-Instruct",
        reason: "as the 7 B, and larger models of that kind repair more of their mistakes by themselves" },
    Rule { role: Role::Coding, base: "Qwen/Qwen2.5-Coder-7B-Instruct",
        reason: "trained on code first, fills in the middle; 4 heads of keys and values make long files cheap" },
    Rule { role: Role::Coding, base: "Qwen/Qwen3-4B",
        reason: "no coder by training, but ahead of coders of 1.5 B on anything that needs a plan" },
    Rule { role: Role::Coding, base: "Qwen/Qwen2.5-Coder-1.5B-Instruct",
        reason: "completions and small edits; quick on a processor" },
    Rule { role: Role::Coding, base: "deepseek-ai/DeepSeek-Coder-V2-Lite-Instruct",
        reason: "2.4 of its 16 B answer for each token: where a processor must do it, with memory to spare" },

    Rule { role: Role::Reasoning, base: "Qwen/Qwen3-32B",
        reason: "the largest that thinks or answers at once as the prompt asks" },
    Rule { role: Role::Reasoning, base: "Qwen/Qwen3-14B",
        reason: "thinks or answers at once as the prompt asks" },
    Rule { role: Role::Reasoning, base: "Qwen/Qwen3-8B",
        reason: "thinks or answers at once as the prompt asks; 144 KiB a token, so that the context decides what fits" },
    Rule { role: Role::Reasoning, base: "microsoft/Phi-4-mini-reasoning",
        reason: "trained for mathematics alone, and the best there at its size" },
    Rule { role: Role::Reasoning, base: "Qwen/Qwen3-4B",
        reason: "thinks as the larger ones do, of broader use than Phi-4-mini" },
    Rule { role: Role::Reasoning, base: "Qwen/Qwen3-1.7B",
        reason: "the smallest that keeps a chain of thought together" },

    Rule { role: Role::Chat, base: "Qwen/Qwen3-14B",
        reason: "knows more and follows longer instructions than the 8 B" },
    Rule { role: Role::Chat, base: "meta-llama/Llama-3.1-8B-Instruct",
        reason: "even over English tasks, and the base that most adapters and recipes are made for" },
    Rule { role: Role::Chat, base: "google/gemma-3-4b-it",
        reason: "140 languages; 5 of 6 layers see 1,024 tokens, so that context costs a third" },
    Rule { role: Role::Chat, base: "meta-llama/Llama-3.2-3B-Instruct",
        reason: "the 8 B's smaller sister, made from it" },
    Rule { role: Role::Chat, base: "Qwen/Qwen2.5-1.5B-Instruct",
        reason: "28 KiB a token: long texts in little memory" },
    Rule { role: Role::Chat, base: "meta-llama/Llama-3.2-1B-Instruct",
        reason: "short answers where nothing larger fits" },

    Rule { role: Role::Routing, base: "Qwen/Qwen3-0.6B",
        reason: "one word under a schema needs no more once it is fine-tuned, and it loads in a moment" },
    Rule { role: Role::Routing, base: "Qwen/Qwen3-1.7B",
        reason: "where examples to fine-tune on are missing: it follows a described choice without them" },
    Rule { role: Role::Routing, base: "meta-llama/Llama-3.2-1B-Instruct",
        reason: "where the pipeline's other experts are Llamas: one tokenizer, one template" },

    Rule { role: Role::Embedding, base: "Qwen/Qwen3-Embedding-0.6B",
        reason: "trained for retrieval, 100 languages; beside another expert in the same memory" },
    Rule { role: Role::Embedding, base: "Qwen/Qwen3-Embedding-4B",
        reason: "better on long and technical passages, at four times the time a passage" },
];
