//! Whether an expert fits, and what would fit in its stead: computed, each with what it would take.

use std::fmt;

use model::Quant;
use serde::{Deserialize, Serialize};

use super::context::CONTEXT_STEP;
use super::{Available, Budget, Head, Place, asked_context, budget};
use crate::card::{KvType, LoadOptions};

/// A shorter context than this is no help to a step.
const SHORTEST_CONTEXT: u32 = 512;

/// Tokens of a piece that are still read at nearly full speed.
const SMALL_BATCH: u32 = 128;

/// Quantisations to fall back on, the best first.
const SMALLER: [Quant; 6] = [Quant::Q8_0, Quant::Q6K, Quant::Q5KM, Quant::Q4KM, Quant::Q3KM, Quant::Q2K];

/// One change with which an expert would fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "snake_case")]
pub enum Remedy {
    /// The longest context that fits.
    Context {
        /// Tokens.
        num_ctx: u32,
        /// What the expert then takes.
        need_bytes: u64,
    },
    /// Keys and values in fewer bits.
    KvType {
        /// The type of both.
        kv_type: KvType,
        /// Tokens of context, where it must be shorter too.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        num_ctx: Option<u32>,
        /// What the expert then takes.
        need_bytes: u64,
    },
    /// Shorter pieces of a prompt.
    Batch {
        /// Tokens.
        num_batch: u32,
        /// What the expert then takes.
        need_bytes: u64,
    },
    /// Weights in fewer bits.
    Quant {
        /// As `tune export --quant` takes it.
        quant: String,
        /// What the expert then takes.
        need_bytes: u64,
    },
    /// Another expert, named for this in the card.
    Fallback {
        /// Its name.
        expert: String,
        /// What it takes.
        need_bytes: u64,
    },
    /// Another expert, named for this in the card, whose model a server holds.
    Server {
        /// Its name.
        expert: String,
    },
}

impl Remedy {
    /// What the expert would take of the memory that is too small.
    pub fn need_bytes(&self) -> u64 {
        match self {
            Self::Context { need_bytes, .. }
            | Self::KvType { need_bytes, .. }
            | Self::Batch { need_bytes, .. }
            | Self::Quant { need_bytes, .. }
            | Self::Fallback { need_bytes, .. } => *need_bytes,
            Self::Server { .. } => 0,
        }
    }
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Context { num_ctx, .. } => write!(f, "num_ctx = {num_ctx}")?,
            Self::KvType { kv_type, num_ctx: None, .. } => write!(f, "kv_type = \"{kv_type}\"")?,
            Self::KvType { kv_type, num_ctx: Some(n), .. } => {
                write!(f, "kv_type = \"{kv_type}\" with num_ctx = {n}")?;
            }
            Self::Batch { num_batch, .. } => write!(f, "num_batch = {num_batch}")?,
            Self::Quant { quant, .. } => write!(f, "the file as {quant}")?,
            Self::Fallback { expert, .. } => write!(f, "its fallback `{expert}`")?,
            Self::Server { expert } => return write!(f, "its fallback `{expert}` on its server"),
        }
        write!(f, " ({})", size(self.need_bytes()))
    }
}

/// Whether both memories have room.
pub fn fits(budget: &Budget, available: &Available) -> bool {
    let has_room = |free: Option<u64>, need: u64| need == 0 || free.is_none_or(|free| need <= free);
    has_room(available.card_bytes, budget.card.total_bytes())
        && has_room(available.main_bytes, budget.main.total_bytes())
}

/// What would fit where an expert does not, from the smallest loss to the largest.
pub fn remedies(head: &Head, load: &LoadOptions, place: Place, available: &Available) -> Vec<Remedy> {
    let search = Search { head, place, available };
    let mut found = Vec::new();
    let batch = LoadOptions { num_batch: SMALL_BATCH, ..load.clone() };
    if load.num_batch > SMALL_BATCH {
        found.extend(
            search.need(&batch).map(|need_bytes| Remedy::Batch { num_batch: SMALL_BATCH, need_bytes }),
        );
    }
    let shorter = search.longest(load);
    let quantised = LoadOptions { kv_type_k: KvType::Q8_0, kv_type_v: KvType::Q8_0, ..load.clone() };
    // Without flash attention values can't be quantised, and of a mixer there is nothing to.
    let gains = budget(head, &quantised, place).memory().context_bytes
        < budget(head, load, place).memory().context_bytes;
    if gains && quantised.check().is_ok() {
        let (kv_type, at_all) = (KvType::Q8_0, shorter.map_or(0, |(num_ctx, _)| num_ctx));
        match search.need(&quantised) {
            Some(need_bytes) => found.push(Remedy::KvType { kv_type, num_ctx: None, need_bytes }),
            None => {
                found.extend(search.longest(&quantised).filter(|(n, _)| *n > at_all).map(
                    |(num_ctx, need_bytes)| Remedy::KvType { kv_type, num_ctx: Some(num_ctx), need_bytes },
                ))
            }
        }
    }
    found.extend(shorter.map(|(num_ctx, need_bytes)| Remedy::Context { num_ctx, need_bytes }));
    found.extend(search.smaller(load));
    found
}

struct Search<'a> {
    head: &'a Head,
    place: Place,
    available: &'a Available,
}

impl Search<'_> {
    /// What is taken under these options, if that fits.
    fn need(&self, load: &LoadOptions) -> Option<u64> {
        self.need_of(self.head, load)
    }

    fn need_of(&self, head: &Head, load: &LoadOptions) -> Option<u64> {
        let budget = budget(head, load, self.place);
        fits(&budget, self.available).then(|| budget.share(self.place).total_bytes())
    }

    /// The longest context that fits, shorter than the one asked for. What is taken grows with the context.
    fn longest(&self, load: &LoadOptions) -> Option<(u32, u64)> {
        let step = u32::try_from(CONTEXT_STEP).unwrap_or(256);
        let asked = asked_context(self.head, load);
        let at = |steps: u32| LoadOptions { num_ctx: steps * step, ..load.clone() };
        let (mut low, mut high) = (SHORTEST_CONTEXT / step, asked.saturating_sub(1) / step);
        if high < low || self.need(&at(low)).is_none() {
            return None;
        }
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if self.need(&at(middle)).is_some() { low = middle } else { high = middle - 1 }
        }
        Some((low * step, self.need(&at(low))?))
    }

    /// The best quantisation with fewer bits than the file has.
    fn smaller(&self, load: &LoadOptions) -> Option<Remedy> {
        SMALLER.into_iter().find_map(|quant| {
            let head = self.head.requantised(quant)?;
            if head.tensor_bytes() >= self.head.tensor_bytes() {
                return None;
            }
            let need_bytes = self.need_of(&head, load)?;
            Some(Remedy::Quant { quant: quant.to_string(), need_bytes })
        })
    }
}

/// `5.63 GiB`, `14.3 MiB`.
pub(crate) fn size(bytes: u64) -> String {
    const MIB: f64 = 1024.0 * 1024.0;
    let mib = bytes as f64 / MIB;
    if mib < 1024.0 { format!("{mib:.1} MiB") } else { format!("{:.2} GiB", mib / 1024.0) }
}
