//! Prompt templates: Jinja over input, item, params and earlier outputs.
//!
//! A template is the author's; what it prints is data. Its result becomes the content of one message, which no
//! tokenizer turns into control tokens, and an output is never itself read as a template.

use std::collections::BTreeSet;
use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, UndefinedBehavior, Value};

/// Steps a template may take: enough for any prompt, not for an endless loop.
const FUEL: u64 = 10_000_000;

/// Bytes a prompt may have.
const PROMPT_BYTES: usize = 16 << 20;

/// A compiled template and what it refers to.
#[derive(Debug, Clone)]
pub(super) struct Template {
    environment: Environment<'static>,
    /// What it refers to.
    pub references: References,
}

/// What a template refers to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct References {
    /// `input`.
    pub input: bool,
    /// `item`.
    pub item: bool,
    /// `steps.<name>.output`.
    pub outputs_of_item: BTreeSet<String>,
    /// `steps.<name>.outputs`.
    pub outputs_of_all: BTreeSet<String>,
    /// `params.<name>`.
    pub params: BTreeSet<String>,
    /// Names that this template alone may use.
    pub more: BTreeSet<String>,
}

impl Template {
    /// Compiles a template; `more` are names that it may use besides. The error says what is wrong with it.
    pub(super) fn new(source: &str, more: &[&str]) -> Result<Self, String> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_fuel(Some(FUEL));
        let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build();
        environment.set_syntax(syntax.map_err(|error| describe(&error))?);
        environment.add_template_owned("prompt", source.to_owned()).map_err(|error| describe(&error))?;
        let template = environment.get_template("prompt").map_err(|error| describe(&error))?;
        let references = references(template.undeclared_variables(true), more)?;
        Ok(Self { environment, references })
    }

    /// Renders it.
    pub(super) fn render(&self, context: Value) -> Result<String, String> {
        let template = self.environment.get_template("prompt").map_err(|error| describe(&error))?;
        let mut output = Capped::default();
        template.render_captured_to(context, &mut output).map_err(|error| describe(&error))?;
        String::from_utf8(output.bytes).map_err(|error| error.to_string())
    }
}

fn references(names: impl IntoIterator<Item = String>, more: &[&str]) -> Result<References, String> {
    let mut found = References::default();
    for name in names {
        let parts: Vec<&str> = name.split('.').collect();
        match parts.as_slice() {
            ["input"] => found.input = true,
            ["item"] => found.item = true,
            ["steps", step, "output"] => drop(found.outputs_of_item.insert((*step).to_owned())),
            ["steps", step, "outputs"] => drop(found.outputs_of_all.insert((*step).to_owned())),
            ["params", param] => drop(found.params.insert((*param).to_owned())),
            ["range" | "dict" | "namespace"] => {}
            [name] if more.contains(name) => drop(found.more.insert((*name).to_owned())),
            _ => {
                return Err(format!(
                    "`{name}` is unknown; there are `input`, `item`, `params.<name>`, `steps.<name>.output` and `steps.<name>.outputs`"
                ));
            }
        }
    }
    Ok(found)
}

fn describe(error: &minijinja::Error) -> String {
    let place = error.line().map_or_else(String::new, |line| format!(" (line {line})"));
    let detail = error.detail().map_or_else(String::new, |detail| format!(": {detail}"));
    let source = std::error::Error::source(error).map_or_else(String::new, |source| format!(": {source}"));
    format!("{}{detail}{source}{place}", error.kind())
}

#[derive(Default)]
struct Capped {
    bytes: Vec<u8>,
}

impl io::Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > PROMPT_BYTES {
            return Err(io::Error::other(format!("the prompt is longer than {PROMPT_BYTES} bytes")));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use minijinja::context;

    use super::*;

    #[test]
    fn references_are_found() {
        let template = Template::new(
            "{{ input }} {{ steps.a.output }} {% for o in steps.b.outputs %}{{ o }}{% endfor %} {{ params.x }}",
            &[],
        );
        let references = template.unwrap().references;
        assert!(references.input && !references.item);
        assert_eq!(references.outputs_of_item, BTreeSet::from(["a".to_owned()]));
        assert_eq!(references.outputs_of_all, BTreeSet::from(["b".to_owned()]));
        assert_eq!(references.params, BTreeSet::from(["x".to_owned()]));
    }

    #[test]
    fn what_is_unknown_is_an_error_before_the_run() {
        assert!(Template::new("{{ inptu }}", &[]).unwrap_err().contains("`inptu` is unknown"));
        assert!(Template::new("{{ steps.a.text }}", &[]).unwrap_err().contains("`steps.a.text` is unknown"));
        assert!(Template::new("{{ input", &[]).unwrap_err().contains("line 1"));
    }

    #[test]
    fn more_names_are_for_the_template_that_has_them() {
        let template = Template::new("{{ draft }}", &["task", "draft"]).unwrap();
        assert_eq!(template.references.more, BTreeSet::from(["draft".to_owned()]));
        assert!(Template::new("{{ draft }}", &[]).unwrap_err().contains("`draft` is unknown"));
    }

    #[test]
    fn data_is_not_a_template_and_keeps_its_line_ends() {
        let template = Template::new("> {{ input }}\n", &[]).unwrap();
        let text = template.render(context! { input => "{{ item }} <b>&\r\n" }).unwrap();
        assert_eq!(text, "> {{ item }} <b>&\r\n\n");
    }

    #[test]
    fn an_endless_or_huge_template_stops() {
        let endless = Template::new(
            "{% for i in range(1000000) %}{% for j in range(1000000) %}{% endfor %}{% endfor %}",
            &[],
        );
        assert!(endless.unwrap().render(context! {}).is_err());
        let huge = Template::new("{% for i in range(20) %}{{ input }}{% endfor %}", &[]).unwrap();
        let error = huge.render(context! { input => "x".repeat(1 << 20) }).unwrap_err();
        assert!(error.contains("longer than"), "{error}");
    }
}
