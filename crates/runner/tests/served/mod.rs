//! The server on a loopback port with the real engine, asked over plain sockets.
#![allow(dead_code, reason = "each test file uses its own part of it")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use runner::card::{CardOptions, LoadOptions};
use runner::engine::llama::LlamaEngine;
use runner::http::{ServeConfig, ServeEvent, serve};
use runner::pipeline::{PipelineSpec, Programs};
use runner::{Error, Registry, Residency};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::tiny::{self, Says};

pub struct Served {
    pub address: SocketAddr,
    pub events: std::sync::Mutex<mpsc::Receiver<ServeEvent>>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<(), Error>>>,
    directory: TempDir,
}

pub fn config(directory: &Path) -> ServeConfig {
    let registry = Registry::at(directory.join("experts"));
    let load = LoadOptions { num_thread: 1, ..LoadOptions::default() };
    let options = CardOptions { load, ..CardOptions::default() };
    let models = [
        ("greeter", Says::Once(&["Hello", ", ", "world <b>"])),
        ("clock", Says::Forever(&["tick ", "tock "])),
        ("yes", Says::Once(&["yes"])),
    ];
    for (name, says) in models {
        let file = directory.join(format!("{name}.gguf"));
        tiny::write(&file, &says);
        registry.register(name, &file, &options).unwrap();
    }
    tiny::write(&directory.join("record.gguf"), &Says::Once(&[r#"{"ok": 1}"#]));
    let spec = json!({
        "description": "Two experts and a rule",
        "experts": {"a": {"expert": "greeter"}, "recorder": {"file": "record.gguf", "num_thread": 1}},
        "steps": [
            {"name": "greet", "expert": "a", "map": "lines", "prompt": "{{ item }}"},
            {"name": "record", "expert": "recorder", "prompt": "{{ steps.greet.output }}",
                "schema": {"type": "object", "properties": {"ok": {"type": "integer"}}, "required": ["ok"]}},
            {"name": "check", "kind": "check", "of": "record"},
        ],
    });
    let spec: PipelineSpec = serde_json::from_value(spec).unwrap();
    let pipelines = vec![spec.check("greetings", directory, &registry).unwrap()];
    ServeConfig {
        address: "127.0.0.1:0".parse().unwrap(),
        api_key: None,
        residency: Residency::new(Box::new(LlamaEngine::new().unwrap())),
        preload: None,
        registry,
        pipelines,
        runs: directory.join("runs"),
        keep_alive: Duration::from_secs(300),
        max_queue: 2,
        programs: Programs::Refused,
    }
}

impl Served {
    pub fn start(change: impl FnOnce(&mut ServeConfig)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut config = config(directory.path());
        change(&mut config);
        let (sender, events) = mpsc::channel();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            let stopped = async { drop(stopped.await) };
            runtime.block_on(serve(
                config,
                stopped,
                Box::new(move |event: ServeEvent| drop(sender.send(event))),
            ))
        });
        let Ok(ServeEvent::Listening { address }) = events.recv() else { panic!("{:?}", thread.join()) };
        Self { address, events: events.into(), stop: Some(stop), thread: Some(thread), directory }
    }

    /// Where its files lie.
    pub fn folder(&self) -> &Path {
        self.directory.path()
    }

    pub fn open(&self, method: &str, path: &str, headers: &str, body: &str) -> BufReader<TcpStream> {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let host = if headers.to_lowercase().contains("host:") {
            String::new()
        } else {
            format!("Host: {}\r\n", self.address)
        };
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\n{host}{headers}Connection: close\r\nContent-Length: {length}\r\n\r\n"
        );
        stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
        BufReader::new(stream)
    }

    /// Status, head and body, its chunks joined.
    pub fn ask_with(&self, method: &str, path: &str, headers: &str, body: &str) -> (u16, String, String) {
        let mut reader = self.open(method, path, headers, body);
        let (status, head) = read_head(&mut reader);
        let mut body = String::new();
        if head.to_lowercase().contains("transfer-encoding: chunked") {
            while let Some(chunk) = read_chunk(&mut reader) {
                body.push_str(&chunk);
            }
        } else {
            reader.read_to_string(&mut body).unwrap();
        }
        (status, head, body)
    }

    pub fn get(&self, path: &str) -> Value {
        let (status, _, body) = self.ask_with("GET", path, "", "");
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    }

    pub fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let (status, _, text) = self.ask_with("POST", path, "", &body.to_string());
        (status, serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}")))
    }

    pub fn lines(&self, path: &str, body: &Value) -> Vec<Value> {
        let (status, head, text) = self.ask_with("POST", path, "", &body.to_string());
        assert_eq!(status, 200, "{text}");
        assert!(head.contains("application/x-ndjson"), "{head}");
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            ended.unwrap().unwrap();
        }
    }
}

pub fn read_head(reader: &mut BufReader<TcpStream>) -> (u16, String) {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(reader.read_line(&mut head).unwrap() > 0, "no head: {head:?}");
    }
    (head.split(' ').nth(1).unwrap().parse().unwrap(), head)
}

pub fn read_chunk(reader: &mut BufReader<TcpStream>) -> Option<String> {
    let mut size = String::new();
    reader.read_line(&mut size).unwrap();
    let size = usize::from_str_radix(size.trim(), 16).unwrap();
    let mut chunk = vec![0; size + 2];
    reader.read_exact(&mut chunk).unwrap();
    chunk.truncate(size);
    (size > 0).then(|| String::from_utf8(chunk).unwrap())
}
