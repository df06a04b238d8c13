//! The export from end to end.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use formats::gguf::head_bytes;
use formats::hash::Hashes;
use formats::{BlockType, Observer, disk};

use crate::checks::check_request;
use crate::fidelity::Yardstick;
use crate::importance::Importance;
use crate::measure::measured;
use crate::memory::check_memory;
use crate::merged::Merged;
use crate::modelfile::{Parts, modelfile};
use crate::pending::Pending;
use crate::plan::{Plan, planned_types, tensor_bytes};
use crate::receipt::VERSION;
use crate::write::Target;
use crate::{
    Event, GateFigures, ImportanceSource, Receipt, Request, Result, Times, Verifier, gate, read_back,
    receipt, write,
};

/// Merges, quantises, writes and verifies; returns what `receipt.json` records.
///
/// Never leaves a file under the final name that did not pass: until then everything is in a `*.tmp` beside it, which the
/// next export of the same name takes over, and goes on with where it is to be the same file.
///
/// # Errors
/// Everything in [`crate::Error`]; nothing new has the final name then, and an older export is left as it was.
pub fn export(
    request: &Request,
    verifier: &dyn Verifier,
    observer: &mut dyn Observer<Event>,
) -> Result<Receipt> {
    let mut results = export_each(std::slice::from_ref(request), verifier, observer)?;
    results.pop().expect("one result for one request")
}

/// As [`export`], several files that differ in their quantisation, types and folder alone: base and adapters are read, merged
/// and measured once for all of them. A file that is refused does not hold up the others.
///
/// # Errors
/// What concerns all of them: inputs, disk.
///
/// # Panics
/// If the requests differ in their inputs.
pub fn export_each(
    requests: &[Request],
    verifier: &dyn Verifier,
    observer: &mut dyn Observer<Event>,
) -> Result<Vec<Result<Receipt>>> {
    let Some(first) = requests.first() else { return Ok(Vec::new()) };
    assert!(
        requests[1..].iter().all(|request| request.is_of_the_same(first)),
        "requests of different models"
    );
    let mut clock = Clock::start();
    let mut results = Results::of(requests.len());
    let checked = results.sift(requests.iter().map(|request| check_request(request).map(|()| request)));
    if checked.is_empty() {
        return Ok(results.all());
    }
    let merged = Merged::open(first)?;
    let typed = checked
        .into_iter()
        .map(|(index, request)| (index, planned_types(request, &merged).map(|types| (request, types))));
    let typed = results.sift_more(typed);
    check_room(first, &merged, typed.iter().map(|(_, (_, types))| &types[..]))?;
    if typed.is_empty() {
        return Ok(results.all());
    }
    check_memory(first, &merged, typed.len(), verifier.free_bytes())?;
    let importance = importance(first, &merged, observer)?;
    let planned = typed.into_iter().map(|(index, (request, types))| {
        (index, Plan::new(request, &merged, &types, importance.as_ref()).map(|plan| (request, plan)))
    });
    let planned = results.sift_more(planned);
    let ready = planned.into_iter().map(|(index, (request, plan))| {
        (index, pending(&plan, observer).map(|pending| (request, plan, pending)))
    });
    let mut ready = results.sift_more(ready);
    let plan_s = clock.lap();
    let targets = ready.iter_mut().map(|(_, (_, plan, pending))| Target { plan, pending });
    let written = write::write(&merged, targets.collect(), observer)?;
    let written = ready.into_iter().zip(written).map(|((index, (request, plan, pending)), hash)| {
        let synced = hash.and_then(|hash| pending.sync().map(|()| hash));
        (index, synced.map(|hash| (request, plan, pending, hash)))
    });
    let written = results.sift_more(written);
    let write_s = clock.lap();

    let source = merged.source();
    let mut yardstick = Yardstick::new(first, &merged, &source);
    for (index, (request, plan, pending, hash)) in written {
        let times = Times { plan_s, write_s, ..Times::default() };
        let mut file = Finishing { request, plan: &plan, times, clock: &mut clock };
        results.0[index] = Some(file.finish(pending, &hash, &mut yardstick, verifier, observer));
    }
    Ok(results.all())
}

/// What became of each file; nothing yet of those that are under way.
struct Results(Vec<Option<Result<Receipt>>>);

impl Results {
    fn of(n_files: usize) -> Results {
        Results((0..n_files).map(|_| None).collect())
    }

    /// Notes the failures, and returns the others with their numbers.
    fn sift<T>(&mut self, files: impl Iterator<Item = Result<T>>) -> Vec<(usize, T)> {
        self.sift_more(files.enumerate())
    }

    /// The same of files that have numbers.
    fn sift_more<T>(&mut self, files: impl Iterator<Item = (usize, Result<T>)>) -> Vec<(usize, T)> {
        let mut live = Vec::new();
        for (index, file) in files {
            match file {
                Ok(file) => live.push((index, file)),
                Err(error) => self.0[index] = Some(Err(error)),
            }
        }
        live
    }

    fn all(self) -> Vec<Result<Receipt>> {
        self.0.into_iter().map(|result| result.expect("each file has ended")).collect()
    }
}

/// Refuses before minutes are spent on measuring for what could not be written. Nothing else is done before the room is
/// reserved, and then what a killed export left is no longer in the way.
fn check_room<'a>(
    first: &Request,
    merged: &Merged,
    types: impl Iterator<Item = &'a [BlockType]>,
) -> Result<()> {
    if !matches!(first.importance, ImportanceSource::Measured(_)) {
        return Ok(());
    }
    let bytes = types.map(|types| tensor_bytes(&merged.tensors, types));
    Ok(disk::check_room(&first.output.join(first.file_name()), bytes.sum::<Result<u64>>()?)?)
}

fn importance(
    request: &Request,
    merged: &Merged,
    observer: &mut dyn Observer<Event>,
) -> Result<Option<Importance>> {
    let path = match &request.importance {
        ImportanceSource::None => return Ok(None),
        ImportanceSource::File(path) => path.clone(),
        ImportanceSource::Measured(calibration) => measured(merged, request, calibration, observer)?,
    };
    Ok(Some(Importance::read(&path, &merged.tensors)?))
}

/// The file that is to be written, with all the room it needs.
fn pending(plan: &Plan<'_>, observer: &mut dyn Observer<Event>) -> Result<Pending> {
    let pending = Pending::create(&plan.file, &identity(plan)?)?;
    observer.observe(Event::Planned {
        file: plan.file.clone(),
        n_tensors: plan.tensors.len(),
        n_merged: plan.tensors.iter().filter(|planned| planned.tensor.is_changed()).count(),
        n_important: plan.tensors.iter().filter(|planned| planned.has_importance()).count(),
        file_bytes: plan.file_bytes,
        kept_bytes: pending.kept().map_or(0, |kept| kept.bytes),
        free_bytes: disk::free_bytes(&plan.file)?,
        bits_per_weight: plan.bits_per_weight()?,
    });
    pending.reserve(plan.file_bytes)?;
    Ok(pending)
}

/// All that decides about the bytes of a file.
fn identity(plan: &Plan<'_>) -> Result<Vec<u8>> {
    let mut identity = head_bytes(&plan.metadata, &plan.entries())?;
    let sources = &plan.sources;
    let hashes =
        [Some(&sources.base_blake3), sources.adapter_blake3.as_ref(), sources.imatrix_blake3.as_ref()];
    for hash in hashes {
        identity.extend_from_slice(hash.map_or("none", String::as_str).as_bytes());
    }
    identity.extend_from_slice(env!("CARGO_PKG_VERSION").as_bytes());
    Ok(identity)
}

/// A written file on its way to its name.
struct Finishing<'a> {
    request: &'a Request,
    plan: &'a Plan<'a>,
    times: Times,
    clock: &'a mut Clock,
}

impl Finishing<'_> {
    fn finish(
        &mut self,
        pending: Pending,
        written_blake3: &str,
        yardstick: &mut Yardstick<'_>,
        verifier: &dyn Verifier,
        observer: &mut dyn Observer<Event>,
    ) -> Result<Receipt> {
        let (plan, request) = (self.plan, self.request);
        self.clock.lap();
        observer.observe(Event::Checking { file: plan.file.clone() });
        let (hashes, n_rows) = read_back::read_back(plan, pending.temp(), written_blake3)?;
        observer.observe(Event::ReadBack { n_rows, seconds: self.clock.total() });
        self.times.read_back_s = self.clock.lap();
        let figures = gate::pass(plan, request, pending.temp(), yardstick, verifier, observer)?;
        self.times.gate_s = self.clock.lap();
        self.times.total_s = self.clock.total();

        let modelfile = modelfile(&modelfile_parts(plan, request, &figures));
        let receipt = self.receipt(hashes, figures, modelfile.template)?;
        receipt::remove(&request.output)?;
        pending.rename()?;
        formats::atomic::write_bytes(&request.output.join("Modelfile"), modelfile.text.as_bytes())?;
        receipt::write(&request.output, &receipt)?;
        let (file, file_bytes, seconds) = (plan.file.clone(), plan.file_bytes, self.clock.total());
        observer.observe(Event::Finished { file, file_bytes, seconds });
        Ok(receipt)
    }

    fn receipt(&self, hashes: Hashes, gate: GateFigures, template: &str) -> Result<Receipt> {
        let (plan, request) = (self.plan, self.request);
        Ok(Receipt {
            version: VERSION,
            name: request.name.clone(),
            file: plan.file.clone(),
            file_bytes: plan.file_bytes,
            blake3: hashes.blake3,
            sha256: hashes.sha256,
            quant: request.quant.name().to_owned(),
            architecture: plan.merged.base.config.family.gguf_architecture().to_owned(),
            n_parameters: plan.merged.n_parameters(),
            bits_per_weight: plan.bits_per_weight()?,
            types: plan.type_counts()?,
            provenance: plan.merged.provenance.clone(),
            sources: plan.sources.clone(),
            gate,
            reference: request.reference,
            limits: request.limits,
            times: self.times,
            tune_version: env!("CARGO_PKG_VERSION").to_owned(),
            finished_unix_s: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs()),
            modelfile_template: template.to_owned(),
        })
    }
}

fn modelfile_parts<'a>(plan: &'a Plan<'_>, request: &'a Request, figures: &GateFigures) -> Parts<'a> {
    let tokenizer = &plan.merged.tokenizer;
    let text_of = |id: u32| tokenizer.token(id);
    Parts {
        file_name: plan.file.file_name().and_then(|name| name.to_str()).unwrap_or_default(),
        template: plan.merged.template.as_ref(),
        bos: tokenizer.bos().filter(|_| tokenizer.adds_bos()).and_then(text_of).unwrap_or_default(),
        stop: figures.end_of_turn.and_then(text_of),
        num_ctx: request.num_ctx,
        system: request.system.as_deref(),
        licenses: licenses(plan, request),
    }
}

/// What the base was published under, or what the caller names where it does not say.
fn licenses(plan: &Plan<'_>, request: &Request) -> Vec<String> {
    let texts = plan.merged.base.licenses();
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
