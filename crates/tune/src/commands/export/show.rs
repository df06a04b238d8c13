//! What an export reports, on the terminal.

use crate::bytes;
use crate::show;
use crate::terminal::Terminal;
use crate::verifier::Prompts;
use std::path::Path;

use exporter::{Event, Figures, GateFigures, Receipt, Request};

/// Tells of an event; of several files, each by its name.
pub fn event(terminal: &mut Terminal, event: &Event, is_one_of_several: bool) {
    let name = |file: &Path| match file.file_name() {
        Some(name) if is_one_of_several => name.to_string_lossy().into_owned(),
        _ => String::new(),
    };
    if terminal.is_json() {
        terminal.json(event);
        return;
    }
    match event {
        Event::Measuring { done, total } => {
            let line = format!("measuring what is important: layer {done}/{total}");
            terminal.progress_on_screen(*done as u64, *total as u64, &line);
        }
        Event::Measured { path, n_tokens, is_new } => {
            let when = if *is_new { "" } else { ", as before" };
            let tokens = show::count(*n_tokens as u64);
            terminal
                .row("matrix", format!("importance measured on {tokens} tokens{when} · {}", path.display()));
        }
        Event::Comparing { done, total } => {
            let line = "comparing with the merged model in 16 bits";
            terminal.progress_on_screen(*done as u64, *total as u64, line);
        }
        Event::Planned {
            file,
            n_tensors,
            n_merged,
            n_important,
            file_bytes,
            kept_bytes,
            free_bytes,
            bits_per_weight,
        } => {
            let name = Some(name(file)).filter(|name| !name.is_empty());
            let name = name.map_or_else(String::new, |name| format!("{name}: "));
            let important = match n_important {
                0 => String::new(),
                n => format!(", {n} by importance"),
            };
            terminal.row(
                "plan",
                format!(
                    "{name}{n_tensors} tensors, {n_merged} merged{important} · {} ({bits_per_weight:.2} bits a weight) · \
                     {} free on the disk",
                    bytes::show(*file_bytes),
                    bytes::show(*free_bytes)
                ),
            );
            if *kept_bytes > 0 {
                let kept = bytes::show(*kept_bytes);
                terminal
                    .more(format!("goes on after {kept}, which an export that was interrupted had written"));
            }
        }
        Event::Tensor { index, n_tensors, name, type_name, written_bytes, file_bytes, seconds } => {
            let pace = pace(*written_bytes, *file_bytes, *seconds);
            let line = format!("{}/{n_tensors} {name} {type_name}{pace}", index + 1);
            terminal.progress_on_screen(*written_bytes, *file_bytes, &line);
        }
        Event::Checking { file } if is_one_of_several => terminal.row("written", name(file)),
        Event::ReadBack { n_rows, seconds } => {
            terminal.row(
                "check",
                format!("read back, {n_rows} rows compared, {} so far", show::seconds(*seconds)),
            );
        }
        Event::Loaded { seconds } => {
            terminal.row("check", format!("llama.cpp loaded it in {}", show::seconds(*seconds)));
        }
        Event::GateRow { index, n_rows, .. } => {
            let line = format!("held-out rows answered by the exported file: {}/{n_rows}", index + 1);
            terminal.progress_on_screen(*index as u64 + 1, *n_rows as u64, &line);
        }
        Event::Gate { figures, adapter } => gate(terminal, figures, *adapter),
        Event::Checking { .. } | Event::Finished { .. } => {}
    }
}

/// How fast the file grows and how long it takes yet; nothing before there is something to judge by.
fn pace(written_bytes: u64, file_bytes: u64, seconds: f64) -> String {
    if seconds < 0.5 || written_bytes == 0 {
        return String::new();
    }
    let rate = written_bytes as f64 / seconds;
    let left = file_bytes.saturating_sub(written_bytes) as f64 / rate;
    format!(" · {}/s · {} left", bytes::show(rate as u64), show::seconds(left))
}

fn gate(terminal: &mut Terminal, figures: &GateFigures, adapter: Option<Figures>) {
    answers(terminal, figures, adapter);
    let Some(fidelity) = &figures.fidelity else { return };
    let parts = [("the expected answers", &fidelity.held_out), ("a general text", &fidelity.general)];
    let mut first = true;
    for (of, divergence) in parts.into_iter().filter_map(|(of, divergence)| Some((of, divergence.as_ref()?)))
    {
        let line = format!(
            "{} nats from the merged model on {} tokens of {of} · same likeliest token {:.1} %",
            show::nats(divergence.mean_kl),
            show::count(divergence.n_tokens as u64),
            100.0 * divergence.top1_share
        );
        if std::mem::take(&mut first) { terminal.row("kl", line) } else { terminal.more(line) }
    }
    let held_out = fidelity.held_out.as_ref();
    if let Some((divergence, retained)) = held_out.and_then(|found| Some((found, found.retained()?))) {
        terminal.row(
            "kept",
            format!(
                "{:.1} % of the adapter's gain: loss {:.4} without it, {:.4} merged in 16 bits, {:.4} as exported",
                100.0 * retained,
                divergence.base_nll.unwrap_or_default(),
                divergence.merged_nll,
                divergence.mean_nll
            ),
        );
    }
}

fn answers(terminal: &mut Terminal, figures: &GateFigures, adapter: Option<Figures>) {
    if figures.n_rows == 0 {
        return;
    }
    terminal.row(
        "match",
        format!("exact match of the exported file: {}", show::share(figures.n_exact, figures.n_rows)),
    );
    if let Some(adapter) = adapter {
        terminal.more(format!(
            "before the export, with the adapter: {}",
            show::share(adapter.n_exact, adapter.n_rows)
        ));
    }
    if let Some(nll) = figures.mean_nll {
        terminal.more(format!(
            "mean loss {nll:.4} over {} tokens · {} answers of {} ended by themselves",
            show::count(figures.n_target_tokens as u64),
            figures.n_stopped,
            figures.n_rows
        ));
    }
}

pub fn warn_of_other_tokenizer(terminal: &mut Terminal, prompts: &Prompts) {
    let (differing, seen) = (prompts.n_differing.get(), prompts.n_seen.get());
    if differing > 0 {
        terminal.warning(format!(
            "llama.cpp's own tokenizer reads {differing} of {seen} prompts otherwise than training did; \
             here the right ids are served, a server that tokenises by itself will be worse at these"
        ));
    }
}

pub fn finished(terminal: &mut Terminal, request: &Request, receipt: &Receipt) {
    let file = request.output.join(request.file_name());
    let types: Vec<String> =
        receipt.types.iter().map(|t| format!("{} {}", t.n_tensors, t.type_name)).collect();
    terminal.row("types", types.join(" · "));
    wrote(terminal, request, receipt);
    terminal.more(format!(
        "{}, {}",
        request.output.join("Modelfile").display(),
        request.output.join("receipt.json").display()
    ));
    terminal.row("next", format!("tune serve {}, or name it in a pipeline", file.display()));
}

pub fn wrote(terminal: &mut Terminal, request: &Request, receipt: &Receipt) {
    terminal.row(
        "wrote",
        format!(
            "{} ({}) in {}",
            request.output.join(request.file_name()).display(),
            bytes::show(receipt.file_bytes),
            show::seconds(receipt.times.total_s)
        ),
    );
}

#[cfg(test)]
mod tests {
    use super::pace;

    #[test]
    fn the_pace_is_told_once_it_is_known() {
        assert_eq!(pace(1 << 20, 3 << 20, 0.2), "");
        assert_eq!(pace(256 << 20, 768 << 20, 2.0), " · 128.0 MiB/s · 4.00 s left");
    }
}
