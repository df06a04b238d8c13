//! The export from end to end.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use formats::{Observer, disk};

use crate::modelfile::{Parts, modelfile};
use crate::pending::Pending;
use crate::plan::Plan;
use crate::receipt::VERSION;
use crate::{Event, GateFigures, Receipt, Request, Result, Times, Verifier};
use crate::{gate, license, read_back, receipt, write};

/// Merges, quantises, writes and verifies; returns what `receipt.json` records.
///
/// Never leaves a file under the final name that did not pass: until then everything is in a `*.tmp` beside it,
/// which the next export of the same name takes over.
///
/// # Errors
/// Everything in [`crate::Error`]; nothing new has the final name then, and an older export is left as it was.
pub fn export(
    request: &Request,
    verifier: &dyn Verifier,
    observer: &mut dyn Observer<Event>,
) -> Result<Receipt> {
    let mut clock = Clock::start();
    let plan = Plan::new(request, observer)?;
    let pending = Pending::create(&plan.file)?;
    observer.observe(planned(&plan)?);
    pending.reserve(plan.file_bytes)?;
    let plan_s = clock.lap();

    let written_blake3 = write::write(&plan, &pending, observer)?;
    pending.sync()?;
    let write_s = clock.lap();

    let (hashes, n_rows) = read_back::read_back(&plan, pending.temp(), &written_blake3)?;
    observer.observe(Event::ReadBack { n_rows, seconds: clock.total() });
    let read_back_s = clock.lap();

    let figures = gate::pass(&plan, request, pending.temp(), verifier, observer)?;
    let gate_s = clock.lap();

    let modelfile = modelfile(&modelfile_parts(&plan, request, &figures));
    let times = Times { plan_s, write_s, read_back_s, gate_s, total_s: clock.total() };
    let receipt = Receipt {
        version: VERSION,
        name: request.name.clone(),
        file: plan.file.clone(),
        file_bytes: plan.file_bytes,
        blake3: hashes.blake3,
        sha256: hashes.sha256,
        quant: request.quant.name().to_owned(),
        architecture: plan.config.family.gguf_architecture().to_owned(),
        n_parameters: plan.n_parameters(),
        bits_per_weight: plan.bits_per_weight()?,
        types: plan.type_counts()?,
        provenance: plan.provenance.clone(),
        sources: plan.sources.clone(),
        gate: figures,
        reference: request.reference,
        limits: request.limits,
        times,
        tune_version: env!("CARGO_PKG_VERSION").to_owned(),
        finished_unix_s: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs()),
        modelfile_template: modelfile.template.to_owned(),
    };
    receipt::remove(&request.output)?;
    pending.rename()?;
    formats::atomic::write_bytes(&request.output.join("Modelfile"), modelfile.text.as_bytes())?;
    receipt::write(&request.output, &receipt)?;
    let (file, file_bytes) = (plan.file, plan.file_bytes);
    observer.observe(Event::Finished { file, file_bytes, seconds: clock.total() });
    Ok(receipt)
}

fn planned(plan: &Plan) -> Result<Event> {
    Ok(Event::Planned {
        file: plan.file.clone(),
        n_tensors: plan.tensors.len(),
        n_merged: plan.tensors.iter().filter(|tensor| tensor.is_merged()).count(),
        n_important: plan.tensors.iter().filter(|tensor| tensor.has_importance()).count(),
        file_bytes: plan.file_bytes,
        free_bytes: disk::free_bytes(&plan.file)?,
        bits_per_weight: plan.bits_per_weight()?,
    })
}

fn modelfile_parts<'a>(plan: &'a Plan, request: &'a Request, figures: &GateFigures) -> Parts<'a> {
    let tokenizer = &plan.tokenizer;
    let text_of = |id: u32| tokenizer.token(id);
    Parts {
        file_name: plan.file.file_name().and_then(|name| name.to_str()).unwrap_or_default(),
        template: plan.template.as_ref(),
        bos: tokenizer.bos().filter(|_| tokenizer.adds_bos()).and_then(text_of).unwrap_or_default(),
        stop: figures.end_of_turn.and_then(text_of),
        num_ctx: request.num_ctx,
        system: request.system.as_deref(),
        licenses: licenses(request),
    }
}

/// What the base was published under, or what the caller names where it does not say.
fn licenses(request: &Request) -> Vec<String> {
    let texts = license::texts(&request.base);
    if texts.is_empty() { request.provenance.license.iter().cloned().collect() } else { texts }
}

/// Seconds since the start, and since the last look.
struct Clock {
    started: Instant,
    lap: Instant,
}

impl Clock {
    fn start() -> Clock {
        let now = Instant::now();
        Clock { started: now, lap: now }
    }

    fn lap(&mut self) -> f64 {
        let seconds = self.lap.elapsed().as_secs_f64();
        self.lap = Instant::now();
        seconds
    }

    fn total(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }
}
