//! Convolution, selective scan and group norm of state-space mixers against f64 and finite differences.

mod numeric;

use model::device::cpu::Cpu;
use model::device::{Buffer, Device, ScanWeights, Span, StateSpace};
use numeric::*;

/// Sizes that are no multiple of the lanes, and ones that are; one group, and several.
const MIXERS: [StateSpace; 3] = [
    StateSpace { n_heads: 4, head_dim: 3, n_groups: 2, state: 5, kernel: 4 },
    StateSpace { n_heads: 2, head_dim: 16, n_groups: 1, state: 32, kernel: 2 },
    StateSpace { n_heads: 6, head_dim: 50, n_groups: 3, state: 18, kernel: 3 },
];

/// Sequences that are shorter than a kernel, than a tile of the backward pass, and longer than two tiles.
fn spans() -> Vec<Span> {
    let mut first = 0;
    let span = |n| {
        first += n;
        Span { first: first - n, n, place: 0, begins: true }
    };
    [1, 2, 33, 70].map(span).to_vec()
}

fn n_rows() -> usize {
    spans().iter().map(|span| span.n).sum()
}

fn silu(z: f64) -> f64 {
    z / (1.0 + (-z).exp())
}

fn conv(mixer: &StateSpace, x: &[f64], kernel: &[f32], bias: &[f32]) -> Vec<f64> {
    let (w, k) = (mixer.mixed(), mixer.kernel);
    let mut out = vec![0.0; x.len()];
    for span in spans() {
        for (t, col) in (0..span.n).flat_map(|t| (0..w).map(move |col| (t, col))) {
            let tap = |j: usize| {
                let seen = (t + j + 1).checked_sub(k)?;
                Some(f64::from(kernel[col * k + j]) * x[(span.first + seen) * w + col])
            };
            let z = f64::from(bias[col]) + (0..k).filter_map(tap).sum::<f64>();
            out[(span.first + t) * w + col] = silu(z);
        }
    }
    out
}

#[test]
fn convolution_and_its_backward() {
    let (cpu, mut random) = (cpu(), Random(1));
    for mixer in MIXERS {
        let (n, w) = (n_rows() * mixer.mixed(), mixer.mixed());
        let (x, kernel, bias, d_out) =
            (random.values(n), random.values(w * mixer.kernel), random.values(w), random.values(n));
        let [x_d, kernel_d, bias_d, d_out_d] = [&x, &kernel, &bias, &d_out].map(|v| on_device(&cpu, v));
        let mut window = on_device(&cpu, &vec![f32::NAN; mixer.window_len()]);
        let mut out = on_device(&cpu, &vec![f32::NAN; n]);
        cpu.causal_conv(
            mixer,
            &spans(),
            x_d.all(),
            kernel_d.all(),
            bias_d.all(),
            window.all_mut(),
            out.all_mut(),
        )
        .unwrap();
        let textbook = |x: &[f64]| conv(&mixer, x, &kernel, &bias);
        assert_close("out", &on_host(&cpu, &out), &textbook(&wide(&x)), TOLERANCE);

        let mut d_x = on_device(&cpu, &vec![f32::NAN; n]);
        let (kernel, bias) = (kernel_d.all(), bias_d.all());
        cpu.causal_conv_backward(mixer, &spans(), x_d.all(), kernel, bias, d_out_d.all(), d_x.all_mut())
            .unwrap();
        assert_gradient("d_x", |x| dot(&textbook(x), &d_out), &x, &on_host(&cpu, &d_x), 60);
    }
}

/// Vectors of a scan: bias of the steps, decay, skip.
struct Weights([Vec<f32>; 3]);

impl Weights {
    /// Decays from slow to fast, and steps around one.
    fn new(mixer: &StateSpace, random: &mut Random) -> Weights {
        let decay = random.values(mixer.n_heads).iter().map(|x| -(1.5 * x).exp()).collect();
        Weights([random.values(mixer.n_heads), decay, random.values(mixer.n_heads)])
    }
}

/// The recurrence as the paper states it.
fn scan(mixer: &StateSpace, weights: &Weights, mixed: &[f64], steps: &[f64]) -> Vec<f64> {
    let StateSpace { n_heads, head_dim: p, n_groups, state: s, .. } = *mixer;
    let Weights([bias, decay, skip]) = weights;
    let mut out = vec![0.0; steps.len() * p];
    for (span, head) in spans().iter().flat_map(|span| (0..n_heads).map(move |head| (span, head))) {
        let mut state = vec![0.0; p * s];
        let group = head / (n_heads / n_groups);
        for row in span.first..span.first + span.n {
            let mixed = &mixed[row * mixer.mixed()..][..mixer.mixed()];
            let step = (steps[row * n_heads + head] + f64::from(bias[head])).exp().ln_1p();
            let (x, b) = (&mixed[head * p..][..p], &mixed[n_heads * p + group * s..][..s]);
            let c = &mixed[n_heads * p + (n_groups + group) * s..][..s];
            for (i, x) in x.iter().enumerate() {
                let mut y = f64::from(skip[head]) * x;
                for j in 0..s {
                    let kept = (step * f64::from(decay[head])).exp() * state[i * s + j];
                    state[i * s + j] = kept + step * x * b[j];
                    y += state[i * s + j] * c[j];
                }
                out[(row * n_heads + head) * p + i] = y;
            }
        }
    }
    out
}

#[test]
fn scan_and_its_backward() {
    let (cpu, mut random) = (cpu(), Random(2));
    for mixer in MIXERS {
        let n = n_rows();
        let weights = Weights::new(&mixer, &mut random);
        let (mixed, steps) = (random.values(n * mixer.mixed()), random.values(n * mixer.n_heads));
        let d_out = random.values(n * mixer.inner());
        let [mixed_d, steps_d, d_out_d] = [&mixed, &steps, &d_out].map(|v| on_device(&cpu, v));
        let vectors = weights.0.each_ref().map(|v| on_device(&cpu, v));
        let on_cpu = || scan_weights(&vectors);
        let mut state = on_device(&cpu, &vec![f32::NAN; mixer.state_len()]);
        let mut out = on_device(&cpu, &vec![f32::NAN; n * mixer.inner()]);
        let (m, s) = (mixed_d.all(), steps_d.all());
        cpu.state_scan(mixer, &spans(), on_cpu(), m, s, state.all_mut(), out.all_mut()).unwrap();
        let expected = scan(&mixer, &weights, &wide(&mixed), &wide(&steps));
        assert_close("out", &on_host(&cpu, &out), &expected, TOLERANCE);

        let mut scratch = on_device(&cpu, &vec![f32::NAN; mixer.scratch_len()]);
        let mut d_mixed = on_device(&cpu, &vec![f32::NAN; mixed.len()]);
        let mut d_steps = on_device(&cpu, &vec![f32::NAN; steps.len()]);
        cpu.state_scan_backward(
            mixer,
            &spans(),
            on_cpu(),
            m,
            s,
            out.all(),
            d_out_d.all(),
            scratch.all_mut(),
            d_mixed.all_mut(),
            d_steps.all_mut(),
        )
        .unwrap();
        let (d_mixed, d_steps) = (on_host(&cpu, &d_mixed), on_host(&cpu, &d_steps));
        let by_mixed = |mixed: &[f64]| dot(&scan(&mixer, &weights, mixed, &wide(&steps)), &d_out);
        let by_steps = |steps: &[f64]| dot(&scan(&mixer, &weights, &wide(&mixed), steps), &d_out);
        assert_gradient("d_mixed", by_mixed, &mixed, &d_mixed, 60);
        assert_gradient("d_steps", by_steps, &steps, &d_steps, 40);
        let (inner, shared) = (mixer.inner(), mixer.n_groups * mixer.state);
        for (what, columns) in [("d_B", inner..inner + shared), ("d_C", inner + shared..mixer.mixed())] {
            // The few columns of B and C are easily missed among all.
            let at = |row: usize| row * mixer.mixed() + columns.start;
            let part =
                |of: &[f32]| (0..n).flat_map(|row| of[at(row)..][..shared].to_vec()).collect::<Vec<_>>();
            let by_part = |values: &[f64]| {
                let mut mixed = wide(&mixed);
                (0..n).for_each(|row| {
                    mixed[at(row)..][..shared].copy_from_slice(&values[row * shared..][..shared])
                });
                by_mixed(&mixed)
            };
            assert_gradient(what, by_part, &part(&mixed), &part(&d_mixed), 40);
        }
    }
}

fn scan_weights(vectors: &[<Cpu as Device>::Buffer; 3]) -> ScanWeights<'_, <Cpu as Device>::Buffer> {
    let [step_bias, decay, skip] = vectors.each_ref().map(|v| v.all());
    ScanWeights { step_bias, decay, skip }
}

/// Read in pieces, each from what the one before left, two sequences in turn: the same bits as at once.
#[test]
fn convolution_and_scan_go_on_where_they_stopped() {
    let (cpu, mut random) = (cpu(), Random(3));
    for mixer in MIXERS {
        let (n, w) = (24, mixer.mixed());
        let (x, steps) = (random.values(2 * n * w), random.values(2 * n * mixer.n_heads));
        let (kernel, bias) = (random.values(w * mixer.kernel), random.values(w));
        let [x, steps, kernel, bias] = [&x, &steps, &kernel, &bias].map(|v| on_device(&cpu, v));
        let vectors = Weights::new(&mixer, &mut random).0.each_ref().map(|v| on_device(&cpu, v));
        let run = |passes: &[[std::ops::Range<usize>; 2]]| {
            let filled = |len: usize| on_device(&cpu, &vec![f32::NAN; len]);
            let (mut window, mut state) = (filled(2 * mixer.window_len()), filled(2 * mixer.state_len()));
            let (mut mixed, mut out) = (filled(2 * n * w), filled(2 * n * mixer.inner()));
            for pass in passes {
                let span = |(place, rows): (usize, &std::ops::Range<usize>)| Span {
                    first: place * n + rows.start,
                    n: rows.len(),
                    place,
                    begins: rows.start == 0,
                };
                let spans: Vec<Span> = pass.iter().enumerate().map(span).collect();
                let (kernel, bias) = (kernel.all(), bias.all());
                cpu.causal_conv(mixer, &spans, x.all(), kernel, bias, window.all_mut(), mixed.all_mut())
                    .unwrap();
                let (mixed, weights) = (mixed.all(), scan_weights(&vectors));
                cpu.state_scan(mixer, &spans, weights, mixed, steps.all(), state.all_mut(), out.all_mut())
                    .unwrap();
            }
            (on_host(&cpu, &out), on_host(&cpu, &state), on_host(&cpu, &window))
        };
        let at_once = run(&[[0..n, 0..n]]);
        assert_eq!(run(&[[0..1, 0..20], [1..2, 20..21], [2..24, 21..24]]), at_once);
    }
}

#[test]
fn group_norm_and_its_backward() {
    const EPS: f32 = 1e-3;
    let (cpu, mut random) = (cpu(), Random(4));
    for (n_groups, width) in [(1, 48), (3, 20), (8, 64)] {
        let (cols, n) = (n_groups * width, 5 * n_groups * width);
        let (x, gain, d_y) = (random.values(n), random.values(cols), random.values(n));
        let [x_d, gain_d, d_y_d] = [&x, &gain, &d_y].map(|v| on_device(&cpu, v));
        let textbook = |x: &[f64]| {
            let group = |(i, row): (usize, &[f64])| {
                let mean = row.iter().map(|x| x * x).sum::<f64>() / width as f64;
                let r = 1.0 / (mean + f64::from(EPS)).sqrt();
                let gain = &gain[i % n_groups * width..][..width];
                row.iter().zip(gain).map(|(x, &g)| x * r * f64::from(g)).collect::<Vec<_>>()
            };
            x.chunks(width).enumerate().flat_map(group).collect::<Vec<_>>()
        };
        let mut y = on_device(&cpu, &vec![f32::NAN; n]);
        cpu.group_norm(n_groups, x_d.all(), gain_d.all(), EPS, y.all_mut()).unwrap();
        assert_close("y", &on_host(&cpu, &y), &textbook(&wide(&x)), TOLERANCE);
        let mut d_x = on_device(&cpu, &vec![f32::NAN; n]);
        cpu.group_norm_backward(n_groups, x_d.all(), gain_d.all(), EPS, d_y_d.all(), d_x.all_mut()).unwrap();
        assert_gradient("d_x", |x| dot(&textbook(x), &d_y), &x, &on_host(&cpu, &d_x), 60);
    }
}

#[test]
fn spans_that_do_not_fit_are_refused() {
    let (cpu, mixer) = (cpu(), MIXERS[0]);
    let (w, n) = (mixer.mixed(), 4);
    let buffer = |len| on_device(&cpu, &vec![0.0; len]);
    let (x, kernel, bias) = (buffer(n * w), buffer(w * mixer.kernel), buffer(w));
    let refused = |span: Span| {
        let (mut window, mut out) = (buffer(mixer.window_len()), buffer(n * w));
        let (x, kernel, bias) = (x.all(), kernel.all(), bias.all());
        cpu.causal_conv(mixer, &[span], x, kernel, bias, window.all_mut(), out.all_mut()).is_err()
    };
    let span = Span { first: 0, n, place: 0, begins: true };
    assert!(!refused(span));
    assert!(refused(Span { n: n + 1, ..span }));
    assert!(refused(Span { place: 1, ..span }));
    let goes_on = Span { begins: false, ..span };
    let (mut d_x, kernel, bias) = (buffer(n * w), kernel.all(), bias.all());
    assert!(
        cpu.causal_conv_backward(mixer, &[goes_on], x.all(), kernel, bias, x.all(), d_x.all_mut()).is_err()
    );
}
