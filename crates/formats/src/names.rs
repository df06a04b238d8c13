//! Finding things by name without holding a name twice: names of a hostile file can be most of it.

/// The places of things in the order of their names. The names stay where the things are: each call says how to see
/// the one at a place.
#[derive(Debug)]
pub(crate) struct NameIndex(Vec<u32>);

impl NameIndex {
    /// Sorts `count` places.
    ///
    /// # Errors
    /// The place of a thing whose name one before it has.
    #[allow(clippy::cast_possible_truncation, reason = "a head with so many names is refused by its size")]
    pub(crate) fn new<'a>(count: usize, name: impl Fn(usize) -> &'a str) -> Result<Self, usize> {
        let mut places: Vec<u32> = (0..count).map(|place| place as u32).collect();
        places.sort_unstable_by_key(|&place| (name(place as usize), place));
        let twice = places.windows(2).find(|pair| name(pair[0] as usize) == name(pair[1] as usize));
        match twice {
            Some(pair) => Err(pair[1] as usize),
            None => Ok(Self(places)),
        }
    }

    /// The place of the thing with this name.
    pub(crate) fn find<'a>(&self, wanted: &str, name: impl Fn(usize) -> &'a str) -> Option<usize> {
        let at = self.0.binary_search_by(|&place| name(place as usize).cmp(wanted)).ok()?;
        Some(self.0[at] as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::NameIndex;

    #[test]
    fn names_are_found_and_repeated_ones_refused() {
        let names = ["b", "", "ab", "a"];
        let index = NameIndex::new(names.len(), |place| names[place]).unwrap();
        let found = ["", "a", "ab", "b", "c"].map(|name| index.find(name, |place| names[place]));
        assert_eq!(found, [Some(1), Some(3), Some(2), Some(0), None]);
        let names = ["a", "b", "a", "b"];
        assert_eq!(NameIndex::new(names.len(), |place| names[place]).unwrap_err(), 2);
    }
}
