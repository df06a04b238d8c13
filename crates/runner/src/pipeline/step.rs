//! What a step of a pipeline file says, as written.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What a step does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepKind {
    /// An expert answers a prompt.
    #[default]
    Generate,
    /// Rules, or a program that the pipeline lists, judge an earlier step's output; no model is needed.
    Check,
    /// An expert or rules choose one of some routes; steps with `when` run only for what was routed to them.
    Route,
    /// The passages of some files that fit a question best.
    Retrieve,
}

/// How a step's input is split into items.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Map {
    /// One item a line that is not empty.
    Lines,
}

/// What objections that remain do to the run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFail {
    /// The objections are recorded and the run goes on.
    #[default]
    Record,
    /// The run stops.
    Stop,
}

/// What an item that has no result does to the run: over its time, too long a prompt, no answer under its schema.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// The run stops; it can be resumed.
    #[default]
    Stop,
    /// The reason is recorded, and what follows from this item is skipped.
    Record,
}

/// What becomes of a prompt that does not fit the expert's context.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContextRule {
    /// It is an error.
    #[default]
    Refuse,
    /// The beginning of a part is cut off.
    TruncateHead,
    /// The end of a part is cut off.
    TruncateTail,
    /// The middle of a part is cut out.
    TruncateMiddle,
    /// An expert shortens a part.
    Compress,
}

/// How passages are found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// By the words that question and passage share (BM25); no model is needed.
    #[default]
    Words,
    /// By the vectors that an expert gives them.
    Meaning,
}

/// A schema in the pipeline file or in a file of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum SchemaSpec {
    /// A JSON file.
    Path(PathBuf),
    /// The schema itself.
    Inline(serde_json::Map<String, serde_json::Value>),
}

/// One name or several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Names {
    /// One.
    One(String),
    /// Several.
    Several(Vec<String>),
}

impl Names {
    /// All of them.
    pub fn all(&self) -> &[String] {
        match self {
            Self::One(name) => std::slice::from_ref(name),
            Self::Several(names) => names,
        }
    }
}

/// A rule of a router: what matches goes this way.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteRule {
    /// The text contains this, whatever its case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contains: Option<String>,
    /// This regular expression is found in the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matches: Option<String>,
    /// The route.
    pub route: String,
}

/// How an answer is verified, and what follows if it is not good.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifySpec {
    /// An expert that judges the answers to which the rules do not object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expert: Option<String>,
    /// Template of what it is asked: `{{ task }}`, `{{ draft }}`, and all that a prompt has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// Most tokens of a verdict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// Each value of the answer, a record, must occur in this: `input`, `item` or a step's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub values_in: Option<String>,
    /// This regular expression must be found in the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matches: Option<String>,
    /// This regular expression must not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forbids: Option<String>,
    /// Fewest characters of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_chars: Option<usize>,
    /// Most characters of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_chars: Option<usize>,
    /// How often the step's expert may try again, with the objections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<u32>,
    /// An expert that tries once what still fails then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub escalate: Option<String>,
    /// What objections that remain do.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_fail: OnFail,
}

/// One step.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepSpec {
    /// Its name, as in `{{ steps.<name>.output }}`.
    pub name: String,
    /// What it does.
    #[serde(default)]
    pub kind: StepKind,
    /// The expert that answers, routes, or gives vectors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expert: Option<String>,
    /// Template of the user message: `{{ input }}`, `{{ item }}`, `{{ steps.<name>.output }}` (that of the same
    /// item), `{{ steps.<name>.outputs }}` (of all items, as a list), `{{ params.<name> }}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// Template of the system message; else the expert's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// Most tokens of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// Temperature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// Only the likeliest tokens that hold this much probability together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// Only so many of the likeliest tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<u32>,
    /// Only tokens at least this likely, relative to the likeliest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f32>,
    /// Above 1: tokens met lately become less likely.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repeat_penalty: Option<f32>,
    /// Seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u32>,
    /// Stop texts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// Seconds that one answer, or one run of a program, may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<f64>,
    /// What an item without a result does to the run.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_error: OnError,
    /// `generate`: the answer is held to it; `check`: what is judged must satisfy it (default: the judged step's).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<SchemaSpec>,
    /// How often an answer that does not satisfy the schema is asked for again, with the objections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repair: Option<u32>,
    /// How the answer is verified, and what follows if it is not good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify: Option<VerifySpec>,
    /// What becomes of a prompt that does not fit.
    #[serde(default, skip_serializing_if = "is_default")]
    pub context: ContextRule,
    /// The part of the prompt that is cut or compressed: `input`, `item` or a step's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<String>,
    /// The expert that compresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compress_with: Option<String>,
    /// Splits `over` into items; this step and those that follow from it run once an item.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub map: Option<Map>,
    /// What `map` splits: `input` (default) or the name of an earlier step that is not itself mapped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub over: Option<String>,
    /// The routes for which it runs: `when = { <router> = "<route>" }`, or a list of them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub when: BTreeMap<String, Names>,
    /// `route`: the names an expert chooses among.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<String>,
    /// `route`: rules instead of an expert; the first that matches decides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<RouteRule>,
    /// `route`: the route of what no rule matches, and of an answer that is none of the routes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
    /// `check`: the step whose output is judged. `route`: what the rules look at, also `input` or `item`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<String>,
    /// `check`: each value of the judged record must occur in this: `input`, `item` or a step's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub values_in: Option<String>,
    /// `check`: this regular expression must be found in the output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matches: Option<String>,
    /// `check`: this regular expression must not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forbids: Option<String>,
    /// `check`: fewest characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_chars: Option<usize>,
    /// `check`: most characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_chars: Option<usize>,
    /// `check`: a program and its arguments; it gets the output on standard input, and objects by its exit code.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub program: Vec<String>,
    /// `check`: what an objection does.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_fail: OnFail,
    /// `retrieve`: the files, and folders of files, to look in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<PathBuf>,
    /// `retrieve`: template of the question.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<String>,
    /// `retrieve`: how passages are found.
    #[serde(default, skip_serializing_if = "is_default")]
    pub by: By,
    /// `retrieve`: how many passages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top: Option<usize>,
    /// `retrieve`: most words of a passage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passage_words: Option<usize>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
