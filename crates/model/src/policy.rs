//! Which block type each tensor gets: llama.cpp's table of its K-quant mixtures.
//!
//! Source: `llama_tensor_get_type_impl` and `tensor_type_fallback` of llama.cpp's `src/llama-quant.cpp` as vendored by
//! llama-cpp-sys-2 0.1.160. The same types hold the frozen base while training, so the adapter learns on the weights
//! that will be served. Policies drift between versions of llama.cpp; a change here changes files.

use formats::BlockType;

use crate::config::ModelConfig;
use crate::family::{Family, Role, TensorSpec};
use crate::{Error, Result};

/// A quantisation as users name it: one type for most tensors, exceptions by [`block_types`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Quant {
    /// Q2_K, with Q3_K and Q4_K where it hurts most.
    Q2K,
    /// Q3_K throughout.
    Q3KS,
    /// Q3_K, with Q4_K and Q5_K where it pays.
    Q3KM,
    /// Q3_K, with Q5_K where it pays.
    Q3KL,
    /// Q4_K, with Q5_K in the first layers.
    Q4KS,
    /// Q4_K, with Q6_K where it pays. Llama.cpp's usual recommendation.
    Q4KM,
    /// Q5_K throughout.
    Q5KS,
    /// Q5_K, with Q6_K where it pays.
    Q5KM,
    /// Q6_K throughout.
    Q6K,
    /// Q8_0 throughout.
    Q8_0,
    /// Q4_0, with a Q6_K head.
    Q4_0,
    /// Q4_1, with a Q6_K head.
    Q4_1,
    /// Q5_0, with a Q6_K head.
    Q5_0,
    /// Q5_1, with a Q6_K head.
    Q5_1,
    /// IQ4_NL, with Q5_K where it pays.
    IQ4NL,
    /// IQ4_XS, with Q5_K where it pays: a tenth smaller than Q4_K for little more loss.
    IQ4XS,
    /// NF4 with double quantisation, as in the QLoRA paper, with a Q6_K head: a form for memory that no file has.
    Nf4,
    /// NF4 with information calibration (IR-QLoRA), with a Q6_K head: for memory too.
    Nf4Ic,
    /// 16-bit floats of IEEE 754.
    F16,
    /// The upper half of an f32.
    BF16,
    /// 32-bit floats, nothing is lost.
    F32,
}

/// A quantisation's row: name, ordinary type, `general.file_type`.
struct Row {
    quant: Quant,
    name: &'static str,
    ordinary: BlockType,
    file_type: Option<u32>,
}

#[rustfmt::skip]
const TABLE: [Row; 21] = [
    Row { quant: Quant::Q4KM,  name: "q4_k_m", ordinary: BlockType::Q4K,   file_type: Some(15) },
    Row { quant: Quant::Q5KM,  name: "q5_k_m", ordinary: BlockType::Q5K,   file_type: Some(17) },
    Row { quant: Quant::Q6K,   name: "q6_k",   ordinary: BlockType::Q6K,   file_type: Some(18) },
    Row { quant: Quant::Q8_0,  name: "q8_0",   ordinary: BlockType::Q8_0,  file_type: Some(7) },
    Row { quant: Quant::Q2K,   name: "q2_k",   ordinary: BlockType::Q2K,   file_type: Some(10) },
    Row { quant: Quant::Q3KS,  name: "q3_k_s", ordinary: BlockType::Q3K,   file_type: Some(11) },
    Row { quant: Quant::Q3KM,  name: "q3_k_m", ordinary: BlockType::Q3K,   file_type: Some(12) },
    Row { quant: Quant::Q3KL,  name: "q3_k_l", ordinary: BlockType::Q3K,   file_type: Some(13) },
    Row { quant: Quant::Q4KS,  name: "q4_k_s", ordinary: BlockType::Q4K,   file_type: Some(14) },
    Row { quant: Quant::Q5KS,  name: "q5_k_s", ordinary: BlockType::Q5K,   file_type: Some(16) },
    Row { quant: Quant::Q4_0,  name: "q4_0",   ordinary: BlockType::Q4_0,  file_type: Some(2) },
    Row { quant: Quant::Q4_1,  name: "q4_1",   ordinary: BlockType::Q4_1,  file_type: Some(3) },
    Row { quant: Quant::Q5_0,  name: "q5_0",   ordinary: BlockType::Q5_0,  file_type: Some(8) },
    Row { quant: Quant::Q5_1,  name: "q5_1",   ordinary: BlockType::Q5_1,  file_type: Some(9) },
    Row { quant: Quant::IQ4NL, name: "iq4_nl", ordinary: BlockType::IQ4NL, file_type: Some(25) },
    Row { quant: Quant::IQ4XS, name: "iq4_xs", ordinary: BlockType::IQ4XS, file_type: Some(30) },
    Row { quant: Quant::Nf4,   name: "nf4",    ordinary: BlockType::Nf4,   file_type: None },
    Row { quant: Quant::Nf4Ic, name: "nf4_ic", ordinary: BlockType::Nf4Ic, file_type: None },
    Row { quant: Quant::F16,   name: "f16",    ordinary: BlockType::F16,   file_type: Some(1) },
    Row { quant: Quant::BF16,  name: "bf16",   ordinary: BlockType::BF16,  file_type: Some(32) },
    Row { quant: Quant::F32,   name: "f32",    ordinary: BlockType::F32,   file_type: Some(0) },
];

/// Matrices that a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Values, also in one matrix with queries and keys.
    Values,
    /// Down projections, of experts too.
    Down,
    /// Output projections of the attention.
    Out,
}

/// When a rule holds; layers are counted from 0.
#[derive(Debug, Clone, Copy)]
enum When {
    Always,
    /// In the first layers.
    First(usize),
    /// In the first of so many parts of the layers.
    Part(usize),
    /// In the first and last eighth of the layers, and every third between.
    Spread,
    /// Where four query heads or more read one value head, so that more bits cost little.
    Grouped,
    /// In models of eight experts, whose attention is a small part.
    EightExperts,
}

/// An exception from the ordinary type: the first row that holds.
struct Rule(&'static [Quant], Kind, When, BlockType);

#[rustfmt::skip]
const RULES: [Rule; 20] = [
    Rule(&[Quant::Q2K],                Kind::Values, When::Grouped,  BlockType::Q4K),
    Rule(&[Quant::Q2K],                Kind::Values, When::Always,   BlockType::Q3K),
    Rule(&[Quant::Q3KM],               Kind::Values, When::First(2), BlockType::Q5K),
    Rule(&[Quant::Q3KM],               Kind::Values, When::Always,   BlockType::Q4K),
    Rule(&[Quant::Q3KL],               Kind::Values, When::Always,   BlockType::Q5K),
    Rule(&[Quant::IQ4NL, Quant::IQ4XS], Kind::Values, When::Grouped,  BlockType::Q5K),
    Rule(&[Quant::Q4KM, Quant::Q5KM],  Kind::Values, When::Spread,   BlockType::Q6K),
    Rule(&[Quant::Q4KS],               Kind::Values, When::First(4), BlockType::Q5K),
    Rule(&[Quant::Q2K],                Kind::Down,   When::Always,   BlockType::Q3K),
    Rule(&[Quant::Q3KM],               Kind::Down,   When::Part(16), BlockType::Q5K),
    Rule(&[Quant::Q3KM],               Kind::Down,   When::Always,   BlockType::Q4K),
    Rule(&[Quant::Q3KL],               Kind::Down,   When::Always,   BlockType::Q5K),
    Rule(&[Quant::Q4KM, Quant::Q5KM],  Kind::Down,   When::Spread,   BlockType::Q6K),
    Rule(&[Quant::Q4KS],               Kind::Down,   When::Part(8),  BlockType::Q5K),
    Rule(&[Quant::IQ4NL, Quant::IQ4XS], Kind::Down,   When::Part(8),  BlockType::Q5K),
    Rule(&[Quant::Q2K, Quant::Q3KS, Quant::Q3KM, Quant::Q4KS, Quant::Q4KM, Quant::IQ4NL, Quant::IQ4XS],
                                       Kind::Out,    When::EightExperts, BlockType::Q5K),
    Rule(&[Quant::Q3KL],               Kind::Out,    When::EightExperts, BlockType::Q3K),
    Rule(&[Quant::Q2K],                Kind::Out,    When::Always,   BlockType::Q3K),
    Rule(&[Quant::Q3KM],               Kind::Out,    When::Always,   BlockType::Q4K),
    Rule(&[Quant::Q3KL],               Kind::Out,    When::Always,   BlockType::Q5K),
];

impl Quant {
    /// All that a file can have, in the order in which messages list them.
    pub const FILES: [Quant; 19] = [
        Quant::Q4KM,
        Quant::Q5KM,
        Quant::Q6K,
        Quant::Q8_0,
        Quant::Q2K,
        Quant::Q3KS,
        Quant::Q3KM,
        Quant::Q3KL,
        Quant::Q4KS,
        Quant::Q5KS,
        Quant::Q4_0,
        Quant::Q4_1,
        Quant::Q5_0,
        Quant::Q5_1,
        Quant::IQ4NL,
        Quant::IQ4XS,
        Quant::F16,
        Quant::BF16,
        Quant::F32,
    ];

    /// Those that no file has.
    pub const MEMORY: [Quant; 2] = [Quant::Nf4, Quant::Nf4Ic];

    /// Reads a name as users write it, in any case: `q4_k_m`.
    ///
    /// # Errors
    /// [`Error::UnknownQuant`] with all valid names.
    pub fn parse(name: &str) -> Result<Quant> {
        TABLE.iter().find(|row| row.name.eq_ignore_ascii_case(name)).map(|row| row.quant).ok_or_else(|| {
            let valid = TABLE.iter().map(|row| row.name).collect::<Vec<_>>().join(", ");
            Error::UnknownQuant { found: name.to_owned(), valid }
        })
    }

    /// The same for a quantisation that a file can have.
    ///
    /// # Errors
    /// [`Error::UnknownQuant`] with the names of those.
    pub fn parse_for_file(name: &str) -> Result<Quant> {
        Quant::parse(name).ok().filter(|quant| Quant::FILES.contains(quant)).ok_or_else(|| {
            let valid = Quant::FILES.map(Quant::name).join(", ");
            Error::UnknownQuant { found: name.to_owned(), valid }
        })
    }

    /// The name that [`Quant::parse`] reads, also the suffix of exported files.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// The quantisation that a GGUF names as its own; `None` for one that is not written here.
    pub fn of_file_type(file_type: u32) -> Option<Quant> {
        TABLE.iter().find(|row| row.file_type == Some(file_type)).map(|row| row.quant)
    }

    /// `general.file_type` of a GGUF; `None` for what no file has.
    pub fn file_type(self) -> Option<u32> {
        self.row().file_type
    }

    fn row(self) -> &'static Row {
        TABLE.iter().find(|row| row.quant == self).expect("the table has a row for every variant")
    }
}

impl std::fmt::Display for Quant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The type of each tensor, in the order of `specs`.
pub fn block_types(quant: Quant, config: &ModelConfig, specs: &[TensorSpec]) -> Vec<BlockType> {
    specs.iter().map(|spec| block_type(quant, config, spec)).collect()
}

/// The type of one tensor.
///
/// Rows that are no multiple of the block fall back as llama.cpp's do.
pub fn block_type(quant: Quant, config: &ModelConfig, spec: &TensorSpec) -> BlockType {
    let ordinary = quant.row().ordinary;
    let is_head = spec.role == Role::Output || (spec.role == Role::Embedding && config.tied);
    let wanted = match spec.role {
        role if role.is_vector() || role == Role::Router => return BlockType::F32,
        _ if !is_quantised(ordinary) => ordinary,
        _ if is_head && !spec.cols.is_multiple_of(head_block(ordinary)) => BlockType::Q8_0,
        _ if is_head && ordinary != BlockType::Q8_0 => BlockType::Q6K,
        role => {
            let kind = kind(role);
            let by_rule = kind.and_then(|kind| exception(quant, kind, config, spec.layer.unwrap_or(0)));
            let wanted = by_rule.unwrap_or(ordinary);
            let is_small = matches!(wanted, BlockType::Q3K | BlockType::Q4K);
            if kind == Some(Kind::Values) && is_small && is_70b(config) { BlockType::Q5K } else { wanted }
        }
    };
    fallback(wanted, spec.cols)
}

fn kind(role: Role) -> Option<Kind> {
    match role {
        Role::V | Role::Qkv => Some(Kind::Values),
        Role::Down | Role::ExpertDown => Some(Kind::Down),
        Role::O => Some(Kind::Out),
        _ => None,
    }
}

/// The type by the first rule that holds.
fn exception(quant: Quant, kind: Kind, config: &ModelConfig, layer: usize) -> Option<BlockType> {
    let n_layers = config.n_layers;
    let holds = |when: When| match when {
        When::Always => true,
        When::First(n) => layer < n,
        When::Part(n) => layer < n_layers / n,
        When::Spread => is_spread(layer, n_layers),
        When::Grouped => config.n_heads >= 4 * config.n_kv_heads,
        When::EightExperts => has_eight_experts(config),
    };
    let mut rules = RULES.iter();
    rules
        .find(|Rule(quants, of, when, _)| quants.contains(&quant) && *of == kind && holds(*when))
        .map(|rule| rule.3)
}

/// The first and last eighth of the layers, and every third between.
fn is_spread(layer: usize, n_layers: usize) -> bool {
    let eighth = n_layers / 8;
    layer < eighth || layer >= 7 * n_layers / 8 || (layer - eighth) % 3 == 2
}

/// Eight heads share one value matrix there, so more bits for it cost next to nothing.
fn is_70b(config: &ModelConfig) -> bool {
    let has_such = matches!(config.family, Family::Llama | Family::Qwen2);
    has_such && config.n_layers == 80 && config.n_heads != config.n_kv_heads
}

/// The attention is a small part of such a model.
fn has_eight_experts(config: &ModelConfig) -> bool {
    config.experts.is_some_and(|experts| experts.routing.n_experts == 8)
}

/// What a head's rows must be a multiple of to get more bits.
fn head_block(ordinary: BlockType) -> usize {
    match ordinary {
        BlockType::Nf4 | BlockType::Nf4Ic => BlockType::Q6K.block_len(),
        other => other.block_len(),
    }
}

fn is_quantised(ty: BlockType) -> bool {
    ty.block_len() > 1
}

/// The type that a row of `cols` weights can have when it is no whole number of blocks.
fn fallback(wanted: BlockType, cols: usize) -> BlockType {
    if cols.is_multiple_of(wanted.block_len()) {
        return wanted;
    }
    let smaller = match wanted {
        BlockType::Q2K | BlockType::Q3K => BlockType::Q4_0,
        BlockType::IQ4XS => BlockType::IQ4NL,
        BlockType::Q4K => BlockType::Q5_0,
        BlockType::Q5K => BlockType::Q5_1,
        BlockType::Q6K | BlockType::Nf4 | BlockType::Nf4Ic => BlockType::Q8_0,
        other => other,
    };
    if cols.is_multiple_of(smaller.block_len()) { smaller } else { BlockType::F16 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family;

    fn qwen3(n_layers: usize, hidden: usize, tied: bool) -> ModelConfig {
        ModelConfig {
            vocab_size: 151_936,
            hidden,
            intermediate: 3 * hidden,
            n_layers,
            n_heads: 16,
            n_kv_heads: 8,
            head_dim_is_stated: true,
            tied,
            max_positions: 40_960,
            ..ModelConfig::plain(Family::Qwen3, 128)
        }
    }

    fn type_of(quant: Quant, config: &ModelConfig, role: Role, layer: usize) -> BlockType {
        let specs = family::tensors(config);
        let types = block_types(quant, config, &specs);
        let at = |spec: &TensorSpec| spec.role == role && spec.layer.unwrap_or(0) == layer;
        types[specs.iter().position(at).unwrap()]
    }

    /// The layers in which a role has a type.
    fn layers(quant: Quant, config: &ModelConfig, role: Role, ty: BlockType) -> Vec<usize> {
        (0..config.n_layers).filter(|&layer| type_of(quant, config, role, layer) == ty).collect()
    }

    #[test]
    fn more_bits_stand_where_llama_quantize_puts_them() {
        // Seen in files that llama-quantize wrote.
        let in_28 = [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 24, 25, 26, 27];
        let in_36 = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 31, 32, 33, 34, 35];
        for (n_layers, expected) in [(28, &in_28[..]), (36, &in_36[..])] {
            let config = qwen3(n_layers, 1024, true);
            for quant in [Quant::Q4KM, Quant::Q5KM] {
                for role in [Role::V, Role::Down] {
                    assert_eq!(layers(quant, &config, role, BlockType::Q6K), expected, "{quant} {role:?}");
                }
                assert!(layers(quant, &config, Role::K, BlockType::Q6K).is_empty());
            }
        }
    }

    #[test]
    fn head_embedding_and_norms() {
        let (tied, untied) = (qwen3(28, 1024, true), qwen3(28, 1024, false));
        let check = |quant, config, role, expected| assert_eq!(type_of(quant, config, role, 0), expected);
        check(Quant::Q4KM, &tied, Role::Embedding, BlockType::Q6K);
        check(Quant::Q4KM, &untied, Role::Embedding, BlockType::Q4K);
        check(Quant::Q4KM, &untied, Role::Output, BlockType::Q6K);
        check(Quant::Q4_0, &untied, Role::Output, BlockType::Q6K);
        check(Quant::Q8_0, &untied, Role::Output, BlockType::Q8_0);
        check(Quant::F16, &untied, Role::Output, BlockType::F16);
        for quant in Quant::FILES {
            check(quant, &tied, Role::AttnNorm, BlockType::F32);
            check(quant, &tied, Role::QNorm, BlockType::F32);
        }
    }

    #[test]
    fn rows_that_are_no_multiple_of_the_block_fall_back() {
        let check = |quant, cols, role, expected| {
            let config = qwen3(28, cols, true);
            assert_eq!(type_of(quant, &config, role, 3), expected, "{quant} {cols}");
        };
        check(Quant::Q4KM, 1024, Role::Q, BlockType::Q4K);
        check(Quant::Q4KM, 64, Role::Q, BlockType::Q5_0);
        check(Quant::Q5KM, 64, Role::Q, BlockType::Q5_1);
        check(Quant::Q6K, 64, Role::Q, BlockType::Q8_0);
        check(Quant::Q4_0, 64, Role::Q, BlockType::Q4_0);
        for quant in Quant::MEMORY {
            check(quant, 96, Role::Q, BlockType::Q8_0);
            assert_eq!(type_of(quant, &qwen3(28, 64, true), Role::Embedding, 0), BlockType::Q8_0);
            assert_eq!(type_of(quant, &qwen3(28, 256, true), Role::Embedding, 0), BlockType::Q6K);
        }
        for quant in [Quant::Q4KM, Quant::Q5KM, Quant::Q6K, Quant::Q8_0, Quant::Q4_0, Quant::Nf4] {
            check(quant, 172, Role::Q, BlockType::F16);
        }
        let narrow = qwen3(28, 64, true);
        assert_eq!(type_of(Quant::Q4KM, &narrow, Role::Embedding, 0), BlockType::Q8_0);
        assert_eq!(type_of(Quant::Q4KM, &narrow, Role::V, 0), BlockType::Q8_0);
    }

    #[test]
    fn values_of_the_70b_llama_get_five_bits() {
        let config = ModelConfig { family: Family::Llama, ..qwen3(80, 8192, false) };
        assert_eq!(type_of(Quant::Q4KM, &config, Role::V, 10), BlockType::Q5K);
        assert_eq!(type_of(Quant::Q4KM, &config, Role::V, 0), BlockType::Q6K);
        assert_eq!(type_of(Quant::Q4KM, &config, Role::Down, 10), BlockType::Q4K);
    }

    #[test]
    fn names_parse_in_any_case_and_unknown_ones_list_the_valid() {
        for quant in Quant::FILES.into_iter().chain(Quant::MEMORY) {
            assert_eq!(Quant::parse(&quant.name().to_uppercase()).unwrap(), quant);
        }
        let error = Quant::parse("q4_k_xl").unwrap_err().to_string();
        let valid = "q4_k_m, q5_k_m, q6_k, q8_0, q2_k, q3_k_s, q3_k_m, q3_k_l, q4_k_s, q5_k_s, q4_0, q4_1, q5_0, q5_1, \
                     iq4_nl, iq4_xs, nf4, nf4_ic, f16, bf16, f32";
        assert_eq!(error, format!("unknown quantisation `q4_k_xl` (valid: {valid})"));
    }
}
