//! Vectors of texts: the last hidden states of a text's tokens, pooled as the model's file says, and brought to length 1.
//!
//! The states come from a context of their own that lives for one call, since the one for answers holds a single row
//! of output. Pooling is done here and not by llama.cpp, whose mean needs a whole text in one piece: a piece of a
//! decoder costs piece x vocabulary floats, as it has logits beside the states.
//!
//! A file without `<architecture>.pooling_type` is a plain decoder. Its mean is what is given: better than its last
//! token where nothing was trained for either, and far from what a model trained for retrieval gives.

use std::ops::ControlFlow;
use std::sync::Arc;

use formats::gguf;

use super::ffi::{Context, Outputs};
use super::session::Session;
use crate::budget::{self, Head, Place};
use crate::card::{ExpertCard, LoadOptions};
use crate::{Error, Result};

/// Bytes of logits that a piece may have beside its states.
const LOGITS_BYTES: usize = 64 << 20;

/// Which states of a text its vector is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pooling {
    Mean,
    First,
    Last,
}

/// What a file says of itself that matters here.
struct Kind {
    pooling: Pooling,
    /// Whether a token sees those after it: then a text can't be read in pieces.
    is_two_way: bool,
}

pub(super) fn embed(
    card: &ExpertCard,
    session: &Session,
    texts: &[String],
    go_on: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<Vec<Vec<f32>>> {
    let name = &card.name;
    let model = session.model();
    let path = card.file().map(|file| file.file.clone()).unwrap_or_default();
    let file = gguf::Reader::open(&path)?;
    let kind = Kind::of(name, file.metadata())?;
    let ids: Vec<Vec<u32>> = texts.iter().map(|text| model.tokenize_whole(text)).collect();
    let longest_tokens = ids.iter().map(Vec::len).max().unwrap_or(0);
    if ids.iter().any(Vec::is_empty) {
        return Err(Error::EmptyPrompt { expert: name.clone() });
    }
    if longest_tokens == 0 {
        return Ok(Vec::new());
    }
    let context_tokens = session.context_tokens();
    if longest_tokens > context_tokens {
        return Err(Error::PromptTooLong {
            expert: name.clone(),
            prompt_tokens: longest_tokens,
            context_tokens,
        });
    }
    let as_u32 = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let piece_tokens = if kind.is_two_way {
        longest_tokens
    } else {
        let of_logits = LOGITS_BYTES / (4 * model.vocabulary_rows().max(1));
        of_logits.clamp(1, longest_tokens).min(card.load.num_batch.max(1) as usize)
    };
    let load =
        LoadOptions { num_ctx: as_u32(longest_tokens), num_batch: as_u32(piece_tokens), ..card.load.clone() };
    check_memory(name, &file, &load)?;
    let made = Context::for_embeddings(Arc::clone(model), load.num_ctx, load.num_batch, &load);
    let (mut context, _) = made.map_err(|reason| Error::Load { expert: name.clone(), path, reason })?;
    context.set_adapters(session.set()).map_err(|reason| session.decode_error(reason))?;
    let mut vectors = Vec::with_capacity(texts.len());
    for ids in &ids {
        let vector = pooled(&mut context, ids, kind.pooling);
        let vector = vector.and_then(normalised).map_err(|reason| session.decode_error(reason))?;
        vectors.push(vector);
        if go_on(vectors.len()).is_break() {
            return Err(Error::Cancelled);
        }
    }
    Ok(vectors)
}

impl Kind {
    fn of(name: &str, metadata: &gguf::Metadata) -> Result<Self> {
        // llama.cpp's numbers, from `enum llama_pooling_type`.
        const NONE: u32 = 0;
        const MEAN: u32 = 1;
        const FIRST: u32 = 2;
        const LAST: u32 = 3;
        let architecture = metadata.get_str("general.architecture").unwrap_or_default();
        let pooling = match metadata.get_u32(&format!("{architecture}.pooling_type")) {
            None | Some(NONE | MEAN) => Pooling::Mean,
            Some(FIRST) => Pooling::First,
            Some(LAST) => Pooling::Last,
            Some(other) => {
                let reason = format!("its pooling type is {other}: it scores pairs of texts");
                return Err(Error::NoEmbedding { expert: name.to_owned(), reason });
            }
        };
        let is_causal = metadata.get(&format!("{architecture}.attention.causal"));
        Ok(Self { pooling, is_two_way: is_causal == Some(&gguf::Value::Bool(false)) })
    }
}

/// The context for vectors comes beside the one for answers, which the expert was let in with.
fn check_memory(name: &str, file: &gguf::Reader, load: &LoadOptions) -> Result<()> {
    let memory = super::measured();
    let place = if memory.devices.is_empty() || load.num_gpu == Some(0) { Place::Main } else { Place::Card };
    let head = Head::of_file(file);
    let mut share = *budget::with_outputs(&head, load, place, u64::from(load.num_batch)).share(place);
    (share.weights_bytes, share.overhead_bytes) = (0, 0);
    let available = budget::Available::now(&memory);
    let free = if place == Place::Card { available.card_bytes } else { available.main_bytes };
    match free {
        Some(free_bytes) if share.total_bytes() > free_bytes => {
            Err(Error::DoesNotFit { expert: name.to_owned(), place, share, free_bytes, remedies: Vec::new() })
        }
        _ => Ok(()),
    }
}

/// The pooled states of a text, summed in f64.
fn pooled(context: &mut Context, ids: &[u32], pooling: Pooling) -> std::result::Result<Vec<f64>, String> {
    context.clear();
    let mut sum = vec![0.0; context.model().width()];
    let piece_tokens = context.batch_tokens();
    for (i, piece) in ids.chunks(piece_tokens).enumerate() {
        context.decode(piece, i * piece_tokens, Outputs::All)?;
        for row in 0..piece.len() {
            let position = i * piece_tokens + row;
            let counts = match pooling {
                Pooling::Mean => true,
                Pooling::First => position == 0,
                Pooling::Last => position + 1 == ids.len(),
            };
            if counts {
                let state =
                    context.hidden_state(row).ok_or_else(|| format!("no state of token {position}"))?;
                sum.iter_mut().zip(state).for_each(|(sum, &x)| *sum += f64::from(x));
            }
        }
    }
    if pooling == Pooling::Mean {
        sum.iter_mut().for_each(|x| *x /= ids.len() as f64);
    }
    Ok(sum)
}

fn normalised(vector: Vec<f64>) -> std::result::Result<Vec<f32>, String> {
    let length = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
    if !(length.is_finite() && length > 0.0) {
        return Err(format!("the vector of a text has length {length}"));
    }
    Ok(vector.into_iter().map(|x| (x / length) as f32).collect())
}
