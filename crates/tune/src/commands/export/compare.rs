//! Several quantisations of one model, and what each is worth.

use super::{failure, one, refuse_to_replace};
use crate::bytes;
use crate::cli::Export;
use crate::failure::Failure;
use crate::show;
use crate::terminal::Terminal;
use exporter::{Divergence, Event, GateFigures, ImportanceSource, Request};
use model::policy::Quant;

/// What became of one quantisation.
struct Candidate {
    quant: Quant,
    file_bytes: u64,
    bits_per_weight: f64,
    /// `None` where the export ended before the gate.
    figures: Option<GateFigures>,
    refusal: Option<String>,
}

/// Exports each into a folder of its name.
///
/// # Errors
/// The first that fails, unless they are compared; then only where none is left.
pub fn run(
    arguments: &Export,
    request: &Request,
    quants: &[Quant],
    terminal: &mut Terminal,
) -> Result<(), Failure> {
    let quants = if quants.is_empty() { &[request.quant] } else { quants };
    let requests: Vec<Request> = quants.iter().map(|&quant| of(request, quant)).collect();
    for request in &requests {
        refuse_to_replace(&request.output.join(request.file_name()), arguments)?;
    }
    let (mut candidates, mut measured) = (Vec::new(), None);
    for mut request in requests {
        // A matrix is of the model, whatever it is quantised to: it is measured once.
        if let Some(path) = measured.clone() {
            request.importance = ImportanceSource::File(path);
        }
        let mut candidate = Candidate {
            quant: request.quant,
            file_bytes: 0,
            bits_per_weight: 0.0,
            figures: None,
            refusal: None,
        };
        let result = one(&request, terminal, &mut |event| match event {
            Event::Planned { file_bytes, bits_per_weight, .. } => {
                (candidate.file_bytes, candidate.bits_per_weight) = (*file_bytes, *bits_per_weight);
            }
            Event::Measured { path, .. } => measured = Some(path.clone()),
            Event::Gate { figures, .. } => candidate.figures = Some(figures.clone()),
            _ => {}
        });
        if let Err(error) = result {
            let failure = failure(&error, &arguments.source);
            if !arguments.compare {
                return Err(failure);
            }
            candidate.refusal = Some(failure.message.clone());
            terminal.warning(failure.message);
        }
        candidates.push(candidate);
    }
    if arguments.compare {
        table(terminal, &candidates);
    }
    match candidates.iter().all(|candidate| candidate.refusal.is_some()) {
        true => Err(Failure::new("no quantisation passed").hint("the reasons stand above")),
        false => Ok(()),
    }
}

fn of(request: &Request, quant: Quant) -> Request {
    Request { quant, output: request.output.join(quant.name()), ..request.clone() }
}

fn table(terminal: &mut Terminal, candidates: &[Candidate]) {
    let with_rows = candidates.iter().any(|candidate| candidate.held_out().is_some());
    let answers = if with_rows { "  answers: kl     kept    exact" } else { "" };
    terminal.row(
        "compare",
        format!(
            "{:8} {:>10} {:>6} {:>10}  {:>10} {:>10}{answers}",
            "", "file", "bits", "in memory", "text: kl", "same token"
        ),
    );
    for candidate in candidates {
        terminal.more(candidate.line(with_rows));
    }
}

impl Candidate {
    fn held_out(&self) -> Option<&Divergence> {
        self.figures.as_ref()?.fidelity.as_ref()?.held_out.as_ref()
    }

    fn line(&self, with_rows: bool) -> String {
        let unknown = || "-".to_owned();
        let figures = self.figures.as_ref();
        let memory = figures.and_then(|figures| figures.memory_bytes).map_or_else(unknown, bytes::show);
        let general = figures.and_then(|figures| figures.fidelity.as_ref()?.general.as_ref());
        let kl = |divergence: &Divergence| show::nats(divergence.mean_kl);
        let same = |divergence: &Divergence| format!("{:.1} %", 100.0 * divergence.top1_share);
        let mut line = format!(
            "{:8} {:>10} {:>6.2} {memory:>10}  {:>10} {:>10}",
            self.quant.name(),
            bytes::show(self.file_bytes),
            self.bits_per_weight,
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
        if self.refusal.is_some() {
            line += "  refused";
        }
        line
    }
}
