//! A base of the Hugging Face hub, from a hub on loopback: pulled, trained on, found again for export, and refused with
//! a way out.

mod harness;
#[path = "../crates/hub/tests/server/mod.rs"]
mod server;

use expect_test::{Expect, expect};
use harness::{Folder, recipe, root, tune};
use server::{Hub, Repository, TOKEN};
use std::process::Command;

const ID: &str = "owner/pocket";

struct World {
    hub: Hub,
    folder: Folder,
}

impl World {
    fn new() -> World {
        let world = World { hub: Hub::start(), folder: Folder::new() };
        world.hub.add(ID, pocket());
        world
    }

    /// The command with this hub and this cache, whatever the environment of the tests says.
    fn tune(&self, arguments: &[&str]) -> Command {
        let mut command = tune(arguments);
        for name in ["HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"] {
            command.env_remove(name);
        }
        command.env("HF_ENDPOINT", &self.hub.endpoint).env("HF_HOME", self.folder.path("hf"));
        command
    }

    fn shown(&self, mut command: Command) -> String {
        let shown = self.folder.shown(&command.output().expect("tune"));
        shown.replace(&self.hub.endpoint, "HUB")
    }

    fn must(&self, arguments: &[&str]) -> String {
        let shown = self.shown(self.tune(arguments));
        assert!(shown.ends_with("exit 0\n"), "tune {arguments:?}\n{shown}");
        shown
    }

    fn recipe(&self, name: &str, base: &str) -> String {
        let text = recipe(&[("base", &format!("base = \"{base}\"")), ("max_steps", "max_steps = 2")]);
        self.folder.write(name, text)
    }

    fn adapter(&self, run: &str) -> Vec<u8> {
        let path = self.folder.path(&format!("{run}/adapter/adapter_model.safetensors"));
        std::fs::read(path).expect("an adapter")
    }

    fn check(&self, command: Command, expected: Expect) {
        expected.assert_eq(&self.shown(command));
    }
}

fn pocket() -> Repository {
    Repository::of_folder(&root().join("recipes/pocket"))
}

/// The same model after its owner has changed a weight.
fn pocket_of_tomorrow() -> Repository {
    let mut files = pocket().files;
    let weights = files.get_mut("model.safetensors").expect("weights");
    let last = weights.len() - 1;
    weights[last] ^= 1;
    let files: Vec<(&str, &[u8])> =
        files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    Repository::new(&files)
}

#[test]
fn train_downloads_and_export_finds_the_same_commit_again() {
    let world = World::new();
    let (from_hub, from_folder) =
        (world.recipe("hub.toml", ID), world.recipe("folder.toml", "recipes/pocket"));
    let (run, other_run) = (world.folder.text("run"), world.folder.text("other-run"));
    let shown = world.must(&["train", &from_hub, "--run-dir", &run]);
    assert!(shown.contains(" · download 10.1 MiB of 10.1 MiB in 5 files"), "{shown}");
    world.must(&["train", &from_folder, "--run-dir", &other_run]);
    assert!(world.adapter("run") == world.adapter("other-run"), "the adapters differ");
    let config =
        std::fs::read_to_string(world.folder.path("run/adapter/adapter_config.json")).expect("a file");
    let config: serde_json::Value = serde_json::from_str(&config).expect("JSON");
    assert_eq!(config["base_model_name_or_path"], ID);
    assert_eq!(config["revision"], pocket().commit);

    // The branch moves, and the cache with it: the run keeps to the commit that it was trained on.
    world.hub.add(ID, pocket_of_tomorrow());
    let shown = world.must(&["pull", ID]);
    assert!(shown.contains(&pocket_of_tomorrow().commit), "{shown}");
    world.hub.asked();
    let shown = world.must(&["export", &run, "--quant", "q8_0"]);
    assert!(shown.contains("receipt.json"), "{shown}");
    let shown = world.must(&["train", &from_hub, "--run-dir", &run, "--resume"]);
    assert!(shown.contains("this run had finished before"), "{shown}");
    assert!(world.hub.asked().is_empty());

    // The base alone goes by its name on the hub.
    let out = world.folder.text("alone");
    let from = format!("hf.co/{ID}@{}", pocket().commit);
    world.must(&["export", &from, "--quant", "q8_0", "--out", &out]);
    assert!(world.folder.path("alone/pocket-q8_0.gguf").is_file());

    // A cache that was emptied is filled again with that commit.
    std::fs::remove_dir_all(world.folder.path("hf")).expect("a cache");
    world.hub.add(ID, pocket());
    world.must(&["export", &run, "--quant", "q8_0", "--force"]);
    let listing = format!("GET /api/models/{ID}/revision/{}", pocket().commit);
    assert_eq!(world.hub.asked().first(), Some(&listing));
}

#[test]
fn a_model_in_the_cache_is_used_without_the_network() {
    let world = World::new();
    let shown = world.must(&["pull", ID]);
    let snapshot = format!("DIR/hf/hub/models--owner--pocket/snapshots/{}\n", pocket().commit);
    assert!(shown.starts_with(&snapshot), "{shown}");
    world.hub.asked();
    let recipe = world.recipe("hub.toml", ID);
    for offline in ["0", "1"] {
        let run = world.folder.text(offline);
        let mut command = world.tune(&["train", &recipe, "--run-dir", &run]);
        command.env("HF_HUB_OFFLINE", offline);
        let shown = world.shown(command);
        assert!(shown.ends_with("exit 0\n"), "{shown}");
    }
    assert!(world.hub.asked().is_empty());
}

#[test]
fn a_token_opens_a_gated_model_and_json_tells_all_of_it() {
    let world = World::new();
    world.hub.add(ID, Repository { is_gated: true, ..pocket() });
    world.check(
        world.tune(&["pull", ID]),
        expect![[r#"
            error    owner/pocket is gated: its owner lets only those download it who have accepted its terms
            hint     accept the terms at HUB/owner/pocket; then, set HF_TOKEN to a token of https://huggingface.co/settings/tokens
            exit 1
        "#]],
    );
    world.folder.write("hf/token", format!("{TOKEN}\n"));
    let shown = world.must(&["pull", ID, "--json"]);
    let events = shown.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let kinds: Vec<String> = events.filter_map(|event| Some(event["event"].as_str()?.to_owned())).collect();
    for kind in ["pull_plan", "pull_progress", "pull_file", "pull_finished"] {
        assert!(kinds.iter().any(|found| found == kind), "{kind} is missing in {kinds:?}");
    }
    assert!(!world.hub.state().storage_saw_token, "the storage was shown the token");
}

#[test]
fn what_cannot_be_pulled_says_why() {
    let world = World::new();
    world.check(
        world.tune(&["pull", "owner/nothing"]),
        expect![[r#"
            error    there is no repository owner/nothing at HUB, or it is private
            hint     check the name; for a private repository, set HF_TOKEN to a token of https://huggingface.co/settings/tokens
            exit 1
        "#]],
    );
    world.check(
        world.tune(&["pull", "owner"]),
        expect![[r#"
            error    `owner` is no model of the hub: a repository is OWNER/NAME, of letters, digits, `-`, `_` and `.`
            hint     a model of the hub is OWNER/NAME, OWNER/NAME@REVISION or OWNER/NAME:FILE.gguf
            exit 1
        "#]],
    );
    let mut command = world.tune(&["pull", ID]);
    command.env("HF_HUB_OFFLINE", "1");
    world.check(
        command,
        expect![[r#"
            error    owner/pocket is not in the cache DIR/hf/hub: revision `main` missing
            hint     unset HF_HUB_OFFLINE and `tune pull owner/pocket`, or copy the cache from where it is
            exit 1
        "#]],
    );
    let recipe = world.recipe("two.toml", "owner/pocket@v2");
    let shown = world.shown(world.tune(&["train", &recipe, "--run-dir", &world.folder.text("run")]));
    let expected = "error    owner/pocket has no revision `v2`\nhint     leave it out for the main branch: owner/pocket; \
                    as a path, `owner/pocket@v2` does not exist in the folder tune is started in\n";
    assert!(shown.contains(expected), "{shown}");
    assert!(!world.folder.path("run").exists());
}
