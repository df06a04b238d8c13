//! `tune chat`: a conversation with what was trained, on the terminal or in one question.

use crate::asked::{self, Asked};
use crate::bytes;
use crate::cli::Chat;
use crate::exported::ExportedSpeaker;
use crate::failure::Failure;
use crate::interrupt;
use crate::line_editor::{LineEditor, Typed};
use crate::show;
use crate::terminal::Terminal;
use model::generate::SamplerOptions;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use trainer::Event;
use trainer::chat::{Conversation, End, OwnSpeaker, Reply, Sampling, Speaker};
use trainer::event::Weights;
use trainer::subject::Subject;

const HELP: [&str; 9] = [
    "/base            switch the adapter off, and on again",
    "/regenerate      answer the last question again",
    "/reset           forget the conversation; the system message stays",
    "/system [TEXT]   another system message, or none; forgets the conversation",
    "/save FILE       append the conversation to FILE as a row of training data",
    "/tokens          how much of the context is used",
    "/quit            leave, as Ctrl-D does; Ctrl-C stops an answer",
    "\"\"\"              begins and ends a text of several lines; so does \\ at the end of a line",
    "//               begins a text that begins with /",
];

/// Talks, or answers one question where one is given or standard input is not a terminal.
pub fn run(arguments: &Chat, terminal: &mut Terminal) -> Result<(), Failure> {
    let sampler = sampler(arguments)?;
    let cancel = interrupt::flag();
    let asked =
        asked::find(&arguments.source, arguments.base.as_deref(), arguments.budget, terminal, &cancel)?;
    let expert = asked.recipe.as_ref().map(|recipe| &recipe.expert);
    let system = arguments.system.clone().or_else(|| expert.and_then(|expert| expert.system.clone()));
    let num_ctx = arguments.num_ctx.or_else(|| expert.and_then(|expert| expert.num_ctx));
    let question = match (&arguments.prompt, terminal.reads_person()) {
        (Some(prompt), _) => Some(prompt.clone()),
        (None, false) => Some(terminal.piped_input()?),
        (None, true) => None,
    };
    let speaker = open(&asked, arguments, num_ctx, terminal)?;
    let sampling = Sampling { sampler, max_tokens: arguments.max_tokens };
    let mut talk =
        Talk { conversation: Conversation::new(system), speaker, sampling, terminal, cancel: &cancel };
    match question {
        Some(question) => talk.once(question.trim_end_matches('\n')),
        None => talk.go_on(),
    }
}

fn sampler(arguments: &Chat) -> Result<SamplerOptions, Failure> {
    let within = |flag: &str, value: f32, high: f32| match (0.0..=high).contains(&value) {
        true => Ok(value),
        false => Err(Failure::new(format!("{flag} is {value}, allowed is 0 to {high}"))),
    };
    Ok(SamplerOptions {
        temperature: within("--temperature", arguments.temperature, 10.0)?,
        top_k: arguments.top_k,
        top_p: within("--top-p", arguments.top_p, 1.0)?,
        min_p: within("--min-p", arguments.min_p, 1.0)?,
        seed: arguments.seed,
    })
}

/// Who answers.
enum Who {
    Own(Box<OwnSpeaker>),
    Exported(ExportedSpeaker),
}

impl Who {
    fn speaker(&mut self) -> &mut dyn Speaker {
        match self {
            Who::Own(own) => &mut **own,
            Who::Exported(exported) => exported,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Who::Own(own) if own.weights() == Weights::Base => "base",
            Who::Own(_) => "adapter",
            Who::Exported(_) => "exported",
        }
    }
}

fn open(
    asked: &Asked,
    arguments: &Chat,
    num_ctx: Option<u32>,
    terminal: &mut Terminal,
) -> Result<Who, Failure> {
    let budget = asked.options.budget;
    let base = &asked.options.model.base;
    let is_file = asked.adapter.is_none() && asked.recipe.is_none() && base.is_file();
    let who = if is_file {
        let budget_bytes = budget.memory_bytes.map(|bytes| bytes.saturating_sub(budget.reserve_bytes));
        Who::Exported(ExportedSpeaker::open(base, num_ctx, budget_bytes)?)
    } else {
        let subject =
            Subject::open(&asked.options, asked.adapter.as_deref()).map_err(|error| failure(&error))?;
        let mut observer = |event: Event| match event {
            Event::Loading { done, total } => {
                terminal.progress_on_screen(done as u64, total as u64, "reading the base");
            }
            Event::Warning { message } => terminal.warning(message),
            _ => {}
        };
        let num_ctx = num_ctx.map(|n| n as usize);
        let own = OwnSpeaker::new(subject, num_ctx, &mut observer).map_err(|error| failure(&error))?;
        Who::Own(Box::new(own))
    };
    terminal.clear_bar();
    let (bytes, what) = match &who {
        Who::Own(own) => (own.total_bytes()?, own_name(asked, base)),
        Who::Exported(exported) => {
            (exported.total_bytes(), format!("{} in llama.cpp", arguments.source.display()))
        }
    };
    let mut who = who;
    let context = show::count(who.speaker().context_tokens() as u64);
    terminal.row("chat", format!("{what} · context of {context} tokens · {}", bytes::show(bytes)));
    Ok(who)
}

fn own_name(asked: &Asked, base: &Path) -> String {
    let quant = if base.is_file() { "" } else { asked.options.model.quant_name() };
    let base = format!("{} {quant}", base.display());
    match &asked.adapter {
        Some(adapter) => format!("{} over {}", adapter.display(), base.trim_end()),
        None => format!("{}, the base alone", base.trim_end()),
    }
}

fn failure(error: &trainer::Error) -> Failure {
    let failure = match error {
        trainer::Error::BudgetTooSmall { need_bytes, have_bytes, .. } => Failure::new(format!(
            "this takes {}, the budget leaves {}",
            bytes::show(*need_bytes),
            bytes::show(*have_bytes)
        )),
        trainer::Error::ContextFull { .. } => {
            return Failure::new(error).hint("/reset begins anew; --num-ctx gives a longer context");
        }
        _ => Failure::new(error),
    };
    match error.hint() {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// A conversation and what it is held with.
struct Talk<'a> {
    conversation: Conversation,
    speaker: Who,
    sampling: Sampling,
    terminal: &'a mut Terminal,
    cancel: &'a AtomicBool,
}

impl Talk<'_> {
    /// One question; the answer is all that standard output gets.
    fn once(&mut self, question: &str) -> Result<(), Failure> {
        if question.trim().is_empty() {
            return Err(
                Failure::new("there is no question").hint("give one with --prompt, or on standard input")
            );
        }
        let reply = self.ask(question)?;
        self.remark(&reply);
        match reply.end {
            End::Cancelled => Err(Failure::interrupted("the answer was broken off")),
            _ => Ok(()),
        }
    }

    fn go_on(&mut self) -> Result<(), Failure> {
        let mut editor = LineEditor::new()?;
        self.terminal.more("/help shows the commands, Ctrl-D leaves");
        let mut was_interrupted = false;
        loop {
            let typed = editor.read(&format!("{}> ", self.speaker.name()))?;
            match typed {
                Typed::End => return Ok(()),
                Typed::Interrupted if was_interrupted => return Err(Failure::interrupted("left")),
                Typed::Interrupted => {
                    was_interrupted = true;
                    self.terminal.more("Ctrl-C once more leaves");
                }
                Typed::Text(text) => {
                    let flow = self.line(text.trim());
                    was_interrupted = self.cancel.swap(false, Ordering::SeqCst);
                    match flow {
                        Ok(ControlFlow::Break(())) => return Ok(()),
                        Ok(ControlFlow::Continue(())) => {}
                        Err(failure) => self.terminal.failure(&failure),
                    }
                }
            }
        }
    }

    fn line(&mut self, line: &str) -> Result<ControlFlow<()>, Failure> {
        if line.is_empty() {
            return Ok(ControlFlow::Continue(()));
        }
        if let Some(question) = line.strip_prefix("//") {
            return self.turn(&format!("/{question}"));
        }
        let Some(command) = line.strip_prefix('/') else { return self.turn(line) };
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        match name {
            "quit" | "exit" | "bye" => return Ok(ControlFlow::Break(())),
            "help" | "?" => HELP.iter().for_each(|line| self.terminal.more(line)),
            "reset" => {
                self.conversation.reset();
                self.terminal.row("reset", "nothing was said");
            }
            "system" => {
                self.conversation.set_system(rest.trim());
                let what =
                    if rest.trim().is_empty() { "none; nothing was said" } else { "set; nothing was said" };
                self.terminal.row("system", what);
            }
            "base" => self.toggle(),
            "regenerate" => match self.conversation.take_back() {
                // Another draw, where something is drawn.
                Some(question) => {
                    self.sampling.sampler.seed = self.sampling.sampler.seed.wrapping_add(1);
                    return self.turn(&question);
                }
                None => self.terminal.warning("there is no answer yet"),
            },
            "save" => self.save(rest.trim())?,
            "tokens" => self.tokens()?,
            _ => {
                let names = ["base", "regenerate", "reset", "system", "save", "tokens", "quit", "help"];
                return Err(Failure::new(format!("there is no command /{name}"))
                    .hint("/help shows them; // begins a text with /")
                    .did_you_mean(name, names.into_iter()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn turn(&mut self, question: &str) -> Result<ControlFlow<()>, Failure> {
        let reply = self.ask(question)?;
        self.remark(&reply);
        Ok(ControlFlow::Continue(()))
    }

    fn ask(&mut self, question: &str) -> Result<Reply, Failure> {
        let Talk { conversation, speaker, sampling, terminal, cancel } = self;
        let who = speaker.name();
        let mut heard = |piece: &str| {
            if !piece.is_empty() {
                terminal.stream(piece);
            }
            if cancel.load(Ordering::SeqCst) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let reply = conversation.ask(question, speaker.speaker(), sampling, &mut heard);
        terminal.end_stream();
        let reply = reply.map_err(|error| failure(&error))?;
        if terminal.is_json() {
            terminal.json(&serde_json::json!({"event": "reply", "weights": who, "reply": reply}));
        }
        Ok(reply)
    }

    /// What an answer took, and that it is not whole where it is not.
    fn remark(&mut self, reply: &Reply) {
        let rate = reply.answer_tokens as f64 / reply.answer_seconds.max(1e-9);
        self.terminal.more(format!(
            "{} tokens in {}, {rate:.0} a second · {} read in {}, {} known from before",
            reply.answer_tokens,
            show::seconds(reply.answer_seconds),
            reply.prompt_tokens - reply.kept_tokens,
            show::seconds(reply.prompt_seconds),
            reply.kept_tokens
        ));
        match reply.end {
            End::Turn => {}
            End::MaxTokens => self.terminal.warning("the answer was cut: --max-tokens is reached"),
            End::Context => {
                self.terminal.warning("the answer was cut: the context is full; /reset begins anew")
            }
            End::Cancelled => self.terminal.warning("the answer was broken off"),
        }
    }

    fn toggle(&mut self) {
        let toggled = match &mut self.speaker {
            Who::Own(own) => own.toggle(),
            Who::Exported(_) => None,
        };
        match toggled {
            Some(Weights::Base) => {
                self.terminal.row("base", "the adapter is off; /regenerate compares, /base switches it on")
            }
            Some(Weights::Adapter) => self.terminal.row("adapter", "is on"),
            None => self.terminal.warning("there is no adapter that could be switched off"),
        }
    }

    fn save(&mut self, path: &str) -> Result<(), Failure> {
        if path.is_empty() {
            return Err(Failure::new("/save needs a file").hint("such as /save datasets/mine.jsonl"));
        }
        if !self.conversation.has_answer() {
            return Err(Failure::new("there is no answer yet"));
        }
        self.conversation.append_to(Path::new(path))?;
        self.terminal.row("saved", format!("one row more in {path}"));
        Ok(())
    }

    fn tokens(&mut self) -> Result<(), Failure> {
        let messages = self.conversation.messages();
        let speaker = self.speaker.speaker();
        let context = speaker.context_tokens();
        let used = if messages.is_empty() { 0 } else { speaker.prompt_tokens(&messages)? };
        let left = context.saturating_sub(used);
        let [used, context, left] = [used, context, left].map(|n| show::count(n as u64));
        self.terminal.row("tokens", format!("{used} of {context}, {left} left"));
        Ok(())
    }
}
