//! Everything that ends an export, each with its reason, and nothing left behind.

use exporter::{Error, ImportanceSource, Request, Template, TypeOverride};
use formats::BlockType;
use formats::imatrix::ImportanceMatrix;
use model::policy::Quant;
use text::Message;

use crate::checkpoint::Tiny;
use crate::engine::{FakeEngine, Fault};
use crate::{export, exported, names, refused, request};

fn message(tiny: &Tiny, change: impl FnOnce(&mut exporter::Request)) -> String {
    let mut request = request(tiny, Quant::Q4KM);
    change(&mut request);
    let message = refused(&request, &FakeEngine::sound()).to_string();
    message.replace(&tiny.dir.path().display().to_string(), "DIR")
}

#[test]
fn unknown_quantisations_are_refused_with_the_valid_ones() {
    let error = Quant::parse_for_file("q4_k_xl").unwrap_err().to_string();
    assert_eq!(
        error,
        "unknown quantisation `q4_k_xl` (valid: q4_k_m, q5_k_m, q6_k, q8_0, q2_k, q3_k_s, q3_k_m, q3_k_l, q4_k_s, q5_k_s, q4_0, q4_1, q5_0, q5_1, iq4_nl, iq4_xs, iq3_m, iq3_s, iq3_xs, iq3_xxs, iq2_m, iq2_s, iq2_xs, iq2_xxs, f16, bf16, f32)"
    );
}

#[test]
fn importance_matrices_that_are_missing_or_of_another_model() {
    let tiny = Tiny::qwen3();
    let error = message(&tiny, |request| request.quant = Quant::IQ2XS);
    assert_eq!(error, "iq2_xs needs an importance matrix: without one the file is garbage");

    let path = tiny.dir.path().join("matrix.gguf");
    let with = |change: &dyn Fn(&mut ImportanceMatrix)| {
        let mut matrix = tiny.importance(1);
        change(&mut matrix);
        matrix.write(&path).unwrap();
        message(&tiny, |request| {
            (request.quant, request.importance) = (Quant::IQ2XS, ImportanceSource::File(path.clone()));
        })
    };
    let error = with(&|matrix| drop(matrix.entries.remove("blk.1.ffn_up.weight")));
    assert_eq!(
        error,
        "no importance matrix says anything about `blk.1.ffn_up.weight`, which as IQ2_XS needs it"
    );
    let error = with(&|matrix| {
        let entry = matrix.entries["blk.1.ffn_up.weight"].clone();
        matrix.entries.insert("blk.9.ffn_up.weight".into(), entry);
    });
    assert_eq!(
        error,
        "the importance matrix DIR/matrix.gguf is another model's: there is no matrix `blk.9.ffn_up.weight`"
    );
    let error = with(&|matrix| matrix.entries.get_mut("blk.1.ffn_up.weight").unwrap().sums.truncate(100));
    assert_eq!(
        error,
        "the importance matrix DIR/matrix.gguf is another model's: `blk.1.ffn_up.weight` has 256 columns, its \
         entry 100 numbers"
    );
    let error = message(&tiny, |request| request.importance = ImportanceSource::File("/nowhere.gguf".into()));
    assert!(error.contains("/nowhere.gguf"), "{error}");
}

#[test]
fn types_that_nothing_can_have() {
    let tiny = Tiny::qwen3();
    let with = |quant, pattern: &str, ty| {
        let types = vec![TypeOverride { pattern: pattern.to_owned(), ty }];
        message(&tiny, |request| (request.quant, request.types) = (quant, types))
    };
    let refused =
        |pattern: &str, reason: &str| format!("the pattern `{pattern}` cannot give tensors a type: {reason}");
    assert_eq!(with(Quant::Q4KM, "ffn_up(", BlockType::Q8_0), refused("ffn_up(", "error: unclosed group"));
    assert_eq!(
        with(Quant::Q4KM, "ffn_upp", BlockType::Q8_0),
        refused("ffn_upp", "it names no tensor of the model")
    );
    assert_eq!(
        with(Quant::F16, "ffn_up", BlockType::Q8_0),
        refused("ffn_up", "in f16 all tensors are alike")
    );
    assert_eq!(
        with(Quant::Q4KM, "ffn_up", BlockType::Nf4),
        refused("ffn_up", "NF4 is a form of weights in memory that no file has")
    );
    assert_eq!(
        with(Quant::Q4KM, "ffn_up", BlockType::IQ2S),
        "no importance matrix says anything about `blk.0.ffn_up.weight`, which as IQ2_S needs it"
    );
}

#[test]
fn names_that_are_no_file_names() {
    let tiny = Tiny::qwen3();
    for name in ["", "../x", "a/b", ".hidden", "a b", &"x".repeat(101)] {
        let error = message(&tiny, |request| request.name = name.to_owned());
        assert!(error.starts_with(&format!("the name `{name}` cannot name a file: ")), "{error}");
    }
}

#[test]
fn an_adapter_of_another_base() {
    let tiny = Tiny::qwen3();
    tiny.write_adapter(|_| {});
    tiny.write_weights(2);
    let error = message(&tiny, |_| {});
    assert!(error.starts_with("the adapter DIR/adapter was trained on another base: it records "), "{error}");
}

#[test]
fn an_adapter_of_another_template() {
    let tiny = Tiny::qwen3();
    tiny.write_adapter(|_| {});
    let source = "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|im_end|>{% endfor %}";
    let error = message(&tiny, |request| request.template = Template::Source(source.into()));
    assert!(error.starts_with("the adapter DIR/adapter was trained with another chat template"), "{error}");
}

#[test]
fn an_adapter_with_wrong_shapes_or_modules() {
    let tiny = Tiny::qwen3();
    tiny.write_adapter(|files| {
        let pair = &mut files.tensors[0];
        pair.out_features /= 2;
        pair.b.truncate(pair.out_features * pair.r);
    });
    let error = message(&tiny, |_| {});
    assert!(
        error.contains(".lora_B.weight` of DIR/adapter has shape [128, 4], expected [256, 4]"),
        "{error}"
    );
    tiny.write_adapter(|files| files.tensors[0].module = "model.layers.9.self_attn.q_proj".into());
    let error = message(&tiny, |_| {});
    assert!(
        error.contains("changes `model.layers.9.self_attn.q_proj`, which the base does not have"),
        "{error}"
    );
}

#[test]
fn adapters_whose_meaning_a_merge_would_lose() {
    let tiny = Tiny::qwen3();
    let cases = [
        ("modules_to_save", serde_json::json!(["lm_head"])),
        ("layer_replication", serde_json::json!([[0, 1]])),
        ("fan_in_fan_out", serde_json::json!(true)),
        ("bias", serde_json::json!("all")),
        ("peft_type", serde_json::json!("IA3")),
        ("init_lora_weights", serde_json::json!("pissa_niter_4")),
    ];
    for (key, value) in cases {
        tiny.write_adapter(|_| {});
        let path = tiny.adapter().join("adapter_config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config[key] = value;
        std::fs::write(&path, config.to_string()).unwrap();
        // As an adapter that was made elsewhere.
        std::fs::remove_file(tiny.adapter().join("tune.json")).unwrap();
        let error = message(&tiny, |_| {});
        assert!(error.starts_with("DIR/adapter/adapter_config.json: "), "{error}");
        assert!(error.contains(&format!("`{key}` is ")), "{error}");
    }
}

#[test]
fn weights_that_are_no_numbers_are_named() {
    let tiny = Tiny::qwen3();
    tiny.write_changed(1, |spec, values| {
        if spec.gguf == "blk.1.ffn_up.weight" {
            values[3 * 256 + 7] = f32::NAN;
        }
    });
    let error = message(&tiny, |_| {});
    assert_eq!(
        error,
        "tensor `blk.1.ffn_up.weight`, row 3, column 7 is NaN after merging; Q4_K holds at most ±65504"
    );
    tiny.write_weights(1);
    tiny.write_adapter(|files| files.tensors[2].b[0] = f32::INFINITY);
    let error = message(&tiny, |_| {});
    assert!(error.contains("after merging"), "{error}");
}

#[test]
fn bases_that_are_missing_cut_short_or_of_another_shape() {
    let tiny = Tiny::qwen3();
    let error = message(&tiny, |request| request.base = "/nowhere".into());
    assert!(error.contains("/nowhere/config.json"), "{error}");
    let weights = tiny.base().join("model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() - 1000]).unwrap();
    let error = message(&tiny, |_| {});
    assert!(error.contains("DIR/base/model.safetensors"), "{error}");
    std::fs::write(&weights, bytes).unwrap();
    let config = tiny.base().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("\"intermediate_size\":512", "\"intermediate_size\":768")).unwrap();
    let error = message(&tiny, |_| {});
    assert!(error.contains("has shape [512, 256], expected [768, 256]"), "{error}");
}

#[test]
fn tokenizers_that_do_not_fit_the_embedding() {
    let config = |rows: usize| {
        serde_json::json!({
            "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu",
            "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": 16, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
            "max_position_embeddings": 256, "tie_word_embeddings": true, "vocab_size": rows,
        })
    };
    let error = message(&Tiny::new(config(258)), |_| {});
    assert!(error.contains("has ids up to 258, the model has 258 rows of embedding"), "{error}");
}

#[test]
fn evaluation_rows_and_contexts_that_cannot_be_used() {
    let tiny = Tiny::qwen3();
    let rows = [
        (vec![], "evaluation row 0: it is empty"),
        (vec![Message::new("user", "x")], "evaluation row 0: its last message is not the assistant's"),
        (
            vec![Message::new("assistant", "x")],
            "evaluation row 0: nothing stands before the assistant's message",
        ),
    ];
    for (row, expected) in rows {
        assert_eq!(message(&tiny, |request| request.evaluation[0] = row.into()), expected);
    }
    let long = vec![Message::new("user", "x ".repeat(100)), Message::new("assistant", "y")];
    let error = message(&tiny, |request| request.evaluation[1] = long.into());
    assert!(error.starts_with("evaluation row 1: it has 2"), "{error}");
    let error = message(&tiny, |request| request.num_ctx = 512);
    assert_eq!(error, "num_ctx is 512, expected 1 to 256, the positions that the base was made for");
    let error = message(&tiny, |request| request.quant = Quant::Nf4);
    assert!(
        error.starts_with("nf4 is a form of weights in memory that no file has (valid: q4_k_m"),
        "{error}"
    );
    let mistral = Tiny::mistral(64);
    assert_eq!(
        message(&mistral, |request| request.num_ctx = 65),
        "num_ctx is 65, and the model's layers see only 64 tokens: llama.cpp has no such window in a llama model",
    );
    let error = message(&tiny, |request| request.system = Some("say \"\"\" now".into()));
    assert!(error.contains("three quotes"), "{error}");
}

#[test]
fn what_the_engine_finds_ends_the_export() {
    let tiny = Tiny::qwen3();
    tiny.write_adapter(|_| {});
    let cases = [
        (Fault::DoesNotLoad, "the engine cannot load the exported file: unknown architecture"),
        (Fault::OtherIds, "the engine's ids of a chat differ from those of training from token 3 on: "),
        (Fault::OtherAnswers, "exact match 0.0 % (0 of 2) is 100.0 points below the adapter's 100.0 %"),
        (Fault::NeverStops, "0 of 2 answers end by the end-of-turn token, at least 90 % must"),
        (Fault::NotANumber, "tokens is NaN"),
    ];
    for (fault, expected) in cases {
        let error = refused(&request(&tiny, Quant::Q4KM), &FakeEngine::with(fault));
        assert!(error.to_string().contains(expected), "{error}");
        let key = match fault {
            Fault::OtherAnswers => Some("export.max_exact_match_drop"),
            Fault::NeverStops => Some("export.min_ended_answers"),
            _ => None,
        };
        assert_eq!(error.hint().is_some(), key.is_some(), "{error}");
        assert!(key.is_none_or(|key| error.hint().unwrap_or_default().contains(key)), "{error}");
    }
}

#[test]
fn a_refused_export_leaves_an_older_one_as_it_was() {
    let tiny = Tiny::qwen3();
    tiny.write_adapter(|_| {});
    let (receipt, _) = exported(&request(&tiny, Quant::Q4KM));
    let before = std::fs::read(tiny.output().join("receipt.json")).unwrap();
    tiny.write_adapter(|files| files.config.lora_alpha = 4.0);
    let engine = FakeEngine::with(Fault::OtherAnswers);
    let error = export(&request(&tiny, Quant::Q4KM), &engine, &mut formats::observe::Silent).unwrap_err();
    assert!(matches!(error, Error::Refused { .. }));
    assert_eq!(formats::hash::blake3_file(&receipt.file).unwrap(), receipt.blake3);
    assert_eq!(std::fs::read(tiny.output().join("receipt.json")).unwrap(), before);
    assert_eq!(names(&tiny.output()), ["Modelfile", "receipt.json", "tiny-q4_k_m.gguf"]);
}

/// Before anything is written, with need and have.
#[test]
fn what_memory_does_not_hold_is_refused() {
    let tiny = Tiny::qwen3();
    let wanted = Request { comparison_tokens: 64, ..request(&tiny, Quant::Q4KM) };
    let little = FakeEngine { free_bytes: Some(100_000), ..FakeEngine::sound() };
    let error = refused(&wanted, &little);
    let Error::Memory { need_bytes, have_bytes: 100_000, .. } = error else { panic!("{error}") };
    assert!(error.hint().unwrap().contains("num_ctx"));
    let enough = FakeEngine { free_bytes: Some(need_bytes), ..FakeEngine::sound() };
    export(&wanted, &enough, &mut formats::observe::Silent).unwrap();
}
