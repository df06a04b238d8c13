//! Where A and B begin: at random, or at the leading part of the weights or of what quantising them loses.

mod decomposition;
mod shifted;
mod svd;
mod uniform;

pub use decomposition::{Decomposition, Residual, decompose};
pub use shifted::Shifted;
pub(in crate::lora) use uniform::kaiming_uniform;

/// A method that takes A and B from the weights themselves; without one A is random and B zero.
///
/// Each changes what the base is held as: what A and B hold already is taken out of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// A and B are the R leading singular vectors of W; the base holds the rest.
    ///
    /// Source: Meng et al. 2024, arXiv:2404.02948 (PiSSA; QPiSSA on a quantised base).
    Pissa,
    /// A and B are what quantising loses, as far as rank R goes, found by turns: Q = q(W - s·B·A), then s·B·A ≈ W - Q.
    ///
    /// Source: Li et al. 2023, arXiv:2310.08659 (LoftQ), algorithm 1.
    LoftQ {
        /// T, how often. The best of the T is kept.
        iterations: usize,
    },
}
