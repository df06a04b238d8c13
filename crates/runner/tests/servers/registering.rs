//! A file becomes a model of a server of each generation, and only if the server stored what it was sent.

use std::path::Path;

use runner::Error;
use runner::card::{LoadOptions, OllamaModel};
use runner::engine::ollama::{Generation, RegisterEvent, Registration, register};
use serde_json::json;

use crate::double::{Asked, Double, Plan, Wrong};
use crate::engine::{VERSIONS, server};
use crate::tiny::{self, Says};

pub fn registration(directory: &Path) -> Registration {
    let file = directory.join("poet.gguf");
    tiny::write(&file, &Says::Once(&["Hello", ", world"]));
    Registration {
        name: "me/poet".to_owned(),
        file,
        sha256: None,
        adapter: None,
        stop: vec!["THE END".to_owned()],
        system: Some("Rhyme.".to_owned()),
        licenses: vec!["mit".to_owned()],
        load: LoadOptions { num_ctx: 256, num_batch: 64, ..LoadOptions::default() },
    }
}

/// A model that was registered there.
pub fn registered(double: &Double, directory: &Path) -> OllamaModel {
    register(&server(double), &registration(directory), &|| false, &mut |_: RegisterEvent| {}).unwrap()
}

#[test]
fn each_generation_takes_a_file() {
    for version in VERSIONS {
        let directory = tempfile::tempdir().unwrap();
        let double = Double::start(version);
        let request = registration(directory.path());
        let mut events = Vec::new();
        let model = register(&server(&double), &request, &|| false, &mut |event| events.push(event)).unwrap();
        assert_eq!((model.name.as_str(), model.num_ctx), ("me/poet:latest", Some(256)));
        assert_eq!(model.stop, ["<|im_end|>", "THE END"]);
        let sha256 = formats::hash::sha256_file(&request.file).unwrap();
        {
            let inside = double.inside();
            assert_eq!(
                inside.models.keys().collect::<Vec<_>>(),
                ["me/poet:latest"],
                "the name for checks is gone"
            );
            let stored = &inside.models["me/poet:latest"];
            assert_eq!(stored.digest, model.digest);
            assert_eq!(stored.parameters["num_batch"], json!(64));
            assert_eq!(stored.system, "Rhyme.");
            assert!(stored.template.contains("{{ range .Messages }}"), "{}", stored.template);
            let rewritten = stored.stored_as != sha256;
            assert_eq!(rewritten, version == "0.30.0" || version == "0.34.0");
        }
        let checked: Vec<&str> = events
            .iter()
            .filter_map(
                |event| if let RegisterEvent::Checked { what } = event { Some(what.as_str()) } else { None },
            )
            .collect();
        assert_eq!(checked.len(), 2, "{events:?}");
        assert!(checked[1].starts_with("3 prompts as the file's own template"), "{checked:?}");
        assert!(matches!(events.last(), Some(RegisterEvent::Registered { .. })));
        let size = std::fs::metadata(&request.file).unwrap().len();
        assert!(events.iter().any(
            |event| matches!(event, RegisterEvent::Sending { total_bytes, .. } if *total_bytes == size)
        ));
        // A second time nothing is sent.
        let mut events = Vec::new();
        let again = register(&server(&double), &request, &|| false, &mut |event| events.push(event)).unwrap();
        assert_eq!(again, model);
        assert!(events.contains(&RegisterEvent::Held) && double.count(Asked::PushBlob) == 1);
    }
}

#[test]
fn a_template_that_go_can_not_write_is_left_to_the_file_or_refused() {
    for version in VERSIONS {
        let directory = tempfile::tempdir().unwrap();
        let double = Double::start(version);
        let request = Registration { system: None, ..registration(directory.path()) };
        tiny::write_template(
            &request.file,
            &Says::Once(&["Hello"]),
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}\
             {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        );
        let went = register(&server(&double), &request, &|| false, &mut |_: RegisterEvent| {});
        if server(&double).version().unwrap().generation() == Generation::Keeps {
            let error = went.unwrap_err();
            assert!(error.to_string().contains("only templates of Go's language"), "{error}");
            assert!(error.hint().unwrap().contains("0.30 or later"));
            assert_eq!(double.count(Asked::PushBlob), 0, "refused before a byte was sent");
        } else {
            went.unwrap();
            assert_eq!(double.inside().models["me/poet:latest"].template, "");
        }
    }
}

#[test]
fn adapters_are_for_servers_that_take_them() {
    for version in VERSIONS {
        let directory = tempfile::tempdir().unwrap();
        let double = Double::start(version);
        let adapter = directory.path().join("adapter.gguf");
        tiny::write(&adapter, &Says::Once(&["no adapter, but bytes"]));
        let request = Registration { adapter: Some(adapter), ..registration(directory.path()) };
        let went = register(&server(&double), &request, &|| false, &mut |_: RegisterEvent| {});
        if version == "0.34.1" {
            let error = went.unwrap_err();
            assert!(error.to_string().contains("takes no LoRA adapters any more"), "{error}");
            assert!(error.hint().unwrap().contains("merged"));
            assert_eq!(double.count(Asked::HasBlob), 0, "refused before anything was sent");
        } else {
            went.unwrap();
            assert!(double.inside().models["me/poet:latest"].has_adapter);
            // Made is not loaded: an engine may refuse what the server took.
            double.inside().plan =
                Some(Plan { wrong: Wrong::NoAdapter, at: Asked::Render, after: 0, times: 3 });
            let again = Registration { name: "again".to_owned(), ..request };
            let error =
                register(&server(&double), &again, &|| false, &mut |_: RegisterEvent| {}).unwrap_err();
            assert!(error.to_string().contains("can't load the adapter"), "{error}");
            assert!(error.hint().unwrap().contains("merged"));
            assert_eq!(double.inside().models.keys().collect::<Vec<_>>(), ["me/poet:latest"]);
        }
    }
}

/// What a server does wrong with a file, and the words that say so; what had the name before keeps it.
#[test]
fn what_is_stored_otherwise_is_taken_back() {
    type Change = fn(&mut crate::double::Stored);
    let changes: [(&str, Change, &str); 4] = [
        ("0.24.0", |stored| stored.stored_as = "0".repeat(64), "it has sha256 0000"),
        ("0.30.0", |stored| stored.file = String::new(), "is not there"),
        (
            "0.34.1",
            |stored| drop(stored.parameters.insert("num_ctx".into(), json!(4096))),
            "parameter `num_ctx`",
        ),
        (
            "0.34.1",
            |stored| stored.template = "{{ range .Messages }}{{ .Content }}{{ end }}".into(),
            "a prompt is rendered as",
        ),
    ];
    for (version, change, words) in changes {
        let directory = tempfile::tempdir().unwrap();
        let double = Double::start(version);
        let before = registered(&double, directory.path());
        let request = Registration { stop: Vec::new(), ..registration(directory.path()) };
        let mut made = 0;
        let error = register(&server(&double), &request, &|| false, &mut |event| {
            if matches!(&event, RegisterEvent::Status { status } if status == "success") {
                made += 1;
                change(double.inside().models.get_mut("me/poet:latest-unchecked").unwrap());
            }
        })
        .unwrap_err();
        assert_eq!(made, 1);
        assert!(error.to_string().contains(words), "{error}");
        assert!(matches!(error, Error::OnServer { .. }));
        let inside = double.inside();
        assert_eq!(inside.models.keys().collect::<Vec<_>>(), ["me/poet:latest"]);
        assert_eq!(inside.models["me/poet:latest"].digest, before.digest);
    }
}

#[test]
fn a_transfer_that_fails_is_tried_again_and_one_that_is_cancelled_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let double = Double::start("0.34.1");
    let request = registration(directory.path());
    double.inside().plan = Some(Plan { wrong: Wrong::Html, at: Asked::PushBlob, after: 0, times: 2 });
    register(&server(&double), &request, &|| false, &mut |_: RegisterEvent| {}).unwrap();
    assert_eq!(double.count(Asked::PushBlob), 3);

    let other = Double::start("0.34.1");
    let error = register(&server(&other), &request, &|| true, &mut |_: RegisterEvent| {}).unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error}");
    assert!(other.inside().models.is_empty());
    // A file that changed since its digest was taken.
    let lying = Registration { sha256: Some("0".repeat(64)), ..request };
    let error = register(&server(&other), &lying, &|| false, &mut |_: RegisterEvent| {}).unwrap_err();
    assert!(error.to_string().contains("digest mismatch"), "{error}");
}
