//! Conversations to token ids, with the mask of what is to be learnt.

use std::ops::Range;

use crate::guard::{self, Marks};
use crate::turns::{Rendering, Spoken, Which};
use crate::{Chat, ChatTemplate, Error, GenerationPrompt, Message, Result, Tokenizer};

/// Which tokens of a conversation are to be learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrainOn<'a> {
    /// Every assistant turn.
    Assistant,
    /// The last assistant turn alone.
    Last,
    /// The assistant turns from this message on, counted from 0.
    From(usize),
    /// What messages of these roles say.
    Roles(&'a [String]),
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
    /// The turns that are learnt, in order; none where every token is.
    pub turns: Vec<Turn>,
}

/// A stretch of tokens that is learnt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Where it lies in [`Encoded::ids`].
    pub tokens: Range<usize>,
    /// Index of the message that says it, where the template leaves no doubt.
    pub message: Option<usize>,
}

/// Renders and encodes a conversation, and marks its targets: what an assistant says (all that follows the
/// generation prompt) and the token that ends its turn.
///
/// The ids are those of the rendered text as a whole; only control tokens whose text stands in a message are
/// encoded as text.
///
/// # Errors
/// Where the template refuses the conversation, its turns cannot be told apart, or nothing would be a target.
pub fn encode_conversation<'a>(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    chat: impl Into<Chat<'a>>,
    train_on: TrainOn<'_>,
) -> Result<Encoded> {
    let chat = chat.into();
    let all = encode(tokenizer, template, chat, GenerationPrompt::Omit)?;
    let rendering = all.rendering(template, chat);
    let spoken = match train_on {
        TrainOn::All => None,
        TrainOn::Assistant => Some(rendering.turns(Which::All)?),
        TrainOn::Last => Some(rendering.turns(Which::Last)?),
        TrainOn::From(message) => Some(rendering.turns(Which::From(message))?),
        TrainOn::Roles(roles) => Some(of_roles(&rendering, roles)?),
    };
    let (mut is_target, mut turns) = match spoken {
        None => (vec![true; all.ids.len()], Vec::new()),
        Some(spoken) => targets(&all.places, &spoken),
    };
    let mut ids = all.ids;
    if put_bos_in_front(tokenizer, &mut ids) {
        is_target.insert(0, false);
        turns.iter_mut().for_each(|turn| turn.tokens = turn.tokens.start + 1..turn.tokens.end + 1);
    }
    // The first token is given, never predicted.
    is_target.iter_mut().take(1).for_each(|first| *first = false);
    if !is_target.contains(&true) {
        let reason = match train_on {
            TrainOn::Roles(roles) => format!("no message of role {} says anything", roles.join(" or ")),
            _ => "it is rendered to one token or none".to_owned(),
        };
        return Err(Error::NoTarget { reason });
    }
    Ok(Encoded { ids, is_target, turns })
}

fn of_roles(rendering: &Rendering<'_>, roles: &[String]) -> Result<Vec<Spoken>> {
    let is_wanted = |role: &str| roles.iter().any(|wanted| wanted == role);
    let mut spoken = rendering.others(is_wanted)?;
    if is_wanted("assistant") {
        spoken.extend(rendering.turns(Which::All)?);
        spoken.sort_by_key(|turn| turn.range.start);
    }
    Ok(spoken)
}

/// Encodes a conversation up to where the assistant is to answer. BOS stands in front where the model
/// wants it, once.
///
/// # Errors
/// Where the template refuses the conversation.
pub fn encode_prompt<'a>(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    chat: impl Into<Chat<'a>>,
) -> Result<Vec<u32>> {
    let mut ids = encode(tokenizer, template, chat.into(), GenerationPrompt::Add)?.ids;
    put_bos_in_front(tokenizer, &mut ids);
    Ok(ids)
}

/// The token that closes an assistant turn, found from the template's own rendering.
///
/// # Errors
/// Where the template renders no short conversation, or closes the turn with no control token.
pub fn end_of_turn(tokenizer: &Tokenizer, template: &ChatTemplate) -> Result<u32> {
    let messages = [Message::new("user", "Are you there?"), Message::new("assistant", "Yes, I am.")];
    let chat = Chat::from(&messages);
    let all = encode(tokenizer, template, chat, GenerationPrompt::Omit)?;
    let turns = all.rendering(template, chat).turns(Which::Last)?;
    let end = turns.last().and_then(|turn| turn.end_token);
    end.ok_or_else(|| Error::NoTarget { reason: "no turn".to_owned() })
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
    fn rendering<'a>(&'a self, template: &'a ChatTemplate, chat: Chat<'a>) -> Rendering<'a> {
        let (text, controls, marks) = (&self.text, &self.controls, self.marks);
        Rendering { template, chat, text, controls, marks }
    }
}

fn encode(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    chat: Chat<'_>,
    prompt: GenerationPrompt,
) -> Result<Whole> {
    let marks = Marks::unused_in(chat, template)?;
    let rendered = guard::render(tokenizer, template, chat, prompt, marks.guard)?;
    let placed = tokenizer.encode_guarded(&rendered.text, &rendered.guarded, marks.guard);
    Ok(Whole {
        text: rendered.text,
        marks,
        ids: placed.ids,
        places: placed.places,
        controls: placed.controls,
    })
}

/// Which tokens lie in a turn, in part at least (a token that a template's space shares with the first word of the answer
/// is what the model has to say first), and the tokens of each turn.
fn targets(places: &[Range<usize>], spoken: &[Spoken]) -> (Vec<bool>, Vec<Turn>) {
    let lies_in = |place: &Range<usize>, turn: &Range<usize>| {
        place.start < turn.end && (place.end > turn.start || place.is_empty() && place.start == turn.start)
    };
    let mut is_target = vec![false; places.len()];
    let mut turns: Vec<Turn> =
        spoken.iter().map(|turn| Turn { tokens: 0..0, message: turn.message }).collect();
    let mut at = 0;
    for (token, place) in places.iter().enumerate() {
        while spoken.get(at).is_some_and(|turn| turn.range.end <= place.start) {
            at += 1;
        }
        if spoken.get(at).is_some_and(|turn| lies_in(place, &turn.range)) {
            is_target[token] = true;
            let tokens = &mut turns[at].tokens;
            *tokens = if tokens.end == 0 { token..token + 1 } else { tokens.start..token + 1 };
        }
    }
    turns.retain(|turn| turn.tokens.end > 0);
    (is_target, turns)
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
