//! Which keys a step of each kind has.

use serde_json::Value;

use super::Checker;
use crate::Result;
use crate::pipeline::step::{StepKind, StepSpec};

const ALL: &[&str] = &["name", "kind", "map", "over", "when", "on_error"];

const ASKING: &[&str] = &[
    "expert",
    "prompt",
    "system",
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repeat_penalty",
    "seed",
    "timeout",
    "context",
    "cut",
    "compress_with",
];

fn own(kind: StepKind) -> &'static [&'static str] {
    match kind {
        StepKind::Generate => &["stop", "schema", "repair", "verify"],
        StepKind::Check => &[
            "of",
            "schema",
            "values_in",
            "matches",
            "forbids",
            "min_chars",
            "max_chars",
            "program",
            "timeout",
            "on_fail",
        ],
        StepKind::Route => &["routes", "rules", "default", "of"],
        StepKind::Retrieve => &["files", "query", "by", "expert", "top", "passage_words"],
    }
}

fn has(kind: StepKind, key: &str) -> bool {
    let asks = matches!(kind, StepKind::Generate | StepKind::Route);
    ALL.contains(&key) || own(kind).contains(&key) || (asks && ASKING.contains(&key))
}

const KINDS: [(StepKind, &str); 4] = [
    (StepKind::Generate, "generate"),
    (StepKind::Check, "check"),
    (StepKind::Route, "route"),
    (StepKind::Retrieve, "retrieve"),
];

impl Checker<'_> {
    /// Refuses a key that means nothing for a step of this kind: it would be passed over without a word.
    pub(super) fn keys(&self, spec: &StepSpec) -> Result<()> {
        let Ok(Value::Object(given)) = serde_json::to_value(spec) else { return Ok(()) };
        let Some(key) = given.keys().find(|key| !has(spec.kind, key)) else { return Ok(()) };
        let kinds = KINDS.iter().filter(|(kind, _)| has(*kind, key));
        let kinds: Vec<String> = kinds.map(|(_, name)| format!("\"{name}\"")).collect();
        let reason = format!("only a step of kind {} has it", kinds.join(" or "));
        Err(self.wrong(format!("step `{}`: {key}", spec.name), reason))
    }
}
