//! Models of the Hugging Face hub, downloaded into the cache that its own tools use.
//!
//! Begin at [`pull()`]: the listing of a repository, the choice of what training needs, one verified blob a file, and
//! the links by which Python's `huggingface_hub` finds them, as this crate finds what that one has downloaded.
//! Nothing here prints or reads the environment: tokens, endpoint and cache come in as [`Options`].

#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod blob;
mod cache;
mod choice;
mod client;
mod digest;
mod error;
mod event;
mod listing;
mod meter;
mod model_id;
mod pull;

pub use error::{Error, Result};
pub use event::Event;
pub use model_id::ModelId;
pub use pull::{Options, Pulled, pull, resolve};
