//! Whether a server stored what it was sent, and renders what the model was trained on.
//!
//! A generation that keeps files names the digest of the stored one, which is that of the file or not. One that writes
//! them anew has a digest of its own: there the tensors are compared, and what the metadata says of the model and its
//! vocabulary.

use std::collections::BTreeMap;

use formats::{Observer, hash};
use serde_json::{Value, json};
use text::{GenerationPrompt, Message};

use super::api::{Piece, Shown, StoredTensor};
use super::generation::Generation;
use super::register::{Plan, RegisterEvent};
use super::server::{Detail, OllamaServer};
use crate::engine::remote::Poll;
use crate::{Error, Result};

/// Compares the stored model with the file.
///
/// # Errors
/// [`Error::OnServer`] with the first difference.
pub(super) fn stored(
    server: &OllamaServer,
    name: &str,
    plan: &Plan,
    poll: &mut Poll<'_>,
    observer: &mut dyn Observer<RegisterEvent>,
) -> Result<()> {
    let shown = server.show_while(name, Detail::Lists, poll)?;
    let what = match plan.generation {
        Generation::Keeps | Generation::Wraps => same_digest(&shown, plan),
        Generation::Rewrites => same_content(&shown, plan),
    };
    let what = what.and_then(|what| same_settings(&shown, plan).map(|()| what));
    let what = what.map_err(|reason| wrong(server, plan, reason))?;
    observer.observe(RegisterEvent::Checked { what });
    Ok(())
}

fn wrong(server: &OllamaServer, plan: &Plan, reason: String) -> Error {
    Error::OnServer {
        expert: plan.expert.clone(),
        server: server.url(),
        reason: format!("what the server stored is not what it was sent: {reason}"),
        hint: "it was deleted again; the embedded engine serves the file as it is".to_owned(),
    }
}

fn same_digest(shown: &Shown, plan: &Plan) -> std::result::Result<String, String> {
    let expected = hash::sha256_file(plan.file.path()).map_err(|error| error.to_string())?;
    match shown.stored_file() {
        Some(actual) if actual == expected => Ok("the stored file, byte for byte".to_owned()),
        Some(actual) => Err(format!("it has sha256 {actual}, the file has {expected}")),
        None => Err("it does not name the stored file".to_owned()),
    }
}

fn same_content(shown: &Shown, plan: &Plan) -> std::result::Result<String, String> {
    let stored = shown.tensors.as_deref().unwrap_or_default();
    let sent: Vec<StoredTensor> = plan
        .file
        .tensors()
        .iter()
        .map(|tensor| StoredTensor {
            name: tensor.name.clone(),
            ty: tensor.ty.name().to_owned(),
            shape: tensor.shape.clone(),
        })
        .collect();
    same_tensors(&sent, stored)?;
    same_metadata(&shown.model_info, plan)?;
    Ok(format!("{} tensors by name, type and shape, and the vocabulary", stored.len()))
}

/// A server may list tensors in another order, and a shape from either end.
fn same_tensors(sent: &[StoredTensor], stored: &[StoredTensor]) -> std::result::Result<(), String> {
    let stored: BTreeMap<&str, &StoredTensor> =
        stored.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    for tensor in sent {
        let Some(there) = stored.get(tensor.name.as_str()) else {
            return Err(format!("tensor `{}` is not there", tensor.name));
        };
        let reversed: Vec<u64> = tensor.shape.iter().rev().copied().collect();
        let is_same_shape =
            trimmed(&there.shape) == trimmed(&tensor.shape) || trimmed(&there.shape) == trimmed(&reversed);
        if !there.ty.eq_ignore_ascii_case(&tensor.ty) || !is_same_shape {
            return Err(format!(
                "tensor `{}` is {} {:?}, in the file {} {:?}",
                tensor.name, there.ty, there.shape, tensor.ty, tensor.shape
            ));
        }
    }
    if stored.len() == sent.len() {
        return Ok(());
    }
    Err(format!("it has {} tensors, the file {}", stored.len(), sent.len()))
}

/// A shape without dimensions of one at either end.
fn trimmed(shape: &[u64]) -> &[u64] {
    let end = shape.iter().rposition(|&n| n != 1).map_or(0, |last| last + 1);
    let begin = shape[..end].iter().position(|&n| n != 1).unwrap_or(end);
    &shape[begin..end]
}

fn same_metadata(stored: &serde_json::Map<String, Value>, plan: &Plan) -> std::result::Result<(), String> {
    let metadata = plan.file.metadata();
    let architecture = metadata.get_str("general.architecture").unwrap_or_default();
    if stored.get("general.architecture").and_then(Value::as_str) != Some(architecture) {
        return Err(format!("its architecture is not {architecture}"));
    }
    for key in ["block_count", "embedding_length", "attention.head_count", "context_length"] {
        let key = format!("{architecture}.{key}");
        let Some(expected) = metadata.get_u64(&key) else { continue };
        // A number of a JSON answer may have become a float on the way.
        let actual = stored.get(&key).and_then(|value| value.as_u64().or(value.as_f64().map(|v| v as u64)));
        if actual != Some(expected) {
            return Err(format!("`{key}` is {actual:?}, in the file {expected}"));
        }
    }
    let Some(tokens) = metadata.get_strings("tokenizer.ggml.tokens") else { return Ok(()) };
    let listed = stored.get("tokenizer.ggml.tokens").and_then(Value::as_array);
    let Some(listed) = listed.filter(|listed| !listed.is_empty()) else {
        return Err("it does not show its vocabulary".to_owned());
    };
    let differs = tokens.iter().zip(listed).position(|(token, there)| there.as_str() != Some(token));
    match differs {
        _ if listed.len() != tokens.len() => {
            Err(format!("it has {} tokens, the file {}", listed.len(), tokens.len()))
        }
        Some(at) => {
            Err(format!("token {at} is {}, in the file `{}`", listed[at], tokens.get(at).unwrap_or_default()))
        }
        None => Ok(()),
    }
}

fn same_settings(shown: &Shown, plan: &Plan) -> std::result::Result<(), String> {
    for (key, value) in &plan.parameters {
        let expected: Vec<String> = match value {
            Value::Array(list) => list.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            Value::Number(number) => {
                if shown.number(key) == number.as_i64() {
                    continue;
                }
                vec![number.to_string()]
            }
            other => vec![other.to_string()],
        };
        let actual = shown.parameter(key);
        if actual != expected {
            return Err(format!("parameter `{key}` is {actual:?}, not {expected:?}"));
        }
    }
    Ok(())
}

/// Has the server render conversations, without answering them, and compares them with the file's own template.
///
/// # Errors
/// [`Error::OnServer`] with the first difference, [`Error::Remote`].
pub(super) fn rendered(
    server: &OllamaServer,
    name: &str,
    plan: &Plan,
    poll: &mut Poll<'_>,
    observer: &mut dyn Observer<RegisterEvent>,
) -> Result<()> {
    let mut n = 0;
    for messages in conversations(plan) {
        let body = json!({
            "model": name,
            "messages": messages.iter().map(|m| json!({"role": m.role, "content": m.content})).collect::<Vec<_>>(),
            "stream": false, "think": false, "truncate": false, "shift": false, "keep_alive": "1m",
            "_debug_render_only": true,
        });
        let limits = server.limits(server.patience.load);
        let request = format!("render with `{name}`");
        let piece: Piece =
            server.ask_within(&request, reqwest::Method::POST, "/api/chat", Some(&body), limits, poll)?;
        let Some(debug) = piece.debug else {
            return Err(wrong(server, plan, "it does not show what it renders".to_owned()));
        };
        compare(plan, &messages, &debug.rendered_template).map_err(|reason| wrong(server, plan, reason))?;
        n += 1;
    }
    observer.observe(RegisterEvent::Checked {
        what: format!("{n} prompts as the file's own template renders them"),
    });
    Ok(())
}

/// Conversations that a template takes; the server puts the model's system message in front of those that have none.
fn conversations(plan: &Plan) -> Vec<Vec<Message>> {
    let user = |text: &str| Message::new("user", text);
    let all = [
        vec![user("Are you there?")],
        vec![Message::new("system", "Be brief."), user("Are you there?")],
        vec![user("a"), Message::new("assistant", "b"), user("  c\n")],
    ];
    let renders = |messages: &Vec<Message>| plan.template.render(messages, GenerationPrompt::Add).is_ok();
    all.into_iter().filter(renders).collect()
}

fn compare(plan: &Plan, messages: &[Message], actual: &str) -> std::result::Result<(), String> {
    let has_system = messages.first().is_some_and(|message| message.role == "system");
    let system =
        plan.system.as_ref().filter(|_| !has_system).map(|text| Message::new("system", text.as_str()));
    let messages: Vec<Message> = system.into_iter().chain(messages.iter().cloned()).collect();
    let plain = |text: &str| text.strip_prefix(plan.bos.as_str()).unwrap_or(text).to_owned();
    let actual = plain(actual);
    let expected =
        plan.template.render(&messages, GenerationPrompt::Add).map_err(|error| error.to_string())?;
    if plain(&expected) == actual {
        return Ok(());
    }
    // A server is always told not to think, which a template may write into the prompt.
    let source = plan.template.source();
    let fixed = text::ChatTemplate::from_source(source, &plan.bos, "").and_then(|template| {
        template.with_variable("enable_thinking", false).render(&messages, GenerationPrompt::Add)
    });
    if fixed.is_ok_and(|text| plain(&text) == actual) {
        return Ok(());
    }
    Err(format!("a prompt is rendered as {actual:?}, by the file's template as {:?}", plain(&expected)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, ty: &str, shape: &[u64]) -> StoredTensor {
        StoredTensor { name: name.to_owned(), ty: ty.to_owned(), shape: shape.to_vec() }
    }

    #[test]
    fn tensors_are_the_same_in_any_order_and_from_either_end() {
        let sent = [tensor("a", "Q4_K", &[256, 64]), tensor("b", "F32", &[64])];
        let there = [tensor("b", "f32", &[64, 1]), tensor("a", "Q4_K", &[64, 256])];
        assert_eq!(same_tensors(&sent, &there), Ok(()));
        for (there, part) in [
            (vec![tensor("a", "Q4_K", &[256, 64])], "`b` is not there"),
            (vec![tensor("a", "Q4_0", &[256, 64]), tensor("b", "F32", &[64])], "`a` is Q4_0"),
            (vec![tensor("a", "Q4_K", &[256, 32]), tensor("b", "F32", &[64])], "`a` is Q4_K [256, 32]"),
            (
                vec![tensor("a", "Q4_K", &[256, 64]), tensor("b", "F32", &[64]), tensor("c", "F32", &[1])],
                "3 tensors, the file 2",
            ),
        ] {
            let reason = same_tensors(&sent, &there).unwrap_err();
            assert!(reason.contains(part), "{reason}");
        }
    }
}
