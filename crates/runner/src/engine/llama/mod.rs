//! The embedded engine: llama.cpp in this process, prompts as token ids made by our own text layer.

mod embedding;
mod ffi;
pub(crate) mod language;
pub mod log;
mod report;
mod sampler;
pub mod session;
mod simulate;
mod stop;
mod vocabulary;

use std::ops::ControlFlow;
use std::time::Instant;

pub use report::Report;
pub(crate) use sampler::check_schema;
pub use session::{Session, SessionOptions};
pub use simulate::simulate;
use text::{DecodeStream, Message, Tokenizer};
pub use vocabulary::Vocabulary;

use self::sampler::Chooser;
use self::stop::{StopTexts, Watched};
use super::{Engine, ExpertMemory, Finish, Generated, Loaded, Progress, Prompt, Request};
use crate::budget::{Available, Place, Share};
use crate::card::{Adapter, ExpertCard};
use crate::memory::{self, MemoryState};
use crate::{Error, Result};

/// The embedded llama.cpp.
#[derive(Debug)]
pub struct LlamaEngine {
    _started: (),
}

impl LlamaEngine {
    /// Starts it, once the processor is checked.
    ///
    /// # Errors
    /// [`crate::Error::Processor`].
    pub fn new() -> Result<Self> {
        super::processor::check()?;
        ffi::start();
        Ok(Self { _started: () })
    }
}

impl Engine for LlamaEngine {
    fn name(&self) -> String {
        "llama.cpp, embedded (llama-cpp-sys-2 0.1.160)".to_owned()
    }

    fn load(
        &mut self,
        card: &ExpertCard,
        progress: &mut dyn FnMut(f32) -> ControlFlow<()>,
    ) -> Result<Box<dyn Loaded>> {
        let options = SessionOptions { load: card.load.clone(), ..SessionOptions::default() };
        let file = card.file().ok_or_else(|| Error::Card {
            expert: card.name.clone(),
            reason: "the embedded engine runs files, and its model is on a server".to_owned(),
        })?;
        let mut session = Session::open_named(&card.name, &file.file, &options, progress)?;
        session.set_adapters(&file.adapters)?;
        Ok(Box::new(LoadedLlama { card: card.clone(), session }))
    }

    fn place(&self) -> Place {
        if devices().is_empty() { Place::Main } else { Place::Card }
    }

    fn memory(&self) -> MemoryState {
        measured()
    }
}

fn measured() -> MemoryState {
    MemoryState { devices: devices(), ..memory::main_memory() }
}

fn devices() -> Vec<memory::DeviceMemory> {
    use llama_cpp_2::LlamaBackendDeviceType::{Gpu, IntegratedGpu};
    let devices = llama_cpp_2::list_llama_ggml_backend_devices();
    let graphics = devices.into_iter().filter(|device| matches!(device.device_type, Gpu | IntegratedGpu));
    graphics
        .map(|device| memory::DeviceMemory {
            name: device.description,
            total_bytes: device.memory_total as u64,
            free_bytes: device.memory_free as u64,
        })
        .collect()
}

/// Checks that adapters have room beside what is loaded.
fn adapters_fit(card: &ExpertCard, weights_bytes: u64) -> Result<()> {
    let available = Available::now(&measured());
    let (place, free) = match available.card_bytes {
        Some(free) if card.load.num_gpu != Some(0) => (Place::Card, Some(free)),
        _ => (Place::Main, available.main_bytes),
    };
    match free {
        Some(free_bytes) if free_bytes < weights_bytes => Err(Error::DoesNotFit {
            expert: card.name.clone(),
            place,
            share: Share { weights_bytes, ..Share::default() },
            free_bytes,
            remedies: Vec::new(),
        }),
        _ => Ok(()),
    }
}

/// An expert in memory.
struct LoadedLlama {
    card: ExpertCard,
    session: Session,
}

impl Loaded for LoadedLlama {
    fn card(&self) -> &ExpertCard {
        &self.card
    }

    fn context_tokens(&self) -> usize {
        self.session.context_tokens()
    }

    fn tokens(&self, text: &str) -> Result<usize> {
        Ok(self.session.tokenizer().encode(text).len())
    }

    fn prompt_tokens(&self, prompt: &Prompt) -> Result<usize> {
        Ok(self.prompt_ids(prompt)?.len())
    }

    fn generate(
        &mut self,
        request: &Request,
        sink: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Generated> {
        Ok(self.answer(request, Beginning::Shared, sink)?.0)
    }

    fn converse(
        &mut self,
        request: &Request,
        sink: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<(Generated, usize)> {
        self.answer(request, Beginning::Held, sink)
    }

    fn embed(
        &mut self,
        texts: &[String],
        go_on: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Vec<Vec<f32>>> {
        embedding::embed(&self.card, &self.session, texts, go_on)
    }

    fn switch_to(&mut self, card: &ExpertCard) -> Result<()> {
        let adapters = card.file().map_or(&[][..], |file| &file.adapters);
        let set = self.card.file().map_or(&[][..], |file| &file.adapters);
        if adapters != set {
            self.make_room(card, adapters)?;
            self.session.set_adapters(adapters)?;
        }
        self.card = card.clone();
        Ok(())
    }

    fn memory(&self) -> ExpertMemory {
        self.session.memory()
    }

    fn mapped_bytes(&self) -> u64 {
        let buffers = self.session.report().weight_buffers.iter();
        buffers.filter(|(name, _)| name.ends_with("Mapped")).map(|(_, bytes)| bytes).sum()
    }

    fn unload(self: Box<Self>) -> Result<()> {
        // Dropping frees weights, cache and buffers before it returns.
        drop(self);
        Ok(())
    }
}

/// What of the last prompt may stay for the next one.
#[derive(Clone, Copy)]
enum Beginning {
    /// What all prompts under a system message begin with.
    Shared,
    /// All that both begin with.
    Held,
}

impl LoadedLlama {
    /// Sees to it that adapters which are not in memory yet are still those of the card, and that they fit.
    fn make_room(&mut self, card: &ExpertCard, adapters: &[Adapter]) -> Result<()> {
        let fresh = adapters.iter().filter(|adapter| !self.session.holds(adapter));
        let needed: u64 = fresh.map(|adapter| adapter.tensor_bytes).sum();
        if needed == 0 {
            return Ok(());
        }
        card.check_file()?;
        let Err(_) = adapters_fit(card, needed) else { return Ok(()) };
        self.session.forget_unset_adapters();
        adapters_fit(card, needed)
    }

    fn prompt_ids(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        let tokenizer = self.session.tokenizer();
        let ids = match prompt {
            Prompt::Chat(messages) => return self.session.chat_ids(&self.with_system(messages)),
            Prompt::Raw(text) => tokenizer.encode(text),
            Prompt::Rendered(text) => tokenizer.encode_template(text),
        };
        let bos = tokenizer.bos().filter(|bos| tokenizer.adds_bos() && ids.first() != Some(bos));
        Ok(bos.into_iter().chain(ids).collect())
    }

    /// An answer, and how many tokens of the prompt were held where the last one may stay.
    fn answer(
        &mut self,
        request: &Request,
        beginning: Beginning,
        sink: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<(Generated, usize)> {
        let prompt = self.prompt_ids(&request.prompt)?;
        let chooser = Chooser::new(self.session.model(), &request.sampling, &request.form)?;
        let begun = Instant::now();
        let total = prompt.len();
        let after_piece = &mut |done| sink(Progress::Prompt { done, total });
        let read = match beginning {
            Beginning::Shared => {
                let shared = self.shared_tokens(&request.prompt, &prompt);
                self.session.read_prompt(&prompt, shared, after_piece).map(|row| (row, 0))
            }
            Beginning::Held => self.session.continue_prompt(&prompt, after_piece),
        };
        let (read, kept) = read.inspect_err(|_| self.session.wipe())?;
        let prompt_ns = nanoseconds(begun);
        let ControlFlow::Continue(row) = read else {
            let (text, finish) = (String::new(), Finish::Cancelled);
            let cancelled =
                Generated { text, finish, prompt_tokens: total, output_tokens: 0, prompt_ns, decode_ns: 0 };
            return Ok((cancelled, kept));
        };
        let begun = Instant::now();
        let decoded = self.decode(request, (total, row), chooser, sink);
        let (text, finish, output_tokens) = decoded.inspect_err(|_| self.session.wipe())?;
        let decode_ns = nanoseconds(begun);
        Ok((Generated { text, finish, prompt_tokens: total, output_tokens, prompt_ns, decode_ns }, kept))
    }

    /// How many tokens a prompt begins with that all prompts under its system message do.
    fn shared_tokens(&self, prompt: &Prompt, ids: &[u32]) -> usize {
        let Prompt::Chat(messages) = prompt else { return 0 };
        let messages = self.with_system(messages);
        let Some(system) = messages.first().filter(|first| first.role == "system" && messages.len() > 1)
        else {
            return 0;
        };
        // A template that renders none alone has nothing to share.
        let alone = self.session.chat_ids(std::slice::from_ref(system)).unwrap_or_default();
        alone.iter().zip(ids).take_while(|(a, b)| a == b).count()
    }

    fn with_system(&self, messages: &[Message]) -> Vec<Message> {
        let has_one = messages.first().is_some_and(|message| message.role == "system");
        let system = self.card.system.as_ref().filter(|_| !has_one);
        system
            .map(|text| Message::new("system", text.as_str()))
            .into_iter()
            .chain(messages.iter().cloned())
            .collect()
    }

    fn decode(
        &mut self,
        request: &Request,
        (prompt_tokens, mut row): (usize, usize),
        mut chooser: Chooser,
        sink: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<(String, Finish, usize)> {
        let tokenizer = self.session.shared_tokenizer();
        let room = self.session.context_tokens() - prompt_tokens;
        let limit = request.sampling.max_tokens.map_or(room, |max| room.min(max as usize));
        let mut answer =
            Answer::new(&tokenizer, StopTexts::new(self.card.stop.iter().chain(&request.stop)), sink);
        let mut n = 0;
        let finish = loop {
            if n == limit {
                break Finish::Length;
            }
            let id = chooser.choose(self.session.logits(row)?);
            let id = id.map_err(|reason| self.session.decode_error(reason))?;
            n += 1;
            if self.session.stop_ids().contains(&id) {
                break Finish::Stop;
            }
            chooser.accept(id).map_err(|reason| self.session.decode_error(reason))?;
            if let ControlFlow::Break(finish) = answer.push(id) {
                break finish;
            }
            if n < limit {
                self.session.step(id, prompt_tokens + n - 1)?;
                row = 0;
            }
        };
        Ok((answer.finish(), finish, n))
    }
}

/// The text of an answer as it grows: whole characters, and nothing that may begin a stop text.
struct Answer<'a> {
    stream: Option<DecodeStream<'a>>,
    stop: Option<StopTexts>,
    text: String,
    sink: &'a mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
}

impl<'a> Answer<'a> {
    fn new(
        tokenizer: &'a Tokenizer,
        stop: StopTexts,
        sink: &'a mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Self {
        Self { stream: Some(tokenizer.stream()), stop: Some(stop), text: String::new(), sink }
    }

    /// Takes a token; breaks with the reason to end. The sink is asked after every token, even one that gives
    /// no text yet, so that it can cancel.
    fn push(&mut self, id: u32) -> ControlFlow<Finish> {
        let piece = self.stream.as_mut().and_then(|stream| stream.push(id)).unwrap_or_default();
        let watched = self.stop.as_mut().map_or(Watched::Pass(String::new()), |stop| stop.push(&piece));
        match watched {
            Watched::Pass(text) => self.show(&text).map_break(|()| Finish::Cancelled),
            Watched::Stop(text) => {
                self.stop = None;
                self.show(&text).map_break(|()| Finish::Cancelled)?;
                ControlFlow::Break(Finish::Stop)
            }
        }
    }

    /// The whole answer; what was held back is shown, unless a stop text ended it.
    fn finish(mut self) -> String {
        if let Some(mut stop) = self.stop.take() {
            let tail = self.stream.take().and_then(DecodeStream::finish).unwrap_or_default();
            let rest = match stop.push(&tail) {
                Watched::Stop(text) => text,
                Watched::Pass(text) => text + &stop.finish(),
            };
            if !rest.is_empty() {
                // Nothing is left to cancel.
                let _ = self.show(&rest);
            }
        }
        self.text
    }

    fn show(&mut self, text: &str) -> ControlFlow<()> {
        self.text.push_str(text);
        (self.sink)(Progress::Text(text))
    }
}

fn nanoseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
