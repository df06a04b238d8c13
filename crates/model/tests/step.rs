//! The whole step on tiny random models: finite differences, packing, recompute, tiles, determinism, memory.

mod hashed;

use std::sync::Arc;

use formats::observe::Silent;
use hashed::HashedCheckpoint;
use model::arena::Arena;
use model::config::{LongRope, NormKind, Rope, RopeScaling, Window};
use model::device::cpu::fixed_bytes;
use model::device::{Activation, Device, Precision};
use model::lora::Gradients;
use model::optimizer::{AdamWOptions, Moment, MomentValues};
use model::step::{Batch, IGNORE, LayerInputs, LossSum, StepPlan, workspace_bytes};
use model::{AdamW, Adapter, Base, Cpu, Family, LoraOptions, ModelConfig, Quant, TrainStep};

/// Central differences of an f32 loss: its rounding and the third derivative at the step; the worst seen is 1.3e-4.
/// The low-rank path of one layer kind left out of the input's gradient shows as 6e-3, a norm left out as 8e-2.
const DIFFERENCE_TOLERANCE: f64 = 5e-4;

/// The same sums in another order of blocks: a few hundred roundings of 6e-8.
const ORDER_TOLERANCE: f64 = 2e-5;

/// Of rows that share a batch, each sum is over its own row: they differ in what the blocks of tokens round together.
const PACKING_TOLERANCE: f64 = 1e-5;

/// A tiny model of a family, with everything that its published ones have: windows and thresholds below the lengths
/// of the sequences here.
fn config(family: Family) -> ModelConfig {
    let plain = plain_config(family);
    let window = Some(Window::in_all_layers(20));
    match family {
        Family::Llama | Family::Qwen2 | Family::Qwen3 => plain,
        Family::Phi3 => {
            let (short, long) = ((1..=12).map(|i| 1.0 + 0.1 * i as f32).collect(), vec![2.5; 12]);
            let long = LongRope { short, long, original_max_positions: 40, attention_factor: 1.2 };
            let rope = Rope { theta: 10_000.0, dim: 24, scaling: RopeScaling::Long(long) };
            ModelConfig { rope, window, ..plain }
        }
        Family::Gemma3 => ModelConfig {
            activation: Activation::GeluTanh,
            embedding_scale: 16.0,
            score_scale: 0.2,
            local_rope: Some(Rope { theta: 100.0, ..plain.rope.clone() }),
            window: Some(Window { size: 20, full_every: Some(2) }),
            ..plain
        },
        Family::StarCoder2 => {
            ModelConfig { activation: Activation::GeluTanh, norm: NormKind::Layer, window, ..plain }
        }
        Family::DeepSeek2 => ModelConfig { vocab_size: 300, ..hashed::deepseek2() },
        Family::Mamba2 => {
            ModelConfig { vocab_size: 300, tied: false, max_positions: 256, ..hashed::mamba2() }
        }
    }
}

fn plain_config(family: Family) -> ModelConfig {
    ModelConfig {
        vocab_size: 300,
        hidden: 256,
        intermediate: 320,
        n_layers: 3,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim_is_stated: true,
        norm_eps: 1e-5,
        tied: family == Family::Qwen3,
        max_positions: 256,
        ..ModelConfig::plain(family, 32)
    }
}

fn options() -> LoraOptions {
    LoraOptions { rank: 4, alpha: 8.0, ..LoraOptions::default() }
}

/// Sequences of some lengths end to end, every fifth row without a target.
struct Packed {
    tokens: Vec<u32>,
    targets: Vec<u32>,
    positions: Vec<u32>,
    starts: Vec<usize>,
}

impl Packed {
    fn new(lengths: &[usize]) -> Self {
        let tokens = hashed::tokens("step", lengths.iter().sum(), 300);
        let (mut targets, mut positions, mut starts) = (Vec::new(), Vec::new(), Vec::new());
        for &length in lengths {
            let start = targets.len();
            starts.push(start);
            for i in 0..length {
                let is_target = i + 1 < length && i % 5 != 3;
                targets.push(if is_target { tokens[start + i + 1] } else { IGNORE });
                positions.push(i as u32);
            }
        }
        Self { tokens, targets, positions, starts }
    }

    fn batch(&self) -> Batch<'_> {
        let Self { tokens, targets, positions, starts } = self;
        Batch { tokens, targets, weights: None, positions, sequence_starts: starts }
    }

    /// Each sequence as a batch of its own.
    fn alone(&self) -> Vec<Packed> {
        let ends = self.starts[1..].iter().copied().chain([self.tokens.len()]);
        let part = |(&start, end): (&usize, usize)| Packed {
            tokens: self.tokens[start..end].to_vec(),
            targets: self.targets[start..end].to_vec(),
            positions: self.positions[start..end].to_vec(),
            starts: vec![0],
        };
        self.starts.iter().zip(ends).map(part).collect()
    }
}

/// A base, an adapter far from zero, and a step over both.
struct Bench {
    device: Cpu,
    adapter: Adapter<Cpu>,
    step: TrainStep<Cpu>,
}

impl Bench {
    fn new(config: &ModelConfig, quant: Quant, options: &LoraOptions, plan: StepPlan) -> Self {
        let device = Cpu::new(Arena::unlimited()).unwrap();
        let base = Base::load(&device, config, &HashedCheckpoint::new(config), quant, &mut Silent).unwrap();
        let mut adapter = Adapter::zeros(&device, config, options).unwrap();
        adapter.set_tensors(config, &hashed::adapter(config, options)).unwrap();
        let step = TrainStep::new(Arc::new(base), Some(options), plan).unwrap();
        Self { device, adapter, step }
    }

    fn run(&mut self, packed: &Packed, scale: f32) -> (LossSum, Vec<f32>) {
        let mut gradients = Gradients::new(&self.adapter).unwrap();
        let loss = self.step.forward_backward(&self.adapter, &packed.batch(), &mut gradients, scale).unwrap();
        (loss, gradients.download().unwrap())
    }
}

fn norm(x: &[f32]) -> f64 {
    x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt()
}

fn assert_near(what: &str, found: &[f32], expected: &[f32], tolerance: f64) {
    let difference: Vec<f32> = found.iter().zip(expected).map(|(a, b)| a - b).collect();
    let error = norm(&difference) / norm(expected);
    assert!(norm(expected) > 0.0 && error < tolerance, "{what}: off by {error:e}");
}

/// The same with every expert chosen: where the choice changes, the loss jumps and has no slope.
fn smooth(mut config: ModelConfig) -> ModelConfig {
    if let Some(experts) = &mut config.experts {
        experts.routing.n_used = experts.routing.n_experts;
    }
    config
}

/// The loss along the gradient of one factor must change as the gradient says.
fn check_differences(config: &ModelConfig, options: &LoraOptions) {
    let packed = Packed::new(&[9, 1, 70, 13]);
    let mut bench = Bench::new(config, Quant::Q4KM, options, StepPlan::new(config, 93));
    let (_, gradient) = bench.run(&packed, 1.0);
    let at = bench.adapter.weights().unwrap();
    let members: Vec<_> = bench.adapter.layout().members().map(|(layer, _, m)| (layer, m.clone())).collect();
    let adapted = config.family.targets().filter(|(role, _)| options.targets.contains(role));
    assert_eq!(members.len(), config.n_layers * adapted.count());
    for (layer, member) in members {
        for (factor, range) in [("A", member.a), ("B", member.b)] {
            let slope = norm(&gradient[range.clone()]);
            assert!(slope > 0.0, "{:?} {factor} of layer {layer} gets no gradient", member.role);
            let step = (0.1 / slope).min(0.02);
            let mut loss_at = |distance: f64| {
                let mut moved = at.clone();
                for i in range.clone() {
                    moved[i] += (distance * f64::from(gradient[i]) / slope) as f32;
                }
                bench.adapter.set_weights(&moved).unwrap();
                bench.step.evaluate(Some(&bench.adapter), &packed.batch()).unwrap().sum_nll
            };
            let difference = (loss_at(step) - loss_at(-step)) / (2.0 * step);
            let error = (difference / slope - 1.0).abs();
            let role = member.role;
            assert!(error < DIFFERENCE_TOLERANCE, "{role:?} {factor} of layer {layer}: off by {error:e}");
        }
    }
}

#[test]
fn gradients_of_qwen3_equal_finite_differences() {
    check_differences(&config(Family::Qwen3), &options());
}

#[test]
fn gradients_of_llama_equal_finite_differences() {
    check_differences(&config(Family::Llama), &options());
}

#[test]
fn gradients_of_qwen2_equal_finite_differences() {
    check_differences(&config(Family::Qwen2), &options());
}

#[test]
fn gradients_of_phi3_equal_finite_differences() {
    check_differences(&config(Family::Phi3), &options());
}

#[test]
fn gradients_of_gemma3_equal_finite_differences() {
    check_differences(&config(Family::Gemma3), &options());
}

#[test]
fn gradients_of_starcoder2_equal_finite_differences() {
    check_differences(&config(Family::StarCoder2), &options());
}

#[test]
fn gradients_of_mamba2_equal_finite_differences() {
    check_differences(&config(Family::Mamba2), &options());
}

#[test]
fn gradients_of_deepseek2_equal_finite_differences() {
    check_differences(&smooth(config(Family::DeepSeek2)), &options());
}

#[test]
fn gradients_of_some_targets_equal_finite_differences() {
    use model::family::Role::{Down, K, Up};
    let targets = vec![Up, K, Down];
    let options =
        LoraOptions { rank: 3, alpha: 6.0, rank_stabilised: true, targets, ..LoraOptions::default() };
    check_differences(&config(Family::Qwen3), &options);
}

/// The masks follow from the seed, so that the dropped loss is a function like any other.
#[test]
fn gradients_with_dropout_equal_finite_differences() {
    for family in [Family::Qwen3, Family::Phi3, Family::StarCoder2, Family::Mamba2, Family::DeepSeek2] {
        let config = smooth(config(family));
        let plan = StepPlan { mlp_tile_tokens: 40, ..StepPlan::new(&config, 93) };
        let mut bench = Bench::new(&config, Quant::Q4KM, &LoraOptions { dropout: 0.3, ..options() }, plan);
        bench.step.seed_dropout(7);
        let packed = Packed::new(&[9, 1, 70, 13]);
        let (dropped, gradient) = bench.run(&packed, 1.0);
        let kept = bench.step.evaluate(Some(&bench.adapter), &packed.batch()).unwrap();
        assert!((dropped.sum_nll / kept.sum_nll - 1.0).abs() > 1e-4, "a step drops, an evaluation does not");
        let at = bench.adapter.weights().unwrap();
        let slope = norm(&gradient);
        let mut loss_at = |distance: f64| {
            let moved = at.iter().zip(&gradient);
            let moved: Vec<f32> = moved.map(|(w, g)| w + (distance * f64::from(*g) / slope) as f32).collect();
            bench.adapter.set_weights(&moved).unwrap();
            bench.run(&packed, 1.0).0.sum_nll
        };
        let step = (0.1 / slope).min(0.02);
        let error = ((loss_at(step) - loss_at(-step)) / (2.0 * step) / slope - 1.0).abs();
        assert!(error < DIFFERENCE_TOLERANCE, "{family:?}: off by {error:e}");
        bench.adapter.set_weights(&at).unwrap();
        bench.step.seed_dropout(8);
        assert!(bench.run(&packed, 1.0).0 != dropped, "another seed drops others");
    }
}

/// A connection's gradient is the slope of the loss when A averages equal parts of its input, or B repeats it.
#[test]
fn gradients_of_elastic_connections_equal_finite_differences() {
    let config = config(Family::Qwen3);
    let options = LoraOptions { elastic: true, ..options() };
    let packed = Packed::new(&[9, 1, 70, 13]);
    let mut bench = Bench::new(&config, Quant::Q4KM, &options, StepPlan::new(&config, 93));
    let at = bench.adapter.weights().unwrap();
    let mut gradients = Gradients::new(&bench.adapter).unwrap();
    bench.step.forward_backward(&bench.adapter, &packed.batch(), &mut gradients, 1.0).unwrap();
    let mut optimizer = AdamW::new(&bench.adapter, AdamWOptions::default()).unwrap();
    optimizer.update(&mut bench.adapter, &mut gradients, 0.0).unwrap();
    assert!(bench.adapter.weights().unwrap() == at, "a rate of zero moves nothing");
    let slopes = gradients.download().unwrap();
    let members: Vec<_> = bench.adapter.layout().members().map(|(_, cols, m)| (cols, m.clone())).collect();
    let (mut differences, mut gathered) = (Vec::new(), Vec::new());
    for (cols, member) in members {
        let (rank, rows) = (member.rank, member.rows);
        let averages = (0..rank * cols).filter(|i| i % cols / (cols / rank) == i / cols);
        let averages: Vec<_> = averages.map(|i| (member.a.start + i, rank as f32 / cols as f32)).collect();
        let repeats = (0..rows * rank).filter(|i| i / rank / (rows / rank) == i % rank);
        let repeats: Vec<_> = repeats.map(|i| (member.b.start + i, 1.0)).collect();
        assert_eq!((averages.len(), repeats.len()), (cols, rows));
        for (place, pattern) in member.elastic.clone().unwrap().zip([averages, repeats]) {
            let mut loss_at = |distance: f32| {
                let mut moved = at.clone();
                pattern.iter().for_each(|(i, factor)| moved[*i] += distance * factor);
                bench.adapter.set_weights(&moved).unwrap();
                bench.step.evaluate(Some(&bench.adapter), &packed.batch()).unwrap().sum_nll
            };
            let step = (0.1 / slopes[place].abs()).min(0.02 / pattern[0].1);
            differences.push(((loss_at(step) - loss_at(-step)) / (2.0 * f64::from(step))) as f32);
            gathered.push(slopes[place]);
        }
    }
    // Some slopes are near zero and drown in rounding by themselves.
    assert_near("connections", &differences, &gathered, 4.0 * DIFFERENCE_TOLERANCE);
}

/// With lengths equal to the rows' own, DoRA is LoRA.
#[test]
fn dora_begins_as_the_adapter_without_it() {
    let config = config(Family::Qwen2);
    let packed = Packed::new(&[30, 12]);
    let plan = StepPlan::new(&config, 42);
    let mut plain = Bench::new(&config, Quant::Q4KM, &options(), plan);
    let mut dora = Bench::new(&config, Quant::Q4KM, &LoraOptions { dora: true, ..options() }, plan);
    dora.adapter.set_magnitudes(&dora.step.base().clone()).unwrap();
    let (expected, found) = (plain.run(&packed, 1.0).0.sum_nll, dora.run(&packed, 1.0).0.sum_nll);
    assert!((found / expected - 1.0).abs() < ORDER_TOLERANCE, "{found} against {expected}");
}

#[test]
fn packed_equals_one_by_one() {
    for family in Family::ALL {
        check_packing(&config(family));
    }
}

fn check_packing(config: &ModelConfig) {
    let mut bench = Bench::new(config, Quant::Q4KM, &options(), StepPlan::new(config, 300));
    let packed = Packed::new(&[80, 3, 129, 66]);
    let (together, gradient) = bench.run(&packed, 0.5);
    let mut sum = LossSum::default();
    let mut gradients = Gradients::new(&bench.adapter).unwrap();
    for alone in packed.alone() {
        sum += bench.step.forward_backward(&bench.adapter, &alone.batch(), &mut gradients, 0.5).unwrap();
    }
    assert_eq!(together.n_targets, sum.n_targets);
    assert!((together.sum_nll / sum.sum_nll - 1.0).abs() < PACKING_TOLERANCE);
    assert_near("gradient", &gradients.download().unwrap(), &gradient, PACKING_TOLERANCE);
}

#[test]
fn recompute_and_tiles_change_nothing() {
    for family in Family::ALL {
        check_recompute(&config(family), &options());
        let dora = family != Family::DeepSeek2;
        check_recompute(&config(family), &LoraOptions { dropout: 0.2, dora, ..options() });
    }
}

fn check_recompute(config: &ModelConfig, options: &LoraOptions) {
    let packed = Packed::new(&[80, 3, 129]);
    let whole = StepPlan {
        max_tokens: 212,
        mlp_tile_tokens: 212,
        loss_tile_tokens: 212,
        loss_tile_vocab: 300,
        layer_inputs: LayerInputs::F32,
        kept_layers: 3,
    };
    let (direct_loss, direct) = Bench::new(config, Quant::Q4KM, options, whole).run(&packed, 1.0);
    for kept_layers in [0, 1, 2] {
        let plan = StepPlan { kept_layers, ..whole };
        let (loss, again) = Bench::new(config, Quant::Q4KM, options, plan).run(&packed, 1.0);
        assert!(again == direct && loss == direct_loss, "a layer that ran again has the same bits");
    }
    let tiled = StepPlan { mlp_tile_tokens: 50, loss_tile_tokens: 33, loss_tile_vocab: 77, ..whole };
    for kept_layers in [0, 2] {
        let plan = StepPlan { kept_layers, ..tiled };
        let (loss, gradient) = Bench::new(config, Quant::Q4KM, options, plan).run(&packed, 1.0);
        assert!((loss.sum_nll / direct_loss.sum_nll - 1.0).abs() < ORDER_TOLERANCE);
        assert_near("tiled gradient", &gradient, &direct, ORDER_TOLERANCE);
    }
}

/// Kept in 16 bits, layer inputs change a loss as rounding its stream does, and the gradient with it; what runs again
/// runs from what was kept.
#[test]
fn rounded_layer_inputs_change_little_and_repeat_to_the_bit() {
    /// Eight bits of each of a stream's values, through layers of random weights, which damp nothing: up to 0.05.
    const ROUNDING_TOLERANCE: f64 = 0.1;
    for family in Family::ALL {
        let (config, packed) = (config(family), Packed::new(&[80, 3, 129]));
        let exact = StepPlan { mlp_tile_tokens: 212, ..StepPlan::new(&config, 212) };
        let run = |plan| Bench::new(&config, Quant::Q4KM, &options(), plan).run(&packed, 1.0);
        let (exact_loss, exact_gradient) = run(exact);
        let rounded = StepPlan { layer_inputs: LayerInputs::BF16, ..exact };
        let (loss, gradient) = run(rounded);
        assert!(loss != exact_loss && (loss.sum_nll / exact_loss.sum_nll - 1.0).abs() < 1e-3, "{family:?}");
        assert_near("rounded gradient", &gradient, &exact_gradient, ROUNDING_TOLERANCE);
        let kept = run(StepPlan { kept_layers: 2, ..rounded });
        assert!(kept == (loss, gradient), "{family:?}: a layer that ran again has the same bits");
    }
}

/// A few updates; returns losses, adapter and optimiser state.
fn train(threads: usize, bench: &mut Bench) -> (Vec<f64>, Vec<f32>, Vec<f32>) {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let (config, options) = (config(Family::Qwen3), options());
    bench.adapter.set_tensors(&config, &hashed::adapter(&config, &options)).unwrap();
    pool.install(|| {
        let mut optimizer = AdamW::new(&bench.adapter, AdamWOptions::default()).unwrap();
        let mut gradients = Gradients::new(&bench.adapter).unwrap();
        let mut losses = Vec::new();
        for lengths in [[80, 40, 90], [100, 10, 71], [66, 64, 65]] {
            let packed = Packed::new(&lengths);
            gradients.zero().unwrap();
            let loss =
                bench.step.forward_backward(&bench.adapter, &packed.batch(), &mut gradients, 0.01).unwrap();
            let norm = optimizer.update(&mut bench.adapter, &mut gradients, 1e-2).unwrap();
            losses.extend([loss.mean(), norm]);
        }
        let MomentValues::F32(second) = optimizer.moment(Moment::Second).unwrap() else { panic!() };
        (losses, bench.adapter.weights().unwrap(), second)
    })
}

#[test]
fn training_repeats_bit_by_bit() {
    let config = config(Family::Qwen3);
    let mut bench = Bench::new(&config, Quant::Q4KM, &options(), StepPlan::new(&config, 220));
    let first = train(2, &mut bench);
    assert!(first.0[0].is_finite() && first.1.iter().all(|x| x.is_finite()));
    for _ in 0..3 {
        assert!(train(2, &mut bench) == first, "two runs on two threads differ");
    }
    assert!(train(1, &mut bench) == first, "one thread and two differ");
}

#[test]
fn no_dense_copy_outlives_its_use_and_the_plan_is_what_is_drawn() {
    let config = config(Family::Qwen3);
    let plan = StepPlan::new(&config, 100);
    let options = options();
    let mut bench = Bench::new(&config, Quant::Q4KM, &options, plan);
    let base = bench.step.base().clone();
    let fixed: u64 = fixed_bytes(Precision::F32).iter().map(|(_, bytes)| bytes).sum();
    let planned: u64 = workspace_bytes(&config, Some(&options), &plan).unwrap().iter().map(|(_, b)| b).sum();
    let resident = fixed + base.bytes() + 4 * bench.adapter.n_weights() as u64 + planned;
    assert_eq!(bench.device.arena().used_bytes(), resident);

    let before = bench.device.arena().peak_bytes();
    let mut gradients = Gradients::new(&bench.adapter).unwrap();
    let drawn = bench.device.arena().used_bytes();
    let packed = Packed::new(&[50, 50]);
    bench.step.forward_backward(&bench.adapter, &packed.batch(), &mut gradients, 1.0).unwrap();
    assert_eq!(bench.device.arena().used_bytes(), drawn, "a step draws nothing");
    assert_eq!(bench.device.arena().peak_bytes(), before.max(drawn));
    assert_eq!(bench.device.dense().live_bytes(), 0);
    let largest = 4 * (config.vocab_size * config.hidden) as u64;
    let peak = bench.device.dense().peak_bytes();
    assert!(
        peak > 0 && peak <= fixed.max(largest),
        "at most what is packed, or one chunk while loading: {peak}"
    );
}

#[test]
fn a_cap_below_the_plan_is_refused_with_what_and_how_much() {
    let config = config(Family::Llama);
    let plan = StepPlan::new(&config, 64);
    let device = Cpu::new(Arena::unlimited()).unwrap();
    let base =
        Base::load(&device, &config, &HashedCheckpoint::new(&config), Quant::Q4KM, &mut Silent).unwrap();
    let fixed: u64 = fixed_bytes(Precision::F32).iter().map(|(_, bytes)| bytes).sum();
    let capped = Cpu::new(Arena::new(base.bytes() + fixed + (64 << 10))).unwrap();
    let base =
        Base::load(&capped, &config, &HashedCheckpoint::new(&config), Quant::Q4KM, &mut Silent).unwrap();
    let refused = TrainStep::new(Arc::new(base), None, plan).err().unwrap().to_string();
    assert!(refused.starts_with("no memory left for activations: "), "{refused}");
}

#[test]
fn batches_that_cannot_run_are_refused() {
    let config = config(Family::Llama);
    let mut bench = Bench::new(&config, Quant::F32, &options(), StepPlan::new(&config, 8));
    let good = Packed::new(&[4, 4]);
    type Change = dyn Fn(&mut Packed);
    let refused = |bench: &mut Bench, change: &Change| {
        let mut packed = Packed { starts: good.starts.clone(), ..Packed::new(&[4, 4]) };
        change(&mut packed);
        bench.step.evaluate(None, &packed.batch()).err().map(|error| error.to_string()).unwrap_or_default()
    };
    assert_eq!(refused(&mut bench, &|_| {}), "");
    let cases: [(&Change, &str); 6] = [
        (&|p| p.tokens.clear(), "batch: number of tokens is 0, expected 1 to 8"),
        (&|p| p.tokens[2] = 300, "batch: token id is 300, expected below 300"),
        (&|p| p.targets[2] = 301, "batch: target id is 301, expected below 300"),
        (&|p| p.positions[2] = 8, "batch: position is 8, expected below 8"),
        (&|p| p.positions.truncate(3), "batch: number of positions is 3, expected 8"),
        (&|p| p.starts[1] = 8, "batch: list of sequence starts is [0, 8], expected 0, ascending, below 8"),
    ];
    for (change, expected) in cases {
        assert_eq!(refused(&mut bench, change), expected);
    }
}

#[test]
fn the_loss_of_nothing_is_zero_and_moves_nothing() {
    let config = config(Family::Qwen3);
    let mut bench = Bench::new(&config, Quant::Q4KM, &options(), StepPlan::new(&config, 20));
    let mut packed = Packed::new(&[20]);
    packed.targets.fill(IGNORE);
    let (loss, gradient) = bench.run(&packed, 1.0);
    assert_eq!((loss.sum_nll, loss.n_targets), (0.0, 0));
    assert!(gradient.iter().all(|&g| g == 0.0));
}
