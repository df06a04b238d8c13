//! argv.

use clap::{Parser, Subcommand};
use std::path::PathBuf;

/// Train an adapter on an open model, export it to a checked GGUF, run it as an expert.
#[derive(Debug, Parser)]
#[command(
    version,
    max_term_width = 100,
    after_help = "Exit codes: 0 done; 1 the input is at fault; 2 usage; 3 the training diverged, what is saved is from \
                  before; 70 a bug of ours; 130 interrupted, nothing is lost"
)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
    /// Print events as JSON, one object a line, on standard output
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write a recipe for a base and rows, by a few questions or flags
    Init(Init),
    /// Write a recipe from a configuration of axolotl, mlx-lm, LLaMA-Factory, Unsloth or torchtune
    Import(Import),
    /// Train an adapter as a recipe says
    Train(Train),
    /// Measure base, adapter and exported file side by side on held-out rows
    Eval(Eval),
    /// Talk to what was trained
    Chat(Chat),
    /// Merge, quantise and check: one GGUF that an engine can run
    Export(Export),
    /// Keep a GGUF, perhaps with adapters over it, as an expert, after checks
    Register(Register),
    /// Registered experts: list, show, remove, choose the default
    Experts(Experts),
    /// Run a pipeline of experts over a file, as many of them in memory as fit
    Run(Run),
    /// Serve experts and pipelines: Ollama's API and a web page
    Serve(Serve),
    /// Show what a pipeline's experts take in memory, or a recipe's training, before anything is loaded
    Plan(Plan),
    /// Show rows as the model will see them, what of them is learnt, and figures of all
    Preview(Preview),
    /// Suggest a base, a quantisation and a context for a role and so much memory
    Suggest(Suggest),
    /// Download a model of the Hugging Face hub into its cache
    Pull(Pull),
    /// Show what is in a GGUF, a checkpoint, an adapter, a run or a receipt
    Inspect(Inspect),
    /// Training runs on disk: list, show, compare, clean up
    Runs(Runs),
    /// Check this machine: what it has, what it lacks, and the remedy
    Doctor,
}

#[derive(Debug, clap::Args)]
pub struct Init {
    /// A folder in Hugging Face layout, a GGUF, ollama:NAME, or a model of the hub
    #[arg(long)]
    pub base: Option<String>,
    /// The rows: JSON, one a line, or one JSON array
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// The recipe becomes recipes/NAME.toml [default: the name of the data file or its folder]
    #[arg(long)]
    pub name: Option<String>,
    /// What is to be learnt [default: a task, or text where the rows are plain text]
    #[arg(long, value_enum)]
    pub goal: Option<Goal>,
    /// The memory that training may use
    #[arg(long, value_name = "SIZE", value_parser = crate::bytes::parse)]
    pub memory: Option<u64>,
    /// Ask nothing: take what was found for everything that no flag says
    #[arg(long)]
    pub yes: bool,
}

/// What is to be learnt from the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Goal {
    /// A task that the rows show: answers in a form or of a kind that the base does not give
    Task,
    /// A tone: answers as the base gives them, put otherwise; few changes
    Style,
    /// Plain text: what the rows say, word for word
    Text,
}

#[derive(Debug, clap::Args)]
pub struct Import {
    /// The configuration: YAML, or JSON of the same keys
    pub file: PathBuf,
    /// Whose configuration it is [default: told by its keys]
    #[arg(long, value_enum)]
    pub from: Option<Tool>,
    /// Where the recipe is written [default: recipes/<name of the file>.toml]
    #[arg(long)]
    pub out: Option<PathBuf>,
}

/// A tool whose configurations are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Tool {
    Axolotl,
    MlxLm,
    LlamaFactory,
    Unsloth,
    Torchtune,
}

impl Tool {
    /// As the tool writes itself.
    pub fn name(self) -> &'static str {
        match self {
            Tool::Axolotl => "axolotl",
            Tool::MlxLm => "mlx-lm",
            Tool::LlamaFactory => "LLaMA-Factory",
            Tool::Unsloth => "Unsloth",
            Tool::Torchtune => "torchtune",
        }
    }
}

#[derive(Debug, clap::Args)]
pub struct Train {
    /// The recipe, such as recipes/quickstart.toml
    pub recipe: PathBuf,
    /// Continue an interrupted run from its last checkpoint
    #[arg(long)]
    pub resume: bool,
    /// Where the run is kept [default: runs/<name of the recipe>]
    #[arg(long)]
    pub run_dir: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub struct Eval {
    /// A run (runs/quickstart) or its recipe; an adapter's folder with --base; a base or a GGUF with --data
    pub source: PathBuf,
    /// The base of an adapter's folder
    #[arg(long)]
    pub base: Option<PathBuf>,
    /// Held-out rows [default: the recipe's test file, or else its validation rows]
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// The first so many rows [default: the recipe's for its test file, all of another]
    #[arg(long)]
    pub rows: Option<usize>,
    /// Longest answer [default: the recipe's, or 128]
    #[arg(long)]
    pub max_new_tokens: Option<usize>,
    /// Measure these alone; a GGUF as base is run by tune itself, as export by llama.cpp
    #[arg(long, value_enum, value_delimiter = ',')]
    pub only: Vec<EvalOf>,
    /// This exported file instead of those in the run's export folder; may be repeated
    #[arg(long = "export", value_name = "FILE")]
    pub exports: Vec<PathBuf>,
    /// Figures for each value of this key of the rows [default: task or category, where rows have one]
    #[arg(long, value_name = "KEY")]
    pub by: Option<String>,
    /// Write every answer here, one JSON object a line
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Memory that may be used [default: the recipe's, or 8GB]
    #[arg(long, value_name = "SIZE", value_parser = crate::bytes::parse)]
    pub budget: Option<u64>,
}

/// Who can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum EvalOf {
    Base,
    Adapter,
    Export,
}

#[derive(Debug, clap::Args)]
pub struct Chat {
    /// A run (runs/quickstart) or its recipe, an adapter's folder with --base, a base's folder, or a GGUF
    pub source: PathBuf,
    /// The base of an adapter's folder
    #[arg(long)]
    pub base: Option<PathBuf>,
    /// One question; so is what comes on standard input, if that is not a terminal
    #[arg(long, short)]
    pub prompt: Option<String>,
    /// The system message [default: the recipe's, or none]
    #[arg(long)]
    pub system: Option<String>,
    /// 0 always takes the likeliest token, more draws more freely
    #[arg(long, default_value_t = 0.0)]
    pub temperature: f32,
    /// Draw among the likeliest tokens that together have this probability
    #[arg(long, default_value_t = 0.95)]
    pub top_p: f32,
    /// Draw among so many of the likeliest tokens; 0: all
    #[arg(long, default_value_t = 40)]
    pub top_k: usize,
    /// Draw among tokens at least this likely, relative to the likeliest
    #[arg(long, default_value_t = 0.0)]
    pub min_p: f32,
    /// The same seed draws the same text
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Longest answer in tokens [default: to the end of the context]
    #[arg(long)]
    pub max_tokens: Option<usize>,
    /// Tokens of context, questions and answers together [default: the recipe's, or up to 4096]
    #[arg(long)]
    pub num_ctx: Option<u32>,
    /// Memory that may be used [default: the recipe's, or 8GB]
    #[arg(long, value_name = "SIZE", value_parser = crate::bytes::parse)]
    pub budget: Option<u64>,
}

#[derive(Debug, clap::Args)]
pub struct Export {
    /// A run (runs/quickstart), or a base: its folder, a GGUF, or hf.co/OWNER/NAME
    pub source: PathBuf,
    /// q4_k_m (the default, if the recipe names none), q5_k_m, q6_k, q8_0, q2_k, q3_k_s, q3_k_m, q3_k_l, q4_k_s, q5_k_s,
    /// q4_0, q4_1, q5_0, q5_1, iq4_nl, iq4_xs, iq3_m, iq3_s, bf16, f16 or f32; with an importance matrix iq3_xs,
    /// iq3_xxs, iq2_m, iq2_s, iq2_xs and iq2_xxs too
    ///
    /// Several, with commas between, are made in one pass over the base, each in a folder of its name.
    #[arg(long, value_delimiter = ',')]
    pub quant: Vec<String>,
    /// Go on past a quantisation that is refused, and show at the end what each is worth
    #[arg(long)]
    pub compare: bool,
    /// The memory that the result is to fit in, for --compare [default: the recipe's, or 8GB]
    #[arg(long, value_name = "SIZE", value_parser = crate::bytes::parse)]
    pub budget: Option<u64>,
    /// Merge this adapter too, all of it or so much: a run, or a directory in PEFT's layout; may be repeated
    #[arg(long = "adapter", value_name = "DIR[=WEIGHT]")]
    pub adapters: Vec<String>,
    /// Quantise a GGUF once more that has fewer than 16 bits already, and lose more than from the original
    #[arg(long = "allow-requantize")]
    pub allow_requantize: bool,
    /// Another type for the tensors whose name matches, such as `ffn_down=q6_k`: llama-quantize's --tensor-type
    #[arg(long = "tensor-type", value_name = "PATTERN=TYPE")]
    pub types: Vec<String>,
    /// What is important in the weights: measured on the training data (train) or on a general text (general), a file of
    /// llama.cpp's (imatrix.gguf or .dat), or off [default: the recipe's, or off]
    #[arg(long, value_name = "train|general|FILE|off")]
    pub imatrix: Option<PathBuf>,
    /// What is written: a merged and quantised GGUF, the adapter alone for llama.cpp, or base and adapter merged into a
    /// checkpoint that transformers loads
    #[arg(long = "as", value_enum, default_value_t = Form::Gguf)]
    pub form: Form,
    /// Where the result is written [default: <run>/export; for a base: runs/<its name>/export]
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Replace an export that is already there
    #[arg(long)]
    pub force: bool,
}

/// The form of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    Gguf,
    Adapter,
    MergedHf,
}

#[derive(Debug, clap::Args)]
pub struct Register {
    /// What requests and pipelines call it
    pub name: String,
    /// The GGUF: an exported file, or the base of an adapter
    pub file: PathBuf,
    /// A LoRA adapter (GGUF, of `tune export --as adapter`) to set over it, all of it or so much; may be repeated
    #[arg(long = "adapter", value_name = "FILE[=SCALE]")]
    pub adapters: Vec<String>,
    /// Tokens of context, prompt and answer together [default: 4096, or what the model was trained on if that is less]
    #[arg(long)]
    pub num_ctx: Option<u32>,
    /// Tokens of a prompt read at once [default: 512]
    #[arg(long)]
    pub num_batch: Option<u32>,
    /// Threads [default: one a processor]
    #[arg(long)]
    pub num_thread: Option<u32>,
    /// Layers on the graphics card [default: all, where there is one]
    #[arg(long)]
    pub num_gpu: Option<u32>,
    /// Type of the cached keys and values: f16, q8_0, q4_0, f32, bf16 [default: f16]
    #[arg(long, value_parser = word::<runner::card::KvType>)]
    pub kv_type: Option<runner::card::KvType>,
    /// Flash attention: auto, on, off [default: auto]
    #[arg(long, value_parser = word::<runner::card::FlashAttention>)]
    pub flash_attention: Option<runner::card::FlashAttention>,
    /// A system message for chats that have none
    #[arg(long)]
    pub system: Option<String>,
    /// A text at which answers stop, besides the end of the turn; may be repeated
    #[arg(long)]
    pub stop: Vec<String>,
    /// 0 always takes the likeliest token
    #[arg(long, default_value_t = 0.0)]
    pub temperature: f32,
    /// Longest answer in tokens [default: to the end of the context]
    #[arg(long)]
    pub max_tokens: Option<u32>,
    /// The expert to take where this one does not fit
    #[arg(long, value_name = "NAME")]
    pub fallback: Option<String>,
    /// Make it the expert that is meant where none is named
    #[arg(long)]
    pub default: bool,
    /// Replace an expert of that name
    #[arg(long)]
    pub force: bool,
    /// Make it a model of the Ollama at OLLAMA_HOST too, of this name or of the expert's
    #[arg(long, value_name = "NAME", num_args = 0..=1, default_missing_value = "")]
    pub ollama: Option<String>,
    /// Start the `ollama` of the PATH for that, where it does not run yet
    #[arg(long, requires = "ollama")]
    pub start_ollama: bool,
}

/// A word as cards and pipelines spell it.
fn word<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(text.into()).map_err(|error| error.to_string())
}

#[derive(Debug, clap::Args)]
pub struct Experts {
    #[command(subcommand)]
    pub command: Option<ExpertsCommand>,
}

#[derive(Debug, Subcommand)]
pub enum ExpertsCommand {
    /// All experts, the default marked, and what their files take (what `tune experts` does)
    List,
    /// One expert: its card, its files, whether they are as they were
    Show {
        /// Its name
        name: String,
    },
    /// Forget an expert; its files stay
    Remove {
        /// Its name
        name: String,
    },
    /// Say which expert is meant where none is named, or choose it
    Default {
        /// Its name
        name: Option<String>,
    },
}

#[derive(Debug, clap::Args)]
pub struct Run {
    /// The pipeline, such as recipes/pipeline.toml
    pub pipeline: PathBuf,
    /// The text to process: a file, or - for standard input
    #[arg(long)]
    pub input: PathBuf,
    /// Where runs are kept, a folder each [default: runs/pipelines]
    #[arg(long)]
    pub runs: Option<PathBuf>,
    /// Continue the run of this id, as printed when it began
    #[arg(long)]
    pub resume: Option<String>,
    /// Start the `ollama` of the PATH for this run, where it does not run yet
    #[arg(long)]
    pub start_ollama: bool,
    /// Keep one expert in memory, even where more would fit
    #[arg(long)]
    pub one_at_a_time: bool,
    /// Run the programs of this machine that the pipeline lists, with your rights
    #[arg(long)]
    pub allow_programs: bool,
}

#[derive(Debug, clap::Args)]
pub struct Serve {
    /// Pipelines (.toml), whose experts are offered too, and exported files (.gguf), each kept as an expert
    pub offers: Vec<PathBuf>,
    /// The address; beyond this machine (not 127.0.0.1) a key in TUNE_API_KEY is required
    #[arg(long, default_value = "127.0.0.1")]
    pub host: std::net::IpAddr,
    #[arg(long, default_value_t = 11435)]
    pub port: u16,
    /// Keep one expert in memory, even where more would fit
    #[arg(long)]
    pub one_at_a_time: bool,
    /// Where runs are kept, a folder each [default: runs/pipelines]
    #[arg(long)]
    pub runs: Option<PathBuf>,
    /// Start the `ollama` of the PATH for as long as this serves, where it does not run yet
    #[arg(long)]
    pub start_ollama: bool,
    /// Run the programs of this machine that the pipelines list, for whoever can reach the server
    #[arg(long)]
    pub allow_programs: bool,
}

#[derive(Debug, clap::Args)]
pub struct Preview {
    /// The recipe
    pub recipe: PathBuf,
    /// How many rows are shown
    #[arg(long, short = 'n', default_value_t = 3)]
    pub rows: usize,
    /// The row that begins at this line of a data file
    #[arg(long)]
    pub line: Option<u64>,
    /// A line for each token: its id, how much it counts, its text
    #[arg(long)]
    pub tokens: bool,
}

#[derive(Debug, clap::Args)]
pub struct Plan {
    /// A pipeline, such as recipes/pipeline.toml, or a recipe
    pub file: PathBuf,
    /// Of a recipe: a line for each of these lengths of rows, such as 512,1024,2048, longer rows being cut
    #[arg(long, value_name = "TOKENS", value_delimiter = ',')]
    pub sweep: Vec<usize>,
    /// Of a recipe: how long the run will take, from some seconds of it
    #[arg(long, conflicts_with = "sweep")]
    pub probe: bool,
    /// For a graphics card of that size, such as 8GB, instead of this machine
    #[arg(long, value_name = "SIZE", value_parser = crate::bytes::parse)]
    pub memory: Option<u64>,
    /// What desktop and other programs take of that memory
    #[arg(long, value_name = "SIZE", value_parser = crate::bytes::parse, default_value = "800MB")]
    pub reserve: u64,
    /// Of a pipeline: as with `tune run --one-at-a-time`
    #[arg(long)]
    pub one_at_a_time: bool,
}

#[derive(Debug, clap::Args)]
pub struct Suggest {
    /// What the expert is for
    #[arg(long, value_enum)]
    pub role: Role,
    /// For a graphics card of that size, such as 8GB, instead of this machine
    #[arg(long, value_name = "SIZE", value_parser = crate::bytes::parse)]
    pub memory: Option<u64>,
    /// What desktop and other programs take of that memory
    #[arg(long, value_name = "SIZE", value_parser = crate::bytes::parse, default_value = "800MB")]
    pub reserve: u64,
}

/// What an expert is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    Coding,
    Reasoning,
    Chat,
    Routing,
    Embedding,
}

#[derive(Debug, clap::Args)]
pub struct Pull {
    /// OWNER/NAME of a model on the hub, with @REVISION for another than main, with :FILE.gguf for one GGUF
    pub model: String,
}

#[derive(Debug, clap::Args)]
pub struct Inspect {
    /// A .gguf, a .safetensors, a model's folder, an adapter's folder, a run or a receipt.json
    pub path: PathBuf,
}

#[derive(Debug, clap::Args)]
pub struct Runs {
    #[command(subcommand)]
    pub command: Option<RunsCommand>,
    /// The folder that the runs lie in
    #[arg(long = "in", value_name = "FOLDER", default_value = "runs", global = true)]
    pub folder: PathBuf,
}

#[derive(Debug, Subcommand)]
pub enum RunsCommand {
    /// All training runs: steps, losses, exact match, time, size; and the newest runs of pipelines
    List,
    /// One run: how it stands, its figures, and what it was made from; or a pipeline's: steps, times, tokens, loads
    Show(RunName),
    /// Several training runs: the options that differ, and the figures side by side
    Compare(CompareRuns),
    /// Say what of the training runs is no longer needed, and remove it with --yes
    ///
    /// Checkpoints of finished runs, what killed processes left half-written, and runs that were left before their end.
    /// Never an adapter or an export, and nothing of a run that is being trained.
    Clean(CleanRuns),
    /// Write report.html of a training run anew
    Report(RunName),
}

#[derive(Debug, clap::Args)]
pub struct RunName {
    /// Its name or id, as `tune runs` lists it, or its folder
    pub run: PathBuf,
}

#[derive(Debug, clap::Args)]
pub struct CompareRuns {
    /// Their names, or their folders
    #[arg(required = true, num_args = 2..)]
    pub runs: Vec<PathBuf>,
    /// Write a page with their losses in one plot
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub struct CleanRuns {
    /// Their names, or their folders [default: all]
    pub runs: Vec<PathBuf>,
    /// Remove it
    #[arg(long)]
    pub yes: bool,
    /// Days after which a run that was left before its end counts as abandoned
    #[arg(long, value_name = "DAYS", default_value_t = 30)]
    pub abandoned_after: u64,
}
