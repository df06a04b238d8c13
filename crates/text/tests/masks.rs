//! What the assistant says in published templates: as transformers finds it in templates that mark it, and as the
//! families' own templates let it be told.
//!
//! Goldens: scripts/golden/text_templates.py.

mod shared;

use expect_test::{Expect, expect};
use serde_json::Value;
use sha2::{Digest, Sha256};
use shared::masks::{shown, with_control_tokens};
use shared::{asset, model, tokenizer};
use text::{ChatTemplate, GenerationPrompt, Message, Tokenizer, TrainOn, encode_conversation, end_of_turn};

const GOLDEN: &str = include_str!("golden/templates.json");

/// Tokens that close a turn in the templates which mark the assistant's part.
const CLOSING: &[&str] = &[
    "</s>",
    "<|END_OF_TURN_TOKEN|>",
    "<|END_RESPONSE|>",
    "<｜end▁of▁sentence｜>",
    "<turn|>",
    "<end_of_turn>",
    "<|call|>",
    "<|end|>",
    "<|return|>",
    "<end_of_utterance>",
    "<|eot_id|>",
    "<|user|>",
    "<|observation|>",
];

/// Templates and conversations with another mask than transformers', for a reason.
const KNOWN: &[(&str, &str, &str)] = &[(
    "diffusion_gemma_training.jinja",
    "tool",
    "no control token closes the call, so that nothing could end it",
)];

/// What is to be learnt, but for white space at its ends; parts with nothing else between are one.
fn trimmed(shown: &str) -> String {
    let mut text = String::new();
    for part in shown.split_inclusive('⟧') {
        let Some((before, spoken)) = part.strip_suffix('⟧').and_then(|part| part.split_once('⟦')) else {
            text += part;
            continue;
        };
        let (start, end) = (spoken.trim_start(), spoken.trim_end());
        let (lead, trail) = (&spoken[..spoken.len() - start.len()], &spoken[end.len()..]);
        let between = text.rfind('⟧').filter(|at| text[at + '⟧'.len_utf8()..].trim().is_empty());
        match between.filter(|_| before.trim().is_empty()) {
            Some(at) => text = format!("{}{}{before}{lead}", &text[..at], &text[at + '⟧'.len_utf8()..]),
            None => text += &format!("{before}{lead}⟦"),
        }
        text += &format!("{}⟧{trail}", spoken.trim());
    }
    text
}

fn digest(text: &str) -> String {
    Sha256::digest(text).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn marked_parts_are_those_of_transformers() {
    let golden: Value = serde_json::from_str(GOLDEN).unwrap();
    let tokenizer = with_control_tokens(CLOSING);
    let (mut checked, mut wrong) = (0, Vec::new());
    for (name, cases) in golden["marked"].as_object().unwrap() {
        let Some(path) = asset(name) else { continue };
        let source = std::fs::read_to_string(path).unwrap();
        let template = ChatTemplate::from_source(&source, "<s>", "</s>").unwrap();
        let template = template.at(golden["now"].as_i64().unwrap());
        for (title, expected) in cases.as_object().unwrap() {
            let messages: Vec<Message> =
                serde_json::from_value(golden["conversations"][title].clone()).unwrap();
            let got = match encode_conversation(&tokenizer, &template, &messages, TrainOn::Assistant) {
                Ok(encoded) => trimmed(&shown(&tokenizer, &encoded)),
                Err(error) => error.to_string(),
            };
            let known = KNOWN.iter().any(|(template, other, _)| name.ends_with(template) && title == other);
            if expected != "error" && title != "open" && !known {
                checked += 1;
                if digest(&got) != expected.as_str().unwrap() {
                    wrong.push(format!("{name} · {title} · {got}"));
                }
            }
        }
    }
    assert!(checked > 140 || asset("chat-templates").is_none(), "only {checked} renderings");
    assert!(wrong.is_empty(), "{}", wrong.join("\n----\n"));
}

/// Tokens with which turns and their parts open.
const OPENING: &[&str] = &[
    "<s>",
    "<|START_OF_TURN_TOKEN|>",
    "<|CHATBOT_TOKEN|>",
    "<|USER_TOKEN|>",
    "<|SYSTEM_TOKEN|>",
    "<|START_RESPONSE|>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<|turn>",
    "<start_of_turn>",
    "<|assistant|>",
    "<|system|>",
    "<|start|>",
    "<|message|>",
    "<|channel|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
];

/// Templates whose marks begin or end elsewhere than behind the generation prompt and with the first control token
/// behind the content.
const MARKED_OTHERWISE: &[(&str, &str)] = &[
    ("cohere2", "a response and its turn are closed by a token each, both marked"),
    ("deepseekv3", "the assistant's header is marked"),
    ("diffusion_gemma", "a call is closed by no control token"),
    ("gptoss", "the assistant's header is marked"),
    ("nemotron_3", "an empty thought that is no part of the generation prompt is marked"),
    ("phi3", "the end of the whole text is marked"),
    ("qwen3_5", "the opening of a thought, part of the generation prompt, is marked"),
    ("qwen3_6", "the opening of a thought, part of the generation prompt, is marked"),
];

/// A family's template for inference beside its template for training: what is told from the one has to be what
/// the other marks.
#[test]
fn inferred_parts_are_the_marked_ones() {
    let golden: Value = serde_json::from_str(GOLDEN).unwrap();
    let tokenizer = with_control_tokens(&[CLOSING, OPENING].concat());
    let mut compared = 0;
    for name in golden["marked"].as_object().unwrap().keys() {
        if MARKED_OTHERWISE.iter().any(|(template, _)| name.contains(&format!("/{template}"))) {
            continue;
        }
        let load = |name: &str| {
            let source = std::fs::read_to_string(asset(name)?).unwrap();
            Some(ChatTemplate::from_source(&source, "<s>", "</s>").unwrap())
        };
        let (Some(training), Some(plain)) = (load(name), load(&name.replace("_training", ""))) else {
            continue;
        };
        for (title, conversation) in golden["conversations"].as_object().unwrap() {
            let messages: Vec<Message> = serde_json::from_value(conversation.clone()).unwrap();
            let rendered = |template: &ChatTemplate| template.render(&messages, GenerationPrompt::Omit).ok();
            if title == "open" || rendered(&plain).is_none() || rendered(&plain) != rendered(&training) {
                continue;
            }
            let learnt = |template: &ChatTemplate| {
                let encoded = encode_conversation(&tokenizer, template, &messages, TrainOn::Assistant);
                trimmed(&shown(&tokenizer, &encoded.unwrap()))
            };
            assert_eq!(learnt(&plain), learnt(&training), "{name}, {title}");
            compared += 1;
        }
    }
    assert!(compared > 60 || asset("chat-templates").is_none(), "only {compared} pairs");
}

#[track_caller]
fn check(tokenizer: &Tokenizer, template: &ChatTemplate, conversation: &[(&str, &str)], expected: Expect) {
    let messages: Vec<Message> =
        conversation.iter().map(|(role, content)| Message::new(*role, *content)).collect();
    let encoded = encode_conversation(tokenizer, template, &messages, TrainOn::Assistant).unwrap();
    expected.assert_eq(&shown(tokenizer, &encoded));
    let closing = tokenizer.token(end_of_turn(tokenizer, template).unwrap()).unwrap();
    let turns = conversation.iter().filter(|(role, _)| *role == "assistant").count();
    assert_eq!(shown(tokenizer, &encoded).matches(&format!("{closing}⟧")).count(), turns, "{closing}");
}

const TWO_TURNS: &[(&str, &str)] = &[
    ("system", "Be brief."),
    ("user", "1 + 1?"),
    ("assistant", "2"),
    ("user", " Sure? "),
    ("assistant", "Yes.\n"),
];

const THOUGHTS: &[(&str, &str)] = &[
    ("user", "1 + 1?"),
    ("assistant", "<think>\nOne more than one.\n</think>\n\n2"),
    ("user", "Sure?"),
    ("assistant", "<think>\nStill.\n</think>\n\nYes."),
];

#[test]
fn gemma_3() {
    let tokenizer = with_control_tokens(&["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"]);
    let Some(config) = asset("models/gemma-3-4b-it/tokenizer_config.json") else { return };
    let config: Value = serde_json::from_slice(&std::fs::read(config).unwrap()).unwrap();
    let source = config["chat_template"].as_str().unwrap();
    let template = ChatTemplate::from_source(source, "<bos>", "<eos>").unwrap();
    check(
        &tokenizer,
        &template,
        TWO_TURNS,
        expect![[r#"
        <bos><start_of_turn>user
        Be brief.

        1 + 1?<end_of_turn>
        <start_of_turn>model
        ⟦2<end_of_turn>⟧
        <start_of_turn>user
        Sure?<end_of_turn>
        <start_of_turn>model
        ⟦Yes.<end_of_turn>⟧
    "#]],
    );
    let folder = ChatTemplate::from_dir(&model("gemma-3-4b-it").unwrap(), &tokenizer).unwrap();
    let messages = [Message::new("user", "a"), Message::new("assistant", "b")];
    let rendered = folder.render(&messages, GenerationPrompt::Omit).unwrap();
    assert_eq!(rendered, template.render(&messages, GenerationPrompt::Omit).unwrap());
}

#[test]
fn deepseek_r1_distill() {
    let Some(tokenizer) = asset("models/DeepSeek-Coder-V2-Lite-Instruct").map(|dir| tokenizer(&dir)) else {
        return;
    };
    for name in ["Llama-8B", "Qwen-32B"] {
        let path = format!("chat-templates/llama.cpp/deepseek-ai-DeepSeek-R1-Distill-{name}.jinja");
        let Some(path) = asset(&path) else { continue };
        let source = std::fs::read_to_string(path).unwrap();
        let (bos, eos) = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>");
        let template = ChatTemplate::from_source(&source, bos, eos).unwrap();
        check(
            &tokenizer,
            &template,
            TWO_TURNS,
            expect![[r#"
            <｜begin▁of▁sentence｜>Be brief.<｜User｜>1 + 1?<｜Assistant｜>⟦2<｜end▁of▁sentence｜>⟧<｜User｜> Sure? <｜Assistant｜>⟦Yes.
            <｜end▁of▁sentence｜>⟧"#]],
        );
        check(
            &tokenizer,
            &template,
            THOUGHTS,
            expect![[r#"
            <｜begin▁of▁sentence｜><｜User｜>1 + 1?<｜Assistant｜>⟦

            2<｜end▁of▁sentence｜>⟧<｜User｜>Sure?<｜Assistant｜>⟦

            Yes.<｜end▁of▁sentence｜>⟧"#]],
        );
    }
}

#[test]
fn phi_4_mini_reasoning() {
    let Some(tokenizer) = asset("models/Phi-4-mini-instruct").map(|dir| tokenizer(&dir)) else { return };
    let Some(folder) = model("Phi-4-mini-reasoning") else { return };
    let template = ChatTemplate::from_dir(&folder, &tokenizer).unwrap();
    check(
        &tokenizer,
        &template,
        TWO_TURNS,
        expect![[r#"
        <|system|>Your name is Phi, an AI math expert developed by Microsoft. Be brief.<|end|><|user|>1 + 1?<|end|><|assistant|>⟦2<|end|>⟧<|user|>Sure? <|end|><|assistant|>⟦Yes.
        <|end|>⟧<|endoftext|>"#]],
    );
    check(
        &tokenizer,
        &template,
        THOUGHTS,
        expect![[r#"
        <|system|>Your name is Phi, an AI math expert developed by Microsoft.<|end|><|user|>1 + 1?<|end|><|assistant|>⟦<think>
        One more than one.
        </think>

        2<|end|>⟧<|user|>Sure?<|end|><|assistant|>⟦<think>
        Still.
        </think>

        Yes.<|end|>⟧<|endoftext|>"#]],
    );
}

#[test]
fn phi_3_5() {
    let tokenizer =
        with_control_tokens(&["<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"]);
    let Some(path) = asset("chat-templates/llama.cpp/microsoft-Phi-3.5-mini-instruct.jinja") else { return };
    let source = std::fs::read_to_string(path).unwrap();
    let template = ChatTemplate::from_source(&source, "<s>", "<|endoftext|>").unwrap();
    check(
        &tokenizer,
        &template,
        TWO_TURNS,
        expect![[r#"
        <|system|>
        Be brief.<|end|>
        <|user|>
        1 + 1?<|end|>
        <|assistant|>
        ⟦2<|end|>⟧
        <|user|>
         Sure? <|end|>
        <|assistant|>
        ⟦Yes.
        <|end|>⟧
        <|endoftext|>"#]],
    );
}

#[test]
fn llama_3_3() {
    let Some(tokenizer) = asset("models/Llama-3.1-8B-Instruct").map(|dir| tokenizer(&dir)) else { return };
    let path = "chat-templates/llama.cpp/meta-llama-Llama-3.3-70B-Instruct.jinja";
    let Some(path) = asset(path) else { return };
    let source = std::fs::read_to_string(path).unwrap();
    let template = ChatTemplate::from_source(&source, "<|begin_of_text|>", "<|eot_id|>").unwrap();
    check(
        &tokenizer,
        &template,
        TWO_TURNS,
        expect![[r#"
        <|begin_of_text|><|start_header_id|>system<|end_header_id|>

        Cutting Knowledge Date: December 2023
        Today Date: 26 Jul 2024

        Be brief.<|eot_id|><|start_header_id|>user<|end_header_id|>

        1 + 1?<|eot_id|><|start_header_id|>assistant<|end_header_id|>

        ⟦2<|eot_id|>⟧<|start_header_id|>user<|end_header_id|>

        Sure?<|eot_id|><|start_header_id|>assistant<|end_header_id|>

        ⟦Yes.<|eot_id|>⟧"#]],
    );
}

/// As DeepSeek-R1's: the generation prompt opens a thought, no turn keeps its own.
#[test]
fn thoughts_that_a_template_drops() {
    let source = "{% for m in messages %}<|im_start|>{{ m.role }}\n\
        {{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}\
        {% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}";
    let template = ChatTemplate::from_source(source, "", "").unwrap();
    let turns = [THOUGHTS, &[("user", "a"), ("assistant", "b")]].concat();
    check(
        &with_control_tokens(&[]),
        &template,
        &turns,
        expect![[r#"
        <|im_start|>user
        1 + 1?<|im_end|>
        <|im_start|>assistant
        ⟦

        2<|im_end|>⟧
        <|im_start|>user
        Sure?<|im_end|>
        <|im_start|>assistant
        ⟦

        Yes.<|im_end|>⟧
        <|im_start|>user
        a<|im_end|>
        <|im_start|>assistant
        ⟦b<|im_end|>⟧
    "#]],
    );
}
