//! Frozen linear layers, small products and attention of the CPU device against f64 and finite differences.

mod numeric;

use formats::block::BlockType;
use model::device::cpu::fixed_bytes;
use model::device::{Buffer, Device, Heads, Operand, Precision, Segment, Write};
use numeric::*;

#[test]
fn frozen_linear_and_its_backward() {
    let (cpu, mut random) = (cpu(), Random(1));
    let cases = [
        (BlockType::F32, 1, 24, 40),
        (BlockType::Q4K, 5, 300, 256),
        (BlockType::Q6K, 33, 70, 512),
        (BlockType::Q8_0, 3, 7000, 160), // more than one tile
        (BlockType::BF16, 3, 9, 33),
        (BlockType::Nf4, 12, 70, 320),
        (BlockType::Nf4Ic, 12, 70, 320),
    ];
    for (ty, n, rows, cols) in cases {
        let (weights, dense) = frozen(&cpu, ty, rows, cols, &mut random);
        let x = random.values(n * cols);
        let x_d = on_device(&cpu, &x);
        for part in [0..rows, rows / 3..rows - 1] {
            let w = wide(&dense[part.start * cols..part.end * cols]);
            let before = random.values(n * part.len());
            let expected = product_transposed(&wide(&x), &w, cols);
            for write in [Write::Set, Write::Add] {
                let mut y = on_device(&cpu, &before);
                cpu.linear(x_d.all(), &weights, part.clone(), write, y.all_mut()).unwrap();
                let kept = if write == Write::Add { 1.0 } else { 0.0 };
                let sum: Vec<f64> =
                    expected.iter().zip(&before).map(|(e, &b)| e + kept * f64::from(b)).collect();
                assert_close(&format!("{ty:?} y {write:?}"), &on_host(&cpu, &y), &sum, TOLERANCE);
            }
            let d_y = random.values(n * part.len());
            let d_y_d = on_device(&cpu, &d_y);
            let before = random.values(n * cols);
            let mut d_x = on_device(&cpu, &vec![f32::NAN; n * cols]);
            cpu.linear_backward(d_y_d.all(), &weights, part.clone(), Write::Set, d_x.all_mut()).unwrap();
            let loss = |x: &[f64]| dot(&product_transposed(x, &w, cols), &d_y);
            assert_gradient(&format!("{ty:?} d_x"), loss, &x, &on_host(&cpu, &d_x), 12);
            let expected: Vec<f64> =
                on_host(&cpu, &d_x).iter().zip(&before).map(|(&g, &b)| f64::from(g) + f64::from(b)).collect();
            let mut sum = on_device(&cpu, &before);
            cpu.linear_backward(d_y_d.all(), &weights, part.clone(), Write::Add, sum.all_mut()).unwrap();
            assert_close("added d_x", &on_host(&cpu, &sum), &expected, TOLERANCE);
        }
        assert_eq!(cpu.dense().live_bytes(), 0, "no dense copy outlives its product");
    }
    let at_most = fixed_bytes(Precision::F32).iter().map(|(_, bytes)| bytes).sum();
    assert!((1..=at_most).contains(&cpu.dense().peak_bytes()), "in the room for it alone");
}

#[test]
fn embedded_rows_are_decoded_rows() {
    let (cpu, mut random) = (cpu(), Random(2));
    let (weights, dense) = frozen(&cpu, BlockType::Q6K, 10, 256, &mut random);
    let ids = indices(&cpu, &[3, 9, 3]);
    let mut out = on_device(&cpu, &[0.0; 3 * 256]);
    cpu.embed(&weights, ids.all(), out.all_mut()).unwrap();
    let expected: Vec<f32> = [3, 9, 3].iter().flat_map(|&i| dense[i * 256..(i + 1) * 256].to_vec()).collect();
    assert_eq!(on_host(&cpu, &out), expected);
    let beyond = cpu.embed(&weights, indices(&cpu, &[10]).all(), out.first_mut(256));
    assert_eq!(beyond.unwrap_err().to_string(), "embed: token id is 10, expected below 10");
}

#[test]
fn small_products_in_every_orientation() {
    const ALPHA: f32 = 0.5;
    let (cpu, mut random) = (cpu(), Random(3));
    let (m, n, k) = (19, 7, 33);
    for (a_as, b_as) in [
        (Operand::Plain, Operand::Plain),
        (Operand::Plain, Operand::Transposed),
        (Operand::Transposed, Operand::Plain),
        (Operand::Transposed, Operand::Transposed),
    ] {
        let (a, b, c) = (random.values(m * k), random.values(k * n), random.values(m * (n + 5)));
        let (a_d, b_d, mut c_d) = (on_device(&cpu, &a), on_device(&cpu, &b), on_device(&cpu, &c));
        let is_plain = |operand| operand == Operand::Plain;
        let a_m = if is_plain(a_as) { a_d.all().matrix(m, k) } else { a_d.all().matrix(k, m) };
        let b_m = if is_plain(b_as) { b_d.all().matrix(k, n) } else { b_d.all().matrix(n, k) };
        // The result is columns 2..2+n of a wider matrix, whose other columns must stay.
        let c_m = c_d.all_mut().matrix(m, n + 5).columns(2..2 + n);
        cpu.matmul(ALPHA, a_m, a_as, b_m, b_as, Write::Add, c_m).unwrap();
        let a_plain = if is_plain(a_as) { wide(&a) } else { transposed(&wide(&a), m) };
        let b_turned = if is_plain(b_as) { transposed(&wide(&b), n) } else { wide(&b) };
        let product = product_transposed(&a_plain, &b_turned, k);
        let mut expected = wide(&c);
        for i in 0..m {
            for j in 0..n {
                expected[i * (n + 5) + 2 + j] += f64::from(ALPHA) * product[i * n + j];
            }
        }
        assert_close("c", &on_host(&cpu, &c_d), &expected, TOLERANCE);
    }
}

#[derive(Clone)]
struct Attention {
    heads: Heads,
    segments: Vec<Segment>,
}

impl Attention {
    /// Textbook attention: out and log-sum-exp of rows that a segment covers.
    fn run(&self, q: &[f64], k: &[f64], v: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let Heads { n_heads, n_kv_heads, head_dim: d, value_dim: w, scale, window } = self.heads;
        let n = q.len() / (n_heads * d);
        let (mut out, mut lse) = (vec![0.0; n * n_heads * w], vec![0.0; n * n_heads]);
        for s in &self.segments {
            for i in 0..s.n_queries {
                for h in 0..n_heads {
                    let row = s.first_query + i;
                    let kv = |j: usize| (s.first_key + j) * n_kv_heads + h / (n_heads / n_kv_heads);
                    let query = &q[(row * n_heads + h) * d..][..d];
                    let score = |j: usize| {
                        query.iter().zip(&k[kv(j) * d..]).map(|(a, b)| a * b).sum::<f64>() * f64::from(scale)
                    };
                    let end = s.n_keys - s.n_queries + i + 1;
                    let start = window.map_or(0, |window| end.saturating_sub(window));
                    let scores: Vec<f64> = (start..end).map(score).collect();
                    let max = scores.iter().fold(f64::MIN, |a, &b| a.max(b));
                    let sum: f64 = scores.iter().map(|x| (x - max).exp()).sum();
                    lse[row * n_heads + h] = max + sum.ln();
                    for (j, score) in (start..end).zip(&scores) {
                        for e in 0..w {
                            out[(row * n_heads + h) * w + e] += (score - max).exp() / sum * v[kv(j) * w + e];
                        }
                    }
                }
            }
        }
        (out, lse)
    }
}

/// Lengths below, at and above a block; grouped heads; a cache longer than the queries; values of another width.
fn attention_cases() -> Vec<(Attention, usize, usize)> {
    let packed = |lengths: &[usize]| {
        let mut start = 0;
        let segment = |n: &usize| {
            start += n;
            Segment::causal(start - n..start)
        };
        lengths.iter().map(segment).collect::<Vec<_>>()
    };
    let heads = Heads::new;
    let windowed = |window| Heads { scale: 0.2, window: Some(window), ..heads(4, 2, 8) };
    let cached = vec![
        Segment { first_query: 0, n_queries: 1, first_key: 0, n_keys: 66 },
        Segment { first_query: 1, n_queries: 70, first_key: 66, n_keys: 150 },
    ];
    vec![
        (Attention { heads: heads(4, 2, 8), segments: packed(&[1, 3, 64, 65, 130]) }, 263, 263),
        (Attention { heads: heads(2, 2, 6), segments: packed(&[5]) }, 5, 5),
        (Attention { heads: windowed(2), segments: packed(&[5, 70]) }, 75, 75),
        (Attention { heads: windowed(20), segments: packed(&[1, 64, 150]) }, 215, 215),
        (Attention { heads: windowed(64), segments: cached.clone() }, 71, 216),
        (Attention { heads: heads(6, 2, 16), segments: cached.clone() }, 71, 216),
        (
            Attention { heads: Heads { value_dim: 8, ..heads(3, 3, 12) }, segments: packed(&[3, 64, 90]) },
            157,
            157,
        ),
        (Attention { heads: Heads { value_dim: 10, ..heads(4, 2, 6) }, segments: cached }, 71, 216),
    ]
}

#[test]
fn attention_and_its_backward() {
    let (cpu, mut random) = (cpu(), Random(4));
    for (attention, n, n_keys) in attention_cases() {
        let Heads { n_heads, n_kv_heads, head_dim, value_dim, .. } = attention.heads;
        let (q_len, k_len) = (n * n_heads * head_dim, n_keys * n_kv_heads * head_dim);
        let (out_len, v_len) = (n * n_heads * value_dim, n_keys * n_kv_heads * value_dim);
        let spread = |values: Vec<f32>| values.iter().map(|x| 3.0 * x).collect::<Vec<f32>>();
        let (q, k) = (spread(random.values(q_len)), spread(random.values(k_len)));
        let (v, d_out) = (random.values(v_len), random.values(out_len));
        let [q_d, k_d, v_d, d_out_d] = [&q, &k, &v, &d_out].map(|x| on_device(&cpu, x));
        let stale = |len: usize| on_device(&cpu, &vec![f32::NAN; len]);
        let (mut out, mut lse) = (stale(out_len), stale(n * n_heads));
        let (heads, segments) = (attention.heads, &attention.segments);
        cpu.attention(heads, segments, q_d.all(), k_d.all(), v_d.all(), out.all_mut(), lse.all_mut())
            .unwrap();
        let (expected, expected_lse) = attention.run(&wide(&q), &wide(&k), &wide(&v));
        assert_close("out", &on_host(&cpu, &out), &expected, TOLERANCE);
        assert_close("lse", &on_host(&cpu, &lse), &expected_lse, TOLERANCE);

        let (mut d_q, mut d_k, mut d_v) = (stale(q_len), stale(k_len), stale(v_len));
        cpu.attention_backward(
            heads,
            segments,
            q_d.all(),
            k_d.all(),
            v_d.all(),
            out.all(),
            lse.all(),
            d_out_d.all(),
            d_q.all_mut(),
            d_k.all_mut(),
            d_v.all_mut(),
        )
        .unwrap();
        let (q_w, k_w, v_w) = (wide(&q), wide(&k), wide(&v));
        let loss = |x: &[f64]| dot(&attention.run(x, &k_w, &v_w).0, &d_out);
        assert_gradient("d_q", loss, &q, &on_host(&cpu, &d_q), 40);
        let loss = |x: &[f64]| dot(&attention.run(&q_w, x, &v_w).0, &d_out);
        assert_gradient("d_k", loss, &k, &on_host(&cpu, &d_k), 40);
        let loss = |x: &[f64]| dot(&attention.run(&q_w, &k_w, x).0, &d_out);
        assert_gradient("d_v", loss, &v, &on_host(&cpu, &d_v), 40);
    }
}

#[test]
fn attention_refuses_segments_that_would_race() {
    let cpu = cpu();
    let heads = Heads::new(1, 1, 4);
    let x = on_device(&cpu, &[0.0; 16]);
    let mut gradients = [0; 3].map(|_| on_device(&cpu, &[0.0; 16]));
    let lse = on_device(&cpu, &[0.0; 4]);
    let [d_q, d_k, d_v] = &mut gradients;
    let overlapping = [Segment::causal(0..3), Segment::causal(2..4)];
    let refused = cpu.attention_backward(
        heads,
        &overlapping,
        x.all(),
        x.all(),
        x.all(),
        x.all(),
        lse.all(),
        x.all(),
        d_q.all_mut(),
        d_k.all_mut(),
        d_v.all_mut(),
    );
    assert!(refused.is_err());
}
