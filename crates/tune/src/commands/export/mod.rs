//! `tune export`: a run (or a base alone) in, one checked GGUF out, or the result in another form.

mod compare;
mod forms;
mod show;

use crate::base_location;
use crate::cli::{Export, Form};
use crate::failure::Failure;
use crate::recipe::{COMPARISON_TOKENS, Recipe};
use crate::run_record;
use crate::terminal::Terminal;
use crate::verifier::EngineVerifier;
use exporter::{
    AdapterSource, Calibration, Figures, ImportanceSource, Limits, Provenance, Reference, Request, Template,
    TypeOverride,
};
use formats::BlockType;
use model::policy::Quant;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use trainer::options::Source;
use trainer::run_dir::RunDir;

/// The context of an expert whose recipe states none.
const DEFAULT_NUM_CTX: usize = 4096;

/// The memory that a result is to fit in where nobody says.
const SMALL_CARD_BYTES: u64 = 8 << 30;

/// Exports a run's adapter merged into its base, or a base model's folder as it is.
pub fn run(arguments: &Export, terminal: &mut Terminal) -> Result<(), Failure> {
    // A misspelt name is found before anything is read.
    let quants = arguments.quant.iter().map(|name| quant(name)).collect::<Result<Vec<_>, _>>()?;
    let request = request(arguments, terminal)?;
    if arguments.form != Form::Gguf {
        return forms::run(arguments, &request, terminal);
    }
    if quants.len() > 1 || arguments.compare {
        let budget = arguments.budget.unwrap_or_else(|| recipe_budget(&arguments.source));
        return compare::run(arguments, &request, (&quants, budget), terminal);
    }
    refuse_to_replace(&request.output.join(request.file_name()), arguments)?;
    one(&request, terminal).map_err(|error| failure(&error, &arguments.source))
}

/// Exports one quantisation.
fn one(request: &Request, terminal: &mut Terminal) -> Result<(), exporter::Error> {
    terminal.row("export", format!("{} as {}", request.name, request.quant.name()));
    let verifier = EngineVerifier::new()
        .map_err(|source| exporter::Error::Engine { action: "be asked to check", source: source.into() })?;
    let result = exporter::export(request, &verifier, &mut |event| {
        show::event(terminal, &event, false);
    });
    terminal.clear_bar();
    let receipt = result?;
    show::warn_of_other_tokenizer(terminal, verifier.prompts());
    show::finished(terminal, request, &receipt);
    Ok(())
}

fn quant(name: &str) -> Result<Quant, Failure> {
    Quant::parse_for_file(name).map_err(|error| {
        let valid = Quant::FILES.iter().map(|quant| quant.name());
        Failure::new(error).did_you_mean(&name.to_lowercase(), valid)
    })
}

fn request(arguments: &Export, terminal: &mut Terminal) -> Result<Request, Failure> {
    let source = &arguments.source;
    if source.join("recipe.toml").is_file() {
        return run_request(arguments, terminal);
    }
    if source.join("config.json").is_file() {
        return base_request(arguments, source.clone(), folder_name(source));
    }
    if source.starts_with("hf.co") {
        return hub_request(arguments, terminal);
    }
    if source.extension().is_some_and(|extension| extension == "gguf") && source.is_file() {
        return base_request(arguments, source.clone(), gguf_name(source));
    }
    Err(Failure::new(format!("{} is neither a run nor a model's folder", source.display())).hint(
        "a run has recipe.toml and adapter/, a model's folder has config.json, a GGUF ends in .gguf, a model of the hub is \
         hf.co/OWNER/NAME",
    ))
}

/// A model of the hub, called by its name there.
fn hub_request(arguments: &Export, terminal: &mut Terminal) -> Result<Request, Failure> {
    let never = AtomicBool::new(false);
    let base = base_location::locate(&arguments.source, None, terminal, &never)?;
    let repository = base.hub.map_or_else(String::new, |hub| hub.repository);
    let mut request = base_request(arguments, base.path, folder_name(Path::new(&repository)))?;
    request.provenance.base_name = Some(repository);
    Ok(request)
}

/// Everything about a run comes from the recipe and the record kept beside it.
fn run_request(arguments: &Export, terminal: &mut Terminal) -> Result<Request, Failure> {
    let run_dir = &arguments.source;
    let recipe_path = run_dir.join("recipe.toml");
    let recipe = Recipe::read(&recipe_path)?;
    let pinned = run_record::hub_base(run_dir)?;
    // Ctrl-C ends the process, which a download survives.
    let never = AtomicBool::new(false);
    let base = base_location::locate(&recipe.model.base, pinned.as_ref(), terminal, &never)?.path;
    let outcome = run_record::finished(run_dir)?;
    let name = recipe.expert.name.clone().unwrap_or_else(|| folder_name(run_dir));
    let output = arguments.out.clone().unwrap_or_else(|| run_dir.join("export"));
    let evaluation = run_record::conversations(&recipe.eval.sources(), recipe.eval.rows)?;
    let figures =
        |figure: Option<trainer::ExactMatch>| figure.map(|f| Figures { n_rows: f.rows, n_exact: f.matched });
    Ok(Request {
        adapters: std::iter::once(Ok(AdapterSource::whole(run_dir.join("adapter"))))
            .chain(arguments.adapters.iter().map(|text| adapter(text)))
            .collect::<Result<_, _>>()?,
        allow_requantising: arguments.allow_requantize,
        output: output.clone(),
        matrix_dir: output,
        quant: quant(arguments.quant.first().unwrap_or(&recipe.export.quant))?,
        types: types(arguments, &recipe.export.types)?,
        importance: importance(
            arguments.imatrix.as_deref().or(recipe.export.imatrix.as_deref()),
            Some((&recipe.data.sources(), recipe.export.imatrix_tokens)),
        )?,
        name,
        tokenizer: base.clone(),
        template: trained_template(run_dir)?,
        num_ctx: recipe.expert.num_ctx.map_or_else(|| default_num_ctx(&base), |n| n as usize),
        system: recipe.expert.system.clone(),
        evaluation,
        reference: Reference {
            base: figures(outcome.base_exact_match),
            adapter: figures(outcome.adapter_exact_match),
        },
        limits: Limits {
            max_exact_drop_points: Some(recipe.export.max_exact_match_drop),
            min_stopped_share: Some(recipe.export.min_ended_answers / 100.0),
            min_retained: Some(recipe.export.min_retained / 100.0),
            max_kl: recipe.export.max_kl,
        },
        comparison_tokens: recipe.export.comparison_tokens,
        provenance: Provenance {
            base_name: Some(recipe.model.base.display().to_string()),
            recipe_blake3: Some(formats::hash::blake3_file(&recipe_path)?),
            dataset_name: recipe.data.sources().first().map(|source| source.path.display().to_string()),
            steps: Some(outcome.steps),
            ..Provenance::default()
        },
        base,
    })
}

/// The template that a run was trained with: its own, where it has one, or else the base's.
fn trained_template(run_dir: &Path) -> Result<Template, Failure> {
    let path = RunDir::new(run_dir).chat_template();
    match path.is_file() {
        true => Ok(Template::Source(std::fs::read_to_string(path)?)),
        false => Ok(Template::FromTokenizer),
    }
}

fn base_request(arguments: &Export, base: PathBuf, name: String) -> Result<Request, Failure> {
    let output = arguments.out.clone().unwrap_or_else(|| Path::new("runs").join(&name).join("export"));
    Ok(Request {
        adapters: arguments.adapters.iter().map(|text| adapter(text)).collect::<Result<_, _>>()?,
        allow_requantising: arguments.allow_requantize,
        output: output.clone(),
        matrix_dir: output,
        quant: quant(arguments.quant.first().map_or("q4_k_m", String::as_str))?,
        types: types(arguments, &[])?,
        importance: importance(arguments.imatrix.as_deref(), None)?,
        comparison_tokens: COMPARISON_TOKENS,
        tokenizer: base.clone(),
        template: Template::FromTokenizer,
        num_ctx: default_num_ctx(&base),
        system: None,
        evaluation: Vec::new(),
        reference: Reference::default(),
        limits: Limits::NONE,
        provenance: Provenance { base_name: Some(name.clone()), ..Provenance::default() },
        name,
        base,
    })
}

/// The types that are asked for, those of the command line first.
fn types(arguments: &Export, of_recipe: &[(String, String)]) -> Result<Vec<TypeOverride>, Failure> {
    let of_line = arguments.types.iter().map(|text| {
        text.rsplit_once('=').ok_or_else(|| {
            Failure::new(format!("`{text}` gives no tensor a type")).hint("write it as `ffn_down=q6_k`")
        })
    });
    let of_recipe = of_recipe.iter().map(|(pattern, ty)| Ok((pattern.as_str(), ty.as_str())));
    let asked = of_line.chain(of_recipe).map(|asked| {
        let (pattern, name) = asked?;
        let ty = BlockType::from_name(name).ok_or_else(|| {
            let valid: Vec<String> = BlockType::ALL.iter().map(|ty| ty.name().to_lowercase()).collect();
            Failure::new(format!("unknown type `{name}` (valid: {})", valid.join(", ")))
                .did_you_mean(&name.to_lowercase(), valid.iter().map(String::as_str))
        })?;
        Ok(TypeOverride { pattern: pattern.to_owned(), ty })
    });
    asked.collect()
}

/// Rows of the training data of which as many are measured as the tokens allow.
const CALIBRATION_ROWS: usize = 2048;

/// Where the importance matrix comes from, by the word that asks for it; `data` are a run's training files, and how many
/// of their tokens are measured.
fn importance(asked: Option<&Path>, data: Option<(&[Source], usize)>) -> Result<ImportanceSource, Failure> {
    let Some(asked) = asked else { return Ok(ImportanceSource::None) };
    match (asked.to_str(), data) {
        (Some("off"), _) => Ok(ImportanceSource::None),
        (Some("general"), _) => Ok(ImportanceSource::Measured(Calibration::default())),
        (Some("train"), Some((sources, most_tokens))) => {
            let (conversations, texts) = run_record::sample(sources, CALIBRATION_ROWS)?;
            let dataset =
                sources.iter().map(|source| source.path.display().to_string()).collect::<Vec<_>>().join(", ");
            Ok(ImportanceSource::Measured(Calibration { dataset, conversations, texts, most_tokens }))
        }
        (Some("train"), None) => Err(Failure::new("a base has no training data to measure importance on")
            .hint("measure it on the general text with `--imatrix general`, or name a file")),
        _ if asked.is_file() => Ok(ImportanceSource::File(asked.to_owned())),
        _ => Err(Failure::new(format!("there is no importance matrix {}", asked.display()))
            .hint("it is `train`, `general`, `off` or the path of an imatrix.gguf")),
    }
}

/// A folder's whole name: what follows a point in `Qwen3-0.6B` is no extension.
fn folder_name(dir: &Path) -> String {
    dir.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned())
}

/// A GGUF's name without its type, which the export's own follows.
fn gguf_name(path: &Path) -> String {
    let stem = path.file_stem().map_or_else(|| "model".into(), |stem| stem.to_string_lossy().into_owned());
    let is_type = |end: &str| Quant::FILES.iter().any(|quant| quant.name().eq_ignore_ascii_case(end));
    let cut = stem.rsplit_once(['-', '.']).filter(|(name, end)| !name.is_empty() && is_type(end));
    cut.map_or_else(|| stem.clone(), |(name, _)| name.to_owned())
}

/// An adapter of the command line: a run's, or one in PEFT's layout, all of it where no weight is given.
fn adapter(text: &str) -> Result<AdapterSource, Failure> {
    let weighted = text.rsplit_once('=').and_then(|(dir, weight)| Some((dir, weight.parse::<f32>().ok()?)));
    let (dir, weight) = weighted.unwrap_or((text, 1.0));
    let dir = Path::new(dir);
    let places = [dir.join("adapter"), dir.to_owned()];
    match places.into_iter().find(|dir| dir.join("adapter_config.json").is_file()) {
        Some(dir) => Ok(AdapterSource { dir, weight }),
        None => Err(Failure::new(format!("{} is no adapter and no run that has one", dir.display()))
            .hint("an adapter has adapter_config.json; a weight is written as DIR=0.5")),
    }
}

/// What the run was to fit in, or a small card.
fn recipe_budget(source: &Path) -> u64 {
    let recipe = Recipe::read(&source.join("recipe.toml"));
    recipe.map_or(SMALL_CARD_BYTES, |recipe| recipe.budget.memory)
}

/// Never more than the base was made for, which the exporter would refuse.
fn default_num_ctx(base: &Path) -> usize {
    exporter::max_positions(base).map_or(DEFAULT_NUM_CTX, |limit| limit.min(DEFAULT_NUM_CTX))
}

fn refuse_to_replace(file: &Path, arguments: &Export) -> Result<(), Failure> {
    if file.exists() && !arguments.force {
        return Err(Failure::new(format!("{} is there already", file.display()))
            .hint("replace it with --force, or write elsewhere with --out"));
    }
    Ok(())
}

fn failure(error: &exporter::Error, source: &Path) -> Failure {
    let failure = Failure::new(error);
    match error.hint() {
        Some(hint) => failure.hint(hint),
        None if source.join("recipe.toml").is_file() => {
            failure.hint("the run and its adapter are as they were")
        }
        None => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::{adapter, gguf_name};
    use std::path::Path;

    #[test]
    fn a_gguf_is_called_by_its_model() {
        let name = |file: &str| gguf_name(Path::new(file));
        assert_eq!(name("models/Qwen3-0.6B-BF16.gguf"), "Qwen3-0.6B");
        assert_eq!(name("tiny.Q4_K_M.gguf"), "tiny");
        assert_eq!(name("Qwen3-0.6B.gguf"), "Qwen3-0.6B");
        assert_eq!(name("f16.gguf"), "f16");
    }

    #[test]
    fn an_adapter_has_a_weight_where_one_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("a=b");
        std::fs::create_dir_all(run.join("adapter")).unwrap();
        std::fs::write(run.join("adapter/adapter_config.json"), "{}").unwrap();
        let read = |text: String| adapter(&text).map(|found| (found.dir, found.weight)).ok();
        let shown = run.display();
        assert_eq!(read(format!("{shown}")), Some((run.join("adapter"), 1.0)));
        assert_eq!(read(format!("{shown}/adapter=-0.5")), Some((run.join("adapter"), -0.5)));
        assert_eq!(read(format!("{shown}/nothing")), None);
    }
}
