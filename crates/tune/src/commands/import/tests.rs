//! Configurations as people write them, and what is said of each of their keys.

use super::*;
use expect_test::{Expect, expect};

/// The recipe, then what became of the settings.
fn check(text: &str, expected: Expect) {
    let (draft, unset) = convert(Path::new("config.yml"), text, None).unwrap_or_else(|f| panic!("{f:?}"));
    let recipe = draft.recipe.render();
    if let Err(failure) = crate::recipe_text::check(Path::new("config.toml"), &recipe) {
        panic!("{}\n{recipe}", failure.message);
    }
    let mut shown = format!("{} · {} carried\n{recipe}\n", draft.tool, draft.n_carried);
    for note in &draft.notes {
        shown += &format!("{:?}: {}\n", note.fate, describe(note));
    }
    if !unset.is_empty() {
        shown += &format!("unset: {}\n", unset.join(", "));
    }
    expected.assert_eq(&shown);
}

fn refused(name: &str, text: &str, expected: Expect) {
    let failure = convert(Path::new(name), text, None).err().expect("refused");
    expected.assert_eq(&format!("{}\nhint: {}", failure.message, failure.hint.unwrap_or_default()));
}

const AXOLOTL: &str = "base_model: org/some-1b
load_in_8bit: false
load_in_4bit: true
strict: false
datasets:
  - path: org/instructions
    type: alpaca
  - path: more.jsonl
    type: chat_template
    field_messages: turns
    roles_to_train: [user, assistant]
val_set_size: 0.1
output_dir: ./out
adapter: qlora
lora_model_dir:
sequence_len: 4096
sample_packing: true
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_modules: [q_proj, v_proj, lm_head]
peft_layers_to_transform: [0, 1]
wandb_project:
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 1.5
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 2e-4
cosine_min_lr_ratio: 0.1
train_on_inputs: true
bf16: auto
flash_attention: true
gradient_checkpointing: true
early_stopping_patience: 3
loss_watchdog_threshold: 5.0
warmup_steps: 10
warmup_ratio: 0.1
evals_per_epoch: 4
saves_per_epoch: 1
weight_decay: 0.01
special_tokens:
  pad_token: <pad>
  eos_token: <end>
my_own_key: 5
";

#[test]
fn axolotl_qlora() {
    check(
        AXOLOTL,
        expect![[r#"
            axolotl · 22 carried
            # From config.yml, a configuration of axolotl, by `tune import`.
            # Each comment names the key that a line comes from.

            [model]
            base = "org/some-1b"              # base_model: org/some-1b
            # load_in_4bit: true: the blocks that the export will have, instead of bitsandbytes' nf4 ("nf4" for those)
            quant = "q4_k_m"

            [adapter]
            rank = 32                         # lora_r: 32
            alpha = 16                        # lora_alpha: 16
            dropout = 0.05                    # lora_dropout: 0.05
            targets = ['layers\.(0|1)\.(.*\.)?(q_proj|v_proj)']  # peft_layers_to_transform: [0, 1]

            [data]
            train = ["datasets/instructions.jsonl", { path = "more.jsonl", fields = { messages = "turns" } }]  # datasets: [{path: org/instructions, type: alpaca}, {path: more.jsonl, …
            max_seq_len = 4096                # sequence_len: 4096
            on_too_long = "drop"              # excess_length_strategy is not set: axolotl's default
            packing = true                    # sample_packing: true
            val_split = 0.1                   # val_set_size: 0.1
            train_on = "all"                  # train_on_inputs: true

            [train]
            batch_size = 2                    # micro_batch_size: 2
            gradient_accumulation_steps = 4   # gradient_accumulation_steps: 4
            # num_epochs: 1.5: an epoch is passed whole here: 2 instead; set `max_steps` for a part of one
            epochs = 2
            learning_rate = 2e-4              # learning_rate: 2e-4
            scheduler = "cosine"              # lr_scheduler: cosine
            min_learning_rate = 2e-5          # cosine_min_lr_ratio: 0.1
            warmup = 10                       # warmup_steps: 10
            moments = "int8"                  # optimizer: adamw_bnb_8bit
            weight_decay = 0.01               # weight_decay: 0.01
            early_stopping = 3                # early_stopping_patience: 3

            Changed: load_in_4bit: true (line 3) · the blocks that the export will have, instead of bitsandbytes' nf4 ("nf4" for those)
            Changed: lora_target_modules: [q_proj, v_proj, lm_head] (line 21) · embedding and head stay as they are
            ToDo: datasets: [{path: org/instructions, type: alpaca}, {path: more.jsonl, … (line 5) · org/instructions is no file: save its rows as JSON, one a line, in datasets/instructions.jsonl
            ToDo: datasets: [{path: org/instructions, type: alpaca}, {path: more.jsonl, … (line 5) · more.jsonl is not here: put it there
            Changed: num_epochs: 1.5 (line 26) · an epoch is passed whole here: 2 instead; set `max_steps` for a part of one
            Left: datasets.roles_to_train: [user, assistant] (line 11) · what is learnt is set for all rows alike, by `data.train_on`, and the data sets differ
            Left: warmup_ratio: 0.1 (line 38) · `warmup_steps` counts where both are given
            Left: loss_watchdog_threshold: 5.0 (line 36) · a step that stands out is skipped by `train.max_spike`, which is a factor of the usual loss
            Left: evals_per_epoch: 4 (line 39) · how many steps an epoch has is not known before the rows are encoded: `train.eval_every` has its default
            Left: saves_per_epoch: 1 (line 40) · how many steps an epoch has is not known before the rows are encoded: `train.checkpoint_every` has its default
            Idle: special_tokens.pad_token: <pad> (line 43) · nothing is padded
            Left: special_tokens.eos_token: <end> (line 44) · the base's tokenizer stays as it is
            Idle: load_in_8bit: false (line 2) · so it is here in any case
            Idle: adapter: qlora (line 14) · so it is here in any case
            Idle: strict: false (line 4) · done otherwise here, with the same result
            Idle: output_dir: ./out (line 13) · done otherwise here, with the same result
            Idle: bf16: auto (line 32) · precision and kernels are chosen for the processor (`model.compute`)
            Idle: flash_attention: true (line 33) · precision and kernels are chosen for the processor (`model.compute`)
            Idle: gradient_checkpointing: true (line 34) · the plan decides what is kept in memory, within `budget.memory`
            Unknown: my_own_key: 5 (line 45)
            unset: lora_model_dir, wandb_project
        "#]],
    );
}

#[test]
fn axolotl_with_next_to_nothing() {
    check(
        "base_model: b\nlearning_rate: 1e-3\nmicro_batch_size: 1\n",
        expect![[r#"
        axolotl · 3 carried
        # From config.yml, a configuration of axolotl, by `tune import`.
        # Each comment names the key that a line comes from.

        [model]
        base = "b"                        # base_model: b

        [data]
        train = "datasets/train.jsonl"    # no data set was named: put your rows there
        max_seq_len = 512                 # sequence_len is not set: axolotl's default
        on_too_long = "drop"              # excess_length_strategy is not set: axolotl's default
        val_split = 0.0                   # val_set_size is not set: axolotl's default
        train_on = "assistant"            # train_on_inputs is not set: axolotl's default

        [train]
        batch_size = 1                    # micro_batch_size: 1
        epochs = 1                        # num_epochs is not set: axolotl's default
        learning_rate = 0.001             # learning_rate: 0.001
        scheduler = "cosine"              # lr_scheduler is not set: axolotl's default
        warmup = 0.03                     # warmup_ratio is not set: axolotl's default

        Changed: adapter · without one axolotl trains all weights; here an adapter is trained, with the defaults of a recipe
        ToDo: datasets · no data set is named: put rows as JSON, one a line, in datasets/train.jsonl
    "#]],
    );
    check(
        "base_model: b\nlearning_rate: high\nmicro_batch_size: 1\nrl: kto\nval_set_size: 100\n",
        expect![[r#"
        axolotl · 3 carried
        # From config.yml, a configuration of axolotl, by `tune import`.
        # Each comment names the key that a line comes from.

        [model]
        base = "b"                        # base_model: b

        [data]
        train = "datasets/train.jsonl"    # no data set was named: put your rows there
        max_seq_len = 512                 # sequence_len is not set: axolotl's default
        on_too_long = "drop"              # excess_length_strategy is not set: axolotl's default
        # val_set_size: 100: a number of rows, and how many there are is not known: a share, the default, instead
        val_split = 0.05
        train_on = "assistant"            # train_on_inputs is not set: axolotl's default

        [train]
        batch_size = 1                    # micro_batch_size: 1
        epochs = 1                        # num_epochs is not set: axolotl's default
        scheduler = "cosine"              # lr_scheduler is not set: axolotl's default
        warmup = 0.03                     # warmup_ratio is not set: axolotl's default

        Changed: adapter · without one axolotl trains all weights; here an adapter is trained, with the defaults of a recipe
        ToDo: datasets · no data set is named: put rows as JSON, one a line, in datasets/train.jsonl
        Changed: val_set_size: 100 (line 5) · a number of rows, and how many there are is not known: a share, the default, instead
        ToDo: rl: kto (line 4) · there is no such way of learning here: the recipe learns from the rows as they are, which need an answer each
        Left: learning_rate: high (line 2) · a number was expected; the recipe has its default
    "#]],
    );
}

#[test]
fn mlx_lm() {
    check(
        "model: mlx-community/Some-4bit
train: true
fine_tune_type: lora
optimizer: adamw
data: /rows
seed: 7
num_layers: 16
batch_size: 4
iters: 1000
grad_accumulation_steps: 4
learning_rate: 1e-5
steps_per_report: 10
steps_per_eval: 200
adapter_path: adapters
max_seq_length: 2048
mask_prompt: true
grad_checkpoint: false
test: true
lora_parameters:
  keys: [self_attn.q_proj, self_attn.v_proj]
  rank: 8
  scale: 20.0
  dropout: 0.0
lr_schedule:
  name: cosine_decay
  warmup: 100
  warmup_init: 1e-7
  arguments: [1e-5, 1000, 1e-7]
",
        expect![[r#"
            mlx-lm · 18 carried
            # From config.yml, a configuration of mlx-lm, by `tune import`.
            # Each comment names the key that a line comes from.

            [model]
            base = "mlx-community/Some-4bit"  # model: mlx-community/Some-4bit
            quant = "q4_k_m"                  # as the base is in MLX: the blocks that the export will have

            [adapter]
            rank = 8                          # lora_parameters.rank: 8
            dropout = 0.0                     # lora_parameters.dropout: 0.0
            # lora_parameters.scale: 20.0: it multiplies directly there; here alpha = scale x rank = 20 x 8
            alpha = 160
            targets = ["self_attn.q_proj", "self_attn.v_proj"]  # lora_parameters.keys: [self_attn.q_proj, self_attn.v_proj]

            [data]
            train = "/rows/train.jsonl"       # data: /rows
            validation = "/rows/valid.jsonl"  # beside the training rows
            train_on = "last"                 # mask_prompt: true
            max_seq_len = 2048                # max_seq_length: 2048
            on_too_long = "truncate"          # as mlx-lm does, with a warning

            [train]
            gradient_accumulation_steps = 4   # grad_accumulation_steps: 4
            batch_size = 4                    # batch_size: 4
            max_steps = 250                   # iters: 1000: 1000 micro-batches are 250 steps of 4
            eval_every = 50                   # steps_per_eval: 200: 200 micro-batches are 50 steps of 4
            checkpoint_every = 25             # save_every is not set: mlx-lm's default
            learning_rate = 1e-5              # lr_schedule.arguments: [1e-5, 1000, 1e-7]
            scheduler = "cosine"              # lr_schedule.name: cosine_decay
            warmup = 100                      # lr_schedule.warmup: 100
            min_learning_rate = 1e-7          # lr_schedule.arguments
            weight_decay = 0.01               # MLX's default for adamw
            seed = 7                          # seed: 7
            max_grad_norm = 0.0               # mlx-lm does not clip gradients

            [eval]
            test = "/rows/test.jsonl"         # test: true

            ToDo: model: mlx-community/Some-4bit (line 1) · MLX's weights are not read here: name the repository that they were made from
            Changed: lora_parameters.scale: 20.0 (line 22) · it multiplies directly there; here alpha = scale x rank = 20 x 8
            Left: num_layers: 16 (line 7) · mlx-lm adapts the last 16 layers alone, and how many the base has is not known before it is here: all are adapted (a pattern in `adapter.targets` chooses, or import again with the base's folder)
            ToDo: data: /rows (line 5) · /rows/train.jsonl is not here: put it there
            ToDo: data: /rows (line 5) · /rows/valid.jsonl is not here: put it there
            ToDo: data: /rows (line 5) · /rows/test.jsonl is not here: put it there
            Idle: test: true (line 18) · `eval.test` names the rows of a test
            Changed: iters: 1000 (line 9) · 1000 micro-batches are 250 steps of 4
            Changed: steps_per_eval: 200 (line 13) · 200 micro-batches are 50 steps of 4
            Idle: lr_schedule.warmup_init: 1e-7 (line 27) · the first step has one part of the rate, none has zero
            Idle: optimizer: adamw (line 4) · training is by AdamW
            Idle: fine_tune_type: lora (line 3) · so it is here in any case
            Idle: train: true (line 2) · done otherwise here, with the same result
            Idle: steps_per_report: 10 (line 12) · every step is in the run's metrics.jsonl; nothing is sent anywhere
            Idle: adapter_path: adapters (line 14) · done otherwise here, with the same result
            Idle: grad_checkpoint: false (line 17) · the plan decides what is kept in memory, within `budget.memory`
        "#]],
    );
    check(
        "model: b\niters: 100\nnum_layers: -1\nfine_tune_type: dora\n",
        expect![[r#"
            mlx-lm · 3 carried
            # From config.yml, a configuration of mlx-lm, by `tune import`.
            # Each comment names the key that a line comes from.

            [model]
            base = "b"                        # model: b
            quant = "q4_k_m"                  # as the base is in MLX: the blocks that the export will have

            [adapter]
            rank = 8                          # lora_parameters.rank is not set: mlx-lm's default
            alpha = 160                       # scale is not set: mlx-lm's 20 x rank 8
            targets = "all-linear"            # keys are not set: mlx-lm's default
            dora = true                       # fine_tune_type: dora

            [data]
            train = "datasets/train.jsonl"    # no data set was named: put your rows there
            train_on = "all"                  # mask_prompt is not set: mlx-lm's default
            max_seq_len = 2048                # max_seq_length is not set: mlx-lm's default
            on_too_long = "truncate"          # as mlx-lm does, with a warning

            [train]
            batch_size = 4                    # batch_size is not set: mlx-lm's default
            max_steps = 100                   # iters: 100
            eval_every = 200                  # steps_per_eval is not set: mlx-lm's default
            checkpoint_every = 100            # save_every is not set: mlx-lm's default
            learning_rate = 1e-5              # learning_rate is not set: mlx-lm's default
            scheduler = "constant"            # mlx-lm's, without an lr_schedule
            warmup = 0.0                      # mlx-lm's, without an lr_schedule
            weight_decay = 0.0                # MLX's default for adam
            seed = 0                          # seed is not set: mlx-lm's default
            max_grad_norm = 0.0               # mlx-lm does not clip gradients

            Changed: lora_parameters.keys · not set: all linear layers, as in mlx-lm today; older versions adapt q_proj and v_proj alone
            ToDo: data · no data set is named: put rows as JSON, one a line, in datasets/train.jsonl
            Changed: mask_prompt · not set: questions are learnt with the answers, as there; "assistant" learns the answers alone
            Idle: num_layers: -1 (line 3) · so it is here in any case
            Idle: fine_tune_type: dora (line 4) · so it is here in any case
        "#]],
    );
}

#[test]
fn llama_factory() {
    check(
        "### model
model_name_or_path: org/instruct
### method
stage: sft
do_train: true
finetuning_type: lora
lora_target: all
lora_rank: 16
loraplus_lr_ratio: 16.0
### dataset
dataset: identity,alpaca_demo
template: llama3
cutoff_len: 2048
max_samples: 1000
overwrite_cache: true
output_dir: saves
logging_steps: 10
save_steps: 500
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
val_size: 100
eval_strategy: steps
eval_steps: 500
",
        expect![[r#"
            LLaMA-Factory · 15 carried
            # From config.yml, a configuration of LLaMA-Factory, by `tune import`.
            # Each comment names the key that a line comes from.

            [model]
            base = "org/instruct"             # model_name_or_path: org/instruct
            quant = "bf16"                    # quantization_bit is not set: the base in 16 bits, as there

            [adapter]
            rank = 16                         # lora_rank: 16
            alpha = 32                        # lora_alpha is not set: twice the rank, as there
            targets = "all-linear"            # lora_target: all

            [data]
            train = ["datasets/identity.jsonl", "datasets/alpaca_demo.jsonl"]  # dataset: identity,alpaca_demo
            max_seq_len = 2048                # cutoff_len: 2048
            on_too_long = "truncate"          # as LLaMA-Factory does
            train_on = "assistant"            # train_on_prompt is not set: the answers
            # val_size: 100: a number of rows, and how many there are is not known: a share, the default, instead
            val_split = 0.05

            [train]
            lora_plus_ratio = 16.0            # loraplus_lr_ratio: 16.0
            batch_size = 1                    # per_device_train_batch_size: 1
            gradient_accumulation_steps = 8   # gradient_accumulation_steps: 8
            epochs = 3                        # num_train_epochs: 3.0
            learning_rate = 1e-4              # learning_rate: 1e-4
            scheduler = "cosine"              # lr_scheduler_type: cosine
            warmup = 0.1                      # warmup_ratio: 0.1
            eval_every = 500                  # eval_steps: 500
            checkpoint_every = 500            # save_steps: 500

            Changed: quantization_bit · the base is held in 16 bits, as there; "q4_k_m" takes a quarter of the memory
            Idle: stage: sft (line 4) · learnt from the rows as they are
            ToDo: dataset: identity,alpaca_demo (line 11) · identity is no file: save its rows as JSON, one a line, in datasets/identity.jsonl
            ToDo: dataset: identity,alpaca_demo (line 11) · alpaca_demo is no file: save its rows as JSON, one a line, in datasets/alpaca_demo.jsonl
            Left: template: llama3 (line 12) · the base's own chat template is used, in training and in the export
            Left: max_samples: 1000 (line 14) · all rows are trained on: shorten the file, or set `train.max_steps`
            Changed: val_size: 100 (line 26) · a number of rows, and how many there are is not known: a share, the default, instead
            Idle: finetuning_type: lora (line 6) · so it is here in any case
            Idle: eval_strategy: steps (line 27) · so it is here in any case
            Idle: do_train: true (line 5) · done otherwise here, with the same result
            Idle: overwrite_cache: true (line 15) · done otherwise here, with the same result
            Idle: output_dir: saves (line 16) · done otherwise here, with the same result
            Idle: logging_steps: 10 (line 17) · every step is in the run's metrics.jsonl; nothing is sent anywhere
            Idle: bf16: true (line 25) · precision and kernels are chosen for the processor (`model.compute`)
        "#]],
    );
}

#[test]
fn unsloth_command_line() {
    check(
        "model: unsloth/Some-7B-unsloth-bnb-4bit
data:
  dataset: org/alpaca
  format_type: auto
training:
  training_type: lora
  max_seq_length: 2048
  load_in_4bit: true
  output_dir: outputs
  num_epochs: 1
  learning_rate: 0.0002
  batch_size: 2
  gradient_accumulation_steps: 4
  warmup_steps: 5
  max_steps: 0
  save_steps: 0
  weight_decay: 0.01
  random_seed: 3407
  packing: false
  train_on_completions: false
  gradient_checkpointing: unsloth
lora:
  lora_r: 64
  lora_alpha: 16
  target_modules: q_proj, v_proj
  use_rslora: true
  use_loftq: false
  finetune_mlp_modules: true
logging:
  enable_wandb: false
",
        expect![[r#"
            Unsloth · 17 carried
            # From config.yml, a configuration of Unsloth, by `tune import`.
            # Each comment names the key that a line comes from.

            [model]
            # model: unsloth/Some-7B-unsloth-bnb-4bit: bitsandbytes' weights are not read here: the model that they were made from
            base = "unsloth/Some-7B"
            # training.load_in_4bit: true: the blocks that the export will have, instead of bitsandbytes' nf4 ("nf4" for those)
            quant = "q4_k_m"

            [adapter]
            rank = 64                         # lora.lora_r: 64
            alpha = 16                        # lora.lora_alpha: 16
            rslora = true                     # lora.use_rslora: true
            targets = ["q_proj", "v_proj"]    # lora.target_modules: q_proj, v_proj

            [data]
            train = "datasets/alpaca.jsonl"   # data.dataset: org/alpaca
            max_seq_len = 2048                # training.max_seq_length: 2048
            on_too_long = "truncate"          # as Unsloth does
            val_split = 0.0                   # Unsloth's command line sets no rows aside
            # training.train_on_completions: false: questions are learnt with the answers, as there; "assistant" learns the answers alone
            train_on = "all"
            packing = false                   # training.packing: false

            [train]
            batch_size = 2                    # training.batch_size: 2
            gradient_accumulation_steps = 4   # training.gradient_accumulation_steps: 4
            epochs = 1                        # training.num_epochs: 1
            learning_rate = 2e-4              # training.learning_rate: 2e-4
            scheduler = "linear"              # Unsloth's
            warmup = 5                        # training.warmup_steps: 5
            weight_decay = 0.01               # training.weight_decay: 0.01
            seed = 3407                       # training.random_seed: 3407

            Changed: model: unsloth/Some-7B-unsloth-bnb-4bit (line 1) · bitsandbytes' weights are not read here: the model that they were made from
            Changed: training.load_in_4bit: true (line 8) · the blocks that the export will have, instead of bitsandbytes' nf4 ("nf4" for those)
            Idle: lora.finetune_mlp_modules: true (line 28) · `adapter.targets` says it
            ToDo: data.dataset: org/alpaca (line 3) · org/alpaca is no file: save its rows as JSON, one a line, in datasets/alpaca.jsonl
            Idle: data.format_type: auto (line 4) · rows are told apart by their own keys
            Changed: training.train_on_completions: false (line 20) · questions are learnt with the answers, as there; "assistant" learns the answers alone
            Idle: training.training_type: lora (line 6) · so it is here in any case
            Idle: training.max_steps: 0 (line 15) · so it is here in any case
            Idle: training.save_steps: 0 (line 16) · so it is here in any case
            Idle: lora.use_loftq: false (line 27) · so it is here in any case
            Idle: training.output_dir: outputs (line 9) · a run is kept in runs/<name of the recipe>
            Idle: training.gradient_checkpointing: unsloth (line 21) · the plan decides what is kept in memory, within `budget.memory`
            Idle: logging.enable_wandb: false (line 30) · every step is in the run's metrics.jsonl; nothing is sent anywhere
        "#]],
    );
}

#[test]
fn torchtune_config() {
    check(
        "output_dir: /tmp/out
model:
  _component_: torchtune.models.llama3_1.qlora_llama3_1_8b
  lora_attn_modules: ['q_proj', 'v_proj', 'output_proj']
  apply_lora_to_mlp: True
  apply_lora_to_output: False
  lora_rank: 8
  lora_alpha: 16
tokenizer:
  _component_: torchtune.models.llama3.llama3_tokenizer
  path: /tmp/base/tokenizer.model
  max_seq_len: null
checkpointer:
  _component_: torchtune.training.FullModelHFCheckpointer
  checkpoint_dir: /tmp/base
  checkpoint_files: [a, b]
resume_from_checkpoint: False
dataset:
  _component_: torchtune.datasets.alpaca_cleaned_dataset
  packed: True
seed: null
shuffle: True
batch_size: 2
optimizer:
  _component_: torchao.optim.AdamW8bit
  lr: 3e-4
lr_scheduler:
  _component_: torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup
  num_warmup_steps: 100
epochs: 1
max_steps_per_epoch: null
gradient_accumulation_steps: 16
clip_grad_norm: null
compile: False
metric_logger:
  log_dir: ${output_dir}
",
        expect![[r#"
            torchtune · 14 carried
            # From config.yml, a configuration of torchtune, by `tune import`.
            # Each comment names the key that a line comes from.

            [model]
            base = "/tmp/base"                # checkpointer.checkpoint_dir: /tmp/base
            # model._component_: torchtune.models.llama3_1.qlora_llama3_1_8b: the blocks that the export will have, instead of torchao's nf4 ("nf4" for such)
            quant = "q4_k_m"

            [adapter]
            rank = 8                          # model.lora_rank: 8
            alpha = 16                        # model.lora_alpha: 16
            targets = ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]  # model.lora_attn_modules: [q_proj, v_proj, output_proj]

            [data]
            train = "datasets/alpaca_cleaned_dataset.jsonl"  # dataset._component_: torchtune.datasets.alpaca_cleaned_dataset
            train_on = "assistant"            # the answers; some of torchtune's data sets learn the questions too
            packing = true                    # dataset.packed: true
            val_split = 0.0                   # no rows are set aside, as there

            [train]
            batch_size = 2                    # batch_size: 2
            gradient_accumulation_steps = 16  # gradient_accumulation_steps: 16
            epochs = 1                        # epochs: 1
            learning_rate = 3e-4              # optimizer.lr: 3e-4
            weight_decay = 0.01               # optimizer.weight_decay is not set: torchtune's default
            moments = "int8"                  # optimizer._component_: torchao.optim.AdamW8bit
            # lr_scheduler._component_: torchtune.training.lr_schedulers.get_cosine_schedule_with_wa…
            scheduler = "cosine"
            warmup = 100                      # lr_scheduler.num_warmup_steps: 100
            max_grad_norm = 0.0               # clip_grad_norm is not set: no clipping

            Changed: model._component_: torchtune.models.llama3_1.qlora_llama3_1_8b (line 3) · the blocks that the export will have, instead of torchao's nf4 ("nf4" for such)
            Idle: model.apply_lora_to_mlp: true (line 5) · in `adapter.targets` as gate_proj, up_proj and down_proj
            ToDo: dataset._component_: torchtune.datasets.alpaca_cleaned_dataset (line 19) · alpaca_cleaned_dataset is no file: save its rows as JSON, one a line, in datasets/alpaca_cleaned_dataset.jsonl
            Idle: dataset._component_: torchtune.datasets.alpaca_cleaned_dataset (line 19) · rows are told apart by their own keys
            Idle: model.apply_lora_to_output: false (line 6) · so it is here in any case
            Idle: resume_from_checkpoint: false (line 17) · so it is here in any case
            Idle: output_dir: /tmp/out (line 1) · done otherwise here, with the same result
            Idle: tokenizer._component_: torchtune.models.llama3.llama3_tokenizer (line 10) · done otherwise here, with the same result
            Idle: tokenizer.path: /tmp/base/tokenizer.model (line 11) · done otherwise here, with the same result
            Idle: checkpointer._component_: torchtune.training.FullModelHFCheckpointer (line 14) · done otherwise here, with the same result
            Idle: checkpointer.checkpoint_files: [a, b] (line 16) · done otherwise here, with the same result
            Idle: shuffle: true (line 22) · done otherwise here, with the same result
            Idle: compile: false (line 34) · precision and kernels are chosen for the processor (`model.compute`)
            Idle: metric_logger.log_dir: ${output_dir} (line 36) · every step is in the run's metrics.jsonl; nothing is sent anywhere
            unset: tokenizer.max_seq_len, seed, max_steps_per_epoch, clip_grad_norm
        "#]],
    );
}

#[test]
fn what_is_no_configuration_is_refused() {
    refused(
        "train.py",
        "x = 1\n",
        expect![[r#"
        train.py is a program, and what it trains is known only by running it
        hint: import reads configurations; `tune init` asks for the few things that a recipe needs"#]],
    );
    refused(
        "c.yml",
        "from unsloth import FastLanguageModel\nimport torch\n",
        expect![[r#"
        c.yml is a program, and what it trains is known only by running it
        hint: import reads configurations; `tune init` asks for the few things that a recipe needs"#]],
    );
    refused(
        "c.yml",
        "learning_rate: 1\n",
        expect![[r#"
        c.yml has none of the keys by which a tool is known
        hint: read are axolotl (base_model), LLaMA-Factory (model_name_or_path), mlx-lm (model, iters), Unsloth's command line (model, training) and torchtune (_component_); --from says which it is"#]],
    );
    refused(
        "c.yml",
        "just a text\n",
        expect![[r#"
        c.yml has no keys
        hint: read are axolotl (base_model), LLaMA-Factory (model_name_or_path), mlx-lm (model, iters), Unsloth's command line (model, training) and torchtune (_component_); --from says which it is"#]],
    );
    refused(
        "c.yml",
        "base_model: a\nbase_model: b\n",
        expect![[r#"
        c.yml:2: the key `base_model` occurs twice
        hint: "#]],
    );
    refused(
        "c.yml",
        "base_model: [\n",
        expect![[r#"
        c.yml:2: while parsing a node, did not find expected node content
        hint: "#]],
    );
}

/// Keys and values are other people's text: they stay inside comments and strings.
#[test]
fn a_hostile_text_stays_text() {
    let text = "base_model: \"a\\n[train]\\nepochs = 99\\n\"\nlearning_rate: 1e-4\n\"x\\ny\": 1\nlora_r: 8\nmicro_batch_size: 1\noptimizer: \"sgd\\n[budget]\\n\"\n";
    let (draft, _) = convert(Path::new("c\n[x].yml"), text, None).expect("converted");
    let recipe = crate::recipe_text::check(Path::new("r.toml"), &draft.recipe.render()).expect("a recipe");
    assert_eq!(recipe.model.base.to_str(), Some("a\n[train]\nepochs = 99\n"));
    assert_eq!(recipe.train.epochs, Some(1));
}

/// Every key of a file is somewhere: in the recipe, in a note, or among those set to nothing.
#[test]
fn nothing_is_dropped() {
    let text = "base_model: b\nload_in_4bit: true\nadapter: qlora\nlora_r: 8\nlora_target_linear: true\nval_set_size: 0\n\
                micro_batch_size: 1\nsequence_len: 512\nlearning_rate: 1\na: 1\nb:\nc: {d: [1, {e: 2}]}\nbf16: true\n";
    let (draft, unset) = convert(Path::new("c.yml"), text, None).expect("converted");
    let shown =
        draft.recipe.render() + &draft.notes.iter().map(describe).collect::<String>() + &unset.join(" ");
    for key in [
        "base_model",
        "load_in_4bit",
        "lora_r",
        "lora_target_linear",
        "val_set_size",
        "micro_batch_size",
        "sequence_len",
        "learning_rate",
        "a: 1",
        "b",
        "c.d",
        "bf16",
    ] {
        assert!(shown.contains(key), "{key}: {shown}");
    }
}

/// Files that are nearly right: whatever is changed in one, there is a recipe or a refusal.
#[test]
fn changed_files_never_break_it() {
    const PIECES: [&str; 16] =
        ["[", "{", "}", "]", ": ", "- ", "&a ", "*a", "<<: ", "\"", "'", "\n", "    ", "|", "9e999", "\u{1}"];
    let mut random = 1u64;
    let mut next = |limit: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % limit
    };
    let (mut n_read, mut n_refused) = (0, 0);
    for _ in 0..3000 {
        let mut text = AXOLOTL.to_owned();
        for _ in 0..1 + next(4) {
            let at = next(text.len());
            if text.is_char_boundary(at) {
                text.insert_str(at, PIECES[next(PIECES.len())]);
            }
            let from = next(text.len());
            let to = (from + next(12)).min(text.len());
            if next(3) == 0 && text.is_char_boundary(from) && text.is_char_boundary(to) {
                text.replace_range(from..to, "");
            }
        }
        match convert(Path::new("c.yml"), &text, Some(Tool::Axolotl)) {
            Ok((draft, _)) => {
                let _: toml::Table = draft.recipe.render().parse().expect("TOML");
                n_read += 1;
            }
            Err(failure) => {
                assert!(failure.message.starts_with("c.yml"), "{}", failure.message);
                n_refused += 1;
            }
        }
    }
    assert!(n_read > 100 && n_refused > 100, "{n_read} {n_refused}");
}

#[test]
fn axolotl_keys_of_rows_and_roles_that_agree_are_carried() {
    check(
        "\
base_model: models/base
datasets:
  - path: talks.jsonl
    type: chat_template
    field_messages: turns
    message_property_mappings:
      role: speaker
      content: words
      tool_calls: calls
    message_field_training: counts
    roles_to_train: [human, gpt]
    train_on_eos: turn
  - path: shared.jsonl
    type: chat_template
    field_messages: conversations
    message_property_mappings: {role: from, content: value}
    roles_to_train: [user, assistant]
    train_on_eos: last
  - path: asked.jsonl
    type:
      field_instruction: question
      field_output: answer
      format: 'Q: {instruction}'
    roles_to_train: [user, assistant]
test_datasets:
  - path: held.jsonl
  - path: out.jsonl
    type: completion
    field: body
use_tensorboard: true
report_to: wandb
adapter: qlora
",
        expect![[r#"
            axolotl · 7 carried
            # From config.yml, a configuration of axolotl, by `tune import`.
            # Each comment names the key that a line comes from.

            [model]
            base = "models/base"              # base_model: models/base

            [data]
            train = [{ path = "talks.jsonl", fields = { messages = "turns", role = "speaker", content = "words", weight = "counts" } }, "shared.jsonl", { path = "asked.jsonl", fields = { instruction = "question", output = "answer" } }]  # datasets: [{path: talks.jsonl, type: chat_template, field_messages: tu…
            max_seq_len = 512                 # sequence_len is not set: axolotl's default
            on_too_long = "drop"              # excess_length_strategy is not set: axolotl's default
            val_split = 0.0                   # val_set_size is not set: axolotl's default
            validation = ["held.jsonl", { path = "out.jsonl", fields = { text = "body" } }]  # test_datasets: [{path: held.jsonl}, {path: out.jsonl, type: completion, fie…
            train_on = ["user", "assistant"]  # datasets.roles_to_train: [user, assistant]

            [train]
            batch_size = 1                    # micro_batch_size is not set: axolotl's default
            epochs = 1                        # num_epochs is not set: axolotl's default
            scheduler = "cosine"              # lr_scheduler is not set: axolotl's default
            warmup = 0.03                     # warmup_ratio is not set: axolotl's default
            tensorboard = true                # use_tensorboard: true

            Left: datasets.message_property_mappings.tool_calls: calls (line 9) · not the name of a key that is read here
            Left: datasets.train_on_eos: last (line 18) · the end of each turn that is learnt is learnt with it, and no other
            Left: datasets.type.format: Q: {instruction} (line 23) · the base's chat template puts a row into words, in training and wherever the result is run
            ToDo: datasets: [{path: talks.jsonl, type: chat_template, field_messages: tu… (line 2) · talks.jsonl is not here: put it there
            ToDo: datasets: [{path: talks.jsonl, type: chat_template, field_messages: tu… (line 2) · shared.jsonl is not here: put it there
            ToDo: datasets: [{path: talks.jsonl, type: chat_template, field_messages: tu… (line 2) · asked.jsonl is not here: put it there
            ToDo: test_datasets: [{path: held.jsonl}, {path: out.jsonl, type: completion, fie… (line 25) · held.jsonl is not here: put it there
            ToDo: test_datasets: [{path: held.jsonl}, {path: out.jsonl, type: completion, fie… (line 25) · out.jsonl is not here: put it there
            Idle: report_to: wandb (line 31) · every step is in the run's metrics.jsonl; nothing is sent anywhere
            Idle: adapter: qlora (line 32) · so it is here in any case
        "#]],
    );
}
