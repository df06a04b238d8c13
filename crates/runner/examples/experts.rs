//! How fast experts come, go and answer, beside llama.cpp alone in the same process; see `scripts/bench/experts.sh`.
//!
//!   experts adapter BASE OUT SEED          writes an adapter of random numbers over all matrices of the layers
//!   experts switch BASE ADAPTER ADAPTER    an adapter over a resident base
//!   experts swap FILE FILE                 a full swap of warm files
//!   experts speed FILE [ADAPTER]           tokens a second, and what an adapter costs of them
//!   experts ahead FILE FILE                the second file's load from the disk, read ahead or not
//!
//! Every figure is taken in turn with what it is compared with, so that a busy machine is busy for both. What is timed
//! of llama.cpp alone are its own calls through llama-cpp-2's wrapper, with the same options. Where `LLAMA` names a folder
//! with `bin/llama-bench`, `speed` runs that too, once a round: the same file, threads, pieces and tokens.

use std::num::NonZeroU32;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use formats::{BlockType, gguf};
use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::token::LlamaToken;
use runner::card::{AdapterOptions, CardOptions, Digests, LoadOptions, Sampling};
use runner::engine::llama::LlamaEngine;
use runner::engine::{Form, Loaded, Progress, Prompt, Request};
use runner::residency::{Keeping, ReadAheadLimits};
use runner::{ExpertCard, Residency};

/// `THREADS`: 2 of a quiet machine; on a busy one two wait for one another, and one tells more.
fn threads() -> u32 {
    number("THREADS").unwrap_or(2)
}

/// `ROUNDS`: how often each figure is taken.
fn rounds() -> u32 {
    number("ROUNDS").unwrap_or(9)
}

fn number(name: &str) -> Option<u32> {
    std::env::var(name).ok()?.parse().ok()
}

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const CONTEXT: u32 = 1024;
const BATCH: u32 = 512;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let files: Vec<PathBuf> = arguments.iter().skip(1).map(PathBuf::from).collect();
    let rounds = rounds() as usize;
    match (arguments.first().map(String::as_str), files.as_slice()) {
        (Some("adapter"), [base, out, seed]) => write_adapter(base, out, seed.to_string_lossy().parse()?),
        (Some("switch"), [base, a, b]) => switch(base, [a, b], rounds),
        (Some("swap"), [a, b]) => swap([a, b], rounds),
        (Some("speed"), [file]) => speed(file, None, rounds),
        (Some("speed"), [file, adapter]) => speed(file, Some(adapter), rounds),
        (Some("ahead"), [a, b]) => ahead(a, b, rounds.min(3)),
        _ => {
            Err("adapter BASE OUT SEED | switch BASE ADAPTER ADAPTER | swap FILE FILE | speed FILE [ADAPTER] | ahead FILE FILE"
                .into())
        }
    }
}

/// Of rank 16, over every matrix of the layers.
fn write_adapter(base: &Path, out: &Path, mut seed: u64) -> Outcome<()> {
    const RANK: u64 = 16;
    let base = gguf::Reader::open(base)?;
    let mut metadata = gguf::Metadata::new();
    metadata
        .push("general.architecture", base.metadata().get_str("general.architecture").unwrap_or_default());
    metadata.push("general.type", "adapter");
    metadata.push("adapter.type", "lora");
    metadata.push("adapter.lora.alpha", RANK as f32);
    let mut sides: Vec<gguf::Planned> = Vec::new();
    for tensor in base.tensors().iter().filter(|tensor| tensor.name.starts_with("blk.")) {
        if let [columns, rows] = tensor.shape[..] {
            sides.push((format!("{}.lora_a", tensor.name), vec![columns, RANK], BlockType::F32));
            sides.push((format!("{}.lora_b", tensor.name), vec![RANK, rows], BlockType::F32));
        }
    }
    let mut writer = gguf::Writer::begin(std::fs::File::create(out)?, &metadata, &sides)?;
    for (_, shape, _) in &sides {
        let mut number = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((seed >> 40) as f32 / (1_u64 << 23) as f32 - 1.0) * 0.02
        };
        let n = shape.iter().product::<u64>();
        let bytes: Vec<u8> = (0..n).flat_map(|_| number().to_le_bytes()).collect();
        writer.write_tensor(&bytes)?;
    }
    writer.finish()?;
    Ok(())
}

/// The card of a file, with what is asked of every one here.
fn card(name: &str, file: &Path, adapter: Option<&PathBuf>) -> Outcome<ExpertCard> {
    let load =
        LoadOptions { num_ctx: CONTEXT, num_batch: BATCH, num_thread: threads(), ..LoadOptions::default() };
    let adapters = adapter.map(|file| AdapterOptions { file: file.to_owned(), scale: 1.0 });
    let options = CardOptions { load, adapters: adapters.into_iter().collect(), ..CardOptions::default() };
    Ok(ExpertCard::from_file(name, file, &options, Digests::Blake3)?)
}

fn one_at_a_time(limits: Option<ReadAheadLimits>) -> Outcome<Residency> {
    Ok(Residency::new(Box::new(LlamaEngine::new()?)).keeping(Keeping::One).reading_ahead(limits))
}

fn get<'a>(residency: &'a mut Residency, card: &ExpertCard) -> Outcome<&'a mut dyn Loaded> {
    Ok(residency.get(card, &|| false, &mut formats::observe::Silent)?.0)
}

/// What an expert was asked, and how long it took.
struct Asked {
    prompt_tokens: usize,
    /// Tokens computed after the prompt: the first is chosen from the prompt's logits.
    steps: usize,
    prompt_ms: f64,
    decode_ms: f64,
}

impl Asked {
    /// Tokens a second, of the prompt and of the answer.
    fn rates(&self) -> [f64; 2] {
        let rate = |n: usize, ms: f64| 1e3 * n as f64 / ms;
        [rate(self.prompt_tokens, self.prompt_ms), rate(self.steps, self.decode_ms)]
    }
}

/// Asks for so many tokens after a prompt of so many times three words.
fn ask(expert: &mut dyn Loaded, words: usize, tokens: u32) -> Outcome<Asked> {
    let prompt = Prompt::Raw("the inn then ".repeat(words));
    let sampling = Sampling { max_tokens: Some(tokens), ..Sampling::default() };
    let request = Request { prompt, sampling, stop: Vec::new(), form: Form::Text };
    let begun = Clock::now();
    let mut read = Clock::now();
    let answer = expert.generate(&request, &mut |progress: Progress<'_>| {
        if matches!(progress, Progress::Prompt { .. }) {
            read = Clock::now();
        }
        ControlFlow::Continue(())
    })?;
    Ok(Asked {
        prompt_tokens: answer.prompt_tokens,
        steps: answer.output_tokens.saturating_sub(1),
        prompt_ms: begun.until(&read),
        decode_ms: read.until(&Clock::now()),
    })
}

fn switch(base: &Path, adapters: [&PathBuf; 2], rounds: usize) -> Outcome<()> {
    let cards =
        [card("base", base, None)?, card("a", base, Some(adapters[0]))?, card("b", base, Some(adapters[1]))?];
    let mut residency = one_at_a_time(None)?;
    ask(get(&mut residency, &cards[0])?, 1, 1)?;
    let (mut first, mut again, mut laid_out, mut plain) = (vec![], vec![], vec![], vec![]);
    for round in 0..rounds {
        for (i, card) in cards.iter().enumerate() {
            let begun = Instant::now();
            let expert = get(&mut residency, card)?;
            let ms = milliseconds(begun);
            if round == 0 && i > 0 {
                first.push(ms)
            } else {
                again.push(ms)
            }
            // The next piece lays the buffers out anew; another of the same does not.
            laid_out.push(ask(expert, 1, 1)?.prompt_ms);
            plain.push(ask(expert, 1, 1)?.prompt_ms);
        }
    }
    assert_eq!(residency.n_loads(), 1, "the base was loaded once");
    let (again, laid_out) = (median(again), median(laid_out) - median(plain));
    println!("switch     to an adapter that is not in memory yet: {} ms", list(&first));
    println!("           to one that is: {again:.2} ms, and {laid_out:.2} ms of the first piece after it");
    println!("           together {:.2} ms (at most 50)", again + laid_out);
    Ok(())
}

fn swap(files: [&PathBuf; 2], rounds: usize) -> Outcome<()> {
    let cards = [card("a", files[0], None)?, card("b", files[1], None)?];
    let mut residency = one_at_a_time(None)?;
    let backend = LlamaBackend::init()?;
    let (mut ours, mut alone) = (vec![], vec![]);
    for round in 0..=2 * rounds {
        let (next, before) = (round % 2, (round + 1) % 2);
        get(&mut residency, &cards[before])?;
        let begun = Instant::now();
        get(&mut residency, &cards[next])?;
        let ms = milliseconds(begun);
        residency.clear(&mut formats::observe::Silent)?;
        // llama.cpp alone frees one and loads the other too.
        let held = Alone::load(&backend, files[before])?;
        let begun = Instant::now();
        drop(held);
        let loaded = Alone::load(&backend, files[next])?;
        let ms_alone = milliseconds(begun);
        drop(loaded);
        // The first round warms up.
        if round > 0 {
            ours.push(ms);
            alone.push(ms_alone);
        }
    }
    std::mem::forget(backend);
    let (ours, alone) = (median(ours), median(alone));
    println!(
        "swap       {ours:.0} ms, llama.cpp alone {alone:.0} ms: {:.2} times (at most 1.2)",
        ours / alone
    );
    Ok(())
}

/// A model and a context of llama.cpp, through its wrapper.
struct Alone {
    // Dropped before the model, which it borrows.
    context: Option<LlamaContext<'static>>,
    model: *mut LlamaModel,
}

impl Alone {
    fn load(backend: &LlamaBackend, file: &Path) -> Outcome<Self> {
        let model = LlamaModel::load_from_file(backend, file, &LlamaModelParams::default())?;
        let model = Box::into_raw(Box::new(model));
        let threads = i32::try_from(threads())?;
        let params = LlamaContextParams::default()
            .with_n_ctx(NonZeroU32::new(CONTEXT))
            .with_n_batch(BATCH)
            .with_n_ubatch(BATCH)
            .with_n_threads(threads)
            .with_n_threads_batch(threads);
        // SAFETY: it was a box just now, and becomes one again when this is dropped, after the context.
        let borrowed: &'static LlamaModel = unsafe { &*model };
        Ok(Self { context: Some(borrowed.new_context(backend, params)?), model })
    }

    /// Milliseconds of a prompt, and of tokens after it, one by one, none of them chosen.
    fn run(&mut self, prompt_tokens: usize, steps: usize) -> Outcome<(f64, f64)> {
        let context = self.context.as_mut().ok_or("it is loaded")?;
        let token = |i: usize| LlamaToken(1 + i32::try_from((i * 7) % 250).unwrap_or(0));
        let place = |i: usize| i32::try_from(i).unwrap_or(0);
        context.clear_kv_cache();
        let mut batch = LlamaBatch::new(BATCH as usize, 1);
        let begun = Clock::now();
        for from in (0..prompt_tokens).step_by(BATCH as usize) {
            batch.clear();
            for i in from..prompt_tokens.min(from + BATCH as usize) {
                batch.add(token(i), place(i), &[0], i + 1 == prompt_tokens)?;
            }
            context.decode(&mut batch)?;
            context.synchronize();
        }
        let read = Clock::now();
        for i in 0..steps {
            batch.clear();
            batch.add(token(i), place(prompt_tokens + i), &[0], true)?;
            context.decode(&mut batch)?;
            context.synchronize();
        }
        Ok((begun.until(&read), read.until(&Clock::now())))
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        self.context = None;
        // SAFETY: it came from a box, and nothing borrows it any more.
        drop(unsafe { Box::from_raw(self.model) });
    }
}

/// llama.cpp's own bench, built for this very processor.
struct Bench {
    folder: PathBuf,
}

impl Bench {
    /// The one in `LLAMA`. With one thread the engine's clock is the thread's, which a process elsewhere has not.
    fn find() -> Option<Self> {
        let folder =
            PathBuf::from(std::env::var_os("LLAMA").filter(|folder| !folder.is_empty())?).join("bin");
        if threads() < 2 {
            println!("bench      llama-bench is left out: with THREADS=1 the time here is the thread's own");
            return None;
        }
        Some(Self { folder })
    }

    /// Tokens a second of a prompt, and of tokens after one of that length.
    fn rates(&self, file: &Path, prompt_tokens: usize, steps: usize) -> Outcome<[f64; 2]> {
        let prompt = self.rate(file, [prompt_tokens, 0, 0])?;
        Ok([prompt, self.rate(file, [0, steps, prompt_tokens])?])
    }

    fn rate(&self, file: &Path, [prompt_tokens, steps, before]: [usize; 3]) -> Outcome<f64> {
        let program = self.folder.join("llama-bench");
        let (threads, batch) = (threads().to_string(), BATCH.to_string());
        let numbers = [prompt_tokens, steps, before].map(|n| n.to_string());
        let ran = std::process::Command::new(&program)
            .env("LD_LIBRARY_PATH", &self.folder)
            .arg("-m")
            .arg(file)
            .args(["-p", &numbers[0], "-n", &numbers[1], "-d", &numbers[2]])
            .args(["-t", &threads, "-b", &batch, "-ub", &batch, "-r", "1", "-o", "json"])
            .output()
            .map_err(|error| format!("{}: {error}", program.display()))?;
        let told: serde_json::Value = serde_json::from_slice(&ran.stdout).map_err(|error| {
            format!("{}: {error}: {}", program.display(), String::from_utf8_lossy(&ran.stderr))
        })?;
        told.pointer("/0/avg_ts")
            .and_then(serde_json::Value::as_f64)
            .ok_or_else(|| format!("no avg_ts in {told}").into())
    }
}

fn speed(file: &Path, adapter: Option<&PathBuf>, rounds: usize) -> Outcome<()> {
    let (words, tokens) = (number("WORDS").unwrap_or(160) as usize, number("TOKENS").unwrap_or(49));
    // The engine first: it keeps llama.cpp's log to itself.
    let mut residency = one_at_a_time(None)?;
    let backend = LlamaBackend::init()?;
    let mut alone = Alone::load(&backend, file)?;
    let bare = card("bare", file, None)?;
    let adapted = adapter.map(|_| card("adapted", file, adapter)).transpose()?;
    let bench = Bench::find();
    let mut benched: [Vec<f64>; 2] = Default::default();
    let mut figures: [Vec<f64>; 6] = Default::default();
    let (mut n_prompt, mut n_steps) = (0, 0);
    for round in 0..=rounds {
        let ours = ask(get(&mut residency, &bare)?, words, tokens)?;
        let (prompt_ms, decode_ms) = alone.run(ours.prompt_tokens, ours.steps)?;
        let theirs = Asked { prompt_ms, decode_ms, ..ours };
        (n_prompt, n_steps) = (ours.prompt_tokens, ours.steps);
        let mut row = [ours.rates(), theirs.rates()].concat();
        if let Some(card) = &adapted {
            row.extend(ask(get(&mut residency, card)?, words, tokens)?.rates());
        }
        let of_bench =
            bench.as_ref().map(|bench| bench.rates(file, ours.prompt_tokens, ours.steps)).transpose()?;
        // The first round warms up.
        if round > 0 {
            figures.iter_mut().zip(row).for_each(|(list, figure)| list.push(figure));
            benched
                .iter_mut()
                .zip(of_bench.into_iter().flatten())
                .for_each(|(list, figure)| list.push(figure));
        }
    }
    drop(alone);
    std::mem::forget(backend);
    let [prompt, decode, raw_prompt, raw_decode, adapted_prompt, adapted_decode] = figures.map(median);
    let less = |ours: f64, theirs: f64| 100.0 * (1.0 - ours / theirs);
    let [bench_prompt, bench_decode] = benched.map(median);
    let line = |what: &str, n: usize, ours: f64, alone: f64, of_bench: f64| {
        let less_of = |theirs: f64| {
            format!("{theirs:.2}, {:.3} times, {:.1} % less", ours / theirs, less(ours, theirs))
        };
        println!(
            "{what}     {n} tokens: {ours:.2} tokens/s · llama.cpp alone {} (at most 3)",
            less_of(alone)
        );
        if bench.is_some() {
            println!("           llama-bench {} (at most 3)", less_of(of_bench));
        }
    };
    line("prompt", n_prompt, prompt, raw_prompt, bench_prompt);
    line("decode", n_steps, decode, raw_decode, bench_decode);
    if adapted.is_some() {
        println!(
            "unmerged   an adapter costs {:.1} % of the prompt's rate ({adapted_prompt:.2}), {:.1} % of the answer's \
             ({adapted_decode:.2})",
            less(adapted_prompt, prompt),
            less(adapted_decode, decode)
        );
    }
    Ok(())
}

fn ahead(first: &Path, second: &Path, rounds: usize) -> Outcome<()> {
    let tokens = number("TOKENS").unwrap_or(100);
    let cards = [card("first", first, None)?, card("second", second, None)?];
    let bytes = std::fs::metadata(second)?.len();
    let (mut with, mut without, mut rate_with, mut rate_without) = (vec![], vec![], vec![], vec![]);
    for _ in 0..rounds {
        for reads in [false, true] {
            let mut residency = one_at_a_time(reads.then(ReadAheadLimits::default))?;
            forget(second)?;
            residency.foresee(cards.to_vec());
            let [_, rate] = ask(get(&mut residency, &cards[0])?, 10, tokens)?.rates();
            let done = residency.read_ahead().map_or(0, |ahead| ahead.read_bytes());
            let begun = Instant::now();
            ask(get(&mut residency, &cards[1])?, 1, 1)?;
            let ms = milliseconds(begun);
            if reads {
                println!("           {done} of {bytes} bytes were read while the first expert worked");
                with.push(ms);
                rate_with.push(rate);
            } else {
                without.push(ms);
                rate_without.push(rate);
            }
        }
    }
    let (with, without) = (median(with), median(without));
    let times = without / with;
    println!(
        "ahead      load and first token {with:.0} ms, without {without:.0} ms: {times:.1} times faster (at least 2)"
    );
    let (with, without) = (median(rate_with), median(rate_without));
    println!("           the first expert meanwhile {with:.2} tokens/s, without {without:.2}");
    Ok(())
}

/// Drops a file from the page cache.
fn forget(file: &Path) -> Outcome<()> {
    use std::os::fd::AsRawFd;
    let file = std::fs::File::open(file)?;
    file.sync_all()?;
    // SAFETY: the descriptor is open; the call changes nothing but what the system keeps in memory.
    let code = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    if code == 0 { Ok(()) } else { Err(std::io::Error::from_raw_os_error(code).into()) }
}

/// A moment: of the world, or, with one thread, of the processor's time that this thread has had, which a busy machine
/// disturbs less.
enum Clock {
    World(Instant),
    Thread(f64),
}

impl Clock {
    fn now() -> Self {
        if threads() > 1 {
            return Self::World(Instant::now());
        }
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the structure is valid for the call to write to.
        unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
        Self::Thread(time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6)
    }

    /// Milliseconds.
    fn until(&self, later: &Self) -> f64 {
        match (self, later) {
            (Self::World(begun), Self::World(ended)) => ended.duration_since(*begun).as_secs_f64() * 1e3,
            (Self::Thread(begun), Self::Thread(ended)) => ended - begun,
            _ => f64::NAN,
        }
    }
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

fn list(figures: &[f64]) -> String {
    figures.iter().map(|ms| format!("{ms:.1}")).collect::<Vec<_>>().join(" and ")
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
