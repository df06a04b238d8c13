//! The table of `tune eval`: one column a contender, one row a figure, and what of the differences is noise.

use crate::show;
use crate::terminal::Terminal;
use trainer::comparison::{Exchange, Figures, Mean, NOISE, Rate, Report};

/// Prints the table on standard output, what it means on standard error.
pub fn show(report: &Report, terminal: &mut Terminal) {
    for line in lines(report) {
        terminal.result(&line);
    }
}

fn lines(report: &Report) -> Vec<String> {
    let mut lines = table("", &report.figures);
    for difference in &report.differences {
        lines.push(String::new());
        let pair = format!("{} against {}", difference.name, difference.from);
        if let Some(loss) = &difference.loss {
            let change = format!("{:+.4}{}", loss.value, within(loss, 4));
            lines.push(format!("{pair}: loss {change}, {}", verdict(difference.loss_p, loss.value < 0.0)));
        }
        for (what, exchange) in
            [("exact match", difference.exact_match), ("equal JSON", difference.equal_json)]
        {
            if let Some(exchange) = exchange {
                lines.push(format!("{pair}: {what} {}", exchanged(&exchange)));
            }
        }
    }
    for group in &report.groups {
        lines.push(String::new());
        lines.extend(table(
            &format!("{} ({} rows)", group.name, show::count(group.rows as u64)),
            &group.figures,
        ));
    }
    lines
}

fn exchanged(exchange: &Exchange) -> String {
    format!(
        "{:+.1} points, {} rows won and {} lost, {}",
        exchange.points(),
        exchange.won,
        exchange.lost,
        verdict(Some(exchange.p), exchange.won > exchange.lost)
    )
}

fn verdict(p: Option<f64>, is_better: bool) -> String {
    match p {
        None => "one row tells nothing".to_owned(),
        Some(p) if p >= NOISE => format!("within noise (p = {p:.2})"),
        Some(p) => {
            let p = if p < 0.001 { "p < 0.001".to_owned() } else { format!("p = {p:.3}") };
            format!("{} ({p})", if is_better { "better" } else { "worse" })
        }
    }
}

/// A line a figure that any contender has; the first line names them.
fn table(title: &str, columns: &[Figures]) -> Vec<String> {
    let mut rows: Vec<(&str, Vec<String>)> = vec![(title, columns.iter().map(|c| c.name.clone()).collect())];
    let mut add = |name, cell: &dyn Fn(&Figures) -> Option<String>| {
        let cells: Vec<_> = columns.iter().map(cell).collect();
        if cells.iter().any(Option::is_some) {
            rows.push((name, cells.into_iter().map(|cell| cell.unwrap_or_else(|| "—".into())).collect()));
        }
    };
    add("loss", &|c| c.loss.as_ref().map(|loss| mean(loss, 4)));
    add("perplexity", &|c| c.perplexity.as_ref().map(|perplexity| mean(perplexity, 3)));
    add("exact match", &|c| c.exact_match.as_ref().map(rate));
    add("valid JSON", &|c| c.valid_json.as_ref().map(rate));
    add("same keys", &|c| c.same_keys.as_ref().map(rate));
    add("equal JSON", &|c| c.equal_json.as_ref().map(rate));
    add("fields right", &|c| c.right_fields.map(|share| mean(&share.map(|share| 100.0 * share), 1) + " %"));
    add("answers that end", &|c| c.ended.as_ref().map(rate));
    add("answer tokens", &|c| c.answer_tokens.as_ref().map(|tokens| mean(tokens, 1)));
    let widths: Vec<usize> = (0..columns.len())
        .map(|column| rows.iter().map(|(_, cells)| cells[column].chars().count()).max().unwrap_or(0))
        .collect();
    let first = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let line = |(name, cells): &(&str, Vec<String>)| {
        let cells = cells.iter().zip(&widths).map(|(cell, width)| format!("  {cell:<width$}"));
        format!("{name:<first$}{}", cells.collect::<String>()).trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

fn mean(mean: &Mean, digits: usize) -> String {
    format!("{}{}", number(mean.value, digits), within(mean, digits))
}

fn within(mean: &Mean, digits: usize) -> String {
    mean.interval.map_or_else(String::new, |(low, high)| {
        format!(" [{}, {}]", number(low, digits), number(high, digits))
    })
}

fn number(value: f64, digits: usize) -> String {
    if value.abs() >= 1e6 { format!("{value:.2e}") } else { format!("{value:.digits$}") }
}

fn rate(rate: &Rate) -> String {
    let (low, high) = rate.interval;
    format!("{:.1} % [{:.1}, {:.1}]", 100.0 * rate.share(), 100.0 * low, 100.0 * high)
}
