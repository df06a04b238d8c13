//! llama.cpp's own quantiser, the peer. Calls into C, so this file has `unsafe`.
#![allow(unsafe_code)]

use std::ffi::{CString, c_char, c_void};
use std::path::Path;

use formats::BlockType;
use formats::gguf::Reader;
use formats::imatrix::ImportanceMatrix;
use llama_cpp_sys_2 as sys;

/// Quantises a GGUF as `llama-quantize [--imatrix MATRIX] INPUT OUTPUT TYPE` does; `file_type` is `general.file_type`
/// of the result, `types` what `--tensor-type` is given.
pub fn quantise(
    input: &Path,
    output: &Path,
    file_type: u32,
    matrix: Option<&Path>,
    types: &[(&str, BlockType)],
) {
    let lacks_rank = lacks_rank(input);
    let path = |path: &Path| c_string(path.to_str().expect("a UTF-8 path"));
    let (input, output) = (path(input), path(output));
    // SAFETY: `quiet` lives as long as the program and does not use its arguments.
    unsafe { sys::llama_log_set(Some(quiet), std::ptr::null_mut()) };
    // SAFETY: initialises tables; may be called again.
    unsafe { sys::llama_backend_init() };
    // SAFETY: returns a plain structure.
    let mut params = unsafe { sys::llama_model_quantize_default_params() };
    params.ftype = file_type as sys::llama_ftype;
    params.nthread = 2;
    let matrix = matrix.map(Matrix::read);
    if let Some(matrix) = &matrix {
        params.imatrix = matrix.data.as_ptr();
    }
    let mut keys = matrix.as_ref().map_or_else(Vec::new, |matrix| matrix.keys.clone());
    keys.extend(lacks_rank.then(|| number_key(RANK, 0)));
    keys.push(number_key("", 0));
    params.kv_overrides = keys.as_ptr();
    let patterns: Vec<CString> = types.iter().map(|(pattern, _)| c_string(pattern)).collect();
    let ids = types.iter().map(|(_, ty)| ty.id().expect("a type of files"));
    let overrides = patterns.iter().map(|pattern| pattern.as_ptr()).zip(ids).chain([(std::ptr::null(), 0)]);
    let overrides: Vec<_> = overrides
        .map(|(pattern, id)| sys::llama_model_tensor_override { pattern, type_: id as sys::ggml_type })
        .collect();
    if !types.is_empty() {
        params.tt_overrides = overrides.as_ptr();
    }
    // SAFETY: all strings, the parameters and the matrix live until the call returns.
    let code = unsafe { sys::llama_model_quantize(input.as_ptr(), output.as_ptr(), &params) };
    assert_eq!(code, 0, "llama_model_quantize failed");
}

/// What llama.cpp asks of a DeepSeek-V2 of other than 26 or 27 layers, and its converter does not write.
const RANK: &str = "deepseek2.attention.q_lora_rank";

fn lacks_rank(input: &Path) -> bool {
    let reader = Reader::open(input).expect("a GGUF");
    let metadata = reader.metadata();
    metadata.get_str("general.architecture") == Some("deepseek2") && metadata.get(RANK).is_none()
}

/// What `llama-quantize` makes of a matrix: an entry for each tensor, and the keys that say where they are from.
struct Matrix {
    /// Points into the two below; the last has no name.
    data: Vec<sys::llama_model_imatrix_data>,
    _names: Vec<CString>,
    _means: Vec<Vec<f32>>,
    keys: Vec<sys::llama_model_kv_override>,
}

impl Matrix {
    fn read(path: &Path) -> Matrix {
        let matrix = ImportanceMatrix::read(path).expect("an importance matrix");
        let names: Vec<CString> = matrix.entries.keys().map(|name| c_string(name)).collect();
        let means: Vec<Vec<f32>> = matrix.entries.values().map(|entry| entry.means()).collect();
        let entries =
            names.iter().zip(&means).map(|(name, means)| (name.as_ptr(), means.as_ptr(), means.len()));
        let end = (std::ptr::null(), std::ptr::null(), 0);
        let data =
            entries.chain([end]).map(|(name, data, size)| sys::llama_model_imatrix_data { name, data, size });
        let file = path.file_name().expect("a name").to_str().expect("a UTF-8 name");
        let mut keys = vec![text_key("quantize.imatrix.file", file)];
        keys.extend(matrix.datasets.first().map(|dataset| text_key("quantize.imatrix.dataset", dataset)));
        keys.push(number_key("quantize.imatrix.entries_count", matrix.entries.len() as i64));
        if matrix.n_chunks > 0 {
            keys.push(number_key("quantize.imatrix.chunks_count", i64::from(matrix.n_chunks)));
        }
        Matrix { data: data.collect(), _names: names, _means: means, keys }
    }
}

fn number_key(key: &str, value: i64) -> sys::llama_model_kv_override {
    let value = sys::llama_model_kv_override__bindgen_ty_1 { val_i64: value };
    sys::llama_model_kv_override {
        tag: sys::LLAMA_KV_OVERRIDE_TYPE_INT,
        key: fixed(key),
        __bindgen_anon_1: value,
    }
}

fn text_key(key: &str, value: &str) -> sys::llama_model_kv_override {
    let value = sys::llama_model_kv_override__bindgen_ty_1 { val_str: fixed(value) };
    sys::llama_model_kv_override {
        tag: sys::LLAMA_KV_OVERRIDE_TYPE_STR,
        key: fixed(key),
        __bindgen_anon_1: value,
    }
}

/// A text with at least one zero behind it.
fn fixed(text: &str) -> [c_char; 128] {
    let mut fixed = [0; 128];
    for (to, from) in fixed[..127].iter_mut().zip(text.bytes()) {
        *to = from as c_char;
    }
    fixed
}

fn c_string(text: &str) -> CString {
    CString::new(text).expect("a text without zeros")
}

/// Several lines a tensor, on the terminal of whoever compares.
unsafe extern "C" fn quiet(_level: sys::ggml_log_level, _text: *const c_char, _data: *mut c_void) {}
