//! safetensors and checkpoints: round trips, shards, and every known way to attack a reader.

#![allow(clippy::result_large_err, reason = "the error and its text, in tests")]

use std::io::Write;
use std::path::Path;

use expect_test::{Expect, expect};
use formats::checkpoint::{Checkpoint, Data, write_safetensors};
use formats::safetensors::SafetensorsFile;
use formats::{Error, TensorSource};
use proptest::prelude::*;

fn file(header: &str, data_bytes: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data_bytes, 0);
    bytes
}

fn open(bytes: &[u8]) -> Result<SafetensorsFile, (Error, String)> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    std::fs::write(&path, bytes).unwrap();
    SafetensorsFile::open(&path).map_err(|error| {
        let text = error.to_string().replace(&path.display().to_string(), "x.safetensors");
        (error, text)
    })
}

fn refuse(bytes: &[u8], expected: &Expect) -> Error {
    let (error, text) = open(bytes).expect_err("the file is wrong");
    expected.assert_eq(&text);
    error
}

#[test]
fn what_is_written_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let (a, b) = ([1.0, -2.5, 3.25, 0.0, 5.0, -6.0], [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0]);
    let tensors = [
        ("a".to_owned(), vec![3, 2], Data::F32(&a)),
        ("b".to_owned(), vec![2], Data::Bf16(&b)),
        ("empty".to_owned(), vec![0, 4], Data::F32(&[])),
    ];
    write_safetensors(&path, &tensors).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.tensor_names(), ["a", "b", "empty"]);
    assert_eq!(checkpoint.shape("a"), Some(vec![3, 2]));
    let mut out = Vec::new();
    checkpoint.read("a", &mut out).unwrap();
    assert_eq!(out, a);
    checkpoint.read_rows("a", 1..3, &mut out).unwrap();
    assert_eq!(out, a[2..]);
    checkpoint.read("b", &mut out).unwrap();
    // Both lay in the middle of two bf16 numbers.
    assert_eq!(out, [1.0, 1.015_625]);
    checkpoint.read("empty", &mut out).unwrap();
    assert!(out.is_empty());
    assert_eq!(checkpoint.content_hash().unwrap(), formats::hash::blake3_file(&path).unwrap());
    let data_start = 8 + u64::from_le_bytes(std::fs::read(&path).unwrap()[..8].try_into().unwrap());
    assert_eq!(data_start % 8, 0);
}

#[test]
fn a_request_outside_a_tensor_is_an_error() {
    let file = open(&file(r#"{"t":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}}"#, 16)).unwrap();
    let mut out = Vec::new();
    assert!(matches!(file.read_rows("t", 1..3, &mut out), Err(Error::Rows { actual: 2, .. })));
    assert!(matches!(file.read_rows("u", 0..1, &mut out), Err(Error::NoSuchTensor { .. })));
}

#[test]
fn other_types_are_listed_but_not_read_as_floats() {
    let file = open(&file(r#"{"ids":{"dtype":"I64","shape":[2],"data_offsets":[0,16]}}"#, 16)).unwrap();
    assert_eq!(file.tensors().next().unwrap().dtype, "I64");
    let error = file.read_rows("ids", 0..1, &mut Vec::new()).unwrap_err();
    assert!(matches!(error, Error::UnknownType { ref actual, .. } if actual == "I64"), "{error}");
}

#[test]
fn a_writer_refuses_a_shape_that_is_not_the_datas() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let error = write_safetensors(&path, &[("t".to_owned(), vec![3], Data::F32(&[1.0, 2.0]))]).unwrap_err();
    expect!["`t` cannot be written: it has 2 values, expected the values of shape [3]"]
        .assert_eq(&error.to_string());
    let twice = [("t".to_owned(), vec![1], Data::F32(&[1.0])), ("t".to_owned(), vec![1], Data::F32(&[1.0]))];
    expect!["`t` cannot be written: it has one that is used twice, expected a name of its own"]
        .assert_eq(&write_safetensors(&path, &twice).unwrap_err().to_string());
    assert!(!path.exists());
}

#[test]
fn a_file_larger_than_memory_is_read_by_rows() {
    const ROWS: usize = 1 << 24;
    const ROW_BYTES: usize = 4096;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let header = format!(
        r#"{{"t":{{"dtype":"F32","shape":[{ROWS},{}],"data_offsets":[0,{}]}}}}"#,
        ROW_BYTES / 4,
        ROWS * ROW_BYTES
    );
    std::fs::write(&path, file(&header, 0)).unwrap();
    // 64 GiB of a hole; the last value is written.
    let sparse = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
    if sparse.set_len((8 + header.len() + ROWS * ROW_BYTES - 4) as u64).is_err() {
        eprintln!("skipped: the temporary directory has no sparse files");
        return;
    }
    (&sparse).write_all(&7.5f32.to_le_bytes()).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let mut out = Vec::new();
    checkpoint.read_rows("t", ROWS - 2..ROWS, &mut out).unwrap();
    assert_eq!((out.len(), out[ROW_BYTES / 4], out[ROW_BYTES / 2 - 1]), (ROW_BYTES / 2, 0.0, 7.5));
}

#[test]
fn a_published_checkpoint_is_read() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(3).unwrap().join("shared");
    let assets = std::env::var_os("TUNE_SHARED").map_or(root, std::path::PathBuf::from).join("assets");
    let dir = assets.join("lm/stories260K-hf");
    if !dir.is_dir() {
        eprintln!("skipped: {} is absent", dir.display());
        return;
    }
    let checkpoint = Checkpoint::open(&dir).unwrap();
    assert_eq!(checkpoint.shape("model.layers.4.mlp.down_proj.weight"), Some(vec![64, 172]));
    let mut n_parameters = 0;
    let mut out = Vec::new();
    for name in checkpoint.tensor_names() {
        checkpoint.read(&name, &mut out).unwrap();
        assert!(out.iter().all(|value| value.is_finite()), "{name}");
        n_parameters += out.len();
    }
    assert_eq!(n_parameters, 260_032);
}

// Shards.

fn write_shards(dir: &Path, index: &str) {
    let tensor = |name: &str, value: &[f32]| {
        let path = dir.join(format!("model-{name}.safetensors"));
        write_safetensors(&path, &[(name.to_owned(), vec![1], Data::F32(value))]).unwrap();
    };
    tensor("a", &[1.0]);
    tensor("b", &[2.0]);
    std::fs::write(dir.join("model.safetensors.index.json"), index).unwrap();
}

fn open_shards(index: &str) -> (tempfile::TempDir, Result<Checkpoint, Error>) {
    let dir = tempfile::tempdir().unwrap();
    write_shards(dir.path(), index);
    let checkpoint = Checkpoint::open(dir.path());
    (dir, checkpoint)
}

#[test]
fn shards_read_as_one() {
    let index = r#"{"metadata":{"total_size":8},
        "weight_map":{"a":"model-a.safetensors","b":"model-b.safetensors"}}"#;
    let (dir, checkpoint) = open_shards(index);
    let checkpoint = checkpoint.unwrap();
    let mut out = Vec::new();
    checkpoint.read("b", &mut out).unwrap();
    assert_eq!(out, [2.0]);
    let hash = |name: &str| {
        let name = format!("model-{name}.safetensors");
        format!("{}  {name}\n", formats::hash::blake3_file(&dir.path().join(&name)).unwrap())
    };
    let expected = formats::hash::blake3_bytes((hash("a") + &hash("b")).as_bytes());
    assert_eq!(checkpoint.content_hash().unwrap(), expected);
}

fn refuse_shards(index: &str, expected: &Expect) {
    let (dir, checkpoint) = open_shards(index);
    let text = checkpoint.expect_err("the index is wrong").to_string();
    expected.assert_eq(&text.replace(&dir.path().display().to_string(), "DIR"));
}

#[test]
fn a_shard_outside_the_directory() {
    refuse_shards(
        r#"{"weight_map":{"a":"../../etc/passwd"}}"#,
        &expect![
            "DIR/model.safetensors.index.json: key `weight_map.a` is `../../etc/passwd`, expected the name of a file beside it"
        ],
    );
    refuse_shards(
        r#"{"weight_map":{"a":"/etc/passwd"}}"#,
        &expect![
            "DIR/model.safetensors.index.json: key `weight_map.a` is `/etc/passwd`, expected the name of a file beside it"
        ],
    );
    refuse_shards(
        r#"{"weight_map":{"a":".."}}"#,
        &expect![
            "DIR/model.safetensors.index.json: key `weight_map.a` is `..`, expected the name of a file beside it"
        ],
    );
}

#[test]
fn a_missing_shard() {
    refuse_shards(
        r#"{"weight_map":{"a":"model-c.safetensors"}}"#,
        &expect![
            "DIR/model-c.safetensors is missing, expected a shard that model.safetensors.index.json names"
        ],
    );
}

#[test]
fn a_shard_without_its_tensor() {
    refuse_shards(
        r#"{"weight_map":{"a":"model-b.safetensors"}}"#,
        &expect!["DIR/model-b.safetensors: there is no tensor `a`"],
    );
}

#[test]
fn an_index_with_a_key_twice() {
    refuse_shards(
        r#"{"weight_map":{"a":"model-a.safetensors","a":"model-a.safetensors"}}"#,
        &expect!["DIR/model.safetensors.index.json: a tensor occurs twice: `a`"],
    );
}

#[test]
fn a_directory_without_weights() {
    let dir = tempfile::tempdir().unwrap();
    let text = Checkpoint::open(dir.path()).unwrap_err().to_string();
    expect!["DIR/model.safetensors is missing, expected weights: this file, or model.safetensors.index.json"]
        .assert_eq(&text.replace(&dir.path().display().to_string(), "DIR"));
}

// Attacks on a file.

#[test]
fn a_key_twice() {
    let tensor = r#""t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    let error = refuse(
        &file(&format!("{{{tensor},{tensor}}}"), 4),
        &expect!["x.safetensors: a key of the header occurs twice: `t`"],
    );
    assert!(matches!(error, Error::Duplicate { .. }));
    refuse(
        &file(r#"{"t":{"dtype":"F32","shape":[1],"shape":[1],"data_offsets":[0,4]}}"#, 4),
        &expect!["x.safetensors is not valid JSON: the key `shape` occurs twice at line 1 column 43"],
    );
    refuse(
        &file(r#"{"__metadata__":{},"__metadata__":{}}"#, 0),
        &expect!["x.safetensors: a key of the header occurs twice: `__metadata__`"],
    );
}

#[test]
fn a_header_longer_than_the_limit() {
    let mut bytes = 100_000_000u64.to_le_bytes().to_vec();
    bytes.resize(1000, b' ');
    let error = refuse(
        &bytes,
        &expect!["x.safetensors: the length of the header is 100000000, the limit is 16777216"],
    );
    assert!(matches!(error, Error::TooLarge { .. }));
}

#[test]
fn a_header_longer_than_the_file() {
    let error = refuse(
        &[9, 0, 0, 0, 0, 0, 0, 0, b'{', b'}'],
        &expect!["x.safetensors ends too early: the header needs 9 bytes, 2 are left"],
    );
    assert!(matches!(error, Error::Truncated { .. }));
    refuse(
        b"abc",
        &expect!["x.safetensors ends too early: the length of the header needs 8 bytes, 3 are left"],
    );
}

#[test]
fn a_header_that_is_no_json() {
    let (error, _) = open(&file("{]", 0)).unwrap_err();
    assert!(matches!(error, Error::Json { .. }));
}

#[test]
fn a_truncated_file() {
    let error = refuse(
        &file(r#"{"t":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#, 12),
        &expect!["x.safetensors: tensor `t` lies at bytes 0..16, the data ends at 12"],
    );
    assert!(matches!(error, Error::OutOfFile { .. }));
}

#[test]
fn offsets_that_run_backwards() {
    let (error, _) = open(&file(r#"{"t":{"dtype":"F32","shape":[1],"data_offsets":[8,4]}}"#, 8)).unwrap_err();
    assert!(matches!(error, Error::OutOfFile { .. }));
}

#[test]
fn dimensions_that_wrap() {
    let error = refuse(
        &file(r#"{"t":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#, 0),
        &expect!["x.safetensors: the size of tensor `t` overflows: shape [4294967296, 4294967296]"],
    );
    assert!(matches!(error, Error::SizeOverflow { .. }));
    let (error, _) =
        open(&file(r#"{"t":{"dtype":"F32","shape":[0,18446744073709551615,3],"data_offsets":[0,0]}}"#, 0))
            .unwrap_err();
    assert!(matches!(error, Error::SizeOverflow { .. }));
    let row = i64::MAX;
    let header = format!(r#"{{"t":{{"dtype":"F16","shape":[0,{row}],"data_offsets":[0,0]}}}}"#);
    assert!(matches!(open(&file(&header, 0)), Err((Error::SizeOverflow { .. }, _))));
}

#[test]
fn a_length_that_is_not_the_shapes() {
    refuse(
        &file(r#"{"t":{"dtype":"BF16","shape":[3],"data_offsets":[0,8]}}"#, 8),
        &expect!["x.safetensors: the length of tensor `t`, BF16 [3], is 8 bytes, expected 6 bytes"],
    );
}

#[test]
fn tensors_over_each_other() {
    let error = refuse(
        &file(
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
                "b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#,
            12,
        ),
        &expect!["x.safetensors: tensors `a` and `b` overlap at byte 4 of the data"],
    );
    assert!(matches!(error, Error::Overlap { .. }));
}

#[test]
fn bytes_of_no_tensor() {
    refuse(
        &file(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, 8),
        &expect![
            "x.safetensors: what follows byte 0 of the data is 4 bytes of no tensor, expected a tensor or the end of the file"
        ],
    );
    refuse(
        &file(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, 8),
        &expect![
            "x.safetensors: what follows byte 4 of the data is 4 bytes of no tensor, expected a tensor or the end of the file"
        ],
    );
}

#[test]
fn entries_of_the_wrong_kind() {
    refuse(
        &file(r#"{"__metadata__":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#, 4),
        &expect![
            "x.safetensors is not valid JSON: invalid type: sequence, expected a text at line 1 column 39"
        ],
    );
    refuse(
        &file(r#"{"t":{"format":"pt"}}"#, 0),
        &expect![
            "x.safetensors is not valid JSON: tensor `t` must have the keys dtype, shape and data_offsets, and no other at line 1 column 20"
        ],
    );
    let (error, _) =
        open(&file(r#"{"t":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, 4)).unwrap_err();
    assert!(matches!(error, Error::Json { .. }));
    refuse(
        &file(r#"{"t":{"dtype":"F32","shape":[1]}}"#, 4),
        &expect![
            "x.safetensors is not valid JSON: tensor `t` must have the keys dtype, shape and data_offsets, and no other at line 1 column 32"
        ],
    );
    refuse(
        &file(r#"{"__metadata__":{"n":1}}"#, 0),
        &expect![
            "x.safetensors is not valid JSON: invalid type: integer `1`, expected a text at line 1 column 22"
        ],
    );
    refuse(
        &file(r#"{"__metadata__":{"n":"1","n":"2"}}"#, 0),
        &expect!["x.safetensors: a key of `__metadata__` occurs twice: `n`"],
    );
}

/// What would be as small in the file and large in memory.
#[test]
fn more_than_any_file_has() {
    let dimensions = vec!["1"; 65].join(",");
    let header = format!(r#"{{"t":{{"dtype":"U8","shape":[{dimensions}],"data_offsets":[0,1]}}}}"#);
    refuse(
        &file(&header, 1),
        &expect![
            "x.safetensors is not valid JSON: invalid length 65, expected up to 64 dimensions at line 1 column 158"
        ],
    );
    let header = r#"{"t":{"dtype":"a type of more letters","shape":[1],"data_offsets":[0,1]}}"#;
    refuse(
        &file(header, 1),
        &expect![
            "x.safetensors is not valid JSON: invalid length 22, expected the name of a type, of up to 16 bytes at line 1 column 38"
        ],
    );
    let text = "\\n".repeat(200_000);
    refuse(
        &file(&format!(r#"{{"__metadata__":{{"n":"{text}"}}}}"#), 0),
        &expect!["x.safetensors: a text with escapes in the header is 400001, the limit is 262144"],
    );
    let text = "n".repeat(400_000);
    let long = open(&file(&format!(r#"{{"__metadata__":{{"n":"{text}","\"":"\u00e9"}}}}"#), 0)).unwrap();
    assert_eq!(long.metadata().collect::<Vec<_>>(), [("n", text.as_str()), ("\"", "é")]);
}

#[test]
fn names_and_numbers_of_any_size_are_kept() {
    let name = "é\u{0}名".repeat(100);
    let header = serde_json::json!({
        "": {"dtype": "F4", "shape": [0, 127, 128, 16_384], "data_offsets": [0, 3]},
        name.clone(): {"data_offsets": [3, 300], "shape": [297], "dtype": "U8"},
    });
    let file = open(&file(&header.to_string(), 300)).unwrap();
    let (first, second) = (file.tensor("").unwrap(), file.tensor(&name).unwrap());
    assert_eq!((first.dtype, first.shape.as_slice()), ("F4", [0, 127, 128, 16_384].as_slice()));
    assert_eq!((second.name, second.dtype, second.shape.as_slice()), (name.as_str(), "U8", [297].as_slice()));
    assert_eq!((file.data(&first).len(), file.data(&second).len()), (3, 297));
    assert_eq!(file.tensor("t"), None);
}

proptest! {
    #[test]
    fn damage_never_panics(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let header = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},
            "b":{"dtype":"BF16","shape":[3],"data_offsets":[16,22]}}"#;
        let mut bytes = file(header, 22);
        for (at, byte) in &edits {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        }
        if edits.len() % 2 == 0 {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(file) = open(&bytes) {
            for tensor in file.tensors().filter(|tensor| tensor.block_type().is_some()) {
                let rows = formats::source::rows_and_cols(&tensor.shape).0;
                file.read_rows(tensor.name, 0..rows, &mut Vec::new()).unwrap();
            }
        }
    }
}
