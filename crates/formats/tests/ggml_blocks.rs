//! The block codecs against ggml's own, to the byte: `ggml_quantize_chunk` and `to_float`.

use std::ffi::c_void;

use formats::BlockType;
use formats::block::{decode, encode, encode_par};
#[cfg(target_arch = "x86_64")]
use formats::isa::Isa;
use llama_cpp_sys_2 as ggml;
use rayon::prelude::*;

/// Row length: four blocks of the K formats.
const COLS: usize = 1024;
const ROWS_PER_CHUNK: usize = 64;
/// Chunks of 64 Ki weights that each format is given: 10.5 million weights.
const CHUNKS: usize = 160;

/// splitmix64: the same weights in every run.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 up to 1.
    fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 24) as f32
    }

    /// From -1 to 1.
    fn signed(&mut self) -> f32 {
        2.0 * self.unit() - 1.0
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.bits() % limit as u64) as usize
    }

    /// Near enough to a Gaussian: the sum of twelve.
    fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.unit()).sum::<f32>() - 6.0
    }

    /// Any finite number, each exponent as likely as another.
    fn any_finite(&mut self) -> f32 {
        loop {
            let value = f32::from_bits(self.bits() as u32);
            if value.is_finite() {
                return value;
            }
        }
    }
}

/// One way to make a weight from its place in its block of 256.
type Distribution = fn(&mut Random, usize) -> f32;

const DISTRIBUTIONS: [(&str, Distribution); 28] = [
    ("Gaussian", |r, _| 0.02 * r.normal()),
    ("Gaussian with outliers", |r, _| 0.02 * r.normal() * if r.below(50) == 0 { 30.0 } else { 1.0 }),
    ("uniform", |r, _| r.signed()),
    ("cubed", |r, _| r.signed().powi(3)),
    ("zeros", |_, _| 0.0),
    ("negative zeros", |_, i| if i % 3 == 0 { -0.0 } else { 0.0 }),
    ("one outlier among zeros", |_, i| if i == 77 { 3.5 } else { 0.0 }),
    ("one negative outlier", |r, i| if i == 130 { -900.0 } else { 0.01 * r.normal() }),
    ("an outlier in every 32", |r, i| if i % 32 == 5 { 1e4 } else { 1e-4 * r.normal() }),
    ("denormal", |r, _| f32::from_bits(r.bits() as u32 & 0x807f_ffff)),
    ("few units of the least denormal", |r, _| f32::from_bits(r.bits() as u32 & 0x8000_001f)),
    ("around the least scale with an inverse", |r, _| r.signed() * 4e-38),
    ("constant", |_, _| 0.37),
    ("negative constant", |_, _| -0.37),
    ("tiny constant", |_, _| 1e-30),
    ("huge", |r, _| r.signed() * 3e38),
    ("huge and tiny", |r, i| if i % 7 == 0 { r.signed() * 1e30 } else { r.signed() * 1e-30 }),
    ("beyond what f16 holds", |r, _| r.signed() * 1e8),
    ("negative", |r, _| -r.unit() - 0.1),
    ("positive", |r, _| r.unit() + 0.1),
    ("positive, far from zero", |r, _| 100.0 + r.unit()),
    ("around the limit of a zero group", |r, _| r.signed() * 2e-15),
    ("any bits", |r, _| r.any_finite()),
    ("whole numbers, so that codes tie", |r, _| r.below(16) as f32 - 7.0),
    ("halves, so that codes tie", |r, _| (r.below(64) as f32 - 32.0) * 0.5),
    ("alternating", |_, i| if i % 2 == 0 { 1.0 } else { -1.0 }),
    ("ramp", |_, i| i as f32 / 255.0 - 0.25),
    ("mostly zeros", |r, _| if r.below(10) == 0 { r.normal() } else { 0.0 }),
];

/// Weights of a chunk: most chunks hold one distribution, the last of a round changes it from block to block.
fn weights(chunk: usize) -> (String, Vec<f32>) {
    let mut random = Random(chunk as u64);
    let kind = chunk % (DISTRIBUTIONS.len() + 1);
    let count = ROWS_PER_CHUNK * COLS;
    if let Some((name, distribution)) = DISTRIBUTIONS.get(kind) {
        return ((*name).to_owned(), (0..count).map(|i| distribution(&mut random, i % 256)).collect());
    }
    let mut mixed = Vec::with_capacity(count);
    while mixed.len() < count {
        let distribution = DISTRIBUTIONS[random.below(DISTRIBUTIONS.len())].1;
        let group = [16, 32, 256][random.below(3)];
        mixed.extend((0..group.min(count - mixed.len())).map(|i| distribution(&mut random, i)));
    }
    ("mixed".to_owned(), mixed)
}

/// The importance of the columns for a chunk; a new kind every round of distributions.
fn importance(chunk: usize) -> Vec<f32> {
    let mut random = Random(!(chunk as u64));
    let round = chunk / (DISTRIBUTIONS.len() + 1);
    let one = |_| match round % 5 {
        0 => random.unit(),
        1 => random.normal().powi(2) * 100.0,
        2 => f32::from(random.below(4) == 0),
        3 => random.unit() * if random.below(20) == 0 { 1e6 } else { 1e-6 },
        _ => [0.0, 1.0][usize::from(random.below(300) != 0)],
    };
    (0..COLS).map(one).collect()
}

fn ggml_type(ty: BlockType) -> ggml::ggml_type {
    ty.id().expect("a type of files") as ggml::ggml_type
}

fn ggml_encode(ty: BlockType, weights: &[f32], importance: Option<&[f32]>) -> Vec<u8> {
    let rows = weights.len() / COLS;
    let mut blocks = vec![0xaa; rows * ty.row_bytes(COLS).unwrap()];
    let importance = importance.map_or(std::ptr::null(), <[f32]>::as_ptr);
    // SAFETY: the pointers are to whole rows of weights, to as many encoded rows, and to one row of importance.
    let written = unsafe {
        let out = blocks.as_mut_ptr().cast::<c_void>();
        ggml::ggml_quantize_chunk(
            ggml_type(ty),
            weights.as_ptr(),
            out,
            0,
            rows as i64,
            COLS as i64,
            importance,
        )
    };
    assert_eq!(written, blocks.len());
    blocks
}

fn ggml_decode(ty: BlockType, blocks: &[u8], count: usize) -> Vec<f32> {
    let mut out = vec![0.0; count];
    // SAFETY: the traits are a constant table; `to_float` reads `count` weights' blocks and writes `count` floats.
    unsafe {
        let traits = &*ggml::ggml_get_type_traits(ggml_type(ty));
        traits.to_float.unwrap()(blocks.as_ptr().cast(), out.as_mut_ptr(), count as i64);
    }
    out
}

fn has_grid(ty: BlockType) -> bool {
    matches!(ty, BlockType::IQ2XXS | BlockType::IQ2XS | BlockType::IQ2S | BlockType::IQ3XXS | BlockType::IQ3S)
}

/// Weights of which ggml makes nothing to compare with: it ends the process where no point of a grid has a finite distance
/// from a group, as of huge and tiny ones, and writes what follows a group of zeros of IQ3_S one group too early (its
/// pointers stay behind), which ours does not.
fn is_beyond_ggml(ty: BlockType, weights: &[f32]) -> bool {
    let has_extremes = || weights.iter().any(|&x| x.abs() > 1e5 || (x != 0.0 && x.abs() < 1e-9));
    let has_zeros = || weights.chunks(32).any(|group| group.iter().all(|&x| x == 0.0));
    has_grid(ty) && (has_extremes() || (ty == BlockType::IQ3S && has_zeros()))
}

/// Where the tests are compiled again, they leave AVX-512 alone, or all vectors.
fn limit_vectors() {
    #[cfg(target_arch = "x86_64")]
    let limit = match env!("CARGO_CRATE_NAME") {
        "ggml_blocks_narrow" => Isa::Avx2,
        "ggml_blocks_plain" => Isa::Baseline,
        _ => return,
    };
    #[cfg(target_arch = "x86_64")]
    {
        Isa::limit_to(limit);
        assert!(Isa::get() <= limit, "something asked before");
    }
}

fn check_encode(ty: BlockType) {
    limit_vectors();
    (0..CHUNKS).into_par_iter().for_each(|chunk| {
        let (name, weights) = weights(chunk);
        if is_beyond_ggml(ty, &weights) {
            return;
        }
        // Importances of nothing at all end the process too.
        let importance = importance(if has_grid(ty) { chunk % (DISTRIBUTIONS.len() + 1) } else { chunk });
        for matrix in [None, Some(importance.as_slice())] {
            if ty.needs_importance() && matrix.is_none() {
                let mut out = vec![0; ROWS_PER_CHUNK * ty.row_bytes(COLS).unwrap()];
                let error = encode(ty, &weights, COLS, None, &mut out).unwrap_err();
                assert!(matches!(error, formats::Error::NeedsImportance { .. }), "{error}");
                continue;
            }
            let expected = ggml_encode(ty, &weights, matrix);
            let mut actual = vec![0x55; expected.len()];
            encode(ty, &weights, COLS, matrix, &mut actual).unwrap();
            if actual != expected {
                let with = if matrix.is_some() { "with" } else { "without" };
                explain(ty, &format!("chunk {chunk}, {name}, {with} matrix"), &weights, &expected, &actual);
            }
        }
    });
}

/// Fails with the first block that differs.
fn explain(ty: BlockType, what: &str, weights: &[f32], expected: &[u8], actual: &[u8]) -> ! {
    let (len, bytes) = (ty.block_len(), ty.block_bytes());
    let pairs = expected.chunks(bytes).zip(actual.chunks(bytes));
    let different: Vec<usize> =
        pairs.enumerate().filter(|(_, (expected, actual))| expected != actual).map(|(i, _)| i).collect();
    let at = different[0];
    panic!(
        "{ty}, {what}: {} of {} blocks differ\nblock {at} ggml {:?}\nours {:?}\nweights {:?}",
        different.len(),
        expected.len() / bytes,
        &expected[at * bytes..][..bytes],
        &actual[at * bytes..][..bytes],
        &weights[at * len..][..len],
    );
}

/// Encoded weights, and bytes that no encoder would write.
fn check_decode(ty: BlockType) {
    limit_vectors();
    let mut random = Random(ty.id().expect("a type of files").into());
    for chunk in 0..30 {
        let count = ROWS_PER_CHUNK * COLS;
        let weights = weights(chunk).1;
        let blocks: Vec<u8> = if chunk % 2 == 0 && !is_beyond_ggml(ty, &weights) {
            let importance = ty.needs_importance().then(|| importance(chunk));
            ggml_encode(ty, &weights, importance.as_deref())
        } else {
            (0..ROWS_PER_CHUNK * ty.row_bytes(COLS).unwrap()).map(|_| random.bits() as u8).collect()
        };
        let mut actual = vec![0.0; count];
        decode(ty, &blocks, &mut actual).unwrap();
        for (i, (expected, actual)) in ggml_decode(ty, &blocks, count).iter().zip(&actual).enumerate() {
            let same = expected.to_bits() == actual.to_bits() || (expected.is_nan() && actual.is_nan());
            assert!(same, "{ty}, chunk {chunk}, weight {i}: ggml {expected}, ours {actual}");
        }
    }
}

macro_rules! formats {
    ($($name:ident: $ty:ident, $encode:ident, $decode:ident;)*) => {$(
        #[test]
        fn $encode() {
            check_encode(BlockType::$ty);
        }

        #[test]
        fn $decode() {
            check_decode(BlockType::$ty);
        }
    )*};
}

formats! {
    f16: F16, f16_encodes_as_ggml, f16_decodes_as_ggml;
    bf16: BF16, bf16_encodes_as_ggml, bf16_decodes_as_ggml;
    q4_0: Q4_0, q4_0_encodes_as_ggml, q4_0_decodes_as_ggml;
    q4_1: Q4_1, q4_1_encodes_as_ggml, q4_1_decodes_as_ggml;
    q5_0: Q5_0, q5_0_encodes_as_ggml, q5_0_decodes_as_ggml;
    q5_1: Q5_1, q5_1_encodes_as_ggml, q5_1_decodes_as_ggml;
    q8_0: Q8_0, q8_0_encodes_as_ggml, q8_0_decodes_as_ggml;
    q2_k: Q2K, q2_k_encodes_as_ggml, q2_k_decodes_as_ggml;
    q3_k: Q3K, q3_k_encodes_as_ggml, q3_k_decodes_as_ggml;
    q4_k: Q4K, q4_k_encodes_as_ggml, q4_k_decodes_as_ggml;
    q5_k: Q5K, q5_k_encodes_as_ggml, q5_k_decodes_as_ggml;
    q6_k: Q6K, q6_k_encodes_as_ggml, q6_k_decodes_as_ggml;
    iq2_xxs: IQ2XXS, iq2_xxs_encodes_as_ggml, iq2_xxs_decodes_as_ggml;
    iq2_xs: IQ2XS, iq2_xs_encodes_as_ggml, iq2_xs_decodes_as_ggml;
    iq2_s: IQ2S, iq2_s_encodes_as_ggml, iq2_s_decodes_as_ggml;
    iq3_xxs: IQ3XXS, iq3_xxs_encodes_as_ggml, iq3_xxs_decodes_as_ggml;
    iq3_s: IQ3S, iq3_s_encodes_as_ggml, iq3_s_decodes_as_ggml;
    iq4_nl: IQ4NL, iq4_nl_encodes_as_ggml, iq4_nl_decodes_as_ggml;
    iq4_xs: IQ4XS, iq4_xs_encodes_as_ggml, iq4_xs_decodes_as_ggml;
}

#[test]
fn sizes_and_names_are_ggmls() {
    for ty in BlockType::ALL {
        // SAFETY: these read constant tables and return a constant string.
        let (len, bytes, name) = unsafe {
            let raw = ggml_type(ty);
            let name = std::ffi::CStr::from_ptr(ggml::ggml_type_name(raw));
            (ggml::ggml_blck_size(raw), ggml::ggml_type_size(raw), name.to_str().unwrap())
        };
        assert_eq!((ty.block_len() as i64, ty.block_bytes()), (len, bytes), "{ty}");
        assert_eq!(BlockType::from_name(name), Some(ty));
        assert_eq!(ty.id().and_then(BlockType::from_id), Some(ty));
    }
}

#[test]
fn threads_give_the_same_bytes() {
    limit_vectors();
    let weights = weights(0).1;
    let importance = importance(0);
    for ty in BlockType::ALL {
        let mut one = vec![0; ROWS_PER_CHUNK * ty.row_bytes(COLS).unwrap()];
        let mut many = one.clone();
        encode(ty, &weights, COLS, Some(&importance), &mut one).unwrap();
        encode_par(ty, &weights, COLS, Some(&importance), &mut many).unwrap();
        assert!(one == many, "{ty}");
    }
}
