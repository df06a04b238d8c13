//! The PEFT adapter directory.

use std::path::{Path, PathBuf};

use expect_test::{Expect, expect};
use formats::adapter::{AdapterConfig, AdapterFiles, AdapterTensor, Provenance, read_adapter, write_adapter};
use formats::checkpoint::{Data, write_safetensors};
use serde_json::{Value, json};

fn pair(module: &str) -> AdapterTensor {
    AdapterTensor {
        module: module.to_owned(),
        a: (0..6).map(|i| i as f32).collect(),
        b: (0..8).map(|i| -0.5 * i as f32).collect(),
        magnitude: None,
        r: 2,
        in_features: 3,
        out_features: 4,
    }
}

fn sample() -> AdapterFiles {
    let mut config = AdapterConfig::lora(2, 32.0, vec!["q_proj".into(), "down_proj".into()]);
    config.base_model_name_or_path = Some("models/base".into());
    let tune = Provenance { base_blake3: "ab".into(), base_path: "models/base".into(), ..Default::default() };
    let tensors = ["model.layers.2.mlp.down_proj", "model.layers.10.self_attn.q_proj"].map(pair).to_vec();
    AdapterFiles { config, tune: Some(tune), tensors }
}

#[test]
fn what_is_written_is_read_back_in_the_models_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("adapter");
    let mut shuffled = sample();
    shuffled.tensors.reverse();
    write_adapter(&path, &shuffled).unwrap();
    assert_eq!(read_adapter(&path).unwrap(), sample());
}

#[test]
fn lengths_of_dora_are_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = sample();
    files.config.use_dora = true;
    files.tensors.iter_mut().for_each(|pair| pair.magnitude = Some(vec![1.0, 2.0, 3.0, 4.0]));
    write_adapter(dir.path(), &files).unwrap();
    assert_eq!(read_adapter(dir.path()).unwrap(), files);
    files.tensors[1].magnitude = None;
    write_adapter(dir.path(), &files).unwrap();
    check_refused(
        dir.path(),
        &expect![
            "DIR/adapter_model.safetensors: there is no tensor `base_model.model.model.layers.10.self_attn.q_proj.lora_magnitude_vector`"
        ],
    );
}

#[test]
fn ranks_and_scales_are_pefts() {
    let path = Path::new("adapter_config.json");
    let mut config = AdapterConfig::lora(16, 32.0, vec![]);
    let module = "model.layers.3.mlp.down_proj";
    assert_eq!(config.shapes(path).unwrap().scale(module), 2.0);
    config.use_rslora = true;
    assert_eq!(config.shapes(path).unwrap().scale(module), 8.0);
    config.rank_pattern.insert("down_proj".into(), json!(4));
    config.rank_pattern.insert(r"layers\.3\..*".into(), json!(9));
    config.alpha_pattern.insert(r"^model\.layers\.3\.mlp\.down_proj".into(), json!(6.0));
    let shapes = config.shapes(path).unwrap();
    assert_eq!((shapes.rank(module), shapes.scale(module)), (4, 3.0), "the first pattern that matches");
    assert_eq!(shapes.rank("model.layers.3.mlp.up_proj"), 9);
    assert_eq!(shapes.rank("model.layers.13.mlp.up_proj"), 16);
    assert_eq!(shapes.scale("model.layers.13.mlp.down_proj"), 16.0);
}

/// Writes an adapter with edited configuration and reads it; the error has a stable path.
fn refuse_config(edit: impl Fn(&mut serde_json::Map<String, Value>), expected: &Expect) {
    let dir = tempfile::tempdir().unwrap();
    write_adapter(dir.path(), &sample()).unwrap();
    let path = dir.path().join("adapter_config.json");
    let mut config: Value = formats::json::read(&path).unwrap();
    edit(config.as_object_mut().unwrap());
    formats::json::write(&path, &config).unwrap();
    check_refused(dir.path(), expected);
}

fn refuse_tensors(tensors: &[(&str, Vec<usize>)], expected: &Expect) {
    let dir = tempfile::tempdir().unwrap();
    write_adapter(dir.path(), &sample()).unwrap();
    let values = [0.0; 64];
    let stored: Vec<_> = tensors
        .iter()
        .map(|(name, shape)| {
            let count = shape.iter().product();
            ((*name).to_owned(), shape.clone(), Data::F32(&values[..count]))
        })
        .collect();
    write_safetensors(&dir.path().join("adapter_model.safetensors"), &stored).unwrap();
    check_refused(dir.path(), expected);
}

/// Of an adapter that was made elsewhere, with no record of its own hashes.
fn check_refused(dir: &Path, expected: &Expect) {
    let _ = std::fs::remove_file(dir.join("tune.json"));
    let text = read_adapter(dir).unwrap_err().to_string();
    expected.assert_eq(&text.replace(&dir.display().to_string(), "DIR"));
}

#[test]
fn what_would_be_applied_differently_is_refused() {
    refuse_config(
        |config| drop(config.insert("rank_pattern".into(), json!({"(": 4}))),
        &expect![
            "DIR/adapter_config.json: key `rank_pattern.(` is unclosed group, expected a regular expression"
        ],
    );
    refuse_config(
        |config| drop(config.insert("alpha_pattern".into(), json!({"q_proj": "much"}))),
        &expect![[r#"DIR/adapter_config.json: key `alpha_pattern.q_proj` is "much", expected a number"#]],
    );
    refuse_config(
        |config| drop(config.insert("modules_to_save".into(), json!(["lm_head"]))),
        &expect![[
            r#"DIR/adapter_config.json: key `modules_to_save` is ["lm_head"], expected absent or empty (it is not supported)"#
        ]],
    );
    refuse_config(
        |config| {
            drop(config.insert("target_parameters".into(), json!(["mlp.gate_proj.weight", "gate_up_proj"])))
        },
        &expect![[
            r#"DIR/adapter_config.json: key `target_parameters` is ["mlp.gate_proj.weight","gate_up_proj"], expected absent, or weights of linear layers alone (stacked experts are not supported)"#
        ]],
    );
    refuse_config(
        |config| drop(config.insert("peft_type".into(), json!("IA3"))),
        &expect!["DIR/adapter_config.json: key `peft_type` is `IA3`, expected `LORA`"],
    );
    refuse_config(
        |config| drop(config.insert("bias".into(), json!("all"))),
        &expect!["DIR/adapter_config.json: key `bias` is `all`, expected `none`"],
    );
    refuse_config(
        |config| drop(config.insert("init_lora_weights".into(), json!("pissa_niter_4"))),
        &expect![
            "DIR/adapter_config.json: key `init_lora_weights` is `pissa_niter_4`, expected one that leaves the base as it is"
        ],
    );
    refuse_config(
        |config| drop(config.insert("r".into(), json!(0))),
        &expect!["DIR/adapter_config.json: key `r` is 0, expected 1 or more"],
    );
}

#[test]
fn files_that_are_not_those_that_were_written() {
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        let dir = tempfile::tempdir().unwrap();
        write_adapter(dir.path(), &sample()).unwrap();
        assert_eq!(read_adapter(dir.path()).unwrap(), sample());
        let path = dir.path().join(file);
        let mut bytes = std::fs::read(&path).unwrap();
        // In a file of tensors the last bit of the last weight, else a blank at the end.
        if file.ends_with("json") {
            bytes.push(b' ')
        } else {
            *bytes.last_mut().unwrap() ^= 1
        }
        std::fs::write(&path, bytes).unwrap();
        let error = read_adapter(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("{file}: its BLAKE3 is ")), "{error}");
    }
}

#[test]
fn harmless_defaults_of_peft_are_read() {
    let dir = tempfile::tempdir().unwrap();
    write_adapter(dir.path(), &sample()).unwrap();
    let path = dir.path().join("adapter_config.json");
    let mut config: Value = formats::json::read(&path).unwrap();
    let fields = config.as_object_mut().unwrap();
    fields.insert("modules_to_save".into(), Value::Null);
    fields.insert("rank_pattern".into(), json!({}));
    fields.insert("target_parameters".into(), json!(["mlp.gate_proj.weight"]));
    fields.insert("target_modules".into(), json!("all-linear"));
    formats::json::write(&path, &config).unwrap();
    std::fs::remove_file(dir.path().join("tune.json")).unwrap();
    assert_eq!(read_adapter(dir.path()).unwrap().config.target_modules, ["all-linear"]);
}

const A: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
const B: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight";

#[test]
fn half_a_pair() {
    refuse_tensors(
        &[(A, vec![2, 3])],
        &expect![
            "DIR/adapter_model.safetensors: there is no tensor `base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight`"
        ],
    );
}

#[test]
fn another_rank_than_the_configuration_says() {
    refuse_tensors(
        &[(A, vec![2, 3]), (B, vec![4, 3])],
        &expect![
            "DIR/adapter_model.safetensors: tensor `base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight` has shape [4, 3], expected [4, 2]"
        ],
    );
    refuse_tensors(
        &[(A, vec![6]), (B, vec![4, 2])],
        &expect![
            "DIR/adapter_model.safetensors: tensor `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight` has shape [6], expected [2, 6]"
        ],
    );
}

#[test]
fn a_tensor_that_is_not_loras() {
    refuse_tensors(
        &[("base_model.model.lm_head.weight", vec![2, 2])],
        &expect![
            "DIR/adapter_model.safetensors: the name of a tensor is `base_model.model.lm_head.weight`, expected `base_model.model.MODULE.lora_A.weight` or `….lora_B.weight`"
        ],
    );
}

#[test]
fn missing_files() {
    let dir = tempfile::tempdir().unwrap();
    check_refused(
        dir.path(),
        &expect!["DIR/adapter_config.json is missing, expected the configuration of a PEFT adapter"],
    );
    write_adapter(dir.path(), &sample()).unwrap();
    std::fs::remove_file(dir.path().join("adapter_model.safetensors")).unwrap();
    check_refused(
        dir.path(),
        &expect!["DIR/adapter_model.safetensors is missing, expected the weights of a PEFT adapter"],
    );
}

#[test]
fn an_adapter_without_provenance_is_read() {
    let dir = tempfile::tempdir().unwrap();
    write_adapter(dir.path(), &sample()).unwrap();
    std::fs::remove_file(dir.path().join("tune.json")).unwrap();
    assert_eq!(read_adapter(dir.path()).unwrap().tune, None);
}

/// Written by PEFT itself: see scripts/golden/peft_adapter.py.
#[test]
fn an_adapter_that_peft_wrote() {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/peft_adapter");
    let files = read_adapter(&dir).unwrap();
    assert_eq!((files.config.r, files.config.lora_alpha), (4, 8.0));
    let modules: Vec<_> = files.tensors.iter().map(|pair| pair.module.as_str()).collect();
    assert_eq!(modules, ["model.layers.0.mlp.down_proj", "model.layers.0.self_attn.q_proj"]);
    let down = &files.tensors[0];
    assert_eq!((down.r, down.in_features, down.out_features), (4, 48, 32));
    let expected: Vec<f32> = (0..4 * 48).map(|i| i as f32 / 64.0).collect();
    assert_eq!(down.a, expected);
}
