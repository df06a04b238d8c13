//! Which tokens open, end and pad a text, from the files of a Hugging Face directory.
//!
//! The rules are those of `SpecialVocab` in llama.cpp's gguf-py, so that a GGUF says the same, with one
//! exception: a token written as an object (`{"content": "<s>", ...}`) counts like one written as a string.

use serde_json::Value;

/// The keys under which a GGUF names a token, after what Hugging Face calls it.
pub(crate) const ROLES: [(&str, &str); 8] = [
    ("bos", "tokenizer.ggml.bos_token_id"),
    ("eos", "tokenizer.ggml.eos_token_id"),
    ("unk", "tokenizer.ggml.unknown_token_id"),
    ("sep", "tokenizer.ggml.seperator_token_id"),
    ("pad", "tokenizer.ggml.padding_token_id"),
    ("cls", "tokenizer.ggml.cls_token_id"),
    ("mask", "tokenizer.ggml.mask_token_id"),
    ("eot", "tokenizer.ggml.eot_token_id"),
];

/// Special tokens by role, and which are put around a text; in the order of being set.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct SpecialTokens {
    pub ids: Vec<(&'static str, u32)>,
    pub adds: Vec<(&'static str, bool)>,
}

impl SpecialTokens {
    pub fn id(&self, role: &str) -> Option<u32> {
        self.ids.iter().find(|(name, _)| *name == role).map(|(_, id)| *id)
    }

    pub fn adds(&self, role: &str) -> Option<bool> {
        self.adds.iter().find(|(name, _)| *name == role).map(|(_, adds)| *adds)
    }

    pub fn set_id(&mut self, role: &'static str, id: u32) {
        if self.id(role).is_none() {
            self.ids.push((role, id));
        }
    }

    fn set_adds(&mut self, role: &'static str, value: bool) {
        match self.adds.iter_mut().find(|(name, _)| *name == role) {
            Some((_, adds)) => *adds = value,
            None => self.adds.push((role, value)),
        }
    }
}

/// What decides about special tokens.
pub(crate) struct Sources<'a> {
    /// `post_processor` of tokenizer.json.
    pub post_processor: &'a Value,
    /// tokenizer_config.json, or null.
    pub tokenizer_config: &'a Value,
    /// config.json, or null.
    pub config: &'a Value,
}

/// Reads the roles; `id_of` finds an added token by its text.
pub(crate) fn read(sources: &Sources, id_of: impl Fn(&str) -> Option<u32>) -> SpecialTokens {
    let mut special = SpecialTokens::default();
    let mut texts = Texts::new(sources.tokenizer_config);
    let processors = match sources.post_processor["processors"].as_array() {
        Some(list) => list.iter().collect(),
        None => vec![sources.post_processor],
    };
    for processor in processors {
        match processor["type"].as_str() {
            Some("ByteLevel") => {
                for role in ["bos", "eos"] {
                    let already = special.adds(role).unwrap_or(false);
                    special.set_adds(role, already);
                }
            }
            Some("TemplateProcessing") => template_processing(processor, &mut texts, &mut special),
            _ => {}
        }
    }
    if sources.tokenizer_config.is_object() {
        for (role, _) in &ROLES[..7] {
            let adds = sources.tokenizer_config[format!("add_{role}_token")].as_bool();
            if let (Some(adds), None) = (adds, special.adds(role)) {
                special.set_adds(role, adds);
            }
            if let Some(id) = texts.get(role).and_then(&id_of) {
                special.set_id(role, id);
            }
        }
    }
    for (role, _) in &ROLES[..7] {
        let key = format!("{role}_token_id");
        let id = sources.config[&key].as_u64().or(sources.config["text_config"][&key].as_u64());
        if let Some(id) = id.and_then(|id| u32::try_from(id).ok()) {
            special.set_id(role, id);
        }
    }
    special
}

/// The texts of the special tokens as far as they are known.
struct Texts(Vec<(&'static str, String)>);

impl Texts {
    fn new(tokenizer_config: &Value) -> Texts {
        let text = |role: &str| token_text(&tokenizer_config[format!("{role}_token")]);
        let mut texts: Vec<_> =
            ROLES[..7].iter().filter_map(|(role, _)| Some((*role, text(role)?))).collect();
        for (role, substitute) in [("bos", "cls"), ("eos", "sep")] {
            if let (None, Some(text)) = (text(role), text(substitute)) {
                texts.push((role, text));
            }
        }
        Texts(texts)
    }

    fn get(&self, role: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| *name == role).map(|(_, text)| text.as_str())
    }

    fn set(&mut self, role: &'static str, text: &str) {
        self.0.retain(|(name, _)| *name != role);
        self.0.push((role, text.to_owned()));
    }
}

/// A token's text, written as a string or as an object with `content`.
pub(crate) fn token_text(value: &Value) -> Option<String> {
    let text = value.as_str().or(value["content"].as_str())?;
    (!text.is_empty()).then(|| text.to_owned())
}

/// What a template of ids around the text says of BOS, EOS and the separator.
fn template_processing(processor: &Value, texts: &mut Texts, special: &mut SpecialTokens) {
    let token_at =
        |list: &[Value], at: usize| list.get(at)?["SpecialToken"]["id"].as_str().map(str::to_owned);
    let single = processor["single"].as_array().map(Vec::as_slice).unwrap_or_default();
    let (mut first, mut last) = (None, None);
    if single.len() > 1 {
        first = token_at(single, 0);
        last = token_at(single, single.len() - 1);
    }
    if let Some(first) = &first {
        let is_known = |texts: &Texts| [texts.get("bos"), texts.get("cls")].contains(&Some(first.as_str()));
        if !is_known(texts) {
            for role in ["bos", "cls"] {
                if texts.get(role).is_none() {
                    texts.set(role, first);
                }
            }
        }
        special.set_adds("bos", is_known(texts));
    }
    if let Some(last) = &last {
        texts.set("eos", last);
        special.set_adds("eos", true);
    }
    let pair = processor["pair"].as_array().map(Vec::as_slice).unwrap_or_default();
    let starts = usize::from(first.is_some() && token_at(pair, 0) == first);
    let ends = usize::from(last.is_some() && !pair.is_empty() && token_at(pair, pair.len() - 1) == last);
    let inner = pair.get(starts..pair.len() - ends).unwrap_or_default();
    let sequence_at = |at: usize| inner.get(at).and_then(|part| part["Sequence"]["id"].as_str());
    if inner.len() > 2 && sequence_at(0) == Some("A") && sequence_at(inner.len() - 1) == Some("B") {
        let separates = |at: usize| {
            token_at(inner, at)
                .is_some_and(|token| [texts.get("sep"), texts.get("eos")].contains(&Some(&token)))
        };
        let second = inner.len() == 4 && separates(2);
        special.set_adds("sep", (last.is_none() && separates(1)) || second);
    }
}
