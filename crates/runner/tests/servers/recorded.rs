//! The double beside the real thing: one conversation with a server, recorded from Ollama of several versions, held
//! with the double of the same version. Where `OLLAMA_HOST` names a server it is held with that one too; and with
//! `TUNE_RECORD=1` what it says is written down, under its version.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use runner::engine::ollama::{OllamaServer, RegisterEvent, register};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::double::Double;
use crate::registering::registration;

/// One request and its answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Exchange {
    asked: String,
    status: u16,
    /// The answer's lines; one line where it is no stream.
    lines: Vec<Value>,
}

/// What is asked, with a name, a method, a route and a body.
fn questions(model: &str) -> Vec<(&'static str, &'static str, String, Value)> {
    let nobody = "0".repeat(64);
    let user = |text: &str| json!([{"role": "user", "content": text}]);
    let fixed = json!({"model": model, "think": false, "truncate": false, "shift": false, "stream": false});
    let with = |more: Value| {
        let mut body = fixed.clone();
        for (key, value) in more.as_object().unwrap() {
            body[key] = value.clone();
        }
        body
    };
    let options = json!({"temperature": 0, "num_predict": 4});
    vec![
        ("tags", "GET", "/api/tags".into(), Value::Null),
        ("show", "POST", "/api/show".into(), json!({"model": model})),
        ("show all", "POST", "/api/show".into(), json!({"model": model, "verbose": true})),
        ("load", "POST", "/api/generate".into(), fixed.clone()),
        ("ps", "GET", "/api/ps".into(), Value::Null),
        (
            "chat",
            "POST",
            "/api/chat".into(),
            with(json!({"messages": user("Hi"), "stream": true, "options": options})),
        ),
        (
            "raw",
            "POST",
            "/api/generate".into(),
            with(json!({"prompt": "Hi", "raw": true, "stream": true, "options": options})),
        ),
        (
            "render",
            "POST",
            "/api/chat".into(),
            with(json!({"messages": user("Hi"), "_debug_render_only": true})),
        ),
        ("think", "POST", "/api/chat".into(), with(json!({"messages": user("Hi"), "think": true}))),
        ("unload", "POST", "/api/generate".into(), json!({"model": model, "stream": false, "keep_alive": 0})),
        ("show nothing", "POST", "/api/show".into(), json!({"model": "no-such-model"})),
        ("load nothing", "POST", "/api/generate".into(), json!({"model": "no-such-model", "stream": false})),
        (
            "chat nothing",
            "POST",
            "/api/chat".into(),
            json!({"model": "no-such-model", "messages": user("Hi")}),
        ),
        (
            "copy nothing",
            "POST",
            "/api/copy".into(),
            json!({"source": "no-such-model", "destination": "other"}),
        ),
        ("delete nothing", "DELETE", "/api/delete".into(), json!({"model": "no-such-model"})),
        ("find a blob", "HEAD", format!("/api/blobs/sha256:{nobody}"), Value::Null),
        ("push a blob", "POST", format!("/api/blobs/sha256:{nobody}"), json!("not what its name says")),
    ]
}

/// Asks everything of a server that has such a model.
fn held(url: &str, model: &str) -> Vec<Exchange> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut exchanges = Vec::new();
    for (asked, method, route, body) in questions(model) {
        let method: reqwest::Method = method.parse().unwrap();
        let mut request = client.request(method, format!("{url}{route}"));
        if !body.is_null() {
            request = request.body(body.to_string());
        }
        let (status, text) = runtime.block_on(async {
            let response = request.send().await.unwrap();
            (response.status().as_u16(), response.text().await.unwrap())
        });
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        let lines = lines.map(|line| serde_json::from_str(line).unwrap_or_else(|_| json!(line))).collect();
        exchanges.push(Exchange { asked: asked.to_owned(), status, lines });
    }
    exchanges
}

/// The same model, registered on a server.
fn with_model(server: &OllamaServer, directory: &Path) -> String {
    let request =
        runner::engine::ollama::Registration { name: "tune-recorded".to_owned(), ..registration(directory) };
    register(server, &request, &|| false, &mut |_: RegisterEvent| {}).unwrap().name
}

fn of_double(version: &str) -> Vec<Exchange> {
    let directory = tempfile::tempdir().unwrap();
    let double = Double::start(version);
    let model = with_model(&crate::engine::server(&double), directory.path());
    held(&double.url, &model)
}

/// Every key that the double has the real one has, of the same kind; errors are the same words.
fn is_within(double: &Value, real: &Value, place: &str) {
    match (double, real) {
        (Value::Object(double), Value::Object(real)) => {
            for (key, value) in double {
                let place = format!("{place}.{key}");
                let there =
                    real.get(key).unwrap_or_else(|| panic!("{place} is not in the recording: {real:?}"));
                if key == "error" {
                    assert_eq!(value, there, "{place}");
                }
                is_within(value, there, &place);
            }
        }
        (Value::Array(double), Value::Array(real)) => {
            assert_eq!(double.is_empty(), real.is_empty(), "{place}");
            if let (Some(double), Some(real)) = (double.first(), real.first()) {
                is_within(double, real, place);
            }
        }
        _ => assert_eq!(kind(double), kind(real), "{place}: {double} and {real}"),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a truth",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn compare(version: &str, real: &[Exchange]) {
    let double: BTreeMap<String, Exchange> =
        of_double(version).into_iter().map(|exchange| (exchange.asked.clone(), exchange)).collect();
    for real in real {
        let double = &double[&real.asked];
        let place = format!("{version}, {}", real.asked);
        assert_eq!(double.status, real.status, "{place}: {:?} and {:?}", double.lines, real.lines);
        assert_eq!(double.lines.is_empty(), real.lines.is_empty(), "{place}");
        for (double, real) in
            [(double.lines.first(), real.lines.first()), (double.lines.last(), real.lines.last())]
        {
            if let (Some(double), Some(real)) = (double, real) {
                is_within(double, real, &place);
            }
        }
    }
}

fn recordings() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/servers/recorded")
}

#[test]
fn the_double_answers_as_the_recorded_servers_did() {
    let mut n = 0;
    for entry in std::fs::read_dir(recordings()).unwrap().flatten() {
        let path = entry.path();
        let real: Vec<Exchange> = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(real.len(), questions("x").len(), "{}", path.display());
        compare(path.file_stem().unwrap().to_str().unwrap(), &real);
        n += 1;
    }
    assert!(n > 0);
}

#[test]
fn the_double_answers_as_a_real_server_does() {
    let Some(server) = crate::real::real() else { return };
    let version = server.version().unwrap().to_string();
    let directory = tempfile::tempdir().unwrap();
    let model = with_model(&server, directory.path());
    let real = held(&server.url(), &model);
    server.delete(&model).unwrap();
    if std::env::var_os("TUNE_RECORD").is_some() {
        let shortened: Vec<Exchange> = real.iter().cloned().map(short).collect();
        let path = recordings().join(format!("{version}.json"));
        std::fs::write(path, serde_json::to_string_pretty(&shortened).unwrap() + "\n").unwrap();
    }
    // A build without a version has rules of one that is between.
    if version != "0.0.0" {
        compare(&version, &real);
    }
}

/// Lists shortened to what tells their kind, no models but ours, and no paths of the machine that it ran on.
fn short(mut exchange: Exchange) -> Exchange {
    fn cut(value: &mut Value) {
        match value {
            Value::Array(list) => {
                list.truncate(2);
                list.iter_mut().for_each(cut);
            }
            Value::Object(map) => map.values_mut().for_each(cut),
            _ => {}
        }
    }
    for line in &mut exchange.lines {
        if let Some(models) = line.get_mut("models").and_then(Value::as_array_mut) {
            models.retain(|model| model["name"].as_str().is_some_and(|name| name.starts_with("tune-")));
        }
        cut(line);
        if let Some(text) = line.get("modelfile").and_then(Value::as_str) {
            let lines =
                text.lines().map(|line| match (line.starts_with("FROM "), line.split_once("/blobs/")) {
                    (true, Some((_, blob))) => format!("FROM /models/blobs/{blob}\n"),
                    _ => format!("{line}\n"),
                });
            line["modelfile"] = lines.collect::<String>().into();
        }
    }
    exchange
}
