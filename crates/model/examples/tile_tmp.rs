//! tmp
use std::time::Instant;
use formats::BlockType;
use model::arena::Arena;
use model::device::{Buffer, Device, Write};
use model::Cpu;
fn main() {
    let cpu = Cpu::new(Arena::unlimited()).unwrap();
    for (n, rows, cols) in [(512, 2560, 9728), (512, 9728, 2560), (512, 1024, 3072), (1024, 768, 256),(2048, 256, 768)] {
        let w = cpu.alloc_weights("w", BlockType::Q4K, rows, cols).unwrap();
        let x = cpu.alloc("x", n * cols).unwrap();
        let mut y = cpu.alloc("y", n * rows).unwrap();
        let mut dx = cpu.alloc("x", n * cols).unwrap();
        let (mut f, mut b) = (f64::MAX, f64::MAX);
        for _ in 0..10 {
            let t = Instant::now();
            cpu.linear(x.all(), &w, 0..rows, Write::Set, y.all_mut()).unwrap();
            f = f.min(t.elapsed().as_secs_f64());
            let t = Instant::now();
            cpu.linear_backward(y.all(), &w, 0..rows, Write::Set, dx.all_mut()).unwrap();
            b = b.min(t.elapsed().as_secs_f64());
        }
        let gf = 2e-9 * (n * rows * cols) as f64;
        println!("{n} {rows}x{cols}: fwd {:.0} GF/s bwd {:.0} GF/s", gf / f, gf / b);
    }
}
