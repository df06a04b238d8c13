//! Options to LoRA's shape, and a trained adapter to the files of a PEFT folder.

use std::path::Path;

use formats::adapter::{AdapterConfig, AdapterFiles, AdapterTensor, ModulePattern, Provenance};
use model::family::{Linear, Role, TextPart, linears, newer_module};
use model::lora::Exception;
use model::{Adapter, Device, Family, LoraOptions, ModelConfig};
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::options::{AdapterOptions, Init, Options};
use crate::record::Inputs;

/// Every linear layer of a decoder layer.
const ALL_LINEAR: &str = "all-linear";

/// LoRA's shape as the model takes it.
///
/// # Errors
/// [`Error::Option`] for a pattern that is none, or that no linear layer of the model matches.
pub fn lora_options(options: &AdapterOptions, config: &ModelConfig) -> Result<LoraOptions> {
    let modules = linears(config);
    let targets = patterns("adapter.targets", &options.targets, |name| {
        if name == ALL_LINEAR { ".*" } else { name }.to_owned()
    })?;
    for (pattern, name) in targets.iter().zip(&options.targets) {
        if !modules.iter().any(|module| pattern.matches(&module.module)) {
            return Err(unknown_target(name, config.family));
        }
    }
    let is_target = |module: &Linear| targets.iter().any(|pattern| pattern.matches(&module.module));
    let ranks = single_values("adapter.ranks", &options.ranks, &modules, is_target)?;
    let alphas = single_values("adapter.alphas", &options.alphas, &modules, is_target)?;
    let mut lora = LoraOptions {
        rank: options.rank,
        alpha: options.alpha,
        rank_stabilised: options.rslora,
        dropout: options.dropout,
        dora: options.dora,
        elastic: options.elastic,
        // In the model's order whatever the recipe's, so that the same layers give the same adapter.
        targets: modules.iter().filter(|module| is_target(module)).map(|module| module.role).collect(),
        exceptions: Vec::new(),
    };
    lora.targets.sort_unstable();
    lora.targets.dedup();
    check_layers(options, config, &lora.targets)?;
    for module in modules.iter().filter(|module| lora.targets.contains(&module.role)) {
        let rank = first_match(&ranks, module).unwrap_or(options.rank);
        let rank = if is_target(module) { rank } else { 0 };
        let alpha = first_match(&alphas, module).unwrap_or(options.alpha);
        if (rank, alpha) != (options.rank, options.alpha) {
            lora.exceptions.push(Exception { layer: module.layer, role: module.role, rank, alpha });
        }
    }
    Ok(lora)
}

/// Refuses what cannot be done to some layers of a model with a latent and routed experts.
///
/// Keys and values from a latent are held as two matrices, one of them transposed, which have no rows to be measured or
/// decomposed; and the MLPs are parameters to PEFT, which measures none.
fn check_layers(options: &AdapterOptions, config: &ModelConfig, targets: &[Role]) -> Result<()> {
    let refuse = |key, what: &str, target: &str| {
        let reason = format!("cannot be {what} where `adapter.targets` has `{target}`: leave that layer out");
        Err(Error::Option { key, reason })
    };
    let mlp = config
        .family
        .targets()
        .find(|(role, _)| matches!(role, Role::Gate | Role::Up | Role::Down) && targets.contains(role));
    match (mlp, options.init) {
        (Some((_, target)), _) if options.dora && config.experts.is_some() => {
            refuse("adapter.dora", "true", target)
        }
        _ if !targets.contains(&Role::KvB) => Ok(()),
        _ if options.dora => refuse("adapter.dora", "true", "kv_b_proj"),
        (_, Init::Pissa) => refuse("adapter.init", "pissa", "kv_b_proj"),
        (_, Init::LoftQ) => refuse("adapter.init", "loftq", "kv_b_proj"),
        (_, Init::Default) => Ok(()),
    }
}

fn patterns(
    key: &'static str,
    names: &[String],
    pattern: impl Fn(&str) -> String,
) -> Result<Vec<ModulePattern>> {
    let compile = |name: &String| {
        ModulePattern::new(&pattern(name))
            .map_err(|reason| Error::Option { key, reason: format!("has the pattern `{name}`: {reason}") })
    };
    names.iter().map(compile).collect()
}

/// Values of single layers; each must be of a layer that is adapted.
fn single_values<T: Copy>(
    key: &'static str,
    values: &[(String, T)],
    modules: &[Linear],
    is_target: impl Fn(&Linear) -> bool,
) -> Result<Vec<(ModulePattern, T)>> {
    let names: Vec<String> = values.iter().map(|(name, _)| name.clone()).collect();
    let patterns = patterns(key, &names, str::to_owned)?;
    for (pattern, name) in patterns.iter().zip(&names) {
        if !modules.iter().any(|module| is_target(module) && pattern.matches(&module.module)) {
            let reason = format!("names `{name}`, which no layer of `adapter.targets` matches");
            return Err(Error::Option { key, reason });
        }
    }
    Ok(patterns.into_iter().zip(values.iter().map(|(_, value)| *value)).collect())
}

fn first_match<T: Copy>(values: &[(ModulePattern, T)], module: &Linear) -> Option<T> {
    values.iter().find(|(pattern, _)| pattern.matches(&module.module)).map(|(_, value)| *value)
}

fn unknown_target(name: &str, family: Family) -> Error {
    if family.has(Role::SsmOut) && ["out_proj", "conv1d"].iter().any(|fixed| name.ends_with(fixed)) {
        let reason = format!(
            "names `{name}`, which an adapter of a Mamba-2 cannot change: its fused kernels read those weights past \
             an adapter, and PEFT refuses to load one that has them; `in_proj` can be changed",
        );
        return Error::Option { key: "adapter.targets", reason };
    }
    if family.has(Role::Router) && (name.contains("experts") || name.ends_with("gate")) {
        let reason = format!(
            "names `{name}`: routed experts and their router stay as they are, since each expert sees only a few of the \
             rows; `shared_experts` with `gate_proj`, `up_proj` and `down_proj` can be changed",
        );
        return Error::Option { key: "adapter.targets", reason };
    }
    let mut names: Vec<_> = family.targets().map(|(_, target)| target).collect();
    names.dedup();
    let reason = format!(
        "names `{name}`, which is neither {ALL_LINEAR} nor one of {}, nor a regular expression for whole names such as \
         `model.layers.0.self_attn.o_proj`",
        names.join(", "),
    );
    Error::Option { key: "adapter.targets", reason }
}

/// LoRA's shape and the factors of an adapter in a PEFT folder, ours or another's.
///
/// # Errors
/// [`model::Error::InvalidAdapter`] for a module that the model does not have; patterns that are none.
pub fn lora_of_files(
    dir: &Path,
    mut files: AdapterFiles,
    config: &ModelConfig,
) -> Result<(LoraOptions, Vec<AdapterTensor>)> {
    let peft = &files.config;
    let shapes = peft.shapes(&dir.join("adapter_config.json"))?;
    let modules = linears(config);
    let mut lora = LoraOptions {
        rank: peft.r,
        alpha: peft.lora_alpha as f32,
        rank_stabilised: peft.use_rslora,
        dora: peft.use_dora,
        targets: Vec::new(),
        ..LoraOptions::default()
    };
    for pair in &mut files.tensors {
        // Patterns are of the names in the file.
        let root = if peft.use_rslora { (pair.r as f64).sqrt() } else { pair.r as f64 };
        let alpha = (shapes.scale(&pair.module) * root) as f32;
        pair.module = newer_module(&pair.module).into_owned();
        let Some(linear) = modules.iter().find(|linear| linear.module == pair.module) else {
            let (what, found) = (pair.module.clone(), "present".to_owned());
            let expected = "a linear layer of the base".to_owned();
            return Err(model::Error::InvalidAdapter { what, found, expected }.into());
        };
        lora.targets.push(linear.role);
        if (pair.r, alpha) != (lora.rank, lora.alpha) {
            let (layer, role) = (linear.layer, linear.role);
            lora.exceptions.push(Exception { layer, role, rank: pair.r, alpha });
        }
    }
    lora.targets.sort_unstable();
    lora.targets.dedup();
    for linear in modules.iter().filter(|linear| lora.targets.contains(&linear.role)) {
        if !files.tensors.iter().any(|pair| pair.module == linear.module) {
            let (layer, role) = (linear.layer, linear.role);
            lora.exceptions.push(Exception { layer, role, rank: 0, alpha: lora.alpha });
        }
    }
    Ok((lora, files.tensors))
}

/// The files of an adapter after `steps` steps, as it is trained: what a checkpoint holds.
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
    let all_finite = |tensor: &AdapterTensor| {
        let magnitude = tensor.magnitude.iter().flatten();
        tensor.a.iter().chain(&tensor.b).chain(magnitude).all(|value| value.is_finite())
    };
    if let Some(tensor) = tensors.iter().find(|tensor| !all_finite(tensor)) {
        return Err(Error::BrokenAdapter { step: steps, module: tensor.module.clone() });
    }
    let base_path = options.model.base.display().to_string();
    let mut peft = AdapterConfig {
        base_model_name_or_path: Some(base_path.clone()),
        ..adapter_config(&options.adapter, adapter.options(), config)
    };
    if let Some(hub) = &options.model.hub {
        // By these two PEFT finds the base on every machine.
        peft.base_model_name_or_path = Some(hub.repository.clone());
        peft.extra.insert("revision".into(), hub.commit.clone().into());
    }
    Ok(AdapterFiles {
        config: peft,
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

/// `adapter_config.json` of the shape that the options ask for.
pub fn adapter_config(options: &AdapterOptions, lora: &LoraOptions, config: &ModelConfig) -> AdapterConfig {
    let Targets { modules, parameters } = peft_targets(lora, config);
    let mut extra = peft_defaults(options.init);
    let mut lora_dropout = f64::from(options.dropout);
    if !parameters.is_empty() {
        extra.insert("target_parameters".to_owned(), parameters.into());
        // PEFT refuses dropout on parameters, even where nothing is trained.
        lora_dropout = 0.0;
    }
    AdapterConfig {
        lora_dropout,
        use_rslora: options.rslora,
        use_dora: options.dora,
        rank_pattern: pattern(lora, config, |exception| {
            (exception.rank != options.rank).then(|| exception.rank.into())
        }),
        alpha_pattern: pattern(lora, config, |exception| {
            (exception.alpha != options.alpha).then(|| f64::from(exception.alpha).into())
        }),
        extra,
        ..AdapterConfig::lora(options.rank, f64::from(options.alpha), modules)
    }
}

/// What PEFT is to adapt.
struct Targets {
    /// Modules.
    modules: Vec<String>,
    /// The weights of modules that PEFT would take for others by their names.
    parameters: Vec<String>,
}

/// Whether PEFT reaches a layer by its weight alone.
///
/// In a model with routed experts it takes `gate_proj`, `up_proj` and `down_proj` for theirs, which transformers holds as
/// parameters, wherever they stand in a module's name.
fn is_parameter(linear: &Linear, config: &ModelConfig) -> bool {
    config.experts.is_some() && matches!(linear.role, Role::Gate | Role::Up | Role::Down)
}

/// Last names where every layer is adapted alike, whole names where some are left out or the model also sees.
fn peft_targets(options: &LoraOptions, config: &ModelConfig) -> Targets {
    // A vision tower beside the language model has modules of the same last names.
    let is_alone = config.text_part == TextPart::Whole;
    let is_alike = is_alone && options.exceptions.iter().all(|exception| exception.rank > 0);
    let mut targets = Targets { modules: Vec::new(), parameters: Vec::new() };
    for linear in linears(config) {
        if options.shape(linear.layer, linear.role).is_none() {
            continue;
        }
        let place = linear.module.find("mlp.").filter(|_| is_parameter(&linear, config));
        let name = match place {
            Some(place) if is_alike => linear.module[place..].to_owned(),
            None if is_alike => linear.module.rsplit('.').next().unwrap_or_default().to_owned(),
            _ => linear.module,
        };
        let (list, name) = match place {
            Some(_) => (&mut targets.parameters, format!("{name}.weight")),
            None => (&mut targets.modules, name),
        };
        if !list.contains(&name) {
            list.push(name);
        }
    }
    targets
}

/// PEFT's `rank_pattern` or `alpha_pattern`: the value of each layer that differs.
fn pattern(
    options: &LoraOptions,
    config: &ModelConfig,
    value: impl Fn(&Exception) -> Option<Value>,
) -> Map<String, Value> {
    let modules = linears(config);
    let name = |exception: &Exception| {
        let linear =
            modules.iter().find(|module| (module.layer, module.role) == (exception.layer, exception.role))?;
        let pattern = ModulePattern::of_module(&linear.module);
        // PEFT compares the names of parameters, and nothing else does.
        Some(if is_parameter(linear, config) { format!(r"{pattern}(\.weight)?") } else { pattern })
    };
    let adapted = options.exceptions.iter().filter(|exception| exception.rank > 0);
    adapted.filter_map(|e| Some((name(e)?, value(e)?))).collect()
}

/// Keys that PEFT reads; without `inference_mode` it would train the loaded adapter.
fn peft_defaults(init: Init) -> Map<String, Value> {
    let init = match init {
        Init::Default => Value::Bool(true),
        Init::Pissa => "pissa".into(),
        Init::LoftQ => "loftq".into(),
    };
    let fields = json!({
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": init,
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
        "init": options.adapter.init,
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
    use expect_test::{Expect, expect};

    use super::*;

    fn config(family: Family) -> ModelConfig {
        ModelConfig { n_layers: 12, ..ModelConfig::plain(family, 4) }
    }

    fn targets(family: Family, names: &[&str]) -> Result<Vec<Role>> {
        let targets = names.iter().map(|name| (*name).to_owned()).collect();
        lora_options(&AdapterOptions { targets, ..AdapterOptions::default() }, &config(family))
            .map(|lora| lora.targets)
    }

    #[test]
    fn names_become_roles_in_the_models_order() {
        assert_eq!(targets(Family::Qwen3, &["all-linear"]).unwrap().len(), 7);
        assert_eq!(targets(Family::Llama, &["v_proj", "q_proj", "q_proj"]).unwrap(), [Role::Q, Role::V]);
        assert_eq!(targets(Family::Phi3, &["all-linear"]).unwrap().len(), 4);
        assert_eq!(targets(Family::StarCoder2, &["c_fc"]).unwrap(), [Role::Up]);
    }

    /// A DeepSeek-V2-Lite of 12 layers, one of them dense.
    fn deepseek2() -> ModelConfig {
        let routing = model::device::Routing { n_experts: 8, n_used: 2, scale: 1.0 };
        ModelConfig {
            latent: Some(model::config::Latent { rank: 8, value_dim: 4, log_multiplier: 0.0 }),
            experts: Some(model::config::Experts { routing, width: 4, n_shared: 2, n_dense_layers: 1 }),
            ..config(Family::DeepSeek2)
        }
    }

    #[test]
    fn peft_reaches_the_shared_experts_by_their_weights() {
        let all = AdapterOptions {
            targets: vec!["all-linear".to_owned()],
            dropout: 0.1,
            ..AdapterOptions::default()
        };
        let shown = |options: &AdapterOptions| {
            let config = deepseek2();
            let lora = lora_options(options, &config).unwrap();
            let peft = adapter_config(options, &lora, &config);
            format!(
                "{:?} {} dropout {}",
                peft.target_modules, peft.extra["target_parameters"], peft.lora_dropout
            )
        };
        expect![[r#"["q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"] ["mlp.gate_proj.weight","mlp.up_proj.weight","mlp.down_proj.weight","mlp.shared_experts.gate_proj.weight","mlp.shared_experts.up_proj.weight","mlp.shared_experts.down_proj.weight"] dropout 0"#]].assert_eq(&shown(&all));
        let some = ["q_proj", r"layers\.[0-2]\.mlp.*up_proj"].map(str::to_owned).to_vec();
        expect![[r#"["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "model.layers.2.self_attn.q_proj", "model.layers.3.self_attn.q_proj", "model.layers.4.self_attn.q_proj", "model.layers.5.self_attn.q_proj", "model.layers.6.self_attn.q_proj", "model.layers.7.self_attn.q_proj", "model.layers.8.self_attn.q_proj", "model.layers.9.self_attn.q_proj", "model.layers.10.self_attn.q_proj", "model.layers.11.self_attn.q_proj"] ["model.layers.0.mlp.up_proj.weight","model.layers.1.mlp.shared_experts.up_proj.weight","model.layers.2.mlp.shared_experts.up_proj.weight"] dropout 0"#]].assert_eq(&shown(&AdapterOptions { targets: some, ..all.clone() }));
        let refused = |options: AdapterOptions| lora_options(&options, &deepseek2()).unwrap_err().to_string();
        expect![
            "`adapter.dora` cannot be true where `adapter.targets` has `gate_proj`: leave that layer out"
        ]
        .assert_eq(&refused(AdapterOptions { dora: true, ..all.clone() }));
        let attention = vec![".*self_attn.*".to_owned()];
        expect![
            "`adapter.dora` cannot be true where `adapter.targets` has `kv_b_proj`: leave that layer out"
        ]
        .assert_eq(&refused(AdapterOptions { dora: true, targets: attention, ..all.clone() }));
        expect![
            "`adapter.init` cannot be loftq where `adapter.targets` has `kv_b_proj`: leave that layer out"
        ]
        .assert_eq(&refused(AdapterOptions { init: Init::LoftQ, ..all.clone() }));
        let routed = vec!["mlp.experts.3.up_proj".to_owned()];
        expect!["`adapter.targets` names `mlp.experts.3.up_proj`: routed experts and their router stay as they are, since each expert sees only a few of the rows; `shared_experts` with `gate_proj`, `up_proj` and `down_proj` can be changed"].assert_eq(&refused(AdapterOptions { targets: routed, ..all }));
    }

    #[test]
    fn a_mixer_adapts_its_input_projection_alone() {
        assert_eq!(targets(Family::Mamba2, &["all-linear"]).unwrap(), [Role::SsmIn]);
        expect![
            "`adapter.targets` names `out_proj`, which an adapter of a Mamba-2 cannot change: its fused kernels read those weights past an adapter, and PEFT refuses to load one that has them; `in_proj` can be changed"
        ]
        .assert_eq(&targets(Family::Mamba2, &["in_proj", "out_proj"]).unwrap_err().to_string());
    }

    /// Options of single layers in the words of a recipe, and what PEFT's configuration says of them.
    fn check(names: &[&str], ranks: &[(&str, usize)], alphas: &[(&str, f32)], expected: Expect) {
        let options = AdapterOptions {
            rank: 8,
            alpha: 16.0,
            targets: names.iter().map(|name| (*name).to_owned()).collect(),
            ranks: ranks.iter().map(|(name, rank)| ((*name).to_owned(), *rank)).collect(),
            alphas: alphas.iter().map(|(name, alpha)| ((*name).to_owned(), *alpha)).collect(),
            ..AdapterOptions::default()
        };
        let config = config(Family::Llama);
        let shown = match lora_options(&options, &config) {
            Ok(lora) => {
                let ranks = pattern(&lora, &config, |e| (e.rank != 8).then(|| e.rank.into()));
                let alphas = pattern(&lora, &config, |e| (e.alpha != 16.0).then(|| e.alpha.into()));
                let lines = [Value::from(peft_targets(&lora, &config).modules), ranks.into(), alphas.into()];
                lines.map(|line| line.to_string()).join("\n")
            }
            Err(error) => error.to_string(),
        };
        expected.assert_eq(&shown);
    }

    #[test]
    fn patterns_choose_single_layers() {
        check(
            &["q_proj"],
            &[],
            &[],
            expect![[r#"
            ["q_proj"]
            {}
            {}"#]],
        );
        check(
            &[r"layers\.1[01]\.self_attn\.[qv]_proj"],
            &[],
            &[],
            expect![[r#"
            ["model.layers.10.self_attn.q_proj","model.layers.10.self_attn.v_proj","model.layers.11.self_attn.q_proj","model.layers.11.self_attn.v_proj"]
            {}
            {}"#]],
        );
        check(
            &["q_proj", "down_proj"],
            &[(r"layers\.3\..*", 2), ("down_proj", 8)],
            &[("layers.0.mlp.down_proj", 3.5)],
            expect![[r#"
                ["q_proj","down_proj"]
                {"^model\\.layers\\.3\\.self_attn\\.q_proj":2,"^model\\.layers\\.3\\.mlp\\.down_proj":2}
                {"^model\\.layers\\.0\\.mlp\\.down_proj":3.5}"#]],
        );
    }

    #[test]
    fn a_pattern_that_chooses_nothing_is_refused() {
        check(
            &["q_poj"],
            &[],
            &[],
            expect![
                "`adapter.targets` names `q_poj`, which is neither all-linear nor one of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, nor a regular expression for whole names such as `model.layers.0.self_attn.o_proj`"
            ],
        );
        check(&["q_(proj"], &[], &[], expect!["`adapter.targets` has the pattern `q_(proj`: unclosed group"]);
        check(
            &["q_proj"],
            &[("v_proj", 4)],
            &[],
            expect!["`adapter.ranks` names `v_proj`, which no layer of `adapter.targets` matches"],
        );
        check(
            &["q_proj"],
            &[],
            &[("[", 4.0)],
            expect!["`adapter.alphas` has the pattern `[`: unclosed character class"],
        );
    }
}
