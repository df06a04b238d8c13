//! What a run replies to whoever started it: for each item, the last answer that was written for it.

use std::collections::HashMap;

use super::event::{ItemResult, State};
use super::step::StepKind;

/// For each item of the last step that writes, the last answer that was written for it, in whichever branch; nothing
/// where there is none, so that lines of input and output stay side by side.
pub fn replies(results: &[ItemResult]) -> Vec<&str> {
    let Some(last) = results.iter().rfind(|result| result.kind == StepKind::Generate) else {
        return Vec::new();
    };
    replies_of(results, results.iter().filter(|result| result.step == last.step).count())
}

/// The same for `n` items: the answers of steps that have so many.
pub(crate) fn replies_of(results: &[ItemResult], n: usize) -> Vec<&str> {
    let mut n_items: HashMap<&str, usize> = HashMap::new();
    for result in results {
        *n_items.entry(&result.step).or_default() += 1;
    }
    let is_answer = |result: &&ItemResult| result.kind == StepKind::Generate && result.state == State::Done;
    let mut replies = vec![""; n];
    for answer in
        results.iter().filter(is_answer).filter(|answer| n_items.get(answer.step.as_str()) == Some(&n))
    {
        if let Some(reply) = replies.get_mut(answer.item) {
            *reply = &answer.output;
        }
    }
    replies
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(step: &str, item: usize, state: State, output: &str) -> ItemResult {
        ItemResult { step: step.to_owned(), item, state, output: output.to_owned(), ..ItemResult::default() }
    }

    #[test]
    fn the_last_answer_of_each_item_in_whichever_branch() {
        let results = [
            result("draft", 0, State::Done, "a"),
            result("draft", 1, State::Done, "b"),
            result("draft", 2, State::Failed, ""),
            result("fix", 0, State::Skipped, ""),
            result("fix", 1, State::Done, "b, fixed"),
            result("fix", 2, State::Skipped, ""),
        ];
        assert_eq!(replies(&results), ["a", "b, fixed", ""]);
        let summed: Vec<_> = results.into_iter().chain([result("sum", 0, State::Done, "all")]).collect();
        assert_eq!(replies(&summed), ["all"]);
        assert!(replies(&[]).is_empty());
    }
}
