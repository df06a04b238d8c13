//! Pre-tokenizers of byte-level BPE: how text is cut into words before merging.
//!
//! llama.cpp knows them by name (`tokenizer.ggml.pre`), a tokenizer.json spells them out. This table ties the
//! two, so that the name is found from what the tokenizer does. Expressions outside it are refused: one that
//! backtracks without end would panic in the regular expression engine, and none could be exported.

use serde_json::Value;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::punctuation::Punctuation;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior::{Contiguous, Isolated};

/// One way to cut, under the names that llama.cpp has for it.
#[derive(Debug)]
pub(crate) struct PreTokenizer {
    /// The name to write first, then those that mean the same.
    pub names: &'static [&'static str],
    cuts: &'static [Cut],
    /// Whether a word that is a token is taken whole, even if no merges lead to it.
    pub ignore_merges: bool,
    /// Whether llama.cpp puts BOS in front when the file is silent.
    pub adds_bos: bool,
}

#[derive(Debug)]
enum Cut {
    /// Each match is a word of its own.
    Regex(&'static str),
    /// Each digit is a word of its own (`true`), or each run of digits.
    Digits(bool),
    /// Each run of punctuation is a word of its own.
    Punctuation,
    /// GPT-2's expression, built into [`ByteLevel`].
    Gpt2,
}
use Cut::{Gpt2, Regex};

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT_4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK_LETTERS: &str = "\\s?[A-Za-z\u{b5}\u{c0}-\u{d6}\u{d8}-\u{f6}\u{f8}-\u{1ba}\u{1bc}-\u{1bf}\u{1c4}-\u{293}\u{295}-\u{2af}\u{370}-\u{373}\u{376}\u{377}\u{37b}-\u{37d}\u{37f}\u{386}\u{388}-\u{38a}\u{38c}\u{38e}-\u{3a1}\u{3a3}-\u{3f5}\u{3f7}-\u{481}\u{48a}-\u{52f}\u{531}-\u{556}\u{10a0}-\u{10c5}\u{13a0}-\u{13f5}\u{13f8}-\u{13fd}\u{1c90}-\u{1cba}\u{1cbd}-\u{1cbf}\u{1d00}-\u{1d2b}\u{1d6b}-\u{1d77}\u{1d79}-\u{1d9a}\u{1e00}-\u{1f15}\u{1f18}-\u{1f1d}\u{1f20}-\u{1f45}\u{1f48}-\u{1f4d}\u{1f50}-\u{1f57}\u{1f59}\u{1f5b}\u{1f5d}\u{1f5f}-\u{1f7d}\u{1f80}-\u{1fb4}\u{1fb6}-\u{1fbc}\u{1fbe}\u{1fc2}-\u{1fc4}\u{1fc6}-\u{1fcc}\u{1fd0}-\u{1fd3}\u{1fd6}-\u{1fdb}\u{1fe0}-\u{1fec}\u{1ff2}-\u{1ff4}\u{1ff6}-\u{1ffc}\u{2102}\u{2107}\u{210a}-\u{2113}\u{2115}\u{2119}-\u{211d}\u{2124}\u{2126}\u{2128}\u{212a}-\u{212d}\u{212f}-\u{2134}\u{2139}\u{213c}-\u{213f}\u{2145}-\u{2149}\u{214e}\u{2183}\u{2184}\u{2c00}-\u{2c7b}\u{2c7e}-\u{2ce4}\u{2ceb}-\u{2cee}\u{2cf2}\u{2cf3}\u{a640}-\u{a66d}\u{a680}-\u{a69b}\u{a722}-\u{a76f}\u{a771}-\u{a787}\u{a78b}-\u{a78e}\u{ab70}-\u{abbf}\u{fb00}-\u{fb06}\u{fb13}-\u{fb17}\u{ff21}-\u{ff3a}\u{ff41}-\u{ff5a}\u{10400}-\u{1044f}\u{104b0}-\u{104d3}\u{104d8}-\u{104fb}\u{10c80}-\u{10cb2}\u{10cc0}-\u{10cf2}\u{118a0}-\u{118df}\u{1e900}-\u{1e943}]+";
const DEEPSEEK_PUNCTUATION: &str =
    "\\s?[!-/:-~\u{ff01}-\u{ff0f}\u{ff1a}-\u{ff5e}\u{2018}-\u{201f}\u{3000}-\u{3002}]+";
const DEEPSEEK_HAN: &str = "[\u{4e00}-\u{9fa5}\u{800}-\u{4e00}\u{ac00}-\u{d7ff}]+";
const DEEPSEEK_V3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;

static TABLE: &[PreTokenizer] = &[
    PreTokenizer {
        names: &[
            "qwen2",
            "deepseek-r1-qwen",
            "megrez",
            "hunyuan",
            "stablelm2",
            "solar-open",
            "grok-2",
            "kormo",
            "f2llmv2",
        ],
        cuts: &[Regex(QWEN2)],
        ignore_merges: false,
        adds_bos: false,
    },
    PreTokenizer {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        cuts: &[Regex(LLAMA3)],
        ignore_merges: true,
        adds_bos: true,
    },
    PreTokenizer {
        names: &["smaug-bpe", "dbrx", "chatglm-bpe"],
        cuts: &[Regex(LLAMA3)],
        ignore_merges: false,
        adds_bos: false,
    },
    PreTokenizer { names: &["qwen35"], cuts: &[Regex(QWEN35)], ignore_merges: false, adds_bos: false },
    PreTokenizer {
        names: &["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"],
        cuts: &[Regex(GPT_4O)],
        ignore_merges: false,
        adds_bos: false,
    },
    PreTokenizer { names: &["tekken"], cuts: &[Regex(TEKKEN)], ignore_merges: true, adds_bos: true },
    PreTokenizer {
        names: &[
            "smollm",
            "starcoder",
            "refact",
            "command-r",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
        ],
        cuts: &[Cut::Digits(true), Gpt2],
        ignore_merges: false,
        adds_bos: false,
    },
    PreTokenizer {
        names: &[
            "gpt-2",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "exaone4",
            "roberta-bpe",
            "granite-docling",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "trillion",
        ],
        cuts: &[Gpt2],
        ignore_merges: false,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["deepseek-llm"],
        cuts: &[
            Regex(r"[\r\n]"),
            Regex(DEEPSEEK_LETTERS),
            Regex(DEEPSEEK_PUNCTUATION),
            Regex(r"\s+$"),
            Regex(DEEPSEEK_HAN),
            Cut::Digits(true),
        ],
        ignore_merges: false,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["deepseek-coder"],
        cuts: &[
            Regex(r"[\r\n]"),
            Regex(r"\s?\p{L}+"),
            Regex(r"\s?\p{P}+"),
            Regex(DEEPSEEK_HAN),
            Cut::Digits(true),
        ],
        ignore_merges: false,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        cuts: &[
            Regex(r"\p{N}{1,3}"),
            Regex("[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+"),
            Regex(DEEPSEEK_V3),
        ],
        ignore_merges: false,
        adds_bos: false,
    },
    PreTokenizer {
        names: &["falcon"],
        cuts: &[Cut::Punctuation, Gpt2, Cut::Digits(false), Regex("[0-9][0-9][0-9]")],
        ignore_merges: false,
        adds_bos: false,
    },
];

/// The pre-tokenizer that llama.cpp calls `name`.
pub(crate) fn by_name(name: &str) -> Option<&'static PreTokenizer> {
    TABLE.iter().find(|row| row.names.contains(&name))
}

/// All names, for messages.
pub(crate) fn known_names() -> String {
    TABLE.iter().flat_map(|row| row.names).copied().collect::<Vec<_>>().join(", ")
}

/// The name for a GGUF that has none, as files had not before April 2024, where its architecture leaves no doubt:
/// all models of GPT-NeoX have one tokenizer, for which llama.cpp's converter writes `mpt` itself. Other
/// architectures were published with several.
pub(crate) fn name_by_architecture(architecture: &str) -> Option<&'static str> {
    (architecture == "gptneox").then_some("mpt")
}

/// The pre-tokenizer that a tokenizer.json describes.
pub(crate) fn by_structure(description: &Value, ignore_merges: bool) -> Option<&'static PreTokenizer> {
    let steps = steps(description)?;
    let fits = |row: &&PreTokenizer| row.describes(&steps);
    let rows: Vec<_> = TABLE.iter().filter(fits).collect();
    // Where one row alone cuts so, its name is the only one to write, whatever it says of merges.
    rows.iter()
        .find(|row| row.ignore_merges == ignore_merges)
        .or(rows.first().filter(|_| rows.len() == 1))
        .copied()
}

/// The steps of a description that cut; the byte alphabet, which every row has, is not one of them.
fn steps(description: &Value) -> Option<Vec<&Value>> {
    let all: Vec<&Value> = match description["type"].as_str()? {
        "Sequence" => description["pretokenizers"].as_array()?.iter().collect(),
        _ => vec![description],
    };
    let is_byte_level = |step: &&Value| step["type"] == "ByteLevel";
    let plain_spaces = |step: &Value| step["add_prefix_space"] == Value::Bool(false);
    let alphabet_once = all.iter().filter(|step| is_byte_level(step)).count() == 1;
    if !alphabet_once || !all.iter().filter(|step| is_byte_level(step)).all(|step| plain_spaces(step)) {
        return None;
    }
    Some(
        all.into_iter()
            .filter(|step| !is_byte_level(step) || step["use_regex"] != Value::Bool(false))
            .collect(),
    )
}

impl PreTokenizer {
    fn describes(&self, steps: &[&Value]) -> bool {
        self.cuts.len() == steps.len() && self.cuts.iter().zip(steps).all(|(cut, step)| cut.describes(step))
    }

    /// The name to write. StarCoder's models share SmolLM's cuts; what they have of their own is the token for
    /// filling in the middle.
    pub fn name(&self, has_token: impl Fn(&str) -> bool) -> &'static str {
        match self.names {
            ["smollm", starcoder @ "starcoder", ..] if has_token("<fim_prefix>") => starcoder,
            [name, ..] => name,
            [] => unreachable!("every row has a name"),
        }
    }

    /// The working pre-tokenizer.
    pub fn build(&self) -> tokenizers::Result<PreTokenizerWrapper> {
        let mut parts = self.cuts.iter().map(Cut::build).collect::<tokenizers::Result<Vec<_>>>()?;
        if !self.cuts.iter().any(|cut| matches!(cut, Gpt2)) {
            parts.push(PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, false)));
        }
        Ok(PreTokenizerWrapper::Sequence(Sequence::new(parts)))
    }
}

impl Cut {
    fn describes(&self, step: &Value) -> bool {
        match self {
            Regex(expression) => step["type"] == "Split" && is_expression(step, expression),
            Cut::Digits(individual) => step["type"] == "Digits" && step["individual_digits"] == *individual,
            Cut::Punctuation => step["type"] == "Punctuation" && step["behavior"] == "Contiguous",
            Gpt2 => step["type"] == "ByteLevel",
        }
    }

    fn build(&self) -> tokenizers::Result<PreTokenizerWrapper> {
        Ok(match self {
            Regex(expression) => {
                let pattern = SplitPattern::Regex((*expression).to_owned());
                PreTokenizerWrapper::Split(Split::new(pattern, Isolated, false)?)
            }
            Cut::Digits(individual) => PreTokenizerWrapper::Digits(Digits::new(*individual)),
            Cut::Punctuation => PreTokenizerWrapper::Punctuation(Punctuation::new(Contiguous)),
            Gpt2 => PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, true)),
        })
    }
}

/// Whether a `Split` isolates the matches of `expression`. Removing what does not match is the same, since
/// such expressions match everything.
fn is_expression(step: &Value, expression: &str) -> bool {
    let written = step["pattern"]["Regex"].as_str().unwrap_or_default();
    let isolates = match (step["behavior"].as_str(), step["invert"].as_bool()) {
        (Some("Isolated"), invert) => invert != Some(true),
        (Some("Removed"), invert) => invert == Some(true),
        _ => false,
    };
    isolates && written.replace('\r', r"\r").replace('\n', r"\n") == expression
}
