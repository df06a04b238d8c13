//! What is sent to be answered, and the answer as it comes: text for the listener, figures at the end.

use std::ops::ControlFlow;
use std::time::Instant;

use serde_json::{Map, Value, json};
use text::Message;

use super::api::Piece;
use crate::card::{OllamaModel, Sampling};
use crate::engine::remote::Fault;
use crate::engine::{Finish, Form, Generated, Prompt, Request};

/// A model stays so long after a request; the engine unloads it before that, unless the program dies.
pub(super) const KEEP_ALIVE: &str = "10m";

/// Route and body of a request.
///
/// Options hold how tokens are chosen, and nothing that would load the model anew.
pub(super) fn body(
    model: &OllamaModel,
    request: &Request,
    messages: &[Message],
    stop: &[String],
) -> (&'static str, Value) {
    let mut body = json!({
        "model": model.name,
        "stream": true,
        // Unset it is on for a model that thinks, and the answer would be late.
        "think": false,
        "truncate": false,
        "shift": false,
        "keep_alive": KEEP_ALIVE,
        "options": options(&request.sampling, stop),
    });
    match &request.form {
        Form::Text => {}
        Form::Json => body["format"] = "json".into(),
        Form::Schema(schema) => body["format"] = schema.clone(),
    }
    match &request.prompt {
        Prompt::Chat(_) => {
            body["messages"] = messages
                .iter()
                .map(|message| json!({"role": message.role, "content": message.content}))
                .collect();
            ("/api/chat", body)
        }
        Prompt::Raw(text) | Prompt::Rendered(text) => {
            body["prompt"] = text.as_str().into();
            body["raw"] = true.into();
            ("/api/generate", body)
        }
    }
}

fn options(sampling: &Sampling, stop: &[String]) -> Map<String, Value> {
    let mut options = Map::new();
    let mut set = |key: &str, value: Value| drop(options.insert(key.to_owned(), value));
    set("temperature", rounded(sampling.temperature));
    set("top_k", sampling.top_k.into());
    set("top_p", rounded(sampling.top_p));
    set("min_p", rounded(sampling.min_p));
    set("repeat_penalty", rounded(sampling.repeat_penalty));
    set("repeat_last_n", sampling.repeat_last_n.into());
    set("seed", sampling.seed.into());
    set("num_predict", sampling.max_tokens.map_or(-1, i64::from).into());
    // A `stop` that is given takes the place of the model's own.
    if !stop.is_empty() {
        set("stop", stop.into());
    }
    options
}

/// A number of 32 bits as a person wrote it: 0.7, not 0.699999988.
fn rounded(value: f32) -> Value {
    value.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

/// An answer that is being heard.
pub(super) struct Heard {
    /// Its text so far.
    pub text: String,
    /// When it was asked for, and when the first text came.
    begun: Instant,
    end: Option<Piece>,
}

impl Heard {
    pub fn new() -> Self {
        Self { text: String::new(), begun: Instant::now(), end: None }
    }

    /// Whether a listener has been told anything: then nothing can be asked for again.
    pub fn is_delivered(&self) -> bool {
        !self.text.is_empty()
    }

    /// Takes a line; breaks at the last.
    pub fn line(
        &mut self,
        value: &Value,
        tell: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Fault> {
        let piece = Piece::deserialize_from(value)?;
        let text = piece.message.as_ref().map_or(piece.response.as_str(), |message| message.content.as_str());
        if !text.is_empty() {
            self.text.push_str(text);
            if tell(text).is_break() {
                return Err(Fault::Cancelled);
            }
        }
        if !piece.done {
            return Ok(ControlFlow::Continue(()));
        }
        if !matches!(piece.done_reason.as_str(), "stop" | "length") {
            let reason = piece.done_reason.chars().take(40).collect::<String>();
            return Err(Fault::passing(format!(
                "an answer ends with `stop` or `length`, this one ended with `{reason}`"
            )));
        }
        self.end = Some(piece);
        Ok(ControlFlow::Break(()))
    }

    /// The finished generation; one that was cancelled has no figures.
    pub fn generated(self, context_tokens: u64) -> Result<Generated, Fault> {
        let elapsed = u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let Some(end) = self.end else {
            return Ok(Generated {
                text: self.text,
                finish: Finish::Cancelled,
                prompt_tokens: 0,
                output_tokens: 0,
                prompt_ns: 0,
                decode_ns: elapsed,
            });
        };
        let all = (end.prompt_eval_count as u64).saturating_add(end.eval_count as u64);
        // One more may be counted: the end of the turn, which was never put into the context.
        if context_tokens > 0 && all > context_tokens + 1 {
            return Err(Fault::lasting(format!(
                "prompt and answer have {all} tokens where the context has {context_tokens}: it was shifted"
            )));
        }
        Ok(Generated {
            text: self.text,
            finish: if end.done_reason == "length" { Finish::Length } else { Finish::Stop },
            prompt_tokens: end.prompt_eval_count,
            output_tokens: end.eval_count,
            prompt_ns: end.prompt_eval_duration,
            decode_ns: end.eval_duration,
        })
    }
}

impl Piece {
    pub(super) fn deserialize_from(value: &Value) -> Result<Self, Fault> {
        serde::Deserialize::deserialize(value)
            .map_err(|error| Fault::passing(format!("a line of the answer is not the API's: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(lines: &[Value], context_tokens: u64) -> (String, Result<Generated, Fault>) {
        let mut heard = Heard::new();
        let mut told = String::new();
        for line in lines {
            let went = heard.line(line, &mut |text| {
                told.push_str(text);
                ControlFlow::Continue(())
            });
            match went {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) => break,
                Err(fault) => return (told, Err(fault)),
            }
        }
        (told, heard.generated(context_tokens))
    }

    #[test]
    fn an_answer_is_its_lines_put_together() {
        let lines = [
            json!({"message": {"role": "assistant", "content": "", "thinking": "hm"}, "done": false}),
            json!({"message": {"role": "assistant", "content": "Hel"}, "done": false}),
            json!({"message": {"role": "assistant", "content": "lo"}, "done": false}),
            json!({"message": {"role": "assistant", "content": ""}, "done": true, "done_reason": "stop",
                "prompt_eval_count": 7, "prompt_eval_duration": 5, "eval_count": 3, "eval_duration": 9}),
        ];
        let (told, generated) = heard(&lines, 16);
        let generated = generated.unwrap();
        assert_eq!(
            (told.as_str(), generated.text.as_str(), generated.finish),
            ("Hello", "Hello", Finish::Stop)
        );
        assert_eq!((generated.prompt_tokens, generated.output_tokens), (7, 3));
        assert_eq!((generated.prompt_ns, generated.decode_ns), (5, 9));
        let (_, shifted) = heard(&lines, 8);
        assert!(matches!(shifted, Err(Fault::Lasting { reason, .. }) if reason.contains("shifted")));
    }

    #[test]
    fn an_end_that_is_none_is_a_fault() {
        let (told, ended) = heard(&[json!({"response": "x", "done": true, "done_reason": "load"})], 0);
        assert_eq!(told, "x");
        assert!(matches!(ended, Err(Fault::Passing { reason, .. }) if reason.contains("`load`")));
        let (_, ended) = heard(&[json!({"message": "text", "done": false})], 0);
        assert!(matches!(ended, Err(Fault::Passing { reason, .. }) if reason.contains("not the API's")));
    }

    #[test]
    fn options_hold_nothing_that_reloads() {
        let sampling = Sampling { temperature: 0.7, max_tokens: Some(5), ..Sampling::default() };
        let options = options(&sampling, &["\n\n".to_owned()]);
        let keys: Vec<&str> = options.keys().map(String::as_str).collect();
        let expected = "temperature top_k top_p min_p repeat_penalty repeat_last_n seed num_predict stop";
        assert_eq!(keys.join(" "), expected);
        assert_eq!(options["temperature"].to_string(), "0.7");
    }
}
