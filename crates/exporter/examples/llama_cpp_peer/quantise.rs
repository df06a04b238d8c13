//! llama.cpp's own quantiser, the peer. Calls into C, so this file has `unsafe`.
#![allow(unsafe_code)]

use std::ffi::{CString, c_char, c_void};
use std::path::Path;

use llama_cpp_sys_2 as sys;

/// Quantises a GGUF as `llama-quantize INPUT OUTPUT TYPE` does; `file_type` is `general.file_type` of the result.
pub fn quantise(input: &Path, output: &Path, file_type: u32) {
    let path =
        |path: &Path| CString::new(path.to_str().expect("a UTF-8 path")).expect("a path without zeros");
    let (input, output) = (path(input), path(output));
    // SAFETY: `quiet` lives as long as the program and does not use its arguments.
    unsafe { sys::llama_log_set(Some(quiet), std::ptr::null_mut()) };
    // SAFETY: initialises tables; may be called again.
    unsafe { sys::llama_backend_init() };
    // SAFETY: returns a plain structure.
    let mut params = unsafe { sys::llama_model_quantize_default_params() };
    params.ftype = file_type as sys::llama_ftype;
    params.nthread = 2;
    // SAFETY: both strings and the parameters live until the call returns.
    let code = unsafe { sys::llama_model_quantize(input.as_ptr(), output.as_ptr(), &params) };
    assert_eq!(code, 0, "llama_model_quantize failed");
}

/// Several lines a tensor, on the terminal of whoever compares.
unsafe extern "C" fn quiet(_level: sys::ggml_log_level, _text: *const c_char, _data: *mut c_void) {}
