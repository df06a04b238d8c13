//! SentencePiece vocabularies: pieces with scores, against BPE merges.

use ahash::AHashMap as HashMap;

/// Every way to cut a token into two tokens.
fn halves<'a>(token: &'a str, known: &'a HashMap<&str, u32>) -> impl Iterator<Item = (&'a str, &'a str)> {
    let cuts = token.char_indices().map(|(at, _)| at).skip(1);
    cuts.map(|at| token.split_at(at)).filter(|(l, r)| known.contains_key(l) && known.contains_key(r))
}

/// The merges that scores amount to: a pair joins to the token with the best score.
///
/// `tokens` are those that text may become, with their ids. Pairs of the same token follow each other, the
/// longest left part first, as in Hugging Face's conversion of SentencePiece models.
pub(crate) fn merges_from_scores(tokens: &HashMap<&str, u32>, scores: &[f32]) -> Vec<(String, String)> {
    let score_of = |id: u32| scores.get(id as usize).copied().unwrap_or(0.0);
    let mut merges = Vec::new();
    for (token, &id) in tokens {
        merges.extend(halves(token, tokens).map(|(l, r)| (score_of(id), id, l, r)));
    }
    merges.sort_by(|a, b| {
        let left_length = |merge: &(f32, u32, &str, &str)| merge.2.chars().count();
        b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(left_length(b).cmp(&left_length(a)))
    });
    merges.into_iter().map(|(_, _, l, r)| (l.to_owned(), r.to_owned())).collect()
}

/// The scores that merges amount to: 0, -1, -2, ... for tokens in the order in which merging makes them.
///
/// A tokenizer of scores joins *any* two neighbours that spell a token. The outcome is that of the merges only
/// if they name every such pair, and all pairs of a token one after the other.
///
/// # Errors
/// The token for which that is not so.
pub(crate) fn scores_from_merges(
    tokens: &HashMap<&str, u32>,
    merges: &[(&str, &str)],
) -> Result<HashMap<u32, f32>, String> {
    let mut scores = HashMap::new();
    let mut pairs_of: HashMap<u32, usize> = HashMap::new();
    let mut last = None;
    for (left, right) in merges {
        let joined = format!("{left}{right}");
        let Some(&id) = tokens.get(joined.as_str()) else { continue };
        if last != Some(id) && scores.insert(id, -(scores.len() as f32)).is_some() {
            return Err(format!("the merges that make `{joined}` do not follow each other"));
        }
        last = Some(id);
        *pairs_of.entry(id).or_default() += 1;
    }
    for (token, id) in tokens {
        let missing = halves(token, tokens).count() != pairs_of.get(id).copied().unwrap_or(0);
        if missing {
            return Err(format!("`{token}` can be joined from parts that its merges do not name"));
        }
    }
    Ok(scores)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vocabulary() -> HashMap<&'static str, u32> {
        ["a", "b", "c", "ab", "bc", "abc"].into_iter().zip(0..).collect()
    }

    #[test]
    fn scores_become_merges_and_back() {
        let tokens = vocabulary();
        let merges = merges_from_scores(&tokens, &[-9.0, -9.0, -9.0, -2.0, -1.0, -3.0]);
        let pairs: Vec<(&str, &str)> = merges.iter().map(|(l, r)| (l.as_str(), r.as_str())).collect();
        assert_eq!(pairs, [("b", "c"), ("a", "b"), ("ab", "c"), ("a", "bc")]);
        let scores = scores_from_merges(&tokens, &pairs).unwrap();
        assert_eq!(scores, HashMap::from([(4, 0.0), (3, -1.0), (5, -2.0)]));
    }

    #[test]
    fn merges_that_scores_cannot_say_are_refused() {
        let tokens = vocabulary();
        let missing = scores_from_merges(&tokens, &[("b", "c"), ("a", "b"), ("ab", "c")]);
        assert_eq!(missing.unwrap_err(), "`abc` can be joined from parts that its merges do not name");
        let apart = scores_from_merges(&tokens, &[("b", "c"), ("a", "bc"), ("a", "b"), ("ab", "c")]);
        assert_eq!(apart.unwrap_err(), "the merges that make `abc` do not follow each other");
    }
}
