//! `tune serve`, asked over HTTP as Ollama's clients and the page ask, on the base that ships with the project.

mod harness;

use harness::{Folder, tune};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Long enough for a busy machine; a healthy answer takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server that is killed when the test ends, however it ends.
struct Server {
    child: Child,
    address: String,
    _folder: Folder,
}

impl Server {
    /// Serves a pipeline over an export of the shipped base.
    fn start() -> Server {
        let folder = exported();
        let pipeline = folder.write("p.toml", pipeline(&folder.text("export/pocket-q8_0.gguf")));
        Server::over(folder, &pipeline)
    }

    /// Serves a pipeline or a file; everything the server keeps goes into the folder.
    fn over(folder: Folder, offer: &str) -> Server {
        let mut command = tune(&["serve", offer, "--port", "0"]);
        command.current_dir(folder.0.path()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("tune");
        let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
        let address =
            lines.find_map(|line| line.ok()?.split("http://").nth(1).map(str::to_owned)).expect("an address");
        // The rest of the log must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Server { child, address, _folder: folder }
    }

    fn ask(&self, method: &str, path: &str, body: &str, headers: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let (host, length) = (&self.address, body.len());
        let host = if headers.contains("Host:") { String::new() } else { format!("Host: {host}\r\n") };
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\n{host}{headers}Connection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .expect("a request");
        let mut reply = String::new();
        stream.read_to_string(&mut reply).expect("a reply");
        let status = reply.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        let (head, body) = reply.split_once("\r\n\r\n").unwrap_or((&reply, ""));
        let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
        (status, if chunked { unchunked(body) } else { body.to_owned() })
    }

    fn json(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let text = if body.is_null() { String::new() } else { body.to_string() };
        let (status, reply) = self.ask(method, path, &text, "");
        (status, serde_json::from_str(&reply).unwrap_or_else(|_| panic!("{path} answered {reply}")))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A folder with an export of the shipped base.
fn exported() -> Folder {
    let folder = Folder::new();
    let out = folder.text("export");
    let output =
        tune(&["export", "recipes/pocket", "--quant", "q8_0", "--out", &out]).output().expect("tune");
    assert!(output.status.success(), "{}", folder.shown(&output));
    folder
}

/// The body of a chunked reply.
fn unchunked(mut body: &str) -> String {
    let mut out = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).expect("a chunk size");
        out.push_str(&rest[..size]);
        body = rest[size..].trim_start_matches("\r\n");
        if size == 0 {
            break;
        }
    }
    out
}

fn pipeline(gguf: &str) -> String {
    format!(
        "name = \"cleaning\"\n\
         [experts.pocket]\nfile = \"{gguf}\"\nnum_ctx = 256\n\
         [[steps]]\nname = \"clean\"\nexpert = \"pocket\"\nmap = \"lines\"\nprompt = \"Clean up: {{{{ item }}}}\"\nmax_tokens = 48\n"
    )
}

#[test]
fn ollamas_api_the_page_and_a_pipeline() {
    let server = Server::start();

    let (status, version) = server.json("GET", "/api/version", &Value::Null);
    assert_eq!((status, version["version"].is_string()), (200, true), "{version}");
    let (_, tags) = server.json("GET", "/api/tags", &Value::Null);
    assert_eq!(tags["models"][0]["name"].as_str().map(|n| n.starts_with("pocket")), Some(true), "{tags}");

    let messages = json!([{"role": "user", "content": "Clean up:   tom   bought 3 red   lamps in oslo"}]);
    let (status, chat) =
        server.json("POST", "/api/chat", &json!({"model": "pocket", "messages": messages, "stream": false}));
    let answer = chat["message"]["content"].as_str().unwrap_or_default().to_owned();
    assert_eq!((status, &chat["done"], &chat["done_reason"]), (200, &json!(true), &json!("stop")), "{chat}");
    assert!(answer.starts_with("Tom bought 3 red lamps"), "{answer}");
    for key in ["total_duration", "load_duration", "prompt_eval_count", "eval_count", "eval_duration"] {
        assert!(chat[key].as_u64().is_some(), "{key} in {chat}");
    }

    let (_, stream) =
        server.ask("POST", "/api/chat", &json!({"model": "pocket", "messages": messages}).to_string(), "");
    let lines: Vec<Value> = stream.lines().map(|line| serde_json::from_str(line).expect("NDJSON")).collect();
    let streamed: String = lines.iter().filter_map(|line| line["message"]["content"].as_str()).collect();
    assert!(lines.len() > 3 && streamed == answer, "{stream}");
    assert_eq!(lines.last().map(|line| &line["done"]), Some(&json!(true)));

    let (_, running) = server.json("GET", "/api/ps", &Value::Null);
    assert_eq!(running["models"].as_array().map(Vec::len), Some(1), "{running}");

    let prompt = json!({"model": "pocket", "prompt": "Clean up:  the   OLD cat sleeps", "stream": false});
    let (status, generated) = server.json("POST", "/api/generate", &prompt);
    assert_eq!((status, generated["response"].is_string()), (200, true), "{generated}");

    let (status, missing) =
        server.json("POST", "/api/chat", &json!({"model": "nobody", "messages": messages}));
    assert_eq!(status, 404);
    assert!(missing["error"].as_str().is_some_and(|e| e.contains("nobody")), "{missing}");

    let (_, unloaded) = server.json("POST", "/api/generate", &json!({"model": "pocket", "keep_alive": 0}));
    assert_eq!(unloaded["done_reason"], "unload", "{unloaded}");
    let (_, running) = server.json("GET", "/api/ps", &Value::Null);
    assert_eq!(running["models"], json!([]));

    let (status, page) = server.ask("GET", "/", "", "");
    assert!(status == 200 && page.contains("<html"), "{page}");
    let (_, pipelines) = server.ask("GET", "/api/pipelines", "", "");
    assert!(pipelines.contains("cleaning"), "{pipelines}");
    let run = json!({"input": "  tom   bought 3 lamps in oslo\n"}).to_string();
    let (status, events) = server.ask("POST", "/api/pipelines/cleaning/run", &run, "");
    assert!(status == 200 && events.contains("item_finished") && events.contains("run_finished"), "{events}");
    assert!(events.contains("Tom bought 3 lamps in Oslo"), "{events}");
}

#[test]
fn an_exported_file_alone_is_an_expert() {
    let folder = exported();
    let file = folder.text("export/pocket-q8_0.gguf");
    let server = Server::over(folder, &file);
    let (_, tags) = server.json("GET", "/api/tags", &Value::Null);
    assert_eq!(tags["models"].as_array().map(Vec::len), Some(1), "{tags}");
    let messages = json!([{"role": "user", "content": "Clean up:   tom   bought 3 red   lamps in oslo"}]);
    let chat = json!({"model": "pocket-q8_0", "messages": messages, "stream": false});
    let (status, chat) = server.json("POST", "/api/chat", &chat);
    assert_eq!((status, &chat["done_reason"]), (200, &json!("stop")), "{chat}");
}

/// The page as a browser shows it: its script has run and the server's answers are in it.
#[test]
fn the_page_in_a_browser() {
    let server = Server::start();
    let profile = Folder::new();
    let shown = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .args(["--virtual-time-budget=5000", "--dump-dom"])
        .arg(format!("--user-data-dir={}", profile.text("profile")))
        .arg(format!("http://{}/", server.address))
        .output();
    let Ok(shown) = shown else {
        println!("skipped: there is no chromium here");
        return;
    };
    let dom = String::from_utf8_lossy(&shown.stdout);
    for word in ["pocket", "cleaning", "qwen3"] {
        assert!(dom.contains(word), "`{word}` is missing in\n{dom}");
    }
}

#[test]
fn other_sites_cannot_use_it() {
    let server = Server::start();
    let (status, _) = server.ask("GET", "/api/tags", "", "Host: evil.example\r\n");
    assert_eq!(status, 403, "another Host");
    let (status, _) = server.ask("POST", "/api/chat", "{}", "Origin: https://evil.example\r\n");
    assert_eq!(status, 403, "another Origin");
}
