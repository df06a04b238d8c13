//! What engines that are servers share: requests that are bounded, can be dropped at any moment, and are tried again
//! only where nothing of an answer was used yet.

mod address;
pub(crate) mod body;
mod lines;
mod patience;
mod upload;
pub(crate) mod vectors;
mod wire;

pub(crate) use address::Address;
pub(crate) use lines::Lines;
pub use patience::Patience;
pub(crate) use upload::Upload;
pub(crate) use wire::{Ask, Content, Fault, Limits, Method, Poll, Wire, patiently, pause};

use crate::Error;

/// The error of a request to a server that came to nothing after so many tries.
pub(crate) fn failed(address: &Address, request: &str, (tries, fault): (u32, Fault)) -> Error {
    let (reason, hint) = match fault {
        Fault::Cancelled => return Error::Cancelled,
        Fault::Passing { reason, .. } => (reason, None),
        Fault::Lasting { reason, hint } => (reason, hint),
    };
    Error::Remote { server: address.to_string(), request: request.to_owned(), tries, reason, hint }
}
