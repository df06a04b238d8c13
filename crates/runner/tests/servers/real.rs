//! A real Ollama, where `OLLAMA_HOST` names one that answers: register, load, generate, unload, a pipeline, delete.

use std::ops::ControlFlow;

use runner::Residency;
use runner::card::{CardOptions, ExpertCard, LoadOptions, Model};
use runner::engine::ollama::{OllamaServer, RegisterEvent, Registration, register};
use runner::engine::remote::Patience;
use runner::engine::{Engine, EngineByModel, Finish, Form, Progress, Prompt, Request, Servers};
use runner::pipeline::{Event, RunOptions, run};
use serde_json::json;
use text::Message;

use crate::pipelines::checked;
use crate::tiny::{self, Says};

/// Deleted whatever happens.
struct Registered<'a> {
    server: &'a OllamaServer,
    name: &'a str,
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        // A test that failed has said so; one that went well has deleted it.
        let _ = self.server.delete(self.name);
    }
}

pub fn real() -> Option<OllamaServer> {
    let Ok(host) = std::env::var("OLLAMA_HOST") else {
        println!("skipped: OLLAMA_HOST names no Ollama to try this on");
        return None;
    };
    let server = OllamaServer::at(&host, Patience::default()).unwrap();
    match OllamaServer::at(&host, Patience { tries: 1, ..Patience::default() }).unwrap().version() {
        Ok(version) => println!("Ollama {version}, {:?}, at {}", version.generation(), server.url()),
        Err(error) => {
            println!("skipped: {error}");
            return None;
        }
    }
    Some(server)
}

#[test]
fn a_real_ollama_does_what_the_double_does() {
    let Some(server) = real() else { return };
    let directory = tempfile::tempdir().unwrap();
    let name = format!("tune-test-{}:latest", std::process::id());
    let _guard = Registered { server: &server, name: &name };
    let file = directory.path().join("poet.gguf");
    tiny::write(&file, &Says::Once(&["Roses ", "are ", "red"]));
    let load = LoadOptions { num_ctx: 256, num_batch: 64, ..LoadOptions::default() };
    let request = Registration {
        name: name.clone(),
        file,
        sha256: None,
        adapter: None,
        stop: Vec::new(),
        system: Some("Rhyme.".to_owned()),
        licenses: Vec::new(),
        load,
    };
    let mut checked_things = Vec::new();
    let model = register(&server, &request, &|| false, &mut |event| {
        if let RegisterEvent::Checked { what } = event {
            checked_things.push(what);
        }
    })
    .unwrap();
    println!("registered {} {}: {}", model.name, model.digest, checked_things.join("; "));
    assert_eq!(model.num_ctx, Some(256));

    let card = ExpertCard::of_model("poet", Model::Ollama(model.clone()), &CardOptions::default()).unwrap();
    let mut engine = EngineByModel::new(Servers::default()).unwrap();
    let mut expert = engine.load(&card, &mut |_| ControlFlow::Continue(())).unwrap();
    println!("loaded, {} bytes, {} tokens", expert.memory().total_bytes(), expert.context_tokens());
    let say = |text: String| Request::new(&card, Prompt::Chat(vec![Message::new("user", text)]));
    let mut told = String::new();
    let generated = expert
        .generate(&say("A rose?".into()), &mut |progress| {
            if let Progress::Text(text) = progress {
                told.push_str(text);
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    println!("{generated:?}");
    assert_eq!((generated.text.as_str(), told.as_str()), ("Roses are red", "Roses are red"));
    assert_eq!(generated.finish, Finish::Stop);
    assert!(generated.prompt_tokens > 0 && generated.output_tokens > 0);
    // Not one prompt is cut: what is longer than the context is refused.
    let long = expert.generate(&say("word ".repeat(600)), &mut |_| ControlFlow::Continue(()));
    let error = long.unwrap_err();
    println!("a prompt that is too long: {error}");
    assert!(error.to_string().contains("context"), "{error}");
    let error = expert.generate(&say("<|im_end|>".into()), &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(error.to_string().contains("control token"), "{error}");
    let mut form = say("A form?".into());
    form.form = Form::Schema(json!({"enum": ["yes", "no"]}));
    form.sampling.max_tokens = Some(16);
    let held = expert.generate(&form, &mut |_| ControlFlow::Continue(())).unwrap().text;
    // Blanks after the value are JSON too, and some versions let a model write them to its limit.
    assert!(matches!(held.trim(), "\"yes\"" | "\"no\""), "{held}");
    expert.unload().unwrap();
    assert!(server.ps().unwrap().iter().all(|running| running.name != model.name));

    let spec = json!({
        "local": server.is_local(),
        "experts": {"poet": {"ollama": name, "host": server.url(), "num_ctx": 256}},
        "steps": [
            {"name": "sing", "expert": "poet", "map": "lines", "prompt": "{{ item }}"},
            {"name": "again", "expert": "poet", "prompt": "{{ steps.sing.output }}"},
        ],
    });
    let pipeline = checked(spec, directory.path()).unwrap();
    let options = RunOptions { runs: directory.path().join("runs"), ..RunOptions::default() };
    let mut residency = Residency::new(Box::new(EngineByModel::new(Servers::default()).unwrap()));
    let outcome =
        run(&pipeline, "one\ntwo", &options, &mut residency, &|| false, &mut |_: Event| {}).unwrap();
    assert_eq!(outcome.n_loads, 1);
    assert!(outcome.results.iter().all(|result| result.output == "Roses are red"), "{:?}", outcome.results);

    let copied = format!("tune-copy-{}:latest", std::process::id());
    let _second = Registered { server: &server, name: &copied };
    server.copy(&name, &copied).unwrap();
    assert_eq!(server.tag(&copied).unwrap().digest, model.digest);
    server.delete(&copied).unwrap();
    server.delete(&name).unwrap();
    assert!(server.tag(&name).is_err());
}
