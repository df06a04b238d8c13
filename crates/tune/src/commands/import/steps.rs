//! What several tools say in the same words, those of Hugging Face's trainer: rates, schedules, lengths, optimisers.

use super::draft::{Draft, Fate};
use super::source::Setting;
use crate::recipe_text::Value;

/// How many rows there are, where the data is here, and how many make a step.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    pub rows: Option<u64>,
    pub rows_per_step: u64,
}

impl Sizes {
    /// Optimiser steps of an epoch.
    fn steps(&self) -> Option<u64> {
        Some(self.rows?.div_ceil(self.rows_per_step.max(1)).max(1))
    }
}

/// Rows, unless they are packed: how many sequences they make is known only with the base's tokenizer.
pub fn unpacked(draft: &Draft, theirs: &str, rows: Option<u64>) -> Option<u64> {
    let is_packed = draft.source.peek(theirs).is_some_and(|setting| setting.switch() == Some(true));
    rows.filter(|_| !is_packed)
}

/// `linear`, `cosine` and so on. `kwargs` is the key whose maps hold further arguments.
pub fn scheduler(draft: &mut Draft, theirs: &str, kwargs: &str, default: &str) {
    let Some(setting) = draft.source.take(theirs) else {
        draft.default(theirs, "train.scheduler", default.into());
        return;
    };
    let name = setting.text().unwrap_or_default();
    let same = match name.as_str() {
        "linear" => Some("linear"),
        "cosine" | "cosine_with_min_lr" => Some("cosine"),
        "constant" | "constant_with_warmup" => Some("constant"),
        "inverse_sqrt" => Some("inverse_sqrt"),
        "warmup_stable_decay" => Some("wsd"),
        _ => None,
    };
    match same {
        Some(ours) => draft.carry(&setting, "train.scheduler", ours.into()),
        None => draft.change(
            &setting,
            "train.scheduler",
            "cosine".into(),
            "there is no such schedule here; a cosine is the nearest",
        ),
    }
    least_rate(draft, kwargs);
}

fn least_rate(draft: &mut Draft, kwargs: &str) {
    draft.number(&format!("{kwargs}.min_lr"), "train.min_learning_rate");
    if let Some(setting) = draft.source.take(&format!("{kwargs}.min_lr_rate")) {
        share_of_rate(draft, &setting);
    }
}

/// A least rate that is given as a share of the highest.
pub fn share_of_rate(draft: &mut Draft, setting: &Setting) {
    let rate = match draft.recipe.get("train.learning_rate") {
        Some(Value::Number(rate)) => *rate,
        Some(Value::Whole(rate)) => *rate as f64,
        _ => 2e-4,
    };
    match setting.number() {
        Some(share) => {
            draft.carry(setting, "train.min_learning_rate", Value::Number(significant(rate * share)))
        }
        None => draft.note(Fate::Left, setting, "a number was expected"),
    }
}

/// Without the last digits, which a product of two decimal numbers makes up.
pub fn significant(number: f64) -> f64 {
    format!("{number:.6e}").parse().unwrap_or(number)
}

/// Steps, or a ratio, of warm-up; steps count where both are given.
pub fn warmup(draft: &mut Draft, steps: &str, ratio: &str, default: Option<f64>) {
    let by_steps = draft.source.take(steps).filter(|setting| setting.number() != Some(0.0));
    let by_ratio = draft.source.take(ratio);
    match (by_steps, by_ratio) {
        (Some(setting), beside) => {
            match setting.value().filter(|_| setting.number().is_some_and(|number| number > 0.0)) {
                // Below one it is a ratio there too.
                Some(value) => draft.carry(&setting, "train.warmup", value),
                None => draft.note(Fate::Left, &setting, "a number of steps was expected"),
            }
            if let Some(beside) = beside.filter(|setting| setting.number() != Some(0.0)) {
                draft.note(Fate::Left, &beside, format!("`{steps}` counts where both are given"));
            }
        }
        (None, Some(setting)) => match setting.number() {
            Some(share) if (0.0..1.0).contains(&share) => {
                draft.carry(&setting, "train.warmup", Value::Number(share));
            }
            _ => draft.note(Fate::Left, &setting, "a share of all steps was expected"),
        },
        (None, None) => {
            if let Some(default) = default {
                draft.default(ratio, "train.warmup", Value::Number(default));
            }
        }
    }
}

/// Epochs or steps; steps count where both are given, unless they are zero or below.
pub fn length(draft: &mut Draft, epochs: &str, steps: &str, default: u64) {
    let by_steps = draft.source.take(steps).filter(|setting| setting.number().is_none_or(|n| n > 0.0));
    let by_epochs = draft.source.take(epochs);
    if let Some(setting) = by_steps {
        match setting.whole() {
            Some(whole) => draft.carry(&setting, "train.max_steps", Value::Whole(whole)),
            None => draft.note(Fate::Left, &setting, "a number of steps was expected"),
        }
        if let Some(beside) = by_epochs {
            draft.note(Fate::Left, &beside, format!("`{steps}` counts where both are given"));
        }
        return;
    }
    let Some(setting) = by_epochs else {
        draft.default(epochs, "train.epochs", Value::Whole(default));
        return;
    };
    match (setting.whole(), setting.number()) {
        (Some(whole @ 1..), _) => draft.carry(&setting, "train.epochs", Value::Whole(whole)),
        (_, Some(number)) if number > 0.0 => {
            let whole = number.ceil();
            let meaning =
                format!("an epoch is passed whole here: {whole} instead; set `max_steps` for a part of one");
            draft.change(&setting, "train.epochs", Value::Whole(whole as u64), meaning);
        }
        _ => draft.note(Fate::Left, &setting, "a number of epochs was expected"),
    }
}

/// AdamW in its forms; what is no AdamW is trained with it all the same, and said.
pub fn optimiser(draft: &mut Draft, theirs: &str) {
    let Some(setting) = draft.source.take(theirs) else { return };
    let name = setting.text().unwrap_or_default();
    let is_eight_bits = ["8bit", "8Bit"].iter().any(|word| name.contains(word));
    let is_adamw = name.to_ascii_lowercase().contains("adam")
        && !["adamini", "adam_mini", "ademamix"].contains(&name.as_str());
    match (is_adamw, is_eight_bits) {
        (true, true) => draft.carry(&setting, "train.moments", "int8".into()),
        (true, false) => draft.carry(&setting, "train.moments", "f32".into()),
        (false, _) => {
            let moments = if is_eight_bits { "int8" } else { "f32" };
            let meaning = "training is by AdamW here; a rate that suits another optimiser may not suit it";
            draft.change(&setting, "train.moments", moments.into(), meaning);
        }
    }
}

/// Steps between two evaluations or checkpoints: a number, a share of all steps, or so many an epoch.
pub fn every(draft: &mut Draft, (steps, per_epoch, strategy): (&str, &str, &str), ours: &str, sizes: Sizes) {
    let by_strategy = draft.source.take(strategy);
    let word = by_strategy.as_ref().and_then(Setting::text).unwrap_or_default();
    if let Some(setting) = draft.source.take(steps).filter(|setting| setting.number() != Some(0.0)) {
        match (setting.whole(), setting.number()) {
            _ if word == "no" || word == "epoch" => {
                draft.note(Fate::Left, &setting, format!("`{strategy}: {word}` counts"));
            }
            (Some(whole @ 1..), _) => return draft.carry(&setting, ours, Value::Whole(whole)),
            (_, Some(share)) if share > 0.0 && share < 1.0 => {
                return part_of_run(draft, &setting, share, ours, sizes);
            }
            _ => draft.note(Fate::Left, &setting, "a number of steps was expected"),
        }
    }
    let per_epoch = draft.source.take(per_epoch);
    let times = per_epoch.as_ref().and_then(Setting::whole).filter(|&times| times > 0);
    match (per_epoch.or(by_strategy), times.or((word == "epoch").then_some(1)), sizes.steps()) {
        (Some(setting), Some(times), Some(steps)) => {
            let value = (steps / times).max(1);
            draft.carry(&setting, ours, Value::Whole(value));
        }
        (Some(setting), Some(_), None) => {
            let meaning = format!(
                "how many steps an epoch has is not known before the rows are encoded: `{ours}` has its default"
            );
            draft.note(Fate::Left, &setting, meaning);
        }
        (Some(setting), None, _) if word == "no" => {
            draft.change(&setting, ours, Value::Whole(0), "only before the first step and after the last");
        }
        (Some(setting), None, _) if word == "steps" => {
            draft.note(Fate::Idle, &setting, "what a number of steps says anyway");
        }
        (Some(setting), None, _) => draft.note(Fate::Left, &setting, "not understood"),
        (None, ..) => {}
    }
}

fn part_of_run(draft: &mut Draft, setting: &Setting, share: f64, ours: &str, sizes: Sizes) {
    let epochs = match draft.recipe.get("train.epochs") {
        Some(Value::Whole(epochs)) => *epochs,
        _ => 1,
    };
    let total = match draft.recipe.get("train.max_steps") {
        Some(Value::Whole(steps)) => Some(*steps),
        _ => sizes.steps().map(|steps| steps * epochs),
    };
    match total {
        Some(total) => draft.carry(setting, ours, Value::Whole(((total as f64 * share) as u64).max(1))),
        None => {
            let meaning = format!(
                "how many steps that are is not known before the rows are encoded: `{ours}` has its default"
            );
            draft.note(Fate::Left, setting, meaning);
        }
    }
}

/// A share of the rows for validation, or a number of them.
pub fn validation(draft: &mut Draft, theirs: &str, rows: Option<u64>) {
    let Some(setting) = draft.source.take(theirs) else {
        draft.default(theirs, "data.val_split", Value::Number(0.0));
        return;
    };
    match (setting.number(), rows) {
        (Some(share), _) if (0.0..=0.5).contains(&share) => {
            draft.carry(&setting, "data.val_split", Value::Number(share));
        }
        (Some(count), Some(rows)) if count >= 1.0 => {
            let share = significant((count / rows.max(1) as f64).min(0.5));
            let meaning = format!("{count} of {rows} rows; here it is a share");
            draft.change(&setting, "data.val_split", Value::Number(share), meaning);
        }
        (Some(count), None) if count >= 1.0 => {
            let meaning =
                "a number of rows, and how many there are is not known: a share, the default, instead";
            draft.change(&setting, "data.val_split", Value::Number(0.05), meaning);
        }
        (Some(_), _) => {
            let meaning = "at most half of the rows can be set aside";
            draft.change(&setting, "data.val_split", Value::Number(0.5), meaning);
        }
        (None, _) => draft.note(Fate::Left, &setting, "a share or a number of rows was expected"),
    }
}

/// Event files for TensorBoard, where the setting asks for them: a switch, a name, or a list of names.
pub fn tensorboard(draft: &mut Draft, theirs: &str) {
    let Some(setting) = draft.source.take(theirs) else { return };
    let names = setting.texts().unwrap_or_default();
    let is_asked_for = setting.switch() == Some(true)
        || names.iter().any(|name| ["all", "tensorboard"].contains(&name.as_str()));
    match is_asked_for {
        true => draft.carry(&setting, "train.tensorboard", Value::Switch(true)),
        false => {
            let meaning = "every step is in the run's metrics.jsonl; nothing is sent anywhere";
            draft.note(Fate::Idle, &setting, meaning);
        }
    }
}

/// The keys that tools have from Hugging Face's trainer; each calls the patience of an early stop otherwise.
pub fn of_hugging_face(draft: &mut Draft, patience: &str) {
    draft.number("weight_decay", "train.weight_decay");
    draft.number("max_grad_norm", "train.max_grad_norm");
    draft.whole("seed", "train.seed");
    draft.whole("save_total_limit", "train.keep_checkpoints");
    draft.whole(patience, "train.early_stopping");
    draft.where_on("load_best_model_at_end", "train.result", "best".into());
    for key in ["adam_beta1", "adam_beta2", "adam_epsilon"] {
        super::fixed_constant(draft, key);
    }
}
