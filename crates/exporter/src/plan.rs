//! Everything about an export that is settled before its first byte is written.

use std::path::PathBuf;

use formats::checkpoint::Checkpoint;
use formats::config::{GenerationConfig, HfConfig};
use formats::gguf::{Metadata, Planned, file_bytes};
use formats::{BlockType, Observer, TensorSource, block, disk, hash};
use model::family::{self, Naming, TensorSpec};
use model::lora::Update;
use model::{ModelConfig, policy};
use text::{ChatTemplate, Tokenizer};

use crate::adapter::{self, Adapter};
use crate::checks::{check_context, check_request};
use crate::importance::Importance;
use crate::measure::{Subject, measured};
use crate::merged::merged;
use crate::metadata::{Parts, metadata};
use crate::types::types;
use crate::{Error, Event, ImportanceSource, Provenance, Request, Result, Sources, Template, TypeCount};

/// What is to be written, and the open sources it is made from.
pub(crate) struct Plan {
    /// Where the file is to stand.
    pub(crate) file: PathBuf,
    pub(crate) config: ModelConfig,
    pub(crate) base: Checkpoint,
    /// In the order of the file.
    pub(crate) tensors: Vec<PlannedTensor>,
    pub(crate) metadata: Metadata,
    pub(crate) file_bytes: u64,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) template: Option<ChatTemplate>,
    /// The caller's, completed by the adapter's record.
    pub(crate) provenance: Provenance,
    pub(crate) sources: Sources,
}

/// A tensor of the file.
pub(crate) struct PlannedTensor {
    /// Name in the file.
    pub(crate) name: String,
    pub(crate) ty: BlockType,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) content: Content,
    /// Of its columns (stacked matrices, cols), flat.
    importance: Option<Vec<f32>>,
}

/// Where the values of a tensor come from.
pub(crate) enum Content {
    /// A tensor of the base, with what the adapter adds to it.
    Weight { spec: TensorSpec, update: Option<Update> },
    /// Values that follow from the configuration.
    Computed(Vec<f32>),
}

impl PlannedTensor {
    pub(crate) fn is_merged(&self) -> bool {
        matches!(&self.content, Content::Weight { update: Some(_), .. })
    }

    pub(crate) fn row_bytes(&self) -> Result<usize> {
        Ok(self.ty.row_bytes(self.cols)?)
    }

    pub(crate) fn has_importance(&self) -> bool {
        self.ty.block_len() > 1 && self.importance.is_some()
    }

    /// Encodes consecutive rows in the order of the base, each by the importance of its own matrix.
    pub(crate) fn encode(&self, first_row: usize, weights: &[f32], blocks: &mut [u8]) -> Result<()> {
        let (cols, row_bytes) = (self.cols, self.row_bytes()?);
        let Some(importance) = &self.importance else {
            return Ok(block::encode(self.ty, weights, cols, None, blocks)?);
        };
        let matrix_rows = self.rows * cols / importance.len();
        let (mut row, end) = (first_row, first_row + weights.len() / cols);
        while row < end {
            let matrix = row / matrix_rows;
            let next = ((matrix + 1) * matrix_rows).min(end);
            let rows = row - first_row..next - first_row;
            block::encode(
                self.ty,
                &weights[rows.start * cols..rows.end * cols],
                cols,
                Some(&importance[matrix * cols..(matrix + 1) * cols]),
                &mut blocks[rows.start * row_bytes..rows.end * row_bytes],
            )?;
            row = next;
        }
        Ok(())
    }

    /// Name, shape in ggml's order, type.
    pub(crate) fn entry(&self) -> Planned {
        let shape = match &self.content {
            Content::Weight { spec, .. } => spec.shape(Naming::Gguf),
            Content::Computed(_) => vec![self.cols],
        };
        (self.name.clone(), shape.iter().rev().map(|&n| n as u64).collect(), self.ty)
    }
}

impl Plan {
    /// Opens and checks all inputs; cheap checks first, hashes of large files last.
    pub(crate) fn new(request: &Request, observer: &mut dyn Observer<Event>) -> Result<Plan> {
        check_request(request)?;
        let config = ModelConfig::from_hf(&HfConfig::from_dir(&request.base)?)?;
        check_context(request, &config)?;
        let base = Checkpoint::open(&request.base)?;
        // The hash, which the base remembers, takes as long as the tokenizer.
        let (tokenizer, _) = rayon::join(
            || {
                let tokenizer = Tokenizer::from_dir(&request.tokenizer)?;
                let vocabulary = tokenizer.gguf_metadata(config.vocab_size)?;
                let template = template(request, &tokenizer)?;
                Ok::<_, Error>((tokenizer, vocabulary, template))
            },
            || base.content_hash(),
        );
        let (tokenizer, vocabulary, template) = tokenizer?;
        let config = config.named_as_in(&base);
        family::check(&config, &base, Naming::Hf)?;
        family::check_types(&config, &base)?;
        family::check_tied_head(&config, &base)?;
        let (mut specs, linears) = (family::tensors(&config), family::linears(&config));
        family::sort_for_gguf(&mut specs);
        let types = types(request, &config, &specs)?;
        let adapter =
            request.adapter.as_deref().map(|dir| adapter::read(dir, &linears, &base)).transpose()?;
        check_template(request, adapter.as_ref(), template.as_ref())?;
        let provenance = provenance(request, adapter.as_ref());
        let mut sources = sources(request, &base, adapter.as_ref(), &tokenizer, template.as_ref())?;
        let mut tensors = planned_tensors(&config, specs, types, adapter);
        let matrix = match &request.importance {
            ImportanceSource::None => None,
            ImportanceSource::File(path) => Some(path.clone()),
            ImportanceSource::Measured(calibration) => {
                check_room(request, &tensors)?;
                let subject = Subject {
                    config: &config,
                    source: &merged(&base, &tensors),
                    tokenizer: &tokenizer,
                    template: template.as_ref(),
                    adapter_blake3: sources.adapter_blake3.as_deref(),
                };
                Some(measured(&subject, request, calibration, observer)?)
            }
        };
        let importance = matrix.as_deref().map(Importance::read).transpose()?;
        let (hash, keys) = importance
            .as_ref()
            .map(|importance| (importance.blake3().to_owned(), importance.metadata().to_vec()))
            .unzip();
        (sources.imatrix, sources.imatrix_blake3) = (matrix, hash);
        share_out(importance, &mut tensors)?;
        let metadata = metadata(
            request,
            Parts {
                provenance: &provenance,
                config: &config,
                generation: GenerationConfig::from_dir(&request.base)?.as_ref(),
                n_parameters: n_parameters(&tensors),
                vocabulary,
                template: template.as_ref().map(ChatTemplate::source),
                hashes: recorded_hashes(&provenance, &sources),
                importance: keys.unwrap_or_default(),
            },
        );
        let entries: Vec<Planned> = tensors.iter().map(PlannedTensor::entry).collect();
        let file_bytes = file_bytes(&metadata, &entries)?;
        let file = request.output.join(request.file_name());
        Ok(Plan {
            file,
            config,
            base,
            tensors,
            metadata,
            file_bytes,
            tokenizer,
            template,
            provenance,
            sources,
        })
    }

    pub(crate) fn entries(&self) -> Vec<Planned> {
        self.tensors.iter().map(PlannedTensor::entry).collect()
    }

    pub(crate) fn n_parameters(&self) -> u64 {
        n_parameters(&self.tensors)
    }

    /// Mean bits of a parameter.
    pub(crate) fn bits_per_weight(&self) -> Result<f64> {
        Ok(8.0 * tensor_bytes(&self.tensors)? as f64 / self.n_parameters() as f64)
    }

    /// Tensors and bytes of each type that occurs.
    pub(crate) fn type_counts(&self) -> Result<Vec<TypeCount>> {
        let mut counts: Vec<TypeCount> = Vec::new();
        for ty in BlockType::ALL {
            let of_type: Vec<_> = self.tensors.iter().filter(|tensor| tensor.ty == ty).collect();
            let bytes = of_type.iter().map(|tensor| Ok(tensor.rows as u64 * tensor.row_bytes()? as u64));
            let bytes = bytes.sum::<Result<u64>>()?;
            if !of_type.is_empty() {
                counts.push(TypeCount { type_name: ty.name().to_owned(), n_tensors: of_type.len(), bytes });
            }
        }
        Ok(counts)
    }
}

fn n_parameters(tensors: &[PlannedTensor]) -> u64 {
    tensors.iter().map(|tensor| tensor.rows as u64 * tensor.cols as u64).sum()
}

fn planned_tensors(
    config: &ModelConfig,
    specs: Vec<TensorSpec>,
    types: Vec<BlockType>,
    adapter: Option<Adapter>,
) -> Vec<PlannedTensor> {
    let updates = adapter.map(|adapter| adapter.updates).unwrap_or_default();
    let weights = specs.into_iter().zip(types).map(|(spec, ty)| PlannedTensor {
        name: spec.gguf.clone(),
        ty,
        rows: spec.rows,
        cols: spec.cols,
        content: Content::Weight { update: updates.get(spec.module()).cloned(), spec },
        importance: None,
    });
    let mut tensors: Vec<PlannedTensor> = weights.collect();
    for (name, factors) in config.rope.gguf_tensors() {
        // Tensors outside the layers come first, by name.
        let at = tensors.iter().take_while(|tensor| is_before(tensor, name)).count();
        let (rows, cols, name) = (1, factors.len(), name.to_owned());
        let (ty, content) = (BlockType::F32, Content::Computed(factors));
        tensors.insert(at, PlannedTensor { name, ty, rows, cols, content, importance: None });
    }
    tensors
}

/// Gives each tensor the importance of its columns; all of a matrix must find its place, and what needs it must have it.
fn share_out(mut importance: Option<Importance>, tensors: &mut [PlannedTensor]) -> Result<()> {
    for tensor in tensors {
        let Content::Weight { spec, .. } = &tensor.content else { continue };
        if let Some(importance) = &mut importance {
            tensor.importance = importance.take(spec)?;
        }
        if tensor.importance.is_none() && policy::tensor_needs_matrix(tensor.ty, spec) {
            return Err(Error::Unimportant { tensor: tensor.name.clone(), type_name: tensor.ty.name() });
        }
    }
    importance.map_or(Ok(()), |importance| importance.finish())
}

/// Refuses before minutes are spent on what could not be written.
fn check_room(request: &Request, tensors: &[PlannedTensor]) -> Result<()> {
    Ok(disk::check_room(&request.output.join(request.file_name()), tensor_bytes(tensors)?)?)
}

/// Bytes of the tensors alone.
fn tensor_bytes(tensors: &[PlannedTensor]) -> Result<u64> {
    tensors.iter().map(|tensor| Ok(tensor.rows as u64 * tensor.row_bytes()? as u64)).sum()
}

fn is_before(tensor: &PlannedTensor, name: &str) -> bool {
    let in_layer = matches!(&tensor.content, Content::Weight { spec, .. } if spec.layer.is_some());
    !in_layer && tensor.name.as_str() < name
}

fn template(request: &Request, tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>> {
    let text_of = |id: Option<u32>| id.and_then(|id| tokenizer.token(id)).unwrap_or_default().to_owned();
    let template = match &request.template {
        Template::FromTokenizer => match ChatTemplate::from_dir(&request.tokenizer, tokenizer) {
            Err(text::Error::NoTemplate { .. }) => None,
            other => Some(other?),
        },
        Template::Source(source) => {
            Some(ChatTemplate::from_source(source, &text_of(tokenizer.bos()), &text_of(tokenizer.eos()))?)
        }
    };
    if template.is_none() && !request.evaluation.is_empty() {
        let reason = "there is no chat template to render it with".to_owned();
        return Err(Error::EvaluationRow { row: 0, reason });
    }
    Ok(template)
}

fn sources(
    request: &Request,
    base: &Checkpoint,
    adapter: Option<&Adapter>,
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
) -> Result<Sources> {
    Ok(Sources {
        base: request.base.clone(),
        base_blake3: base.content_hash()?,
        adapter: request.adapter.clone(),
        adapter_blake3: adapter.map(|adapter| adapter.blake3.clone()),
        adapter_base_checked: adapter.map(Adapter::names_base),
        imatrix: None,
        imatrix_blake3: None,
        tokenizer_blake3: hash::blake3_file(tokenizer.path())?,
        template_blake3: template.map(template_blake3),
    })
}

/// What the caller says about the origin, and where it is silent what the adapter records.
fn provenance(request: &Request, adapter: Option<&Adapter>) -> Provenance {
    let mut provenance = request.provenance.clone();
    if let Some(recorded) = adapter.and_then(|adapter| adapter.recorded.as_ref()) {
        let known = |hash: &String| Some(hash.clone()).filter(|hash| !hash.is_empty());
        provenance.recipe_blake3 = provenance.recipe_blake3.or_else(|| known(&recorded.recipe_blake3));
        provenance.dataset_blake3 = provenance.dataset_blake3.or_else(|| known(&recorded.dataset_blake3));
        provenance.steps = provenance.steps.or(Some(recorded.steps).filter(|&steps| steps > 0));
    }
    provenance
}

/// An adapter served with another template than it was trained with babbles and never stops.
fn check_template(
    request: &Request,
    adapter: Option<&Adapter>,
    template: Option<&ChatTemplate>,
) -> Result<()> {
    let (Some(dir), Some(recorded)) =
        (&request.adapter, adapter.and_then(|adapter| adapter.recorded.as_ref()))
    else {
        return Ok(());
    };
    adapter::check_tokenizer(dir, recorded, &request.tokenizer)?;
    let actual = template.map(template_blake3).unwrap_or_default();
    if recorded.template_blake3.is_empty() || recorded.template_blake3 == actual {
        return Ok(());
    }
    let expected = recorded.template_blake3.clone();
    Err(Error::OtherTemplate { adapter: dir.clone(), expected, actual })
}

fn template_blake3(template: &ChatTemplate) -> String {
    hash::blake3_bytes(template.source().as_bytes())
}

/// The hashes that go into the file itself; a name has its value where there is one.
fn recorded_hashes(provenance: &Provenance, sources: &Sources) -> Vec<(&'static str, String)> {
    let keys = [
        ("base", Some(sources.base_blake3.clone())),
        ("adapter", sources.adapter_blake3.clone()),
        ("recipe", provenance.recipe_blake3.clone()),
        ("dataset", provenance.dataset_blake3.clone()),
    ];
    keys.into_iter().filter_map(|(name, hash)| Some((name, hash?))).collect()
}
