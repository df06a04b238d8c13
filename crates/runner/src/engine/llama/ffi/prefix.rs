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
        self.forget_from(tokens.len())
    }

    /// Forgets what is held and does not stand at the beginning of a prompt, but for the prompt's last token, which is read
    /// anew for what follows it; gives how many tokens are still held.
    pub(in crate::engine::llama) fn return_to_beginning_of(&mut self, prompt: &[u32]) -> usize {
        let same = self.held.iter().zip(prompt).take_while(|(held, asked)| held == asked).count();
        let same = same.min(prompt.len().saturating_sub(1));
        if same == 0 || !self.model.can_forget_the_end() || !self.forget_from(same) {
            self.clear();
            return 0;
        }
        if self.prefix.len() > same {
            self.prefix.clear();
        }
        same
    }

    fn forget_from(&mut self, end: usize) -> bool {
        let Ok(position) = i32::try_from(end) else { return false };
        // SAFETY: the context is alive; sequence 0 is the only one.
        let memory = unsafe { sys::llama_get_memory(self.context.as_ptr()) };
        // SAFETY: as above.
        let is_gone = unsafe { sys::llama_memory_seq_rm(memory, 0, position, -1) };
        if is_gone {
            self.held.truncate(end);
        }
        is_gone
    }
}
