//! Cards and their registry, and one expert at a time in memory.

mod tiny;

use std::path::PathBuf;

use runner::card::{CardOptions, Digests, LoadOptions, Sampling};
use runner::engine::llama::LlamaEngine;
use runner::engine::{Finish, Form, Progress, Prompt, Request};
use runner::registry::{Probe, compare};
use runner::residency::{Keeping, ResidencyEvent};
use runner::{Error, ExpertCard, Registry, Residency};
use tempfile::TempDir;
use text::Message;
use tiny::{Says, Template};

fn place() -> (TempDir, Registry, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("hello.gguf");
    tiny::write(&file, &Says::Once(&["Hello", ", world"]));
    let registry = Registry::at(directory.path().join("experts"));
    (directory, registry, file)
}

fn options() -> CardOptions {
    let load = LoadOptions { num_ctx: 256, num_thread: 1, ..LoadOptions::default() };
    CardOptions { load, ..CardOptions::default() }
}

#[test]
fn an_expert_is_registered_listed_read_and_removed() {
    let (directory, registry, file) = place();
    assert!(registry.cards().unwrap().is_empty());
    let receipt =
        r#"{"file": "hello.gguf", "sources": {"base_blake3": "b"}, "provenance": {"recipe_blake3": "r"}}"#;
    std::fs::write(directory.path().join("receipt.json"), receipt).unwrap();
    let options =
        CardOptions { system: Some("Be kind.".to_owned()), stop: vec!["###".to_owned()], ..options() };
    let card = registry.register("greeter", &file, &options).unwrap();
    let model = card.file().unwrap();
    assert_eq!((model.architecture.as_str(), model.weight_type.as_str()), ("qwen3", "F32"));
    assert_eq!(model.sha256.as_deref(), Some(formats::hash::sha256_file(&file).unwrap().as_str()));
    assert!(model.template_blake3.is_some());
    let provenance = card.provenance.clone().unwrap();
    assert_eq!((provenance.base_blake3.as_deref(), provenance.adapter_blake3), (Some("b"), None));
    assert_eq!(provenance.recipe_blake3.as_deref(), Some("r"));
    assert_eq!(registry.card("greeter").unwrap(), card);
    assert_eq!(registry.cards().unwrap(), [card]);
    registry.remove("greeter").unwrap();
    let error = registry.card("greeter").unwrap_err().to_string();
    assert_eq!(error, "expert `greeter` not found; there are: none");
    assert!(file.exists());
}

#[test]
fn what_can_not_work_is_not_registered() {
    let (directory, registry, file) = place();
    for name in ["", "../x", "a b", ".hidden", "x/y", &"n".repeat(65)] {
        assert!(matches!(registry.register(name, &file, &options()), Err(Error::Card { .. })), "{name}");
    }
    let hot =
        CardOptions { sampling: Sampling { temperature: f32::NAN, ..Sampling::default() }, ..options() };
    assert!(registry.register("x", &file, &hot).unwrap_err().to_string().contains("`temperature` is NaN"));
    std::fs::write(directory.path().join("text.gguf"), "not a model").unwrap();
    assert!(matches!(
        registry.register("x", &directory.path().join("text.gguf"), &options()),
        Err(Error::Format(_))
    ));
    assert!(registry.register("x", &directory.path().join("none.gguf"), &options()).is_err());
    assert!(registry.cards().unwrap().is_empty());
}

#[test]
fn a_file_that_changed_is_refused_and_one_that_was_touched_is_not() {
    let (_directory, registry, file) = place();
    let card = registry.register("greeter", &file, &options()).unwrap();
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes).unwrap();
    card.check_file().unwrap();
    tiny::write(&file, &Says::Once(&["Goodbye", ", world"]));
    assert!(matches!(card.check_file(), Err(Error::FileChanged { .. })));
}

fn residency() -> Residency {
    Residency::new(Box::new(LlamaEngine::new().unwrap())).keeping(Keeping::One)
}

#[test]
fn one_expert_at_a_time_and_roles_switch_without_a_load() {
    let (directory, registry, file) = place();
    let other = directory.path().join("other.gguf");
    tiny::write(&other, &Says::Once(&["Other"]));
    let greeter = registry.register("greeter", &file, &options()).unwrap();
    let terse =
        registry.register("terse", &file, &CardOptions { stop: vec![", ".to_owned()], ..options() }).unwrap();
    let other = registry.register("other", &other, &options()).unwrap();
    let mut residency = residency();
    let mut seen = Vec::new();
    let mut say = |card: &ExpertCard| {
        let mut observe = |event: ResidencyEvent| match event {
            ResidencyEvent::Loaded { expert, takes, memory, .. } => {
                assert!(
                    takes.weights_bytes > 0 && takes.context_bytes > 0 && takes.compute_bytes > 0,
                    "{takes:?}"
                );
                assert!(memory.free_bytes > 0);
                seen.push(format!("+{expert}"));
            }
            ResidencyEvent::Unloaded { expert, .. } => seen.push(format!("-{expert}")),
            _ => {}
        };
        let (expert, _) = residency.get(card, &|| false, &mut observe).unwrap();
        let request = Request::new(card, Prompt::Chat(vec![Message::new("user", "Hi")]));
        expert.generate(&request, &mut |_| std::ops::ControlFlow::Continue(())).unwrap().text
    };
    assert_eq!(
        (say(&greeter), say(&terse), say(&greeter)),
        ("Hello, world".into(), "Hello".into(), "Hello, world".into())
    );
    assert_eq!((say(&other), say(&greeter)), ("Other".into(), "Hello, world".into()));
    assert_eq!(seen, ["+greeter", "-greeter", "+other", "-other", "+greeter"]);
    assert_eq!(residency.n_loads(), 3);
}

#[test]
fn generation_is_cancelled_in_the_prompt_and_between_tokens() {
    let (directory, registry, _) = place();
    let file = directory.path().join("endless.gguf");
    tiny::write(&file, &Says::Forever(&["tick ", "tock "]));
    let mut options = options();
    options.load.num_batch = 8;
    let card = registry.register("clock", &file, &options).unwrap();
    let mut residency = residency();
    let (expert, took) = residency.get(&card, &|| false, &mut formats::observe::Silent).unwrap();
    assert!(took.as_nanos() > 0);
    let request = Request::new(&card, Prompt::Chat(vec![Message::new("user", "x".repeat(100))]));
    let mut pieces = 0;
    let generated = expert.generate(&request, &mut |progress| {
        pieces += 1;
        assert!(matches!(progress, Progress::Prompt { total, .. } if total > 100));
        if pieces == 2 { std::ops::ControlFlow::Break(()) } else { std::ops::ControlFlow::Continue(()) }
    });
    assert_eq!(generated.unwrap().finish, Finish::Cancelled);
    assert_eq!(pieces, 2);
    let mut text = String::new();
    let generated = expert.generate(&request, &mut |progress| {
        if let Progress::Text(more) = progress {
            text.push_str(more);
        }
        if text.len() >= 20 { std::ops::ControlFlow::Break(()) } else { std::ops::ControlFlow::Continue(()) }
    });
    assert_eq!(generated.unwrap().finish, Finish::Cancelled);
    assert_eq!(text, "tick tock tick tock ");
    let error = residency.get(
        &ExpertCard { load: LoadOptions { num_ctx: 512, ..card.load.clone() }, ..card },
        &|| true,
        &mut formats::observe::Silent,
    );
    assert!(matches!(error.map(drop), Err(Error::Cancelled)));
}

#[test]
fn a_text_without_template_is_continued_and_a_chat_is_refused() {
    let (directory, registry, _) = place();
    let file = directory.path().join("plain.gguf");
    tiny::write_with(&file, &Says::Once(&["one ", "two"]), &Template::None);
    let card = registry.register("plain", &file, &options()).unwrap();
    assert!(!card.has_template());
    let mut residency = residency();
    let (expert, _) = residency.get(&card, &|| false, &mut formats::observe::Silent).unwrap();
    let mut ask = |prompt: Prompt| {
        expert.generate(&Request::new(&card, prompt), &mut |_| std::ops::ControlFlow::Continue(()))
    };
    assert_eq!(ask(Prompt::Raw("count:\n".to_owned())).unwrap().text, "one two");
    let error = ask(Prompt::Chat(vec![Message::new("user", "Hi")])).unwrap_err().to_string();
    assert!(error.contains("no chat template"), "{error}");
    assert!(matches!(ask(Prompt::Raw(String::new())), Err(Error::EmptyPrompt { .. })));
}

#[test]
fn drawing_is_repeatable_by_its_seed_and_forms_are_kept() {
    let (directory, registry, _) = place();
    let file = directory.path().join("endless.gguf");
    tiny::write(&file, &Says::Forever(&["tick ", "tock "]));
    let card = registry.register("clock", &file, &options()).unwrap();
    let mut residency = residency();
    let (expert, _) = residency.get(&card, &|| false, &mut formats::observe::Silent).unwrap();
    let mut draw = |temperature: f32, seed: u32, form: Form, repeat_penalty: f32| {
        let sampling = Sampling {
            temperature,
            top_k: 0,
            top_p: 1.0,
            seed,
            repeat_penalty,
            max_tokens: Some(24),
            ..Sampling::default()
        };
        let prompt = Prompt::Chat(vec![Message::new("user", "Hi")]);
        let request = Request { prompt, sampling, stop: Vec::new(), form };
        expert.generate(&request, &mut |_| std::ops::ControlFlow::Continue(())).unwrap().text
    };
    assert_eq!(draw(3.0, 7, Form::Text, 1.0), draw(3.0, 7, Form::Text, 1.0));
    assert_ne!(draw(3.0, 7, Form::Text, 1.0), draw(3.0, 8, Form::Text, 1.0));
    // At this temperature the model's word is all but certain, unless it was said before and that is held against it.
    assert!(draw(1.0, 7, Form::Text, 1.0).starts_with("tick tock tick tock tick tock "));
    assert!(!draw(1.0, 7, Form::Text, 10.0).starts_with("tick tock tick tock tick tock "));
    let answer = Form::Schema(serde_json::json!({"enum": ["yes", "no"]}));
    for seed in 0..4 {
        let text = draw(3.0, seed, answer.clone(), 1.0);
        assert!(text == "\"yes\"" || text == "\"no\"", "{text}");
    }
}

#[test]
fn prompts_are_held_against_training_without_a_load() {
    let directory = tempfile::tempdir().unwrap();
    let other = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ': ' + message['content'] + '<|im_end|>' }}{% endfor %}";
    let strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('none') }}{% endif %}";
    let file = |name: &str, template: &Template<'_>| {
        let file = directory.path().join(name);
        tiny::write_with(&file, &Says::Once(&["Hi"]), template);
        file
    };
    let card = |name: &str, template: &Template<'_>| {
        ExpertCard::from_file("role", &file(name, template), &options(), Digests::Blake3).unwrap()
    };
    let trained = formats::gguf::Reader::open(&file("trained.gguf", &Template::Chat)).unwrap();
    let tokenizer = text::Tokenizer::from_gguf(trained.metadata()).unwrap();
    let template = text::ChatTemplate::from_gguf(trained.metadata(), &tokenizer).unwrap().unwrap();
    let probe = Probe { training: Some((&tokenizer, &template)), ..Probe::default() };
    let own = Template::Chat;
    assert_eq!(compare(&card("same.gguf", &own), &probe).unwrap(), 3);
    assert_eq!(compare(&card("same.gguf", &own), &Probe::default()).unwrap(), 0, "nothing to compare with");
    let refused = compare(&card("other.gguf", &Template::Source(other)), &probe).unwrap_err().to_string();
    assert!(refused.contains("`role` is not as it was trained: its ids of a prompt differ"), "{refused}");
    let strict = format!("{strict}{}", trained.metadata().get_str("tokenizer.chat_template").unwrap());
    let refused = compare(&card("strict.gguf", &Template::Source(&strict)), &probe).unwrap_err().to_string();
    assert!(refused.contains("it refuses a chat that training's template renders"), "{refused}");
}
