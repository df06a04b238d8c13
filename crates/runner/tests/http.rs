//! The server on a loopback port with the real engine, asked over plain sockets.

mod served;
mod tiny;

use std::time::{Duration, Instant};

use runner::Error;
use runner::http::{ServeConfig, ServeEvent, serve};
use runner::residency::ResidencyEvent;
use serde_json::{Value, json};
use served::{Served, config, read_chunk, read_head};

#[test]
fn experts_are_listed_and_shown() {
    let served = Served::start(|_| {});
    assert_eq!(served.get("/api/version")["version"], env!("CARGO_PKG_VERSION"));
    let tags = served.get("/api/tags");
    let names: Vec<&str> =
        tags["models"].as_array().unwrap().iter().map(|model| model["name"].as_str().unwrap()).collect();
    let experts = ["a:latest", "clock:latest", "greeter:latest", "recorder:latest", "yes:latest"];
    assert_eq!(names, [&experts[..], &["greetings:latest"]].concat());
    assert_eq!(tags["models"][0]["digest"].as_str().unwrap().len(), 64);
    assert_eq!(tags["models"][0]["details"]["format"], "gguf");
    assert_eq!(served.get("/api/ps"), json!({"models": []}));
    let (status, shown) = served.post("/api/show", &json!({"model": "Greeter:latest"}));
    assert_eq!((status, &shown["details"]["family"]), (200, &json!("qwen3")));
    assert_eq!(shown["model_info"]["qwen3.block_count"], 1);
    assert!(shown["template"].as_str().unwrap().contains("im_start"));
    assert_eq!(served.get("/v1/models")["data"].as_array().unwrap().len(), 6);
}

#[test]
fn generate_and_chat_whole_and_streamed() {
    let served = Served::start(|_| {});
    let (status, whole) =
        served.post("/api/generate", &json!({"model": "greeter", "prompt": "Hi", "stream": false}));
    assert_eq!(status, 200, "{whole}");
    assert_eq!(
        (&whole["response"], &whole["done"], &whole["done_reason"]),
        (&json!("Hello, world <b>"), &json!(true), &json!("stop"))
    );
    assert_eq!(whole["eval_count"], 4);
    for key in
        ["total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration", "eval_duration"]
    {
        assert!(whole[key].as_u64().unwrap() > 0, "{key}: {whole}");
    }
    assert!(whole["created_at"].as_str().unwrap().ends_with('Z'));

    let lines = served
        .lines("/api/chat", &json!({"model": "greeter", "messages": [{"role": "user", "content": "Hi"}]}));
    let text: String = lines.iter().map(|line| line["message"]["content"].as_str().unwrap()).collect();
    assert_eq!((text.as_str(), lines.len()), ("Hello, world <b>", 4));
    assert!(lines[..3].iter().all(|line| line["done"] == false && line.get("done_reason").is_none()));
    assert_eq!((&lines[3]["done"], &lines[3]["load_duration"]), (&json!(true), &json!(0)));

    let options = json!({"num_predict": 3, "stop": ["x"], "temperature": 0, "seed": 1, "num_ctx": 512});
    let (_, cut) = served.post(
        "/api/generate",
        &json!({"model": "clock", "prompt": "Hi", "stream": false, "options": options}),
    );
    assert_eq!((&cut["response"], &cut["done_reason"]), (&json!("tick tock tick "), &json!("length")));

    let format = json!({"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]});
    let (_, held) = served
        .post("/api/generate", &json!({"model": "yes", "prompt": "Hi", "stream": false, "format": format}));
    let record: Value = serde_json::from_str(held["response"].as_str().unwrap()).unwrap();
    assert!(record["n"] == 1 || record["n"] == 2, "{record}");

    let raw = json!({"model": "yes", "prompt": "<|im_start|>assistant\n", "raw": true, "stream": false});
    let (_, raw) = served.post("/api/generate", &raw);
    assert_eq!(raw["response"], "yes");
    // One control token, `assistant` (nine bytes, one merge of `in`... none here), a newline.
    assert_eq!(raw["prompt_eval_count"], 11);
}

#[test]
fn experts_are_loaded_shown_and_unloaded() {
    let served = Served::start(|config| config.keep_alive = Duration::from_secs(300));
    let (_, loaded) = served.post("/api/generate", &json!({"model": "yes", "stream": false}));
    assert_eq!((&loaded["done_reason"], &loaded["response"]), (&json!("load"), &json!("")));
    let ps = served.get("/api/ps");
    assert_eq!(
        (&ps["models"][0]["name"], &ps["models"][0]["context_length"]),
        (&json!("yes:latest"), &json!(512))
    );
    assert!(ps["models"][0]["size"].as_u64().unwrap() > 500_000, "{ps}");
    let status = served.get("/api/status");
    assert_eq!(status["resident"]["expert"], "yes");
    assert!(status["memory"]["free_bytes"].as_u64().unwrap() > 0);
    let (_, unloaded) = served
        .post("/api/chat", &json!({"model": "greeter", "messages": [], "keep_alive": 0, "stream": false}));
    assert_eq!(unloaded["done_reason"], "unload");
    assert_eq!(served.get("/api/status")["resident"]["expert"], "yes", "another expert stays");
    let (_, unloaded) =
        served.post("/api/generate", &json!({"model": "yes", "keep_alive": 0, "stream": false}));
    assert_eq!(unloaded["done_reason"], "unload");
    assert_eq!(served.get("/api/ps"), json!({"models": []}));
    // An expert with a short life goes by itself.
    served.post("/api/generate", &json!({"model": "yes", "stream": false, "keep_alive": "100ms"}));
    let begun = Instant::now();
    while served.get("/api/status")["resident"] != Value::Null {
        assert!(begun.elapsed() < Duration::from_secs(20), "still there");
    }
}

#[test]
fn the_first_expert_is_there_before_anybody_asks_and_the_default_is_meant_without_a_name() {
    let served = Served::start(|config| {
        config.registry.set_default("yes").unwrap();
        config.preload = Some(config.registry.card("yes").unwrap());
    });
    let begun = Instant::now();
    while served.get("/api/status")["resident"]["expert"] != "yes" {
        assert!(begun.elapsed() < Duration::from_secs(20), "nothing was loaded");
    }
    let (_, answer) = served.post("/api/generate", &json!({"prompt": "Hi", "stream": false}));
    assert_eq!(answer["response"], "yes");
    let (_, answer) =
        served.post("/v1/chat/completions", &json!({"messages": [{"role": "user", "content": "Hi"}]}));
    assert_eq!(answer["choices"][0]["message"]["content"], "yes");
    // A role of another file is loaded beside it, and each is listed.
    served.post("/api/generate", &json!({"model": "greeter", "prompt": "Hi", "stream": false}));
    let names: Vec<String> = served.get("/api/ps")["models"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| model["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, ["greeter:latest", "yes:latest"]);
    let status = served.get("/api/status");
    assert_eq!(status["residents"].as_array().unwrap().len(), 2, "{status}");
    let loaded = |event: &ServeEvent| matches!(event, ServeEvent::Residency(ResidencyEvent::Loaded { .. }));
    assert_eq!(served.events.lock().unwrap().try_iter().filter(loaded).count(), 2);
}

#[test]
fn what_is_wrong_is_said() {
    let served = Served::start(|_| {});
    let check = |path: &str, body: Value, status: u16, error: &str| {
        let (actual, answer) = served.post(path, &body);
        let said = answer["error"].as_str().unwrap_or_default();
        assert!(actual == status && said.contains(error), "{path} {body}: {actual} {answer}");
    };
    check("/api/generate", json!({"model": "nobody", "prompt": "x"}), 404, "model 'nobody' not found");
    check("/api/chat", json!({"model": "../greeter", "messages": []}), 404, "model '../greeter' not found");
    check("/api/chat", json!({"messages": []}), 400, "model is required");
    check("/api/generate", json!({"model": 5}), 400, "invalid type");
    check(
        "/api/generate",
        json!({"model": "yes", "prompt": "x", "think": true}),
        400,
        "does not support thinking",
    );
    check(
        "/api/generate",
        json!({"model": "yes", "prompt": "x", "suffix": "y"}),
        400,
        "does not support `suffix`",
    );
    check("/api/generate", json!({"model": "yes", "prompt": "x", "format": "yaml"}), 400, "invalid format");
    check(
        "/api/generate",
        json!({"model": "yes", "prompt": "x", "format": {"type": "nonsense"}}),
        400,
        "schema",
    );
    let options = |options: Value| json!({"model": "yes", "prompt": "x", "options": options});
    check("/api/generate", options(json!({"num_ctx": 8192})), 400, "fixed at 512");
    check("/api/generate", options(json!({"temperature": "hot"})), 400, "must be a number");
    check("/api/generate", options(json!({"temperature": 99})), 400, "allowed is 0 to 10");
    let long = json!({"model": "yes", "prompt": "y".repeat(2000)});
    check("/api/generate", long, 400, "its context holds 512");
    check("/api/pipelines/none/run", json!({"input": "x"}), 404, "pipeline 'none' not found");
    check("/api/pipelines/greetings/run", json!({"input": " "}), 400, "the input is empty");
    assert_eq!(served.ask_with("GET", "/api/generate", "", "").0, 405);
    assert_eq!(served.ask_with("GET", "/api/nothing", "", "").0, 404);
    assert_eq!(served.ask_with("GET", "/api/runs/..%2f..%2fetc", "", "").0, 404);
    assert_eq!(served.ask_with("POST", "/api/chat", "", "{not json").0, 400);
    assert_eq!(served.ask_with("GET", "/api/tags", "Host: evil.example\r\n", "").0, 403);
    assert_eq!(served.ask_with("POST", "/api/generate", "Origin: http://evil.example\r\n", "{}").0, 403);
}

#[test]
fn a_pipeline_runs_step_by_step_before_the_listener() {
    let served = Served::start(|_| {});
    let listed = served.get("/api/pipelines");
    assert_eq!(listed["pipelines"][0]["name"], "greetings");
    assert_eq!(listed["pipelines"][0]["steps"][1]["has_schema"], true);
    let (status, head, body) =
        served.ask_with("POST", "/api/pipelines/greetings/run", "", &json!({"input": "x\ny"}).to_string());
    assert_eq!(status, 200, "{body}");
    assert!(head.contains("text/event-stream"), "{head}");
    let events: Vec<Value> = body
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let kinds: Vec<&str> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!((kinds[0], *kinds.last().unwrap()), ("run_started", "run_finished"), "{kinds:?}");
    assert_eq!(kinds.iter().filter(|kind| **kind == "loaded").count(), 2);
    let text: String = events
        .iter()
        .filter(|event| event["event"] == "text" && event["step"] == "greet" && event["item"] == 1)
        .map(|event| event["text"].as_str().unwrap())
        .collect();
    assert_eq!(text, "Hello, world <b>");
    let run = events[0]["run"].as_str().unwrap();
    assert_eq!(served.get("/api/runs")["runs"][0]["run"], run);
    let record = served.get(&format!("/api/runs/{run}"));
    assert_eq!((record["input"].as_str(), record["results"].as_array().unwrap().len()), (Some("x\ny"), 6));
    // The last expert stays for who asks next.
    assert_eq!(served.get("/api/status")["resident"]["expert"], "recorder");
}

#[test]
fn generation_stops_when_the_client_goes_away_and_the_queue_is_bounded() {
    let served = Served::start(|config| config.max_queue = 1);
    // A clock that ticks to the end of its context, again and again, so that the engine stays busy.
    let slow = json!({"model": "clock", "prompt": "Hi"}).to_string();
    let mut first = served.open("POST", "/api/generate", "", &slow);
    let (status, _) = read_head(&mut first);
    assert_eq!(status, 200);
    assert!(read_chunk(&mut first).unwrap().contains("tick"));
    drop(first);
    // The engine is free again: this answer comes, whatever the first request had left to say.
    let (status, answer) =
        served.post("/api/generate", &json!({"model": "yes", "prompt": "Hi", "stream": false}));
    assert_eq!((status, &answer["response"]), (200, &json!("yes")));
    let begun = Instant::now();
    while served.get("/api/status")["n_jobs"] != 0 {
        assert!(begun.elapsed() < Duration::from_secs(20), "a job is still counted");
    }

    // Twelve at once on an engine that does one and lets one wait: some are told to come again, none is lost.
    let body = json!({"model": "clock", "prompt": "Hi", "stream": false}).to_string();
    let ask = || served.ask_with("POST", "/api/generate", "", &body).0;
    let answers: Vec<u16> = std::thread::scope(|scope| {
        let asked: Vec<_> = (0..12).map(|_| scope.spawn(ask)).collect();
        asked.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    assert!(answers.iter().all(|status| [200, 503].contains(status)), "{answers:?}");
    assert!(answers.contains(&200) && answers.contains(&503), "{answers:?}");
    let is_load = |event: &ServeEvent| matches!(event, ServeEvent::Residency(ResidencyEvent::Loaded { .. }));
    // Both stay: there is room.
    assert_eq!(served.events.lock().unwrap().try_iter().filter(is_load).count(), 2);
}

#[test]
fn openai_clients_are_understood() {
    let served = Served::start(|_| {});
    let messages = json!([{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]);
    let (status, answer) =
        served.post("/v1/chat/completions", &json!({"model": "greeter", "messages": messages}));
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["choices"][0]["message"]["content"], "Hello, world <b>");
    assert_eq!(
        (&answer["choices"][0]["finish_reason"], &answer["usage"]["completion_tokens"]),
        (&json!("stop"), &json!(4))
    );
    let body = json!({"model": "greeter", "messages": messages, "stream": true}).to_string();
    let (_, head, text) = served.ask_with("POST", "/v1/chat/completions", "", &body);
    assert!(head.contains("text/event-stream") && text.trim_end().ends_with("data: [DONE]"), "{text}");
}

#[test]
fn the_page_is_whole_and_can_load_nothing_from_elsewhere() {
    let served = Served::start(|_| {});
    let (status, head, page) = served.ask_with("GET", "/", "", "");
    assert_eq!(status, 200);
    assert!(head.contains("content-security-policy: default-src 'none'"), "{head}");
    for file in ["/page.css", "/page.js", "/icon.svg"] {
        assert!(page.contains(&format!("\"{file}\"")), "{file} is not used");
        assert_eq!(served.ask_with("GET", file, "", "").0, 200);
    }
    let script = served.ask_with("GET", "/page.js", "", "").2;
    for forbidden in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
        assert!(!script.contains(forbidden), "{forbidden}: model text must stay text");
    }
    for text in [&page, &script] {
        assert!(!text.contains("https://"), "something is loaded from elsewhere");
    }
}

#[test]
fn a_key_keeps_others_out() {
    let served = Served::start(|config| config.api_key = Some("a long secret".to_owned()));
    assert_eq!(served.ask_with("GET", "/api/tags", "", "").0, 401);
    assert_eq!(served.ask_with("GET", "/api/tags", "Authorization: Bearer a long secret\r\n", "").0, 200);
    assert_eq!(served.ask_with("GET", "/", "", "").0, 200);
}

#[test]
fn a_server_that_can_not_be_is_refused() {
    let served = Served::start(|_| {});
    let start = |change: &dyn Fn(&mut ServeConfig)| {
        let directory = tempfile::tempdir().unwrap();
        let mut config = config(directory.path());
        change(&mut config);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime
            .block_on(serve(config, std::future::ready(()), Box::new(formats::observe::Silent)))
            .unwrap_err()
    };
    let taken = start(&|config| config.address = served.address);
    assert!(matches!(&taken, Error::Listen { address, .. } if *address == served.address), "{taken}");
    assert!(taken.to_string().contains("Address already in use"), "{taken}");
    let open = start(&|config| config.address = "0.0.0.0:0".parse().unwrap());
    assert_eq!(open.to_string(), "server: an address beyond this machine needs an API key");
    assert!(start(&|config| config.api_key = Some("short".to_owned())).to_string().contains("at least 8"));
}
