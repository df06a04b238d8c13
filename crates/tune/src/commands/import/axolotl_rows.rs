//! axolotl's data sets: their files, what keys of their rows are called, and whose turns are learnt.

use super::data;
use super::draft::{Draft, Fate};
use super::source::{Setting, get};
use super::yaml::{Entry, Node};
use crate::recipe_text::{DataFile, Value};

/// Keys that name a key of the rows, and ours for it. Those behind a dot stand in a map below the data set.
const FIELDS: &[(&str, &str)] = &[
    ("field", "text"),
    ("field_messages", "messages"),
    ("field_system", "system"),
    ("field_tools", "tools"),
    ("field_instruction", "instruction"),
    ("field_input", "input"),
    ("field_output", "output"),
    ("field_prompt", "prompt"),
    ("field_chosen", "chosen"),
    ("field_rejected", "rejected"),
    ("message_field_role", "role"),
    ("message_field_content", "content"),
    ("message_field_training", "weight"),
    ("message_property_mappings.role", "role"),
    ("message_property_mappings.content", "content"),
    ("type.field_system", "system"),
    ("type.field_instruction", "instruction"),
    ("type.field_input", "input"),
    ("type.field_output", "output"),
    ("type.field_prompt", "prompt"),
    ("type.field_chosen", "chosen"),
    ("type.field_rejected", "rejected"),
];

/// What is said of whose turns are learnt: of each data set, nothing where it says nothing.
pub struct Roles(Vec<Option<Setting>>);

/// Sets the training files; how many rows they have, and whose turns are learnt.
pub fn train(draft: &mut Draft) -> (Option<u64>, Roles) {
    let key = if draft.source.has("datasets") { "datasets" } else { "pretraining_dataset" };
    let Some(setting) = draft.source.take(key) else {
        data::none_named(draft, "datasets");
        return (None, Roles(Vec::new()));
    };
    let (files, roles) = data_sets(draft, &setting);
    if files.is_empty() {
        data::none_named(draft, "datasets");
        return (None, Roles(Vec::new()));
    }
    (data::train_on_files(draft, &setting, files), Roles(roles))
}

/// Sets the validation files.
pub fn validation(draft: &mut Draft) {
    let Some(setting) = draft.source.take("test_datasets") else { return };
    let (files, _) = data_sets(draft, &setting);
    data::validate_on(draft, &setting, files);
}

/// Sets whose turns are learnt, where the data sets agree.
pub fn learnt_roles(draft: &mut Draft, Roles(sets): Roles) {
    let named = |set: &Option<Setting>| {
        set.as_ref().map_or_else(|| vec!["assistant".to_owned()], |setting| role_names(&setting.node))
    };
    let Some(first) = sets.first().map(named) else { return };
    let agree = sets.iter().all(|set| named(set) == first);
    for setting in sets.iter().flatten() {
        match agree {
            true if first == ["assistant"] => draft.note(Fate::Idle, setting, "so it is here in any case"),
            true => draft.carry(setting, "data.train_on", Value::List(first.clone())),
            false => {
                let meaning =
                    "what is learnt is set for all rows alike, by `data.train_on`, and the data sets differ";
                draft.note(Fate::Left, setting, meaning);
            }
        }
    }
}

/// Roles by the names that messages have here.
fn role_names(node: &Node) -> Vec<String> {
    let Node::List(items) = node else { return Vec::new() };
    let ours = |name: &str| match name {
        "gpt" | "model" => "assistant".to_owned(),
        "human" => "user".to_owned(),
        other => other.to_owned(),
    };
    items
        .iter()
        .filter_map(|item| match item {
            Node::Text(name) => Some(ours(name)),
            _ => None,
        })
        .collect()
}

/// The files of all data sets of a list, and what each says of whose turns are learnt.
fn data_sets(draft: &mut Draft, setting: &Setting) -> (Vec<DataFile>, Vec<Option<Setting>>) {
    let Node::List(items) = &setting.node else {
        draft.note(Fate::Left, setting, "a list of data sets was expected");
        return (Vec::new(), Vec::new());
    };
    let (mut files, mut roles) = (Vec::new(), Vec::new());
    for item in items {
        if let Node::Map(entries) = item {
            let (fields, learnt) = data_set(draft, setting, entries);
            files.extend(files_of(entries).into_iter().map(|path| DataFile { path, fields: fields.clone() }));
            roles.push(learnt);
        }
    }
    (files, roles)
}

fn files_of(entries: &[Entry]) -> Vec<String> {
    let texts = |key| match get(entries, key) {
        Some(Node::Text(text)) => vec![text.clone()],
        Some(Node::List(items)) => items
            .iter()
            .filter_map(|item| if let Node::Text(t) = item { Some(t.clone()) } else { None })
            .collect(),
        _ => Vec::new(),
    };
    let (files, path) = (texts("data_files"), texts("path"));
    if files.is_empty() || path.iter().any(|path| path.ends_with(".jsonl")) { path } else { files }
}

type Fields = Vec<(&'static str, String)>;

/// What a data set says of its rows' keys and of whose turns are learnt; the rest is named.
fn data_set(draft: &mut Draft, setting: &Setting, entries: &[Entry]) -> (Fields, Option<Setting>) {
    let (mut fields, mut roles) = (Fields::new(), None);
    for entry in entries {
        match (entry.key.as_str(), &entry.node) {
            (key @ ("message_property_mappings" | "type"), Node::Map(inner)) => {
                for below in inner {
                    let key = format!("{key}.{}", below.key);
                    part(draft, setting, (&key, below), (&mut fields, &mut roles));
                }
            }
            (key, _) => part(draft, setting, (key, entry), (&mut fields, &mut roles)),
        }
    }
    // Messages are told by these keys in any case.
    let of_messages = |name: &str| ["messages", "conversations"].contains(&name);
    fields.retain(|(ours, theirs)| ours != theirs && !(*ours == "messages" && of_messages(theirs)));
    let says = |ours, theirs: &str| fields.iter().any(|(our, their)| *our == ours && their == theirs);
    if says("role", "from") && says("content", "value") {
        fields.retain(|(ours, _)| !["role", "content"].contains(ours));
    }
    fields.dedup();
    (fields, roles)
}

fn part(
    draft: &mut Draft,
    setting: &Setting,
    (key, entry): (&str, &Entry),
    (fields, roles): (&mut Fields, &mut Option<Setting>),
) {
    let part = Setting::at(&format!("{}.{key}", setting.key), entry.line, entry.node.clone());
    let field = FIELDS.iter().find(|(theirs, _)| *theirs == key);
    let meaning = match (key, &entry.node) {
        (_, Node::Null)
        | ("path" | "data_files" | "ds_type" | "split" | "name" | "revision" | "trust_remote_code", _) => {
            return;
        }
        (_, Node::Text(name)) if let Some((_, ours)) = field => {
            if !fields.contains(&(*ours, name.clone())) {
                fields.push((*ours, name.clone()));
            }
            return;
        }
        ("type", Node::Text(kind)) if is_known_kind(kind) => return,
        ("type", _) => "how a row is put into words is told by its own keys, and by the base's chat template",
        ("chat_template", Node::Text(name)) if name.starts_with("tokenizer_default") => return,
        ("chat_template" | "chat_template_jinja", _) => "the base's own chat template is used",
        ("roles_to_train", Node::List(_)) => {
            *roles = Some(part);
            return;
        }
        ("train_on_eos" | "train_on_eot", Node::Text(which)) if which == "turn" => return,
        ("train_on_eos" | "train_on_eot", _) => {
            "the end of each turn that is learnt is learnt with it, and no other"
        }
        ("roles" | "roles_to_train", _) => {
            "roles have their usual names here: human and user, gpt and assistant, system, tool"
        }
        ("drop_system_message", _) => "system messages stay: leave them out of the rows",
        ("message_field_training_detail", _) => {
            "a message counts as a whole, by its weight: no part of it is left out"
        }
        (key, _) if key.starts_with("type.") => {
            "the base's chat template puts a row into words, in training and wherever the result is run"
        }
        (key, _) if key.starts_with("message_property_mappings") || field.is_some() => {
            "not the name of a key that is read here"
        }
        _ => return draft.note(Fate::Unknown, &part, "not known for a data set"),
    };
    draft.note(Fate::Left, &part, meaning);
}

/// Kinds of rows that are recognised by their keys.
fn is_known_kind(kind: &str) -> bool {
    let first = kind.split('.').next().unwrap_or_default();
    ["chat_template", "alpaca", "completion", "sharegpt", "pretrain", "input_output"].contains(&first)
        && kind != "input_output"
}
