//! Many short texts in one piece of memory: a vocabulary has hundreds of thousands, a hostile file millions.

use std::ops::Index;

/// A list of texts, which takes their bytes and eight more for each, as a file does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Texts {
    joined: String,
    /// Where each ends.
    ends: Vec<usize>,
}

impl Texts {
    /// Room for so many texts of so many bytes together.
    pub(super) fn with_capacity(texts: usize, bytes: usize) -> Texts {
        Texts { joined: String::with_capacity(bytes), ends: Vec::with_capacity(texts) }
    }

    /// Adds a text at the end.
    pub fn push(&mut self, text: &str) {
        self.joined.push_str(text);
        self.ends.push(self.joined.len());
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The text at an index.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<&str> {
        let end = *self.ends.get(index)?;
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        Some(&self.joined[start..end])
    }

    /// All of them in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        (0..self.len()).map(|index| &self[index])
    }

    /// Each as a string of its own.
    #[must_use]
    pub fn to_strings(&self) -> Vec<String> {
        self.iter().map(str::to_owned).collect()
    }
}

impl Index<usize> for Texts {
    type Output = str;

    fn index(&self, index: usize) -> &str {
        self.get(index).expect("an index below the number of texts")
    }
}

impl<T: AsRef<str>> FromIterator<T> for Texts {
    fn from_iter<I: IntoIterator<Item = T>>(texts: I) -> Texts {
        let mut found = Texts::default();
        texts.into_iter().for_each(|text| found.push(text.as_ref()));
        found
    }
}

impl<T: AsRef<str>> From<Vec<T>> for Texts {
    fn from(texts: Vec<T>) -> Texts {
        texts.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_come_out_as_they_went_in() {
        let texts = Texts::from(vec!["", "a", "", "grün", ""]);
        assert_eq!(texts.iter().collect::<Vec<_>>(), ["", "a", "", "grün", ""]);
        assert_eq!((texts.len(), &texts[3], texts.get(5)), (5, "grün", None));
        assert!(Texts::default().is_empty() && texts != Texts::from(vec!["", "a", "g", "rün", ""]));
    }
}
