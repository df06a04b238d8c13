//! Which vector instructions the processor has: found out once, at run time.

use std::sync::OnceLock;

/// Instruction sets that code is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// What every processor of the target has.
    Baseline,
    /// AVX2.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, VL, BW and DQ.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

static ISA: OnceLock<Isa> = OnceLock::new();

impl Isa {
    /// The widest set that this processor has, or what it was limited to.
    pub fn get() -> Isa {
        *ISA.get_or_init(Isa::detect)
    }

    /// Uses no wider set than `isa` from here on, to compare processors on one; whether it came before anything asked.
    pub fn limit_to(isa: Isa) -> bool {
        ISA.set(isa.min(Isa::detect())).is_ok()
    }

    #[cfg(target_arch = "x86_64")]
    fn detect() -> Isa {
        use std::arch::is_x86_feature_detected as has;
        if has!("avx512f") && has!("avx512vl") && has!("avx512bw") && has!("avx512dq") {
            Isa::Avx512
        } else if has!("avx2") {
            Isa::Avx2
        } else {
            Isa::Baseline
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn detect() -> Isa {
        Isa::Baseline
    }
}
