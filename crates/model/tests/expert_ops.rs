//! The router, the grouping by expert and the weighted sum of the CPU device against f64 and finite differences.

mod numeric;

use model::device::{Buffer, Device, Routing, Write};
use numeric::*;

/// Tokens, width, and how they are routed.
const CASES: [(usize, usize, Routing); 3] = [
    (7, 5, Routing { n_experts: 6, n_used: 2, scale: 1.0 }),
    (40, 16, Routing { n_experts: 64, n_used: 6, scale: 2.5 }),
    (3, 4, Routing { n_experts: 4, n_used: 4, scale: 0.5 }),
];

fn softmax(logits: &[f64]) -> Vec<f64> {
    let max = logits.iter().fold(f64::MIN, |a, &b| a.max(b));
    let sum: f64 = logits.iter().map(|x| (x - max).exp()).sum();
    logits.iter().map(|x| (x - max).exp() / sum).collect()
}

/// Weights (N, k) of given picks.
fn weights_of(routing: Routing, logits: &[f64], picks: &[u32]) -> Vec<f64> {
    let rows = logits.chunks(routing.n_experts).zip(picks.chunks(routing.n_used));
    rows.flat_map(|(logits, picks)| {
        let p = softmax(logits);
        picks.iter().map(|&pick| f64::from(routing.scale) * p[pick as usize]).collect::<Vec<_>>()
    })
    .collect()
}

/// The experts of each token, the likeliest first, by sorting.
fn picks_of(routing: Routing, logits: &[f32]) -> Vec<u32> {
    let sorted = |row: &[f32]| {
        let mut experts: Vec<u32> = (0..row.len() as u32).collect();
        experts.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]));
        experts.truncate(routing.n_used);
        experts
    };
    logits.chunks(routing.n_experts).flat_map(sorted).collect()
}

#[test]
fn the_router_and_its_backward() {
    let (cpu, mut random) = (cpu(), Random(1));
    for (n, _, routing) in CASES {
        let (n_logits, n_picks) = (n * routing.n_experts, n * routing.n_used);
        let logits: Vec<f32> = random.values(n_logits).iter().map(|x| 4.0 * x).collect();
        let (logits_d, mut p) = (on_device(&cpu, &logits), on_device(&cpu, &vec![f32::NAN; n_logits]));
        let (mut picks, mut weights) =
            (indices(&cpu, &vec![u32::MAX; n_picks]), on_device(&cpu, &vec![f32::NAN; n_picks]));
        cpu.route(routing, logits_d.all(), p.all_mut(), picks.all_mut(), weights.all_mut()).unwrap();
        let expected_picks = picks_of(routing, &logits);
        let expected = weights_of(routing, &wide(&logits), &expected_picks);
        assert_close("weights", &on_host(&cpu, &weights), &expected, TOLERANCE);
        let all: Vec<f64> = wide(&logits).chunks(routing.n_experts).flat_map(softmax).collect();
        assert_close("probabilities", &on_host(&cpu, &p), &all, TOLERANCE);

        let (d_weights, before) = (random.values(n_picks), random.values(n_logits));
        let loss = |x: &[f64]| dot(&weights_of(routing, x, &expected_picks), &d_weights);
        let d_weights_d = on_device(&cpu, &d_weights);
        let backward = |write, start: &[f32]| {
            let mut d_logits = on_device(&cpu, start);
            let to = d_logits.all_mut();
            cpu.route_backward(routing, p.all(), picks.all(), d_weights_d.all(), write, to).unwrap();
            on_host(&cpu, &d_logits)
        };
        let gradient = backward(Write::Set, &vec![f32::NAN; n_logits]);
        assert_gradient("d_logits", loss, &logits, &gradient, 60);
        let sum: Vec<f64> = wide(&gradient).iter().zip(&before).map(|(a, &b)| a + f64::from(b)).collect();
        assert_close("added", &backward(Write::Add, &before), &sum, TOLERANCE);
    }
}

#[test]
fn equal_experts_are_taken_in_order() {
    let cpu = cpu();
    let routing = Routing { n_experts: 5, n_used: 2, scale: 1.0 };
    let logits = on_device(&cpu, &[0.0, 1.0, 0.0, 1.0, 1.0]);
    let (mut p, mut weights) = (on_device(&cpu, &[0.0; 5]), on_device(&cpu, &[0.0; 2]));
    let mut picks = indices(&cpu, &[9; 2]);
    cpu.route(routing, logits.all(), p.all_mut(), picks.all_mut(), weights.all_mut()).unwrap();
    let (mut rows, mut places, mut counts) = (indices(&cpu, &[9; 2]), indices(&cpu, &[9; 2]), [9; 5]);
    cpu.group_picks(routing, picks.all(), rows.all_mut(), places.all_mut(), &mut counts).unwrap();
    assert_eq!(counts, [0, 1, 0, 1, 0]);
}

/// Each expert multiplies its rows by a number of its own: grouped, multiplied and combined this is a known sum.
#[test]
fn grouping_and_combining_and_their_backwards() {
    let (cpu, mut random) = (cpu(), Random(2));
    for (n, cols, routing) in CASES {
        let n_picks = n * routing.n_used;
        let logits = random.values(n * routing.n_experts);
        let picks = picks_of(routing, &logits);
        let (x, weights, d_y) = (random.values(n * cols), random.values(n_picks), random.values(n * cols));
        let (x_d, weights_d, d_y_d) = (on_device(&cpu, &x), on_device(&cpu, &weights), on_device(&cpu, &d_y));
        let (mut rows, mut places) = (indices(&cpu, &vec![0; n_picks]), indices(&cpu, &vec![0; n_picks]));
        let mut counts = vec![0; routing.n_experts];
        let picks_d = indices(&cpu, &picks);
        cpu.group_picks(routing, picks_d.all(), rows.all_mut(), places.all_mut(), &mut counts).unwrap();
        assert_eq!(counts.iter().sum::<usize>(), n_picks);

        let factor = |expert: usize| 1.0 + expert as f32;
        let mut grouped = on_device(&cpu, &vec![f32::NAN; n_picks * cols]);
        cpu.gather_rows(x_d.all(), cols, rows.all(), grouped.all_mut()).unwrap();
        let multiply = |buffer: &mut <model::Cpu as Device>::Buffer| {
            let mut start = 0;
            for (expert, count) in counts.iter().enumerate() {
                let end = start + count * cols;
                cpu.scale(factor(expert), buffer.part_mut(start..end)).unwrap();
                start = end;
            }
        };
        multiply(&mut grouped);
        let run = |x: &[f64], weights: &[f64]| {
            let mut y = vec![0.0; n * cols];
            for (slot, &expert) in picks.iter().enumerate() {
                let token = slot / routing.n_used * cols;
                for c in 0..cols {
                    y[token + c] += weights[slot] * f64::from(factor(expert as usize)) * x[token + c];
                }
            }
            y
        };
        let mut y = on_device(&cpu, &vec![f32::NAN; n * cols]);
        let weights_view = Some(weights_d.all());
        cpu.combine_experts(routing, grouped.all(), places.all(), weights_view, Write::Set, y.all_mut())
            .unwrap();
        assert_close("y", &on_host(&cpu, &y), &run(&wide(&x), &wide(&weights)), TOLERANCE);

        let mut d_weights = on_device(&cpu, &vec![f32::NAN; n_picks]);
        let (to, from) = (grouped.all_mut(), places.all());
        cpu.combine_experts_backward(routing, to, from, weights_d.all(), d_y_d.all(), d_weights.all_mut())
            .unwrap();
        let loss = |weights: &[f64]| dot(&run(&wide(&x), weights), &d_y);
        assert_gradient("d_weights", loss, &weights, &on_host(&cpu, &d_weights), 60);
        multiply(&mut grouped);
        let mut d_x = on_device(&cpu, &vec![f32::NAN; n * cols]);
        cpu.combine_experts(routing, grouped.all(), places.all(), None, Write::Set, d_x.all_mut()).unwrap();
        let loss = |x: &[f64]| dot(&run(x, &wide(&weights)), &d_y);
        assert_gradient("d_x", loss, &x, &on_host(&cpu, &d_x), 60);
    }
}

#[test]
fn experts_that_do_not_exist_are_refused() {
    let cpu = cpu();
    let routing = Routing { n_experts: 2, n_used: 3, scale: 1.0 };
    let (picks, mut counts) = (indices(&cpu, &[0, 1, 2]), [0; 2]);
    let (mut rows, mut places) = (indices(&cpu, &[0; 3]), indices(&cpu, &[0; 3]));
    let mut group = |routing| {
        cpu.group_picks(routing, picks.all(), rows.all_mut(), places.all_mut(), &mut counts).is_err()
    };
    assert!(group(routing));
    assert!(group(Routing { n_used: 1, ..routing }));
}
