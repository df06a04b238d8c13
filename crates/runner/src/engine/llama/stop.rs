//! Stop texts in a stream: what might be the beginning of one is held back until it is clear.

/// Watches a stream for stop texts.
pub(super) struct StopTexts {
    texts: Vec<String>,
    held: String,
}

/// What a piece of text led to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Watched {
    /// This may be shown; more may come.
    Pass(String),
    /// A stop text was met; this came before it.
    Stop(String),
}

impl StopTexts {
    /// Empty texts are dropped: they would stop everything.
    pub(super) fn new<'a>(texts: impl IntoIterator<Item = &'a String>) -> Self {
        let texts = texts.into_iter().filter(|text| !text.is_empty()).cloned().collect();
        Self { texts, held: String::new() }
    }

    /// Takes a piece of the stream.
    pub(super) fn push(&mut self, piece: &str) -> Watched {
        self.held.push_str(piece);
        let first = self.texts.iter().filter_map(|text| self.held.find(text.as_str())).min();
        if let Some(at) = first {
            self.held.truncate(at);
            return Watched::Stop(std::mem::take(&mut self.held));
        }
        let keep = self.beginning_of_a_stop();
        let rest = self.held.split_off(self.held.len() - keep);
        Watched::Pass(std::mem::replace(&mut self.held, rest))
    }

    /// What was held back, at the end of the stream.
    pub(super) fn finish(self) -> String {
        self.held
    }

    /// Bytes at the end of what is held that a stop text begins with.
    fn beginning_of_a_stop(&self) -> usize {
        let longest = |text: &String| {
            let ends = (1..text.len()).rev().filter(|&n| text.is_char_boundary(n));
            ends.into_iter().find(|&n| self.held.ends_with(&text[..n])).unwrap_or(0)
        };
        self.texts.iter().map(longest).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let stops: Vec<String> = stops.iter().map(|&text| text.to_owned()).collect();
        let mut watch = StopTexts::new(&stops);
        let mut shown = String::new();
        for piece in pieces {
            match watch.push(piece) {
                Watched::Pass(text) => shown.push_str(&text),
                Watched::Stop(text) => return (shown + &text, true),
            }
        }
        (shown + &watch.finish(), false)
    }

    #[test]
    fn a_stop_text_over_several_pieces_is_found_and_never_shown() {
        assert_eq!(stream(&["\n\nUser:"], &["Hi.\n", "\nUs", "er: more"]), ("Hi.".to_owned(), true));
    }

    #[test]
    fn a_false_beginning_is_shown_after_all() {
        assert_eq!(stream(&["</s>"], &["a <", "/b> c", " </"]), ("a </b> c </".to_owned(), false));
    }

    #[test]
    fn the_first_of_several_wins_and_characters_stay_whole() {
        assert_eq!(stream(&["éa", "b"], &["xé", "éab"]), ("xé".to_owned(), true));
        assert_eq!(stream(&[""], &["all"]), ("all".to_owned(), false));
    }

    #[test]
    fn text_before_a_beginning_is_not_held_back() {
        let stops = ["STOP".to_owned()];
        let mut watch = StopTexts::new(&stops);
        assert_eq!(watch.push("go on ST"), Watched::Pass("go on ".to_owned()));
        assert_eq!(watch.push("AY"), Watched::Pass("STAY".to_owned()));
    }
}
