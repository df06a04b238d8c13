//! Answers of an expert: asked within its time, again with the objections while its schema is not satisfied.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use text::Message;

use super::super::check::{Ask, Generate, Route};
use super::super::event::{Event, ItemResult};
use super::super::{route, rules};
use super::gate::Shortened;
use super::{Run, Stage, milliseconds};
use crate::card::Sampling;
use crate::engine::{Finish, Form, Generated, Loaded, Progress, Prompt, Request};
use crate::{Error, Residency, Result};

/// One question: what is asked, and what of the answer is shown.
pub(super) struct Question<'q> {
    pub messages: &'q [Message],
    pub sampling: &'q Sampling,
    pub stop: &'q [String],
    pub form: Form,
    pub timeout: Option<Duration>,
    /// Whether its text is told as it comes.
    pub is_shown: bool,
}

impl Run<'_> {
    /// A step that an expert answers, item by item.
    pub(super) fn answers(
        &mut self,
        stage: &mut Stage<'_>,
        work: &Generate,
        pending: Vec<usize>,
        residency: &mut Residency,
    ) -> Result<()> {
        let (pending, shortened) = self.fitting(stage, &work.ask, pending, residency)?;
        for item in pending {
            self.stop_if_cancelled()?;
            let expert = self.load(&work.ask.expert, residency)?;
            let begun = Instant::now();
            let result = self.ask(stage, item, work, expert, shortened.get(&item));
            stage.busy_ms += milliseconds(begun);
            self.settle(stage, item, result)?;
        }
        Ok(())
    }

    /// A step whose expert chooses a route for each item.
    pub(super) fn routes(
        &mut self,
        stage: &mut Stage<'_>,
        work: &Route,
        ask: &Ask,
        pending: Vec<usize>,
        residency: &mut Residency,
    ) -> Result<()> {
        let (pending, shortened) = self.fitting(stage, ask, pending, residency)?;
        for item in pending {
            self.stop_if_cancelled()?;
            let expert = self.load(&ask.expert, residency)?;
            let begun = Instant::now();
            let result = self.choose(stage, item, work, ask, expert, shortened.get(&item));
            stage.busy_ms += milliseconds(begun);
            self.settle(stage, item, result)?;
        }
        Ok(())
    }

    fn choose(
        &mut self,
        stage: &Stage<'_>,
        item: usize,
        work: &Route,
        ask: &Ask,
        expert: &mut dyn Loaded,
        shortened: Option<&Shortened>,
    ) -> Result<ItemResult> {
        let messages = self.messages(stage, item, ask, shortened)?;
        let form = Form::Schema(route::schema(&work.routes));
        let question = Question { form, ..Question::of(ask, &messages) };
        let answer = self.generate(stage, item, expert, &question)?;
        let mut result = stage.result(item);
        result.note_answer(&answer, expert);
        result.cut = shortened.map(|shortened| shortened.cut.clone());
        match route::named(&work.routes, &answer.text) {
            Some(route) => route.clone_into(&mut result.output),
            None => {
                let said: String = answer.text.chars().take(80).collect();
                result.objections = vec![format!("its answer is none of the routes: {said}")];
                result.output.clone_from(&work.default);
            }
        }
        Ok(result)
    }

    /// Asks an expert, and again with the objections while the answer does not satisfy the schema.
    fn ask(
        &mut self,
        stage: &Stage<'_>,
        item: usize,
        work: &Generate,
        expert: &mut dyn Loaded,
        shortened: Option<&Shortened>,
    ) -> Result<ItemResult> {
        let mut messages = self.messages(stage, item, &work.ask, shortened)?;
        let mut result = stage.result(item);
        result.cut = shortened.map(|shortened| shortened.cut.clone());
        for attempt in 1..=work.repairs + 1 {
            let question = Question { form: work.form(), ..Question::of(&work.ask, &messages) };
            let answer = self.generate(stage, item, expert, &question)?;
            result.note_answer(&answer, expert);
            let objections = objections_to(&answer, work);
            if objections.is_empty() {
                result.output = answer.text;
                return Ok(result);
            }
            if attempt > work.repairs {
                let reasons = objections.join("; ");
                return Err(stage.failed(
                    item,
                    format!(
                        "the answer does not satisfy the schema after {attempt} attempts: {reasons}; it was: {}",
                        answer.text
                    ),
                ));
            }
            messages.push(Message::new("assistant", answer.text));
            messages.push(Message::new("user", again(&objections)));
            let (step, attempt) = (stage.step.name.clone(), attempt + 1);
            self.observer.observe(Event::Repair { step, item, attempt, objections });
        }
        Err(stage.failed(item, "no attempt was made"))
    }

    /// The messages of a step for an item: system, if there is one, and user.
    pub(super) fn messages(
        &self,
        stage: &Stage<'_>,
        item: usize,
        ask: &Ask,
        shortened: Option<&Shortened>,
    ) -> Result<Vec<Message>> {
        let instead = shortened.map(|shortened| (shortened.part, shortened.text.as_str()));
        let render = |template| {
            let rendered = self.render(template, stage.index, item, instead, &[]);
            rendered.map_err(|reason| stage.failed(item, reason))
        };
        let mut messages = Vec::new();
        if let Some(system) = &ask.system {
            messages.push(Message::new("system", render(system)?));
        }
        messages.push(Message::new("user", render(&ask.prompt)?));
        Ok(messages)
    }

    /// One answer of an expert, within its time.
    pub(super) fn generate(
        &mut self,
        stage: &Stage<'_>,
        item: usize,
        expert: &mut dyn Loaded,
        question: &Question<'_>,
    ) -> Result<Generated> {
        let name = &stage.step.name;
        let request = Request {
            prompt: Prompt::Chat(question.messages.to_vec()),
            sampling: question.sampling.clone(),
            stop: question.stop.to_vec(),
            form: question.form.clone(),
        };
        let begun = Instant::now();
        let mut is_late = false;
        let answer = expert.generate(&request, &mut |progress| {
            let step = name.clone();
            match progress {
                Progress::Prompt { done: done_tokens, total: total_tokens } => {
                    self.observer.observe(Event::Prompt { step, item, done_tokens, total_tokens });
                }
                Progress::Text(text) if text.is_empty() || !question.is_shown => {}
                Progress::Text(text) => {
                    self.observer.observe(Event::Text { step, item, text: text.to_owned() })
                }
            }
            is_late = question.timeout.is_some_and(|timeout| begun.elapsed() > timeout);
            if is_late || (self.cancelled)() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        match answer {
            Ok(answer) if answer.finish == Finish::Cancelled && is_late => {
                let seconds = question.timeout.unwrap_or_default().as_secs_f64();
                let n = answer.output_tokens;
                Err(stage.failed(
                    item,
                    format!("there was no whole answer within {seconds} s (timeout): {n} tokens of it"),
                ))
            }
            Ok(answer) if answer.finish == Finish::Cancelled => Err(Error::Cancelled),
            Ok(answer) => Ok(answer),
            Err(Error::Cancelled) => Err(Error::Cancelled),
            Err(error) => {
                let way_out = error.hint().map_or_else(String::new, |hint| format!("; {hint}"));
                Err(stage.failed(item, format!("{error}{way_out}")))
            }
        }
    }
}

impl<'q> Question<'q> {
    /// A step's own question, in plain text.
    pub(super) fn of(ask: &'q Ask, messages: &'q [Message]) -> Self {
        Self {
            messages,
            sampling: &ask.sampling,
            stop: &ask.stop,
            form: Form::Text,
            timeout: ask.timeout,
            is_shown: true,
        }
    }
}

impl Generate {
    /// The form that its answers have.
    pub(super) fn form(&self) -> Form {
        self.schema.as_ref().map_or(Form::Text, |schema| Form::Schema(schema.value.clone()))
    }
}

impl ItemResult {
    /// Adds what an answer took.
    fn note_answer(&mut self, answer: &Generated, expert: &dyn Loaded) {
        self.attempts += 1;
        self.expert = Some(expert.card().name.clone());
        self.finish = Some(answer.finish);
        self.prompt_tokens += answer.prompt_tokens;
        self.output_tokens += answer.output_tokens;
        self.prompt_ms += answer.prompt_ns as f64 / 1e6;
        self.decode_ms += answer.decode_ns as f64 / 1e6;
    }
}

fn objections_to(answer: &Generated, work: &Generate) -> Vec<String> {
    let Some(schema) = &work.schema else { return Vec::new() };
    let mut objections = rules::objections(&answer.text, Some(schema), None);
    if answer.finish == Finish::Length && !objections.is_empty() {
        objections.push(format!("the answer was cut after {} tokens", answer.output_tokens));
    }
    objections
}

fn again(objections: &[String]) -> String {
    format!("That answer is not valid.\n- {}\nAnswer again, with valid JSON alone.", objections.join("\n- "))
}
