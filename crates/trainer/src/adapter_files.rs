//! Options to LoRA's shape, and a trained adapter to the files of a PEFT folder.

use formats::adapter::{AdapterConfig, AdapterFiles, Provenance};
use model::family::Role;
use model::{Adapter, Device, Family, LoraOptions, ModelConfig};
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::options::{AdapterOptions, Options};
use crate::record::Inputs;

/// Every linear layer of a decoder layer.
const ALL_LINEAR: &str = "all-linear";

/// LoRA's shape as the model takes it.
///
/// # Errors
/// [`Error::Option`] for a layer that the family does not have.
pub fn lora_options(options: &AdapterOptions, family: Family) -> Result<LoraOptions> {
    let mut targets: Vec<Role> = Vec::new();
    for name in &options.targets {
        let named = family.targets().filter(|(_, target)| name == ALL_LINEAR || target == name);
        let found: Vec<Role> = named.map(|(role, _)| role).collect();
        if found.is_empty() {
            return Err(unknown_target(name, family));
        }
        targets.extend(found);
    }
    // In the model's order whatever the recipe's, so that the same layers give the same adapter.
    targets.sort_unstable();
    targets.dedup();
    let AdapterOptions { rank, alpha, rslora: rank_stabilised, .. } = *options;
    Ok(LoraOptions { rank, alpha, rank_stabilised, targets })
}

fn unknown_target(name: &str, family: Family) -> Error {
    let names: Vec<_> = family.targets().map(|(_, target)| target).collect();
    let reason = format!("names `{name}`, which is neither {ALL_LINEAR} nor one of {}", names.join(", "));
    Error::Option { key: "adapter.targets", reason }
}

/// The files of an adapter after `steps` steps.
///
/// # Errors
/// [`Error::BrokenAdapter`] when a weight is not finite: such an adapter is never saved.
pub fn to_files<D: Device>(
    adapter: &Adapter<D>,
    config: &ModelConfig,
    options: &Options,
    inputs: &Inputs,
    steps: u64,
) -> Result<AdapterFiles> {
    let tensors = adapter.to_tensors(config)?;
    let all_finite = |values: &[f32]| values.iter().all(|value| value.is_finite());
    if let Some(tensor) = tensors.iter().find(|tensor| !(all_finite(&tensor.a) && all_finite(&tensor.b))) {
        return Err(Error::BrokenAdapter { step: steps, module: tensor.module.clone() });
    }
    let base_path = options.model.base.display().to_string();
    Ok(AdapterFiles {
        config: AdapterConfig {
            peft_type: "LORA".into(),
            task_type: Some("CAUSAL_LM".into()),
            base_model_name_or_path: Some(base_path.clone()),
            r: options.adapter.rank,
            lora_alpha: f64::from(options.adapter.alpha),
            lora_dropout: f64::from(options.adapter.dropout),
            target_modules: target_modules(adapter.options(), config.family),
            use_rslora: options.adapter.rslora,
            bias: "none".into(),
            extra: peft_defaults(),
        },
        tune: Some(Provenance {
            base_blake3: inputs.base.clone(),
            base_path,
            recipe_blake3: inputs.recipe.clone(),
            dataset_blake3: inputs.dataset.clone(),
            template_blake3: inputs.template.clone(),
            steps,
            extra: further_provenance(options, inputs),
        }),
        tensors,
    })
}

fn target_modules(options: &LoraOptions, family: Family) -> Vec<String> {
    let adapted = family.targets().filter(|(role, _)| options.targets.contains(role));
    adapted.map(|(_, target)| target.to_owned()).collect()
}

/// Keys that PEFT reads and that say "plain LoRA"; without `inference_mode` it would train the loaded adapter.
fn peft_defaults() -> Map<String, Value> {
    let fields = json!({
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "modules_to_save": null,
    });
    into_fields(fields)
}

fn further_provenance(options: &Options, inputs: &Inputs) -> Map<String, Value> {
    let fields = json!({
        "base_config_blake3": inputs.base_config,
        "tokenizer_blake3": inputs.tokenizer,
        "quant": options.model.quant_name(),
        "seed": options.train.seed,
    });
    into_fields(fields)
}

fn into_fields(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(family: Family, names: &[&str]) -> Result<Vec<Role>> {
        let targets = names.iter().map(|name| (*name).to_owned()).collect();
        lora_options(&AdapterOptions { targets, ..AdapterOptions::default() }, family)
            .map(|lora| lora.targets)
    }

    #[test]
    fn names_become_roles_in_the_models_order() {
        assert_eq!(targets(Family::Qwen3, &["all-linear"]).unwrap().len(), 7);
        assert_eq!(targets(Family::Llama, &["v_proj", "q_proj", "q_proj"]).unwrap(), [Role::Q, Role::V]);
        assert_eq!(targets(Family::Phi3, &["all-linear"]).unwrap().len(), 4);
        assert_eq!(targets(Family::StarCoder2, &["c_fc"]).unwrap(), [Role::Up]);
        let message = targets(Family::Phi3, &["q_proj"]).unwrap_err().to_string();
        let names = "qkv_proj, o_proj, gate_up_proj, down_proj";
        let expected =
            format!("`adapter.targets` names `q_proj`, which is neither all-linear nor one of {names}");
        assert_eq!(message, expected);
    }
}
