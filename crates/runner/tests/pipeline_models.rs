//! Pipelines asked as models are, over Ollama's API and OpenAI's.

mod scripted;
mod served;
mod tiny;

use std::path::Path;
use std::time::{Duration, Instant};

use runner::http::{ServeConfig, ServeEvent, serve};
use runner::pipeline::PipelineSpec;
use runner::residency::ResidencyEvent;
use runner::{Registry, Residency};
use scripted::{Asked, Scripted};
use serde_json::{Value, json};
use served::{Served, config, read_chunk, read_head};

/// The server with one more pipeline, over its experts `greeter`, `clock` and `yes`.
fn with(name: &str, spec: Value, change: impl FnOnce(&mut ServeConfig)) -> Served {
    let name = name.to_owned();
    Served::start(move |config| {
        let spec: PipelineSpec = serde_json::from_value(spec).unwrap();
        let folder = config.runs.parent().unwrap().to_owned();
        config.pipelines.push(spec.check(&name, &folder, &config.registry).unwrap());
        change(config);
    })
}

/// Two steps, of which the second answers in plain text.
fn two_steps() -> Value {
    json!({
        "experts": {"first": {"expert": "yes"}, "second": {"expert": "greeter"}},
        "steps": [
            {"name": "note", "expert": "first", "map": "lines", "prompt": "{{ item }}"},
            {"name": "tell", "expert": "second", "prompt": "{{ steps.note.output }}"},
        ],
    })
}

fn chat(model: &str, text: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": text}]})
}

fn whole(mut body: Value) -> Value {
    body["stream"] = false.into();
    body
}

/// The JSON of every event of a stream of the OpenAI API, and that it ends as it should.
fn events(served: &Served, mut body: Value) -> Vec<Value> {
    body["stream"] = true.into();
    let (status, head, text) = served.ask_with("POST", "/v1/chat/completions", "", &body.to_string());
    assert!(status == 200 && head.contains("text/event-stream"), "{status} {text}");
    let mut data: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(data.pop(), Some("[DONE]"), "{text}");
    data.into_iter().map(|event| serde_json::from_str(event).unwrap()).collect()
}

fn text_of(events: &[Value]) -> String {
    events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect()
}

#[test]
fn pipelines_stand_beside_experts_and_say_what_they_are() {
    let served = Served::start(|_| {});
    let tags = served.get("/api/tags");
    let last = tags["models"].as_array().unwrap().last().unwrap();
    assert_eq!((&last["name"], &last["details"]["format"]), (&json!("greetings:latest"), &json!("pipeline")));
    assert!(last["size"].as_u64().unwrap() > 0 && last["digest"].as_str().unwrap().len() == 64, "{last}");
    let (status, shown) = served.post("/api/show", &json!({"model": "Greetings"}));
    assert_eq!((status, &shown["details"]["family"]), (200, &json!("pipeline")));
    assert_eq!(shown["modelfile"], "# a pipeline of tune: greet (a) → record (recorder) → check");
    assert_eq!(shown["pipeline"]["steps"][1]["name"], "record");
    let models = served.get("/v1/models");
    let owners = models["data"].as_array().unwrap().iter().map(|model| model["owned_by"].as_str().unwrap());
    assert_eq!(owners.collect::<Vec<_>>().concat(), "tunetunetunetunetunetune (pipeline)");
    // A pipeline that writes nothing has no answer: it is no model.
    let routes = json!({"experts": {}, "steps": [{"name": "way", "kind": "route", "of": "input", "default": "b",
        "rules": [{"contains": "a", "route": "a"}]}]});
    let served = with("ways", routes, |_| {});
    assert!(!served.get("/api/tags").to_string().contains("ways"));
    let (status, answer) = served.post("/api/chat", &chat("ways", "x"));
    assert!(
        status == 400 && answer["error"].as_str().unwrap().contains("without a step that writes"),
        "{answer}"
    );
}

#[test]
fn a_run_is_the_answer_of_its_last_step_in_both_apis() {
    let served = with("two", two_steps(), |_| {});
    let (status, answer) = served.post("/api/generate", &whole(json!({"model": "two", "prompt": "Hi"})));
    assert_eq!((status, &answer["response"]), (200, &json!("Hello, world <b>")), "{answer}");
    assert_eq!((&answer["done"], &answer["done_reason"]), (&json!(true), &json!("stop")));
    // It is a run as the page's are, kept under its id; the counts are those of all its steps.
    let run = answer["pipeline"]["run"].as_str().unwrap();
    let record = served.get(&format!("/api/runs/{run}"));
    assert_eq!((&record["input"], &record["results"][0]["output"]), (&json!("Hi"), &json!("yes")));
    let sum = |key: &str| {
        record["results"].as_array().unwrap().iter().map(|result| result[key].as_u64().unwrap()).sum::<u64>()
    };
    assert_eq!(answer["eval_count"], sum("output_tokens"));
    assert_eq!(answer["prompt_eval_count"], sum("prompt_tokens"));
    assert!(answer["load_duration"].as_u64().unwrap() > 0);

    // Tokens as they come, and nothing of the first step among them.
    let lines = served.lines("/api/chat", &chat("two", "Hi"));
    let parts: Vec<&str> = lines.iter().map(|line| line["message"]["content"].as_str().unwrap()).collect();
    assert_eq!(parts, ["Hello", ", ", "world <b>", ""]);
    assert_eq!((&lines[3]["done"], &lines[3]["eval_count"]), (&json!(true), &answer["eval_count"]));

    let (status, answer) = served.post("/v1/chat/completions", &chat("two", "Hi"));
    assert_eq!((status, &answer["choices"][0]["message"]["content"]), (200, &json!("Hello, world <b>")));
    assert_eq!(answer["usage"]["completion_tokens"], sum("output_tokens"));
    let events = events(&served, chat("two", "Hi"));
    assert_eq!((text_of(&events).as_str(), events.len()), ("Hello, world <b>", 4));
    assert_eq!(events[3]["usage"]["total_tokens"], sum("output_tokens") + sum("prompt_tokens"));
    assert!(events[3]["pipeline"]["run"].is_string());

    // A step over lines answers in lines; what was said before is not seen.
    let messages = json!([
        {"role": "user", "content": "before"},
        {"role": "assistant", "content": "so"},
        {"role": "user", "content": "a\n\nb"},
    ]);
    let (_, answer) = served.post("/v1/chat/completions", &json!({"model": "two", "messages": messages}));
    assert_eq!(answer["choices"][0]["message"]["content"], "Hello, world <b>\nHello, world <b>");
    let run = answer["pipeline"]["run"].as_str().unwrap();
    assert_eq!(served.get(&format!("/api/runs/{run}"))["input"], "a\n\nb");
}

#[test]
fn what_could_be_taken_back_is_sent_when_it_is_sure() {
    // Its record may be asked for again, and a check objects to none of it.
    let served = Served::start(|_| {});
    let lines = served.lines("/api/chat", &chat("greetings", "x\ny"));
    let parts: Vec<&str> = lines.iter().map(|line| line["message"]["content"].as_str().unwrap()).collect();
    assert_eq!(parts.len(), 3, "{parts:?}");
    assert_eq!(parts[1], format!("\n{}", parts[0]));
    assert!(serde_json::from_str::<Value>(parts[0]).unwrap()["ok"].is_i64());
    assert_eq!(lines[2]["pipeline"]["objections"], json!([]));

    // Drafts that are rejected are seen by nobody, and items that end in another order are told in theirs.
    let script = |asked: &Asked| match asked {
        Asked { prompt, .. } if prompt.contains("not good enough") => "LONG ENOUGH".to_owned(),
        Asked { prompt, .. } if prompt.contains('1') => "short".to_owned(),
        _ => "long enough at once".to_owned(),
    };
    let spec = json!({
        "experts": {"first": {"expert": "yes", "num_ctx": 256}},
        "steps": [{"name": "write", "expert": "first", "map": "lines", "prompt": "{{ item }}",
            "verify": {"min_chars": 8}}],
    });
    let scripted = move |config: &mut ServeConfig| {
        config.residency = Residency::new(Box::new(Scripted::new(script)));
    };
    let served = with("careful", spec, scripted);
    let events = events(&served, chat("careful", "1\n2"));
    assert_eq!(text_of(&events), "LONG ENOUGH\nlong enough at once");
}

#[test]
fn an_earlier_answer_stands_where_the_last_step_does_not_run() {
    let spec = json!({
        "experts": {"first": {"expert": "yes", "num_ctx": 256}},
        "steps": [
            {"name": "way", "kind": "route", "map": "lines", "rules": [{"contains": "a", "route": "a"}], "default": "b"},
            {"name": "answer", "expert": "first", "prompt": "{{ item }}", "when": {"way": "a"}},
            {"name": "other", "expert": "first", "prompt": "other {{ item }}", "when": {"way": "b"}, "max_tokens": 2},
        ],
    });
    let scripted = |config: &mut ServeConfig| {
        let says = |asked: &Asked| asked.prompt.replace("user: ", "to ");
        config.residency = Residency::new(Box::new(Scripted::new(says)));
    };
    let served = with("ways", spec, scripted);
    let events = events(&served, chat("ways", "x\na\ny"));
    assert_eq!(text_of(&events), "to other\nto a\nto other");
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "length");
}

#[test]
fn what_no_step_would_follow_is_refused() {
    let served = with("two", two_steps(), |_| {});
    let check = |path: &str, more: Value, error: &str| {
        let mut body =
            if path == "/api/generate" { json!({"model": "two", "prompt": "x"}) } else { chat("two", "x") };
        for (key, value) in more.as_object().unwrap() {
            body[key] = value.clone();
        }
        let (status, answer) = served.post(path, &body);
        let said = answer["error"]["message"].as_str().or(answer["error"].as_str()).unwrap_or_default();
        assert!(status == 400 && said.contains(error), "{path} {body}: {status} {answer}");
    };
    let leave = |key: &str| format!("leave `{key}` out");
    for (key, value) in [
        ("suffix", json!("x")),
        ("template", json!("x")),
        ("images", json!(["aGk="])),
        ("system", json!("Be brief")),
        ("raw", json!(true)),
        ("format", json!("json")),
        ("think", json!(true)),
    ] {
        check("/api/generate", json!({key: value}), &leave(key));
    }
    check("/api/chat", json!({"options": {"temperature": 0}}), &leave("options.temperature"));
    check("/api/chat", json!({"tools": [{"type": "function"}]}), &leave("tools"));
    let image = json!({"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]});
    check("/api/chat", image, &leave("images"));
    for (key, value) in [
        ("temperature", json!(0.5)),
        ("top_p", json!(0.5)),
        ("seed", json!(1)),
        ("max_tokens", json!(5)),
        ("max_completion_tokens", json!(5)),
        ("stop", json!(["x"])),
        ("response_format", json!({"type": "json_object"})),
        ("n", json!(2)),
        ("tools", json!([{"type": "function"}])),
        ("frequency_penalty", json!(0.5)),
        ("logit_bias", json!({"5": 1})),
    ] {
        check("/v1/chat/completions", json!({key: value}), &leave(key));
    }
    let messages =
        |role: &str| json!({"messages": [{"role": "user", "content": "x"}, {"role": role, "content": "y"}]});
    for path in ["/api/chat", "/v1/chat/completions"] {
        check(path, messages("system"), "takes no system message");
        check(path, messages("tool"), "takes no tool message");
        check(path, messages("assistant"), "must be the user's");
        check(path, json!({"messages": [{"role": "user", "content": " "}]}), "the input is empty");
    }
    let part = json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]});
    check("/v1/chat/completions", part, "a part that is no text");
    // What asks for nothing is taken.
    let mut body = chat("two", "x");
    for (key, value) in
        [("tools", json!([])), ("options", json!({})), ("format", json!("")), ("think", json!(false))]
    {
        body[key] = value;
    }
    assert_eq!(served.post("/api/chat", &whole(body)).0, 200);
    let mut body = chat("two", "x");
    for (key, value) in
        [("stop", json!(null)), ("frequency_penalty", json!(0)), ("user", json!("me")), ("n", json!(1))]
    {
        body[key] = value;
    }
    assert_eq!(served.post("/v1/chat/completions", &body).0, 200);
}

#[test]
fn what_fails_is_said_before_the_answer_or_within_it() {
    let mut spec = two_steps();
    let steps = spec["steps"].as_array_mut().unwrap();
    steps
        .push(json!({"name": "check", "kind": "check", "of": "tell", "forbids": "world", "on_fail": "stop"}));
    let served = with("strict", spec, |_| {});
    let long = "y".repeat(2000);
    let (status, answer) = served.post("/api/chat", &chat("strict", &long));
    let said = answer["error"].as_str().unwrap();
    assert!(
        status == 500 && said.starts_with("step `note`, item 1: ") && said.contains("holds 512"),
        "{answer}"
    );
    let (status, answer) = served.post("/v1/chat/completions", &chat("strict", &long));
    assert!(status == 500 && answer["error"]["type"] == "server_error", "{answer}");
    // After a part of the answer was sent.
    let lines = served.lines("/api/chat", &chat("strict", "Hi"));
    let said = lines.last().unwrap()["error"].as_str().unwrap();
    assert_eq!((lines.len(), said), (4, "step `check`, item 1: it has what it must not have: `world`"));
    let events = events(&served, chat("strict", "Hi"));
    assert_eq!(text_of(&events), "Hello, world <b>");
    assert!(events[3]["error"]["message"].as_str().unwrap().contains("must not have"), "{events:?}");
    assert_eq!(served.post("/api/chat", &whole(chat("strict", "Hi"))).0, 500);

    // An item that fails where the run goes on is no answer either.
    let mut spec = two_steps();
    spec["steps"][0]["on_error"] = "record".into();
    let served = with("lenient", spec, |_| {});
    let (status, answer) = served.post("/api/chat", &whole(chat("lenient", &format!("Hi\n{long}"))));
    let said = answer["error"].as_str().unwrap();
    assert!(
        status == 422 && said.contains("step `note`, item 2: ") && said.contains("kept in run 2"),
        "{answer}"
    );
    let (status, answer) = served.post(
        "/v1/chat/completions",
        &json!({"model": "none", "messages": [{"role": "user", "content": "x"}]}),
    );
    assert_eq!((status, &answer["error"]["message"]), (404, &json!("model 'none' not found")));
}

#[test]
fn a_run_ends_when_its_client_goes_away() {
    let spec = json!({
        "experts": {"first": {"expert": "clock"}},
        "steps": [{"name": "tick", "expert": "first", "map": "lines", "prompt": "{{ item }}"}],
    });
    let served = with("ticking", spec, |_| {});
    let mut first = served.open("POST", "/api/chat", "", &chat("ticking", &"Hi\n".repeat(1000)).to_string());
    assert_eq!(read_head(&mut first).0, 200);
    assert!(read_chunk(&mut first).unwrap().contains("tick"));
    drop(first);
    let begun = Instant::now();
    while served.get("/api/status")["n_jobs"] != 0 {
        assert!(begun.elapsed() < Duration::from_secs(20), "it still runs");
    }
    let runs = served.get("/api/runs");
    assert!(
        runs["runs"][0]["n_items"].as_u64().unwrap() < 1000 && runs["runs"][0]["ended"].is_null(),
        "{runs}"
    );
}

#[test]
fn without_a_prompt_the_first_expert_is_loaded_and_all_are_let_go() {
    let served = with("two", two_steps(), |_| {});
    let (_, loaded) = served.post("/api/generate", &whole(json!({"model": "two"})));
    assert_eq!((&loaded["model"], &loaded["done_reason"]), (&json!("two"), &json!("load")));
    assert_eq!(served.get("/api/status")["resident"]["expert"], "first");
    served.post("/api/chat", &whole(chat("two", "Hi")));
    assert_eq!(served.get("/api/ps")["models"].as_array().unwrap().len(), 2);
    let (_, gone) =
        served.post("/api/chat", &whole(json!({"model": "two", "messages": [], "keep_alive": 0})));
    assert_eq!(gone["done_reason"], "unload");
    assert_eq!(served.get("/api/ps"), json!({"models": []}));
    let is_load = |event: &ServeEvent| matches!(event, ServeEvent::Residency(ResidencyEvent::Loaded { .. }));
    assert_eq!(served.events.lock().unwrap().try_iter().filter(is_load).count(), 2);
}

#[test]
fn a_name_that_could_mean_two_things_is_refused_at_the_start() {
    let refused = |name: &str, twice: bool| {
        let directory = tempfile::tempdir().unwrap();
        let mut config = config(directory.path());
        add(&mut config, name, directory.path());
        if twice {
            add(&mut config, &name.to_uppercase(), directory.path());
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let ended =
            runtime.block_on(serve(config, std::future::ready(()), Box::new(formats::observe::Silent)));
        ended.err().map(|error| error.to_string()).unwrap_or_default()
    };
    let add_hint = "give it another, with `name = \"…\"`";
    let said = refused("Yes", false);
    assert!(said.contains("pipeline `Yes` has the name of an expert") && said.contains(add_hint), "{said}");
    let said = refused("first", false);
    assert!(said.contains("has the name of an expert"), "its own expert's: {said}");
    let said = refused("two", true);
    assert!(said.contains("pipeline `TWO` has the name of another pipeline"), "{said}");
    assert_eq!(refused("two", false), "");
}

fn add(config: &mut ServeConfig, name: &str, folder: &Path) {
    let spec: PipelineSpec = serde_json::from_value(two_steps()).unwrap();
    let registry: &Registry = &config.registry;
    let pipeline = spec.check(name, folder, registry).unwrap();
    config.pipelines.push(pipeline);
}

#[test]
fn an_expert_that_comes_later_does_not_take_a_pipelines_place() {
    let mut others = None;
    let served = with("two", two_steps(), |config| others = Some(config.registry.clone()));
    let file = served.folder().join("clock.gguf");
    others.unwrap().register("two", &file, &runner::card::CardOptions::default()).unwrap();
    let (_, answer) = served.post("/api/chat", &whole(chat("two", "Hi")));
    assert_eq!(answer["message"]["content"], "Hello, world <b>");
}
