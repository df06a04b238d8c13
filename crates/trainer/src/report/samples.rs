//! Answers to held-out rows before and after, beside what was expected.

use super::html::Html;
use super::numbers::count;
use crate::course::Course;
use crate::event::Sample;
use crate::record::RunRecord;

/// Longer texts are cut in the page.
const LONGEST_TEXT: usize = 6000;

/// One held-out row with all answers to it, oldest first.
struct Question<'a> {
    prompt: &'a str,
    expected: &'a str,
    answers: Vec<(u64, &'a Sample)>,
}

/// The section; nothing where no answer was kept.
pub fn samples(record: &RunRecord, course: &Course, html: &mut Html) {
    let base = record.base_samples.iter().map(|sample| (0, sample));
    let trained = course.samples.iter().map(|(step, sample)| (*step, sample));
    let questions = questions(base.chain(trained));
    if questions.is_empty() {
        return;
    }
    html.element("section", &[("class", "card")], |html| {
        html.leaf("h2", "", "Answers to held-out rows");
        for question in &questions {
            html.element("div", &[("class", "sample")], |html| question.write(html));
        }
    });
}

fn questions<'a>(answers: impl Iterator<Item = (u64, &'a Sample)>) -> Vec<Question<'a>> {
    let mut questions: Vec<Question> = Vec::new();
    for (step, sample) in answers {
        let same = |question: &&mut Question| {
            question.prompt == sample.prompt && question.expected == sample.expected
        };
        match questions.iter_mut().find(same) {
            Some(question) => question.answers.push((step, sample)),
            None => questions.push(Question {
                prompt: &sample.prompt,
                expected: &sample.expected,
                answers: vec![(step, sample)],
            }),
        }
    }
    questions
}

impl Question<'_> {
    fn write(&self, html: &mut Html) {
        let last = self.answers.iter().rposition(|(step, _)| *step > 0);
        html.element("dl", &[], |html| {
            for (name, shown) in [("asked", self.prompt), ("expected", self.expected)] {
                html.leaf("dt", "", name);
                text(shown, "", html);
            }
            for (index, (step, sample)) in self.answers.iter().enumerate() {
                if *step == 0 {
                    answer("base", sample, html);
                } else if Some(index) == last {
                    answer(&format!("step {}", count(*step)), sample, html);
                }
            }
        });
        let between = || {
            let all = self.answers.iter().enumerate();
            all.filter(|(index, (step, _))| *step > 0 && Some(*index) != last).map(|(_, answer)| answer)
        };
        if between().next().is_some() {
            html.element("details", &[], |html| {
                html.leaf("summary", "", &format!("{} answers on the way", between().count()));
                html.element("dl", &[], |html| {
                    for (step, sample) in between() {
                        answer(&format!("step {}", count(*step)), sample, html);
                    }
                });
            });
        }
    }
}

fn answer(who: &str, sample: &Sample, html: &mut Html) {
    let (class, judged) = if sample.is_match() { ("match", "as expected") } else { ("other", "different") };
    html.element("dt", &[], |html| {
        html.text(who).raw("<br>").leaf("span", "note", judged);
    });
    text(&sample.answer, class, html);
}

fn text(text: &str, class: &'static str, html: &mut Html) {
    html.element("dd", &[], |html| {
        let shown: String = text.chars().take(LONGEST_TEXT).collect();
        // In its own direction, whatever text around it has.
        html.element("pre", &[("class", class), ("dir", "auto")], |html| {
            html.text(if shown.trim().is_empty() { "(nothing)" } else { &shown });
        });
        if shown.len() < text.len() {
            let length = count(text.chars().count() as u64);
            html.leaf("span", "note", &format!("cut here; {length} characters in all"));
        }
    });
}
