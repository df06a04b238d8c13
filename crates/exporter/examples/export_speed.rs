//! How fast a checkpoint and an adapter become a GGUF, apart from the gate.
//!
//!     export_speed CHECKPOINT ADAPTER QUANT OUT_DIR [avx2]
//!
//! An ADAPTER that is not there is made: rank 16 on every linear layer, at random; `-` exports the base alone. Prints one
//! line: seconds until the file stands on the disk (reading, hashing, merging, quantising, writing, syncing), then the
//! seconds of reading it back, bytes, and the most memory that was resident without mapped files. With `avx2` no wider
//! vectors are used. `scripts/bench/export.sh` runs it beside llama.cpp's converter and quantiser.

#[path = "llama_cpp_peer/ungated.rs"]
mod ungated;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use exporter::{AdapterSource, Request, export};
use formats::adapter::{AdapterConfig, AdapterFiles, AdapterTensor, write_adapter};
use formats::config::HfConfig;
use formats::observe::Silent;
use model::policy::Quant;
use model::{ModelConfig, family};
use ungated::NoEngine;

const RANK: usize = 16;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [checkpoint, adapter, quant, out_dir, rest @ ..] = &arguments[..] else {
        eprintln!("usage: export_speed CHECKPOINT ADAPTER QUANT OUT_DIR [avx2]");
        std::process::exit(2);
    };
    #[cfg(target_arch = "x86_64")]
    if rest.iter().any(|word| word == "avx2") {
        assert!(formats::isa::Isa::limit_to(formats::isa::Isa::Avx2), "nothing has asked before");
    }
    let _ = rest;
    let (checkpoint, adapter) = (Path::new(checkpoint), Some(Path::new(adapter)).filter(|_| adapter != "-"));
    if let Some(dir) = adapter.filter(|dir| !dir.exists()) {
        make_adapter(checkpoint, dir);
    }
    let quant = Quant::parse(quant).expect("a known quantisation");
    let request = Request {
        adapters: adapter.map(AdapterSource::whole).into_iter().collect(),
        ..ungated::request(checkpoint, quant, Path::new(out_dir), "speed")
    };
    let peak = Peak::watch();
    let receipt = export(&request, &NoEngine, &mut Silent).expect("an export");
    let (times, peak_bytes) = (receipt.times, peak.bytes());
    println!(
        "{:.2} s ({:.2} planning and hashing, {:.2} writing), {:.2} s reading back, {} bytes, {} MiB anonymous",
        times.plan_s + times.write_s,
        times.plan_s,
        times.write_s,
        times.read_back_s,
        receipt.file_bytes,
        peak_bytes >> 20
    );
}

fn make_adapter(checkpoint: &Path, dir: &Path) {
    let hf = HfConfig::from_dir(checkpoint).expect("a configuration");
    let config = ModelConfig::from_hf(&hf).expect("a supported model");
    let mut state = 1_u32;
    let mut values = |n: usize| -> Vec<f32> {
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            0.01 * ((state >> 8) as f32 / (1 << 23) as f32 - 1.0)
        };
        (0..n).map(|_| next()).collect()
    };
    let tensors = family::linears(&config).into_iter().map(|linear| AdapterTensor {
        module: linear.module,
        a: values(RANK * linear.cols),
        b: values(linear.rows * RANK),
        magnitude: None,
        r: RANK,
        in_features: linear.cols,
        out_features: linear.rows,
    });
    let config = AdapterConfig::lora(RANK, 32.0, vec!["all-linear".into()]);
    let files = AdapterFiles { config, tune: None, tensors: tensors.collect() };
    write_adapter(dir, &files).expect("an adapter's folder");
}

/// The most anonymous memory that was resident, looked at every few milliseconds.
struct Peak;

static PEAK: AtomicU64 = AtomicU64::new(0);
static ENDED: AtomicBool = AtomicBool::new(false);

impl Peak {
    fn watch() -> Peak {
        std::thread::spawn(|| {
            while !ENDED.load(Ordering::Relaxed) {
                PEAK.fetch_max(anonymous_bytes(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Peak
    }

    fn bytes(&self) -> u64 {
        ENDED.store(true, Ordering::Relaxed);
        PEAK.load(Ordering::Relaxed)
    }
}

/// Nothing where the system does not tell.
fn anonymous_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
