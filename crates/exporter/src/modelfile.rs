//! The Modelfile: how Ollama is to serve the exported file.
//!
//! Format: <https://github.com/ollama/ollama/blob/main/docs/modelfile.mdx>. Ollama's own templates are in Go's
//! language. A chat template that can be written in it is; any other is left to the file, whose Jinja source newer
//! servers run.

use text::{ChatTemplate, go_template};

/// A Modelfile and where its template comes from.
pub(crate) struct Modelfile {
    pub(crate) text: String,
    /// For the receipt.
    pub(crate) template: &'static str,
}

/// What a Modelfile is made of.
pub(crate) struct Parts<'a> {
    pub(crate) file_name: &'a str,
    pub(crate) template: Option<&'a ChatTemplate>,
    /// The text of the token that opens a prompt, where the server adds it by itself.
    pub(crate) bos: &'a str,
    /// The text of the token that ends a turn.
    pub(crate) stop: Option<&'a str>,
    pub(crate) num_ctx: usize,
    pub(crate) system: Option<&'a str>,
    /// Texts of the licence, or its name.
    pub(crate) licenses: Vec<String>,
}

pub(crate) fn modelfile(parts: &Parts) -> Modelfile {
    let go = parts.template.and_then(|template| go_template(template, parts.bos));
    let go = go.filter(|go| can_be_quoted(go));
    let (note, template) = match (&go, parts.template) {
        (Some(_), _) => {
            ("# The template frames each message as the chat template inside the file does.\n", "go")
        }
        (None, Some(_)) => {
            ("# No TEMPLATE: the chat template inside the file (Jinja) is to be used.\n", "jinja")
        }
        (None, None) => ("# No TEMPLATE: the model has no chat template.\n", "none"),
    };
    let mut text = format!("{note}FROM ./{}\n", parts.file_name);
    if let Some(go) = go {
        text += &format!("TEMPLATE \"\"\"{go}\"\"\"\n");
    }
    if let Some(stop) = parts.stop {
        text += &format!("PARAMETER stop \"{stop}\"\n");
    }
    text += &format!("PARAMETER num_ctx {}\n", parts.num_ctx);
    if let Some(system) = parts.system {
        text += &format!("SYSTEM \"\"\"{system}\"\"\"\n");
    }
    for license in parts.licenses.iter().filter(|license| can_be_quoted(license)) {
        text += &format!("LICENSE \"\"\"{license}\"\"\"\n");
    }
    Modelfile { text, template }
}

/// Whether a text can stand between the three quotes of a Modelfile.
pub(crate) fn can_be_quoted(text: &str) -> bool {
    !text.contains("\"\"\"") && !text.ends_with('"')
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                          {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

    fn check(source: &str, expected: Expect) {
        let template = ChatTemplate::from_source(source, "<s>", "</s>").unwrap();
        let parts = Parts {
            file_name: "x-q4_k_m.gguf",
            template: Some(&template),
            bos: "<s>",
            stop: Some("<|im_end|>"),
            num_ctx: 4096,
            system: Some("Answer with JSON."),
            licenses: Vec::new(),
        };
        expected.assert_eq(&modelfile(&parts).text);
    }

    #[test]
    fn chatml_is_written_in_go() {
        check(
            CHATML,
            expect![[r#"
            # The template frames each message as the chat template inside the file does.
            FROM ./x-q4_k_m.gguf
            TEMPLATE """{{ range .Messages }}{{ if eq .Role "system" }}<|im_start|>system
            {{ .Content }}<|im_end|>
            {{ else if eq .Role "user" }}<|im_start|>user
            {{ .Content }}<|im_end|>
            {{ else if eq .Role "assistant" }}<|im_start|>assistant
            {{ .Content }}<|im_end|>
            {{ end }}{{ end }}<|im_start|>assistant
            """
            PARAMETER stop "<|im_end|>"
            PARAMETER num_ctx 4096
            SYSTEM """Answer with JSON."""
        "#]],
        );
    }

    const JINJA: &str = "# No TEMPLATE: the chat template inside the file (Jinja) is to be used.\n\
                         FROM ./x-q4_k_m.gguf\nPARAMETER stop \"<|im_end|>\"\nPARAMETER num_ctx 4096\n\
                         SYSTEM \"\"\"Answer with JSON.\"\"\"\n";

    #[test]
    fn a_template_that_does_more_is_left_to_the_file() {
        let trimmed = CHATML.replace("{{ m.content }}", "{{ m.content | trim }}");
        let template = ChatTemplate::from_source(&trimmed, "", "").unwrap();
        let parts = Parts {
            file_name: "x-q4_k_m.gguf",
            template: Some(&template),
            bos: "",
            stop: Some("<|im_end|>"),
            num_ctx: 4096,
            system: Some("Answer with JSON."),
            licenses: Vec::new(),
        };
        assert_eq!(modelfile(&parts).text, JINJA);
    }
}
