//! A model in a server's memory: loaded whole where it was asked to be, and gone when it is said to be.

use std::time::{Duration, Instant};

use serde_json::json;

use super::answer::KEEP_ALIVE;
use super::api::{Piece, Running};
use super::name;
use super::server::OllamaServer;
use crate::card::{ExpertCard, OllamaModel};
use crate::engine::remote::{Poll, pause};
use crate::memory;
use crate::{Error, Result};

/// After a model left the server's list its memory comes back within moments; no longer is waited for it.
const SETTLES_WITHIN: Duration = Duration::from_secs(3);

/// Memory that grows by less than this between two looks has settled.
const SETTLED_BYTES: u64 = 16 << 20;

/// Checks that the server's model is the card's, has it loaded, and makes sure where it lies.
pub(super) fn load(
    server: &OllamaServer,
    card: &ExpertCard,
    model: &OllamaModel,
    poll: &mut Poll<'_>,
) -> Result<Running> {
    check_digest(server, card, model, poll)?;
    if let Err(error) = have_loaded(server, model, poll) {
        // The server goes on loading what nobody waits for any more.
        if matches!(error, Error::Cancelled) {
            let _ = ask_to_unload(server, &model.name);
        }
        return Err(error);
    }
    let running = running(server, model, poll)?.ok_or_else(|| {
        let reason = "it says that the model is loaded and does not list it".to_owned();
        server.refusal(&format!("load `{}`", model.name), reason)
    })?;
    if let Err(error) = check_running(card, model, &running) {
        unload(server, model)?;
        return Err(error);
    }
    Ok(running)
}

/// The loaded model's entry in the list, if it is there.
pub(super) fn running(
    server: &OllamaServer,
    model: &OllamaModel,
    poll: &mut Poll<'_>,
) -> Result<Option<Running>> {
    let listed = server.ps_while(poll)?;
    Ok(listed.into_iter().find(|running| is_it(running, model)))
}

/// Names that were created from one model share its process, which is listed under one of them.
fn is_it(running: &Running, model: &OllamaModel) -> bool {
    plain(&running.digest) == model.digest || name::is_same(&running.name, &model.name)
}

fn plain(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap_or(digest)
}

/// A name is not enough: it can be given to another model at any moment.
pub(super) fn check_digest(
    server: &OllamaServer,
    card: &ExpertCard,
    model: &OllamaModel,
    poll: &mut Poll<'_>,
) -> Result<()> {
    let tag = server.tag_while(&model.name, poll)?;
    let actual = plain(&tag.digest);
    if actual == model.digest {
        return Ok(());
    }
    Err(Error::ModelChanged {
        expert: card.name.clone(),
        model: model.name.clone(),
        server: server.url(),
        expected: model.digest.clone(),
        actual: actual.to_owned(),
    })
}

fn have_loaded(server: &OllamaServer, model: &OllamaModel, poll: &mut Poll<'_>) -> Result<()> {
    let body = json!({"model": model.name, "stream": false, "think": false, "truncate": false, "shift": false,
        "keep_alive": KEEP_ALIVE});
    let request = format!("load `{}`", model.name);
    let limits = server.limits(server.patience.load);
    let answer: Piece =
        server.ask_within(&request, reqwest::Method::POST, "/api/generate", Some(&body), limits, poll)?;
    if answer.done_reason == "load" {
        return Ok(());
    }
    let reason = format!("a load ends with `load`, this one ended with `{}`", answer.done_reason);
    Err(server.refusal(&request, reason))
}

/// Never a part of it on the processor that nobody asked for, nor another context than the card's.
pub(super) fn check_running(card: &ExpertCard, model: &OllamaModel, running: &Running) -> Result<()> {
    let refuse = |reason: String, hint: &str| Error::OnServer {
        expert: card.name.clone(),
        server: model.url.clone(),
        reason,
        hint: hint.to_owned(),
    };
    if plain(&running.digest) != model.digest && !running.digest.is_empty() {
        return Err(Error::ModelChanged {
            expert: card.name.clone(),
            model: model.name.clone(),
            server: model.url.clone(),
            expected: model.digest.clone(),
            actual: plain(&running.digest).to_owned(),
        });
    }
    // Parameters that say how many layers are on the card were written by someone who knew.
    let is_on_card = running.size_vram > 0 || card.load.num_gpu.is_some_and(|layers| layers > 0);
    if is_on_card && running.size_vram != running.size && model.num_gpu.is_none() {
        let size = crate::budget::size;
        return Err(refuse(
            format!(
                "only {} of the {} that `{}` takes are on the graphics card, the rest would run on the processor",
                size(running.size_vram),
                size(running.size),
                model.name
            ),
            "a shorter num_ctx, a smaller quantisation, OLLAMA_KV_CACHE_TYPE=q8_0, or less on the card beside it",
        ));
    }
    let asked = u64::from(card.load.num_ctx);
    if asked > 0 && running.context_length > 0 && running.context_length < asked {
        return Err(refuse(
            format!(
                "`{}` has {} tokens of context there, its card says {asked}",
                model.name, running.context_length
            ),
            "the context is a parameter of the model: register it anew with this num_ctx",
        ));
    }
    Ok(())
}

/// Has a model unloaded and waits until it is gone: the answer comes before that, and the memory after.
pub(super) fn unload(server: &OllamaServer, model: &OllamaModel) -> Result<()> {
    let free_before = server.is_local().then(free_bytes);
    let was = running(server, model, &mut super::server::always)?;
    if was.is_none() {
        return Ok(());
    }
    ask_to_unload(server, &model.name)?;
    let begun = Instant::now();
    while running(server, model, &mut super::server::always)?.is_some() {
        if begun.elapsed() >= server.patience.unload {
            return Err(server.refusal(
                &format!("unload `{}`", model.name),
                format!("it is still loaded after {:.0?}", server.patience.unload),
            ));
        }
        std::thread::sleep(server.patience.poll);
    }
    if let (Some(before), Some(was)) = (free_before, was) {
        settle(server, before, was.size);
    }
    Ok(())
}

/// Asks for it, and waits for no more than the answer.
pub(super) fn ask_to_unload(server: &OllamaServer, name: &str) -> Result<()> {
    let body = json!({"model": name, "stream": false, "keep_alive": 0});
    let (request, limits) = (format!("unload `{name}`"), server.limits(server.patience.answer));
    let asked = server.ask_within::<Piece>(
        &request,
        reqwest::Method::POST,
        "/api/generate",
        Some(&body),
        limits,
        &mut super::server::always,
    );
    match asked {
        // A model that was deleted meanwhile may still be loaded; whether it is, the list will tell.
        Err(Error::Remote { reason, .. }) if reason.contains("not found") => Ok(()),
        other => other.map(drop),
    }
}

/// Waits until the memory that a model held is measured as free, or grows no more.
fn settle(server: &OllamaServer, before: u64, size: u64) {
    let begun = Instant::now();
    let (mut last, mut still) = (before, 0);
    let most = SETTLES_WITHIN.min(server.patience.unload);
    while begun.elapsed() < most && still < 3 {
        let free = free_bytes();
        if free >= before.saturating_add(size / 2) {
            return;
        }
        still = if free > last.saturating_add(SETTLED_BYTES) { 0 } else { still + 1 };
        last = free;
        let _ = pause(server.patience.poll, server.patience.poll, &mut super::server::always);
    }
}

fn free_bytes() -> u64 {
    memory::main_memory().free_bytes
}
