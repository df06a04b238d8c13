//! Several quantisations of one model, made in one pass, and what each is worth.

use super::{failure, refuse_to_replace, show as show_export};
use crate::bytes;
use crate::cli::Export;
use crate::failure::Failure;
use crate::show;
use crate::terminal::Terminal;
use crate::verifier::EngineVerifier;
use exporter::{Divergence, Event, GateFigures, Request};
use model::policy::Quant;
use std::path::PathBuf;

/// What became of one quantisation.
struct Candidate {
    quant: Quant,
    file: PathBuf,
    file_bytes: u64,
    bits_per_weight: f64,
    /// `None` where the export ended before the gate.
    figures: Option<GateFigures>,
    is_refused: bool,
}

/// Exports each into a folder of its name; `budget` is the memory that a loaded model may take.
///
/// # Errors
/// The first that fails, unless they are compared; then only where none is left.
pub fn run(
    arguments: &Export,
    request: &Request,
    (quants, budget): (&[Quant], u64),
    terminal: &mut Terminal,
) -> Result<(), Failure> {
    let quants = if quants.is_empty() { &[request.quant] } else { quants };
    let requests: Vec<Request> = quants.iter().map(|&quant| of(request, quant)).collect();
    for request in &requests {
        refuse_to_replace(&request.output.join(request.file_name()), arguments)?;
    }
    let names: Vec<&str> = quants.iter().map(|quant| quant.name()).collect();
    terminal.row("export", format!("{} as {}, in one pass", request.name, names.join(", ")));
    let verifier = EngineVerifier::new().map_err(|error| Failure::new(error.to_string()))?;
    let mut candidates: Vec<Candidate> = requests.iter().map(Candidate::of).collect();
    let mut current = 0;
    let receipts = exporter::export_each(&requests, &verifier, &mut |event| {
        note(&mut candidates, &mut current, &event);
        show_export::event(terminal, &event, true);
    });
    terminal.clear_bar();
    let receipts = receipts.map_err(|error| failure(&error, &arguments.source))?;
    show_export::warn_of_other_tokenizer(terminal, verifier.prompts());
    let mut refused = Vec::new();
    for ((request, candidate), receipt) in requests.iter().zip(&mut candidates).zip(receipts) {
        match receipt {
            Ok(receipt) => show_export::wrote(terminal, request, &receipt),
            Err(error) => {
                let failure = failure(&error, &arguments.source);
                candidate.is_refused = true;
                let name = candidate.quant.name();
                let of = if failure.message.contains(name) { String::new() } else { format!("{name}: ") };
                terminal.warning(format!("{of}{}", failure.message));
                refused.push(failure);
            }
        }
    }
    if arguments.compare {
        table(terminal, &candidates, budget);
    }
    let none_passed = refused.len() == candidates.len();
    match refused.into_iter().next() {
        Some(first) if !arguments.compare => Err(first),
        Some(_) if none_passed => Err(Failure::new("no quantisation passed").hint("the reasons stand above")),
        _ => Ok(()),
    }
}

fn of(request: &Request, quant: Quant) -> Request {
    Request { quant, output: request.output.join(quant.name()), ..request.clone() }
}

/// Events tell of files one after the other.
fn note(candidates: &mut [Candidate], current: &mut usize, event: &Event) {
    match event {
        Event::Planned { file, file_bytes, bits_per_weight, .. } => {
            if let Some(candidate) = candidates.iter_mut().find(|candidate| candidate.file == *file) {
                (candidate.file_bytes, candidate.bits_per_weight) = (*file_bytes, *bits_per_weight);
            }
        }
        Event::Checking { file } => {
            *current = candidates.iter().position(|candidate| candidate.file == *file).unwrap_or(*current);
        }
        Event::Gate { figures, .. } => candidates[*current].figures = Some(figures.clone()),
        _ => {}
    }
}

fn table(terminal: &mut Terminal, candidates: &[Candidate], budget: u64) {
    let with_rows = candidates.iter().any(|candidate| candidate.held_out().is_some());
    let answers = if with_rows { "  answers: kl     kept    exact" } else { "" };
    let fits = format!("in {}", bytes::show_round(budget));
    terminal.row(
        "compare",
        format!(
            "{:8} {:>10} {:>6} {:>10} {fits:>8}  {:>10} {:>10}{answers}",
            "", "file", "bits", "in memory", "text: kl", "same token"
        ),
    );
    for candidate in candidates {
        terminal.more(candidate.line(budget, with_rows));
    }
}

impl Candidate {
    fn of(request: &Request) -> Candidate {
        Candidate {
            quant: request.quant,
            file: request.output.join(request.file_name()),
            file_bytes: 0,
            bits_per_weight: 0.0,
            figures: None,
            is_refused: false,
        }
    }

    fn held_out(&self) -> Option<&Divergence> {
        self.figures.as_ref()?.fidelity.as_ref()?.held_out.as_ref()
    }

    fn line(&self, budget: u64, with_rows: bool) -> String {
        let unknown = || "-".to_owned();
        let figures = self.figures.as_ref();
        let memory_bytes = figures.and_then(|figures| figures.memory_bytes);
        let memory = memory_bytes.map_or_else(unknown, bytes::show);
        let fits =
            memory_bytes.map_or_else(unknown, |bytes| if bytes <= budget { "fits" } else { "no" }.into());
        let general = figures.and_then(|figures| figures.fidelity.as_ref()?.general.as_ref());
        let kl = |divergence: &Divergence| show::nats(divergence.mean_kl);
        let same = |divergence: &Divergence| format!("{:.1} %", 100.0 * divergence.top1_share);
        let is_planned = self.file_bytes > 0;
        let file = if is_planned { bytes::show(self.file_bytes) } else { unknown() };
        let bits = if is_planned { format!("{:.2}", self.bits_per_weight) } else { unknown() };
        let mut line = format!(
            "{:8} {file:>10} {bits:>6} {memory:>10} {fits:>8}  {:>10} {:>10}",
            self.quant.name(),
            general.map_or_else(unknown, kl),
            general.map_or_else(unknown, same)
        );
        if with_rows {
            let held_out = self.held_out();
            let kept = held_out.and_then(Divergence::retained);
            let exact = figures.filter(|figures| figures.n_rows > 0);
            line += &format!(
                "  {:>11} {:>8} {:>8}",
                held_out.map_or_else(unknown, kl),
                kept.map_or_else(unknown, |kept| format!("{:.1} %", 100.0 * kept)),
                exact.map_or_else(unknown, |figures| {
                    format!("{:.1} %", 100.0 * figures.n_exact as f64 / figures.n_rows as f64)
                })
            );
        }
        if self.is_refused {
            line += "  refused";
        }
        line
    }
}
