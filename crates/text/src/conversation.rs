//! Conversations to token ids, with the mask of what is to be learnt.

use std::ops::Range;

use crate::guard::{self, Marks};
use crate::turns::{Conversation, Turn, Which};
use crate::{ChatTemplate, Error, GenerationPrompt, Message, Result, Tokenizer};

/// Which tokens of a conversation are to be learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrainOn {
    /// Every assistant turn.
    Assistant,
    /// The last assistant turn alone.
    Last,
    /// Every token but the first.
    All,
}

/// A conversation as token ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// The tokens.
    pub ids: Vec<u32>,
    /// Whether token i is to be predicted, so that a loss is taken at position i - 1.
    pub is_target: Vec<bool>,
}

/// Renders and encodes a conversation, and marks its targets: what an assistant says (all that follows the
/// generation prompt) and the token that ends its turn.
///
/// The ids are those of the rendered text as a whole; only control tokens whose text stands in a message are
/// encoded as text.
///
/// # Errors
/// Where the template refuses the conversation, its assistant turns cannot be told apart, or nothing would
/// be a target.
pub fn encode_conversation(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    messages: &[Message],
    train_on: TrainOn,
) -> Result<Encoded> {
    let all = encode(tokenizer, template, messages, GenerationPrompt::Omit)?;
    let mut is_target = match train_on {
        TrainOn::All => vec![true; all.ids.len()],
        TrainOn::Assistant => targets(&all.places, &all.turns(template, messages, Which::All)?),
        TrainOn::Last => targets(&all.places, &all.turns(template, messages, Which::Last)?),
    };
    let mut ids = all.ids;
    if put_bos_in_front(tokenizer, &mut ids) {
        is_target.insert(0, false);
    }
    // The first token is given, never predicted.
    is_target.iter_mut().take(1).for_each(|first| *first = false);
    if !is_target.contains(&true) {
        return Err(Error::NoTarget { reason: "it is rendered to one token or none".to_owned() });
    }
    Ok(Encoded { ids, is_target })
}

/// Encodes a conversation up to where the assistant is to answer. BOS stands in front where the model
/// wants it, once.
///
/// # Errors
/// Where the template refuses the conversation.
pub fn encode_prompt(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    messages: &[Message],
) -> Result<Vec<u32>> {
    let mut ids = encode(tokenizer, template, messages, GenerationPrompt::Add)?.ids;
    put_bos_in_front(tokenizer, &mut ids);
    Ok(ids)
}

/// The token that closes an assistant turn, found from the template's own rendering.
///
/// # Errors
/// Where the template renders no short conversation, or closes the turn with no control token.
pub fn end_of_turn(tokenizer: &Tokenizer, template: &ChatTemplate) -> Result<u32> {
    let messages = [Message::new("user", "Are you there?"), Message::new("assistant", "Yes, I am.")];
    let all = encode(tokenizer, template, &messages, GenerationPrompt::Omit)?;
    let turns = all.turns(template, &messages, Which::Last)?;
    turns.last().map(|turn| turn.end_token).ok_or_else(|| Error::NoTarget { reason: "no turn".to_owned() })
}

/// A rendered conversation with its ids, BOS only where the template has it.
struct Whole {
    text: String,
    marks: Marks,
    ids: Vec<u32>,
    places: Vec<Range<usize>>,
    controls: Vec<(u32, Range<usize>)>,
}

impl Whole {
    fn turns(&self, template: &ChatTemplate, messages: &[Message], which: Which) -> Result<Vec<Turn>> {
        let (text, controls, marks) = (&self.text, &self.controls, self.marks);
        Conversation { template, messages, text, controls, marks }.turns(which)
    }
}

fn encode(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    messages: &[Message],
    prompt: GenerationPrompt,
) -> Result<Whole> {
    let marks = Marks::unused_in(messages, template)?;
    let rendered = guard::render(tokenizer, template, messages, prompt, marks.guard)?;
    let placed = tokenizer.encode_guarded(&rendered.text, &rendered.guarded, marks.guard);
    Ok(Whole {
        text: rendered.text,
        marks,
        ids: placed.ids,
        places: placed.places,
        controls: placed.controls,
    })
}

/// Which tokens lie in a turn, in part at least: a token that a template's space shares with the first word
/// of the answer is what the model has to say first.
fn targets(places: &[Range<usize>], turns: &[Turn]) -> Vec<bool> {
    let mut turns = turns.iter().map(|turn| &turn.range).peekable();
    let lies_in = |place: &Range<usize>, turn: &Range<usize>| {
        place.start < turn.end && (place.end > turn.start || place.is_empty() && place.start == turn.start)
    };
    places
        .iter()
        .map(|place| {
            while turns.next_if(|turn| turn.end <= place.start).is_some() {}
            turns.peek().is_some_and(|turn| lies_in(place, turn))
        })
        .collect()
}

/// Puts BOS in front where the model wants it and the template did not; says whether it did.
fn put_bos_in_front(tokenizer: &Tokenizer, ids: &mut Vec<u32>) -> bool {
    let Some(bos) = tokenizer.bos().filter(|_| tokenizer.adds_bos()) else { return false };
    let missing = ids.first() != Some(&bos);
    if missing {
        ids.insert(0, bos);
    }
    missing
}
