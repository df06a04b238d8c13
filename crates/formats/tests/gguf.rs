//! GGUF: what is written is read back, published files survive a round trip to the byte, and every known way
//! to attack a reader is an error of its own.

#![allow(clippy::result_large_err, reason = "the error and its text, in tests")]

use std::path::{Path, PathBuf};

use expect_test::{Expect, expect};
use formats::gguf::{Array, Metadata, Planned, Reader, Value, Writer, file_bytes};
use formats::{BlockType, Error, TensorSource};
use proptest::prelude::*;

fn sample() -> (Metadata, Vec<Planned>, Vec<Vec<u8>>) {
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture", "qwen3");
    metadata.insert("qwen3.block_count", 2u32);
    metadata.insert("qwen3.attention.layer_norm_rms_epsilon", 1e-6f32);
    metadata.insert("tokenizer.ggml.add_bos_token", false);
    metadata.insert("tokenizer.ggml.tokens", vec!["a".to_owned(), "é".to_owned(), String::new()]);
    metadata.insert("nested", Array::Array(vec![Array::I32(vec![1, -2]), Array::U8(vec![])]));
    let tensors = vec![
        ("token_embd.weight".to_owned(), vec![64, 3], BlockType::Q8_0),
        ("output_norm.weight".to_owned(), vec![5], BlockType::F32),
    ];
    let mut embedding = vec![0; 3 * 2 * 34];
    let weights: Vec<f32> = (0..192).map(|i| i as f32 / 64.0 - 1.5).collect();
    formats::block::encode(BlockType::Q8_0, &weights, 64, None, &mut embedding).unwrap();
    let norm = [1.0f32, 2.0, 3.0, 4.0, 5.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    (metadata, tensors, vec![embedding, norm])
}

fn written(metadata: &Metadata, tensors: &[Planned], data: &[Vec<u8>]) -> Vec<u8> {
    let mut writer = Writer::begin(Vec::new(), metadata, tensors).unwrap();
    for bytes in data {
        writer.write_tensor(bytes).unwrap();
    }
    let file = writer.finish().unwrap();
    assert_eq!(file.len() as u64, file_bytes(metadata, tensors).unwrap());
    file
}

fn sample_file() -> Vec<u8> {
    let (metadata, tensors, data) = sample();
    written(&metadata, &tensors, &data)
}

/// Opens bytes as a file; errors are shown with a stable path.
fn open(bytes: &[u8]) -> Result<Reader, (Error, String)> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    std::fs::write(&path, bytes).unwrap();
    Reader::open(&path).map_err(|error| {
        let text = error.to_string().replace(&path.display().to_string(), "x.gguf");
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
    let (metadata, tensors, data) = sample();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    std::fs::write(&path, written(&metadata, &tensors, &data)).unwrap();
    let reader = Reader::open(&path).unwrap();
    assert_eq!(reader.metadata(), &metadata);
    for ((name, shape, ty), bytes) in tensors.iter().zip(&data) {
        let tensor = reader.tensor(name).unwrap();
        assert_eq!((&tensor.shape, tensor.ty), (shape, *ty));
        assert_eq!(reader.data(tensor), bytes);
    }
    assert_eq!(reader.shape("token_embd.weight"), Some(vec![3, 64]));
    let (mut all, mut row) = (Vec::new(), Vec::new());
    reader.read("token_embd.weight", &mut all).unwrap();
    reader.read_rows("token_embd.weight", 1..2, &mut row).unwrap();
    assert_eq!(row, all[64..128]);
    assert!((row[0] - -0.5).abs() < 0.01);
    reader.read("output_norm.weight", &mut row).unwrap();
    assert_eq!(row, [1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(reader.content_hash().unwrap(), formats::hash::blake3_file(&path).unwrap());
}

#[test]
fn a_request_outside_a_tensor_is_an_error() {
    let reader = open(&sample_file()).unwrap();
    let mut out = Vec::new();
    let rows = reader.read_rows("token_embd.weight", 2..4, &mut out).unwrap_err();
    assert!(matches!(rows, Error::Rows { begin: 2, end: 4, actual: 3, .. }), "{rows}");
    let missing = reader.read("lm_head.weight", &mut out).unwrap_err();
    assert!(matches!(missing, Error::NoSuchTensor { .. }), "{missing}");
}

#[test]
fn values_are_read_by_type() {
    let metadata = sample().0;
    assert_eq!(metadata.get_str("general.architecture"), Some("qwen3"));
    assert_eq!(metadata.get_u32("qwen3.block_count"), Some(2));
    assert_eq!(metadata.get_u32("general.architecture"), None);
    assert_eq!(metadata.get_bool("tokenizer.ggml.add_bos_token"), Some(false));
    assert_eq!(metadata.get_strings("tokenizer.ggml.tokens").unwrap().len(), 3);
    assert_eq!(metadata.get_f32("qwen3.attention.layer_norm_rms_epsilon"), Some(1e-6));
}

#[test]
fn published_vocabulary_files_survive_to_the_byte() {
    let dir = assets().join("gguf-vocab");
    if !dir.is_dir() {
        eprintln!("skipped: {} is absent", dir.display());
        return;
    }
    let mut n_files = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "gguf") {
            continue;
        }
        let reader = Reader::open(&path).unwrap();
        let original = std::fs::read(&path).unwrap();
        let copy = written(reader.metadata(), &[], &[]);
        // These were written without padding after the directory.
        assert!(copy.starts_with(&original) && copy.len() < original.len() + 32, "{}", path.display());
        n_files += 1;
    }
    assert!(n_files > 5, "only {n_files} files");
}

fn assets() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(3).unwrap().join("shared");
    std::env::var_os("TUNE_SHARED").map_or(root, PathBuf::from).join("assets")
}

// Attacks. Offsets of the sample's head: magic 0, version 4, tensors 8, keys 16, first key 24.

fn patched(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut file = sample_file();
    file[at..at + bytes.len()].copy_from_slice(bytes);
    file
}

/// The first place of `needle` in the sample.
fn find(needle: &[u8]) -> usize {
    sample_file().windows(needle.len()).position(|window| window == needle).unwrap()
}

/// Where the entry of the first tensor continues after its name.
fn after_name() -> usize {
    find(b"token_embd.weight") + "token_embd.weight".len()
}

#[test]
fn another_kind_of_file() {
    refuse(&patched(0, b"GGML"), &expect!["x.gguf: the magic is `GGML`, expected `GGUF`"]);
    let empty = expect!["x.gguf ends too early: the magic needs 4 bytes, 0 are left"];
    refuse(&[], &empty);
}

#[test]
fn big_endian_or_a_future_version() {
    let expected = expect!["x.gguf: the version is 50331648, expected 2 or 3, little-endian"];
    refuse(&patched(4, &[0, 0, 0, 3]), &expected);
    refuse(&patched(4, &[4]), &expect!["x.gguf: the version is 4, expected 2 or 3, little-endian"]);
}

#[test]
fn a_directory_is_not_a_file() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(Reader::open(dir.path()), Err(Error::Io { .. })));
}

#[test]
fn more_tensors_than_the_file_can_hold() {
    let many = patched(8, &65_536u64.to_le_bytes());
    let error = refuse(
        &many,
        &expect!["x.gguf ends too early: the tensor directory needs 1572864 bytes, 373 are left"],
    );
    assert!(matches!(error, Error::Truncated { .. }));
    let huge = patched(8, &u64::MAX.to_le_bytes());
    refuse(&huge, &expect!["x.gguf: the number of tensors is 18446744073709551615, the limit is 65536"]);
}

#[test]
fn more_keys_than_the_file_can_hold() {
    let many = patched(16, &65_536u64.to_le_bytes());
    refuse(&many, &expect!["x.gguf ends too early: the metadata needs 851968 bytes, 680 are left"]);
    let huge = patched(16, &(1u64 << 40).to_le_bytes());
    refuse(&huge, &expect!["x.gguf: the number of keys is 1099511627776, the limit is 65536"]);
}

#[test]
fn a_string_longer_than_the_file() {
    let at = find(b"qwen3") - 8;
    let huge = patched(at, &(1u64 << 60).to_le_bytes());
    refuse(
        &huge,
        &expect![
            "x.gguf ends too early: the value of `general.architecture` needs 1152921504606846976 bytes, 640 are left"
        ],
    );
}

#[test]
fn an_array_longer_than_the_file() {
    let at = find(b"tokenizer.ggml.tokens") + "tokenizer.ggml.tokens".len() + 8;
    let huge = patched(at, &u64::MAX.to_le_bytes());
    refuse(
        &huge,
        &expect![
            "x.gguf ends too early: the value of `tokenizer.ggml.tokens` needs 18446744073709551615 bytes, 462 are left"
        ],
    );
}

#[test]
fn arrays_nested_without_end() {
    let mut nested = Array::U8(vec![]);
    for _ in 0..100 {
        nested = Array::Array(vec![nested]);
    }
    let mut metadata = Metadata::new();
    metadata.insert("deep", nested);
    let file = written(&metadata, &[], &[]);
    refuse(&file, &expect!["x.gguf: the nesting of the value of `deep` is 5, the limit is 4"]);
}

#[test]
fn an_overlong_key() {
    let huge = patched(24, &70_000u64.to_le_bytes());
    refuse(&huge, &expect!["x.gguf: the length of key 0 is 70000, the limit is 65535"]);
}

#[test]
fn an_unknown_value_type() {
    let at = find(b"general.architecture") + "general.architecture".len();
    let expected = expect![
        "x.gguf: the type of the value of `general.architecture` is 77, expected a number from 0 to 12"
    ];
    refuse(&patched(at, &77u32.to_le_bytes()), &expected);
}

#[test]
fn a_boolean_that_is_neither() {
    let at = find(b"add_bos_token") + "add_bos_token".len() + 4;
    let expected =
        expect!["x.gguf: the value of `tokenizer.ggml.add_bos_token` is 2, expected a boolean, 0 or 1"];
    refuse(&patched(at, &[2]), &expected);
}

#[test]
fn text_that_is_not_utf8() {
    let expected = expect![
        "x.gguf: the value of `general.architecture` is invalid utf-8 sequence of 1 bytes from index 0, expected text in UTF-8"
    ];
    refuse(&patched(find(b"qwen3"), &[0xff]), &expected);
}

#[test]
fn a_key_twice() {
    let mut file = sample_file();
    let at = find(b"qwen3.block_count");
    file[at..at + 17].copy_from_slice(b"general.block_cnt");
    let mut metadata = Metadata::new();
    metadata.push("a.b", 1u32);
    metadata.push("a.c", 2u32);
    let mut twice = written(&metadata, &[], &[]);
    let at = twice.windows(3).position(|window| window == b"a.c").unwrap();
    twice[at + 2] = b'b';
    refuse(&twice, &expect!["x.gguf: a key occurs twice: `a.b`"]);
}

#[test]
fn alignment_zero() {
    let error = refuse(
        &with_alignment(0),
        &expect!["x.gguf: alignment is 0, expected a power of two from 8 to 65536"],
    );
    assert!(matches!(error, Error::Alignment { actual: 0, .. }));
}

#[test]
fn alignment_huge_or_odd() {
    for actual in [1 << 31, 48] {
        let (error, _) = open(&with_alignment(actual)).unwrap_err();
        assert!(matches!(error, Error::Alignment { actual: found, .. } if found == u64::from(actual)));
    }
}

#[test]
fn alignment_of_another_type() {
    let mut metadata = Metadata::new();
    metadata.insert("general.alignmen_", "32");
    let mut file = written(&metadata, &[], &[]);
    let at = file.windows(9).position(|window| window == b"alignmen_").unwrap();
    file[at + 8] = b't';
    refuse(
        &file,
        &expect!["x.gguf: key `general.alignment` is of another type, expected a 32-bit unsigned number"],
    );
}

fn with_alignment(alignment: u32) -> Vec<u8> {
    let mut metadata = Metadata::new();
    metadata.insert("general.alignment", 32u32);
    let mut file = written(&metadata, &[], &[]);
    let at = file.windows(9).position(|window| window == b"alignment").unwrap() + 9 + 4;
    file[at..at + 4].copy_from_slice(&alignment.to_le_bytes());
    file
}

#[test]
fn other_alignments_work() {
    let (mut metadata, tensors, data) = sample();
    metadata.insert("general.alignment", 4096u32);
    let reader = open(&written(&metadata, &tensors, &data)).unwrap();
    assert_eq!(reader.data(&reader.tensors()[1]), data[1]);
}

#[test]
fn dimensions_that_wrap_to_zero() {
    let mut dimensions = Vec::new();
    dimensions.extend((1u64 << 32).to_le_bytes());
    dimensions.extend((1u64 << 32).to_le_bytes());
    let error = refuse(
        &patched(after_name() + 4, &dimensions),
        &expect!["x.gguf: the size of tensor `token_embd.weight` overflows: shape [4294967296, 4294967296]"],
    );
    assert!(matches!(error, Error::SizeOverflow { .. }));
}

#[test]
fn a_dimension_of_zero() {
    refuse(
        &patched(after_name() + 12, &0u64.to_le_bytes()),
        &expect![
            "x.gguf: the row length of tensor `token_embd.weight` of type Q8_0 is [64, 0], expected a multiple of 32, and no dimension of 0"
        ],
    );
}

#[test]
fn a_row_of_half_a_block() {
    refuse(
        &patched(after_name() + 4, &48u64.to_le_bytes()),
        &expect![
            "x.gguf: the row length of tensor `token_embd.weight` of type Q8_0 is [48, 3], expected a multiple of 32, and no dimension of 0"
        ],
    );
}

#[test]
fn too_many_dimensions() {
    refuse(
        &patched(after_name(), &9u32.to_le_bytes()),
        &expect!["x.gguf: the number of dimensions of tensor `token_embd.weight` is 9, expected from 1 to 4"],
    );
}

#[test]
fn a_type_that_is_not_ours() {
    let expected =
        expect!["x.gguf: tensor `token_embd.weight` has type IQ1_S, which this program does not read"];
    refuse(&patched(after_name() + 20, &19u32.to_le_bytes()), &expected);
}

#[test]
fn an_offset_between_alignments() {
    refuse(
        &patched(after_name() + 24, &8u64.to_le_bytes()),
        &expect![
            "x.gguf: the offset of tensor `token_embd.weight` is 8, expected a multiple of the alignment 32"
        ],
    );
}

#[test]
fn a_tensor_outside_the_file() {
    let error = refuse(
        &patched(after_name() + 24, &(1u64 << 40).to_le_bytes()),
        &expect![
            "x.gguf: tensor `token_embd.weight` lies at bytes 1099511627776..1099511627980, the data ends at 256"
        ],
    );
    assert!(matches!(error, Error::OutOfFile { .. }));
    let (error, _) = open(&patched(after_name() + 24, &(u64::MAX - 31).to_le_bytes())).unwrap_err();
    assert!(matches!(error, Error::OutOfFile { end: u64::MAX, .. }), "{error}");
}

#[test]
fn a_truncated_file() {
    let file = sample_file();
    let (error, _) = open(&file[..file.len() - 32]).unwrap_err();
    assert!(matches!(error, Error::OutOfFile { .. }), "{error}");
}

#[test]
fn tensors_over_each_other() {
    let at = find(b"output_norm.weight") + "output_norm.weight".len() + 4 + 8 + 4;
    let error = refuse(
        &patched(at, &32u64.to_le_bytes()),
        &expect![
            "x.gguf: tensors `token_embd.weight` and `output_norm.weight` overlap at byte 32 of the data"
        ],
    );
    assert!(matches!(error, Error::Overlap { .. }));
}

#[test]
fn a_tensor_twice() {
    let tensors = [("a".to_owned(), vec![8], BlockType::F32), ("b".to_owned(), vec![8], BlockType::F32)];
    let mut file = written(&Metadata::new(), &tensors, &[vec![0; 32], vec![0; 32]]);
    let at = file.iter().rposition(|&byte| byte == b'b').unwrap();
    file[at] = b'a';
    refuse(&file, &expect!["x.gguf: a tensor occurs twice: `a`"]);
}

// The writer refuses what a reader would.

#[test]
fn the_writer_refuses_what_no_reader_takes() {
    let plan = |name: &str, shape: Vec<u64>, ty| {
        file_bytes(&Metadata::new(), &[(name.to_owned(), shape, ty)]).unwrap_err().to_string()
    };
    expect!["`` cannot be written: it has a name of 0 bytes, expected a name of 1 to 63 bytes"]
        .assert_eq(&plan("", vec![1], BlockType::F32));
    let long = plan(&"x".repeat(64), vec![1], BlockType::F32);
    assert!(long.ends_with("it has a name of 64 bytes, expected a name of 1 to 63 bytes"), "{long}");
    expect!["`t` cannot be written: it has 5 dimensions, expected 1 to 4 dimensions"].assert_eq(&plan(
        "t",
        vec![1; 5],
        BlockType::F32,
    ));
    expect!["(a GGUF file to be written): the row length of tensor `t` of type Q4_K is [64], expected a multiple of 256, and no dimension of 0"]
        .assert_eq(&plan("t", vec![64], BlockType::Q4K));
    let twice = [("t".to_owned(), vec![1], BlockType::F32), ("t".to_owned(), vec![1], BlockType::F32)];
    expect!["`t` cannot be written: it has a tensor twice, expected a tensor once"]
        .assert_eq(&file_bytes(&Metadata::new(), &twice).unwrap_err().to_string());
    let mut metadata = Metadata::new();
    metadata.push("k", 1u32);
    metadata.push("k", 2u32);
    expect!["`k` cannot be written: it has a key twice, expected a key once"]
        .assert_eq(&file_bytes(&metadata, &[]).unwrap_err().to_string());
}

#[test]
fn the_writer_keeps_to_the_plan() {
    let (metadata, tensors, data) = sample();
    let mut writer = Writer::begin(Vec::new(), &metadata, &tensors).unwrap();
    expect![
        "`a tensor of 7 bytes` is written where the plan has 204 more bytes of tensor `token_embd.weight`"
    ]
    .assert_eq(&writer.write_tensor(&[0; 7]).unwrap_err().to_string());
    writer.write_part(&data[0][..100]).unwrap();
    writer.write_part(&data[0][100..]).unwrap();
    expect!["`the end of the file` is written where the plan has tensor `output_norm.weight` of 20 bytes"]
        .assert_eq(&writer.finish().unwrap_err().to_string());
    let mut writer = Writer::begin(Vec::new(), &metadata, &tensors).unwrap();
    data.iter().for_each(|bytes| writer.write_tensor(bytes).unwrap());
    assert!(matches!(writer.write_tensor(&[0]), Err(Error::WriteOrder { .. })));
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u8>().prop_map(Value::from),
        any::<i8>().prop_map(Value::from),
        any::<u16>().prop_map(Value::from),
        any::<i16>().prop_map(Value::from),
        any::<u32>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f32>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        prop::collection::vec(any::<i16>(), 0..9).prop_map(Value::from),
        prop::collection::vec(any::<bool>(), 0..9).prop_map(Value::from),
        prop::collection::vec(any::<String>(), 0..9).prop_map(Value::from),
    ]
}

proptest! {
    #[test]
    fn any_metadata_survives(entries in prop::collection::hash_map("[a-z.]{1,20}", any_value(), 0..12)) {
        let metadata: Metadata = entries.into_iter().collect();
        let reader = open(&written(&metadata, &[], &[])).map_err(|(_, text)| TestCaseError::fail(text))?;
        prop_assert_eq!(reader.metadata(), &metadata);
    }

    /// Wherever a file is damaged, opening gives a reader whose every tensor can be read, or an error.
    #[test]
    fn damage_never_panics(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut file = sample_file();
        for (at, byte) in &edits {
            let at = at.index(file.len());
            file[at] = *byte;
        }
        if edits.len() % 2 == 0 {
            file.truncate(cut.index(file.len()));
        }
        if let Ok(reader) = open(&file) {
            let mut out = Vec::new();
            for name in reader.tensor_names() {
                reader.read(&name, &mut out).unwrap();
            }
        }
    }
}
