//! What is refused of a request before anything large is opened.

use model::config::Window;
use model::{ModelConfig, Quant};
use text::Conversation;

use crate::base::Base;
use crate::modelfile;
use crate::{Error, Request, Result};

/// All that needs no file.
pub(crate) fn check_request(request: &Request) -> Result<()> {
    check_name(&request.name)?;
    check_quant(request)?;
    check_system(request.system.as_deref())?;
    check_evaluation(&request.evaluation)
}

/// The name is that of a file and of a model on a server.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let refuse = |reason| Err(Error::Name { name: name.to_owned(), reason });
    if name.is_empty() || name.len() > 100 {
        return refuse("it must have 1 to 100 characters");
    }
    if !name.starts_with(|first: char| first.is_ascii_alphanumeric()) {
        return refuse("it must start with a letter or digit");
    }
    if !name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
        return refuse("only letters, digits, `-`, `_` and `.` are allowed");
    }
    Ok(())
}

/// What only memory holds has no number in a file; what needs a matrix is garbage without.
fn check_quant(request: &Request) -> Result<()> {
    let quant = request.quant;
    if quant.file_type().is_none() {
        let valid = Quant::FILES.map(Quant::name).join(", ");
        return Err(Error::NoFileType { quant: quant.name(), valid });
    }
    if quant.needs_matrix() && !request.importance.is_some() {
        return Err(Error::NeedsMatrix { quant: quant.name() });
    }
    Ok(())
}

fn check_system(system: Option<&str>) -> Result<()> {
    if system.is_none_or(modelfile::can_be_quoted) { Ok(()) } else { Err(Error::System) }
}

/// Each row must end with the answer that is expected, and ask for it before.
fn check_evaluation(rows: &[Conversation]) -> Result<()> {
    for (row, conversation) in rows.iter().enumerate() {
        let reason = match conversation.messages.split_last() {
            None => "it is empty",
            Some((last, _)) if last.role != "assistant" => "its last message is not the assistant's",
            Some((_, [])) => "nothing stands before the assistant's message",
            Some((last, _)) if last.content.is_empty() => "the expected answer is empty",
            Some(_) => continue,
        };
        return Err(Error::EvaluationRow { row, reason: reason.to_owned() });
    }
    Ok(())
}

/// What is rounded twice is worse than it need be, and no one sees it in the file.
pub(crate) fn check_requantising(request: &Request, base: &Base) -> Result<()> {
    match base.first_quantised().filter(|_| !request.allow_requantising) {
        None => Ok(()),
        Some((tensor, ty)) => Err(Error::Requantising {
            path: base.path().to_owned(),
            tensor: tensor.to_owned(),
            type_name: ty.name(),
            quant: request.quant.name(),
        }),
    }
}

/// Positions that the model has, and that llama.cpp computes as it was trained.
pub(crate) fn check_context(request: &Request, config: &ModelConfig) -> Result<()> {
    let (num_ctx, max_positions) = (request.num_ctx, config.max_positions);
    if !(1..=max_positions).contains(&num_ctx) {
        return Err(Error::Context { num_ctx, max_positions });
    }
    // llama.cpp has windows where some layers see everything; beyond any other window it computes another model.
    match config.window.filter(|window| window.full_every.is_none() && num_ctx > window.size) {
        Some(Window { size: window, .. }) => {
            Err(Error::Window { num_ctx, window, architecture: config.family.gguf_architecture() })
        }
        None => Ok(()),
    }
}
