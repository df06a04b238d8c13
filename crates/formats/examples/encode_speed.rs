//! Million weights a second that one thread encodes, of each block type.
//!
//!     encode_speed [avx2|baseline] [TYPE ...]        TYPE as ggml names it, all by default
//!
//! Weights are bell-shaped, rows of 4096; each figure is the median of seven passes over 256 rows, or fewer of slow types.

use std::time::Instant;

use formats::BlockType;
use formats::block::encode;
use formats::isa::Isa;

const COLS: usize = 4096;

fn main() {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let limit = match arguments.first().map(String::as_str) {
        #[cfg(target_arch = "x86_64")]
        Some("avx2") => Some(Isa::Avx2),
        Some("baseline") => Some(Isa::Baseline),
        _ => None,
    };
    if let Some(limit) = limit {
        assert!(Isa::limit_to(limit), "nothing has asked before");
        arguments.remove(0);
    }
    let importance = vec![1.0; COLS];
    for ty in BlockType::ALL {
        if !arguments.is_empty() && !arguments.iter().any(|name| name.eq_ignore_ascii_case(ty.name())) {
            continue;
        }
        let plain = (!ty.needs_importance()).then(|| rate(ty, None));
        let weighted = rate(ty, Some(&importance));
        let plain = plain.map_or("-".to_owned(), |rate| format!("{rate:.0}"));
        println!("{:8} {plain:>6} without a matrix, {weighted:>6.0} with one", ty.name());
    }
}

fn rate(ty: BlockType, importance: Option<&[f32]>) -> f64 {
    let is_slow = ty.name().starts_with("IQ2") || ty.name().starts_with("IQ3");
    let rows = if is_slow { 4 } else { 256 };
    let weights = bell(rows * COLS);
    let mut blocks = vec![0; rows * ty.row_bytes(COLS).expect("rows of whole blocks")];
    let mut rates: Vec<f64> = (0..7)
        .map(|_| {
            let started = Instant::now();
            encode(ty, &weights, COLS, importance, &mut blocks).expect("finite weights");
            weights.len() as f64 / started.elapsed().as_secs_f64() / 1e6
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

/// Sums of four uniform numbers, the same in every run.
fn bell(n: usize) -> Vec<f32> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..n).map(|_| 0.05 * (next() + next() + next() + next())).collect()
}
