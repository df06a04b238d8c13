//! What llama.cpp computes from a file: logits, and what the matrices of the layers are multiplied with. Calls into C, so
//! this file has `unsafe`.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_void};
use std::path::Path;

use formats::imatrix::Entry;
use llama_cpp_sys_2 as sys;

/// What came of a sequence.
pub struct Run {
    /// The logits (V) after each token.
    pub logits: Vec<Vec<f32>>,
    /// Σ x² of each column of each matrix, by name: what `llama-imatrix` collects.
    pub importance: BTreeMap<String, Entry>,
}

/// Runs a sequence, with 32-bit keys and values and plain attention, with an adapter's file or without.
pub fn run(file: &Path, adapter: Option<&Path>, tokens: &[u32]) -> Run {
    let c_path = |path: &Path| CString::new(path.to_str().expect("UTF-8")).expect("a path without zeros");
    let path = c_path(file);
    let n = tokens.len();
    let mut importance: BTreeMap<String, Entry> = BTreeMap::new();
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
    params.cb_eval = Some(collect);
    params.cb_eval_user_data = (&raw mut importance).cast();
    // SAFETY: the model was loaded above and is freed after the context, `importance` lives longer than both.
    let context = unsafe { sys::llama_init_from_model(model, params) };
    assert!(!context.is_null(), "llama.cpp makes no context");
    if let Some(path) = adapter.map(c_path) {
        // SAFETY: the model is alive and frees the adapter with itself.
        let mut adapter = unsafe { sys::llama_adapter_lora_init(model, path.as_ptr()) };
        assert!(!adapter.is_null(), "llama.cpp does not load the adapter {path:?}");
        // SAFETY: one adapter and one scale, which are copied.
        let code = unsafe { sys::llama_set_adapters_lora(context, &mut adapter, 1, &mut 1.0) };
        assert_eq!(code, 0, "llama.cpp does not take the adapter");
    }
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
    let logits = (0..n).map(row).collect();
    // SAFETY: nothing uses them any more.
    unsafe {
        sys::llama_batch_free(batch);
        sys::llama_free(context);
        sys::llama_model_free(model);
    }
    Run { logits, importance }
}

/// Asked for each operation before it runs whether it is wanted, and called again once it has run.
unsafe extern "C" fn collect(tensor: *mut sys::ggml_tensor, asks: bool, to: *mut c_void) -> bool {
    // SAFETY: llama.cpp passes an operation of the graph, whose sources are tensors or null.
    let (tensor, weights) = unsafe { (&*tensor, (*tensor).src[0].as_ref()) };
    let is_product = tensor.op == sys::GGML_OP_MUL_MAT || tensor.op == sys::GGML_OP_MUL_MAT_ID;
    // SAFETY: a name ends with a zero.
    let name = weights.map(|weights| unsafe { CStr::from_ptr(weights.name.as_ptr()) }.to_string_lossy());
    let Some((weights, name)) = weights.zip(name).filter(|(_, name)| is_product && name.starts_with("blk."))
    else {
        return false;
    };
    if asks {
        return true;
    }
    // SAFETY: a product has two sources in the processor's memory, and with picked matrices the picks as a third;
    // `to` is the map of `run`.
    let (x, picks, to) =
        unsafe { (&*tensor.src[1], tensor.src[2].as_ref(), &mut *to.cast::<BTreeMap<String, Entry>>()) };
    let (cols, n_matrices) = (x.ne[0] as usize, weights.ne[2] as usize);
    let entry = to
        .entry(name.into_owned())
        .or_insert_with(|| Entry { sums: vec![0.0; cols * n_matrices], counts: vec![0.0; n_matrices] });
    let mut add = |matrix: usize, [i1, i2]: [i64; 2]| {
        let place = i1 as usize * x.nb[1] + i2 as usize * x.nb[2];
        // SAFETY: a row of 32-bit floats inside of the tensor.
        let row = unsafe { std::slice::from_raw_parts(x.data.byte_add(place).cast::<f32>(), cols) };
        entry.counts[matrix] += 1.0;
        let sums = &mut entry.sums[matrix * cols..(matrix + 1) * cols];
        sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x * x);
    };
    match picks.filter(|_| tensor.op == sys::GGML_OP_MUL_MAT_ID) {
        Some(picks) => {
            for (token, pick) in (0..picks.ne[1]).flat_map(|token| (0..picks.ne[0]).map(move |i| (token, i)))
            {
                let place = token as usize * picks.nb[1] + pick as usize * picks.nb[0];
                // SAFETY: a 32-bit number inside of the tensor.
                let matrix = unsafe { *picks.data.byte_add(place).cast::<i32>() };
                add(matrix as usize, [pick % x.ne[1], token]);
            }
        }
        None => {
            for (i2, i1) in (0..x.ne[2]).flat_map(|i2| (0..x.ne[1]).map(move |i1| (i2, i1))) {
                add(i2 as usize % n_matrices, [i1, i2]);
            }
        }
    }
    true
}

/// Several lines a tensor, on the terminal of whoever compares.
unsafe extern "C" fn quiet(_level: sys::ggml_log_level, _text: *const c_char, _data: *mut c_void) {}
