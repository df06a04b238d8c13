//! What `tune eval` and `tune chat` are asked about: a run, a recipe, an adapter's folder, a base's folder or a GGUF.

use crate::base_location;
use crate::cache_dir::cache_dir;
use crate::failure::Failure;
use crate::recipe::{BudgetTable, LEAST_KEPT_BYTES, LEAST_KEPT_DATA_BYTES, Recipe};
use crate::run_record;
use crate::terminal::Terminal;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use trainer::options::{BudgetOptions, ModelOptions};
use trainer::run_dir::RunDir;
use trainer::{CacheOptions, Options, Start};

/// What was found.
pub struct Asked {
    /// Base, budget and data.
    pub options: Options,
    /// The recipe, where there is one.
    pub recipe: Option<Recipe>,
    /// The adapter's folder.
    pub adapter: Option<PathBuf>,
    /// Exported files.
    pub exports: Vec<PathBuf>,
}

/// Finds out what a path is; `base` is an adapter's base, `budget` another budget than the recipe's.
pub fn find(
    path: &Path,
    base: Option<&Path>,
    budget: Option<u64>,
    terminal: &mut Terminal,
    cancel: &AtomicBool,
) -> Result<Asked, Failure> {
    let mut asked = of_path(path, base, terminal, cancel)?;
    if let Some(bytes) = budget {
        let offload = asked.options.budget.offload;
        asked.options.budget = BudgetOptions { memory_bytes: Some(bytes), reserve_bytes: 0, offload };
    }
    Ok(asked)
}

fn of_path(
    path: &Path,
    base: Option<&Path>,
    terminal: &mut Terminal,
    cancel: &AtomicBool,
) -> Result<Asked, Failure> {
    if path.join("recipe.toml").is_file() {
        return of_run(&path.join("recipe.toml"), path, terminal, cancel);
    }
    if path.extension().is_some_and(|extension| extension == "toml") && path.is_file() {
        return of_run(path, &Path::new("runs").join(Recipe::run_name(path)), terminal, cancel);
    }
    if path.join("adapter_config.json").is_file() {
        let hint = "name it with --base; `base_path` in tune.json and `base_model_name_or_path` in adapter_config.json say \
                    which it was";
        let base =
            base.ok_or_else(|| Failure::new("an adapter needs the base it was trained on").hint(hint))?;
        let mut asked = of_base(base, terminal, cancel)?;
        asked.adapter = Some(path.to_owned());
        return Ok(asked);
    }
    if path.is_dir() && !path.join("config.json").is_file() {
        return Err(Failure::new(format!("{} is no run, no adapter and no model's folder", path.display())).hint(
            "a run has recipe.toml and adapter/, an adapter has adapter_config.json, a model's folder has config.json, a \
             GGUF ends in .gguf",
        ));
    }
    of_base(path, terminal, cancel)
}

/// A run; of a recipe that was not trained yet, its base alone.
fn of_run(
    recipe_path: &Path,
    run_dir: &Path,
    terminal: &mut Terminal,
    cancel: &AtomicBool,
) -> Result<Asked, Failure> {
    let recipe = Recipe::read(recipe_path)?;
    let mut options = recipe.options(run_dir.to_owned(), Start::Resume)?;
    let pinned = run_record::hub_base(run_dir)?;
    let base = base_location::locate(&recipe.model.base, pinned.as_ref(), terminal, cancel)?;
    (options.model.base, options.model.hub) = (base.path, base.hub);
    let adapter = RunDir::new(run_dir).adapter();
    Ok(Asked {
        options,
        recipe: Some(recipe),
        adapter: adapter.is_dir().then_some(adapter),
        exports: exports(&run_dir.join("export")),
    })
}

fn of_base(path: &Path, terminal: &mut Terminal, cancel: &AtomicBool) -> Result<Asked, Failure> {
    let base = base_location::locate(path, None, terminal, cancel)?;
    let budget = BudgetTable::default();
    Ok(Asked {
        options: Options {
            model: ModelOptions { base: base.path, hub: base.hub, ..ModelOptions::default() },
            budget: BudgetOptions {
                memory_bytes: Some(budget.memory),
                reserve_bytes: budget.reserve,
                offload: budget.offload,
            },
            cache: CacheOptions {
                dir: cache_dir(),
                least_bytes: LEAST_KEPT_BYTES,
                least_data_bytes: LEAST_KEPT_DATA_BYTES,
            },
            ..Options::default()
        },
        recipe: None,
        adapter: None,
        exports: Vec::new(),
    })
}

/// The GGUFs of an export, and of its folders where several quantisations were made.
fn exports(dir: &Path) -> Vec<PathBuf> {
    let files = |dir: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    };
    let inside = files(dir);
    let nested = inside.iter().filter(|path| path.is_dir()).flat_map(|dir| files(dir));
    let mut found: Vec<PathBuf> =
        inside.iter().cloned().chain(nested).filter(|path| is_merged(path)).collect();
    found.sort();
    found
}

/// Whether it is a whole model: an adapter's GGUF and an importance matrix are none.
fn is_merged(path: &Path) -> bool {
    let is_gguf = path.is_file() && path.extension().is_some_and(|extension| extension == "gguf");
    is_gguf
        && formats::gguf::Reader::open(path)
            .is_ok_and(|reader| reader.metadata().get_str("general.type").is_none_or(|kind| kind == "model"))
}
