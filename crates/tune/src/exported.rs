//! An exported file, run by the engine that serves it: among the contenders of `tune eval`, and as a speaker of `tune chat`.

use crate::failure::Failure;
use model::generate::SamplerOptions;
use runner::card::{CardOptions, Digests, ExpertCard, LoadOptions, Sampling as EngineSampling};
use runner::engine::llama::{LlamaEngine, Session, SessionOptions};
use runner::engine::{Engine, Finish, Form, Loaded, Progress, Prompt, Request};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;
use text::{Chat, Message};
use trainer::chat::{End, Reply, Sampling, Speaker};
use trainer::comparison::{Answer, Contender, HeldOut, Tick};

/// An exported file at token level.
pub struct ExportedFile {
    session: Session,
}

impl ExportedFile {
    /// Loads it for so many tokens, within the budget.
    ///
    /// # Errors
    /// It does not fit, or the engine refuses it.
    pub fn open(file: &Path, n_tokens: usize, budget_bytes: Option<u64>) -> Result<ExportedFile, Failure> {
        // Scores need logits after the last token but one, answers room for one more.
        let load = LoadOptions { num_ctx: u32::try_from(n_tokens + 1)?, ..LoadOptions::default() };
        let options = SessionOptions { load, check_tensors: false, all_logits: true };
        check_budget(file, &options, budget_bytes)?;
        Ok(ExportedFile { session: Session::open(file, &options)? })
    }
}

fn check_budget(file: &Path, options: &SessionOptions, budget_bytes: Option<u64>) -> Result<(), Failure> {
    let needs = Session::needs(file, options)?.main.total_bytes();
    let most = budget_bytes.unwrap_or(u64::MAX);
    if needs <= most {
        return Ok(());
    }
    let shown = crate::bytes::show;
    Err(Failure::new(format!("{} needs {}, the budget leaves {}", file.display(), shown(needs), shown(most)))
        .hint("raise the budget, or leave it out with --only base,adapter"))
}

fn engine(action: &'static str) -> impl Fn(runner::Error) -> trainer::Error {
    move |source| trainer::Error::Engine { action, source: source.into() }
}

impl Contender for ExportedFile {
    fn score(&mut self, row: &HeldOut, tick: &mut Tick<'_>) -> trainer::Result<Option<f64>> {
        if tick(None).is_break() {
            return Ok(None);
        }
        let log_probs = self.session.log_probs(&row.ids).map_err(engine("score"))?;
        let weighed = log_probs.iter().zip(row.weights.iter().skip(1)).filter(|(_, weight)| **weight > 0.0);
        Ok(Some(weighed.map(|(log_prob, &weight)| -f64::from(weight) * log_prob).sum()))
    }

    fn answer(
        &mut self,
        prompts: &[&[u32]],
        max_new_tokens: usize,
        tick: &mut Tick<'_>,
    ) -> trainer::Result<Option<Vec<Answer>>> {
        let stop = self.session.stop_ids().to_vec();
        let mut answers = Vec::with_capacity(prompts.len());
        for (done, prompt) in prompts.iter().enumerate() {
            if tick(Some(done)).is_break() {
                return Ok(None);
            }
            let continued = self.session.greedy_while(prompt, &stop, max_new_tokens, &mut || tick(None));
            let Some((ids, ended)) = continued.map_err(engine("answer"))? else { return Ok(None) };
            answers.push(Answer { text: self.session.tokenizer().decode(&ids), n_tokens: ids.len(), ended });
        }
        Ok(Some(answers))
    }

    fn own_prompt(&mut self, chat: Chat<'_>) -> trainer::Result<Option<Vec<u32>>> {
        self.session.chat_ids(chat).map(Some).map_err(engine("read a prompt"))
    }
}

/// An exported file that talks.
pub struct ExportedSpeaker {
    loaded: Box<dyn Loaded>,
}

impl ExportedSpeaker {
    /// Loads it for so many tokens, within the budget.
    ///
    /// # Errors
    /// It does not fit, has no template, or the engine refuses it.
    pub fn open(
        file: &Path,
        num_ctx: Option<u32>,
        budget_bytes: Option<u64>,
    ) -> Result<ExportedSpeaker, Failure> {
        let mut engine = LlamaEngine::new()?;
        let load = LoadOptions { num_ctx: num_ctx.unwrap_or(0), ..LoadOptions::default() };
        let session = SessionOptions { load: load.clone(), check_tensors: false, all_logits: false };
        check_budget(file, &session, budget_bytes)?;
        let card = ExpertCard::from_file(
            "chat",
            file,
            &CardOptions { load, ..CardOptions::default() },
            Digests::Blake3,
        )?;
        if !card.has_template() {
            return Err(Failure::new(format!(
                "{} has no chat template, so it can only continue a text",
                file.display()
            )));
        }
        Ok(ExportedSpeaker { loaded: engine.load(&card, &mut |_| ControlFlow::Continue(()))? })
    }

    /// The memory that it takes.
    pub fn total_bytes(&self) -> u64 {
        self.loaded.memory().total_bytes()
    }
}

impl Speaker for ExportedSpeaker {
    fn context_tokens(&self) -> usize {
        self.loaded.context_tokens()
    }

    fn prompt_tokens(&self, messages: &[Message]) -> trainer::Result<usize> {
        self.loaded.prompt_tokens(&Prompt::Chat(messages.to_vec())).map_err(engine("read a prompt"))
    }

    fn answer(
        &mut self,
        messages: &[Message],
        sampling: &Sampling,
        heard: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> trainer::Result<Reply> {
        let started = Instant::now();
        let request = Request {
            prompt: Prompt::Chat(messages.to_vec()),
            sampling: engine_sampling(&sampling.sampler, sampling.max_tokens),
            stop: Vec::new(),
            form: Form::Text,
        };
        let mut sink = |progress: Progress<'_>| match progress {
            Progress::Prompt { .. } => heard(""),
            Progress::Text(piece) => heard(piece),
        };
        let (generated, kept_tokens) = match self.loaded.converse(&request, &mut sink) {
            Err(runner::Error::PromptTooLong { prompt_tokens, context_tokens, .. }) => {
                return Err(trainer::Error::ContextFull { prompt_tokens, context_tokens });
            }
            other => other.map_err(engine("answer"))?,
        };
        let is_full = generated.prompt_tokens + generated.output_tokens >= self.context_tokens();
        let prompt_seconds = generated.prompt_ns as f64 / 1e9;
        Ok(Reply {
            end: match generated.finish {
                Finish::Stop => End::Turn,
                Finish::Cancelled => End::Cancelled,
                Finish::Length if is_full => End::Context,
                Finish::Length => End::MaxTokens,
            },
            text: generated.text,
            prompt_tokens: generated.prompt_tokens,
            kept_tokens,
            answer_tokens: generated.output_tokens,
            prompt_seconds,
            answer_seconds: started.elapsed().as_secs_f64() - prompt_seconds,
        })
    }
}

fn engine_sampling(sampler: &SamplerOptions, max_tokens: Option<usize>) -> EngineSampling {
    EngineSampling {
        temperature: sampler.temperature,
        top_k: u32::try_from(sampler.top_k).unwrap_or(u32::MAX),
        top_p: sampler.top_p,
        min_p: sampler.min_p,
        seed: sampler.seed as u32,
        max_tokens: max_tokens.map(|most| u32::try_from(most).unwrap_or(u32::MAX)),
        ..EngineSampling::default()
    }
}
