//! Token sequences that a model is run over to be measured: conversations, and a general text that comes with the program.

use text::{ChatTemplate, Conversation, Tokenizer, TrainOn};

use crate::Result;

/// Prose, dialogue, code, numbers, a dozen languages.
const GENERAL: &str = include_str!("../../../datasets/general.txt");

/// Tokens of the longest piece of a text, and of a pass in which short sequences run together.
pub(crate) const LONGEST_PIECE: usize = 512;

/// Tokens, and which of them are looked at when they are predicted.
pub(crate) struct Sequence {
    pub(crate) ids: Vec<u32>,
    pub(crate) is_target: Vec<bool>,
}

/// What a part of the general text is for: a matrix is not judged by what it was measured on.
#[derive(Clone, Copy)]
pub(crate) enum Purpose {
    /// Importance is measured on it.
    Measuring,
    /// A file is compared with the merged model on it.
    Comparing,
}

/// Every second paragraph of the general text, in sequences of at most `longest` tokens and `most` in all.
pub(crate) fn general(tokenizer: &Tokenizer, purpose: Purpose, longest: usize, most: usize) -> Vec<Sequence> {
    let first = match purpose {
        Purpose::Measuring => 0,
        Purpose::Comparing => 1,
    };
    let paragraphs: Vec<&str> = GENERAL.split("\n\n").skip(first).step_by(2).collect();
    text(tokenizer, &paragraphs.join("\n\n"), longest, most)
}

/// The same of any text.
pub(crate) fn text(tokenizer: &Tokenizer, text: &str, longest: usize, most: usize) -> Vec<Sequence> {
    let opening: Vec<u32> = tokenizer.bos().filter(|_| tokenizer.adds_bos()).into_iter().collect();
    let mut ids = tokenizer.encode(text);
    ids.truncate(most);
    let pieces = ids.chunks(longest.saturating_sub(opening.len()).max(1));
    pieces
        .map(|piece| {
            let ids = [&opening[..], piece].concat();
            let is_target = (0..ids.len()).map(|at| at > 0).collect();
            Sequence { ids, is_target }
        })
        .collect()
}

/// Conversations whole, of which the last answer is looked at; those that are longer than `longest` are passed over, and
/// no more are taken than have `most` tokens.
pub(crate) fn conversations(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    rows: &[Conversation],
    longest: usize,
    most: usize,
) -> Result<Vec<Sequence>> {
    let (mut found, mut n_tokens) = (Vec::new(), 0);
    for conversation in rows {
        let encoded = text::encode_conversation(tokenizer, template, conversation, TrainOn::Last)?;
        if encoded.ids.len() > longest {
            continue;
        }
        n_tokens += encoded.ids.len();
        if n_tokens > most && !found.is_empty() {
            break;
        }
        found.push(Sequence { ids: encoded.ids, is_target: encoded.is_target });
    }
    Ok(found)
}
