//! Every way of this processor to multiply, against f64 sums of the factors it takes: frozen layers of every block format
//! with an adapter's part and without, dense matrices as they lie and transposed, attention.

mod numeric;

use formats::block::BlockType;
use model::arena::Arena;
use model::device::cpu::{Cpu, ProductKernel};
use model::device::{Buffer, Device, Heads, LowRank, Operand, Precision, Segment, Write};
use numeric::*;

/// x rounded to bf16, to nearest even.
fn to_bf16(x: f32) -> f64 {
    let bits = x.to_bits();
    f64::from(f32::from_bits((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF_0000))
}

/// Factors as a kernel of floats takes them.
fn factors(kernel: ProductKernel, x: &[f32]) -> Vec<f64> {
    let is_rounded = kernel.precision() == Precision::BF16;
    x.iter().map(|&x| if is_rounded { to_bf16(x) } else { f64::from(x) }).collect()
}

/// Factors of sums along rows of `terms` numbers, as products with frozen weights take them.
fn frozen_factors(kernel: ProductKernel, x: &[f32], terms: usize) -> Vec<f64> {
    let most = match kernel.precision() {
        Precision::Int16 => 4095.0,
        Precision::Int8 => 127.0,
        Precision::F32 | Precision::BF16 => return factors(kernel, x),
    };
    // 64 neighbours share a scale, the largest magnitude over the largest whole number.
    let of_group = |group: &[f32]| {
        let largest = group.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        let (scale, factor) = (largest / most, if largest == 0.0 { 0.0 } else { most / largest });
        group.iter().map(|x| f64::from((x * factor).round_ties_even()) * f64::from(scale)).collect::<Vec<_>>()
    };
    x.chunks(terms).flat_map(|row| row.chunks(64).flat_map(of_group)).collect()
}

/// Factors of an adapter's part: f32 beside whole numbers.
fn added_factors(kernel: ProductKernel, x: &[f32]) -> Vec<f64> {
    let is_float = matches!(kernel.precision(), Precision::F32 | Precision::BF16);
    factors(if is_float { kernel } else { ProductKernel::Portable }, x)
}

/// Those that this processor has.
fn kernels() -> impl Iterator<Item = ProductKernel> {
    ProductKernel::ALL.into_iter().filter(|kernel| kernel.is_possible())
}

/// Against f64 sums of the factors: only the f32 sums differ then.
#[test]
fn products_of_every_kernel_are_sums_of_its_factors() {
    for kernel in kernels() {
        println!("{kernel:?}");
        check_products(kernel);
    }
}

fn check_products(kernel: ProductKernel) {
    let cpu = Cpu::with_kernel(Arena::unlimited(), kernel).unwrap();
    let mut random = Random(3);
    // Tiles, panels, tasks and depths that are full, and ones that are not.
    let cases = [
        (BlockType::Q4K, 14, 300, 256),
        (BlockType::Q6K, 33, 577, 768),
        (BlockType::Q8_0, 9, 1100, 544),
        (BlockType::Q4_0, 61, 31, 96),
        (BlockType::BF16, 29, 64, 32),
        (BlockType::Nf4, 12, 70, 320),
        (BlockType::Nf4Ic, 40, 600, 1152),
    ];
    for (ty, n, rows, cols) in cases {
        let (weights, dense) = frozen(&cpu, ty, rows, cols, &mut random);
        let rounded = |x: &[f32]| added_factors(kernel, x);
        let frozen_rounded = |x: &[f32], terms: usize| frozen_factors(kernel, x, terms);
        for part in [0..rows, rows / 3..rows - 1] {
            let w = &dense[part.start * cols..part.end * cols];
            let (x, d_y) = (random.values(n * cols), random.values(n * part.len()));
            let (x_d, d_y_d) = (on_device(&cpu, &x), on_device(&cpu, &d_y));
            let (before_y, before_x) = (random.values(n * part.len()), random.values(n * cols));
            // An adapter's part, as further terms.
            let rank = 16;
            let (u, b, a) =
                (random.values(n * rank), random.values(part.len() * rank), random.values(rank * cols));
            let scaled = |x: &[f32]| x.iter().map(|x| 2.0 * x).collect::<Vec<f32>>();
            let of_y = product_transposed(&rounded(&u), &rounded(&scaled(&b)), rank);
            let of_x = product_transposed(&rounded(&u), &transposed(&rounded(&scaled(&a)), cols), rank);
            let (u_d, b_d, a_d) = (on_device(&cpu, &u), on_device(&cpu, &b), on_device(&cpu, &a));
            let plus = |sums: &[f64], added: &[f64]| {
                sums.iter().zip(added).map(|(a, b)| a + b).collect::<Vec<f64>>()
            };
            for (write, kept) in [(Write::Set, 0.0), (Write::Add, 1.0)] {
                let with = |sums: Vec<f64>, before: &[f32]| {
                    sums.iter().zip(before).map(|(s, b)| s + kept * f64::from(*b)).collect::<Vec<f64>>()
                };
                let mut y = on_device(&cpu, &before_y);
                cpu.linear(x_d.all(), &weights, part.clone(), write, y.all_mut()).unwrap();
                let expected = with(
                    product_transposed(&frozen_rounded(&x, cols), &frozen_rounded(w, cols), cols),
                    &before_y,
                );
                assert_close(&format!("{ty} y"), &on_host(&cpu, &y), &expected, TOLERANCE);
                let mut y = on_device(&cpu, &before_y);
                let added = LowRank {
                    u: u_d.all().matrix(n, rank),
                    b: b_d.all().matrix(part.len(), rank),
                    scale: 2.0,
                };
                cpu.linear_with(x_d.all(), &weights, part.clone(), added, write, y.all_mut()).unwrap();
                assert_close(&format!("{ty} y with"), &on_host(&cpu, &y), &plus(&expected, &of_y), TOLERANCE);
                let mut d_x = on_device(&cpu, &before_x);
                cpu.linear_backward(d_y_d.all(), &weights, part.clone(), write, d_x.all_mut()).unwrap();
                let (d_y_f, w_f) =
                    (frozen_rounded(&d_y, part.len()), frozen_rounded(&transposed(w, cols), part.len()));
                let expected = product_transposed(&d_y_f, &w_f, part.len());
                let expected = with(expected, &before_x);
                assert_close(&format!("{ty} d_x"), &on_host(&cpu, &d_x), &expected, TOLERANCE);
                let mut d_x = on_device(&cpu, &before_x);
                let added =
                    LowRank { u: u_d.all().matrix(n, rank), b: a_d.all().matrix(rank, cols), scale: 2.0 };
                cpu.linear_backward_with(d_y_d.all(), &weights, part.clone(), added, write, d_x.all_mut())
                    .unwrap();
                assert_close(
                    &format!("{ty} d_x with"),
                    &on_host(&cpu, &d_x),
                    &plus(&expected, &of_x),
                    TOLERANCE,
                );
            }
        }
    }
    assert_eq!(cpu.dense().live_bytes(), 0);
    // A row too long for the packed tiles, and a token that is no number wherever it stands in a sum.
    let (weights, _) = frozen(&cpu, BlockType::Q8_0, 1, 320_000, &mut random);
    let (x, mut y) = (on_device(&cpu, &vec![1e-3; 9 * 320_000]), on_device(&cpu, &[0.0; 9]));
    cpu.linear(x.all(), &weights, 0..1, Write::Set, y.all_mut()).unwrap();
    assert!(on_host(&cpu, &y).iter().all(|y| y.is_finite()));
    let (weights, _) = frozen(&cpu, BlockType::Q8_0, 45, 64, &mut random);
    for place in [0, 31, 44] {
        let mut d_y = vec![1.0; 20 * 45];
        d_y[3 * 45 + place] = f32::from_bits(u32::MAX);
        let (d_y, mut d_x) = (on_device(&cpu, &d_y), on_device(&cpu, &[0.0; 20 * 64]));
        cpu.linear_backward(d_y.all(), &weights, 0..45, Write::Set, d_x.all_mut()).unwrap();
        let rows: Vec<bool> =
            on_host(&cpu, &d_x).chunks(64).map(|row| row.iter().all(|x| x.is_nan())).collect();
        assert_eq!(rows.iter().position(|&is_nan| is_nan), Some(3));
        assert_eq!(rows.iter().filter(|&&is_nan| is_nan).count(), 1);
    }
}

/// Sizes that fill tiles, panels, tasks and depths, and ones that do not; results beside which nothing changes.
#[test]
fn dense_products_of_every_kernel_in_every_orientation() {
    let mut random = Random(5);
    let orientations = [Operand::Plain, Operand::Transposed];
    for (kernel, (m, n, k)) in kernels().flat_map(|kernel| {
        [(64, 96, 64), (33, 177, 1100), (16, 2000, 45), (530, 16, 70)].map(|size| (kernel, size))
    }) {
        let cpu = Cpu::with_kernel(Arena::unlimited(), kernel).unwrap();
        for (a_as, b_as) in orientations.iter().flat_map(|a| orientations.map(|b| (*a, b))) {
            let (a, b, c) = (random.values(m * k), random.values(k * n), random.values(m * (n + 5)));
            let (a_d, b_d, mut c_d) = (on_device(&cpu, &a), on_device(&cpu, &b), on_device(&cpu, &c));
            let is_plain = |operand| operand == Operand::Plain;
            let a_m = if is_plain(a_as) { a_d.all().matrix(m, k) } else { a_d.all().matrix(k, m) };
            let b_m = if is_plain(b_as) { b_d.all().matrix(k, n) } else { b_d.all().matrix(n, k) };
            let c_m = c_d.all_mut().matrix(m, n + 5).columns(2..2 + n);
            cpu.matmul(0.5, a_m, a_as, b_m, b_as, Write::Add, c_m).unwrap();
            let narrow = match (is_plain(a_as), is_plain(b_as)) {
                (true, _) => n <= 64,
                (false, true) => m.min(n) <= 64,
                (false, false) => false,
            };
            // Narrow products are of f32 there.
            let floats = match kernel.of_dense() {
                ProductKernel::Avx512Bf16 if narrow => ProductKernel::Avx512F32,
                floats => floats,
            };
            let (a, b) = (factors(floats, &a), factors(floats, &b));
            let a_plain = if is_plain(a_as) { a } else { transposed(&a, m) };
            let b_turned = if is_plain(b_as) { transposed(&b, n) } else { b };
            let product = product_transposed(&a_plain, &b_turned, k);
            let mut expected = wide(&c);
            for (i, row) in product.chunks(n).enumerate() {
                let to = &mut expected[i * (n + 5) + 2..][..n];
                to.iter_mut().zip(row).for_each(|(to, x)| *to += 0.5 * x);
            }
            let what = format!("{kernel:?} {m} {n} {k} {a_as:?} {b_as:?}");
            assert_close(&what, &on_host(&cpu, &c_d), &expected, TOLERANCE);
        }
    }
}

/// Output, log-sum-exp and the gradients of q, k and v.
fn run_attention(
    cpu: &Cpu,
    heads: Heads,
    segments: &[Segment],
    (n, n_keys): (usize, usize),
) -> [Vec<f32>; 5] {
    let mut random = Random(9);
    let Heads { n_heads, n_kv_heads, head_dim, value_dim, .. } = heads;
    let (q_len, k_len) = (n * n_heads * head_dim, n_keys * n_kv_heads * head_dim);
    let (out_len, v_len) = (n * n_heads * value_dim, n_keys * n_kv_heads * value_dim);
    let inputs = [q_len, k_len, v_len, out_len].map(|len| on_device(cpu, &random.values(len)));
    let [q, k, v, d_out] = &inputs;
    let stale = |len: usize| on_device(cpu, &vec![f32::NAN; len]);
    let [mut out, mut lse, mut d_q, mut d_k, mut d_v] =
        [out_len, n * n_heads, q_len, k_len, v_len].map(stale);
    cpu.attention(heads, segments, q.all(), k.all(), v.all(), out.all_mut(), lse.all_mut()).unwrap();
    let (q, k, v, out_v, lse_v, d_out) = (q.all(), k.all(), v.all(), out.all(), lse.all(), d_out.all());
    let (d_q_m, d_k_m, d_v_m) = (d_q.all_mut(), d_k.all_mut(), d_v.all_mut());
    cpu.attention_backward(heads, segments, q, k, v, out_v, lse_v, d_out, d_q_m, d_k_m, d_v_m).unwrap();
    [&out, &lse, &d_q, &d_k, &d_v].map(|buffer| on_host(cpu, buffer))
}

/// Of the norm: eight or thirteen bits of each factor, averaged; a block left out shows as 0.1 or more.
fn attention_tolerance(kernel: ProductKernel) -> f64 {
    match kernel.of_attention().precision() {
        Precision::F32 => TOLERANCE,
        Precision::Int16 => 1e-3,
        Precision::BF16 | Precision::Int8 => 1e-2,
    }
}

#[test]
fn attention_of_every_kernel_is_attention() {
    let exact = Cpu::with_kernel(Arena::unlimited(), ProductKernel::Portable).unwrap();
    let packed = |lengths: &[usize]| {
        let ends = lengths.iter().scan(0, |end, n| Some((std::mem::replace(end, *end + n), *n)));
        ends.map(|(start, n)| Segment::causal(start..start + n)).collect::<Vec<_>>()
    };
    let windowed = Heads { scale: 0.2, window: Some(70), ..Heads::new(4, 2, 64) };
    let wide_values = Heads { value_dim: 32, ..Heads::new(3, 3, 96) };
    let cached = vec![
        Segment { first_query: 0, n_queries: 1, first_key: 0, n_keys: 66 },
        Segment { first_query: 1, n_queries: 70, first_key: 66, n_keys: 251 },
    ];
    let cases = [
        (Heads::new(4, 2, 32), packed(&[1, 13, 56, 57, 128, 129, 300]), 684, 684),
        (windowed, packed(&[5, 200, 64]), 269, 269),
        (wide_values, packed(&[90, 3]), 93, 93),
        (Heads::new(8, 1, 64), cached.clone(), 71, 317),
        (Heads::new(2, 2, 256), cached, 71, 317),
    ];
    for ((heads, segments, n, n_keys), kernel) in
        cases.iter().flat_map(|case| kernels().map(move |k| (case, k)))
    {
        let cpu = Cpu::with_kernel(Arena::unlimited(), kernel).unwrap();
        let expected = run_attention(&exact, *heads, segments, (*n, *n_keys));
        let found = run_attention(&cpu, *heads, segments, (*n, *n_keys));
        for (what, (found, expected)) in
            ["out", "lse", "d_q", "d_k", "d_v"].iter().zip(found.iter().zip(&expected))
        {
            let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            let difference = norm(&mut found.iter().zip(expected).map(|(a, b)| a - b));
            let error = difference / norm(&mut expected.iter().copied());
            let tolerance = attention_tolerance(kernel);
            assert!(error < tolerance, "{kernel:?} {heads:?} {what}: {error:e}");
            assert!(
                error > 0.0 || kernel == ProductKernel::Portable,
                "{kernel:?} {heads:?} {what}: not made by it"
            );
        }
    }
}
