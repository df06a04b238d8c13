//! One GGUF file open in llama.cpp at token level: generation's inner loop, and what an export's verification
//! needs.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use formats::gguf;
use text::{Chat, ChatTemplate, Tokenizer};

use super::ffi::{self, Adapter, Context, Model, Outputs};
use super::language::{Language, refuse_doubles};
use super::report::Report;
use super::{sampler, simulate};
use crate::budget::{self, Budget, Head, Place};
use crate::card::{self, LoadOptions};
use crate::engine::{ExpertMemory, check_room, processor};
use crate::{Error, Result};

/// How a session is opened.
#[derive(Debug, Clone, Default)]
pub struct SessionOptions {
    /// Context, batch, threads, types of the cache.
    pub load: LoadOptions,
    /// Whether llama.cpp checks every block of every tensor for NaN and infinities while it loads.
    pub check_tensors: bool,
    /// Whether [`Session::decode_logits`] will be used: the buffer then holds vocabulary x batch logits.
    pub all_logits: bool,
}

/// A model and its context.
pub struct Session {
    name: String,
    context: Context,
    language: Language,
    stop_ids: Vec<u32>,
    report: Report,
    /// Adapters in memory, by the hash of their file: those that are set, and those that were.
    adapters: HashMap<String, LoadedAdapter>,
}

struct LoadedAdapter {
    adapter: Arc<Adapter>,
    bytes: u64,
}

impl Session {
    /// Opens a GGUF file.
    ///
    /// # Errors
    /// [`Error::Processor`], [`Error::Load`] with llama.cpp's own words, [`Error::Text`].
    pub fn open(path: &Path, options: &SessionOptions) -> Result<Self> {
        let name = path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
        Self::open_named(&name, path, options, &mut |_| ControlFlow::Continue(()))
    }

    /// Opens a file for the expert of that name; `progress` may break.
    pub(crate) fn open_named(
        name: &str,
        path: &Path,
        options: &SessionOptions,
        progress: &mut dyn FnMut(f32) -> ControlFlow<()>,
    ) -> Result<Self> {
        processor::check()?;
        ffi::start();
        // Our reader first: it refuses files that would bring the engine down.
        let file = gguf::Reader::open(path)?;
        let kept = Language::kept(file.metadata());
        if kept.is_none() {
            refuse_doubles(name, file.metadata())?;
        }
        let refused = |reason| Error::Load { expert: name.to_owned(), path: path.to_owned(), reason };
        let mut cancelled = false;
        let mut go_on = |part| {
            cancelled |= progress(part).is_break();
            !cancelled
        };
        simulate::check_card(name, path, &options.load)?;
        let part = if options.check_tensors { ffi::Part::AllChecked } else { ffi::Part::All };
        // Of a small model the two readings of the vocabulary, ours and llama.cpp's, are most of the load: at once.
        let (language, loaded) = std::thread::scope(|scope| {
            let read = || kept.map_or_else(|| Language::read(name, file.metadata()), Ok);
            let language = scope.spawn(read);
            let loaded = Model::load(path, options.load.num_gpu, part, &mut go_on);
            (language.join(), loaded)
        });
        let language = language.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let (model, mut lines) = match loaded {
            Err(_) if cancelled => return Err(Error::Cancelled),
            other => other.map_err(refused)?,
        };
        let model = Arc::new(model);
        let n_ctx = context_size(options.load.num_ctx, model.trained_context_tokens());
        let outputs = if options.all_logits { all_logits_rows(model.vocabulary_rows()) } else { 1 };
        let (context, of_context) =
            Context::new(Arc::clone(&model), n_ctx, &options.load, outputs).map_err(refused)?;
        lines.extend(of_context);
        let report = Report::read(&lines, &model, &context);
        let stop_ids = stop_ids(&model, &language);
        let adapters = HashMap::new();
        Ok(Self { name: name.to_owned(), context, language, stop_ids, report, adapters })
    }

    /// What a session over a file takes in main memory, before it is opened.
    ///
    /// # Errors
    /// [`Error::Format`] if the file can't be read.
    pub fn needs(path: &Path, options: &SessionOptions) -> Result<Budget> {
        let head = Head::of_file(&gguf::Reader::open(path)?);
        let vocabulary_rows = usize::try_from(head.vocabulary_tokens()).unwrap_or(usize::MAX / 4);
        let outputs = if options.all_logits { all_logits_rows(vocabulary_rows) } else { 1 };
        Ok(budget::with_outputs(&head, &options.load, Place::Main, u64::from(outputs)))
    }

    /// The tokenizer, rebuilt from the file's metadata.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.language.tokenizer
    }

    /// The file's chat template.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.language.template.as_deref()
    }

    /// Tokens of context.
    pub fn context_tokens(&self) -> usize {
        self.context.context_tokens()
    }

    /// Rows of the vocabulary, padding included.
    pub fn vocabulary_rows(&self) -> usize {
        self.context.model().vocabulary_rows()
    }

    /// Ids that end an answer: what llama.cpp knows as end of generation, and what closes an assistant turn in
    /// the template.
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop_ids
    }

    /// Ids of rendered messages with the generation prompt: what the engine is given for a chat.
    ///
    /// # Errors
    /// [`Error::Text`], or [`Error::Card`] if the file has no template.
    pub fn chat_ids<'a>(&self, chat: impl Into<Chat<'a>>) -> Result<Vec<u32>> {
        let template = self.template().ok_or_else(|| Error::Card {
            expert: self.name.clone(),
            reason: "its file has no chat template, so it can only continue a text".to_owned(),
        })?;
        let ids = text::encode_prompt(self.tokenizer(), template, chat);
        ids.map_err(|source| Error::Text { expert: self.name.clone(), source })
    }

    /// llama.cpp's own tokenizer on a text; `parse_special` makes control tokens of their text. No begin-of-text
    /// token is added.
    pub fn engine_tokenize(&self, text: &str, parse_special: bool) -> Vec<u32> {
        self.context.model().tokenize(text, parse_special)
    }

    /// Greedy continuation from a hard reset: the ids generated, without the stop id that ended it.
    ///
    /// # Errors
    /// [`Error::PromptTooLong`], [`Error::EmptyPrompt`], [`Error::Decode`].
    pub fn greedy(&mut self, prompt: &[u32], stop: &[u32], max_new: usize) -> Result<Vec<u32>> {
        let continued = self.greedy_while(prompt, stop, max_new, &mut || ControlFlow::Continue(()))?;
        Ok(continued.unwrap_or_default().0)
    }

    /// The same, and whether a stop id ended it; `None` when `go_on`, asked after every piece and token, breaks off.
    ///
    /// # Errors
    /// As [`Session::greedy`].
    pub fn greedy_while(
        &mut self,
        prompt: &[u32],
        stop: &[u32],
        max_new: usize,
        go_on: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<Option<(Vec<u32>, bool)>> {
        let continued = self.continue_greedily(prompt, stop, max_new, go_on);
        continued.inspect_err(|_| self.context.wipe())
    }

    fn continue_greedily(
        &mut self,
        prompt: &[u32],
        stop: &[u32],
        max_new: usize,
        go_on: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<Option<(Vec<u32>, bool)>> {
        let ControlFlow::Continue(mut row) = self.read_prompt(prompt, 0, &mut |_| go_on())? else {
            return Ok(None);
        };
        let room = max_new.min(self.context_tokens() - prompt.len());
        let mut ids = Vec::new();
        let mut last = prompt.len() - 1;
        while ids.len() < room {
            let id = sampler::argmax(self.logits(row)?).map_err(|reason| self.decode_error(reason))?;
            if stop.contains(&id) {
                return Ok(Some((ids, true)));
            }
            ids.push(id);
            last += 1;
            if go_on().is_break() {
                return Ok(None);
            }
            if ids.len() < room {
                self.step(id, last)?;
            }
            row = 0;
        }
        Ok(Some((ids, false)))
    }

    /// Decodes a whole sequence from a hard reset; `each` gets every position with its logits, in order, and may
    /// break. Position `i`'s logits predict token `i + 1`.
    ///
    /// # Errors
    /// [`Error::PromptTooLong`] when the sequence is longer than the context, [`Error::Decode`].
    pub fn decode_logits(
        &mut self,
        tokens: &[u32],
        each: &mut dyn FnMut(usize, &[f32]) -> ControlFlow<()>,
    ) -> Result<()> {
        if tokens.is_empty() {
            return Err(Error::EmptyPrompt { expert: self.name.clone() });
        }
        if tokens.len() > self.context_tokens() {
            let (prompt_tokens, context_tokens) = (tokens.len(), self.context_tokens());
            return Err(Error::PromptTooLong { expert: self.name.clone(), prompt_tokens, context_tokens });
        }
        self.context.clear();
        let piece_tokens = self.context.outputs_max();
        for (i, piece) in tokens.chunks(piece_tokens).enumerate() {
            let first = i * piece_tokens;
            let outputs = if piece.len() == 1 { Outputs::Last } else { Outputs::All };
            self.context.decode(piece, first, outputs).map_err(|reason| self.decode_error(reason))?;
            for row in 0..piece.len() {
                if each(first + row, self.logits(row)?).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Natural log-probabilities of tokens 1.. given what stands before each: one fewer than `tokens`.
    ///
    /// # Errors
    /// As [`Session::decode_logits`].
    pub fn log_probs(&mut self, tokens: &[u32]) -> Result<Vec<f64>> {
        let mut log_probs = Vec::with_capacity(tokens.len());
        self.decode_logits(tokens, &mut |i, logits| {
            if let Some(&next) = tokens.get(i + 1) {
                log_probs.push(log_prob(logits, next));
            }
            ControlFlow::Continue(())
        })?;
        Ok(log_probs)
    }

    /// Sets adapters in the stead of those that are set; none of them: the base alone. One that is not in memory yet
    /// is read. Where that fails those stay set that were.
    ///
    /// # Errors
    /// [`Error::Format`] for a broken file, [`Error::Adapter`] with llama.cpp's own words.
    pub fn set_adapters(&mut self, wanted: &[card::Adapter]) -> Result<()> {
        let mut set = Vec::with_capacity(wanted.len());
        for adapter in wanted {
            set.push((self.adapter(adapter)?, adapter.scale));
        }
        self.context.set_adapters(set).map_err(|reason| self.decode_error(reason))
    }

    /// The adapters that are set, with their scales.
    pub(super) fn set(&self) -> Vec<(Arc<Adapter>, f32)> {
        self.context.adapters().to_vec()
    }

    /// Whether an adapter is in memory.
    pub(super) fn holds(&self, adapter: &card::Adapter) -> bool {
        self.adapters.contains_key(&adapter.blake3)
    }

    /// Gives back what adapters take that are not set.
    pub(super) fn forget_unset_adapters(&mut self) {
        // A set one is held by the context too.
        self.adapters.retain(|_, held| Arc::strong_count(&held.adapter) > 1);
    }

    fn adapter(&mut self, wanted: &card::Adapter) -> Result<Arc<Adapter>> {
        if let Some(held) = self.adapters.get(&wanted.blake3) {
            return Ok(Arc::clone(&held.adapter));
        }
        // Our reader first: it refuses files that would bring the engine down.
        gguf::Reader::open(&wanted.file)?;
        let loaded = Adapter::load(self.context.model(), &wanted.file).map_err(|reason| Error::Adapter {
            expert: self.name.clone(),
            path: wanted.file.clone(),
            reason,
        })?;
        let adapter = Arc::new(loaded);
        let held = LoadedAdapter { adapter: Arc::clone(&adapter), bytes: wanted.tensor_bytes };
        self.adapters.insert(wanted.blake3.clone(), held);
        Ok(adapter)
    }

    /// What it takes, adapters in memory included.
    pub fn memory(&self) -> ExpertMemory {
        let adapters: u64 = self.adapters.values().map(|held| held.bytes).sum();
        let of_load = self.report.memory;
        ExpertMemory {
            weights_bytes: of_load.weights_bytes.saturating_add(adapters),
            compute_bytes: self.context.compute_bytes().unwrap_or(of_load.compute_bytes),
            ..of_load
        }
    }

    /// What llama.cpp says of the load.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// The tokenizer, to be read while the session decodes.
    pub(super) fn shared_tokenizer(&self) -> Arc<Tokenizer> {
        Arc::clone(&self.language.tokenizer)
    }

    /// Forgets everything after a failure, the numbers in the cache too.
    pub(super) fn wipe(&mut self) {
        self.context.wipe();
    }

    pub(super) fn model(&self) -> &Arc<Model> {
        self.context.model()
    }

    /// Reads a prompt from a hard reset, in pieces. Gives the row that the last token's logits are in, or breaks.
    ///
    /// The first `shared` tokens are read in pieces of their own and stay for the next prompt that begins with the same:
    /// a piece's last bits depend on its length, so that both are cut at the same place whether it is there or not,
    /// and answers are the same to the bit.
    pub(super) fn read_prompt(
        &mut self,
        prompt: &[u32],
        shared: usize,
        after_piece: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<ControlFlow<(), usize>> {
        check_room(&self.name, prompt.len(), self.context_tokens())?;
        let shared = if (LEAST_SHARED..prompt.len()).contains(&shared) { shared } else { 0 };
        let mut done = 0;
        if self.context.return_to(&prompt[..shared]) {
            done = shared;
        } else {
            self.context.clear();
        }
        self.read_rest(prompt, done, shared, after_piece)
    }

    /// Reads what is new of a prompt: all but what it and what was read and generated before begin with alike, which is told
    /// too.
    pub(super) fn continue_prompt(
        &mut self,
        prompt: &[u32],
        after_piece: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<(ControlFlow<(), usize>, usize)> {
        check_room(&self.name, prompt.len(), self.context_tokens())?;
        let kept = self.context.return_to_beginning_of(prompt);
        Ok((self.read_rest(prompt, kept, 0, after_piece)?, kept))
    }

    fn read_rest(
        &mut self,
        prompt: &[u32],
        mut done: usize,
        shared: usize,
        after_piece: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<ControlFlow<(), usize>> {
        let mut row = 0;
        while done < prompt.len() {
            let end = if done < shared { shared } else { prompt.len() };
            let to = end.min(done + self.context.batch_tokens());
            let outputs = if to == prompt.len() { Outputs::Last } else { Outputs::None };
            let decoded = self.context.decode(&prompt[done..to], done, outputs);
            decoded.map_err(|reason| self.decode_error(reason))?;
            if to == shared {
                self.context.keep_prefix(&prompt[..shared]);
            }
            row = to - done - 1;
            done = to;
            if after_piece(done).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(row))
    }

    /// Decodes one generated token at a position; its logits are then in row 0.
    pub(super) fn step(&mut self, id: u32, position: usize) -> Result<()> {
        self.context.decode(&[id], position, Outputs::Last).map_err(|reason| self.decode_error(reason))
    }

    pub(super) fn logits(&self, row: usize) -> Result<&[f32]> {
        self.context.logits(row).ok_or_else(|| self.decode_error(format!("no logits in row {row}")))
    }

    pub(super) fn decode_error(&self, reason: impl Into<String>) -> Error {
        Error::Decode { expert: self.name.clone(), reason: reason.into() }
    }
}

/// Fewer tokens are read faster with what follows them than in a piece of their own.
const LEAST_SHARED: usize = 64;

/// Rows of logits to hold at once: 64 MiB of them, so that a large vocabulary is read in smaller pieces.
fn all_logits_rows(vocabulary_rows: usize) -> u32 {
    u32::try_from((64 << 20) / (4 * vocabulary_rows.max(1))).unwrap_or(u32::MAX).max(1)
}

/// ln softmax(logits)[id], summed in f64.
fn log_prob(logits: &[f32], id: u32) -> f64 {
    let Some(&logit) = logits.get(id as usize) else { return f64::NEG_INFINITY };
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|&other| (f64::from(other) - max).exp()).sum();
    f64::from(logit) - max - sum.ln()
}

fn stop_ids(model: &Model, language: &Language) -> Vec<u32> {
    let (tokenizer, template) = (&language.tokenizer, language.template.as_deref());
    let rows = u32::try_from(model.vocabulary_rows()).unwrap_or(0);
    let mut ids: Vec<u32> = (0..rows).filter(|&id| model.ends_generation(id)).collect();
    let closing = template.and_then(|template| text::end_of_turn(tokenizer, template).ok());
    ids.extend(closing.into_iter().chain(tokenizer.eos()));
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// What a card's `num_ctx` means: 0 is the smaller of 4096 and what the model was trained on.
pub(super) fn context_size(asked: u32, trained: u32) -> u32 {
    if asked > 0 { asked } else { trained.clamp(1, 4096) }
}
