//! LoRA adapters over a loaded model: read from a file, and set in a context.
//!
//! Unsafe: as the module above. An [`Adapter`] owns its pointer and keeps its model alive; a context keeps the
//! adapters alive that are set in it, since llama.cpp keeps bare pointers to them.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;

use llama_cpp_sys_2 as sys;

use super::{Context, Model, log};

/// The matrices of an adapter, in memory beside those of its base.
pub(in crate::engine::llama) struct Adapter {
    adapter: NonNull<sys::llama_adapter_lora>,
    _model: Arc<Model>,
}

// SAFETY: an adapter has no thread affinity and is not changed after its load. Loading and freeing one changes its
// model's list of adapters, which only the session that opened the model does, under its `&mut self`.
unsafe impl Send for Adapter {}
// SAFETY: as above.
unsafe impl Sync for Adapter {}

impl Adapter {
    /// Reads an adapter's file. The error is llama.cpp's own words.
    pub(in crate::engine::llama) fn load(model: &Arc<Model>, path: &Path) -> Result<Self, String> {
        let text = path.to_str().ok_or("the path is not valid Unicode")?;
        let text = CString::new(text).map_err(|_| "the path holds a zero byte")?;
        // SAFETY: the model is alive; the path outlives the call, which catches C++ exceptions.
        let (adapter, lines) =
            log::keep(|| unsafe { sys::llama_adapter_lora_init(model.0.as_ptr(), text.as_ptr()) });
        let adapter = NonNull::new(adapter).ok_or_else(|| log::reason(&lines))?;
        Ok(Self { adapter, _model: Arc::clone(model) })
    }
}

impl Drop for Adapter {
    fn drop(&mut self) {
        // SAFETY: owned, freed once; the model is still alive, its `Arc` is dropped after.
        unsafe { sys::llama_adapter_lora_free(self.adapter.as_ptr()) };
    }
}

impl Context {
    /// Those that are set.
    pub(in crate::engine::llama) fn adapters(&self) -> &[(Arc<Adapter>, f32)] {
        &self.adapters
    }

    /// Sets adapters, each with its scale, in the stead of those that were set, and forgets what was read: keys and
    /// values made under one adapter mean nothing under another. The buffers are laid out anew by the next piece.
    pub(in crate::engine::llama) fn set_adapters(
        &mut self,
        adapters: Vec<(Arc<Adapter>, f32)>,
    ) -> Result<(), String> {
        let mut pointers: Vec<_> = adapters.iter().map(|(adapter, _)| adapter.adapter.as_ptr()).collect();
        let mut scales: Vec<f32> = adapters.iter().map(|(_, scale)| *scale).collect();
        self.clear();
        // SAFETY: context and adapters are alive; both arrays have as many entries as is said.
        let code = unsafe {
            sys::llama_set_adapters_lora(
                self.context.as_ptr(),
                pointers.as_mut_ptr(),
                pointers.len(),
                scales.as_mut_ptr(),
            )
        };
        // Only now may those that were set go.
        self.adapters = adapters;
        if code == 0 { Ok(()) } else { Err(format!("the engine refused the adapters (code {code})")) }
    }
}
