//! Streams the rows of a data file, JSONL or one JSON array, gzipped or not, with the place of each row.
//!
//! Files are hostile: a row is at most [`MAX_ROW_BYTES`], and nothing but the current row is held in memory.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

use crate::error::{Error, Result};
use crate::options::Source;

/// Longest row; a file without line breaks must not be read into memory whole.
pub const MAX_ROW_BYTES: usize = 16 << 20;

/// Where a row stands in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Line of its first byte, from 1.
    pub line: u64,
    /// Its first byte, counted in what is left when the file is unpacked.
    pub offset: u64,
    /// Its length.
    pub bytes: u32,
}

#[derive(Clone, Copy, PartialEq)]
enum Layout {
    Lines,
    Array,
}

/// Rows of one data file, in order.
pub struct RowReader {
    path: PathBuf,
    input: Box<dyn BufRead>,
    layout: Layout,
    line: u64,
    offset: u64,
    rows: u64,
    row: Vec<u8>,
    is_done: bool,
}

impl RowReader {
    /// Opens a file and finds out whether it is an array or lines.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |source| Error::Io { path: path.into(), source };
        let file = File::open(path).map_err(failed)?;
        if file.metadata().map_err(failed)?.is_dir() {
            return Err(failed(std::io::ErrorKind::IsADirectory.into()));
        }
        let mut reader = Self {
            path: path.into(),
            input: unpacked(file).map_err(failed)?,
            layout: Layout::Lines,
            line: 1,
            offset: 0,
            rows: 0,
            row: Vec::new(),
            is_done: false,
        };
        reader.skip_byte_order_mark()?;
        if reader.skip_blank()? == Some(b'[') {
            reader.take()?;
            reader.layout = Layout::Array;
        }
        Ok(reader)
    }

    /// The next row's place and bytes, `None` at the end.
    ///
    /// # Errors
    /// [`Error::Row`] for a row over [`MAX_ROW_BYTES`], with a NUL byte, or an array that breaks off.
    pub fn next_row(&mut self) -> Result<Option<(Place, &[u8])>> {
        if self.is_done {
            return Ok(None);
        }
        let place = match self.layout {
            Layout::Lines => self.read_line()?,
            Layout::Array => self.read_element()?,
        };
        self.is_done = place.is_none();
        self.rows += 1;
        Ok(place.map(|place| (place, self.row.as_slice())))
    }

    fn read_line(&mut self) -> Result<Option<Place>> {
        if self.skip_blank()?.is_none() {
            return Ok(None);
        }
        let (line, offset) = (self.line, self.offset);
        self.row.clear();
        loop {
            let (path, chunk) = (&self.path, self.input.fill_buf());
            let chunk = chunk.map_err(|source| Error::Io { path: path.clone(), source })?;
            if chunk.is_empty() {
                break;
            }
            let end = chunk.iter().position(|&byte| byte == b'\n');
            let taken = end.unwrap_or(chunk.len());
            check_bytes(&self.path, line, self.row.len(), &chunk[..taken])?;
            self.row.extend_from_slice(&chunk[..taken]);
            self.input.consume(taken);
            self.offset += taken as u64;
            if end.is_some() {
                break;
            }
        }
        self.row.truncate(self.row.trim_ascii_end().len());
        Ok(Some(Place { line, offset, bytes: self.row.len() as u32 }))
    }

    fn read_element(&mut self) -> Result<Option<Place>> {
        match (self.skip_blank()?, self.rows) {
            (Some(b']'), 0) => return self.end_of_array(),
            (_, 0) => {}
            (Some(b','), _) => {
                self.take()?;
                self.skip_blank()?;
            }
            (Some(b']'), _) => return self.end_of_array(),
            (Some(_), _) => return Err(self.fault(self.line, "expected `,` or `]` after a row of the array")),
            (None, _) => return Err(self.fault(self.line, "the array breaks off")),
        }
        let (line, offset) = (self.line, self.offset);
        self.row.clear();
        self.read_value(line)?;
        Ok(Some(Place { line, offset, bytes: self.row.len() as u32 }))
    }

    /// Copies bytes up to the `,` or `]` that ends the value; what lies between is judged by the JSON parser.
    fn read_value(&mut self, line: u64) -> Result<()> {
        let (mut depth, mut in_string, mut is_escaped) = (0_u32, false, false);
        loop {
            let Some(byte) = self.peek()? else {
                return Err(self.fault(line, "the array breaks off in this row"));
            };
            match byte {
                _ if is_escaped => is_escaped = false,
                b'\\' if in_string => is_escaped = true,
                b'"' => in_string = !in_string,
                _ if in_string => {}
                b',' | b']' if depth == 0 => return Ok(()),
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth = depth.saturating_sub(1),
                _ => {}
            }
            check_bytes(&self.path, line, self.row.len(), &[byte])?;
            self.row.push(byte);
            self.take()?;
        }
    }

    fn end_of_array(&mut self) -> Result<Option<Place>> {
        self.take()?;
        match self.skip_blank()? {
            None => Ok(None),
            Some(_) => Err(self.fault(self.line, "something follows the array's end")),
        }
    }

    fn skip_byte_order_mark(&mut self) -> Result<()> {
        let path = &self.path;
        let chunk = self.input.fill_buf().map_err(|source| Error::Io { path: path.clone(), source })?;
        if chunk.starts_with(b"\xEF\xBB\xBF") {
            self.input.consume(3);
            self.offset += 3;
        }
        Ok(())
    }

    /// Skips white space and returns the byte after it, which stays unread.
    fn skip_blank(&mut self) -> Result<Option<u8>> {
        loop {
            match self.peek()? {
                Some(b' ' | b'\t' | b'\r' | b'\n') => self.take()?,
                other => return Ok(other),
            }
        }
    }

    fn peek(&mut self) -> Result<Option<u8>> {
        let path = &self.path;
        let chunk = self.input.fill_buf().map_err(|source| Error::Io { path: path.clone(), source })?;
        Ok(chunk.first().copied())
    }

    fn take(&mut self) -> Result<()> {
        if self.peek()? == Some(b'\n') {
            self.line += 1;
        }
        self.input.consume(1);
        self.offset += 1;
        Ok(())
    }

    fn fault(&self, line: u64, reason: &str) -> Error {
        Error::Row { path: self.path.clone(), line, reason: reason.into() }
    }
}

/// The file's bytes, unpacked where they are gzipped.
fn unpacked(file: File) -> std::io::Result<Box<dyn BufRead>> {
    const GZIP: [u8; 2] = [0x1F, 0x8B];
    let mut packed = BufReader::with_capacity(BUFFER_BYTES, file);
    Ok(match packed.fill_buf()?.starts_with(&GZIP) {
        true => Box::new(BufReader::with_capacity(BUFFER_BYTES, MultiGzDecoder::new(packed))),
        false => Box::new(packed),
    })
}

const BUFFER_BYTES: usize = 1 << 16;

/// Reads some rows again by their places; a gzipped file is gone through once.
///
/// # Errors
/// [`Error::Io`], also when the file has become shorter.
pub fn rows_again(path: &Path, places: &[Place]) -> Result<Vec<Vec<u8>>> {
    let failed = |source| Error::Io { path: path.into(), source };
    if places.is_empty() {
        return Ok(Vec::new());
    }
    let file = File::open(path).map_err(failed)?;
    let mut in_order: Vec<usize> = (0..places.len()).collect();
    in_order.sort_by_key(|&at| places[at].offset);
    let mut rows = vec![Vec::new(); places.len()];
    let mut input = Again::open(file).map_err(failed)?;
    for at in in_order {
        rows[at] = input.read(places[at]).map_err(failed)?;
    }
    Ok(rows)
}

/// A file that is read at places that ascend.
enum Again {
    Plain(File),
    Packed { input: Box<dyn BufRead>, offset: u64, last: Vec<u8> },
}

impl Again {
    fn open(mut file: File) -> std::io::Result<Self> {
        let mut first = [0; 2];
        let is_packed = file.read_exact(&mut first).is_ok() && first == [0x1F, 0x8B];
        file.rewind()?;
        Ok(match is_packed {
            true => Self::Packed { input: unpacked(file)?, offset: 0, last: Vec::new() },
            false => Self::Plain(file),
        })
    }

    fn read(&mut self, place: Place) -> std::io::Result<Vec<u8>> {
        let mut row = vec![0; place.bytes as usize];
        match self {
            Self::Plain(file) => {
                file.seek(SeekFrom::Start(place.offset))?;
                file.read_exact(&mut row)?;
            }
            // The same row once more.
            Self::Packed { offset, last, .. } if *offset > place.offset => row.clone_from(last),
            Self::Packed { input, offset, last } => {
                std::io::copy(&mut input.by_ref().take(place.offset - *offset), &mut std::io::sink())?;
                input.read_exact(&mut row)?;
                *offset = place.offset + u64::from(place.bytes);
                last.clone_from(&row);
            }
        }
        Ok(row)
    }
}

fn check_bytes(path: &Path, line: u64, length: usize, next: &[u8]) -> Result<()> {
    let fault = |reason: String| Err(Error::Row { path: path.into(), line, reason });
    if length + next.len() > MAX_ROW_BYTES {
        return fault(format!("the row is longer than {MAX_ROW_BYTES} bytes"));
    }
    if next.contains(&0) {
        return fault("the row has a NUL byte; is this a text file?".into());
    }
    Ok(())
}

/// The rows of several files, one of each after the other, so that the first ones are of all of them.
pub struct Readers<'a> {
    /// Those that have rows left.
    readers: Vec<(&'a Source, RowReader)>,
    next: usize,
}

impl<'a> Readers<'a> {
    /// Opens all files.
    ///
    /// # Errors
    /// As [`RowReader::open`].
    pub fn open(sources: &'a [Source]) -> Result<Self> {
        let open = |source: &'a Source| Ok((source, RowReader::open(&source.path)?));
        Ok(Self { readers: sources.iter().map(open).collect::<Result<_>>()?, next: 0 })
    }

    /// The next row; `None` after the last of all files.
    ///
    /// # Errors
    /// As [`RowReader::next_row`].
    pub fn next_row(&mut self) -> Result<Option<(&'a Source, Place, Vec<u8>)>> {
        while !self.readers.is_empty() {
            self.next %= self.readers.len();
            let (source, reader) = &mut self.readers[self.next];
            if let Some((place, bytes)) = reader.next_row()? {
                self.next += 1;
                return Ok(Some((*source, place, bytes.to_vec())));
            }
            self.readers.remove(self.next);
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use expect_test::{Expect, expect};

    use super::*;

    fn rows(content: &[u8]) -> String {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        let mut text = String::new();
        let mut places = Vec::new();
        match RowReader::open(file.path()) {
            Err(error) => text += &format!("{error}\n"),
            Ok(mut reader) => loop {
                match reader.next_row() {
                    Ok(None) => break,
                    Ok(Some((place, row))) => {
                        text += &format!("{} {}\n", place.line, String::from_utf8_lossy(row));
                        places.push((place, row.to_vec()));
                    }
                    Err(error) => {
                        text += &format!("{error}\n");
                        break;
                    }
                }
            },
        }
        let (all, rows): (Vec<Place>, Vec<Vec<u8>>) = places.iter().cloned().rev().unzip();
        assert_eq!(rows_again(file.path(), &all).unwrap(), rows);
        for (place, row) in places {
            assert_eq!(rows_again(file.path(), &[place]).unwrap(), [row]);
        }
        text.replace(&file.path().display().to_string(), "FILE")
    }

    fn check(content: &[u8], expected: Expect) {
        expected.assert_eq(&rows(content));
    }

    #[test]
    fn lines_keep_their_numbers_across_blank_ones() {
        check(
            b"\xEF\xBB\xBF{\"a\":1}\r\n\n  {\"a\":[2,\"]\"]}\n\n",
            expect![[r#"
                1 {"a":1}
                3 {"a":[2,"]"]}
            "#]],
        );
    }

    #[test]
    fn a_gzipped_file_reads_as_the_unpacked_one() {
        let pack = |text: &[u8]| {
            let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            packer.write_all(text).unwrap();
            packer.finish().unwrap()
        };
        // Two members, as `cat a.gz b.gz` makes.
        let packed = [pack(b"{\"a\":1}\n\n"), pack(b"{\"a\":2}")].concat();
        check(
            &packed,
            expect![[r#"
            1 {"a":1}
            3 {"a":2}
        "#]],
        );
        let whole = pack(&b"{\"a\":1}\n".repeat(1000));
        let found = rows(&whole[..whole.len() - 9]);
        assert!(found.ends_with("FILE: incomplete deflate stream\n"), "{}", &found[found.len() - 60..]);
    }

    #[test]
    fn the_last_line_needs_no_break() {
        check(
            b"{}\n{\"b\":2}",
            expect![[r#"
            1 {}
            2 {"b":2}
        "#]],
        );
    }

    #[test]
    fn arrays_are_cut_at_their_own_commas() {
        check(
            b"\n[\n {\"a\": \"x,]\\\"\"},\n\n {\"b\": [1, {\"c\": 2}]}\n]\n",
            expect![[r#"
                3 {"a": "x,]\""}
                5 {"b": [1, {"c": 2}]}

            "#]],
        );
    }

    #[test]
    fn empty_files_and_arrays_have_no_rows() {
        check(b"", expect![[""]]);
        check(b" \n", expect![[""]]);
        check(b"[ ]", expect![[""]]);
    }

    #[test]
    fn broken_files_are_named_by_line() {
        check(
            b"{}\n{\"a\":\x001}",
            expect![[r#"
            1 {}
            FILE:2: the row has a NUL byte; is this a text file?
        "#]],
        );
        check(
            b"[{},\n{\"a\": 1",
            expect![[r#"
            1 {}
            FILE:2: the array breaks off in this row
        "#]],
        );
        check(
            b"[{}]\nx",
            expect![[r#"
            1 {}
            FILE:2: something follows the array's end
        "#]],
        );
    }

    #[test]
    fn a_huge_line_is_refused_without_reading_it_whole() {
        let mut content = b"{}\n".to_vec();
        content.resize(MAX_ROW_BYTES + 10, b'x');
        let found = rows(&content);
        assert!(found.ends_with("FILE:2: the row is longer than 16777216 bytes\n"), "{found}");
    }
}
