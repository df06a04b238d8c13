//! Weights that pass through memory: of a base whose blocks lie in a mapped file, the part that a pass is at and the one
//! that it comes to next.
//!
//! A pass says where it is and where it goes; what it has left is released, what comes next is read meanwhile. The sums
//! are those of a base that stays, to the bit: no byte of a weight changes by being read later.

use std::sync::{Mutex, PoisonError};

use super::Base;
use crate::arena::Drawn;
use crate::device::Device;
use crate::family::Role;

/// Which matrices of a base stay in memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Residence {
    /// All of them.
    #[default]
    All,
    /// Those of so many first layers; embedding, head and the other layers pass.
    Window {
        /// How many.
        resident_layers: usize,
    },
}

/// Where a pass is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Looking up embeddings.
    Embedding,
    /// In a layer.
    Layer(usize),
    /// At the head.
    Head,
}

/// What is told when a pass comes to another place, before anything is released: memory is fullest then.
pub type AtTurn = Box<dyn Fn() + Send + Sync>;

/// The matrices that are here of those that pass.
pub(super) struct Window {
    resident_layers: usize,
    held: Mutex<[Option<Place>; 2]>,
    at_turn: Option<AtTurn>,
    _drawn: Drawn,
}

impl Window {
    pub(super) fn new(resident_layers: usize, drawn: Drawn) -> Self {
        Self { resident_layers, held: Mutex::default(), at_turn: None, _drawn: drawn }
    }

    fn is_passing(&self, place: Place) -> bool {
        !matches!(place, Place::Layer(index) if index < self.resident_layers)
    }
}

impl<D: Device> Base<D> {
    /// Has `at_turn` told of every turn of the window; a base that stays has none.
    pub fn watch(&mut self, at_turn: AtTurn) {
        if let Some(window) = &mut self.window {
            window.at_turn = Some(at_turn);
        }
    }

    /// Whether matrices pass through memory.
    pub fn is_passing(&self) -> bool {
        self.window.is_some()
    }

    /// Says that a pass is at a place now and goes to another from there.
    pub(crate) fn come_to(&self, place: Place, next: Option<Place>) {
        let Some(window) = &self.window else { return };
        let now = [Some(self.held_as(place)), next.map(|place| self.held_as(place))];
        let mut held = window.held.lock().unwrap_or_else(PoisonError::into_inner);
        if *held == now {
            return;
        }
        if let Some(at_turn) = &window.at_turn {
            at_turn();
        }
        let passing = |place: &&Place| window.is_passing(**place);
        for left in held.iter().flatten().filter(passing).filter(|left| !now.contains(&Some(**left))) {
            self.device.release(&self.matrices_of(*left));
        }
        // Of an embedding a few rows are read, wherever they lie.
        let comes = now[1].filter(|place| !held.contains(&now[1]) && passing(&place));
        if let Some(comes) = comes {
            self.device.read_ahead(&self.matrices_of(comes));
        }
        *held = now;
    }

    /// The same of a pass from the first layer to the last.
    pub(crate) fn come_to_layer(&self, index: usize) {
        let is_last = index + 1 == self.config.n_layers;
        self.come_to(Place::Layer(index), Some(if is_last { Place::Head } else { Place::Layer(index + 1) }));
    }

    /// A tied head is the embedding.
    fn held_as(&self, place: Place) -> Place {
        match place {
            Place::Head if self.config.tied => Place::Embedding,
            place => place,
        }
    }

    fn matrices_of(&self, place: Place) -> Vec<&D::Weights> {
        match place {
            Place::Embedding => self.outer.matrix(Role::Embedding).into_iter().collect(),
            Place::Head => self.outer.matrix(Role::Output).into_iter().collect(),
            Place::Layer(index) => self.layers[index].matrices().collect(),
        }
    }
}
