//! TensorBoard's event files: figures of a run, step by step, as TensorBoard and its like read them.
//!
//! A file is frames ([`frame`]), each with one `Event` of protocol buffers; the first names the version,
//! `brain.Event:2`. Where a run goes on after a stop a new file begins, whose second event says from which step:
//! TensorBoard forgets what it had read of that step and later ones.
//!
//! Sources: tensorflow/core/lib/io/record_writer.cc; tensorboard/compat/proto/event.proto and summary.proto.

mod crc32c;
mod frame;
mod protobuf;

use std::fs::{File, OpenOptions};
use std::io::{BufReader, Write};
use std::path::{Path, PathBuf};

use crate::disk::write_error;
use crate::{Error, Result};
use frame::{Frame, frame, read_frame};
use protobuf::{Field, Fields, Message};

/// The version that every file begins with.
const VERSION: &str = "brain.Event:2";

/// `Event`.
const WALL_TIME: u32 = 1;
const STEP: u32 = 2;
const FILE_VERSION: u32 = 3;
const SUMMARY: u32 = 5;
const SESSION_LOG: u32 = 7;
/// `Summary`, whose values are `Summary.Value`.
const VALUE: u32 = 1;
const TAG: u32 = 1;
const SIMPLE_VALUE: u32 = 2;
/// `SessionLog`.
const STATUS: u32 = 1;
const STATUS_START: u64 = 1;

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Seconds since 1970.
    pub wall_time: f64,
    /// The step that it belongs to.
    pub step: u64,
    /// What it says.
    pub content: Content,
}

/// What an event says.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// The version of the file; its first event.
    Version(String),
    /// Figures under their tags, such as `train/loss`.
    Scalars(Vec<(String, f32)>),
    /// What was said before of this step and later ones no longer holds.
    Start,
    /// Something that is not read here.
    Other,
}

impl Event {
    fn encode(&self) -> Vec<u8> {
        let mut message = Message::default();
        message.double(WALL_TIME, self.wall_time).varint(STEP, self.step);
        match &self.content {
            Content::Version(version) => message.bytes(FILE_VERSION, version.as_bytes()),
            Content::Scalars(scalars) => message.bytes(SUMMARY, &summary(scalars)),
            Content::Start => {
                message.bytes(SESSION_LOG, &Message::default().varint(STATUS, STATUS_START).take())
            }
            Content::Other => &mut message,
        };
        message.take()
    }

    /// `None` when the bytes are no such message.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut event = Self { wall_time: 0.0, step: 0, content: Content::Other };
        for field in Fields(bytes) {
            match field? {
                (WALL_TIME, Field::Fixed64(bits)) => event.wall_time = f64::from_bits(bits),
                (STEP, Field::Varint(step)) => event.step = step,
                (FILE_VERSION, Field::Bytes(text)) => {
                    event.content = Content::Version(String::from_utf8(text.to_vec()).ok()?);
                }
                (SUMMARY, Field::Bytes(summary)) => event.content = Content::Scalars(scalars(summary)?),
                (SESSION_LOG, Field::Bytes(log)) if is_start(log) => event.content = Content::Start,
                _ => {}
            }
        }
        Some(event)
    }
}

fn is_start(session_log: &[u8]) -> bool {
    Fields(session_log).any(|field| field == Some((STATUS, Field::Varint(STATUS_START))))
}

fn summary(scalars: &[(String, f32)]) -> Vec<u8> {
    let mut summary = Message::default();
    for (tag, value) in scalars {
        let value = Message::default().bytes(TAG, tag.as_bytes()).float(SIMPLE_VALUE, *value).take();
        summary.bytes(VALUE, &value);
    }
    summary.take()
}

fn scalars(summary: &[u8]) -> Option<Vec<(String, f32)>> {
    let mut scalars = Vec::new();
    for field in Fields(summary) {
        let (VALUE, Field::Bytes(value)) = field? else { continue };
        let (mut tag, mut number) = (None, None);
        for field in Fields(value) {
            match field? {
                (TAG, Field::Bytes(text)) => tag = Some(String::from_utf8(text.to_vec()).ok()?),
                (SIMPLE_VALUE, Field::Fixed32(bits)) => number = Some(f32::from_bits(bits)),
                _ => {}
            }
        }
        // Values that are no plain numbers, such as pictures, are passed over.
        scalars.extend(tag.zip(number));
    }
    Some(scalars)
}

/// Appends to an event file.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    file: File,
}

impl EventWriter {
    /// Begins a new file.
    ///
    /// # Errors
    /// [`Error::Io`], also when the file is there.
    pub fn create(path: &Path, wall_time: f64) -> Result<Self> {
        let failed = |source| Error::Io { path: path.to_owned(), action: "make", source };
        let file = OpenOptions::new().append(true).create_new(true).open(path).map_err(failed)?;
        let mut writer = Self { path: path.to_owned(), file };
        writer.append(&Event { wall_time, step: 0, content: Content::Version(VERSION.to_owned()) })?;
        Ok(writer)
    }

    /// Appends one event.
    ///
    /// # Errors
    /// [`Error::DiskFull`] or [`Error::Io`].
    pub fn append(&mut self, event: &Event) -> Result<()> {
        // One write a frame: a killed process leaves at most one torn frame, which readers take for the end.
        let frame = frame(&event.encode());
        self.file
            .write_all(&frame)
            .map_err(|source| write_error(&self.path, "append to", frame.len() as u64, source))
    }

    /// Waits until everything is on disk.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|source| write_error(&self.path, "sync", 0, source))
    }
}

/// Reads all events of a file; a torn end is left out.
///
/// # Errors
/// [`Error::Malformed`] where a checksum is wrong or a frame holds no event; [`Error::TooLarge`], [`Error::Io`].
pub fn read(path: &Path) -> Result<Vec<Event>> {
    let mut input = BufReader::new(open(path)?);
    let (mut events, mut at) = (Vec::new(), 0);
    let malformed = |at: u64, expected: &str, actual: &str| Error::Malformed {
        path: path.to_owned(),
        place: format!("the frame at byte {at}"),
        expected: expected.to_owned(),
        actual: actual.to_owned(),
    };
    loop {
        match read_frame(&mut input).map_err(|source| io_error(path, source))? {
            Frame::End | Frame::Torn => return Ok(events),
            Frame::Damaged => return Err(malformed(at, "one with a sound checksum", "damaged")),
            Frame::TooLong(actual) => {
                let place = format!("the frame at byte {at}");
                return Err(Error::TooLarge {
                    path: path.to_owned(),
                    place,
                    limit: frame::MAX_BYTES,
                    actual,
                });
            }
            Frame::Whole(data) => {
                events.push(Event::decode(&data).ok_or_else(|| malformed(at, "an event", "something else"))?);
                at += data.len() as u64 + frame::OVERHEAD_BYTES;
            }
        }
    }
}

/// Cuts a file before its first event that is damaged or of a later step than `last_step`.
///
/// # Errors
/// [`Error::Io`].
pub fn cut_after(path: &Path, last_step: u64) -> Result<()> {
    let mut input = BufReader::new(open(path)?);
    let mut kept_bytes = 0;
    while let Frame::Whole(data) = read_frame(&mut input).map_err(|source| io_error(path, source))? {
        // The event that says where a file begins has the step that is to come.
        let is_kept = Event::decode(&data)
            .is_some_and(|event| event.step <= last_step || event.content == Content::Start);
        if !is_kept {
            break;
        }
        kept_bytes += data.len() as u64 + frame::OVERHEAD_BYTES;
    }
    let failed = |source| Error::Io { path: path.to_owned(), action: "cut back", source };
    let file = OpenOptions::new().write(true).open(path).map_err(failed)?;
    file.set_len(kept_bytes).map_err(failed)
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|source| io_error(path, source))
}

fn io_error(path: &Path, source: std::io::Error) -> Error {
    Error::Io { path: path.to_owned(), action: "read", source }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use proptest::prelude::*;

    use super::*;

    fn scalars(step: u64, loss: f32) -> Event {
        let scalars = vec![("train/loss".to_owned(), loss), ("train/epoch".to_owned(), 0.5)];
        Event { wall_time: 1.5, step, content: Content::Scalars(scalars) }
    }

    fn written(dir: &tempfile::TempDir, events: &[Event]) -> PathBuf {
        let path = dir.path().join("events.out.tfevents.1");
        let mut writer = EventWriter::create(&path, 1.5).unwrap();
        events.iter().for_each(|event| writer.append(event).unwrap());
        writer.sync().unwrap();
        path
    }

    /// The bytes that tensorboard 2.21.0 writes: `scripts/check/tensorboard_reads.py --golden`.
    #[test]
    fn an_event_has_the_bytes_of_tensorboards_own_writer() {
        let hex = |bytes: Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        expect!["3500000000000000d6c55de609000000000000f83f10ac022a270a110a0a747261696e2f6c6f7373150000803e0a120a0b747261696e2f65706f6368150000003f5d5a9fa9"].assert_eq(&hex(frame(&scalars(300, 0.25).encode())));
    }

    #[test]
    fn what_was_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let start = Event { wall_time: 2.0, step: 7, content: Content::Start };
        let events = [start, scalars(7, 1.0), scalars(u64::from(u32::MAX) + 1, f32::MIN_POSITIVE)];
        let path = written(&dir, &events);
        let version = Event { wall_time: 1.5, step: 0, content: Content::Version(VERSION.to_owned()) };
        assert_eq!(read(&path).unwrap(), [&[version], &events[..]].concat());
        assert!(EventWriter::create(&path, 0.0).is_err(), "an existing file is left alone");
    }

    #[test]
    fn a_file_is_cut_after_a_step_and_where_it_is_torn() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(&dir, &[1, 2, 3, 4].map(|step| scalars(step, 1.0)));
        let steps = || read(&path).unwrap().iter().skip(1).map(|event| event.step).collect::<Vec<_>>();
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        assert_eq!(steps(), [1, 2, 3]);
        cut_after(&path, 9).unwrap();
        assert_eq!(steps(), [1, 2, 3]);
        cut_after(&path, 2).unwrap();
        assert_eq!(steps(), [1, 2]);
    }

    #[test]
    fn damage_is_found_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = written(&dir, &[scalars(1, 1.0)]);
        let mut bytes = std::fs::read(&path).unwrap();
        let last = bytes.len() - 5;
        bytes[last] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let error = read(&path).unwrap_err().to_string();
        let shown = error.replace(&dir.path().display().to_string(), "DIR");
        expect![
            "DIR/events.out.tfevents.1: the frame at byte 40 is damaged, expected one with a sound checksum"
        ]
        .assert_eq(&shown);
        let mut long = frame(&[]);
        long[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        let checksum = frame::masked(&u64::MAX.to_le_bytes());
        long[8..12].copy_from_slice(&checksum.to_le_bytes());
        std::fs::write(&path, long).unwrap();
        assert!(matches!(read(&path), Err(Error::TooLarge { actual: u64::MAX, .. })));
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Event::decode(&bytes);
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("events");
            // Framed, so that the message itself is reached too.
            std::fs::write(&path, [frame(&bytes), bytes].concat()).unwrap();
            let _ = read(&path);
            cut_after(&path, 3).unwrap();
            prop_assert!(read(&path).is_ok(), "what is kept is sound");
        }
    }
}
