//! What an export leaves: the tensors and keys of the file, Modelfile, receipt, events.

use expect_test::expect;
use exporter::{Event, Receipt};
use formats::adapter::AdapterTensor;
use formats::checkpoint::Checkpoint;
use formats::gguf::{Array, Reader, Value};
use formats::{BlockType, TensorSource, block};
use model::family::Taken;
use model::policy::Quant;

use crate::checkpoint::{CHATML, Tiny};
use crate::{exported, names, request};

/// The table of a file, a line a tensor.
fn table(reader: &Reader) -> String {
    let line =
        |tensor: &formats::gguf::TensorInfo| format!("{} {:?} {}\n", tensor.name, tensor.shape, tensor.ty);
    reader.tensors().iter().map(line).collect()
}

#[test]
fn a_qwen3_file_has_the_order_and_types_of_llama_quantize() {
    let tiny = Tiny::qwen3();
    let (receipt, _) = exported(&request(&tiny, Quant::Q4KM));
    let table = table(&Reader::open(&receipt.file).unwrap());
    expect![[r#"
        output_norm.weight [256] F32
        token_embd.weight [256, 272] Q6_K
        blk.0.attn_k.weight [256, 128] Q4_K
        blk.0.attn_k_norm.weight [64] F32
        blk.0.attn_norm.weight [256] F32
        blk.0.attn_output.weight [256, 256] Q4_K
        blk.0.attn_q.weight [256, 256] Q4_K
        blk.0.attn_q_norm.weight [64] F32
        blk.0.attn_v.weight [256, 128] Q4_K
        blk.0.ffn_down.weight [512, 256] Q4_K
        blk.0.ffn_gate.weight [256, 512] Q4_K
        blk.0.ffn_norm.weight [256] F32
        blk.0.ffn_up.weight [256, 512] Q4_K
    "#]]
    .assert_eq(&table.lines().take(13).map(|line| format!("{line}\n")).collect::<String>());
    let more_bits: Vec<_> =
        table.lines().filter(|line| line.starts_with("blk") && line.ends_with("Q6_K")).collect();
    assert_eq!(more_bits, ["blk.2.attn_v.weight [256, 128] Q6_K", "blk.2.ffn_down.weight [512, 256] Q6_K",]);
}

#[test]
fn a_llama_file_has_rotary_factors_a_head_and_fallback_types() {
    let tiny = Tiny::llama();
    let (receipt, _) = exported(&request(&tiny, Quant::Q4KM));
    let reader = Reader::open(&receipt.file).unwrap();
    expect![[r#"
        output.weight [64, 259] Q8_0
        output_norm.weight [64] F32
        rope_freqs.weight [4] F32
        token_embd.weight [64, 259] Q5_0
        blk.0.attn_k.weight [64, 32] Q5_0
        blk.0.attn_norm.weight [64] F32
        blk.0.attn_output.weight [64, 64] Q5_0
        blk.0.attn_q.weight [64, 64] Q5_0
        blk.0.attn_v.weight [64, 32] Q5_0
        blk.0.ffn_down.weight [172, 64] F16
        blk.0.ffn_gate.weight [64, 172] Q5_0
        blk.0.ffn_norm.weight [64] F32
        blk.0.ffn_up.weight [64, 172] Q5_0
    "#]]
    .assert_eq(&table(&reader).lines().take(13).map(|line| format!("{line}\n")).collect::<String>());
}

#[test]
fn metadata_has_the_order_of_the_converter_and_the_quantiser() {
    let tiny = Tiny::qwen3();
    tiny.write_adapter(|_| {});
    let (receipt, _) = exported(&request(&tiny, Quant::Q4KM));
    let reader = Reader::open(&receipt.file).unwrap();
    let show = |value: &Value| match value {
        Value::Array(Array::String(items)) => format!("{} strings", items.len()),
        Value::Array(Array::I32(items)) => format!("{} numbers", items.len()),
        Value::String(text) if text.len() > 40 => format!("{} bytes", text.len()),
        other => format!("{other:?}"),
    };
    let lines: String =
        reader.metadata().entries().iter().map(|(key, value)| format!("{key} = {}\n", show(value))).collect();
    expect![[r#"
        general.architecture = String("qwen3")
        general.type = String("model")
        general.name = String("tiny")
        general.size_label = String("1.8M")
        general.base_model.count = U32(1)
        general.base_model.0.name = String("made/tiny")
        tune.base_blake3 = 64 bytes
        tune.adapter_blake3 = 64 bytes
        tune.dataset_blake3 = 64 bytes
        qwen3.block_count = U32(3)
        qwen3.context_length = U32(256)
        qwen3.embedding_length = U32(256)
        qwen3.feed_forward_length = U32(512)
        qwen3.attention.head_count = U32(4)
        qwen3.attention.head_count_kv = U32(2)
        qwen3.rope.freq_base = F32(10000.0)
        qwen3.attention.layer_norm_rms_epsilon = F32(1e-6)
        qwen3.attention.key_length = U32(64)
        qwen3.attention.value_length = U32(64)
        tokenizer.ggml.model = String("gpt2")
        tokenizer.ggml.pre = String("qwen2")
        tokenizer.ggml.tokens = 272 strings
        tokenizer.ggml.token_type = 272 numbers
        tokenizer.ggml.merges = 0 strings
        tokenizer.ggml.eos_token_id = U32(258)
        tokenizer.ggml.padding_token_id = U32(256)
        tokenizer.ggml.add_bos_token = Bool(false)
        tokenizer.ggml.add_eos_token = Bool(false)
        tokenizer.chat_template = 167 bytes
        general.quantization_version = U32(2)
        general.file_type = U32(15)
    "#]]
    .assert_eq(&lines);
    assert_eq!(reader.metadata().get_str("tokenizer.chat_template"), Some(CHATML));
}

/// Every row of every tensor of an F32 export, against the sum in f64 of base and update, with DoRA of its length.
fn check_merge(tiny: &Tiny, scale: f64) {
    let (receipt, _) = exported(&request(tiny, Quant::F32));
    let (base, file) = (Checkpoint::open(&tiny.base()).unwrap(), Reader::open(&receipt.file).unwrap());
    let adapter = formats::adapter::read_adapter(&tiny.adapter()).unwrap();
    let (mut weights, mut found) = (Vec::new(), Vec::new());
    for spec in tiny.specs().into_iter().filter(|spec| spec.taken == Taken::Whole) {
        base.read(&spec.hf, &mut weights).unwrap();
        file.read(&spec.gguf, &mut found).unwrap();
        let pair = adapter.tensors.iter().find(|pair| pair.module == spec.module());
        for row in 0..spec.rows {
            // The interleaving of Llama's heads, written out anew: GGUF row 2 j + p of a head is row p D/2 + j.
            let source = match spec.permute {
                Some(n_heads) => {
                    let d = spec.rows / n_heads;
                    let (head, within) = (row / d, row % d);
                    head * d + (within & 1) * d / 2 + within / 2
                }
                None => row,
            };
            let update = |pair: &AdapterTensor, col: usize| {
                let product = |k: usize| {
                    f64::from(pair.b[source * pair.r + k]) * f64::from(pair.a[k * spec.cols + col])
                };
                scale * (0..pair.r).map(product).sum::<f64>()
            };
            let sum = |col| {
                f64::from(weights[source * spec.cols + col]) + pair.map_or(0.0, |pair| update(pair, col))
            };
            let mut expected: Vec<f64> = (0..spec.cols).map(sum).collect();
            if let Some(magnitude) = pair.and_then(|pair| pair.magnitude.as_ref()) {
                let length = expected.iter().map(|w| w * w).sum::<f64>().sqrt();
                expected.iter_mut().for_each(|w| *w *= f64::from(magnitude[source]) / length);
            }
            for (col, expected) in expected.into_iter().enumerate() {
                let found = f64::from(found[row * spec.cols + col]);
                assert!((found - expected).abs() < 1e-6, "{} ({row}, {col}): {found}, {expected}", spec.gguf);
            }
        }
    }
}

#[test]
fn merged_weights_are_base_plus_update_in_every_family() {
    for tiny in [Tiny::qwen3(), Tiny::llama()] {
        tiny.write_adapter(|_| {});
        check_merge(&tiny, 2.0);
        tiny.write_adapter(|files| files.config.use_rslora = true);
        check_merge(&tiny, 4.0);
        tiny.write_adapter(|files| {
            files.config.use_dora = true;
            for pair in &mut files.tensors {
                pair.magnitude = Some((0..pair.out_features).map(|row| 0.5 + 0.01 * row as f32).collect());
            }
        });
        check_merge(&tiny, 2.0);
        // Another rank and scale for one kind of layer: alpha / R is the same.
        tiny.write_adapter(|files| {
            files.config.rank_pattern.insert("down_proj".into(), 2.into());
            files.config.alpha_pattern.insert(r"mlp\.down_proj".into(), 4.into());
            for pair in files.tensors.iter_mut().filter(|pair| pair.module.ends_with("down_proj")) {
                pair.r = 2;
                pair.a.truncate(2 * pair.in_features);
                pair.b.truncate(2 * pair.out_features);
            }
        });
        check_merge(&tiny, 2.0);
    }
}

/// Tensors that are parts of a checkpoint's, or several of them: each number from its place there, written out anew.
#[test]
fn what_a_checkpoint_holds_otherwise_is_found_and_merged() {
    let tiny = Tiny::deepseek2(6);
    tiny.write_adapter(|_| {});
    check_merge(&tiny, 2.0);
    let (receipt, _) = exported(&request(&tiny, Quant::F32));
    let (base, file) = (Checkpoint::open(&tiny.base()).unwrap(), Reader::open(&receipt.file).unwrap());
    let adapter = formats::adapter::read_adapter(&tiny.adapter()).unwrap();
    let (keys, values, latent) = (64, 48, 256);
    let (mut weights, mut found, mut n_moved) = (Vec::new(), Vec::new(), 0);
    for spec in tiny.specs().into_iter().filter(|spec| spec.taken != Taken::Whole) {
        file.read(&spec.gguf, &mut found).unwrap();
        let pair = adapter.tensors.iter().find(|pair| pair.module == spec.module());
        assert_eq!(pair.is_some(), !matches!(spec.taken, Taken::Stacked(_)));
        for (row, found) in found.chunks(spec.cols).enumerate() {
            for (col, &found) in found.iter().enumerate() {
                let (name, row, col, cols) = match spec.taken {
                    Taken::Keys(_) => {
                        (spec.hf.clone(), row / latent * (keys + values) + col, row % latent, latent)
                    }
                    Taken::Values(_) => {
                        let row = row / values * (keys + values) + keys + row % values;
                        (spec.hf.clone(), row, col, latent)
                    }
                    _ => {
                        let each = spec.rows / 6;
                        (spec.hf.replace('*', &(row / each).to_string()), row % each, col, spec.cols)
                    }
                };
                base.read_rows(&name, row..row + 1, &mut weights).unwrap();
                let update = pair.map_or(0.0, |pair| {
                    assert_eq!(pair.in_features, cols);
                    let product = |k| f64::from(pair.b[row * pair.r + k]) * f64::from(pair.a[k * cols + col]);
                    2.0 * (0..pair.r).map(product).sum::<f64>()
                });
                let expected = f64::from(weights[col]) + update;
                assert!((f64::from(found) - expected).abs() < 1e-6, "{}: {found}, {expected}", spec.gguf);
                n_moved += 1;
            }
        }
    }
    assert!(n_moved > 100_000, "{n_moved}");
}

#[test]
fn blocks_are_the_encoding_of_the_merged_rows() {
    let tiny = Tiny::llama();
    tiny.write_adapter(|_| {});
    let (exact, _) = exported(&request(&tiny, Quant::F32));
    let exact = Reader::open(&exact.file).unwrap();
    for quant in [Quant::Q4KM, Quant::Q5KM, Quant::Q6K, Quant::Q8_0, Quant::Q4_0, Quant::F16, Quant::BF16] {
        let (receipt, _) = exported(&request(&tiny, quant));
        let file = Reader::open(&receipt.file).unwrap();
        let mut weights = Vec::new();
        for tensor in file.tensors() {
            exact.read(&tensor.name, &mut weights).unwrap();
            let mut blocks = vec![0; tensor.bytes as usize];
            block::encode(tensor.ty, &weights, tensor.shape[0] as usize, None, &mut blocks).unwrap();
            assert!(file.data(tensor) == blocks, "{} as {quant}", tensor.name);
        }
    }
}

#[test]
fn the_receipt_says_what_was_made_of_what() {
    let tiny = Tiny::qwen3();
    tiny.write_adapter(|_| {});
    let (receipt, events) = exported(&request(&tiny, Quant::Q4KM));
    assert_eq!(names(&tiny.output()), ["Modelfile", "receipt.json", "tiny-q4_k_m.gguf"]);
    let text = std::fs::read_to_string(tiny.output().join("receipt.json")).unwrap();
    let stored: Receipt = serde_json::from_str(&text).unwrap();
    assert_eq!(stored.file.to_str(), Some("tiny-q4_k_m.gguf"));
    assert_eq!(Receipt { file: receipt.file.clone(), ..stored }, receipt);
    assert_eq!(receipt.blake3, formats::hash::blake3_file(&receipt.file).unwrap());
    assert_eq!(receipt.sha256, formats::hash::sha256_file(&receipt.file).unwrap());
    assert_eq!(receipt.file_bytes, std::fs::metadata(&receipt.file).unwrap().len());
    let base = Checkpoint::open(&tiny.base()).unwrap();
    assert_eq!(receipt.sources.base_blake3, base.content_hash().unwrap());
    assert!(receipt.sources.adapters[0].base_checked);
    assert_eq!(receipt.provenance.dataset_blake3, Some("d".repeat(64)));
    assert_eq!(receipt.provenance.steps, Some(12));
    let n: usize = receipt.types.iter().map(|count| count.n_tensors).sum();
    assert_eq!(n, tiny.specs().len());
    let gate = &receipt.gate;
    assert_eq!((gate.n_rows, gate.n_exact, gate.n_stopped), (2, 2, 2));
    assert_eq!(gate.mean_nll, Some(0.25));
    assert_eq!(gate.end_of_turn, Some(258));
    check_events(&events, n);
}

fn check_events(events: &[Event], n_tensors: usize) {
    assert!(matches!(&events[0], Event::Planned { n_merged: 21, .. }));
    let tensors = events.iter().filter(|event| matches!(event, Event::Tensor { .. })).count();
    assert_eq!(tensors, n_tensors);
    let Some(Event::Gate { figures, adapter: Some(adapter) }) = events.iter().rev().nth(1) else {
        panic!("{events:?}")
    };
    assert_eq!((figures.n_exact, adapter.n_exact), (2, 2));
    assert!(matches!(events.last(), Some(Event::Finished { .. })));
}

#[test]
fn a_base_alone_is_exported_without_rows() {
    let tiny = Tiny::qwen3();
    let mut request = request(&tiny, Quant::Q8_0);
    request.evaluation.clear();
    request.reference = exporter::Reference::default();
    request.limits = exporter::Limits::NONE;
    request.system = Some("Be brief.".into());
    std::fs::write(request.base.join("LICENSE"), "Use it \"well\".\n").unwrap();
    std::fs::write(request.base.join("LICENSE.odd"), "three quotes \"\"\" end a text\n").unwrap();
    let (receipt, _) = exported(&request);
    assert_eq!(receipt.sources.adapter_blake3, None);
    assert_eq!(receipt.gate.n_rows, 0);
    assert!(receipt.gate.mean_nll.is_some());
    let reader = Reader::open(&receipt.file).unwrap();
    assert!(reader.tensors().iter().all(|t| matches!(t.ty, BlockType::Q8_0 | BlockType::F32)));
    let modelfile = std::fs::read_to_string(tiny.output().join("Modelfile")).unwrap();
    expect![[r##"
        # The template frames each message as the chat template inside the file does.
        FROM ./tiny-q8_0.gguf
        TEMPLATE """{{ range .Messages }}{{ if eq .Role "system" }}<|im_start|>system
        {{ .Content }}<|im_end|>
        {{ else if eq .Role "user" }}<|im_start|>user
        {{ .Content }}<|im_end|>
        {{ else if eq .Role "assistant" }}<|im_start|>assistant
        {{ .Content }}<|im_end|>
        {{ end }}{{ end }}<|im_start|>assistant
        """
        PARAMETER stop "<|im_end|>"
        PARAMETER num_ctx 128
        SYSTEM """Be brief."""
        LICENSE """Use it "well".
        """
    "##]]
    .assert_eq(&modelfile);
}

#[test]
fn the_same_request_gives_the_same_bytes() {
    let tiny = Tiny::qwen3();
    tiny.write_adapter(|_| {});
    let (first, _) = exported(&request(&tiny, Quant::Q4KM));
    let (second, _) = exported(&request(&tiny, Quant::Q4KM));
    assert_eq!(first.blake3, second.blake3);
}
