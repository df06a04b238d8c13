//! Pulling from a hub on loopback: what arrives, what is asked for, and what becomes of every fault.

mod server;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use expect_test::{Expect, expect};
use hub::{Error, Event, ModelId, Options, Pulled};
use server::{Hub, Repository, TOKEN};

const ID: &str = "owner/name";
const WEIGHTS: &str = "model.safetensors";
/// Larger than any buffer on the way, so that a part of it is really a part.
const WEIGHTS_BYTES: usize = 3 << 20;

/// A hub, an empty cache, and what one download reports.
struct World {
    hub: Hub,
    cache: tempfile::TempDir,
    events: Vec<Event>,
}

fn weights(seed: u32) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..WEIGHTS_BYTES).map(|_| next()).collect()
}

fn repository(seed: u32) -> Repository {
    Repository::new(&[
        (".gitattributes", b"*.safetensors filter=lfs"),
        ("README.md", b"# A model"),
        ("config.json", br#"{"model_type": "qwen2"}"#),
        ("tokenizer.json", b"{}"),
        ("tokenizer_config.json", b""),
        ("pytorch_model.bin", b"a program"),
        (WEIGHTS, &weights(seed)),
    ])
}

impl World {
    fn new() -> World {
        World::with(repository(1))
    }

    fn with(repository: Repository) -> World {
        let hub = Hub::start();
        hub.add(ID, repository);
        World { hub, cache: tempfile::tempdir().unwrap(), events: Vec::new() }
    }

    fn options(&self) -> Options {
        Options {
            endpoint: self.hub.endpoint.clone(),
            backoff: Duration::from_millis(1),
            ..Options::new(self.cache.path().to_owned())
        }
    }

    fn pull(&mut self, id: &str) -> Result<Pulled, Error> {
        let options = self.options();
        self.pull_with(id, &options)
    }

    fn pull_with(&mut self, id: &str, options: &Options) -> Result<Pulled, Error> {
        self.events.clear();
        let id: ModelId = id.parse()?;
        hub::pull(&id, options, &mut |event| self.events.push(event), &AtomicBool::new(false))
    }

    fn resolve(&mut self, id: &str, options: &Options) -> Result<Pulled, Error> {
        self.events.clear();
        let id: ModelId = id.parse()?;
        hub::resolve(&id, options, &mut |event| self.events.push(event), &AtomicBool::new(false))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.cache.path().join("models--owner--name").join(name)
    }

    fn partial(&self, file: &str) -> PathBuf {
        let etag = self.hub.state().repositories[ID].etag(file);
        self.path("blobs").join(format!("{etag}.incomplete"))
    }

    fn kinds(&self) -> Vec<&'static str> {
        let kind = |event: &Event| match event {
            Event::PullResumed { .. } => Some("resumed"),
            Event::PullStartedOver { .. } => Some("started over"),
            Event::PullRetry { .. } => Some("retry"),
            Event::PullWaiting { .. } => Some("waiting"),
            Event::PullUnasked { .. } => Some("unasked"),
            _ => None,
        };
        self.events.iter().filter_map(kind).collect()
    }

    /// The message and hint of a pull that must not succeed, and leave no snapshot that could be taken for whole.
    fn refused(&mut self, id: &str, options: &Options, expected: Expect) {
        let error = self.pull_with(id, options).unwrap_err();
        let text = format!("{error}\n{}", error.hint().unwrap_or_default());
        let text = text
            .replace(&self.hub.endpoint, "HUB")
            .replace(&self.cache.path().display().to_string(), "CACHE");
        expected.assert_eq(&text);
        assert!(!self.path("refs/main").exists());
    }
}

#[test]
fn what_training_needs_arrives_under_its_name() {
    let mut world = World::new();
    let pulled = world.pull(ID).unwrap();
    let repository = repository(1);
    assert_eq!(pulled.commit, repository.commit);
    assert_eq!(pulled.path, world.path("snapshots").join(&repository.commit));
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", WEIGHTS] {
        assert!(std::fs::read(pulled.path.join(name)).unwrap() == repository.files[name], "{name}");
        assert!(world.path("blobs").join(repository.etag(name)).is_file(), "{name}");
    }
    for name in ["README.md", "pytorch_model.bin", ".gitattributes"] {
        assert!(!pulled.path.join(name).exists(), "{name}");
    }
    assert_eq!(std::fs::read_to_string(world.path("refs/main")).unwrap(), repository.commit);
    assert!(world.path(".no_exist").join(&repository.commit).join("chat_template.jinja").is_file());
    let whole: usize =
        ["config.json", "tokenizer.json", WEIGHTS].map(|name| repository.files[name].len()).iter().sum();
    assert_eq!(pulled.downloaded_bytes, whole as u64);
    let Some(Event::PullPlan { n_files: 4, total_bytes, download_bytes, .. }) = world.events.first() else {
        panic!("{:?}", world.events)
    };
    assert_eq!((*total_bytes, *download_bytes), (whole as u64, whole as u64));
}

#[test]
fn the_second_time_only_the_listing_is_asked_for_and_a_resolve_asks_nothing() {
    let mut world = World::new();
    let first = world.pull(ID).unwrap();
    world.hub.asked();
    let second = world.pull(ID).unwrap();
    assert_eq!((&second.path, second.downloaded_bytes), (&first.path, 0));
    assert_eq!(world.hub.asked(), ["GET /api/models/owner/name/revision/main"]);
    let options = world.options();
    let resolved = world.resolve(ID, &options).unwrap();
    assert_eq!(resolved.path, first.path);
    assert!(world.hub.asked().is_empty());
}

#[test]
fn a_new_commit_brings_only_what_has_changed() {
    let mut world = World::new();
    let old = world.pull(ID).unwrap();
    world.hub.add(ID, repository(2));
    let new = world.pull(ID).unwrap();
    assert_ne!(old.commit, new.commit);
    assert_eq!(new.downloaded_bytes, WEIGHTS_BYTES as u64);
    assert!(std::fs::read(new.path.join(WEIGHTS)).unwrap() == weights(2));
    // The old commit is still what it was.
    assert!(std::fs::read(old.path.join(WEIGHTS)).unwrap() == weights(1));
    let options = world.options();
    assert_eq!(world.resolve(&format!("{ID}@{}", old.commit), &options).unwrap().path, old.path);
}

#[test]
fn shards_are_those_the_index_names() {
    let index = br#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}}"#;
    let mut world = World::with(Repository::new(&[
        ("config.json", b"{}"),
        ("tokenizer.json", b"{}"),
        ("model.safetensors.index.json", index),
        ("model-1.safetensors", b"one"),
        ("model-2.safetensors", b"two"),
        ("model-3.safetensors", b"of nothing"),
    ]));
    let pulled = world.pull(ID).unwrap();
    assert_eq!(std::fs::read(pulled.path.join("model-2.safetensors")).unwrap(), b"two");
    assert!(pulled.path.join("model-1.safetensors").is_file());
    assert!(!pulled.path.join("model-3.safetensors").exists());
    let offline = Options { is_offline: true, ..world.options() };
    assert!(world.pull_with(ID, &offline).is_ok());
    std::fs::remove_file(pulled.path.join("model-2.safetensors")).unwrap();
    assert!(
        matches!(world.pull_with(ID, &offline), Err(Error::Offline { missing, .. }) if missing == ["model-2.safetensors"])
    );
}

#[test]
fn one_file_of_a_gguf_repository() {
    let mut world = World::with(Repository::new(&[("q4/x.gguf", b"GGUF"), ("q8/x.gguf", b"GGUF8")]));
    let pulled = world.pull("hf.co/owner/name:q4/x.gguf").unwrap();
    assert!(pulled.path.ends_with("q4/x.gguf"));
    assert_eq!(std::fs::read(&pulled.path).unwrap(), b"GGUF");
    assert_eq!(pulled.downloaded_bytes, 4);
}

#[test]
fn a_dropped_connection_is_continued_where_it_ended() {
    let mut world = World::new();
    world.hub.state().drops = vec![(WEIGHTS.into(), [1_000_000, 500_000].into())];
    let pulled = world.pull(ID).unwrap();
    assert!(std::fs::read(pulled.path.join(WEIGHTS)).unwrap() == weights(1));
    assert_eq!(world.kinds(), ["retry", "retry"]);
    let of_storage = |line: &String| line.starts_with("storage GET");
    let asked: Vec<String> = world.hub.asked().into_iter().filter(of_storage).collect();
    assert_eq!(
        asked,
        [
            "storage GET /owner/name/model.safetensors",
            "storage GET /owner/name/model.safetensors bytes=1000000-",
            "storage GET /owner/name/model.safetensors bytes=1500000-",
        ]
    );
    assert_eq!(
        pulled.downloaded_bytes as usize,
        WEIGHTS_BYTES + b"{}".len() + br#"{"model_type": "qwen2"}"#.len()
    );
}

#[test]
fn another_process_continues_what_one_has_left() {
    let mut world = World::new();
    // One drop a try, without a byte between them: it gives up.
    world.hub.state().drops = vec![(WEIGHTS.into(), [1_000_000, 0, 0, 0, 0, 0].into())];
    let error = world.pull(ID).unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert_eq!(std::fs::metadata(world.partial(WEIGHTS)).unwrap().len(), 1_000_000);
    world.hub.state().drops.clear();
    world.hub.asked();
    let pulled = world.pull(ID).unwrap();
    assert_eq!(world.kinds(), ["resumed"]);
    assert!(world.hub.asked().iter().any(|line| line.ends_with("bytes=1000000-")));
    assert!(std::fs::read(pulled.path.join(WEIGHTS)).unwrap() == weights(1));
    assert_eq!(pulled.downloaded_bytes as usize, WEIGHTS_BYTES - 1_000_000);
}

#[test]
fn a_file_in_git_is_continued_under_its_own_tag() {
    let mut world = World::new();
    world.hub.state().drops = vec![("tokenizer.json".into(), [1].into())];
    world.pull(ID).unwrap();
    let expected = format!("/tokenizer.json bytes=1- if \"{}\"", repository(1).etag("tokenizer.json"));
    assert!(world.hub.asked().iter().any(|line| line.ends_with(&expected)));
}

#[test]
fn where_ranges_are_not_served_a_file_starts_over() {
    for refuses in [false, true] {
        let mut world = World::new();
        world.hub.state().drops = vec![(WEIGHTS.into(), [1_000_000].into())];
        (world.hub.state().ignores_ranges, world.hub.state().refuses_ranges) = (!refuses, refuses);
        let pulled = world.pull(ID).unwrap();
        assert!(world.kinds().contains(&"started over"), "{:?}", world.kinds());
        assert!(std::fs::read(pulled.path.join(WEIGHTS)).unwrap() == weights(1));
    }
}

#[test]
fn a_file_that_has_changed_on_the_hub_starts_over() {
    let mut world = World::new();
    world.hub.state().drops = vec![(WEIGHTS.into(), [1_000_000, 0, 0, 0, 0, 0].into())];
    world.pull(ID).unwrap_err();
    world.hub.state().drops.clear();
    world.hub.add(ID, repository(2));
    world.hub.asked();
    let pulled = world.pull(ID).unwrap();
    assert!(world.hub.asked().iter().all(|line| !line.contains("bytes=")));
    assert!(std::fs::read(pulled.path.join(WEIGHTS)).unwrap() == weights(2));
}

#[test]
fn a_wrong_checksum_removes_what_came() {
    for file in [WEIGHTS, "tokenizer.json"] {
        let mut world = World::new();
        world.hub.state().corrupt = Some(file.into());
        let error = world.pull(ID).unwrap_err();
        assert!(matches!(&error, Error::Checksum { file: named, .. } if named == file), "{error}");
        assert!(!world.partial(file).exists());
        assert!(!world.path("refs/main").exists());
        world.hub.state().corrupt = None;
        let pulled = world.pull(ID).unwrap();
        assert!(std::fs::read(pulled.path.join(file)).unwrap() == repository(1).files[file]);
    }
}

#[test]
fn a_part_that_was_damaged_on_disk_is_found_by_its_checksum() {
    let mut world = World::new();
    let partial = world.partial(WEIGHTS);
    std::fs::create_dir_all(partial.parent().unwrap()).unwrap();
    std::fs::write(&partial, vec![7; 1000]).unwrap();
    assert!(matches!(world.pull(ID), Err(Error::Checksum { .. })));
    assert!(!partial.exists());
    // A part that is longer than the whole is none.
    std::fs::write(&partial, vec![7; WEIGHTS_BYTES + 1]).unwrap();
    assert!(world.pull(ID).is_ok());
}

#[test]
fn busy_servers_are_asked_again_and_dead_ones_given_up() {
    let mut world = World::new();
    world.hub.state().statuses = [503, 429, 500].into();
    world.pull(ID).unwrap();
    assert_eq!(world.kinds(), ["retry", "retry", "retry"]);

    let closed = Options { endpoint: "http://127.0.0.1:1".into(), ..world.options() };
    let error = world.pull_with(ID, &closed).unwrap_err();
    assert!(matches!(error, Error::Unreachable { tries: 5, .. }), "{error}");
}

#[test]
fn a_connection_that_is_not_safe_is_not_tried_again() {
    let mut world = World::new();
    // What answers in plain text where a handshake is due.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("https://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]).unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
    });
    let options = Options { endpoint, ..world.options() };
    let error = world.pull_with(ID, &options).unwrap_err();
    assert!(matches!(error, Error::Untrusted { .. }), "{error}");
    assert!(world.events.is_empty(), "{:?}", world.events);
}

#[test]
fn a_gated_model_says_where_to_accept_its_terms() {
    let mut world = World::with(Repository { is_gated: true, ..repository(1) });
    let options = world.options();
    world.refused(
        ID,
        &options,
        expect![[r#"
            owner/name is gated: its owner lets only those download it who have accepted its terms
            accept the terms at HUB/owner/name; then, set HF_TOKEN to a token of https://huggingface.co/settings/tokens"#]],
    );
    let options = Options { token: Some("hf_of_another".into()), ..world.options() };
    world.refused(
        ID,
        &options,
        expect![[r#"
            owner/name is gated: its owner lets only those download it who have accepted its terms
            accept the terms at HUB/owner/name; then, the token in HF_TOKEN must be of an account that may read it"#]],
    );
    let options = Options { token: Some(TOKEN.into()), ..world.options() };
    world.pull_with(ID, &options).unwrap();
    assert!(world.hub.asked().iter().any(|line| line.starts_with("storage GET")));
    assert!(!world.hub.state().storage_saw_token, "the storage was shown the token");
}

#[test]
fn what_is_not_there_is_said() {
    let mut world = World::new();
    let options = world.options();
    world.refused(
        "owner/nothing",
        &options,
        expect![[r#"
            there is no repository owner/nothing at HUB, or it is private
            check the name; for a private repository, set HF_TOKEN to a token of https://huggingface.co/settings/tokens"#]],
    );
    world.refused(
        "owner/name@v9",
        &options,
        expect![[r#"
            owner/name has no revision `v9`
            leave it out for the main branch: owner/name"#]],
    );
    world.refused(
        "owner/name:x.gguf",
        &options,
        expect![[r#"
            owner/name has no file `x.gguf`
        "#]],
    );
    world.refused(
        "name",
        &options,
        expect![[r#"
            `name` is no model of the hub: a repository is OWNER/NAME, of letters, digits, `-`, `_` and `.`
            a model of the hub is OWNER/NAME, OWNER/NAME@REVISION or OWNER/NAME:FILE.gguf"#]],
    );
    let offline = Options { is_offline: true, ..world.options() };
    world.refused(
        ID,
        &offline,
        expect![[r#"
            owner/name is not in the cache CACHE: revision `main` missing
            unset HF_HUB_OFFLINE and `tune pull owner/name`, or copy the cache from where it is"#]],
    );
    assert!(world.hub.asked().iter().all(|line| !line.starts_with("storage")));
}

#[test]
fn hostile_names_and_programs_are_refused() {
    for name in ["../../x", "/etc/passwd", "a\\b", "a/../b", "c:x"] {
        let mut files = repository(1).files;
        files.insert(name.to_owned(), b"x".to_vec());
        let mut world = World::with(Repository { files, ..repository(1) });
        let error = world.pull(ID).unwrap_err();
        assert!(matches!(&error, Error::HostileName { name: named, .. } if named == name), "{error}");
        assert!(!world.path("").exists());
    }
    let mut world = World::with(Repository::new(&[("config.json", b"{}"), ("pytorch_model.bin", b"x")]));
    assert!(matches!(world.pull(ID), Err(Error::PickleOnly { file, .. }) if file == "pytorch_model.bin"));
}

#[test]
fn room_on_the_disk_is_checked_before_the_first_byte() {
    let mut world = World::new();
    world.hub.state().claimed_size = Some((WEIGHTS.into(), 1 << 60));
    let error = world.pull(ID).unwrap_err();
    assert!(
        matches!(error, Error::Formats(formats::Error::DiskFull { need_bytes, .. }) if need_bytes >= 1 << 60)
    );
    assert!(!world.path("blobs").exists());
}

#[test]
fn a_file_longer_than_announced_is_refused() {
    let mut world = World::new();
    world.hub.state().claimed_size = Some((WEIGHTS.into(), 1000));
    let error = world.pull(ID).unwrap_err();
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
    assert!(!world.partial(WEIGHTS).exists());
}

#[test]
fn a_snapshot_of_unknown_completeness_is_completed_or_used_as_it_is() {
    let mut world = World::new();
    let whole = world.pull(ID).unwrap();
    // As an older `huggingface_hub` leaves it, asked for some files only.
    std::fs::remove_dir_all(world.path(".no_exist")).unwrap();
    std::fs::remove_file(whole.path.join("tokenizer_config.json")).unwrap();
    let closed = Options { endpoint: "http://127.0.0.1:1".into(), ..world.options() };
    assert_eq!(world.resolve(ID, &closed).unwrap().path, whole.path);
    assert!(world.kinds().contains(&"unasked"));
    let offline = Options { is_offline: true, ..world.options() };
    assert_eq!(world.resolve(ID, &offline).unwrap().path, whole.path);
    assert!(!whole.path.join("tokenizer_config.json").exists());
    let options = world.options();
    world.resolve(ID, &options).unwrap();
    assert!(whole.path.join("tokenizer_config.json").is_file());
}

#[test]
fn a_second_process_waits_for_the_first() {
    let mut world = World::new();
    let etag = repository(1).etag(WEIGHTS);
    let path = world.cache.path().join(format!(".locks/models--owner--name/{etag}.lock"));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let other = std::fs::File::create(&path).unwrap();
    let mut held = Some(formats::lock::LockedFile::try_new(other).unwrap());
    let (options, id) = (world.options(), ID.parse().unwrap());
    let blob = world.path("blobs").join(etag);
    let mut waited = false;
    let mut observer = |event| {
        if let Event::PullWaiting { path: named } = event {
            assert_eq!(named, path);
            // The other process completes the file, and ends.
            std::fs::create_dir_all(blob.parent().unwrap()).unwrap();
            std::fs::write(&blob, weights(1)).unwrap();
            (held, waited) = (None, true);
        }
    };
    let pulled = hub::pull(&id, &options, &mut observer, &AtomicBool::new(false)).unwrap();
    assert!(waited);
    assert!(std::fs::read(pulled.path.join(WEIGHTS)).unwrap() == weights(1));
    assert!(world.hub.asked().iter().all(|line| !line.starts_with("storage GET")));
    world.pull(ID).unwrap();
}

#[test]
fn an_interrupt_keeps_what_has_come() {
    let mut world = World::new();
    world.hub.state().drops = vec![(WEIGHTS.into(), [1_000_000].into())];
    let (options, id, cancel) = (world.options(), ID.parse().unwrap(), AtomicBool::new(false));
    let mut observer = |event| {
        if let Event::PullRetry { .. } = event {
            cancel.store(true, Ordering::Relaxed);
        }
    };
    let result = hub::pull(&id, &options, &mut observer, &cancel);
    assert!(matches!(result, Err(Error::Interrupted)), "{result:?}");
    assert_eq!(std::fs::metadata(world.partial(WEIGHTS)).unwrap().len(), 1_000_000);
    world.pull(ID).unwrap();
    assert_eq!(world.kinds(), ["resumed"]);
}
