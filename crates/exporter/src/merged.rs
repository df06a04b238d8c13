//! What every file of an export is made from: a base with the adapters in it, opened and found to fit.

use formats::config::GenerationConfig;
use formats::gguf::Value;
use model::family::{self, TensorSpec};
use model::lora::Update;
use model::lora::init::Shifted;
use text::{ChatTemplate, Tokenizer};

use crate::adapter::{self, Adapter, template_blake3};
use crate::base::{Base, Language};
use crate::checks::{check_context, check_requantising};
use crate::{Error, Provenance, Request, Result, Sources};

/// Base and adapters.
pub(crate) struct Merged {
    pub(crate) base: Base,
    /// In the order of a file.
    pub(crate) tensors: Vec<Tensor>,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) template: Option<ChatTemplate>,
    /// The keys of tokenizer; none where the base is a GGUF that has them.
    pub(crate) vocabulary: Vec<(String, Value)>,
    pub(crate) generation: Option<GenerationConfig>,
    /// The caller's, completed by the adapter's record.
    pub(crate) provenance: Provenance,
    /// Without the importance matrix.
    pub(crate) sources: Sources,
}

/// A tensor of the merged model.
pub(crate) struct Tensor {
    /// Name in a file.
    pub(crate) name: String,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) content: Content,
}

/// Where the values of a tensor come from.
pub(crate) enum Content {
    /// A tensor of the base, with what the adapters add to it.
    Weight { spec: TensorSpec, update: Option<Update> },
    /// Values that follow from the configuration.
    Computed(Vec<f32>),
}

impl Merged {
    /// Opens and checks all inputs; cheap checks first, hashes of large files last.
    pub(crate) fn open(request: &Request) -> Result<Merged> {
        let base = Base::open(&request.base)?;
        check_context(request, &base.config)?;
        check_requantising(request, &base)?;
        // Reading the base takes as long as the tokenizer; adapters that fit no base need not wait for it.
        let (language, adapter) = rayon::join(
            || base.language(request),
            || {
                let adapter = adapter::read(&request.adapters, &base.config)?;
                base.read_through()?;
                Ok::<Adapter, Error>(adapter)
            },
        );
        let (Language { tokenizer, template, vocabulary }, adapter) = (language?, adapter?);
        adapter.check_base(&base)?;
        adapter.check_language(&base, &request.tokenizer, template.as_ref())?;
        Ok(Merged {
            provenance: provenance(request, &adapter),
            sources: Sources {
                base: request.base.clone(),
                base_blake3: base.source().content_hash()?,
                adapter_blake3: adapter.blake3(),
                adapters: adapter.parts.clone(),
                imatrix: None,
                imatrix_blake3: None,
                tokenizer_blake3: base.tokenizer_file_blake3(&tokenizer)?,
                template_blake3: template.as_ref().map(template_blake3),
            },
            tensors: tensors(&base, adapter),
            generation: base.generation()?,
            base,
            tokenizer,
            template,
            vocabulary,
        })
    }

    /// The merged weights under the names of the base.
    pub(crate) fn source(&self) -> Shifted<'_> {
        let updates = self.tensors.iter().filter_map(|tensor| match &tensor.content {
            Content::Weight { spec, update: Some(update) } => Some((spec.clone(), update.clone())),
            _ => None,
        });
        Shifted::by(self.base.source(), updates)
    }

    /// Whether an adapter changes anything.
    pub(crate) fn is_changed(&self) -> bool {
        self.tensors.iter().any(Tensor::is_changed)
    }

    pub(crate) fn n_parameters(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.rows as u64 * tensor.cols as u64).sum()
    }

    /// Rows of a tensor in the order of a checkpoint, the adapters' update in them.
    pub(crate) fn read_rows(
        &self,
        tensor: &Tensor,
        first_row: usize,
        n_rows: usize,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        let (spec, update) = match &tensor.content {
            Content::Computed(values) => {
                out.clear();
                out.extend_from_slice(&values[first_row * tensor.cols..(first_row + n_rows) * tensor.cols]);
                return Ok(());
            }
            Content::Weight { spec, update } => (spec, update),
        };
        if spec.role.is_vector() {
            spec.read(self.base.source(), out)?;
            out.truncate((first_row + n_rows) * tensor.cols);
            out.drain(..first_row * tensor.cols);
            return Ok(());
        }
        let merge = |rows: &mut [f32], first_row: usize| {
            if let Some(update) = update {
                update.add_to(rows, first_row);
            }
        };
        Ok(spec.read_changed_rows(self.base.source(), first_row..first_row + n_rows, &merge, out)?)
    }
}

impl Tensor {
    /// Whether an adapter changes it.
    pub(crate) fn is_changed(&self) -> bool {
        matches!(&self.content, Content::Weight { update: Some(_), .. })
    }

    /// What it is in the model, but for values that are computed.
    pub(crate) fn spec(&self) -> Option<&TensorSpec> {
        match &self.content {
            Content::Weight { spec, .. } => Some(spec),
            Content::Computed(_) => None,
        }
    }

    fn is_before(&self, name: &str) -> bool {
        let in_layer = self.spec().is_some_and(|spec| spec.layer.is_some());
        !in_layer && self.name.as_str() < name
    }
}

fn tensors(base: &Base, adapter: Adapter) -> Vec<Tensor> {
    let mut specs = family::tensors(&base.config);
    family::sort_for_gguf(&mut specs);
    let weights = specs.into_iter().map(|spec| Tensor {
        name: spec.gguf.clone(),
        rows: spec.rows,
        cols: spec.cols,
        content: Content::Weight { update: adapter.updates.get(spec.module()).cloned(), spec },
    });
    let mut tensors: Vec<Tensor> = weights.collect();
    for (name, factors) in base.config.rope.gguf_tensors() {
        // Tensors outside the layers come first, by name.
        let at = tensors.iter().take_while(|tensor| tensor.is_before(name)).count();
        let (rows, cols, name) = (1, factors.len(), name.to_owned());
        tensors.insert(at, Tensor { name, rows, cols, content: Content::Computed(factors) });
    }
    tensors
}

/// What the caller says about the origin, and where it is silent what the adapter records.
fn provenance(request: &Request, adapter: &Adapter) -> Provenance {
    let mut provenance = request.provenance.clone();
    if let Some(recorded) = adapter.recorded() {
        let known = |hash: &String| Some(hash.clone()).filter(|hash| !hash.is_empty());
        provenance.recipe_blake3 = provenance.recipe_blake3.or_else(|| known(&recorded.recipe_blake3));
        provenance.dataset_blake3 = provenance.dataset_blake3.or_else(|| known(&recorded.dataset_blake3));
        provenance.steps = provenance.steps.or(Some(recorded.steps).filter(|&steps| steps > 0));
    }
    provenance
}
