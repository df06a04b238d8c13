//! Logits as llama.cpp computes them from a file. Calls into C, so this file has `unsafe`.
#![allow(unsafe_code)]

use std::ffi::{CString, c_char, c_void};
use std::path::Path;

use llama_cpp_sys_2 as sys;

/// The logits (V) after each token of a sequence, with 32-bit keys and values and plain attention.
pub fn logits(file: &Path, tokens: &[u32]) -> Vec<Vec<f32>> {
    let path = CString::new(file.to_str().expect("a UTF-8 path")).expect("a path without zeros");
    let n = tokens.len();
    // SAFETY: `quiet` lives as long as the program and does not use its arguments.
    unsafe { sys::llama_log_set(Some(quiet), std::ptr::null_mut()) };
    // SAFETY: initialises tables; may be called again.
    unsafe { sys::llama_backend_init() };
    // SAFETY: both return plain structures.
    let (model_params, mut params) =
        unsafe { (sys::llama_model_default_params(), sys::llama_context_default_params()) };
    // SAFETY: the path lives until the call returns.
    let model = unsafe { sys::llama_model_load_from_file(path.as_ptr(), model_params) };
    assert!(!model.is_null(), "llama.cpp does not load {}", file.display());
    (params.n_ctx, params.n_batch, params.n_ubatch, params.n_outputs_max) =
        (n as u32, n as u32, n as u32, n as u32);
    (params.n_threads, params.n_threads_batch) = (1, 1);
    (params.type_k, params.type_v) = (sys::GGML_TYPE_F32, sys::GGML_TYPE_F32);
    params.flash_attn_type = sys::LLAMA_FLASH_ATTN_TYPE_DISABLED;
    // SAFETY: the model was loaded above and is freed after the context.
    let context = unsafe { sys::llama_init_from_model(model, params) };
    assert!(!context.is_null(), "llama.cpp makes no context");
    // SAFETY: room for n tokens of one sequence each.
    let mut batch = unsafe { sys::llama_batch_init(n as i32, 0, 1) };
    batch.n_tokens = n as i32;
    for (i, &token) in tokens.iter().enumerate() {
        // SAFETY: the arrays hold n entries, `seq_id` n lists of one.
        unsafe {
            *batch.token.add(i) = token as i32;
            *batch.pos.add(i) = i as i32;
            *batch.n_seq_id.add(i) = 1;
            **batch.seq_id.add(i) = 0;
            *batch.logits.add(i) = 1;
        }
    }
    // SAFETY: the context is alive and the batch filled.
    assert_eq!(unsafe { sys::llama_decode(context, batch) }, 0, "llama_decode failed");
    // SAFETY: the model is alive.
    let n_vocabulary = unsafe { sys::llama_vocab_n_tokens(sys::llama_model_get_vocab(model)) } as usize;
    let row = |i: usize| {
        // SAFETY: every token asked for its logits, of which there is one for each entry of the vocabulary.
        unsafe { std::slice::from_raw_parts(sys::llama_get_logits_ith(context, i as i32), n_vocabulary) }
            .to_vec()
    };
    let rows = (0..n).map(row).collect();
    // SAFETY: nothing uses them any more.
    unsafe {
        sys::llama_batch_free(batch);
        sys::llama_free(context);
        sys::llama_model_free(model);
    }
    rows
}

/// Several lines a tensor, on the terminal of whoever compares.
unsafe extern "C" fn quiet(_level: sys::ggml_log_level, _text: *const c_char, _data: *mut c_void) {}
