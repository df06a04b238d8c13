//! JSON schemas: the grammar holds an answer to their shape, the validator to every keyword.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::step::SchemaSpec;
use crate::engine::llama;

/// A schema made ready.
#[derive(Debug, Clone)]
pub(super) struct Schema {
    /// As written.
    pub value: Value,
    validator: Arc<jsonschema::Validator>,
}

impl Schema {
    /// Reads, checks and compiles a schema; `directory` is what its path is relative to.
    pub(super) fn new(spec: &SchemaSpec, directory: &Path) -> Result<Self, String> {
        let value = match spec {
            SchemaSpec::Inline(object) => Value::Object(object.clone()),
            SchemaSpec::Path(path) => read(&directory.join(path))?,
        };
        let validator = jsonschema::validator_for(&value).map_err(|error| error.to_string())?;
        llama::check_schema(&value).map_err(|error| error.to_string())?;
        Ok(Self { value, validator: Arc::new(validator) })
    }

    /// What is wrong with a value, each with its place.
    pub(super) fn objections(&self, value: &Value) -> Vec<String> {
        let errors = self.validator.iter_errors(value);
        errors.map(|error| format!("{}: {error}", place(&error.instance_path.to_string()))).collect()
    }
}

fn place(pointer: &str) -> String {
    if pointer.is_empty() { "the record".to_owned() } else { format!("`{pointer}`") }
}

fn read(path: &Path) -> Result<Value, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))
}
