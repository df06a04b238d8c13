//! One micro-step of training: forward and backward of a packed batch through frozen base and adapter.
//!
//! Forward keeps each layer's input; backward goes from the last layer to the first, runs a layer's forward again
//! from that input, and turns the gradient of its output into the gradient of its input, adding up the adapter's
//! gradients on the way. The last `kept_layers` keep their activations instead and are not run again.
//! All memory is drawn at construction; a step draws nothing.

mod attention;
mod batch;
mod latent;
mod mixer;
mod mlp;
mod pass;
mod plan;
mod sequences;
mod streamed;
mod streams;
mod workspace;

pub use batch::{Batch, IGNORE, LossSum};
pub use plan::{LayerInputs, StepPlan};
pub use streamed::Streamed;
pub(crate) use streamed::one_layer_of;
pub(crate) use workspace::LossTiles;
pub use workspace::{Room, workspace_bytes};

use std::cell::RefCell;
use std::sync::Arc;

use crate::base::{Base, Place};
use crate::config::ModelConfig;
use crate::device::{Buffer, Device, Segment, Span};
use crate::importance::Importance;
use crate::lora::{Adapter, Dropout, Gradients, Layout, LoraOptions, RowNorms, Widths};
use crate::loss::{Loss, LossHost};
use crate::{Error, Result};
use pass::{Pass, rows, rows_mut};
use workspace::{Allocate, Workspace};

/// The workspace of a micro-step over one base, reused for every batch.
pub struct TrainStep<D: Device> {
    base: Arc<Base<D>>,
    plan: StepPlan,
    widths: Widths,
    norms: Option<RowNorms<D>>,
    dropout_seed: u64,
    workspace: Workspace<D::Buffer, D::Indices>,
    loss_host: LossHost,
    sequence_sums: Vec<LossSum>,
    sequence_factors: Vec<f32>,
    segments: Vec<Segment>,
    spans: Vec<Span>,
    rotary_rows: Vec<u32>,
}

impl<D: Device> TrainStep<D> {
    /// Draws all memory that a batch of up to `plan.max_tokens` needs, with room for adapters of `lora`'s shape.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::InvalidBatch`] for a plan of nothing.
    pub fn new(base: Arc<Base<D>>, lora: Option<&LoraOptions>, plan: StepPlan) -> Result<Self> {
        let config = base.config.clone();
        Self::with_room_for(&config, base, lora, plan)
    }

    /// The same with the memory of another configuration, which has as wide layers as the base but may have fewer.
    fn with_room_for(
        config: &ModelConfig,
        base: Arc<Base<D>>,
        lora: Option<&LoraOptions>,
        plan: StepPlan,
    ) -> Result<Self> {
        plan.check()?;
        let mut workspace = Workspace::build(config, lora, &plan, &mut Draw(&base.device))?;
        for (table, (cos, sin)) in config.rotary_tables(plan.max_tokens).iter().zip(&mut workspace.rotary) {
            base.device.upload(&table.cos, cos.all_mut())?;
            base.device.upload(&table.sin, sin.all_mut())?;
        }
        let loss_host = LossHost::new(plan.max_tokens, plan.loss_tile_tokens);
        let segments = Vec::with_capacity(plan.max_tokens);
        let spans = Vec::with_capacity(plan.max_tokens);
        let widths = lora.map(|lora| Layout::new(config, lora).widths(lora)).unwrap_or_default();
        let norms = lora.filter(|lora| lora.dora).map(|lora| RowNorms::new(&base, lora)).transpose()?;
        let rotary_rows = Vec::with_capacity(plan.max_tokens);
        Ok(Self {
            base,
            plan,
            widths,
            norms,
            dropout_seed: 0,
            workspace,
            loss_host,
            sequence_sums: Vec::new(),
            sequence_factors: Vec::new(),
            segments,
            spans,
            rotary_rows,
        })
    }

    /// The base it runs on.
    pub fn base(&self) -> &Arc<Base<D>> {
        &self.base
    }

    /// The plan it was built for.
    pub fn plan(&self) -> &StepPlan {
        &self.plan
    }

    /// The seed of the next micro-step's dropout, where the adapter has it: another one for each micro-step of a run.
    pub fn seed_dropout(&mut self, seed: u64) {
        self.dropout_seed = seed;
    }

    /// The loss of a batch, and loss_scale · d(sum of the loss)/d(adapter) added to `gradients`.
    ///
    /// With `loss_scale` = 1 / (weights of the target tokens of all micro-steps of an update, added up; without weights
    /// their number) the accumulated gradient is that of the mean loss over the true number of target tokens.
    ///
    /// # Errors
    /// [`Error::InvalidBatch`], [`Error::InvalidAdapter`] for an adapter without room.
    pub fn forward_backward(
        &mut self,
        adapter: &Adapter<D>,
        batch: &Batch<'_>,
        gradients: &mut Gradients<D>,
        loss_scale: f32,
    ) -> Result<LossSum> {
        self.begin(Some(adapter), batch)?;
        let probability = adapter.options().dropout;
        let dropout = (probability > 0.0).then_some(Dropout { probability, seed: self.dropout_seed });
        self.forward(Some(adapter), dropout, None, batch)?;
        let loss = self.loss(batch, Some(loss_scale))?;
        self.backward(adapter, dropout, batch, gradients)?;
        Ok(loss)
    }

    /// The loss of a batch alone, with the adapter or without, nothing dropped.
    ///
    /// # Errors
    /// As [`TrainStep::forward_backward`].
    pub fn evaluate(&mut self, adapter: Option<&Adapter<D>>, batch: &Batch<'_>) -> Result<LossSum> {
        self.begin(adapter, batch)?;
        self.forward(adapter, None, None, batch)?;
        self.loss(batch, None)
    }

    /// Adds what the base's matrices are multiplied with in a batch to their importance; targets do not matter.
    ///
    /// # Errors
    /// As [`TrainStep::forward_backward`].
    pub fn measure(
        &mut self,
        adapter: Option<&Adapter<D>>,
        batch: &Batch<'_>,
        importance: &Importance<D>,
    ) -> Result<()> {
        self.begin(adapter, batch)?;
        self.forward(adapter, None, Some(importance), batch)
    }

    /// Checks the batch and brings it to the device.
    fn begin(&mut self, adapter: Option<&Adapter<D>>, batch: &Batch<'_>) -> Result<()> {
        batch.check(self.plan.max_tokens, self.base.config.vocab_size)?;
        self.take_up(adapter)?;
        self.base.device.upload_indices(batch.tokens, self.workspace.tokens.first_mut(batch.tokens.len()))?;
        self.place(batch)
    }

    /// Where each sequence of a batch begins and each of its tokens stands.
    fn place(&mut self, batch: &Batch<'_>) -> Result<()> {
        self.segments.clear();
        self.segments.extend(batch.segments());
        self.spans.clear();
        self.spans.extend(self.segments.iter().map(Segment::alone));
        batch.rotary_rows(&self.base.config, self.plan.max_tokens, &mut self.rotary_rows);
        let rows = self.workspace.rotary_rows.first_mut(batch.tokens.len());
        self.base.device.upload_indices(&self.rotary_rows, rows)
    }

    /// Checks that there is room for an adapter, and with DoRA measures the rows that it makes.
    fn take_up(&mut self, adapter: Option<&Adapter<D>>) -> Result<()> {
        let Some(adapter) = adapter else { return Ok(()) };
        let invalid = |what: &str, found: usize, expected: String| {
            Err(Error::InvalidAdapter { what: what.to_owned(), found: found.to_string(), expected })
        };
        let (widths, n_layers) = (adapter.layout().widths(adapter.options()), adapter.layout().n_layers());
        if !self.widths.cover(&widths) {
            let (found, expected) =
                (widths.widest(), format!("what the step has room for: {:?}", self.widths));
            return invalid("shape", found, expected);
        }
        if n_layers != self.base.config.n_layers {
            return invalid("number of layers", n_layers, self.base.config.n_layers.to_string());
        }
        if adapter.options().dora != self.norms.is_some() {
            let expected = "as the step was built for".to_owned();
            return invalid("DoRA", usize::from(adapter.options().dora), expected);
        }
        match &mut self.norms {
            Some(norms) => norms.refresh(&self.base, adapter),
            None => Ok(()),
        }
    }

    /// All layers, first to last; leaves each layer's input.
    fn forward(
        &mut self,
        adapter: Option<&Adapter<D>>,
        dropout: Option<Dropout>,
        importance: Option<&Importance<D>>,
        batch: &Batch<'_>,
    ) -> Result<()> {
        let (n, c) = (batch.tokens.len(), self.base.config.hidden);
        let Workspace { streams, activations, mixer, copy, tokens, rotary_rows, rotary, .. } =
            &mut self.workspace;
        activations.iter_mut().for_each(|set| set.forget());
        let pass = Pass {
            base: &self.base,
            adapter,
            norms: self.norms.as_ref().filter(|_| adapter.is_some()),
            dropout,
            importance,
            copy: RefCell::new(copy),
            n,
            segments: &self.segments,
            spans: &self.spans,
            rotary_rows: rotary_rows.first(n),
            rotary,
        };
        pass.base.come_to(Place::Embedding, Some(Place::Layer(0)));
        pass.base.embed(tokens.first(n), rows_mut(streams.at_mut(0), c, 0, n))?;
        streams.keep(pass.device(), 0, n * c)?;
        for index in 0..pass.config().n_layers {
            pass.base.come_to_layer(index);
            let (input, output) = streams.around(index);
            let set = &mut activations[self.plan.activation_set(pass.config(), index)];
            pass.layer_forward(index, rows(input, c, 0, n), set, mixer.as_mut(), output)?;
            streams.keep(pass.device(), index + 1, n * c)?;
        }
        Ok(())
    }

    /// The loss from the last stream; with a scale also the gradient of that stream.
    fn loss(&mut self, batch: &Batch<'_>, scale: Option<f32>) -> Result<LossSum> {
        let (n, c, n_layers) = (batch.tokens.len(), self.base.config.hidden, self.base.config.n_layers);
        let Workspace { streams, deltas, loss, .. } = &mut self.workspace;
        let backward = scale.map(|scale| (scale, rows_mut(&mut deltas.stream, c, 0, n)));
        self.base.come_to(Place::Head, scale.map(|_| Place::Layer(n_layers - 1)));
        let loss = Loss { base: &self.base, tiles: loss, host: &mut self.loss_host };
        loss.run(batch, rows(streams.at(n_layers), c, 0, n), backward)
    }

    /// All layers, last to first: each runs again unless its activations are still there, then backward.
    fn backward(
        &mut self,
        adapter: &Adapter<D>,
        dropout: Option<Dropout>,
        batch: &Batch<'_>,
        gradients: &mut Gradients<D>,
    ) -> Result<()> {
        let (n, c) = (batch.tokens.len(), self.base.config.hidden);
        let Workspace { streams, activations, mixer, deltas, copy, rotary_rows, rotary, .. } =
            &mut self.workspace;
        let pass = Pass {
            base: &self.base,
            adapter: Some(adapter),
            norms: self.norms.as_ref(),
            dropout,
            importance: None,
            copy: RefCell::new(copy),
            n,
            segments: &self.segments,
            spans: &self.spans,
            rotary_rows: rotary_rows.first(n),
            rotary,
        };
        for index in (0..pass.config().n_layers).rev() {
            pass.base.come_to(Place::Layer(index), index.checked_sub(1).map(Place::Layer));
            let x = rows(streams.recall(pass.device(), index, n * c)?, c, 0, n);
            let set = &mut activations[self.plan.activation_set(pass.config(), index)];
            if let Some(room) = mixer {
                if set.holds_attention != Some(index) {
                    pass.mixer_inside(index, x, set, room)?;
                }
                pass.mixer_backward(index, x, set, deltas, room, gradients)?;
                continue;
            }
            if set.holds_attention != Some(index) {
                pass.attention_forward(index, x, set)?;
            }
            pass.mlp_backward(index, set, deltas, gradients)?;
            pass.attention_backward(index, x, set, deltas, gradients)?;
        }
        Ok(())
    }
}

/// Draws memory from a device.
struct Draw<'a, D>(&'a D);

impl<D: Device> Allocate for Draw<'_, D> {
    type Floats = D::Buffer;
    type Indices = D::Indices;

    fn floats(&mut self, room: Room, len: usize) -> Result<D::Buffer> {
        self.0.alloc(room.name(), len)
    }

    fn indices(&mut self, room: Room, len: usize) -> Result<D::Indices> {
        self.0.alloc_indices(room.name(), len)
    }
}
