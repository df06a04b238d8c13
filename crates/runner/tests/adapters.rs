//! LoRA adapters over one resident base, through the real engine.

mod tiny;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use formats::gguf;
use formats::hash::blake3_file;
use runner::budget::{Available, COMPUTE_ERROR, Head, Place, Planned, budget};
use runner::card::{
    Adapter, AdapterOptions, BaseMatch, CardOptions, Digests, FlashAttention, KvType, LoadOptions,
};
use runner::engine::llama::{LlamaEngine, Session, SessionOptions};
use runner::engine::{Progress, Prompt, Request};
use runner::residency::ResidencyEvent;
use runner::{Error, ExpertCard, Residency};
use tempfile::TempDir;
use text::Message;
use tiny::{Says, noise};

const PIECES: [&str; 3] = ["Hello", ", world", "Bye"];

struct Bench {
    directory: TempDir,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        tiny::write(&directory.path().join("base.gguf"), &Says::Once(&PIECES));
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// An adapter that makes the base begin with a piece.
    fn adapter(&self, name: &str, first: usize, base_blake3: Option<&str>) -> PathBuf {
        let path = self.path(name);
        tiny::write_adapter(&path, &PIECES, first, base_blake3);
        path
    }

    fn card(&self, name: &str, adapters: &[(&Path, f32)]) -> Result<ExpertCard, Error> {
        card(name, &self.path("base.gguf"), adapters, load())
    }
}

fn load() -> LoadOptions {
    LoadOptions { num_ctx: 256, num_thread: 1, ..LoadOptions::default() }
}

fn card(name: &str, file: &Path, adapters: &[(&Path, f32)], load: LoadOptions) -> Result<ExpertCard, Error> {
    let adapters =
        adapters.iter().map(|&(file, scale)| AdapterOptions { file: file.to_owned(), scale }).collect();
    let options = CardOptions { load, adapters, ..CardOptions::default() };
    ExpertCard::from_file(name, file, &options, Digests::Blake3)
}

/// A base of noise and the same with an adapter, whose files are in the folder.
fn noisy_pair(load: LoadOptions) -> (tempfile::TempDir, ExpertCard, ExpertCard) {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    noise::write(&path("base.gguf"), 1);
    noise::write_adapter(&path("a.gguf"), 2, 4);
    let base = card("base", &path("base.gguf"), &[], load.clone()).unwrap();
    let adapted = card("adapted", &path("base.gguf"), &[(&path("a.gguf"), 1.0)], load).unwrap();
    (directory, base, adapted)
}

fn adapters(card: &ExpertCard) -> &[Adapter] {
    &card.file().unwrap().adapters
}

/// Says hello as each card in turn; gives what was said and what came and went.
fn say(residency: &mut Residency, cards: &[&ExpertCard]) -> (Vec<String>, Vec<String>) {
    let mut seen = Vec::new();
    let mut said = Vec::new();
    for card in cards {
        let mut observe = |event: ResidencyEvent| match event {
            ResidencyEvent::Loaded { expert, .. } => seen.push(format!("+{expert}")),
            ResidencyEvent::Unloaded { expert, .. } => seen.push(format!("-{expert}")),
            ResidencyEvent::Switched { expert, from, switch_ms } => {
                assert!(switch_ms > 0.0);
                seen.push(format!("{from}>{expert}"));
            }
            _ => {}
        };
        let (expert, _) = residency.get(card, &|| false, &mut observe).unwrap();
        let request = Request::new(card, Prompt::Chat(vec![Message::new("user", "Hi")]));
        said.push(expert.generate(&request, &mut |_| ControlFlow::Continue(())).unwrap().text);
    }
    (said, seen)
}

#[test]
fn experts_over_one_base_switch_without_a_load() {
    let place = Bench::new();
    let base_hash = blake3_file(&place.path("base.gguf")).unwrap();
    let second = place.adapter("second.gguf", 1, Some(&base_hash));
    let third = place.adapter("third.gguf", 2, None);
    let base = place.card("base", &[]).unwrap();
    let comma = place.card("comma", &[(&second, 1.0)]).unwrap();
    let bye = place.card("bye", &[(&third, 1.0)]).unwrap();
    let off = place.card("off", &[(&third, 0.0)]).unwrap();
    assert_eq!(adapters(&comma)[0].base, BaseMatch::Hash);
    assert_eq!(adapters(&bye)[0].base, BaseMatch::Shapes);
    let mut residency = Residency::new(Box::new(LlamaEngine::new().unwrap()));
    let (said, seen) = say(&mut residency, &[&base, &comma, &bye, &base, &bye, &off, &comma]);
    assert_eq!(
        said,
        ["Hello, worldBye", ", worldBye", "Bye", "Hello, worldBye", "Bye", "Hello, worldBye", ", worldBye"]
    );
    // Each switch of adapters is told, and there is no load but the first.
    let switches = ["base>comma", "comma>bye", "bye>base", "base>bye", "bye>off", "off>comma"];
    assert_eq!(seen, [&["+base"][..], &switches].concat());
    // The first of them loaded may have one as well.
    let mut residency = Residency::new(Box::new(LlamaEngine::new().unwrap()));
    assert_eq!(
        say(&mut residency, &[&bye, &base]),
        (vec!["Bye".into(), "Hello, worldBye".into()], vec!["+bye".into(), "bye>base".into()])
    );
}

#[test]
fn a_wrong_adapter_is_refused_before_anything_is_loaded() {
    let place = Bench::new();
    let base = place.path("base.gguf");
    let refused = |name: &str, path: &Path| match place.card("x", &[(path, 1.0)]) {
        Err(Error::Adapter { reason, path: named, .. }) => {
            assert_eq!(named, path, "{name}");
            reason
        }
        other => panic!("{name}: {other:?}"),
    };
    // Another base of the same shapes: made of something else, or with an adapter merged into it.
    let path = place.adapter("other.gguf", 1, Some("1234"));
    assert_eq!(adapters(&place.card("x", &[(&path, 1.0)]).unwrap())[0].base, BaseMatch::Shapes);
    let made_of = |keys: &[(&str, &str)]| {
        let file = place.path("made.gguf");
        copy_with(&base, &file, keys);
        card("x", &file, &[(&path, 1.0)], load())
    };
    assert_eq!(adapters(&made_of(&[("tune.base_blake3", "1234")]).unwrap())[0].base, BaseMatch::Hash);
    let other = made_of(&[("tune.base_blake3", "5678")]).unwrap_err().to_string();
    assert!(other.contains("trained on base 1234") && other.contains("made of 5678"), "{other}");
    let merged =
        made_of(&[("tune.base_blake3", "1234"), ("tune.adapter_blake3", "9")]).unwrap_err().to_string();
    assert!(merged.contains("adapter 9 merged into it"), "{merged}");
    // What is no adapter, or not one of this base.
    assert!(refused("a model", &base).contains("`general.type` is absent, expected adapter"));
    let pair = |matrix: &str, shape: [usize; 3], value: f32| {
        let path = place.path("pair.gguf");
        let (a, b) = (vec![value; shape[0] * shape[1]], vec![1.0; shape[1] * shape[2]]);
        tiny::write_pairs(&path, 1.0, None, &[(matrix, shape, a, b)]);
        refused(matrix, &path)
    };
    assert_eq!(
        pair("blk.7.attn_q.weight", [320, 2, 32], 1.0),
        "its base has no tensor `blk.7.attn_q.weight`"
    );
    let shapes = pair("blk.0.attn_q.weight", [320, 2, 64], 1.0);
    assert_eq!(
        shapes,
        "its pair for `blk.0.attn_q.weight` has shapes [320, 2] and [2, 64], the matrix of the base [320, 32]"
    );
    assert_eq!(
        pair("blk.0.attn_q.weight", [320, 2, 32], f32::NAN),
        "tensor `blk.0.attn_q.weight.lora_a` holds NaN"
    );
    // Scales, and one adapter twice.
    let scale = place.card("x", &[(&path, f32::INFINITY)]).unwrap_err().to_string();
    assert!(scale.contains("its scale is inf"), "{scale}");
    let twice = place.card("x", &[(&path, 1.0), (&path, 0.5)]).unwrap_err().to_string();
    assert!(twice.contains("given twice"), "{twice}");
    std::fs::write(place.path("text.gguf"), "no adapter").unwrap();
    assert!(matches!(place.card("x", &[(&place.path("text.gguf"), 1.0)]), Err(Error::Format(_))));
}

/// The same model with further keys.
fn copy_with(from: &Path, to: &Path, keys: &[(&str, &str)]) {
    let reader = gguf::Reader::open(from).unwrap();
    let mut metadata = reader.metadata().clone();
    for &(key, value) in keys {
        metadata.insert(key, value);
    }
    let tensors = reader.tensors().iter();
    let planned: Vec<gguf::Planned> =
        tensors.map(|tensor| (tensor.name.clone(), tensor.shape.clone(), tensor.ty)).collect();
    let mut writer = gguf::Writer::begin(std::fs::File::create(to).unwrap(), &metadata, &planned).unwrap();
    for tensor in reader.tensors() {
        writer.write_tensor(reader.data(tensor)).unwrap();
    }
    writer.finish().unwrap();
}

#[test]
fn an_adapter_that_changed_on_disk_is_refused_when_it_is_needed() {
    let place = Bench::new();
    let path = place.adapter("second.gguf", 1, None);
    let base = place.card("base", &[]).unwrap();
    let comma = place.card("comma", &[(&path, 1.0)]).unwrap();
    place.adapter("second.gguf", 2, None);
    let mut residency = Residency::new(Box::new(LlamaEngine::new().unwrap()));
    say(&mut residency, &[&base]);
    let refused = residency.get(&comma, &|| false, &mut formats::observe::Silent).map(drop);
    assert!(matches!(refused, Err(Error::FileChanged { .. })), "{refused:?}");
    // What was resident goes on as before.
    assert_eq!(say(&mut residency, &[&base]), (vec!["Hello, worldBye".into()], vec![]));
}

/// Bits of all logits of a text.
fn logits(session: &mut Session, text: &str) -> Vec<u32> {
    let ids = session.tokenizer().encode(text);
    let mut bits = Vec::new();
    let mut each = |_: usize, logits: &[f32]| {
        bits.extend(logits.iter().map(|logit| logit.to_bits()));
        ControlFlow::Continue(())
    };
    session.decode_logits(&ids, &mut each).unwrap();
    bits
}

/// With flash attention and without: what is left in cells that are not read differs in where it is multiplied with 0.
#[test]
fn a_switch_leaves_nothing_behind() {
    for flash_attention in [FlashAttention::On, FlashAttention::Off] {
        leaves_nothing_behind(&LoadOptions { flash_attention, ..load() });
    }
}

fn leaves_nothing_behind(load: &LoadOptions) {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    noise::write(&path("base.gguf"), 1);
    noise::write_adapter(&path("a.gguf"), 2, 4);
    noise::write_adapter(&path("b.gguf"), 3, 8);
    let of = |set: &[(&str, f32)]| {
        let files: Vec<(PathBuf, f32)> = set.iter().map(|&(name, scale)| (path(name), scale)).collect();
        let files: Vec<(&Path, f32)> = files.iter().map(|(file, scale)| (file.as_path(), *scale)).collect();
        adapters(&card("x", &path("base.gguf"), &files, load.clone()).unwrap()).to_vec()
    };
    let sets =
        [of(&[]), of(&[("a.gguf", 1.0)]), of(&[("b.gguf", 0.5)]), of(&[("a.gguf", 0.3), ("b.gguf", 1.0)])];
    let options = SessionOptions { load: load.clone(), all_logits: true, ..SessionOptions::default() };
    let open = || Session::open(&path("base.gguf"), &options).unwrap();
    let fresh: Vec<Vec<u32>> = sets
        .iter()
        .map(|set| {
            let mut session = open();
            session.set_adapters(set).unwrap();
            logits(&mut session, "what the weights make of it")
        })
        .collect();
    for (i, j) in [(0, 1), (1, 2), (2, 3), (0, 3)] {
        assert_ne!(fresh[i], fresh[j], "sets {i} and {j} give the same");
    }
    let mut session = open();
    for i in [0, 1, 0, 2, 3, 1, 2, 0, 3, 3, 1] {
        session.set_adapters(&sets[i]).unwrap();
        assert_eq!(logits(&mut session, "what the weights make of it"), fresh[i], "set {i}");
        // Another text in between, which the next must not see.
        logits(&mut session, "something else altogether, and longer than that");
    }
}

/// The log's last digit, twice, on a buffer of a few kilobytes.
const SMALL_BUFFER_BYTES: u64 = 16 << 10;

#[test]
fn the_budget_of_adapters_is_what_the_engine_takes() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    noise::write(&path("base.gguf"), 1);
    for (name, rank) in [("a.gguf", 4), ("b.gguf", 48)] {
        noise::write_adapter(&path(name), 7, rank);
    }
    for flash_attention in [FlashAttention::On, FlashAttention::Off] {
        for names in [&[][..], &["a.gguf"], &["b.gguf"], &["a.gguf", "b.gguf"]] {
            let load = LoadOptions { flash_attention, num_ctx: 512, kv_type_k: KvType::F16, ..load() };
            let files: Vec<PathBuf> = names.iter().map(|name| path(name)).collect();
            let files: Vec<(&Path, f32)> = files.iter().map(|file| (file.as_path(), 1.0)).collect();
            let card = card("x", &path("base.gguf"), &files, load.clone()).unwrap();
            let planned = Planned::new(&card, Place::Main, &Available::default(), None).unwrap().budget;
            let options = SessionOptions { load: load.clone(), ..SessionOptions::default() };
            let mut session = Session::open(&path("base.gguf"), &options).unwrap();
            session.set_adapters(adapters(&card)).unwrap();
            let prompt = session.tokenizer().encode("a prompt");
            session.greedy(&prompt, &[], 1).unwrap();
            let takes = session.memory();
            let what = format!("{flash_attention:?} {names:?}: {planned:?} {takes:?}");
            assert_eq!(planned.main.weights_bytes, takes.weights_bytes, "{what}");
            let (own, of_engine) = (planned.main.compute_bytes, takes.compute_bytes);
            assert!(own + SMALL_BUFFER_BYTES >= of_engine, "{what}");
            let most = of_engine as f64 * (1.0 + COMPUTE_ERROR) + SMALL_BUFFER_BYTES as f64;
            assert!(own as f64 <= most, "{what}");
            let head = Head::of_file(&gguf::Reader::open(&path("base.gguf")).unwrap());
            let bare = budget(&head, &load, Place::Main).main.weights_bytes;
            assert_eq!(planned.main.weights_bytes > bare, !names.is_empty(), "{what}");
        }
    }
}

/// What an expert says under a system message, and in how many pieces it read its prompt.
fn under(loaded: &mut dyn runner::Loaded, system: &str, user: &str) -> (String, usize) {
    let messages = vec![Message::new("system", system), Message::new("user", user)];
    let mut request = Request::new(loaded.card(), Prompt::Chat(messages));
    request.sampling.max_tokens = Some(48);
    let mut pieces = 0;
    let answer = loaded.generate(&request, &mut |progress| {
        pieces += usize::from(matches!(progress, Progress::Prompt { .. }));
        ControlFlow::Continue(())
    });
    (answer.unwrap().text, pieces)
}

#[test]
fn what_prompts_begin_with_is_read_once_and_answers_stay_the_same() {
    let load = LoadOptions { num_batch: 32, num_ctx: 512, ..load() };
    let (_directory, base, adapted) = noisy_pair(load);
    let residency = || Residency::new(Box::new(LlamaEngine::new().unwrap()));
    let long =
        "You answer in the fewest words that say it, and never say what you were not asked for. ".repeat(2);
    let asked = [
        (&base, long.as_str(), "one"),
        (&base, long.as_str(), "two, which is another and a longer question"),
        (&base, "Be brief.", "two"),
        (&base, long.as_str(), "three"),
        (&adapted, long.as_str(), "three"),
        (&adapted, long.as_str(), "one"),
        (&base, long.as_str(), "one"),
    ];
    let silent = &mut formats::observe::Silent;
    let fresh = asked.map(|(card, system, user)| {
        let mut residency = residency();
        under(residency.get(card, &|| false, silent).unwrap().0, system, user)
    });
    let mut one = residency();
    let silent = &mut formats::observe::Silent;
    let kept =
        asked.map(|(card, system, user)| under(one.get(card, &|| false, silent).unwrap().0, system, user));
    let texts =
        |answers: &[(String, usize)]| answers.iter().map(|(text, _)| text.clone()).collect::<Vec<_>>();
    assert_eq!(texts(&kept), texts(&fresh));
    assert_ne!(fresh[3].0, fresh[4].0, "the adapter changes nothing");
    // Read anew at the first, after a short system message, and after each switch.
    let fewer: Vec<bool> = kept.iter().zip(&fresh).map(|(kept, fresh)| kept.1 < fresh.1).collect();
    assert_eq!(fewer, [false, true, false, false, false, true, false]);
}

#[test]
fn a_conversation_reads_only_what_is_new_and_leaves_nothing_to_others() {
    let load = LoadOptions { num_batch: 32, num_ctx: 512, ..load() };
    let (_directory, base, adapted) = noisy_pair(load);
    let residency = || Residency::new(Box::new(LlamaEngine::new().unwrap()));
    let request = |messages: &[Message], loaded: &dyn runner::Loaded| {
        let mut request = Request::new(loaded.card(), Prompt::Chat(messages.to_vec()));
        request.sampling.max_tokens = Some(8);
        request
    };
    let turn = |loaded: &mut dyn runner::Loaded, messages: &[Message]| {
        let request = request(messages, loaded);
        let (answer, kept) = loaded.converse(&request, &mut |_| ControlFlow::Continue(())).unwrap();
        (answer.text, answer.prompt_tokens, kept)
    };
    let anew = |loaded: &mut dyn runner::Loaded, messages: &[Message]| {
        let request = request(messages, loaded);
        loaded.generate(&request, &mut |_| ControlFlow::Continue(())).unwrap().text
    };
    let silent = &mut formats::observe::Silent;
    let (mut one, mut other) = (residency(), residency());
    let fresh = other.get(&base, &|| false, silent).unwrap().0;
    let first = vec![Message::new("user", "a question that is not the shortest of all questions")];
    let expected = anew(fresh, &first);
    let (text, first_tokens, kept) = turn(one.get(&base, &|| false, silent).unwrap().0, &first);
    assert_eq!((text.as_str(), kept), (expected.as_str(), 0));
    let mut second = first.clone();
    second.extend([Message::new("assistant", text.as_str()), Message::new("user", "and another")]);
    let (_, tokens, kept) = turn(one.get(&base, &|| false, silent).unwrap().0, &second);
    assert!((first_tokens - 4..tokens).contains(&kept), "{kept} of {tokens} after {first_tokens}");
    // The same once more is read but for its last token.
    assert_eq!(turn(one.get(&base, &|| false, silent).unwrap().0, &second).2, tokens - 1);
    // What is asked alone sees none of it, and another adapter's numbers are its own.
    assert_eq!(anew(one.get(&base, &|| false, silent).unwrap().0, &first), expected);
    assert_eq!(turn(one.get(&adapted, &|| false, silent).unwrap().0, &first).2, 0);
    assert_eq!(turn(one.get(&base, &|| false, silent).unwrap().0, &first), (expected, first_tokens, 0));
}

#[test]
fn vectors_of_texts_are_those_of_the_adapter_that_is_set() {
    let (_directory, base, adapted) = noisy_pair(load());
    let embed = |residency: &mut Residency, card: &ExpertCard| {
        let (loaded, _) = residency.get(card, &|| false, &mut formats::observe::Silent).unwrap();
        loaded.embed(&["a text".to_owned()], &mut |_| ControlFlow::Continue(())).unwrap()
    };
    let residency = || Residency::new(Box::new(LlamaEngine::new().unwrap()));
    let (mut first, mut second) = (residency(), residency());
    let plain = embed(&mut first, &base);
    let over = embed(&mut second, &adapted);
    assert_ne!(plain, over);
    assert_eq!((embed(&mut first, &adapted), embed(&mut second, &base)), (over, plain));
}
