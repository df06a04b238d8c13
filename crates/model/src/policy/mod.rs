//! Which block type each tensor gets: llama.cpp's table of its K-quant mixtures.
//!
//! Source: `llama_tensor_get_type_impl` and `tensor_type_fallback` of llama.cpp's `src/llama-quant.cpp` as vendored by
//! llama-cpp-sys-2 0.1.160. The same types hold the frozen base while training, so the adapter learns on the weights
//! that will be served. Policies drift between versions of llama.cpp; a change here changes files.

mod quant;

use formats::BlockType;

use crate::config::ModelConfig;
use crate::family::{Family, Role, TensorSpec};
pub use quant::Quant;

/// Matrices that a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The embedding of a model that has a head of its own.
    Embedding,
    /// The head, which may be the embedding too.
    Head,
    /// Queries.
    Queries,
    /// Keys.
    Keys,
    /// Values, also in one matrix with queries and keys.
    Values,
    /// Gate and up projections, of experts too.
    Up,
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
    /// The same, of matrices instead of layers, where a layer may have several.
    PartOfMatrices(usize),
    /// In the first of so many parts of the layers, with an importance matrix.
    PartWithMatrix(usize),
    /// In the first of so many parts of the layers, without an importance matrix.
    PartWithoutMatrix(usize),
    /// In the first and last eighth of the layers, and every third between.
    Spread,
    /// Everywhere but in the first and last eighth of the layers.
    Between,
    /// Where four query heads or more read one value head, so that more bits cost little.
    Grouped,
    /// In models of eight experts, whose attention is a small part.
    EightExperts,
    /// The same, spread as above.
    EightExpertsSpread,
}

/// An exception from the ordinary type: the first row that holds.
struct Rule(&'static [Quant], Kind, When, BlockType);

/// The smallest, which leave out the exception for models of 70 B.
const IQ2: [Quant; 4] = [Quant::IQ2XXS, Quant::IQ2XS, Quant::IQ2S, Quant::IQ2M];

#[rustfmt::skip]
const RULES: [Rule; 42] = [
    Rule(&[Quant::Q8_0],                 Kind::Head,      When::Always,              BlockType::Q8_0),
    Rule(&[Quant::IQ2XXS, Quant::IQ2XS, Quant::IQ2S, Quant::IQ2M, Quant::IQ3XXS],
                                         Kind::Head,      When::Always,              BlockType::Q5K),

    Rule(&[Quant::IQ2XXS, Quant::IQ2XS], Kind::Embedding, When::Always,              BlockType::Q2K),
    Rule(&[Quant::IQ2S, Quant::IQ2M, Quant::IQ3XXS],
                                         Kind::Embedding, When::Always,              BlockType::IQ3S),

    Rule(&[Quant::IQ3XS],                Kind::Queries,   When::Always,              BlockType::IQ3XXS),
    Rule(&[Quant::IQ3XXS],               Kind::Queries,   When::Always,              BlockType::IQ2S),

    Rule(&[Quant::IQ3XS],                Kind::Keys,      When::Always,              BlockType::IQ3XXS),
    Rule(&[Quant::IQ3XXS],               Kind::Keys,      When::Always,              BlockType::IQ2S),

    Rule(&IQ2,                           Kind::Values,    When::Grouped,             BlockType::Q4K),
    Rule(&[Quant::IQ2S, Quant::IQ2M],    Kind::Values,    When::Always,              BlockType::IQ3S),
    Rule(&[Quant::IQ2XXS, Quant::IQ2XS], Kind::Values,    When::Always,              BlockType::Q2K),
    Rule(&[Quant::Q2K, Quant::IQ3XXS, Quant::IQ3XS, Quant::IQ3S],
                                         Kind::Values,    When::Grouped,             BlockType::Q4K),
    Rule(&[Quant::Q2K],                  Kind::Values,    When::Always,              BlockType::Q3K),
    Rule(&[Quant::IQ3M],                 Kind::Values,    When::Always,              BlockType::Q4K),
    Rule(&[Quant::Q3KM],                 Kind::Values,    When::First(2),            BlockType::Q5K),
    Rule(&[Quant::Q3KM],                 Kind::Values,    When::Always,              BlockType::Q4K),
    Rule(&[Quant::Q3KL],                 Kind::Values,    When::Always,              BlockType::Q5K),
    Rule(&[Quant::IQ4NL, Quant::IQ4XS],  Kind::Values,    When::Grouped,             BlockType::Q5K),
    Rule(&[Quant::Q4KM, Quant::Q5KM],    Kind::Values,    When::Spread,              BlockType::Q6K),
    Rule(&[Quant::Q4KS],                 Kind::Values,    When::First(4),            BlockType::Q5K),

    Rule(&[Quant::IQ3XS],                Kind::Up,        When::Between,             BlockType::IQ3XXS),

    Rule(&[Quant::IQ2S, Quant::IQ2M],    Kind::Down,      When::PartOfMatrices(8),   BlockType::IQ3S),
    Rule(&[Quant::IQ2XXS, Quant::IQ2XS], Kind::Down,      When::PartOfMatrices(8),   BlockType::Q2K),
    Rule(&[Quant::Q2K],                  Kind::Down,      When::Always,              BlockType::Q3K),
    Rule(&[Quant::IQ3M],                 Kind::Down,      When::Part(8),             BlockType::Q4K),
    Rule(&[Quant::IQ3M],                 Kind::Down,      When::EightExpertsSpread,  BlockType::Q4K),
    Rule(&[Quant::Q3KM],                 Kind::Down,      When::Part(16),            BlockType::Q5K),
    Rule(&[Quant::Q3KM],                 Kind::Down,      When::Always,              BlockType::Q4K),
    Rule(&[Quant::Q3KL],                 Kind::Down,      When::Always,              BlockType::Q5K),
    Rule(&[Quant::Q4KM, Quant::Q5KM],    Kind::Down,      When::Spread,              BlockType::Q6K),
    Rule(&[Quant::Q4KS],                 Kind::Down,      When::Part(8),             BlockType::Q5K),
    Rule(&[Quant::IQ4NL, Quant::IQ4XS],  Kind::Down,      When::PartWithoutMatrix(8), BlockType::Q5K),
    Rule(&[Quant::Q4_0],                 Kind::Down,      When::PartWithMatrix(8),   BlockType::Q4_1),
    Rule(&[Quant::Q5_0],                 Kind::Down,      When::PartWithMatrix(8),   BlockType::Q5_1),

    Rule(&[Quant::Q2K, Quant::Q3KS, Quant::Q3KM, Quant::Q4KS, Quant::Q4KM, Quant::IQ4NL, Quant::IQ4XS],
                                         Kind::Out,       When::EightExperts,        BlockType::Q5K),
    Rule(&[Quant::IQ2XXS, Quant::IQ2XS, Quant::IQ2S, Quant::IQ2M],
                                         Kind::Out,       When::EightExperts,        BlockType::Q5K),
    Rule(&[Quant::IQ3XXS, Quant::IQ3XS, Quant::IQ3S, Quant::IQ3M],
                                         Kind::Out,       When::EightExperts,        BlockType::Q5K),
    Rule(&[Quant::Q3KL],                 Kind::Out,       When::EightExperts,        BlockType::Q3K),
    Rule(&[Quant::Q2K],                  Kind::Out,       When::Always,              BlockType::Q3K),
    Rule(&[Quant::IQ2S, Quant::IQ2M, Quant::IQ3XXS],
                                         Kind::Out,       When::Always,              BlockType::IQ3S),
    Rule(&[Quant::Q3KM, Quant::IQ3M],    Kind::Out,       When::Always,              BlockType::Q4K),
    Rule(&[Quant::Q3KL],                 Kind::Out,       When::Always,              BlockType::Q5K),
];

/// The type of each tensor of a file, in the order of `specs`, quantised with an importance matrix or without.
pub fn block_types(
    quant: Quant,
    has_matrix: bool,
    config: &ModelConfig,
    specs: &[TensorSpec],
) -> Vec<BlockType> {
    specs.iter().map(|spec| chosen(quant, has_matrix, config, spec)).collect()
}

/// The type of a tensor of which another than the policy's is asked for: it falls back as that would, and what is never
/// quantised stays in 32 bits.
pub fn asked_type(asked: BlockType, spec: &TensorSpec) -> BlockType {
    if spec.role.is_vector() || spec.role == Role::Router {
        return BlockType::F32;
    }
    fallback(asked, spec.cols)
}

/// The type of one tensor, quantised without an importance matrix, as in memory.
pub fn block_type(quant: Quant, config: &ModelConfig, spec: &TensorSpec) -> BlockType {
    chosen(quant, false, config, spec)
}

/// Whether a tensor with that type needs to be told which columns are important. Embedding and head, which no
/// importance is measured of, do without.
pub fn tensor_needs_matrix(ty: BlockType, spec: &TensorSpec) -> bool {
    quant::needs_matrix(ty) && !matches!(spec.role, Role::Embedding | Role::Output)
}

/// Rows that are no multiple of the block fall back as llama.cpp's do.
fn chosen(quant: Quant, has_matrix: bool, config: &ModelConfig, spec: &TensorSpec) -> BlockType {
    let ordinary = quant.ordinary();
    if spec.role.is_vector() || spec.role == Role::Router {
        return BlockType::F32;
    }
    if !is_quantised(ordinary) {
        return ordinary;
    }
    let kind = kind(spec.role, config.tied);
    if kind == Some(Kind::Head) && !spec.cols.is_multiple_of(head_block(ordinary)) {
        return fallback(BlockType::Q8_0, spec.cols);
    }
    let layer =
        Layer { config, has_matrix, layer: spec.layer.unwrap_or(0), matrix: matrix_index(config, spec) };
    let by_rule = kind.and_then(|kind| layer.exception(quant, kind));
    let wanted = by_rule.unwrap_or(if kind == Some(Kind::Head) { BlockType::Q6K } else { ordinary });
    let is_small = matches!(wanted, BlockType::Q3K | BlockType::Q4K);
    let gets_more = kind == Some(Kind::Values) && is_small && is_70b(config) && !IQ2.contains(&quant);
    fallback(if gets_more { BlockType::Q5K } else { wanted }, spec.cols)
}

fn kind(role: Role, is_tied: bool) -> Option<Kind> {
    match role {
        Role::Embedding if is_tied => Some(Kind::Head),
        Role::Embedding => Some(Kind::Embedding),
        Role::Output => Some(Kind::Head),
        Role::Q => Some(Kind::Queries),
        Role::K => Some(Kind::Keys),
        Role::V | Role::Qkv => Some(Kind::Values),
        Role::Gate | Role::Up | Role::GateUp | Role::ExpertGate | Role::ExpertUp => Some(Kind::Up),
        Role::Down | Role::ExpertDown => Some(Kind::Down),
        Role::O => Some(Kind::Out),
        _ => None,
    }
}

/// Where a tensor is, as far as rules ask.
struct Layer<'a> {
    config: &'a ModelConfig,
    has_matrix: bool,
    layer: usize,
    /// Which of the down projections of all layers, where it is one.
    matrix: usize,
}

impl Layer<'_> {
    /// The type by the first rule that holds.
    fn exception(&self, quant: Quant, kind: Kind) -> Option<BlockType> {
        let mut rules = RULES.iter();
        rules
            .find(|Rule(quants, of, when, _)| quants.contains(&quant) && *of == kind && self.holds(*when))
            .map(|rule| rule.3)
    }

    fn holds(&self, when: When) -> bool {
        let Layer { config, has_matrix, layer, matrix } = *self;
        let n_layers = config.n_layers;
        match when {
            When::Always => true,
            When::First(n) => layer < n,
            When::Part(n) => layer < n_layers / n,
            When::PartOfMatrices(n) => matrix < n_layers / n,
            When::PartWithMatrix(n) => has_matrix && layer < n_layers / n,
            When::PartWithoutMatrix(n) => !has_matrix && layer < n_layers / n,
            When::Spread => is_spread(layer, n_layers),
            When::Between => (n_layers / 8..7 * n_layers / 8).contains(&layer),
            When::Grouped => config.n_heads >= 4 * config.n_kv_heads,
            When::EightExperts => has_eight_experts(config),
            When::EightExpertsSpread => has_eight_experts(config) && is_spread(layer, n_layers),
        }
    }
}

/// The index of a down projection among all, where layers with experts have one for those that are routed and one for
/// those that are shared.
fn matrix_index(config: &ModelConfig, spec: &TensorSpec) -> usize {
    let layer = spec.layer.unwrap_or(0);
    match config.experts {
        Some(experts) if layer >= experts.n_dense_layers => {
            let of_layer = 1 + usize::from(experts.n_shared > 0);
            let is_shared = spec.role == Role::Down;
            experts.n_dense_layers + (layer - experts.n_dense_layers) * of_layer + usize::from(is_shared)
        }
        _ => layer,
    }
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
        BlockType::IQ2XXS | BlockType::IQ2XS | BlockType::IQ2S => BlockType::IQ4NL,
        BlockType::IQ3XXS | BlockType::IQ3S | BlockType::IQ4XS => BlockType::IQ4NL,
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
        let types = block_types(quant, false, config, &specs);
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
}
