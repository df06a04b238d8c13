//! Products with frozen weights, forward and backward, by every kernel of this processor: medians in GFLOP/s, and how
//! far the results are from those of f32 factors.
//!
//!     cargo run --release -p model --example product_speed [TOKENS ROWS COLS TYPE [KERNEL]]

mod measure;

use std::time::Instant;

use formats::{BlockType, block};
use model::arena::Arena;
use model::device::cpu::{Cpu, ProductKernel};
use model::device::{Buffer, Device, Write};

use measure::{median, values};

const REPEATS: usize = 15;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default: usize| arguments.get(i).map_or(Ok(default), |a| a.parse::<usize>());
    let (n, rows, cols) = (number(0, 512)?, number(1, 2048)?, number(2, 2048)?);
    let ty = arguments.get(3).map(String::as_str).unwrap_or("Q4_K");
    let ty = BlockType::ALL.into_iter().find(|known| known.name() == ty).ok_or("an unknown block type")?;
    let only = arguments.get(4);
    let mut blocks = vec![0; rows * ty.row_bytes(cols)?];
    block::encode_par(ty, &values(rows * cols, 1), cols, None, &mut blocks)?;
    let flops = 2.0 * (n * rows * cols) as f64;
    let mut exact: Option<[Vec<f32>; 2]> = None;
    println!("{n} tokens, {rows} x {cols} of {ty}");
    let wanted = |kernel: &ProductKernel| only.is_none_or(|only| format!("{kernel:?}") == *only);
    for kernel in ProductKernel::ALL.into_iter().rev().filter(|kernel| kernel.is_possible()).filter(wanted) {
        let cpu = Cpu::with_kernel(Arena::unlimited(), kernel)?;
        let mut weights = cpu.alloc_weights("weights", ty, rows, cols)?;
        cpu.upload_rows(&blocks, 0, &mut weights)?;
        let (mut x, mut y) = (cpu.alloc("x", n * cols)?, cpu.alloc("y", n * rows)?);
        cpu.upload(&values(n * cols, 2), x.all_mut())?;
        let mut times = [const { Vec::new() }; 2];
        for _ in 0..REPEATS {
            let start = Instant::now();
            cpu.linear(x.all(), &weights, 0..rows, Write::Set, y.all_mut())?;
            times[0].push(start.elapsed().as_secs_f64());
        }
        let mut forward = vec![0.0; n * rows];
        cpu.download(y.all(), &mut forward)?;
        cpu.upload(&values(n * rows, 3), y.all_mut())?;
        for _ in 0..REPEATS {
            let start = Instant::now();
            cpu.linear_backward(y.all(), &weights, 0..rows, Write::Set, x.all_mut())?;
            times[1].push(start.elapsed().as_secs_f64());
        }
        let mut backward = vec![0.0; n * cols];
        cpu.download(x.all(), &mut backward)?;
        let [forward_rate, backward_rate] = times.map(|times| flops / median(times) / 1e9);
        let results = [forward, backward];
        let exact = &*exact.get_or_insert_with(|| results.clone());
        let norm = |x: &[f32]| x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
        let [forward, backward] = [0, 1].map(|i| {
            let difference: Vec<f32> = exact[i].iter().zip(&results[i]).map(|(a, b)| a - b).collect();
            norm(&difference) / norm(&exact[i])
        });
        println!(
            "{:11} forward {forward_rate:6.0}  backward {backward_rate:6.0} GFLOP/s, off by {forward:.1e} and {backward:.1e}",
            format!("{kernel:?}")
        );
    }
    Ok(())
}
