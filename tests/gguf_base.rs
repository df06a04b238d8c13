//! A base that is a GGUF: the same training as on the folder that it was exported from, to the last bit; and a model
//! that Ollama holds is one.

mod harness;

use harness::{Folder, recipe, tune};
use std::path::Path;

/// Exports the shipped base alone.
fn export(folder: &Folder, quant: &str) -> String {
    let out = folder.text("export");
    let output = tune(&["export", "recipes/pocket", "--quant", quant, "--out", &out]).output().expect("tune");
    assert!(output.status.success(), "{}", folder.shown(&output));
    folder.text(&format!("export/pocket-{quant}.gguf"))
}

fn train(folder: &Folder, base: &str, run: &str, ollama: Option<&Path>) -> String {
    let text = recipe(&[("base", &format!("base = \"{base}\""))]);
    let recipe = folder.write(&format!("{run}.toml"), text);
    let mut command = tune(&["train", &recipe, "--run-dir", &folder.text(run)]);
    if let Some(models) = ollama {
        command.env("OLLAMA_MODELS", models);
    }
    let output = command.output().expect("tune");
    assert!(output.status.success(), "{}", folder.shown(&output));
    folder.shown(&output)
}

/// Every loss of a run as it was written, all digits.
fn losses(folder: &Folder, run: &str) -> Vec<String> {
    let metrics = std::fs::read_to_string(folder.path(&format!("{run}/metrics.jsonl"))).expect("metrics");
    let values = metrics.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
    values
        .flat_map(|value| ["loss", "validation_loss", "gradient_norm"].map(|key| value.get(key).cloned()))
        .flatten()
        .map(|loss| loss.to_string())
        .collect()
}

fn adapter(folder: &Folder, run: &str) -> Vec<u8> {
    std::fs::read(folder.path(&format!("{run}/adapter/adapter_model.safetensors"))).expect("an adapter")
}

#[test]
fn folder_gguf_and_ollama_give_the_same_bits() {
    let folder = Folder::new();
    let gguf = export(&folder, "q4_k_m");
    train(&folder, "recipes/pocket", "from-folder", None);
    let shown = train(&folder, &gguf, "from-gguf", None);
    assert!(shown.contains("the base is a GGUF"), "{shown}");
    assert!(losses(&folder, "from-folder").len() >= 8, "{:?}", losses(&folder, "from-folder"));
    assert_eq!(losses(&folder, "from-gguf"), losses(&folder, "from-folder"));
    assert!(adapter(&folder, "from-gguf") == adapter(&folder, "from-folder"), "the adapters differ");

    let models = ollama_models(&folder, &gguf);
    train(&folder, "ollama:pocket", "from-ollama", Some(&models));
    assert!(adapter(&folder, "from-ollama") == adapter(&folder, "from-folder"), "the adapters differ");
}

/// A folder as Ollama keeps it, with one model.
fn ollama_models(folder: &Folder, gguf: &str) -> std::path::PathBuf {
    let hex = formats::hash::sha256_file(Path::new(gguf)).expect("a hash");
    let size = std::fs::metadata(gguf).expect("a file").len();
    let manifest = format!(
        r#"{{"layers": [{{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:{hex}", "size": {size}}}]}}"#
    );
    folder.write("models/manifests/registry.ollama.ai/library/pocket/latest", manifest);
    folder.write(&format!("models/blobs/sha256-{hex}"), std::fs::read(gguf).expect("a file"));
    folder.path("models")
}

#[test]
fn what_a_gguf_base_cannot_do_is_said() {
    let folder = Folder::new();
    let gguf = export(&folder, "q8_0");
    let text = recipe(&[("base", &format!("base = \"{gguf}\"\nquant = \"q4_k_m\""))]);
    let recipe_path = folder.write("other.toml", text);
    let output = tune(&["train", &recipe_path, "--run-dir", &folder.text("other")]).output().expect("tune");
    let shown = folder.shown(&output);
    let reason = "DIR/other.toml:3: `model.quant` is q4_k_m, but the blocks of DIR/export/pocket-q8_0.gguf are q8_0 and \
                  are used as they are: leave the key out";
    assert!(shown.contains(reason) && shown.ends_with("exit 1\n"), "{shown}");

    train(&folder, &gguf, "from-gguf", None);
    let output = tune(&["export", &folder.text("from-gguf"), "--quant", "q4_k_m"]).output().expect("tune");
    let shown = folder.shown(&output);
    assert!(shown.contains("is quantised already") && shown.contains("--allow-requantize"), "{shown}");
    assert!(shown.ends_with("exit 1\n"), "{shown}");
    let allowed = ["export", &folder.text("from-gguf"), "--quant", "q8_0", "--allow-requantize"];
    let shown = folder.shown(&tune(&allowed).output().expect("tune"));
    assert!(shown.contains("merged · ") && shown.ends_with("exit 0\n"), "{shown}");

    let text = recipe(&[("base", "base = \"ollama:nothing-here\"")]);
    let recipe_path = folder.write("ollama.toml", text);
    let output =
        tune(&["train", &recipe_path]).env("OLLAMA_MODELS", folder.path("none")).output().expect("tune");
    let shown = folder.shown(&output);
    assert!(shown.contains("no models of Ollama on this machine") && shown.contains("DIR/none"), "{shown}");
}
