//! Rows on disk to token ids and loss masks, and the order in which they are trained.

pub(crate) mod batches;
pub(crate) mod corpus;
pub(crate) mod dataset;
pub(crate) mod encoder;
pub(crate) mod epoch;
pub(crate) mod order;
pub(crate) mod packed;
pub mod reader;
pub mod row;
pub(crate) mod row_cache;
pub(crate) mod rows;

use text::Conversation;

use crate::error::Result;
use crate::options::Source;
use order::{Random, shuffle};
use reader::{Place, Readers, RowReader};
use row::Row;

/// The first `limit` conversations of a data file, each cut after its last assistant turn.
///
/// These are the rows whose last message is the reference of an exact match; rows of other kinds are passed over.
///
/// # Errors
/// As [`Row::parse`].
pub fn conversations(sources: &[Source], limit: usize) -> Result<Vec<Conversation>> {
    let mut readers = Readers::open(sources)?;
    let mut found = Vec::new();
    while found.len() < limit {
        let Some((source, place, bytes)) = readers.next_row()? else { break };
        found.extend(Row::parse(source, place, &bytes)?.into_conversation().map(up_to_last_answer));
    }
    Ok(found)
}

/// At most `limit` rows of some files, each row as likely as any other, and the same ones each time; in random order.
///
/// # Errors
/// As [`Row::parse`].
pub fn sample(sources: &[Source], limit: usize) -> Result<Vec<Row>> {
    let mut random = Random::new(0, "sample", 0);
    let (mut kept, mut n_seen): (Vec<(usize, Place, Vec<u8>)>, u64) = (Vec::new(), 0);
    for (file, source) in sources.iter().enumerate() {
        let mut reader = RowReader::open(&source.path)?;
        while let Some((place, bytes)) = reader.next_row()? {
            n_seen += 1;
            // Vitter 1985, algorithm R.
            let at = if kept.len() < limit { kept.len() } else { random.below(n_seen) as usize };
            if at == kept.len() && at < limit {
                kept.push((file, place, bytes.to_vec()));
            } else if at < limit {
                kept[at] = (file, place, bytes.to_vec());
            }
        }
    }
    shuffle(&mut kept, &mut random);
    let parse = |(file, place, bytes): &(usize, Place, Vec<u8>)| Row::parse(&sources[*file], *place, bytes);
    kept.iter().map(parse).collect()
}

/// Cuts what follows the last assistant turn; a row without one has been refused before.
pub(crate) fn up_to_last_answer(mut conversation: Conversation) -> Conversation {
    let messages = &mut conversation.messages;
    let end = messages.iter().rposition(|message| message.role == "assistant").map_or(0, |index| index + 1);
    messages.truncate(end);
    conversation
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_spread_over_all_files_and_the_same_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let files: Vec<Source> = (0..2)
            .map(|file| {
                let path = dir.path().join(format!("{file}.jsonl"));
                let rows: Vec<String> =
                    (0..500).map(|row| format!("{{\"text\": \"{}\"}}", 500 * file + row)).collect();
                std::fs::write(&path, rows.join("\n")).unwrap();
                Source::new(path)
            })
            .collect();
        let numbers = |limit| -> Vec<usize> {
            let rows = sample(&files, limit).unwrap().into_iter();
            rows.map(|row| if let Row::Text(text) = row { text.parse().unwrap() } else { panic!() }).collect()
        };
        let found = numbers(100);
        assert_eq!(found, numbers(100));
        let mut distinct = found.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), 100);
        for quarter in 0..4 {
            let n = found.iter().filter(|&&number| number / 250 == quarter).count();
            assert!((10..45).contains(&n), "{n} of quarter {quarter}");
        }
        let mut all = numbers(5000);
        all.sort_unstable();
        assert_eq!(all, (0..1000).collect::<Vec<_>>());
    }
}
