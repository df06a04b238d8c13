//! Rows on disk to token ids and loss masks, and the order in which they are trained.

pub(crate) mod batches;
pub(crate) mod corpus;
pub(crate) mod dataset;
pub(crate) mod encoder;
pub(crate) mod order;
pub mod reader;
pub mod row;

use std::path::Path;

use text::Message;

use crate::error::Result;
use reader::RowReader;
use row::Row;

/// The first `limit` conversations of a data file, each cut after its last assistant turn.
///
/// These are the rows whose last message is the reference of an exact match; rows of plain text are passed over.
///
/// # Errors
/// As [`Row::parse`].
pub fn conversations(path: &Path, limit: usize) -> Result<Vec<Vec<Message>>> {
    let mut reader = RowReader::open(path)?;
    let mut found = Vec::new();
    while found.len() < limit {
        let Some((place, bytes)) = reader.next_row()? else { break };
        if let Row::Chat(messages) = Row::parse(path, place, bytes)? {
            found.push(up_to_last_answer(messages));
        }
    }
    Ok(found)
}

/// Cuts what follows the last assistant turn; a row without one has been refused before.
pub(crate) fn up_to_last_answer(mut messages: Vec<Message>) -> Vec<Message> {
    let end = messages.iter().rposition(|message| message.role == "assistant").map_or(0, |index| index + 1);
    messages.truncate(end);
    messages
}
