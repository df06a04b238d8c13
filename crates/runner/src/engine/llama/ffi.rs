//! The few C calls the engine makes, each with its safe wrapper.
//!
//! Straight on the sys crate for models and contexts: the wrapper crate has no way to limit the rows of
//! output, without which the compute buffer holds vocabulary x batch floats (300 MB for a vocabulary of 150,000).
//!
//! Unsafe: raw pointers from llama.cpp. [`Model`], [`Context`] and [`Sampler`] each own theirs and free it once;
//! a context keeps its model alive.
#![allow(unsafe_code)]

mod adapter;
mod prefix;

use std::ffi::{CString, c_void};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::{Arc, OnceLock};

use llama_cpp_sys_2 as sys;

pub(super) use self::adapter::Adapter;
use super::{log, report};
use crate::card::{FlashAttention, KvType, LoadOptions};

/// Starts llama.cpp once for the process.
pub(super) fn start() {
    static STARTED: OnceLock<()> = OnceLock::new();
    STARTED.get_or_init(|| {
        log::install();
        // SAFETY: called once, before any other call but the log's.
        unsafe { sys::llama_backend_init() };
    });
}

/// The weights of a file.
pub(super) struct Model(NonNull<sys::llama_model>);

// SAFETY: llama.cpp models have no thread affinity and are not changed after the load, but for the creation of a
// context and the list of adapters, under the exclusive use of the session that opened the model.
unsafe impl Send for Model {}
// SAFETY: as above.
unsafe impl Sync for Model {}

/// What to load of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Everything.
    All,
    /// Everything, each block checked for NaN and infinities.
    AllChecked,
    /// Vocabulary and architecture alone.
    Vocabulary,
    /// Everything but the data: what would be allocated is only added up.
    Simulated,
}

impl Model {
    /// Loads a file; `progress` returns whether to go on. The error is llama.cpp's own words.
    pub(super) fn load(
        path: &Path,
        num_gpu: Option<u32>,
        part: Part,
        mut progress: &mut dyn FnMut(f32) -> bool,
    ) -> Result<(Self, Vec<(log::Level, String)>), String> {
        unsafe extern "C" fn on_progress(part: f32, data: *mut c_void) -> bool {
            // SAFETY: `data` is the `progress` below, which outlives the load; llama.cpp calls on this thread only.
            let progress = unsafe { &mut *data.cast::<&mut dyn FnMut(f32) -> bool>() };
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| progress(part))).unwrap_or(false)
        }
        let text = path.to_str().ok_or("the path is not valid Unicode")?;
        let text = CString::new(text).map_err(|_| "the path holds a zero byte")?;
        // SAFETY: returns plain values.
        let mut params = unsafe { sys::llama_model_default_params() };
        if let Some(layers) = num_gpu {
            params.n_gpu_layers = i32::try_from(layers).unwrap_or(i32::MAX);
        }
        params.vocab_only = part == Part::Vocabulary;
        params.check_tensors = part == Part::AllChecked;
        if part == Part::Simulated {
            params.no_alloc = true;
            // A mapped file is not counted.
            params.load_mode = sys::LLAMA_LOAD_MODE_NONE;
        }
        params.progress_callback = Some(on_progress);
        params.progress_callback_user_data = std::ptr::from_mut(&mut progress).cast();
        // SAFETY: path and callback data outlive the call.
        let (model, lines) = log::keep(|| unsafe { sys::llama_model_load_from_file(text.as_ptr(), params) });
        match NonNull::new(model) {
            Some(model) => Ok((Self(model), lines)),
            None => Err(log::reason(&lines)),
        }
    }

    /// Bytes of all tensors.
    pub(super) fn weights_bytes(&self) -> u64 {
        // SAFETY: the model is alive.
        unsafe { sys::llama_model_size(self.0.as_ptr()) }
    }

    /// Rows of the vocabulary.
    pub(super) fn vocabulary_rows(&self) -> usize {
        // SAFETY: the vocabulary belongs to the model, which is alive.
        usize::try_from(unsafe { sys::llama_vocab_n_tokens(self.vocabulary()) }).unwrap_or(0)
    }

    /// Numbers of a hidden state.
    pub(super) fn width(&self) -> usize {
        // SAFETY: the model is alive.
        usize::try_from(unsafe { sys::llama_model_n_embd_out(self.0.as_ptr()) }).unwrap_or(0)
    }

    /// Tokens of context the model was trained on.
    pub(super) fn trained_context_tokens(&self) -> u32 {
        // SAFETY: the model is alive.
        u32::try_from(unsafe { sys::llama_model_n_ctx_train(self.0.as_ptr()) }).unwrap_or(0)
    }

    /// Whether llama.cpp takes a token for the end of generation.
    pub(super) fn ends_generation(&self, id: u32) -> bool {
        // SAFETY: ids out of range are checked by llama.cpp's own map of end tokens.
        i32::try_from(id).is_ok_and(|id| unsafe { sys::llama_vocab_is_eog(self.vocabulary(), id) })
    }

    /// llama.cpp's own tokenizer; no begin-of-text token is added.
    pub(super) fn tokenize(&self, text: &str, parse_special: bool) -> Vec<u32> {
        self.ids(text, false, parse_special)
    }

    /// A text as data, with the tokens that the model wants before and after it.
    pub(super) fn tokenize_whole(&self, text: &str) -> Vec<u32> {
        self.ids(text, true, false)
    }

    fn ids(&self, text: &str, add_special: bool, parse_special: bool) -> Vec<u32> {
        let Ok(length) = i32::try_from(text.len()) else { return Vec::new() };
        let mut ids = vec![0; text.len() + 8];
        loop {
            let room = i32::try_from(ids.len()).unwrap_or(i32::MAX);
            // SAFETY: text and ids are valid for the lengths given.
            let n = unsafe {
                sys::llama_tokenize(
                    self.vocabulary(),
                    text.as_ptr().cast(),
                    length,
                    ids.as_mut_ptr(),
                    room,
                    add_special,
                    parse_special,
                )
            };
            match usize::try_from(n) {
                Ok(n) => return ids[..n].iter().filter_map(|&id| u32::try_from(id).ok()).collect(),
                Err(_) if n == i32::MIN => return Vec::new(),
                Err(_) => ids.resize(n.unsigned_abs() as usize, 0),
            }
        }
    }

    fn vocabulary(&self) -> *const sys::llama_vocab {
        // SAFETY: the model is alive.
        unsafe { sys::llama_model_get_vocab(self.0.as_ptr()) }
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: owned, freed once; contexts and samplers hold an `Arc` of it.
        unsafe { sys::llama_model_free(self.0.as_ptr()) };
    }
}

/// Which tokens of a decoded piece get logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outputs {
    /// None: more of the prompt follows.
    None,
    /// The last.
    Last,
    /// Each.
    All,
}

/// A key-value cache with the buffers to compute in.
pub(super) struct Context {
    context: NonNull<sys::llama_context>,
    model: Arc<Model>,
    // Those that are set: llama.cpp has pointers to them.
    adapters: Vec<(Arc<Adapter>, f32)>,
    // As the last layout of the buffers has it, where that is not the first.
    compute_bytes: Option<u64>,
    // The tokens that a prompt may begin with without their being read again.
    prefix: Vec<u32>,
    /// All that the sequence holds.
    held: Vec<u32>,
    batch: Batch,
    outputs_max: u32,
}

// SAFETY: a context has no thread affinity; `&mut self` on every call that changes it keeps it to one thread.
unsafe impl Send for Context {}

/// The arrays one decoded piece is passed in, allocated once.
struct Batch {
    tokens: Vec<sys::llama_token>,
    positions: Vec<sys::llama_pos>,
    n_sequences: Vec<i32>,
    sequences: Vec<*mut sys::llama_seq_id>,
    logits: Vec<i8>,
    // Boxed: `sequences` points at it.
    sequence: Box<sys::llama_seq_id>,
}

impl Batch {
    fn new(n: usize) -> Self {
        let mut sequence = Box::new(0);
        let pointer: *mut sys::llama_seq_id = &raw mut *sequence;
        Self {
            tokens: vec![0; n],
            positions: vec![0; n],
            n_sequences: vec![1; n],
            sequences: vec![pointer; n],
            logits: vec![0; n],
            sequence,
        }
    }
}

impl Context {
    /// A context of `n_ctx` tokens; `outputs_max` rows of logits at once.
    pub(super) fn new(
        model: Arc<Model>,
        n_ctx: u32,
        load: &LoadOptions,
        outputs_max: u32,
    ) -> Result<(Self, Vec<(log::Level, String)>), String> {
        let n_batch = load.num_batch.clamp(1, n_ctx);
        let params = params(&model, n_ctx, n_batch, load, outputs_max.clamp(1, n_batch));
        Self::open(model, params)
    }

    /// A context of `n_ctx` tokens that gives the last hidden state of every token, `piece_tokens` of them at once.
    pub(super) fn for_embeddings(
        model: Arc<Model>,
        n_ctx: u32,
        piece_tokens: u32,
        load: &LoadOptions,
    ) -> Result<(Self, Vec<(log::Level, String)>), String> {
        let mut params = params(&model, n_ctx, piece_tokens, load, piece_tokens);
        params.embeddings = true;
        params.pooling_type = sys::LLAMA_POOLING_TYPE_NONE;
        Self::open(model, params)
    }

    fn open(
        model: Arc<Model>,
        params: sys::llama_context_params,
    ) -> Result<(Self, Vec<(log::Level, String)>), String> {
        // SAFETY: the model is alive, and stays so through the `Arc` kept beside the context.
        let (context, lines) = log::keep(|| unsafe { sys::llama_init_from_model(model.0.as_ptr(), params) });
        match NonNull::new(context) {
            Some(context) => {
                let batch = Batch::new(params.n_batch as usize);
                let (adapters, prefix, held, outputs_max) =
                    (Vec::new(), Vec::new(), Vec::new(), params.n_outputs_max);
                Ok((
                    Self { context, model, adapters, compute_bytes: None, prefix, held, batch, outputs_max },
                    lines,
                ))
            }
            None => Err(log::reason(&lines)),
        }
    }

    /// The model.
    pub(super) fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Tokens it holds.
    pub(super) fn context_tokens(&self) -> usize {
        // SAFETY: the context is alive.
        unsafe { sys::llama_n_ctx(self.context.as_ptr()) as usize }
    }

    /// Tokens that the engine computes at once.
    pub(super) fn piece_tokens(&self) -> u32 {
        // SAFETY: the context is alive.
        unsafe { sys::llama_n_ubatch(self.context.as_ptr()) }
    }

    /// Most tokens of one [`Context::decode`].
    pub(super) fn batch_tokens(&self) -> usize {
        self.batch.tokens.len()
    }

    /// Most rows of logits of one [`Context::decode`].
    pub(super) fn outputs_max(&self) -> usize {
        self.outputs_max as usize
    }

    /// The compute buffer, if it was laid out anew since the context was made.
    pub(super) fn compute_bytes(&self) -> Option<u64> {
        self.compute_bytes
    }

    /// Forgets everything: the hard reset between two generations. What a cell held is not read before it is written
    /// again, so the numbers stay; zeroing them took 20 ms of every prompt at 1,024 tokens of a model of 0.6 B.
    pub(super) fn clear(&mut self) {
        self.reset(false);
    }

    /// The same, and zeroes: after a failure the numbers may be no numbers, and nothing times NaN is NaN.
    pub(super) fn wipe(&mut self) {
        self.reset(true);
    }

    fn reset(&mut self, zeroes: bool) {
        self.prefix.clear();
        self.held.clear();
        // SAFETY: the context is alive.
        unsafe { sys::llama_memory_clear(sys::llama_get_memory(self.context.as_ptr()), zeroes) };
    }

    /// Decodes tokens at positions from `position` on: at most [`Context::batch_tokens`] of them.
    pub(super) fn decode(&mut self, tokens: &[u32], position: usize, outputs: Outputs) -> Result<(), String> {
        let rows = self.model.vocabulary_rows();
        let n = tokens.len();
        if n == 0 || n > self.batch_tokens() {
            return Err(format!("{n} tokens in a piece of at most {}", self.batch_tokens()));
        }
        for (i, &token) in tokens.iter().enumerate() {
            if token as usize >= rows {
                return Err(format!("token {token} is outside the vocabulary of {rows}"));
            }
            self.batch.tokens[i] = i32::try_from(token).map_err(|error| error.to_string())?;
            self.batch.positions[i] = i32::try_from(position + i).map_err(|error| error.to_string())?;
            self.batch.logits[i] =
                i8::from(outputs == Outputs::All || (outputs == Outputs::Last && i + 1 == n));
        }
        debug_assert_eq!(*self.batch.sequence, 0, "the only sequence");
        let batch = sys::llama_batch {
            n_tokens: i32::try_from(n).map_err(|error| error.to_string())?,
            token: self.batch.tokens.as_mut_ptr(),
            embd: std::ptr::null_mut(),
            pos: self.batch.positions.as_mut_ptr(),
            n_seq_id: self.batch.n_sequences.as_mut_ptr(),
            seq_id: self.batch.sequences.as_mut_ptr(),
            logits: self.batch.logits.as_mut_ptr(),
        };
        // SAFETY: every array of the batch is valid for `n` entries during the call; tokens are in the vocabulary.
        let (code, lines) = log::keep(|| unsafe { sys::llama_decode(self.context.as_ptr(), batch) });
        self.compute_bytes = report::compute_bytes(&lines).or(self.compute_bytes);
        // What a piece that failed has left there is not known.
        self.held.truncate(if code == 0 { position } else { 0 });
        match code {
            0 => {
                self.held.extend_from_slice(tokens);
                Ok(())
            }
            1 => Err("the context is full".to_owned()),
            _ => Err(format!("code {code}: {}", log::reason(&lines))),
        }
    }

    /// Logits of token `i` of the last decoded piece, if it had any.
    pub(super) fn logits(&self, i: usize) -> Option<&[f32]> {
        let i = i32::try_from(i).ok()?;
        // SAFETY: the context is alive; llama.cpp checks the index and returns null where there is no output.
        let row = unsafe { sys::llama_get_logits_ith(self.context.as_ptr(), i) };
        if row.is_null() {
            return None;
        }
        // SAFETY: a row has as many floats as the vocabulary rows, and stays until the next decode, which needs
        // `&mut self`.
        Some(unsafe { std::slice::from_raw_parts(row, self.model.vocabulary_rows()) })
    }

    /// The last hidden state of token `i` of the last decoded piece, in a context for embeddings.
    pub(super) fn hidden_state(&self, i: usize) -> Option<&[f32]> {
        let i = i32::try_from(i).ok()?;
        // SAFETY: the context is alive; llama.cpp checks the index and returns null where there is no output.
        let row = unsafe { sys::llama_get_embeddings_ith(self.context.as_ptr(), i) };
        if row.is_null() {
            return None;
        }
        // SAFETY: without pooling a row has the model's width, and stays until the next decode, which needs
        // `&mut self`.
        Some(unsafe { std::slice::from_raw_parts(row, self.model.width()) })
    }
}

/// Parameters of a context; `outputs_max` rows of output at once.
fn params(
    model: &Model,
    n_ctx: u32,
    n_batch: u32,
    load: &LoadOptions,
    outputs_max: u32,
) -> sys::llama_context_params {
    // SAFETY: returns plain values.
    let mut params = unsafe { sys::llama_context_default_params() };
    let n_threads = context_threads(load.num_thread, model.weights_bytes());
    let n_threads = i32::try_from(n_threads).unwrap_or(1);
    params.n_ctx = n_ctx;
    params.n_batch = n_batch;
    params.n_ubatch = n_batch;
    params.n_seq_max = 1;
    params.n_outputs_max = outputs_max;
    params.n_threads = n_threads;
    params.n_threads_batch = n_threads;
    params.type_k = ggml_type(load.kv_type_k);
    params.type_v = ggml_type(load.kv_type_v);
    params.flash_attn_type = match load.flash_attention {
        FlashAttention::Auto if load.kv_type_v.is_quantised() => sys::LLAMA_FLASH_ATTN_TYPE_ENABLED,
        FlashAttention::Auto => sys::LLAMA_FLASH_ATTN_TYPE_AUTO,
        FlashAttention::On => sys::LLAMA_FLASH_ATTN_TYPE_ENABLED,
        FlashAttention::Off => sys::LLAMA_FLASH_ATTN_TYPE_DISABLED,
    };
    // Every generation begins from a hard reset and reads forward, so that a layer with a window never needs what
    // has left it: Gemma 3 of 4 B then holds 334 MiB instead of 1088 MiB at 8,192 tokens.
    params.swa_full = false;
    params.no_perf = true;
    params
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: owned, freed once; the model is still alive, its `Arc` is dropped after.
        unsafe { sys::llama_free(self.context.as_ptr()) };
    }
}

/// A candidate: token, logit, probability.
pub(super) type Candidate = sys::llama_token_data;

/// One of llama.cpp's samplers.
pub(super) struct Sampler {
    sampler: NonNull<sys::llama_sampler>,
    // A grammar reads the vocabulary of its model.
    _model: Option<Arc<Model>>,
}

// SAFETY: a sampler has no thread affinity; every use takes `&mut self`.
unsafe impl Send for Sampler {}

impl Sampler {
    fn own(sampler: *mut sys::llama_sampler, model: Option<Arc<Model>>) -> Option<Self> {
        NonNull::new(sampler).map(|sampler| Self { sampler, _model: model })
    }

    /// Only what a GBNF grammar admits.
    pub(super) fn grammar(model: &Arc<Model>, grammar: &str) -> Option<Self> {
        let grammar = CString::new(grammar).ok()?;
        // SAFETY: the vocabulary lives as long as the model, kept beside the sampler; the texts outlive the call,
        // which catches C++ exceptions.
        let sampler = unsafe {
            sys::llama_rs_sampler_init_grammar(model.vocabulary(), grammar.as_ptr(), c"root".as_ptr())
        };
        Self::own(sampler, Some(Arc::clone(model)))
    }

    /// Penalties on tokens met recently.
    pub(super) fn penalties(rows: usize, last: u32, repeat: f32) -> Option<Self> {
        let rows = i32::try_from(rows).ok()?;
        let last = i32::try_from(last).ok()?;
        // SAFETY: plain values.
        Self::own(unsafe { sys::llama_sampler_init_penalties(rows, last, repeat, 0.0, 0.0) }, None)
    }

    /// The `k` most likely.
    pub(super) fn top_k(k: u32) -> Option<Self> {
        let k = i32::try_from(k).ok()?;
        // SAFETY: plain values.
        Self::own(unsafe { sys::llama_sampler_init_top_k(k) }, None)
    }

    /// The most likely that hold probability `p` together.
    pub(super) fn top_p(p: f32) -> Option<Self> {
        // SAFETY: plain values.
        Self::own(unsafe { sys::llama_sampler_init_top_p(p, 1) }, None)
    }

    /// Those at least `p` times as likely as the most likely.
    pub(super) fn min_p(p: f32) -> Option<Self> {
        // SAFETY: plain values.
        Self::own(unsafe { sys::llama_sampler_init_min_p(p, 1) }, None)
    }

    /// Logits divided by `t`.
    pub(super) fn temperature(t: f32) -> Option<Self> {
        // SAFETY: plain values.
        Self::own(unsafe { sys::llama_sampler_init_temp(t) }, None)
    }

    /// Draws one by probability.
    pub(super) fn draw(seed: u32) -> Option<Self> {
        // SAFETY: plain values.
        Self::own(unsafe { sys::llama_sampler_init_dist(seed) }, None)
    }

    /// Applies it: candidates are changed, reordered or cut; returns the index of the one drawn, if this draws.
    pub(super) fn apply(&mut self, candidates: &mut Vec<Candidate>) -> Option<usize> {
        let mut array = sys::llama_token_data_array {
            data: candidates.as_mut_ptr(),
            size: candidates.len(),
            selected: -1,
            sorted: false,
        };
        // SAFETY: the array is valid for its size; samplers shrink `size` and reorder within, never grow.
        unsafe { sys::llama_sampler_apply(self.sampler.as_ptr(), &raw mut array) };
        debug_assert_eq!(array.data, candidates.as_mut_ptr(), "samplers work in place");
        candidates.truncate(array.size);
        usize::try_from(array.selected).ok()
    }

    /// Tells it which token was chosen.
    pub(super) fn accept(&mut self, id: u32) -> Result<(), String> {
        let id = i32::try_from(id).map_err(|error| error.to_string())?;
        // SAFETY: the sampler is alive; the call catches C++ exceptions.
        match unsafe { sys::llama_rs_sampler_accept(self.sampler.as_ptr(), id) } {
            sys::LLAMA_RS_STATUS_OK => Ok(()),
            code => Err(format!("the sampler refused token {id} (code {code})")),
        }
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        // SAFETY: owned, freed once.
        unsafe { sys::llama_sampler_free(self.sampler.as_ptr()) };
    }
}

/// Threads of a context.  So small a model is computed faster by one thread than several can wait for one another at
/// the end of each operation; on a busy machine that waiting costs a time slice each: scoring and answering 200
/// short rows spent 93 % of its time in it, with two threads for prompts alone.
fn context_threads(asked: u32, weights_bytes: u64) -> u32 {
    const SMALL_BYTES: u64 = 64 << 20;
    if asked == 0 && weights_bytes < SMALL_BYTES { 1 } else { n_threads(asked) }
}

/// Threads to use where a card says 0: one a processor.
pub(super) fn n_threads(asked: u32) -> u32 {
    if asked > 0 {
        return asked.min(512);
    }
    std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(1))
}

fn ggml_type(ty: KvType) -> sys::ggml_type {
    match ty {
        KvType::F32 => sys::GGML_TYPE_F32,
        KvType::F16 => sys::GGML_TYPE_F16,
        KvType::Bf16 => sys::GGML_TYPE_BF16,
        KvType::Q8_0 => sys::GGML_TYPE_Q8_0,
        KvType::Q4_0 => sys::GGML_TYPE_Q4_0,
    }
}
