//! The walls of the house: what may depend on what, who prints, and how the top level looks.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const STAGES: [&str; 3] = ["trainer", "exporter", "runner"];
const TOP_LEVEL: [&str; 8] =
    ["Cargo.toml", "crates", "datasets", "recipes", "scripts", "tests", "README.md", "Cargo.lock"];
/// Runs and build results are the user's, not the repository's.
const NOT_OURS: [&str; 3] = ["target", "runs", "LICENSE"];
const LONGEST_FILE: usize = 800;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the workspace")
}

fn sources(under: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(under).expect("a folder of the workspace").flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found
}

/// The source of a file without its tests, which stand last, and without comments.
fn code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).expect("a source file");
    let product = text.split("#[cfg(test)]").next().unwrap_or_default();
    product.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn dependencies(package: &str) -> BTreeSet<String> {
    let manifest =
        std::fs::read_to_string(root().join("crates").join(package).join("Cargo.toml")).expect("a manifest");
    let manifest: toml::Table = manifest.parse().expect("TOML");
    let table =
        |name| manifest.get(name).and_then(toml::Value::as_table).into_iter().flat_map(|t| t.keys().cloned());
    table("dependencies").chain(table("dev-dependencies")).collect()
}

#[test]
fn stages_do_not_know_each_other() {
    for stage in STAGES {
        for other in STAGES.iter().filter(|other| **other != stage) {
            assert!(!dependencies(stage).contains(*other), "{stage} depends on {other}");
        }
    }
    for low in ["formats", "text", "model", "hub"] {
        for stage in STAGES {
            assert!(!dependencies(low).contains(stage), "{low} depends on {stage}");
        }
    }
    for package in ["formats", "text", "model", "trainer", "exporter", "runner"] {
        assert!(!dependencies(package).contains("hub"), "{package} could reach the network");
    }
}

/// The ways out: the hub's client, and the one that the runner's engines on servers share.
#[test]
fn only_hub_and_engines_on_servers_reach_out() {
    for package in ["formats", "text", "model", "trainer", "exporter", "tune"] {
        for client in ["reqwest", "ureq"] {
            assert!(!dependencies(package).contains(client), "{package} could reach the network by {client}");
        }
    }
    assert!(!dependencies("runner").contains("ureq") && !dependencies("hub").contains("reqwest"));
    for path in sources(&root().join("crates/runner/src")) {
        let sends = code(&path).contains("reqwest::Client") || code(&path).contains("TcpStream::connect");
        let is_wire = path.ends_with("engine/remote/wire.rs");
        assert!(!sends || is_wire, "{} sends by itself", path.display());
    }
}

#[test]
fn only_the_binary_prints_and_reads_the_environment() {
    for package in ["formats", "text", "model", "trainer", "exporter", "runner", "hub"] {
        for path in sources(&root().join("crates").join(package).join("src")) {
            let code = code(&path);
            for word in ["println!", "print!(", "eprint!", "dbg!(", "env::var", "env::args"] {
                assert!(!code.contains(word), "{} has {word}", path.display());
            }
        }
    }
}

#[test]
fn only_the_terminal_module_prints() {
    for path in sources(&root().join("crates/tune/src")) {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        // `failure.rs` prints from the panic hook, when nothing else can be relied on.
        if name == "terminal.rs" || name == "failure.rs" {
            continue;
        }
        let code = code(&path);
        for word in ["println!", "print!(", "dbg!(", "stdout()", "stderr()"] {
            assert!(!code.contains(word), "{} has {word}", path.display());
        }
    }
}

#[test]
fn the_top_level_is_as_designed() {
    for entry in std::fs::read_dir(root()).expect("the workspace").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let known =
            name.starts_with('.') || TOP_LEVEL.contains(&name.as_str()) || NOT_OURS.contains(&name.as_str());
        assert!(known, "{name} stands at the top level");
    }
}

#[test]
fn no_file_outgrows_its_subject() {
    for path in sources(&root().join("crates")) {
        let lines = std::fs::read_to_string(&path).expect("a source file").lines().count();
        assert!(lines <= LONGEST_FILE, "{} has {lines} lines", path.display());
    }
}

#[test]
fn every_file_says_what_it_is_for() {
    for path in sources(&root().join("crates")) {
        let text = std::fs::read_to_string(&path).expect("a source file");
        assert!(text.starts_with("//!"), "{} has no header", path.display());
    }
}

#[test]
fn nothing_promises_and_does_not_do() {
    for path in sources(&root().join("crates")) {
        let text = std::fs::read_to_string(&path).expect("a source file");
        for word in ["todo!(", "unimplemented!(", "#[ignore"] {
            assert!(!text.contains(word), "{} has {word}", path.display());
        }
    }
}

#[test]
fn every_module_is_on_the_map() {
    let map = std::fs::read_to_string(root().join("crates/README.md")).expect("crates/README.md");
    for package in ["formats", "text", "model", "trainer", "exporter", "runner", "hub", "tune"] {
        let folder = root().join("crates").join(package).join("src");
        for entry in std::fs::read_dir(&folder).expect("a crate").flatten() {
            let name = entry.file_name().to_string_lossy().trim_end_matches(".rs").to_owned();
            let listed =
                ["lib", "main", "error"].contains(&name.as_str()) || map.contains(&format!("`{name}`"));
            assert!(listed, "crates/README.md does not mention {package}'s `{name}`");
        }
    }
}
