//! The beginning of a prompt that stays in the cache for the next one.
//!
//! It is valid for one context alone: its file, adapters and their scales, types and size of the cache are then the same.
//! Whatever else changes the cache forgets it.
//!
//! Unsafe: as the module above.
#![allow(unsafe_code)]

use llama_cpp_sys_2 as sys;

use super::{Context, Model};

impl Model {
    /// Whether the end of a sequence can be taken out of a cache: not of states that hold all that was read, nor where
    /// a window has let go of what stands before it.
    pub(super) fn can_forget_the_end(&self) -> bool {
        let model = self.0.as_ptr();
        // SAFETY: the model is alive.
        let holds_states =
            unsafe { sys::llama_model_is_recurrent(model) || sys::llama_model_is_hybrid(model) };
        // SAFETY: as above.
        !holds_states && unsafe { sys::llama_model_n_swa(model) } == 0
    }
}

impl Context {
    /// Says that these tokens, and no others, were read from the beginning on, in pieces that depend on nothing else.
    pub(in crate::engine::llama) fn keep_prefix(&mut self, tokens: &[u32]) {
        if self.model.can_forget_the_end() {
            self.prefix = tokens.to_vec();
        }
    }

    /// Forgets what was read after these tokens, if it was them that were kept; gives whether it was.
    pub(in crate::engine::llama) fn return_to(&mut self, tokens: &[u32]) -> bool {
        if tokens.is_empty() || self.prefix != tokens {
            return false;
        }
        let Ok(end) = i32::try_from(tokens.len()) else { return false };
        // SAFETY: the context is alive; sequence 0 is the only one.
        unsafe { sys::llama_memory_seq_rm(sys::llama_get_memory(self.context.as_ptr()), 0, end, -1) }
    }
}
