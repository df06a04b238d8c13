//! safetensors files, their headers put together as text.

use formats::safetensors::SafetensorsFile;
use formats::source::rows_and_cols;

use super::{Liar, fuzz};

const TENSORS: [&str; 4] = ["model.norm.weight", "lm_head.weight", "__metadata__", "t"];
const TYPES: [(&str, usize); 7] =
    [("F32", 4), ("BF16", 2), ("F16", 2), ("I64", 8), ("U8", 1), ("F8_E4M3", 1), ("F4", 1)];
/// What a number of a header may be instead.
const ODD: [&str; 10] =
    ["-1", "1.0", "1e400", "null", "[]", "\"1\"", "18446744073709551616", "1e3", "{}", "[[[[[[[[1]]]]]]]]"];

#[test]
fn any_safetensors() {
    fuzz(make, SafetensorsFile::open, look);
}

fn make(liar: &mut Liar) -> Vec<u8> {
    let n_tensors = if liar.once_in(300) { 500 + liar.below(2000) } else { liar.below(6) };
    let (mut entries, mut data) = (Vec::new(), Vec::new());
    if liar.once_in(2) {
        entries.push(metadata(liar));
    }
    for index in 0..n_tensors {
        entries.push(tensor(liar, index, &mut data));
    }
    while liar.lies() && !entries.is_empty() {
        let (from, to) = (liar.below(entries.len()), liar.below(entries.len()));
        if liar.once_in(2) { entries.swap(from, to) } else { entries.push(entries[from].clone()) }
    }
    let mut header = format!("{{{}}}", entries.join(","));
    let spaces = header.len().next_multiple_of(8) - header.len();
    header.extend(std::iter::repeat_n(' ', spaces));
    let mut file = liar.number(header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    liar.damage(&mut file);
    file
}

fn metadata(liar: &mut Liar) -> String {
    let n = if liar.once_in(100) { 1000 } else { liar.below(4) };
    let texts: Vec<String> = (0..n)
        .map(|index| {
            let key = if liar.lies() { "format".to_owned() } else { format!("key{index}") };
            let text = if liar.lies() { (*liar.pick(&ODD)).to_owned() } else { quoted(&liar.name(&["pt"])) };
            format!("{}:{text}", quoted(&key))
        })
        .collect();
    format!("\"__metadata__\":{{{}}}", texts.join(","))
}

fn tensor(liar: &mut Liar, index: usize, data: &mut Vec<u8>) -> String {
    let (ty, bytes) = *liar.pick(&TYPES);
    let shape: Vec<usize> = (0..liar.below(5)).map(|_| liar.below(4)).collect();
    let begin = data.len();
    data.extend(liar.bytes(shape.iter().product::<usize>() * bytes));
    let numbers = |liar: &mut Liar, numbers: &[usize]| {
        let texts: Vec<String> = numbers.iter().map(|&truth| number(liar, truth)).collect();
        format!("[{}]", texts.join(","))
    };
    let mut keys = vec![
        format!("\"dtype\":{}", quoted(ty)),
        format!("\"shape\":{}", numbers(liar, &shape)),
        format!("\"data_offsets\":{}", numbers(liar, &[begin, data.len()])),
    ];
    if liar.lies() {
        let extra = liar.pick(&["\"more\":\"text\"", "\"dtype\":\"F32\"", "\"shape\":[1]", "\"more\":{}"]);
        keys.push((*extra).to_owned());
    }
    if liar.lies() {
        keys.swap_remove(liar.below(3));
    }
    let name = liar.own_name(&TENSORS, index);
    format!("{}:{{{}}}", quoted(&name), keys.join(","))
}

fn number(liar: &mut Liar, truth: usize) -> String {
    if liar.lies() { (*liar.pick(&ODD)).to_owned() } else { liar.number(truth as u64).to_string() }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Every tensor lies in the file, and those of numbers that we know are read.
fn look(file: &SafetensorsFile, _: &mut Liar) {
    let mut out = Vec::new();
    for tensor in file.tensors() {
        assert_eq!(file.data(&tensor).len(), tensor.stored_bytes());
        let (rows, cols) = rows_and_cols(&tensor.shape);
        let read = file.read_rows(tensor.name, 0..rows, &mut out);
        assert_eq!(read.is_ok(), tensor.block_type().is_some(), "{read:?}");
        assert!(read.is_err() || out.len() == rows * cols);
        assert!(file.read_rows(tensor.name, rows..rows + 1, &mut out).is_err());
        assert_eq!(file.tensor(tensor.name).as_ref(), Some(&tensor));
    }
}
