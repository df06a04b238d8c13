//! AdamW against its formula in f64, the clip, and stop-and-resume.

mod numeric;

use model::device::{AdamWUpdate, Buffer, Device};
use numeric::*;

#[test]
fn an_update_follows_the_formula() {
    const N: usize = 100;
    let (cpu, mut random) = (cpu(), Random(5));
    let update = AdamWUpdate {
        learning_rate: 0.01,
        beta1: 0.9,
        beta2: 0.99,
        epsilon: 1e-6,
        weight_decay: 0.1,
        correction1: 0.271,
        correction2: 0.029_701,
        gradient_scale: 0.5,
    };
    let (w, g, m) = (random.values(N), random.values(N), random.values(N));
    let v: Vec<f32> = random.values(N).iter().map(|x| x * x).collect();
    let [mut w_d, g_d, mut m_d, mut v_d] = [&w, &g, &m, &v].map(|x| on_device(&cpu, x));
    cpu.adamw(&update, g_d.all(), w_d.all_mut(), m_d.all_mut(), v_d.all_mut()).unwrap();
    let (w, g, m, v) = (wide(&w), wide(&g), wide(&m), wide(&v));
    let m: Vec<f64> = m.iter().zip(&g).map(|(m, g)| 0.9 * m + 0.1 * 0.5 * g).collect();
    let v: Vec<f64> = v.iter().zip(&g).map(|(v, g)| 0.99 * v + 0.01 * 0.25 * g * g).collect();
    let moved = |i: usize| w[i] * (1.0 - 0.001) - 0.01 * (m[i] / 0.271) / ((v[i] / 0.029_701).sqrt() + 1e-6);
    assert_close("m", &on_host(&cpu, &m_d), &m, TOLERANCE);
    assert_close("v", &on_host(&cpu, &v_d), &v, TOLERANCE);
    assert_close("w", &on_host(&cpu, &w_d), &(0..N).map(moved).collect::<Vec<_>>(), TOLERANCE);
}

#[test]
fn the_norm_takes_every_element() {
    let (cpu, mut random) = (cpu(), Random(6));
    let x = random.values(1003);
    let expected: f64 = wide(&x).iter().map(|x| x * x).sum();
    let found = cpu.sum_of_squares(on_device(&cpu, &x).all()).unwrap();
    assert!((found / expected - 1.0).abs() < 1e-12);
}

mod with_adapter {
    use super::numeric::cpu;
    use model::device::{Buffer, Device};
    use model::lora::Gradients;
    use model::optimizer::{AdamWOptions, Moment, MomentForm, MomentValues};
    use model::{AdamW, Adapter, Cpu, Family, LoraOptions, ModelConfig};

    fn config() -> ModelConfig {
        ModelConfig {
            vocab_size: 16,
            hidden: 8,
            intermediate: 12,
            n_layers: 2,
            n_heads: 2,
            n_kv_heads: 1,
            tied: true,
            max_positions: 16,
            ..ModelConfig::plain(Family::Llama, 4)
        }
    }

    fn fresh(device: &Cpu) -> (Adapter<Cpu>, AdamW<Cpu>, Gradients<Cpu>) {
        let adapter = Adapter::new(device, &config(), &LoraOptions::default(), 1).unwrap();
        let optimizer = AdamW::new(&adapter, AdamWOptions::default()).unwrap();
        let gradients = Gradients::new(&adapter).unwrap();
        (adapter, optimizer, gradients)
    }

    fn set(device: &Cpu, gradients: &mut Gradients<Cpu>, seed: u64) {
        let values = super::Random(seed).values(gradients.flat().len());
        device.upload(&values, gradients.flat_mut().all_mut()).unwrap();
    }

    fn in_form(moments: MomentForm, b_rate_ratio: f32) -> AdamWOptions {
        AdamWOptions { moments, b_rate_ratio, rounding_seed: 7, ..AdamWOptions::default() }
    }

    #[test]
    fn a_restored_state_continues_with_the_same_bits() {
        for options in [MomentForm::F32, MomentForm::Int8].map(|form| in_form(form, 2.0)) {
            let device = cpu();
            let (mut adapter, _, mut gradients) = fresh(&device);
            let mut optimizer = AdamW::new(&adapter, options).unwrap();
            for seed in 1..4 {
                set(&device, &mut gradients, seed);
                optimizer.update(&mut adapter, &mut gradients, 1e-2).unwrap();
            }
            let weights = adapter.weights().unwrap();
            let (mut other, _, _) = fresh(&device);
            let mut resumed = AdamW::new(&other, options).unwrap();
            other.set_weights(&weights).unwrap();
            for moment in Moment::ALL {
                let values = optimizer.moment(moment).unwrap();
                assert!(values.is_finite());
                resumed.restore(optimizer.updates(), moment, &values).unwrap();
                let cut = match values {
                    MomentValues::F32(values) => MomentValues::F32(values[1..].to_vec()),
                    MomentValues::Int8 { codes, scales } => {
                        MomentValues::Int8 { codes, scales: scales[1..].to_vec() }
                    }
                };
                assert!(resumed.restore(1, moment, &cut).is_err());
            }
            for seed in 4..6 {
                set(&device, &mut gradients, seed);
                optimizer.update(&mut adapter, &mut gradients, 1e-2).unwrap();
                resumed.update(&mut other, &mut gradients, 1e-2).unwrap();
            }
            assert_eq!(other.weights().unwrap(), adapter.weights().unwrap());
            for moment in Moment::ALL {
                assert_eq!(resumed.moment(moment).unwrap(), optimizer.moment(moment).unwrap());
            }
            assert_eq!(resumed.updates(), 5);
        }
    }

    #[test]
    fn moments_of_another_form_are_refused() {
        let (adapter, mut optimizer, _) = fresh(&cpu());
        let coded = AdamW::new(&adapter, in_form(MomentForm::Int8, 1.0)).unwrap();
        assert!(optimizer.restore(1, Moment::First, &coded.moment(Moment::First).unwrap()).is_err());
    }

    /// A regression with noise: gradient of |w - w*|² / 2 plus noise, scaled differently in each row of 8 weights.
    fn descend(options: AdamWOptions, n_updates: u64) -> (Vec<f32>, Vec<f32>) {
        let device = cpu();
        let (mut adapter, _, mut gradients) = fresh(&device);
        let mut optimizer = AdamW::new(&adapter, options).unwrap();
        let target = super::Random(77).values(adapter.n_weights());
        let mut path = Vec::new();
        for update in 0..n_updates {
            let noise = super::Random(1000 + update).values(adapter.n_weights());
            let weights = adapter.weights().unwrap();
            let slope =
                |i: usize| (weights[i] - target[i] + 0.5 * noise[i]) * 10f32.powi(-((i / 8 % 3) as i32));
            let values: Vec<f32> = (0..weights.len()).map(slope).collect();
            device.upload(&values, gradients.flat_mut().all_mut()).unwrap();
            optimizer.update(&mut adapter, &mut gradients, 1e-2).unwrap();
            let weights = adapter.weights().unwrap();
            let distance = weights.iter().zip(&target).map(|(w, t)| (w - t) * (w - t)).sum::<f32>();
            path.push((distance / weights.len() as f32).sqrt());
        }
        (path, adapter.weights().unwrap())
    }

    /// Moments in eight bits lead the same way: never farther from the goal than some hundredths, and to the same end.
    #[test]
    fn eight_bits_go_the_way_of_thirty_two() {
        for ratio in [1.0, 4.0] {
            let no_clip = |form| AdamWOptions { max_grad_norm: None, ..in_form(form, ratio) };
            let (path, end) = descend(no_clip(MomentForm::F32), 1500);
            let (coded_path, coded_end) = descend(no_clip(MomentForm::Int8), 1500);
            for (step, (plain, coded)) in path.iter().zip(&coded_path).enumerate() {
                assert!((coded / plain - 1.0).abs() < 0.1, "step {step}: {coded} against {plain}");
            }
            let apart = end.iter().zip(&coded_end).map(|(a, b)| (a - b) * (a - b)).sum::<f32>();
            let apart = (apart / end.len() as f32).sqrt();
            assert!(apart < 0.2 * path[0] && path[1499] < 0.3 * path[0], "{apart}, {path:?}");
            println!("ratio {ratio}: {} against {}, {apart} apart", coded_path[1499], path[1499]);
        }
    }

    /// Second moments fall again once gradients are smaller, in a block whose largest stays: a fall of a thousandth a
    /// step is less than half the distance of two levels, and rounded to the nearest level they would stay for ever.
    #[test]
    fn second_moments_in_eight_bits_follow_what_falls_slowly() {
        let device = cpu();
        let (mut adapter, _, mut gradients) = fresh(&device);
        let options = AdamWOptions { max_grad_norm: None, ..in_form(MomentForm::Int8, 1.0) };
        let mut optimizer = AdamW::new(&adapter, options).unwrap();
        let mut plain = AdamW::new(&adapter, AdamWOptions { moments: MomentForm::F32, ..options }).unwrap();
        let n = adapter.n_weights();
        for update in 0..3000 {
            let size = |i: usize| if i.is_multiple_of(8) || update < 1000 { 1.0 } else { 0.1 };
            let values: Vec<f32> = (0..n).map(size).collect();
            device.upload(&values, gradients.flat_mut().all_mut()).unwrap();
            optimizer.update(&mut adapter, &mut gradients, 0.0).unwrap();
            plain.update(&mut adapter, &mut gradients, 0.0).unwrap();
        }
        // With a rate of one and no first moment left to differ, a step tells the second.
        let step_of =
            |optimizer: &mut AdamW<Cpu>, adapter: &mut Adapter<Cpu>, gradients: &mut Gradients<Cpu>| {
                let before = adapter.weights().unwrap();
                optimizer.update(adapter, gradients, 1e-2).unwrap();
                let after = adapter.weights().unwrap();
                let fell = (0..n).filter(|i| i % 8 != 0);
                fell.map(|i| f64::from(before[i] - after[i])).sum::<f64>() / (n - n.div_ceil(8)) as f64
            };
        let expected = step_of(&mut plain, &mut adapter, &mut gradients);
        let found = step_of(&mut optimizer, &mut adapter, &mut gradients);
        assert!((found / expected - 1.0).abs() < 0.05, "{found} against {expected}");
    }

    #[test]
    fn gradients_over_the_norm_are_scaled_to_it() {
        let device = cpu();
        let (mut adapter, mut optimizer, mut gradients) = fresh(&device);
        set(&device, &mut gradients, 9);
        let norm = optimizer.update(&mut adapter, &mut gradients, 0.0).unwrap();
        let values = gradients.download().unwrap();
        let MomentValues::F32(found) = optimizer.moment(Moment::First).unwrap() else { panic!() };
        assert!(norm > 1.0);
        for (m, g) in found.iter().zip(values) {
            let expected = 0.1 * f64::from(g) / norm;
            assert!((f64::from(*m) - expected).abs() < 1e-7, "{m} against {expected}");
        }
    }

    #[test]
    fn lora_plus_moves_b_faster_than_a() {
        let device = cpu();
        let (mut adapter, _, mut gradients) = fresh(&device);
        let options = AdamWOptions { b_rate_ratio: 16.0, max_grad_norm: None, ..AdamWOptions::default() };
        let mut optimizer = AdamW::new(&adapter, options).unwrap();
        let before = adapter.weights().unwrap();
        device.fill(0.5, gradients.flat_mut().all_mut()).unwrap();
        optimizer.update(&mut adapter, &mut gradients, 1e-3).unwrap();
        let after = adapter.weights().unwrap();
        // The first update of Adam moves every weight by its rate.
        for (_, _, member) in adapter.layout().members() {
            for (range, rate) in [(&member.a, 1e-3), (&member.b, 16e-3)] {
                for i in range.clone() {
                    assert!((before[i] - after[i] - rate).abs() < 1e-6, "{} to {}", before[i], after[i]);
                }
            }
        }
    }

    /// The first update of Adam moves every weight by its rate: A and B by their own and by their connection's.
    #[test]
    fn connections_move_with_a_and_b() {
        let device = cpu();
        let options = LoraOptions { rank: 4, elastic: true, ..LoraOptions::default() };
        let mut adapter = Adapter::new(&device, &config(), &options, 1).unwrap();
        let options = AdamWOptions { max_grad_norm: None, ..AdamWOptions::default() };
        let mut optimizer = AdamW::new(&adapter, options).unwrap();
        let mut gradients = Gradients::new(&adapter).unwrap();
        device.fill(0.5, gradients.flat_mut().all_mut()).unwrap();
        let before = adapter.weights().unwrap();
        optimizer.update(&mut adapter, &mut gradients, 1e-3).unwrap();
        let after = adapter.weights().unwrap();
        for (_, cols, member) in adapter.layout().members() {
            let moved = |i: usize| before[i] - after[i];
            for (i, place) in member.a.clone().enumerate() {
                let along = if i % cols / (cols / 4) == i / cols { 4.0 / cols as f32 } else { 0.0 };
                assert!((moved(place) - 1e-3 * (1.0 + along)).abs() < 1e-6);
            }
            for (i, place) in member.b.clone().enumerate() {
                let along = if i / 4 / (member.rows / 4) == i % 4 { 1.0 } else { 0.0 };
                assert!((moved(place) - 1e-3 * (1.0 + along)).abs() < 1e-6);
            }
        }
        let odd = LoraOptions { rank: 3, elastic: true, ..LoraOptions::default() };
        let refused = Adapter::new(&device, &config(), &odd, 1).err().unwrap().to_string();
        assert!(refused.contains("elastic"), "{refused}");
    }

    #[test]
    fn a_gradient_that_is_not_finite_changes_nothing() {
        let device = cpu();
        let (mut adapter, mut optimizer, mut gradients) = fresh(&device);
        device.fill(f32::NAN, gradients.flat_mut().all_mut()).unwrap();
        let before = adapter.weights().unwrap();
        assert!(optimizer.update(&mut adapter, &mut gradients, 1.0).unwrap().is_nan());
        assert_eq!((adapter.weights().unwrap(), optimizer.updates()), (before, 0));
    }

    #[test]
    fn a_fresh_adapter_is_uniform_in_a_and_zero_in_b() {
        let device = cpu();
        let (adapter, _, _) = fresh(&device);
        let weights = adapter.weights().unwrap();
        for (_, cols, member) in adapter.layout().members() {
            let (a, bound) = (&weights[member.a.clone()], 1.0 / (cols as f32).sqrt());
            assert!(a.iter().all(|x| x.abs() <= bound) && a.iter().any(|x| x.abs() > 0.8 * bound));
            assert!(weights[member.b.clone()].iter().all(|&x| x == 0.0));
        }
        let again = Adapter::new(&device, &config(), &LoraOptions::default(), 1).unwrap();
        let other = Adapter::new(&device, &config(), &LoraOptions::default(), 2).unwrap();
        assert_eq!(again.weights().unwrap(), weights);
        assert_ne!(other.weights().unwrap(), weights);
    }

    #[test]
    fn tensors_go_out_and_come_back() {
        let device = cpu();
        let (adapter, _, _) = fresh(&device);
        let mut tensors = adapter.to_tensors(&config()).unwrap();
        assert_eq!((tensors.len(), tensors[0].module.as_str()), (14, "model.layers.0.self_attn.q_proj"));
        let mut other = Adapter::zeros(&device, &config(), &LoraOptions::default()).unwrap();
        other.set_tensors(&config(), &tensors).unwrap();
        assert_eq!(other.weights().unwrap(), adapter.weights().unwrap());
        let last = tensors.pop().unwrap();
        let error = other.set_tensors(&config(), &tensors).unwrap_err().to_string();
        assert_eq!(error, "adapter: model.layers.1.mlp.down_proj is missing, expected its two factors");
        tensors.extend([last.clone(), last]);
        assert!(other.set_tensors(&config(), &tensors).is_err());
    }
}
