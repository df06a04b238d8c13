//! Causal attention and its backward beside a product with frozen weights, in turn, by some kernels of this processor:
//! medians in GFLOP/s, pairs that are not seen left out.
//!
//!     cargo run --release -p model --example attention_speed [TOKENS HEADS KV_HEADS HEAD_DIM [KERNEL …]]

mod measure;

use std::time::Instant;

use formats::{BlockType, block};
use model::arena::Arena;
use model::device::cpu::{Cpu, ProductKernel};
use model::device::{Buffer, Device, Heads, Segment, Write};

use measure::{median, values};

const ROUNDS: usize = 7;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default: usize| arguments.get(i).map_or(Ok(default), |a| a.parse::<usize>());
    let (n, n_heads, n_kv_heads, d) = (number(0, 2048)?, number(1, 16)?, number(2, 8)?, number(3, 128)?);
    let named = arguments.get(4..).unwrap_or_default();
    let is_named =
        |kernel: &ProductKernel| named.is_empty() || named.iter().any(|name| *name == format!("{kernel:?}"));
    let heads = Heads::new(n_heads, n_kv_heads, d);
    let segments = [Segment::causal(0..n)];
    let pairs = (n_heads * n * (n + 1) / 2) as f64;
    let (rows, cols) = (1024, 1024);
    let mut blocks = vec![0; rows * BlockType::Q4K.row_bytes(cols)?];
    block::encode_par(BlockType::Q4K, &values(rows * cols, 1), cols, None, &mut blocks)?;
    println!("{n} tokens, {n_heads} heads over {n_kv_heads} of {d}");
    for kernel in ProductKernel::ALL.into_iter().filter(|kernel| kernel.is_possible() && is_named(kernel)) {
        let cpu = Cpu::with_kernel(Arena::unlimited(), kernel)?;
        let mut weights = cpu.alloc_weights("weights", BlockType::Q4K, rows, cols)?;
        cpu.upload_rows(&blocks, 0, &mut weights)?;
        let filled = |width: usize, seed: u32| -> Result<_, Box<dyn std::error::Error>> {
            let mut x = cpu.alloc("x", n * width)?;
            cpu.upload(&values(n * width, seed), x.all_mut())?;
            Ok(x)
        };
        let (q, k, v) = (filled(n_heads * d, 2)?, filled(n_kv_heads * d, 3)?, filled(n_kv_heads * d, 4)?);
        let (d_out, x) = (filled(n_heads * d, 5)?, filled(cols, 6)?);
        let (mut out, mut lse, mut y) =
            (filled(n_heads * d, 7)?, cpu.alloc("lse", n * n_heads)?, filled(rows, 8)?);
        let (mut d_q, mut d_k, mut d_v) =
            (filled(n_heads * d, 9)?, filled(n_kv_heads * d, 10)?, filled(n_kv_heads * d, 11)?);
        let mut rates = [const { Vec::new() }; 3];
        for _ in 0..ROUNDS {
            let start = Instant::now();
            cpu.linear(x.all(), &weights, 0..rows, Write::Set, y.all_mut())?;
            rates[0].push(2.0 * (n * rows * cols) as f64 / start.elapsed().as_secs_f64() / 1e9);
            let start = Instant::now();
            let (q, k, v) = (q.all(), k.all(), v.all());
            cpu.attention(heads, &segments, q, k, v, out.all_mut(), lse.all_mut())?;
            rates[1].push(4.0 * pairs * d as f64 / start.elapsed().as_secs_f64() / 1e9);
            let start = Instant::now();
            let (o, l, d_o) = (out.all(), lse.all(), d_out.all());
            let (d_q, d_k, d_v) = (d_q.all_mut(), d_k.all_mut(), d_v.all_mut());
            cpu.attention_backward(heads, &segments, q, k, v, o, l, d_o, d_q, d_k, d_v)?;
            rates[2].push(10.0 * pairs * d as f64 / start.elapsed().as_secs_f64() / 1e9);
        }
        let [product, forward, backward] = rates.map(median);
        let name = format!("{kernel:?}");
        println!("{name:13} product {product:4.0}  attention {forward:4.0}  backward {backward:4.0} GFLOP/s");
    }
    Ok(())
}
