//! Decoder families over frozen 4-bit weights: forward, hand-written backward, LoRA, loss, optimiser, decoding.
//!
//! A [`base::Base`] holds every weight as ggml blocks on a [`device::Device`]; a [`lora::Adapter`] is all that is
//! trained; [`step::TrainStep`] runs one packed [`step::Batch`] through both, forward and backward, in memory that
//! was drawn from the device's [`arena::Arena`] before the first step. No files, no terminal.

#![deny(missing_docs)]
#![deny(unsafe_code)]

pub mod arena;
pub mod base;
pub mod config;
pub mod device;
pub mod error;
pub mod family;
pub mod generate;
pub mod importance;
pub mod lora;
pub mod loss;
pub mod memory;
pub mod optimizer;
pub mod policy;
pub mod preference;
mod random;
pub mod step;

pub use base::Base;
pub use config::ModelConfig;
pub use device::{Device, cpu::Cpu};
pub use error::{Error, Result};
pub use family::Family;
pub use lora::{Adapter, LoraOptions};
pub use optimizer::AdamW;
pub use policy::Quant;
pub use step::{Batch, LossSum, TrainStep};
