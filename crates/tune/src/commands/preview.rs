//! `tune preview`: rows as the model will see them, what of them is learnt, and figures of all.

use crate::cli::Preview;
use crate::commands::train;
use crate::failure::Failure;
use crate::show;
use crate::terminal::{Shade, Terminal};
use serde_json::json;
use trainer::survey::{Example, Sequence, Statistics, Survey};

/// Bars of the histogram.
const HISTOGRAM_ROWS: usize = 10;
const LONGEST_BAR: usize = 40;

/// Reads all rows as training does, and shows some of them.
pub fn run(arguments: &Preview, terminal: &mut Terminal) -> Result<(), Failure> {
    let (recipe, options) = train::located(&arguments.recipe, terminal)?;
    let survey =
        Survey::open(&options).map_err(|error| train::failure(&error, &arguments.recipe, &recipe))?;
    let (summary, statistics) = (survey.summary(), survey.statistics());
    let examples = match arguments.line {
        None => survey.first(arguments.rows),
        Some(line) => vec![survey.at(line).ok_or_else(|| {
            Failure::new(format!("no row that is trained on begins at line {line}"))
                .hint("it is left out for its length, broken, or the line is within another row")
        })?],
    };
    if terminal.is_json() {
        examples.iter().for_each(|example| terminal.json(&json!({"event": "example", "example": example})));
        terminal.json(&json!({"event": "data", "data": summary, "statistics": statistics}));
        return Ok(());
    }
    for example in &examples {
        show_example(example, arguments.tokens, &survey, terminal);
    }
    train::show_data(&summary, terminal);
    show_statistics(&statistics, terminal);
    Ok(())
}

fn show_example(example: &Example, by_token: bool, survey: &Survey<'_>, terminal: &mut Terminal) {
    for (index, sequence) in example.sequences.iter().enumerate() {
        let which = match (example.sequences.len(), index) {
            (1, _) => "",
            (_, 0) => " · the better answer",
            _ => " · the worse answer",
        };
        let line = format!(
            "{}:{}{which} · {} tokens, {} of them learnt",
            example.path.display(),
            example.line,
            show::count(sequence.n_tokens as u64),
            show::count(sequence.n_targets as u64)
        );
        terminal.row("row", line);
        if by_token { tokens(sequence, survey, terminal) } else { pieces(sequence, terminal) }
    }
}

/// The text as one, what is only given dimmed.
fn pieces(sequence: &Sequence, terminal: &mut Terminal) {
    let shade = |weight: f32| if weight > 0.0 { Shade::Learnt } else { Shade::Given };
    let parts: Vec<(Shade, &str)> =
        sequence.pieces.iter().map(|piece| (shade(piece.weight), piece.text.as_str())).collect();
    terminal.shaded(&parts);
}

/// A line a token: its id, how much it counts, its text.
fn tokens(sequence: &Sequence, survey: &Survey<'_>, terminal: &mut Terminal) {
    for piece in &sequence.pieces {
        for &id in &piece.ids {
            let count = if piece.weight > 0.0 { piece.weight.to_string() } else { "-".into() };
            terminal.result(&format!("{id:>8} {count:>5}  {:?}", survey.token(id)));
        }
    }
}

fn show_statistics(statistics: &Statistics, terminal: &mut Terminal) {
    let tokens = &statistics.tokens;
    let Some((&shortest, &longest)) = tokens.first().zip(tokens.last()) else { return };
    let quantile = |share: f64| tokens[((tokens.len() - 1) as f64 * share).round() as usize];
    terminal.row(
        "length",
        format!(
            "{shortest} to {longest} tokens · half have at most {} · nine of ten {} · 99 of 100 {}",
            quantile(0.5),
            quantile(0.9),
            quantile(0.99)
        ),
    );
    let width = (longest - shortest + 1).div_ceil(HISTOGRAM_ROWS).max(1);
    let mut counts = vec![0_usize; (longest - shortest) / width + 1];
    tokens.iter().for_each(|&length| counts[(length - shortest) / width] += 1);
    let most = counts.iter().copied().max().unwrap_or(1);
    for (index, &count) in counts.iter().enumerate() {
        let first = shortest + index * width;
        let bar = "█".repeat((count * LONGEST_BAR).div_ceil(most));
        terminal.more(format!(
            "{first:>7} to {:<7} {:>9}  {bar}",
            first + width - 1,
            show::count(count as u64)
        ));
    }
    if let Some(fill) = statistics.fill {
        terminal.row("packs", format!("{:.1} % of their tokens are used", 100.0 * fill));
    }
}
