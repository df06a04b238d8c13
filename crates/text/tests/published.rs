//! Every published tokenizer at hand: its ids are the expected ones as it is read, from the GGUF metadata that is
//! written of it, and in llama.cpp from that metadata.

mod shared;

use std::collections::HashSet;
use std::path::Path;

use shared::expected::{Pair, pairs};
use shared::llama_cpp::{LlamaCpp, write_vocabulary};
use shared::{asset, tokenizer};
use text::Tokenizer;
use tokenizers::NormalizedString;
use tokenizers::normalizers::{NFC, StripAccents};
use tokenizers::tokenizer::Normalizer;

/// A tokenizer and whose ids it has to give.
struct Published {
    /// A vocabulary-only GGUF, a model's folder, or a SentencePiece model to be read without what stands beside it.
    source: &'static str,
    /// Rows of the model's embedding, where not those of the file.
    rows: usize,
    expected: &'static [&'static str],
    /// What a GGUF cannot say of it.
    unsaid: Unsaid,
    exceptions: &'static [Exception],
}

/// A part of a tokenizer for which `tokenizer.ggml.*` has no key; what reads them is given the text as that part
/// leaves it.
#[derive(Clone, Copy, PartialEq)]
enum Unsaid {
    Nothing,
    /// Characters are composed before all else.
    Composes,
    /// A space is put in front of the very first text, and nowhere else.
    FirstSpace,
}

/// Expected ids that are not those of a tokenizer, for a reason.
struct Exception {
    way: Way,
    /// The expected ids of the texts.
    by: &'static str,
    /// How many texts.
    texts: usize,
    because: Because,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Way {
    Read,
    WrittenBack,
    LlamaCpp,
}

#[derive(Clone, Copy, PartialEq)]
enum Because {
    /// llama.cpp's form of GPT-4o's expression knows letters, and no marks that combine with them.
    CombiningMarks,
    /// Runs of spaces are tokens that a GGUF spells with spaces: a `▁` of the text itself is none of them there.
    MarkAmongSpaces,
    /// llama.cpp makes a control token of any `</s>`, here a piece of HTML.
    ClosingTag,
    /// The expected ids are those of a relative that has `ü` as an added token of its own.
    AddedUmlaut,
}

const fn gguf(source: &'static str, expected: &'static [&'static str]) -> Published {
    Published { source, rows: 0, expected, unsaid: Unsaid::Nothing, exceptions: &[] }
}

const fn folder(source: &'static str, rows: usize, expected: &'static [&'static str]) -> Published {
    Published { source, rows, expected, unsaid: Unsaid::Nothing, exceptions: &[] }
}

const fn umlaut(way: Way) -> Exception {
    Exception { way, by: "llama.cpp/deepseek-llm", texts: 1, because: Because::AddedUmlaut }
}

const fn gemma_3(source: &'static str, rows: usize) -> Published {
    const MARK: Exception =
        Exception { way: Way::LlamaCpp, by: "", texts: 1, because: Because::MarkAmongSpaces };
    const EXCEPTIONS: &[Exception] = &[
        Exception { by: GEMMA_3[0], ..MARK },
        Exception { by: GEMMA_3[1], ..MARK },
        Exception { way: Way::WrittenBack, by: GEMMA_3[0], ..MARK },
        Exception { way: Way::WrittenBack, by: GEMMA_3[1], ..MARK },
        Exception { by: GEMMA_3[1], because: Because::ClosingTag, ..MARK },
    ];
    Published { exceptions: EXCEPTIONS, ..folder(source, rows, &GEMMA_3) }
}

const GEMMA_3: [&str; 2] = ["kitoken/tokenizers/gemma3", "kitoken/sentencepiece/gemma3"];

const TABLE: &[Published] = &[
    gguf("gguf-vocab/ggml-vocab-baichuan.gguf", &["original/llama-spm"]),
    gguf("gguf-vocab/ggml-vocab-deepseek-coder.gguf", &["llama.cpp/deepseek-coder"]),
    gguf("gguf-vocab/ggml-vocab-deepseek-llm.gguf", &["llama.cpp/deepseek-llm"]),
    gguf("gguf-vocab/ggml-vocab-falcon.gguf", &["llama.cpp/falcon"]),
    gguf("gguf-vocab/ggml-vocab-gpt-2.gguf", &["llama.cpp/gpt-2"]),
    Published {
        unsaid: Unsaid::Composes,
        ..gguf("gguf-vocab/ggml-vocab-gpt-neox.gguf", &["kitoken/tokenizers/gpt_neox"])
    },
    gguf(
        "gguf-vocab/ggml-vocab-llama-spm.gguf",
        &["llama.cpp/llama-spm", "kitoken/tokenizers/llama2", "kitoken/sentencepiece/llama2"],
    ),
    gguf("gguf-vocab/ggml-vocab-mpt.gguf", &["llama.cpp/mpt"]),
    gguf("gguf-vocab/ggml-vocab-phi-3.gguf", &["llama.cpp/phi-3"]),
    gguf("gguf-vocab/ggml-vocab-refact.gguf", &["llama.cpp/refact"]),
    gguf("gguf-vocab/ggml-vocab-starcoder.gguf", &["llama.cpp/starcoder"]),
    Published {
        exceptions: &[umlaut(Way::Read), umlaut(Way::WrittenBack), umlaut(Way::LlamaCpp)],
        ..folder("models/DeepSeek-Coder-V2-Lite-Instruct", 102_400, &["llama.cpp/deepseek-llm"])
    },
    folder("models/Llama-3.1-8B-Instruct", 128_256, &["llama.cpp/llama-bpe", "kitoken/tokenizers/llama33"]),
    folder("models/Llama-3.2-1B-Instruct", 128_256, &["llama.cpp/llama-bpe", "kitoken/tokenizers/llama32"]),
    Published {
        unsaid: Unsaid::FirstSpace,
        ..folder("models/Mistral-7B-Instruct-v0.3", 32_768, &["kitoken/tokenizers/mistral03"])
    },
    folder("models/Mistral-7B-Instruct-v0.3/tokenizer.model", 32_768, &["kitoken/sentencepiece/mistral03"]),
    Published {
        exceptions: &[Exception {
            way: Way::LlamaCpp,
            by: "kitoken/tiktoken/o200k_base",
            texts: 2,
            because: Because::CombiningMarks,
        }],
        ..folder("models/Phi-4-mini-instruct", 200_064, &["kitoken/tiktoken/o200k_base"])
    },
    folder("models/Qwen2.5-1.5B-Instruct", 151_936, &["llama.cpp/qwen2", "llama.cpp/deepseek-r1-qwen"]),
    folder("models/Qwen3-0.6B", 151_936, &["llama.cpp/qwen2"]),
    folder("models/Qwen3-4B", 151_936, &["llama.cpp/qwen2"]),
    gemma_3("models/gemma-3-1b-it", 262_144),
    gemma_3("models/gemma-3-4b-it", 262_208),
    folder("models/starcoder2-3b", 49_152, &["llama.cpp/starcoder"]),
];

/// Expected ids for which the assets have no vocabulary that gives them.
const WITHOUT_VOCABULARY: &[(&str, &str)] = &[
    ("llama.cpp/bert-bge", "WordPiece, of encoders"),
    ("llama.cpp/chameleon", "no vocabulary is here"),
    ("llama.cpp/command-r", "no vocabulary is here"),
    ("llama.cpp/roberta-bpe", "no vocabulary is here"),
    ("kitoken/tokenizers/gte", "Unigram, of encoders"),
];

/// The pairs of a name; `original/VOCABULARY`: texts of llama.cpp's with the ids that llama.cpp gives them from the
/// published file itself.
fn expected(name: &str, published: &Path) -> Vec<Pair> {
    let Some(texts) = name.strip_prefix("original/") else { return pairs(name).unwrap_or_default() };
    let llama_cpp = LlamaCpp::open(published);
    let mut pairs = pairs(&format!("llama.cpp/{texts}")).unwrap_or_default();
    for pair in &mut pairs {
        pair.by = name.to_owned();
        pair.ids = llama_cpp.ids(&pair.text, pair.trusted);
    }
    pairs
}

fn normalized(text: &str, normalizer: &impl Normalizer) -> String {
    let mut text = NormalizedString::from(text);
    normalizer.normalize(&mut text).unwrap();
    text.get().to_owned()
}

impl Unsaid {
    /// The text as that part of `tokenizer` leaves it.
    fn said(self, tokenizer: &Tokenizer, text: &str) -> String {
        let opens_with_control = || tokenizer.is_special(tokenizer.encode_template(text)[0]);
        match self {
            Unsaid::Composes => normalized(text, &NFC),
            Unsaid::FirstSpace if !text.is_empty() && !text.starts_with(' ') && !opens_with_control() => {
                format!(" {text}")
            }
            Unsaid::Nothing | Unsaid::FirstSpace => text.to_owned(),
        }
    }
}

/// The same tokenizer, by each way that its ids come.
struct Ways {
    read: Tokenizer,
    written_back: Tokenizer,
    llama_cpp: LlamaCpp,
    unsaid: Unsaid,
    is_gguf: bool,
}

impl Ways {
    fn new(published: &Published, path: &Path) -> Ways {
        let read = tokenizer(path);
        let folder = tempfile::tempdir().unwrap();
        let written = folder.path().join("vocabulary.gguf");
        let rows = if published.rows > 0 { published.rows } else { read.vocab_size() };
        write_vocabulary(&read, rows, &written);
        let (written_back, llama_cpp) = (tokenizer(&written), LlamaCpp::open(&written));
        Ways {
            read,
            written_back,
            llama_cpp,
            unsaid: published.unsaid,
            is_gguf: path.extension().is_some_and(|ending| ending == "gguf"),
        }
    }

    fn ids(&self, way: Way, text: &str, trusted: bool) -> Vec<u32> {
        let from_gguf = way != Way::Read || self.is_gguf;
        let text = if from_gguf { self.unsaid.said(&self.read, text) } else { text.to_owned() };
        let ours = |tokenizer: &Tokenizer| {
            if trusted { tokenizer.encode_template(&text) } else { tokenizer.encode(&text) }
        };
        match way {
            Way::Read => ours(&self.read),
            Way::WrittenBack => ours(&self.written_back),
            Way::LlamaCpp => self.llama_cpp.ids(&text, trusted),
        }
    }

    /// Where the ids are others, as tokens.
    fn difference(&self, ids: &[u32], pair: &Pair) -> String {
        let at = ids.iter().zip(&pair.ids).take_while(|(a, b)| a == b).count().saturating_sub(2);
        let tokens = |ids: &[u32]| -> Vec<String> {
            ids.iter()
                .skip(at)
                .take(8)
                .map(|id| format!("{id} {}", self.read.token(*id).unwrap_or("-")))
                .collect()
        };
        format!("{:?} instead of {:?} in {:?}", tokens(ids), tokens(&pair.ids), pair.text)
    }

    /// The ids give the text back.
    fn check_text(&self, way: Way, pair: &Pair) {
        let tokenizer = match way {
            Way::Read => &self.read,
            Way::WrittenBack => &self.written_back,
            Way::LlamaCpp => return,
        };
        // Neither can a `▁` be told from a space, nor a first space from one put in front.
        let lossy = pair.text.contains('▁') || pair.text.starts_with(' ');
        if lossy || pair.ids.iter().any(|id| tokenizer.is_special(*id)) {
            return;
        }
        let text =
            if self.unsaid == Unsaid::Composes { normalized(&pair.text, &NFC) } else { pair.text.clone() };
        let decoded = tokenizer.decode(&pair.ids);
        // Where only the very first text has a space in front, a GGUF's reader takes it for the text's own.
        let first_space = way == Way::WrittenBack && self.unsaid == Unsaid::FirstSpace;
        let decoded = if first_space { decoded.trim_start() } else { &decoded };
        assert_eq!(decoded, text, "{way:?}, {}", pair.by);
    }

    /// Whether a text's other ids are for that reason alone.
    fn explained(&self, way: Way, pair: &Pair, because: Because) -> bool {
        match because {
            Because::MarkAmongSpaces => {
                let text = pair.text.replace('▁', "_");
                text != pair.text && self.ids(way, &text, true) == self.ids(Way::Read, &text, true)
            }
            Because::ClosingTag => pair.text.contains("</s>"),
            Because::AddedUmlaut => pair.text == "Führer",
            Because::CombiningMarks => {
                let has_marks = |line: &&str| normalized(line, &StripAccents) != **line;
                let same = |line: &str| self.ids(way, line, true) == self.ids(Way::Read, line, true);
                pair.text.lines().any(|line| has_marks(&line))
                    && pair.text.lines().filter(|line| !has_marks(line)).all(same)
            }
        }
    }
}

fn check(published: &Published, path: &Path) {
    let ways = Ways::new(published, path);
    let mut row = published.source.to_owned();
    for name in published.expected {
        let pairs = expected(name, path);
        for way in [Way::Read, Way::WrittenBack, Way::LlamaCpp] {
            let exceptions: Vec<&Exception> =
                published.exceptions.iter().filter(|e| e.way == way && e.by == *name).collect();
            let mut excepted = 0;
            for pair in &pairs {
                let ids = ways.ids(way, &pair.text, pair.trusted);
                if ids == pair.ids {
                    ways.check_text(way, pair);
                    continue;
                }
                let explained = exceptions.iter().any(|e| ways.explained(way, pair, e.because));
                let difference = || ways.difference(&ids, pair);
                assert!(explained, "{}, {way:?}, {}: {}", published.source, pair.by, difference());
                excepted += 1;
            }
            assert_eq!(excepted, exceptions.iter().map(|e| e.texts).sum::<usize>(), "{row}, {way:?}");
            row += &format!(" · {way:?} {name} {} of {}", pairs.len() - excepted, pairs.len());
        }
    }
    println!("{row}");
}

#[test]
fn ids_are_the_expected_ones() {
    for published in TABLE {
        let Some(path) = asset(published.source) else { continue };
        if path.is_dir() && asset(&format!("{}/tokenizer.json", published.source)).is_none() {
            continue;
        }
        check(published, &path);
    }
}

/// Nothing in the assets is left out: each vocabulary is in the table, each list of ids is used or named.
#[test]
fn every_asset_is_in_the_table() {
    for (name, why) in WITHOUT_VOCABULARY {
        println!("skipped: ids of `{name}`: {why}");
    }
    let used: HashSet<&str> = TABLE.iter().flat_map(|published| published.expected).copied().collect();
    let known =
        |name: &str| used.contains(name) || WITHOUT_VOCABULARY.iter().any(|(other, _)| *other == name);
    let listed = |source: &str| TABLE.iter().any(|published| published.source == source);
    for path in listing("gguf-vocab") {
        if let Some(vocabulary) =
            path.strip_prefix("gguf-vocab/ggml-vocab-").and_then(|p| p.strip_suffix(".gguf.out"))
        {
            assert!(known(&format!("llama.cpp/{vocabulary}")), "{path}");
        }
        assert!(!path.ends_with(".gguf") || path.contains("bert-bge") || listed(&path), "{path}");
    }
    for path in listing("models") {
        let has_tokenizer = asset(&format!("{path}/tokenizer.json")).is_some();
        assert!(!has_tokenizer || path.contains("bert-base") || listed(&path), "{path}");
    }
    for library in ["tokenizers", "sentencepiece", "tiktoken"] {
        for path in listing(&format!("tokenizer-tests/kitoken/{library}")) {
            let (_, name) = path.split_once("_tokens_").unwrap();
            let name = format!("kitoken/{library}/{}", name.trim_end_matches(".txt"));
            assert!(known(&name), "{path}");
        }
    }
}

/// What a folder of the assets holds, each with its path there.
fn listing(folder: &str) -> Vec<String> {
    let Some(path) = asset(folder) else { return Vec::new() };
    let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name());
    entries.map(|name| format!("{folder}/{}", name.to_str().unwrap())).collect()
}
