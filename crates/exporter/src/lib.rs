//! From a base, with or without adapters, to a checked GGUF: merge, quantise, verify.
//!
//! [`export`] runs the stages in order, each in its own module: everything that can be refused is refused by the
//! plan before a byte is written; tensors are merged and quantised tile by tile into a `*.tmp` file; that file is
//! read back, compared with the plan, and judged by the gate in the engine that will serve it; only then does it
//! get its final name, followed by its Modelfile and, last, the receipt.

#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod adapter;
mod base;
mod checks;
mod error;
mod event;
mod export;
mod fidelity;
mod forms;
mod gate;
mod importance;
mod journal;
mod license;
mod measure;
mod memory;
mod merged;
mod metadata;
mod modelfile;
mod pending;
mod plan;
mod read_back;
mod receipt;
mod request;
mod running;
mod sequences;
mod tiles;
mod types;
mod write;

pub use base::max_positions;
pub use error::{Error, Result};
pub use event::Event;
pub use export::{export, export_each};
pub use fidelity::{Divergence, Fidelity};
pub use forms::{FormReceipt, FormRequest, WrittenFile, export_adapter, export_checkpoint};
pub use gate::{EngineError, Generation, LoadedModel, Verifier};
pub use receipt::{GateFigures, MergedAdapter, Receipt, Sources, Times, TypeCount};
pub use request::{
    AdapterSource, Calibration, Figures, ImportanceSource, Limits, Provenance, Reference, Request, Template,
    TypeOverride,
};
