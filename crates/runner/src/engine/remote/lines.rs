//! The lines of a stream, put together from the pieces that arrive; none longer than a bound.

/// Gathers bytes and gives whole lines.
pub(crate) struct Lines {
    held: Vec<u8>,
    longest: usize,
}

impl Lines {
    pub fn new(longest: usize) -> Self {
        Self { held: Vec::new(), longest }
    }

    /// Takes a piece and gives each line that it ends to `each`, without its end; what `each` breaks with ends it.
    ///
    /// # Errors
    /// A line is longer than the bound, or what `each` says.
    pub fn push<E: From<String>>(
        &mut self,
        mut piece: &[u8],
        each: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while let Some(end) = piece.iter().position(|&byte| byte == b'\n') {
            self.hold(&piece[..end])?;
            piece = &piece[end + 1..];
            let line = std::mem::take(&mut self.held);
            each(line.strip_suffix(b"\r").unwrap_or(&line))?;
        }
        self.hold(piece).map_err(E::from)
    }

    /// The bytes of a line that was not ended.
    pub fn rest(&self) -> &[u8] {
        &self.held
    }

    fn hold(&mut self, bytes: &[u8]) -> Result<(), String> {
        if self.held.len() + bytes.len() > self.longest {
            return Err(format!("a line of the answer is longer than {} bytes", self.longest));
        }
        self.held.extend_from_slice(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(pieces: &[&str], longest: usize) -> (Vec<String>, Result<(), String>, String) {
        let mut lines = Lines::new(longest);
        let mut seen = Vec::new();
        let ended = pieces.iter().try_for_each(|piece| {
            lines.push(piece.as_bytes(), &mut |line| {
                seen.push(String::from_utf8_lossy(line).into_owned());
                Ok::<(), String>(())
            })
        });
        (seen, ended, String::from_utf8_lossy(lines.rest()).into_owned())
    }

    #[test]
    fn lines_are_the_same_however_they_are_cut() {
        let text = "one\r\ntwo\n\nthree";
        let whole = lines(&[text], 16);
        assert_eq!(whole, (vec!["one".into(), "two".into(), String::new()], Ok(()), "three".into()));
        for cut in 0..=text.len() {
            assert_eq!(lines(&[&text[..cut], &text[cut..]], 16), whole, "{cut}");
        }
    }

    #[test]
    fn a_line_without_end_is_refused_at_the_bound() {
        let (seen, ended, _) = lines(&["ok\n", "123", "45", "6"], 5);
        assert_eq!(seen, ["ok"]);
        assert!(ended.unwrap_err().contains("longer than 5 bytes"));
    }
}
