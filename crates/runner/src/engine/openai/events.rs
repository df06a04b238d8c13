//! The answer as server-sent events: text as it comes, then how it ended and what it took.
//!
//! Format: <https://html.spec.whatwg.org/multipage/server-sent-events.html>; each event is one JSON object, the last
//! one is `[DONE]`.

use std::ops::ControlFlow;
use std::time::Instant;

use serde_json::Value;

use crate::engine::remote::{Fault, body};
use crate::engine::{Finish, Generated};

/// An answer that is being heard.
pub(super) struct Heard {
    /// Its text so far.
    pub text: String,
    data: String,
    begun: Instant,
    first: Option<Instant>,
    finish: Option<Finish>,
    usage: (usize, usize),
    pub is_done: bool,
}

impl Heard {
    pub fn new() -> Self {
        Self {
            text: String::new(),
            data: String::new(),
            begun: Instant::now(),
            first: None,
            finish: None,
            usage: (0, 0),
            is_done: false,
        }
    }

    /// Takes a line of the stream.
    pub fn line(&mut self, line: &[u8], tell: &mut dyn FnMut(&str) -> ControlFlow<()>) -> Result<(), Fault> {
        let line =
            std::str::from_utf8(line).map_err(|_| Fault::passing("a line of the answer is no UTF-8"))?;
        if line.is_empty() {
            let data = std::mem::take(&mut self.data);
            return if data.is_empty() { Ok(()) } else { self.event(&data, tell) };
        }
        // Everything but data is for browsers: comments keep a connection open.
        if let Some(data) = line.strip_prefix("data:") {
            if !self.data.is_empty() {
                self.data.push('\n');
            }
            self.data.push_str(data.strip_prefix(' ').unwrap_or(data));
        }
        Ok(())
    }

    fn event(&mut self, data: &str, tell: &mut dyn FnMut(&str) -> ControlFlow<()>) -> Result<(), Fault> {
        if self.is_done {
            return Ok(());
        }
        if data.trim() == "[DONE]" {
            self.is_done = true;
            return Ok(());
        }
        let event: Value = serde_json::from_str(data)
            .map_err(|error| Fault::passing(format!("an event of the answer is no JSON: {error}")))?;
        if event.get("error").is_some_and(|error| !error.is_null()) {
            return Err(Fault::passing(body::words_of(&event).unwrap_or_default()));
        }
        if let Some(usage) = event.get("usage").filter(|usage| usage.is_object()) {
            let count = |key: &str| usage.get(key).and_then(Value::as_u64).map_or(0, |n| n as usize);
            self.usage = (count("prompt_tokens"), count("completion_tokens"));
        }
        let Some(choice) = event.pointer("/choices/0") else { return Ok(()) };
        if let Some(text) = choice.pointer("/delta/content").and_then(Value::as_str)
            && !text.is_empty()
        {
            self.first.get_or_insert_with(Instant::now);
            self.text.push_str(text);
            if tell(text).is_break() {
                return Err(Fault::Cancelled);
            }
        }
        match choice.get("finish_reason").and_then(Value::as_str) {
            None => {}
            Some("stop") => self.finish = Some(Finish::Stop),
            Some("length") => self.finish = Some(Finish::Length),
            Some(other) => {
                let other: String = other.chars().take(40).collect();
                return Err(Fault::lasting(format!("it ended the answer with `{other}`")));
            }
        }
        Ok(())
    }

    /// Takes what a stream that ended without an empty line left.
    pub fn end(&mut self, tell: &mut dyn FnMut(&str) -> ControlFlow<()>) -> Result<(), Fault> {
        self.line(b"", tell)
    }

    /// The finished generation. A server without `[DONE]` has at least said how it ended.
    pub fn generated(self) -> Result<Generated, Fault> {
        let finish = self.finish.ok_or_else(|| Fault::passing("the stream ended before its last event"))?;
        let prompt_ns = self.first.map_or(self.begun.elapsed(), |first| first - self.begun).as_nanos();
        let all_ns = self.begun.elapsed().as_nanos();
        let nanoseconds = |n: u128| u64::try_from(n).unwrap_or(u64::MAX);
        Ok(Generated {
            text: self.text,
            finish,
            prompt_tokens: self.usage.0,
            output_tokens: self.usage.1,
            prompt_ns: nanoseconds(prompt_ns),
            decode_ns: nanoseconds(all_ns - prompt_ns),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(stream: &str) -> Result<Generated, Fault> {
        let mut heard = Heard::new();
        let mut tell = |_: &str| ControlFlow::Continue(());
        for line in stream.lines() {
            heard.line(line.as_bytes(), &mut tell)?;
        }
        heard.end(&mut tell)?;
        heard.generated()
    }

    #[test]
    fn an_answer_is_its_events_put_together() {
        let stream = ": keep alive\n\
            data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]}\n\n\
            data: {\"choices\":[{\"delta\":{\"reasoning_content\":\"hm\"}}]}\n\n\
            event: x\ndata: {\"choices\":[{\"delta\":{\"content\":\"Hel\"}}]}\n\n\
            data:{\"choices\":[{\"delta\":\ndata: {\"content\":\"lo\"},\"finish_reason\":\"stop\"}]}\n\n\
            data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":3}}\n\n\
            data: [DONE]\n\n";
        let generated = heard(stream).unwrap();
        assert_eq!((generated.text.as_str(), generated.finish), ("Hello", Finish::Stop));
        assert_eq!((generated.prompt_tokens, generated.output_tokens), (7, 3));
    }

    #[test]
    fn what_is_no_end_is_a_fault() {
        let text = "data: {\"choices\":[{\"delta\":{\"content\":\"Hel\"}}]}\n\n";
        assert_eq!(heard(text), Err(Fault::passing("the stream ended before its last event")));
        assert!(
            matches!(heard("data: {\"error\":{\"message\":\"no\"}}\n\n"), Err(Fault::Passing { reason, .. }) if reason == "no")
        );
        let filtered = "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"content_filter\"}]}\n\n";
        assert!(
            matches!(heard(filtered), Err(Fault::Lasting { reason, .. }) if reason.contains("`content_filter`"))
        );
        assert!(matches!(heard("data: {\"cho\n\n"), Err(Fault::Passing { .. })));
    }
}
