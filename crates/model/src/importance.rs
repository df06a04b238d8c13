//! The importance of a base's columns: Σ x² over what each matrix of the layers is multiplied with, which tells a
//! quantiser where errors would be felt.
//!
//! Source: the importance matrix of llama.cpp (`tools/imatrix`), whose names and meaning these are. Embedding and head
//! are left out, as there.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;

use formats::imatrix::Entry;

use crate::config::ModelConfig;
use crate::device::{Buffer, Device, View};
use crate::family::{self, Role, TensorSpec};
use crate::lora::Group;
use crate::{Error, Result};

/// Σ x² of every matrix of every layer, added up batch by batch.
pub struct Importance<D: Device> {
    device: D,
    specs: Vec<TensorSpec>,
    places: Vec<Place>,
    sums: RefCell<D::Buffer>,
    /// How many x were met, of each place one matrix after the other.
    counts: RefCell<Vec<u64>>,
    /// Width of a head's queries, and of their part that is not rotated, where a latent makes the keys.
    heads: Option<(usize, usize)>,
}

/// What matrices of a layer are multiplied with; several may share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    /// What a group of linear layers reads; routers read with the gates.
    Of(Group),
    /// What a state-space mixer's output projection reads.
    SsmOut,
    /// All heads' queries, of which the latent's keys are multiplied with the part that is not rotated.
    Queries,
    /// What each routed expert's gate and up projections read.
    Expert,
    /// What each routed expert's down projection reads.
    ExpertDown,
}

/// Where the sums of one input of a layer are.
struct Place {
    layer: usize,
    input: Input,
    /// Matrices that are stacked and told apart.
    n_matrices: usize,
    cols: usize,
    first_sum: usize,
    first_count: usize,
}

impl Place {
    fn sums(&self, matrix: usize) -> Range<usize> {
        let start = self.first_sum + matrix * self.cols;
        start..start + self.cols
    }

    fn all_sums(&self) -> Range<usize> {
        self.first_sum..self.first_sum + self.n_matrices * self.cols
    }
}

impl Input {
    /// What a matrix is multiplied with; `None` for what is no matrix.
    fn of(role: Role) -> Option<Input> {
        Some(match role {
            Role::Q | Role::K | Role::V | Role::Qkv | Role::KvA => Input::Of(Group::Qkv),
            Role::O => Input::Of(Group::O),
            Role::Gate | Role::Up | Role::GateUp | Role::Router => Input::Of(Group::GateUp),
            Role::Down => Input::Of(Group::Down),
            Role::SsmIn => Input::Of(Group::SsmIn),
            Role::SsmOut => Input::SsmOut,
            Role::LatentKeys => Input::Queries,
            Role::LatentValues => Input::Of(Group::KvB),
            Role::ExpertGate | Role::ExpertUp => Input::Expert,
            Role::ExpertDown => Input::ExpertDown,
            _ => return None,
        })
    }
}

impl<D: Device> Importance<D> {
    /// Draws room for the sums of a model.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new(device: &D, config: &ModelConfig) -> Result<Self> {
        let heads = config.latent.map(|_| config.latent_heads());
        let is_measured = |spec: &TensorSpec| spec.layer.is_some() && Input::of(spec.role).is_some();
        let specs: Vec<TensorSpec> = family::tensors(config).into_iter().filter(is_measured).collect();
        let (mut places, mut n_sums, mut n_counts) = (Vec::<Place>::new(), 0, 0);
        for spec in &specs {
            let (layer, input) = at(spec);
            if places.iter().any(|place| (place.layer, place.input) == (layer, input)) {
                continue;
            }
            let (n_matrices, cols) = match input {
                Input::Expert | Input::ExpertDown => (spec.n_stacked(), spec.cols),
                Input::Queries => (1, config.q_width()),
                _ => (1, spec.cols),
            };
            places.push(Place { layer, input, n_matrices, cols, first_sum: n_sums, first_count: n_counts });
            (n_sums, n_counts) = (n_sums + n_matrices * cols, n_counts + n_matrices);
        }
        let sums = RefCell::new(device.alloc("importance", n_sums)?);
        let heads = heads.map(|heads| (heads.unrotated + heads.rotated, heads.unrotated));
        let counts = RefCell::new(vec![0; n_counts]);
        Ok(Importance { device: device.clone(), specs, places, sums, counts, heads })
    }

    /// Adds what a matrix, of those that are stacked, is multiplied with      x (n, cols)
    pub(crate) fn add(
        &self,
        layer: usize,
        input: Input,
        matrix: usize,
        x: View<'_, D::Buffer>,
    ) -> Result<()> {
        let found = self.places.iter().find(|place| (place.layer, place.input) == (layer, input));
        let Some(place) = found.filter(|place| place.cols > 0) else { return Ok(()) };
        self.counts.borrow_mut()[place.first_count + matrix] += (x.len() / place.cols) as u64;
        self.device.column_dots(x, x, self.sums.borrow_mut().part_mut(place.sums(matrix)))
    }

    /// What was measured, by a tensor's name in a GGUF.
    ///
    /// # Errors
    /// What the device meets.
    pub fn entries(&self) -> Result<BTreeMap<String, Entry>> {
        let mut all = vec![0.0; self.sums.borrow().len()];
        self.device.download(self.sums.borrow().all(), &mut all)?;
        let counts = self.counts.borrow();
        let entry = |spec: &TensorSpec| {
            let place = self.places.iter().find(|place| (place.layer, place.input) == at(spec));
            let place = place.expect("every measured tensor has a place");
            let counts = &counts[place.first_count..place.first_count + place.n_matrices];
            let counts: Vec<f32> = counts.iter().map(|&count| count as f32).collect();
            let (sums, n_matrices) = (&all[place.all_sums()], spec.n_stacked());
            if n_matrices == place.n_matrices {
                return Entry { sums: sums.to_vec(), counts };
            }
            let sums = match self.heads.filter(|_| place.input == Input::Queries) {
                Some((width, unrotated)) => {
                    sums.chunks(width).flat_map(|head| head[..unrotated].to_vec()).collect()
                }
                None => sums.repeat(n_matrices),
            };
            Entry { sums, counts: counts.repeat(n_matrices) }
        };
        let entries: BTreeMap<String, Entry> =
            self.specs.iter().map(|spec| (spec.gguf.clone(), entry(spec))).collect();
        let broken = entries.iter().find(|(_, entry)| entry.sums.iter().any(|sum| !sum.is_finite()));
        match broken {
            Some((name, _)) => Err(Error::NotFinite { what: format!("what `{name}` is multiplied with") }),
            None => Ok(entries),
        }
    }
}

fn at(spec: &TensorSpec) -> (usize, Input) {
    let input = Input::of(spec.role).expect("only matrices are measured");
    (spec.layer.expect("only layers are measured"), input)
}
