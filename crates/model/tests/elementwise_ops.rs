//! Norms, rope, activations, rows and softmax tiles of the CPU device against f64 and finite differences.

mod numeric;

use model::device::{Activation, Buffer, Device, Mask, Pairs, Rotated, Rotation, RowSquares, Write};
use numeric::*;

fn rms_norm(x: &[f64], gain: &[f32], eps: f64) -> Vec<f64> {
    let normed = |row: &[f64]| {
        let mean = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
        let r = 1.0 / (mean + eps).sqrt();
        row.iter().zip(gain).map(|(x, &g)| x * r * f64::from(g)).collect::<Vec<_>>()
    };
    x.chunks(gain.len()).flat_map(normed).collect()
}

#[test]
fn rms_norm_and_its_backward() {
    const EPS: f32 = 1e-3;
    let (cpu, mut random) = (cpu(), Random(1));
    for cols in [1, 5, 16, 64, 300] {
        let n = 3 * cols;
        let (x, gain, d_y, before) =
            (random.values(n), random.values(cols), random.values(n), random.values(n));
        let (x_d, gain_d, d_y_d) = (on_device(&cpu, &x), on_device(&cpu, &gain), on_device(&cpu, &d_y));
        let mut y = on_device(&cpu, &vec![f32::NAN; n]);
        cpu.rms_norm(x_d.all(), gain_d.all(), EPS, y.all_mut()).unwrap();
        let eps = f64::from(EPS);
        assert_close("y", &on_host(&cpu, &y), &rms_norm(&wide(&x), &gain, eps), TOLERANCE);

        let mut d_x = on_device(&cpu, &vec![f32::NAN; n]);
        cpu.rms_norm_backward(x_d.all(), gain_d.all(), EPS, d_y_d.all(), Write::Set, d_x.all_mut()).unwrap();
        let gradient = on_host(&cpu, &d_x);
        assert_gradient("d_x", |x| dot(&rms_norm(x, &gain, eps), &d_y), &x, &gradient, 60);

        let mut sum = on_device(&cpu, &before);
        cpu.rms_norm_backward(x_d.all(), gain_d.all(), EPS, d_y_d.all(), Write::Add, sum.all_mut()).unwrap();
        let expected: Vec<f64> =
            gradient.iter().zip(&before).map(|(g, b)| f64::from(*g) + f64::from(*b)).collect();
        assert_close("added d_x", &on_host(&cpu, &sum), &expected, TOLERANCE);
    }
}

fn layer_norm(x: &[f64], gain: &[f32], bias: &[f32], eps: f64) -> Vec<f64> {
    let normed = |row: &[f64]| {
        let mean = row.iter().sum::<f64>() / row.len() as f64;
        let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / row.len() as f64;
        let r = 1.0 / (variance + eps).sqrt();
        let one = |((x, &g), &b): ((&f64, &f32), &f32)| (x - mean) * r * f64::from(g) + f64::from(b);
        row.iter().zip(gain).zip(bias).map(one).collect::<Vec<_>>()
    };
    x.chunks(gain.len()).flat_map(normed).collect()
}

#[test]
fn layer_norm_and_its_backward() {
    const EPS: f32 = 1e-3;
    let (cpu, mut random) = (cpu(), Random(8));
    for cols in [5, 16, 64, 300] {
        let n = 3 * cols;
        // A mean far from zero shows a variance that forgets it.
        let x: Vec<f32> = random.values(n).iter().map(|x| x + 3.0).collect();
        let (gain, bias) = (random.values(cols), random.values(cols));
        let (d_y, before) = (random.values(n), random.values(n));
        let [x_d, gain_d, bias_d, d_y_d] = [&x, &gain, &bias, &d_y].map(|values| on_device(&cpu, values));
        let mut y = on_device(&cpu, &vec![f32::NAN; n]);
        cpu.layer_norm(x_d.all(), gain_d.all(), bias_d.all(), EPS, y.all_mut()).unwrap();
        let textbook = |x: &[f64]| layer_norm(x, &gain, &bias, f64::from(EPS));
        assert_close("y", &on_host(&cpu, &y), &textbook(&wide(&x)), TOLERANCE);

        let mut d_x = on_device(&cpu, &vec![f32::NAN; n]);
        cpu.layer_norm_backward(x_d.all(), gain_d.all(), EPS, d_y_d.all(), Write::Set, d_x.all_mut())
            .unwrap();
        let gradient = on_host(&cpu, &d_x);
        assert_gradient("d_x", |x| dot(&textbook(x), &d_y), &x, &gradient, 60);

        let mut sum = on_device(&cpu, &before);
        cpu.layer_norm_backward(x_d.all(), gain_d.all(), EPS, d_y_d.all(), Write::Add, sum.all_mut())
            .unwrap();
        let expected: Vec<f64> =
            gradient.iter().zip(&before).map(|(g, b)| f64::from(*g) + f64::from(*b)).collect();
        assert_close("added d_x", &on_host(&cpu, &sum), &expected, TOLERANCE);
    }
}

#[test]
fn a_bias_is_added_to_each_row_and_a_factor_to_each_value() {
    let (cpu, mut random) = (cpu(), Random(9));
    let (row, y) = (random.values(7), random.values(21));
    let (row_d, mut y_d) = (on_device(&cpu, &row), on_device(&cpu, &y));
    cpu.add_row(row_d.all(), y_d.all_mut()).unwrap();
    cpu.scale(2.5, y_d.all_mut()).unwrap();
    let expected: Vec<f32> = y.iter().enumerate().map(|(i, y)| 2.5 * (y + row[i % 7])).collect();
    assert_eq!(on_host(&cpu, &y_d), expected);
    let refused = cpu.add_row(row_d.first(4), y_d.all_mut()).unwrap_err().to_string();
    assert!(refused.starts_with("add_row"), "{refused}");
}

/// Rotates the first `dim` of each head's `d` dimensions.
fn rope(x: &[f64], rotated: Rotated, positions: &[u32], theta: f64) -> Vec<f64> {
    let Rotated { n_heads: heads, head_dim: d, first, dim, pairs } = rotated;
    let mut y = x.to_vec();
    for (row, &position) in positions.iter().enumerate() {
        for head in 0..heads {
            for i in 0..dim / 2 {
                let angle = f64::from(position) * theta.powf(-2.0 * i as f64 / dim as f64);
                let start = (row * heads + head) * d + first;
                let (low, high) = match pairs {
                    Pairs::Halves => (start + i, start + i + dim / 2),
                    Pairs::Adjacent => (start + 2 * i, start + 2 * i + 1),
                };
                y[low] = x[low] * angle.cos() - x[high] * angle.sin();
                y[high] = x[high] * angle.cos() + x[low] * angle.sin();
            }
        }
    }
    y
}

#[test]
fn rope_turns_and_turns_back() {
    const THETA: f64 = 100.0;
    let (cpu, mut random) = (cpu(), Random(2));
    let (heads, d, positions) = (3, 10, [0u32, 1, 2, 0, 7]);
    let at = indices(&cpu, &positions);
    let cases =
        [(10, 0, Pairs::Halves), (6, 0, Pairs::Halves), (4, 6, Pairs::Adjacent), (10, 0, Pairs::Adjacent)];
    for (dim, first, pairs) in cases {
        let rotated = Rotated { n_heads: heads, head_dim: d, first, dim, pairs };
        let table = |f: fn(f64) -> f64| -> Vec<f32> {
            let angle = |p: usize, i: usize| p as f64 * THETA.powf(-2.0 * i as f64 / dim as f64);
            (0..8).flat_map(|p| (0..dim / 2).map(move |i| f(angle(p, i)) as f32)).collect()
        };
        let (cos, sin) = (on_device(&cpu, &table(f64::cos)), on_device(&cpu, &table(f64::sin)));
        let x = random.values(positions.len() * heads * d);
        let d_y = random.values(x.len());
        let turn = |values: &[f32], rotation| {
            let mut buffer = on_device(&cpu, values);
            cpu.rope(buffer.all_mut(), rotated, at.all(), cos.all(), sin.all(), rotation).unwrap();
            on_host(&cpu, &buffer)
        };
        let textbook = |x: &[f64]| rope(x, rotated, &positions, THETA);
        let y = turn(&x, Rotation::Forward);
        assert_close("y", &y, &textbook(&wide(&x)), TOLERANCE);
        assert_close("back", &turn(&y, Rotation::Backward), &wide(&x), TOLERANCE);
        let loss = |x: &[f64]| dot(&textbook(x), &d_y);
        assert_gradient("d_x", loss, &x, &turn(&d_y, Rotation::Backward), 60);
        let (cos, sin) = (cos.first(2 * dim / 2), sin.first(2 * dim / 2));
        let mut x = on_device(&cpu, &x);
        let short = cpu.rope(x.all_mut(), rotated, at.all(), cos, sin, Rotation::Forward);
        assert_eq!(short.unwrap_err().to_string(), "rope: position is 2, expected below 2");
    }
}

type Scalar = fn(f64) -> f64;

/// An activation with the formula of its source.
fn activations() -> [(Activation, Scalar); 2] {
    let gelu =
        |z: f64| 0.5 * z * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (z + 0.044715 * z.powi(3))).tanh());
    [(Activation::Silu, |z| z / (1.0 + (-z).exp())), (Activation::GeluTanh, gelu)]
}

#[test]
fn gated_product_and_its_backward() {
    let (cpu, mut random) = (cpu(), Random(3));
    let n = 101;
    for (activation, act) in activations() {
        let gate: Vec<f32> = random.values(n).iter().map(|x| 9.0 * x).collect();
        let (up, d_out) = (random.values(n), random.values(n));
        let product =
            |gate: &[f64], up: &[f64]| gate.iter().zip(up).map(|(g, u)| act(*g) * u).collect::<Vec<_>>();
        let [gate_d, up_d, d_out_d] = [&gate, &up, &d_out].map(|values| on_device(&cpu, values));
        let [mut out, mut d_gate, mut d_up] = [0; 3].map(|_| on_device(&cpu, &gate));
        cpu.gated(activation, gate_d.all(), up_d.all(), out.all_mut()).unwrap();
        assert_close("out", &on_host(&cpu, &out), &product(&wide(&gate), &wide(&up)), TOLERANCE);
        let (d_out_d, d_gate_d, d_up_d) = (d_out_d.all(), d_gate.all_mut(), d_up.all_mut());
        cpu.gated_backward(activation, gate_d.all(), up_d.all(), d_out_d, d_gate_d, d_up_d).unwrap();
        let loss = |x: &[f64]| dot(&product(x, &wide(&up)), &d_out);
        assert_gradient("d_gate", loss, &gate, &on_host(&cpu, &d_gate), n);
        let loss = |x: &[f64]| dot(&product(&wide(&gate), x), &d_out);
        assert_gradient("d_up", loss, &up, &on_host(&cpu, &d_up), n);
    }
}

#[test]
fn activation_without_a_gate_and_its_backward() {
    let (cpu, mut random) = (cpu(), Random(10));
    let n = 101;
    for (activation, act) in activations() {
        let x: Vec<f32> = random.values(n).iter().map(|x| 9.0 * x).collect();
        let d_out = random.values(n);
        let textbook = |x: &[f64]| x.iter().map(|x| act(*x)).collect::<Vec<_>>();
        let (x_d, d_out_d) = (on_device(&cpu, &x), on_device(&cpu, &d_out));
        let [mut out, mut d_x] = [0; 2].map(|_| on_device(&cpu, &x));
        cpu.activate(activation, x_d.all(), out.all_mut()).unwrap();
        assert_close("out", &on_host(&cpu, &out), &textbook(&wide(&x)), TOLERANCE);
        cpu.activate_backward(activation, x_d.all(), d_out_d.all(), d_x.all_mut()).unwrap();
        assert_gradient("d_x", |x| dot(&textbook(x), &d_out), &x, &on_host(&cpu, &d_x), n);
    }
}

#[test]
fn rows_are_scaled_and_added() {
    let (cpu, mut random) = (cpu(), Random(13));
    let (factors, x, y) = (random.values(4), random.values(20), random.values(20));
    let (factors_d, x_d, mut y_d) = (on_device(&cpu, &factors), on_device(&cpu, &x), on_device(&cpu, &y));
    cpu.scale_rows(factors_d.all(), y_d.all_mut()).unwrap();
    cpu.add_scaled_rows(factors_d.all(), x_d.all(), y_d.all_mut()).unwrap();
    let expected = (0..20).map(|i| f64::from(factors[i / 5]) * (f64::from(y[i]) + f64::from(x[i])));
    assert_close("y", &on_host(&cpu, &y_d), &expected.collect::<Vec<_>>(), TOLERANCE);
    assert!(cpu.add_scaled_rows(factors_d.all(), x_d.first(15), y_d.all_mut()).is_err());
}

#[test]
fn rows_are_gathered_scattered_and_added() {
    let cpu = cpu();
    let x = on_device(&cpu, &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    let rows = indices(&cpu, &[2, 0]);
    let mut picked = on_device(&cpu, &[0.0; 4]);
    cpu.gather_rows(x.all(), 2, rows.all(), picked.all_mut()).unwrap();
    assert_eq!(on_host(&cpu, &picked), [4.0, 5.0, 0.0, 1.0]);
    let mut spread = on_device(&cpu, &[9.0; 6]);
    cpu.scatter_rows(picked.all(), 2, rows.all(), spread.all_mut()).unwrap();
    assert_eq!(on_host(&cpu, &spread), [0.0, 1.0, 9.0, 9.0, 4.0, 5.0]);
    cpu.add(x.all(), spread.all_mut()).unwrap();
    assert_eq!(on_host(&cpu, &spread), [0.0, 2.0, 11.0, 12.0, 8.0, 10.0]);
    let far = indices(&cpu, &[3, 0]);
    assert!(cpu.gather_rows(x.all(), 2, far.all(), picked.all_mut()).is_err());
}

/// Mean-free cross-entropy: Σ scale · (ln Σ exp(logits) - logit of the target).
#[test]
fn columns_are_copied_and_added() {
    let (cpu, mut random) = (cpu(), Random(12));
    let (n, x_width, y_width) = (5, 7, 9);
    let (x, y) = (random.values(n * x_width), random.values(n * y_width));
    let x_d = on_device(&cpu, &x);
    for (write, kept) in [(Write::Set, 0.0), (Write::Add, 1.0)] {
        let mut y_d = on_device(&cpu, &y);
        let from = x_d.all().matrix(n, x_width).columns(4..7);
        cpu.copy_columns(from, write, y_d.all_mut().matrix(n, y_width).columns(2..5)).unwrap();
        let expected = (0..n * y_width).map(|i| match i % y_width {
            column @ 2..5 => f64::from(x[i / y_width * x_width + column + 2]) + kept * f64::from(y[i]),
            _ => f64::from(y[i]),
        });
        assert_close("y", &on_host(&cpu, &y_d), &expected.collect::<Vec<_>>(), TOLERANCE);
        let from = x_d.all().matrix(n, x_width).columns(3..7);
        let refused = cpu.copy_columns(from, write, y_d.all_mut().matrix(n, y_width).columns(2..5));
        assert!(refused.is_err(), "four columns into three");
    }
}

fn cross_entropy(logits: &[f64], targets: &[u32], scale: f64) -> f64 {
    let width = logits.len() / targets.len();
    let nll = |(row, &target): (&[f64], &u32)| {
        let max = row.iter().fold(f64::MIN, |a, &b| a.max(b));
        max + row.iter().map(|x| (x - max).exp()).sum::<f64>().ln() - row[target as usize]
    };
    scale * logits.chunks(width).zip(targets).map(nll).sum::<f64>()
}

#[test]
fn softmax_over_tiles_is_the_softmax_over_all() {
    const SCALE: f32 = 0.25;
    let (cpu, mut random) = (cpu(), Random(4));
    let (m, vocab, targets) = (3, 50, [7u32, 49, 20]);
    let logits: Vec<f32> = random.values(m * vocab).iter().map(|x| 20.0 * x).collect();
    for tile in [50, 17, 1] {
        let ids = indices(&cpu, &targets);
        let mut max = on_device(&cpu, &[f32::NEG_INFINITY; 3]);
        let (mut sum, mut target_logit) = (on_device(&cpu, &[0.0; 3]), on_device(&cpu, &[0.0; 3]));
        let part = |first: usize, width: usize| -> Vec<f32> {
            logits.chunks(vocab).flat_map(|row| row[first..first + width].to_vec()).collect()
        };
        let tiles: Vec<(usize, usize)> =
            (0..vocab).step_by(tile).map(|first| (first, tile.min(vocab - first))).collect();
        for &(first, width) in &tiles {
            let logits = on_device(&cpu, &part(first, width));
            let (max, sum) = (max.all_mut(), sum.all_mut());
            cpu.softmax_fold(logits.all(), first, ids.all(), max, sum, target_logit.all_mut()).unwrap();
        }
        let (m_, s_, t_) = (on_host(&cpu, &max), on_host(&cpu, &sum), on_host(&cpu, &target_logit));
        let nll: f64 = (0..3).map(|i| f64::from(m_[i]) + f64::from(s_[i]).ln() - f64::from(t_[i])).sum();
        let expected = cross_entropy(&wide(&logits), &targets, 1.0);
        assert!((nll / expected - 1.0).abs() < 1e-6, "{nll} against {expected}");

        // The terms of the sums, as a training step gathers them: those of earlier tiles shrink.
        let mut gradient = vec![0.0; m * vocab];
        let (mut max, mut sum) = (on_device(&cpu, &[f32::NEG_INFINITY; 3]), on_device(&cpu, &[0.0; 3]));
        let mut shrink = on_device(&cpu, &[f32::NAN; 3]);
        for &(first, width) in &tiles {
            let mut terms = on_device(&cpu, &part(first, width));
            let (max, sum, target_logit) = (max.all_mut(), sum.all_mut(), target_logit.all_mut());
            let logits = terms.all_mut();
            cpu.softmax_fold_terms(logits, first, ids.all(), max, sum, target_logit, shrink.all_mut())
                .unwrap();
            let mut earlier = on_device(&cpu, &gradient);
            cpu.scale_rows(shrink.all(), earlier.all_mut()).unwrap();
            gradient = on_host(&cpu, &earlier);
            for (row, values) in on_host(&cpu, &terms).chunks(width).enumerate() {
                gradient[row * vocab + first..row * vocab + first + width].copy_from_slice(values);
            }
        }
        assert_eq!((on_host(&cpu, &max), on_host(&cpu, &target_logit)), (m_.clone(), t_.clone()));
        for (row, gradient) in gradient.chunks_mut(vocab).enumerate() {
            let sum = on_host(&cpu, &sum)[row];
            gradient.iter_mut().for_each(|term| *term *= SCALE / sum);
            assert_eq!(gradient[targets[row] as usize], 0.0);
            gradient[targets[row] as usize] = SCALE * ((t_[row] - m_[row]).exp() / sum - 1.0);
        }
        let loss = |x: &[f64]| cross_entropy(x, &targets, f64::from(SCALE));
        assert_gradient("d_logits", loss, &logits, &gradient, m * vocab);
    }
}

#[test]
fn dropout_keeps_a_share_and_the_mean_and_does_not_care_for_tiles() {
    let (cpu, n, cols) = (cpu(), 400, 300);
    let mask = Mask { probability: 0.25, seed: 11 };
    let x = on_device(&cpu, &vec![1.0; n * cols]);
    let mut whole = on_device(&cpu, &vec![f32::NAN; n * cols]);
    cpu.dropout(mask, 0, cols, x.all(), Write::Set, whole.all_mut()).unwrap();
    let dropped = on_host(&cpu, &whole);
    assert!(dropped.iter().all(|&y| y == 0.0 || y == 1.0 / 0.75));
    // 120,000 draws: the share's standard deviation is 0.00125.
    let share = dropped.iter().filter(|&&y| y == 0.0).count() as f64 / dropped.len() as f64;
    assert!((share - 0.25).abs() < 0.006, "{share}");
    let mut tiled = on_device(&cpu, &vec![0.0; n * cols]);
    for first in [0, 170] {
        let rows = first * cols..(first + if first == 0 { 170 } else { 230 }) * cols;
        let to = tiled.part_mut(rows.clone());
        cpu.dropout(mask, first, cols, x.part(rows), Write::Add, to).unwrap();
    }
    assert_eq!(on_host(&cpu, &tiled), dropped);
    let mut other = on_device(&cpu, &vec![0.0; n * cols]);
    cpu.dropout(Mask { seed: 12, ..mask }, 0, cols, x.all(), Write::Set, other.all_mut()).unwrap();
    let same = on_host(&cpu, &other).iter().zip(&dropped).filter(|(a, b)| a == b).count() as f64;
    assert!((same / dropped.len() as f64 - 0.625).abs() < 0.01, "two seeds are independent");
}

#[test]
fn columns_are_scaled_and_multiplied_up() {
    let (cpu, mut random, n, cols) = (cpu(), Random(21), 7, 150);
    let (a, b, factors, before) =
        (random.values(n * cols), random.values(n * cols), random.values(cols), random.values(cols));
    let (a_d, b_d, factors_d) = (on_device(&cpu, &a), on_device(&cpu, &b), on_device(&cpu, &factors));
    let mut out = on_device(&cpu, &before);
    cpu.column_dots(a_d.all(), b_d.all(), out.all_mut()).unwrap();
    let column =
        |j: usize| (0..n).map(|i| f64::from(a[i * cols + j]) * f64::from(b[i * cols + j])).sum::<f64>();
    let expected: Vec<f64> = (0..cols).map(|j| f64::from(before[j]) + column(j)).collect();
    assert_close("dots", &on_host(&cpu, &out), &expected, TOLERANCE);
    let mut y = on_device(&cpu, &a);
    cpu.scale_columns(factors_d.all(), y.all_mut()).unwrap();
    let expected: Vec<f64> =
        a.iter().enumerate().map(|(i, &a)| f64::from(a) * f64::from(factors[i % cols])).collect();
    assert_close("scaled", &on_host(&cpu, &y), &expected, TOLERANCE);
}

#[test]
fn row_factors_are_lengths_of_the_sum() {
    let (cpu, mut random, rank, rows, cols, s) = (cpu(), Random(22), 3, 5, 8, 0.7f32);
    let (w, a, b, m) = (
        wide(&random.values(rows * cols)),
        wide(&random.values(rank * cols)),
        wide(&random.values(rows * rank)),
        random.values(rows),
    );
    let product =
        |x: &[f64], i: usize, y: &[f64], j: usize| dot_rows(&x[i * cols..][..cols], &y[j * cols..][..cols]);
    let narrow = |values: Vec<f64>| on_device(&cpu, &values.iter().map(|&x| x as f32).collect::<Vec<_>>());
    let base = narrow((0..rows).map(|j| product(&w, j, &w, j)).collect());
    let crossed = narrow((0..rank * rows).map(|i| product(&a, i / rows, &w, i % rows)).collect());
    let spread = |j: usize, r: usize| (0..rank).map(|q| b[j * rank + q] * product(&a, q, &a, r)).sum::<f64>();
    let spread = narrow((0..rows * rank).map(|i| spread(i / rank, i % rank)).collect());
    let (b_d, m_d) = (narrow(b.clone()), on_device(&cpu, &m));
    let (mut inverse, mut factors) = (on_device(&cpu, &vec![0.0; rows]), on_device(&cpu, &vec![0.0; rows]));
    let parts =
        RowSquares { base: base.all(), b: b_d.all(), crossed: crossed.all(), spread: spread.all(), scale: s };
    cpu.row_factors(parts, Some(m_d.all()), inverse.all_mut(), factors.all_mut()).unwrap();
    let length = |j: usize| {
        let entry = |c: usize| (0..rank).map(|r| b[j * rank + r] * a[r * cols + c]).sum::<f64>();
        (0..cols).map(|c| (w[j * cols + c] + f64::from(s) * entry(c)).powi(2)).sum::<f64>().sqrt()
    };
    let expected: Vec<f64> = (0..rows).map(|j| 1.0 / length(j)).collect();
    assert_close("inverse", &on_host(&cpu, &inverse), &expected, TOLERANCE);
    let expected: Vec<f64> = (0..rows).map(|j| f64::from(m[j]) / length(j)).collect();
    assert_close("factors", &on_host(&cpu, &factors), &expected, TOLERANCE);
}

fn dot_rows(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[test]
fn sixteen_bits_are_the_nearest_and_come_back() {
    let cpu = cpu();
    for n in [1, 2, 7, 40_001] {
        let x: Vec<f32> = Random(31).values(n).iter().map(|x| 1000.0 * x).collect();
        let mut rounded = on_device(&cpu, &x);
        let mut kept = cpu.alloc_indices("kept", n.div_ceil(2)).unwrap();
        cpu.round_to_bf16(rounded.all_mut(), kept.all_mut()).unwrap();
        let mut back = on_device(&cpu, &vec![f32::NAN; n]);
        cpu.widen_bf16(kept.all(), back.all_mut()).unwrap();
        let expected: Vec<f32> = x.iter().map(|&x| half::bf16::from_f32(x).to_f32()).collect();
        assert_eq!(on_host(&cpu, &rounded), expected);
        assert_eq!(on_host(&cpu, &back), expected);
    }
}
