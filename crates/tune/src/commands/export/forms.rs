//! The forms of a run's result that are no quantised GGUF.

use super::{failure, refuse_to_replace, show};
use crate::bytes;
use crate::cli::{Export, Form};
use crate::failure::Failure;
use crate::terminal::Terminal;
use exporter::{FormRequest, Request};
use std::time::Instant;

/// Writes the adapter alone, or the merged checkpoint.
pub fn run(arguments: &Export, request: &Request, terminal: &mut Terminal) -> Result<(), Failure> {
    if request.adapters.is_empty() {
        return Err(Failure::new("a base alone has no adapter to write in another form")
            .hint("name a run, or an adapter with --adapter, or leave --as out"));
    }
    if !arguments.quant.is_empty()
        || arguments.compare
        || !arguments.types.is_empty()
        || arguments.imatrix.is_some()
    {
        return Err(Failure::new("--quant, --compare, --tensor-type and --imatrix are for a GGUF: nothing is quantised in this form")
            .hint("leave them out"));
    }
    let form = FormRequest {
        base: request.base.clone(),
        adapters: request.adapters.clone(),
        output: request.output.clone(),
        name: request.name.clone(),
        provenance: request.provenance.clone(),
    };
    let started = Instant::now();
    let (what, file) = match arguments.form {
        Form::MergedHf => ("a merged checkpoint", format!("{}-merged", form.name)),
        Form::Adapter | Form::Gguf => ("an adapter for llama.cpp", format!("{}-lora-f32.gguf", form.name)),
    };
    refuse_to_replace(&form.output.join(file), arguments)?;
    terminal.row("export", format!("{} as {what}", form.name));
    let result = match arguments.form {
        Form::MergedHf => {
            exporter::export_checkpoint(&form, &mut |event| show::event(terminal, &event, false))
        }
        Form::Adapter | Form::Gguf => exporter::export_adapter(&form),
    };
    terminal.clear_bar();
    let receipt = result.map_err(|error| failure(&error, &arguments.source))?;
    terminal.row("check", "read back: rows of every tensor are those of the merge");
    if !receipt.base_checked {
        terminal.warning(
            "the adapter does not say which base it was trained on: only the shapes could be compared",
        );
    }
    let written = receipt.files.iter().map(|file| file.bytes).sum();
    let (path, seconds) = (receipt.path.display(), started.elapsed().as_secs_f64());
    terminal.row("wrote", format!("{path} ({}) in {}", bytes::show(written), crate::show::seconds(seconds)));
    if arguments.form == Form::Adapter {
        let next = match form.base.is_file() {
            true => format!("load both: llama-server -m {} --lora {path}", form.base.display()),
            false => format!("export the base too, and load both: llama-server -m BASE.gguf --lora {path}"),
        };
        terminal.row("next", next);
    }
    Ok(())
}
