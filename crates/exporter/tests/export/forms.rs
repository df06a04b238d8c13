//! The other forms of a result: an adapter that llama.cpp applies to a GGUF of the base, and a merged checkpoint.

use exporter::{
    AdapterSource, Error, FormReceipt, FormRequest, Provenance, export_adapter, export_checkpoint,
};
use formats::TensorSource;
use formats::adapter::AdapterFiles;
use formats::checkpoint::Checkpoint;
use formats::observe::Silent;
use model::policy::Quant;
use serde_json::{Value, json};

use crate::checkpoint::Tiny;
use crate::families::{config, logits, mean_kl, text};
use crate::{exported, names, request};

/// Nats: both sides compute in 32 bits, in another order.
const MAX_MEAN_KL: f64 = 1e-6;

fn form(tiny: &Tiny) -> FormRequest {
    FormRequest {
        base: tiny.base(),
        adapters: vec![AdapterSource::whole(tiny.adapter())],
        output: tiny.output(),
        name: "tiny".into(),
        provenance: Provenance { base_name: Some("made/tiny".into()), ..Provenance::default() },
    }
}

/// llama.cpp with the base and the adapter's file predicts what it predicts with both merged.
fn check(name: &str, tiny: &Tiny, change: impl FnOnce(&mut AdapterFiles)) -> FormReceipt {
    let base = exported(&request(tiny, Quant::F32)).0.file;
    let kept = tiny.dir.path().join("base.gguf");
    std::fs::rename(&base, &kept).unwrap();
    tiny.write_adapter(change);
    let merged = exported(&request(tiny, Quant::F32)).0.file;
    let receipt = export_adapter(&form(tiny)).unwrap();
    let logits = |file, adapter| logits::run(file, adapter, &text()).logits;
    let (alone, both) = (logits(&kept, None), logits(&kept, Some(receipt.path.as_path())));
    let merged = logits(&merged, None);
    let (kl, without) = (mean_kl(&merged, &both), mean_kl(&merged, &alone));
    eprintln!("{name}: mean KL {kl:.2e}, {without:.2e} without the adapter");
    assert!(kl.abs() < MAX_MEAN_KL && without > 100.0 * MAX_MEAN_KL, "{name}: {kl:e}, {without:e} without");
    receipt
}

#[test]
fn an_adapter_beside_its_base_is_the_merged_model() {
    let families = [
        ("llama", json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama"})),
        ("qwen2", json!({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"})),
        ("qwen3", json!({"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 64})),
        (
            "phi3",
            json!({"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "sliding_window": null,
                   "original_max_position_embeddings": 1024}),
        ),
        (
            "starcoder2",
            json!({"architectures": ["Starcoder2ForCausalLM"], "model_type": "starcoder2", "use_bias": true,
                   "hidden_act": "gelu_pytorch_tanh", "norm_epsilon": 1e-5, "sliding_window": 1024}),
        ),
        (
            "mamba2",
            json!({"architectures": ["Mamba2ForCausalLM"], "model_type": "mamba2", "num_heads": 8, "head_dim": 64,
                   "state_size": 32, "n_groups": 2, "conv_kernel": 4}),
        ),
    ];
    for (name, keys) in families {
        let receipt = check(name, &Tiny::new(config(keys)), |_| {});
        assert!(receipt.base_checked);
        assert_eq!(receipt.files[0].name, "tiny-lora-f32.gguf");
    }
}

/// llama.cpp's own converter passes over both.
#[test]
fn scales_that_llama_cpp_cannot_say_are_multiplied_in() {
    check("rsLoRA", &Tiny::llama_of(256), |files| files.config.use_rslora = true);
    check("alphas", &Tiny::llama_of(256), |files| {
        files.config.alpha_pattern = [("q_proj", 3.0), ("down_proj", 32.0)]
            .map(|(name, alpha)| (name.to_owned(), Value::from(alpha)))
            .into_iter()
            .collect();
    });
}

#[test]
fn adapters_that_llama_cpp_would_apply_otherwise_are_refused() {
    let tiny = Tiny::deepseek2(6);
    tiny.write_adapter(|_| {});
    let error = export_adapter(&form(&tiny)).unwrap_err();
    assert!(matches!(&error, Error::Form { module, .. } if module.ends_with("kv_b_proj")), "{error}");
    let tiny = Tiny::qwen3();
    tiny.write_adapter(|files| {
        files.config.use_dora = true;
        for pair in &mut files.tensors {
            pair.magnitude = Some(vec![1.0; pair.out_features]);
        }
    });
    let error = export_adapter(&form(&tiny)).unwrap_err();
    assert!(error.to_string().contains("with DoRA"), "{error}");
    assert_eq!(names(&tiny.output()), Vec::<String>::new());
}

/// What the merged checkpoint is exported as is what base and adapter are exported as, but for one rounding to bf16.
#[test]
fn a_merged_checkpoint_is_base_and_adapter() {
    for tiny in [Tiny::qwen3(), Tiny::llama(), Tiny::deepseek2(6)] {
        tiny.write_adapter(|_| {});
        let receipt = export_checkpoint(&form(&tiny), &mut Silent).unwrap();
        assert_eq!(
            names(&receipt.path),
            ["config.json", "model.safetensors", "receipt.json", "tokenizer.json", "tokenizer_config.json"]
        );
        let (base, merged) =
            (Checkpoint::open(&tiny.base()).unwrap(), Checkpoint::open(&receipt.path).unwrap());
        assert_eq!(base.tensor_names(), merged.tensor_names());
        let (mut n_changed, mut a, mut b) = (0, Vec::new(), Vec::new());
        for name in base.tensor_names() {
            assert_eq!(base.tensor(&name).unwrap().block_type(), merged.tensor(&name).unwrap().block_type());
            base.read(&name, &mut a).unwrap();
            merged.read(&name, &mut b).unwrap();
            n_changed += usize::from(a != b);
        }
        let linears = model::family::linears(&tiny.config()).len();
        assert_eq!(n_changed, linears);

        let both = exported(&request(&tiny, Quant::F32)).0.file;
        let both = crate::forward::logits(&formats::gguf::Reader::open(&both).unwrap(), &text()[..96]);
        let mut alone = request(&tiny, Quant::F32);
        (alone.base, alone.tokenizer, alone.adapters) =
            (receipt.path.clone(), receipt.path.clone(), Vec::new());
        let alone = exported(&alone).0.file;
        let alone = crate::forward::logits(&formats::gguf::Reader::open(&alone).unwrap(), &text()[..96]);
        let kl = mean_kl(&both, &alone);
        assert!(kl.abs() < 1e-3, "{kl:e}");
    }
}

#[test]
fn a_merge_that_fails_leaves_nothing() {
    let tiny = Tiny::qwen3();
    tiny.write_adapter(|files| files.tensors[2].b[0] = f32::INFINITY);
    let error = export_checkpoint(&form(&tiny), &mut Silent).unwrap_err();
    assert!(matches!(error, Error::OutOfRange { .. }), "{error}");
    assert_eq!(names(&tiny.output()), Vec::<String>::new());
}
