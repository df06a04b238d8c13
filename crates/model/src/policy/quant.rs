//! Quantisations as users name them.

use formats::BlockType;

use crate::{Error, Result};

/// A quantisation as users name it: one type for most tensors, exceptions by [`super::block_types`].
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
    /// IQ3_S, with Q4_K where it pays.
    IQ3M,
    /// IQ3_S, with Q4_K for shared values.
    IQ3S,
    /// IQ3_S and IQ3_XXS.
    IQ3XS,
    /// IQ3_XXS, with IQ2_S for queries and keys.
    IQ3XXS,
    /// IQ2_S, with IQ3_S where it hurts most.
    IQ2M,
    /// IQ2_XS, with IQ3_S where it hurts most.
    IQ2S,
    /// IQ2_XS, with Q2_K where it hurts most.
    IQ2XS,
    /// IQ2_XXS, with Q2_K where it hurts most: two bits a weight.
    IQ2XXS,
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
const TABLE: [Row; 29] = [
    Row { quant: Quant::Q4KM,    name: "q4_k_m",  ordinary: BlockType::Q4K,       file_type: Some(15) },
    Row { quant: Quant::Q5KM,    name: "q5_k_m",  ordinary: BlockType::Q5K,       file_type: Some(17) },
    Row { quant: Quant::Q6K,     name: "q6_k",    ordinary: BlockType::Q6K,       file_type: Some(18) },
    Row { quant: Quant::Q8_0,    name: "q8_0",    ordinary: BlockType::Q8_0,      file_type: Some(7) },
    Row { quant: Quant::Q2K,     name: "q2_k",    ordinary: BlockType::Q2K,       file_type: Some(10) },
    Row { quant: Quant::Q3KS,    name: "q3_k_s",  ordinary: BlockType::Q3K,       file_type: Some(11) },
    Row { quant: Quant::Q3KM,    name: "q3_k_m",  ordinary: BlockType::Q3K,       file_type: Some(12) },
    Row { quant: Quant::Q3KL,    name: "q3_k_l",  ordinary: BlockType::Q3K,       file_type: Some(13) },
    Row { quant: Quant::Q4KS,    name: "q4_k_s",  ordinary: BlockType::Q4K,       file_type: Some(14) },
    Row { quant: Quant::Q5KS,    name: "q5_k_s",  ordinary: BlockType::Q5K,       file_type: Some(16) },
    Row { quant: Quant::Q4_0,    name: "q4_0",    ordinary: BlockType::Q4_0,      file_type: Some(2) },
    Row { quant: Quant::Q4_1,    name: "q4_1",    ordinary: BlockType::Q4_1,      file_type: Some(3) },
    Row { quant: Quant::Q5_0,    name: "q5_0",    ordinary: BlockType::Q5_0,      file_type: Some(8) },
    Row { quant: Quant::Q5_1,    name: "q5_1",    ordinary: BlockType::Q5_1,      file_type: Some(9) },
    Row { quant: Quant::IQ4NL,   name: "iq4_nl",  ordinary: BlockType::IQ4NL,     file_type: Some(25) },
    Row { quant: Quant::IQ4XS,   name: "iq4_xs",  ordinary: BlockType::IQ4XS,     file_type: Some(30) },
    Row { quant: Quant::IQ3M,    name: "iq3_m",   ordinary: BlockType::IQ3S,      file_type: Some(27) },
    Row { quant: Quant::IQ3S,    name: "iq3_s",   ordinary: BlockType::IQ3S,      file_type: Some(26) },
    Row { quant: Quant::IQ3XS,   name: "iq3_xs",  ordinary: BlockType::IQ3S,      file_type: Some(22) },
    Row { quant: Quant::IQ3XXS,  name: "iq3_xxs", ordinary: BlockType::IQ3XXS,    file_type: Some(23) },
    Row { quant: Quant::IQ2M,    name: "iq2_m",   ordinary: BlockType::IQ2S,      file_type: Some(29) },
    Row { quant: Quant::IQ2S,    name: "iq2_s",   ordinary: BlockType::IQ2XS,     file_type: Some(28) },
    Row { quant: Quant::IQ2XS,   name: "iq2_xs",  ordinary: BlockType::IQ2XS,     file_type: Some(20) },
    Row { quant: Quant::IQ2XXS,  name: "iq2_xxs", ordinary: BlockType::IQ2XXS,    file_type: Some(19) },
    Row { quant: Quant::Nf4,     name: "nf4",     ordinary: BlockType::Nf4,       file_type: None },
    Row { quant: Quant::Nf4Ic,   name: "nf4_ic",  ordinary: BlockType::Nf4Ic,     file_type: None },
    Row { quant: Quant::F16,     name: "f16",     ordinary: BlockType::F16,       file_type: Some(1) },
    Row { quant: Quant::BF16,    name: "bf16",    ordinary: BlockType::BF16,      file_type: Some(32) },
    Row { quant: Quant::F32,     name: "f32",     ordinary: BlockType::F32,       file_type: Some(0) },
];

impl Quant {
    /// All that a file can have, in the order in which messages list them.
    pub const FILES: [Quant; 27] = [
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
        Quant::IQ3M,
        Quant::IQ3S,
        Quant::IQ3XS,
        Quant::IQ3XXS,
        Quant::IQ2M,
        Quant::IQ2S,
        Quant::IQ2XS,
        Quant::IQ2XXS,
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
        Quant::parse_where(name, |_| true)
    }

    /// The same for a quantisation that a file can have.
    ///
    /// # Errors
    /// [`Error::UnknownQuant`] with the names of those.
    pub fn parse_for_file(name: &str) -> Result<Quant> {
        Quant::parse_where(name, |quant| quant.file_type().is_some())
    }

    /// The same for one that weights can have in memory: all but those that need an importance matrix.
    ///
    /// # Errors
    /// [`Error::UnknownQuant`] with the names of those.
    pub fn parse_for_memory(name: &str) -> Result<Quant> {
        Quant::parse_where(name, |quant| !quant.needs_matrix())
    }

    fn parse_where(name: &str, is_valid: impl Fn(Quant) -> bool) -> Result<Quant> {
        let mut valid = TABLE.iter().filter(|row| is_valid(row.quant));
        valid.clone().find(|row| row.name.eq_ignore_ascii_case(name)).map(|row| row.quant).ok_or_else(|| {
            let valid = valid.by_ref().map(|row| row.name).collect::<Vec<_>>().join(", ");
            Error::UnknownQuant { found: name.to_owned(), valid }
        })
    }

    /// Whether nothing good comes of it without an importance matrix: llama.cpp refuses to.
    pub fn needs_matrix(self) -> bool {
        self == Quant::IQ3XS || needs_matrix(self.ordinary())
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

    /// Whether it is one of blocks, not of floats.
    pub fn is_quantised(self) -> bool {
        self.ordinary().block_len() > 1
    }

    /// The type of most tensors.
    pub(super) fn ordinary(self) -> BlockType {
        self.row().ordinary
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

/// Types that make garbage of a matrix when they are not told what is important.
pub(super) fn needs_matrix(ty: BlockType) -> bool {
    matches!(ty, BlockType::IQ2XXS | BlockType::IQ2XS | BlockType::IQ2S | BlockType::IQ3XXS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_in_any_case_and_unknown_ones_list_the_valid() {
        for quant in Quant::FILES.into_iter().chain(Quant::MEMORY) {
            assert_eq!(Quant::parse(&quant.name().to_uppercase()).unwrap(), quant);
        }
        let error = |parse: fn(&str) -> Result<Quant>, name: &str| parse(name).unwrap_err().to_string();
        let first = "q4_k_m, q5_k_m, q6_k, q8_0, q2_k, q3_k_s, q3_k_m, q3_k_l, q4_k_s, q5_k_s, q4_0, q4_1, q5_0, q5_1, \
                     iq4_nl, iq4_xs, iq3_m, iq3_s";
        let (small, last) = ("iq3_xs, iq3_xxs, iq2_m, iq2_s, iq2_xs, iq2_xxs", "f16, bf16, f32");
        assert_eq!(
            error(Quant::parse, "q4_k_xl"),
            format!("unknown quantisation `q4_k_xl` (valid: {first}, {small}, nf4, nf4_ic, {last})")
        );
        assert_eq!(
            error(Quant::parse_for_file, "nf4"),
            format!("unknown quantisation `nf4` (valid: {first}, {small}, {last})")
        );
        assert_eq!(
            error(Quant::parse_for_memory, "iq2_xs"),
            format!("unknown quantisation `iq2_xs` (valid: {first}, nf4, nf4_ic, {last})")
        );
    }
}
