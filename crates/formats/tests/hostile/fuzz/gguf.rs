//! GGUF files, written field by field without our writer.

use formats::gguf::{Metadata, Planned, Reader, TensorInfo, Writer};
use formats::{BlockType, TensorSource};

use super::{Liar, fuzz};

const KEYS: [&str; 5] =
    ["general.architecture", "general.alignment", "llama.block_count", "tokenizer.ggml.tokens", "k"];
const TENSORS: [&str; 4] = ["token_embd.weight", "blk.0.attn_q.weight", "output_norm.weight", "t"];
/// Numbers of the value types that are no arrays, with the bytes of one (strings: their length).
const TYPES: [(u32, usize); 12] =
    [(0, 1), (1, 1), (2, 2), (3, 2), (4, 4), (5, 4), (6, 4), (7, 1), (8, 8), (10, 8), (11, 8), (12, 8)];
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

#[test]
fn any_gguf() {
    fuzz(make, Reader::open, look);
}

fn make(liar: &mut Liar) -> Vec<u8> {
    let mut file = Vec::new();
    file.extend(if liar.lies() { *b"FUGG" } else { *b"GGUF" });
    let version = if liar.once_in(4) { 2 } else { 3 };
    u32_of(liar, version, &mut file);
    let (n_tensors, n_keys) = (liar.below(6), liar.below(6));
    u64_of(liar, n_tensors as u64, &mut file);
    u64_of(liar, n_keys as u64, &mut file);
    let mut alignment = 32;
    for index in 0..n_keys {
        let asks = index == 0 && liar.once_in(3);
        let key = if asks { "general.alignment".to_owned() } else { liar.own_name(&KEYS, index) };
        string_of(liar, &key, &mut file);
        if asks {
            alignment = *liar.pick(&[8, 16, 32, 64, 4096]);
            u32_of(liar, 4, &mut file);
            u32_of(liar, alignment, &mut file);
        } else {
            value(liar, &mut file);
        }
    }
    let mut data = Vec::new();
    for index in 0..n_tensors {
        tensor(liar, index, alignment as usize, &mut file, &mut data);
    }
    if n_tensors > 0 {
        file.resize(file.len().next_multiple_of(alignment as usize), 0);
    }
    file.extend(data);
    liar.damage(&mut file);
    file
}

fn value(liar: &mut Liar, file: &mut Vec<u8>) {
    if liar.once_in(3) {
        u32_of(liar, ARRAY, file);
        return array(liar, 0, file);
    }
    let &(ty, bytes) = liar.pick(&TYPES);
    u32_of(liar, ty, file);
    single(liar, ty, bytes, file);
}

fn array(liar: &mut Liar, depth: u32, file: &mut Vec<u8>) {
    let length = if liar.once_in(200) { 2000 + liar.below(6000) } else { liar.below(9) };
    if depth < 6 && liar.once_in(4) {
        u32_of(liar, ARRAY, file);
        let length = length.min(4);
        u64_of(liar, length as u64, file);
        return (0..length).for_each(|_| array(liar, depth + 1, file));
    }
    let &(ty, bytes) = liar.pick(&TYPES);
    u32_of(liar, ty, file);
    u64_of(liar, length as u64, file);
    (0..length).for_each(|_| single(liar, ty, bytes, file));
}

fn single(liar: &mut Liar, ty: u32, bytes: usize, file: &mut Vec<u8>) {
    match ty {
        BOOL => file.push(u8::from(liar.once_in(2)) + if liar.lies() { 2 } else { 0 }),
        STRING => {
            let text = liar.name(&KEYS);
            string_of(liar, &text, file);
        }
        _ => file.extend(liar.bytes(bytes)),
    }
}

fn tensor(liar: &mut Liar, index: usize, alignment: usize, file: &mut Vec<u8>, data: &mut Vec<u8>) {
    let name = liar.own_name(&TENSORS, index);
    string_of(liar, &name, file);
    let ty = *liar.pick(&BlockType::ALL);
    let mut shape = vec![ty.block_len() * (1 + liar.below(3))];
    (0..liar.below(4)).for_each(|_| shape.push(1 + liar.below(3)));
    let bytes = shape.iter().product::<usize>() / ty.block_len() * ty.block_bytes();
    u32_of(liar, shape.len() as u32, file);
    shape.iter().for_each(|&dimension| u64_of(liar, dimension as u64, file));
    u32_of(liar, ty.id().expect("a type of ggml's"), file);
    u64_of(liar, data.len() as u64, file);
    data.extend(liar.bytes(bytes));
    data.resize(data.len().next_multiple_of(alignment), 0);
}

#[allow(clippy::cast_possible_truncation, reason = "a lie may be cut")]
fn u32_of(liar: &mut Liar, truth: u32, file: &mut Vec<u8>) {
    file.extend((liar.number(truth.into()) as u32).to_le_bytes());
}

fn u64_of(liar: &mut Liar, truth: u64, file: &mut Vec<u8>) {
    file.extend(liar.number(truth).to_le_bytes());
}

fn string_of(liar: &mut Liar, text: &str, file: &mut Vec<u8>) {
    u64_of(liar, text.len() as u64, file);
    file.extend(text.as_bytes());
}

/// Everything in the file can be read, and written again without a change.
fn look(reader: &Reader, liar: &mut Liar) {
    let mut out = Vec::new();
    for tensor in reader.tensors() {
        assert_eq!(reader.data(tensor).len() as u64, tensor.bytes);
        let values = tensor.shape.iter().product::<u64>();
        reader.read(&tensor.name, &mut out).unwrap();
        assert_eq!(out.len() as u64, values);
        let rows = out.len() / tensor.shape[0] as usize;
        assert!(reader.read_rows(&tensor.name, rows..rows + 1, &mut out).is_err());
        assert_eq!(reader.tensor(&tensor.name), Some(tensor));
    }
    if liar.once_in(8) && reader.tensors().iter().all(|tensor| (1..64).contains(&tensor.name.len())) {
        written_again(reader);
    }
}

fn written_again(reader: &Reader) {
    let planned = |tensor: &TensorInfo| (tensor.name.clone(), tensor.shape.clone(), tensor.ty);
    let tensors: Vec<Planned> = reader.tensors().iter().map(planned).collect();
    let metadata: Metadata = reader.metadata().entries().iter().cloned().collect();
    let write = |reader: &Reader| {
        let mut writer = Writer::begin(Vec::new(), &metadata, &tensors).unwrap();
        reader.tensors().iter().for_each(|tensor| writer.write_tensor(reader.data(tensor)).unwrap());
        writer.finish().unwrap()
    };
    let first = write(reader);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("again");
    std::fs::write(&path, &first).unwrap();
    assert_eq!(write(&Reader::open(&path).unwrap()), first);
}
