//! `tune doctor`: what this machine has and lacks, with the remedy.

use crate::bytes;
use crate::failure::Failure;
use crate::terminal::Terminal;
use serde::Serialize;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::path::Path;
use std::time::Duration;

/// One line of the examination.
#[derive(Debug, Serialize)]
struct Finding {
    part: &'static str,
    found: String,
    /// What to do about it; nothing where all is well.
    remedy: Option<String>,
}

/// Examines and prints; succeeds unless the machine cannot run `tune` at all.
pub fn run(terminal: &mut Terminal) -> Result<(), Failure> {
    let findings = [processor(), memory(), disk(), gpu(), ollama(), base()];
    for finding in &findings {
        if terminal.is_json() {
            terminal.json(finding);
            continue;
        }
        terminal.row(finding.part, &finding.found);
        if let Some(remedy) = &finding.remedy {
            terminal.more(format!("→ {remedy}"));
        }
    }
    runner::engine::processor::check().map_err(|error| {
        Failure::new(error).hint("training works; run the exported file with another engine")
    })
}

fn processor() -> Finding {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let features = processor_features();
    let remedy = (threads < 2).then(|| "one thread only: training will be slow".to_owned());
    Finding { part: "cpu", found: format!("{threads} threads{}", list(&features)), remedy }
}

fn list(features: &[&str]) -> String {
    if features.is_empty() { String::new() } else { format!(" · {}", features.join(" ")) }
}

#[cfg(target_arch = "x86_64")]
fn processor_features() -> Vec<&'static str> {
    let all = [
        ("AVX2", std::is_x86_feature_detected!("avx2")),
        ("FMA", std::is_x86_feature_detected!("fma")),
        ("F16C", std::is_x86_feature_detected!("f16c")),
        ("AVX-512", std::is_x86_feature_detected!("avx512f")),
        ("AVX-512-BF16", std::is_x86_feature_detected!("avx512bf16")),
        ("AVX-512-VNNI", std::is_x86_feature_detected!("avx512vnni")),
    ];
    all.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn processor_features() -> Vec<&'static str> {
    vec![std::env::consts::ARCH]
}

fn memory() -> Finding {
    const SMALL: u64 = 8 << 30;
    let Some((total, available)) = memory_bytes() else {
        return Finding { part: "memory", found: "not known on this system".into(), remedy: None };
    };
    let found = format!("{} of {} free", bytes::show(available), bytes::show(total));
    let remedy = (available < SMALL)
        .then(|| "state what may be used in a recipe: [budget] memory = \"4GB\"".to_owned());
    Finding { part: "memory", found, remedy }
}

/// Total and available bytes, from the kernel's own account.
fn memory_bytes() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let field = |name: &str| -> Option<u64> {
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib << 10)
    };
    Some((field("MemTotal:")?, field("MemAvailable:")?))
}

fn disk() -> Finding {
    const SMALL: u64 = 20 << 30;
    match formats::disk::free_bytes(Path::new(".")) {
        Ok(free) => Finding {
            part: "disk",
            found: format!("{} free here", bytes::show(free)),
            remedy: (free < SMALL)
                .then(|| "an 8 B model wants 16 GB for its base and 5 GB for an export".to_owned()),
        },
        Err(error) => Finding { part: "disk", found: error.to_string(), remedy: None },
    }
}

fn gpu() -> Finding {
    let driver = std::fs::read_to_string("/proc/driver/nvidia/version").ok();
    let found = match driver.as_deref().and_then(|text| text.lines().next()) {
        Some(line) => format!("NVIDIA driver: {}", line.trim_start_matches("NVRM version:").trim()),
        None => "no NVIDIA driver".to_owned(),
    };
    let remedy = driver.is_some().then(|| "this build trains and runs on the processor".to_owned());
    Finding { part: "gpu", found, remedy }
}

fn ollama() -> Finding {
    let host = std::env::var("OLLAMA_HOST").unwrap_or_else(|_| "127.0.0.1:11434".into());
    let address = host.trim_start_matches("http://").trim_end_matches('/');
    let found = match ollama_version(address) {
        Some(version) => format!("version {version} at {address}"),
        None => format!("none at {address} (not needed: llama.cpp is built in)"),
    };
    Finding { part: "ollama", found, remedy: None }
}

fn ollama_version(address: &str) -> Option<String> {
    const PATIENCE: Duration = Duration::from_millis(500);
    let socket: SocketAddr = address.to_socket_addrs().ok()?.next()?;
    let mut stream = TcpStream::connect_timeout(&socket, PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    write!(stream, "GET /api/version HTTP/1.0\r\nHost: {address}\r\n\r\n").ok()?;
    let mut reply = String::new();
    stream.take(4096).read_to_string(&mut reply).ok()?;
    let body: serde_json::Value = serde_json::from_str(reply.split("\r\n\r\n").nth(1)?).ok()?;
    Some(body.get("version")?.as_str()?.to_owned())
}

fn base() -> Finding {
    let shipped = Path::new("recipes/pocket/model.safetensors");
    if shipped.is_file() {
        Finding {
            part: "base",
            found: "recipes/pocket, the small base that ships with the project".into(),
            remedy: None,
        }
    } else {
        Finding {
            part: "base",
            found: "recipes/pocket is not here".into(),
            remedy: Some(
                "run tune in the project's folder for the quickstart, or name a base in the recipe".into(),
            ),
        }
    }
}
