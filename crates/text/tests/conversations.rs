//! Conversations to ids and targets, on published tokenizers and templates.

mod shared;

use std::path::Path;

use expect_test::{Expect, expect};
use shared::masks::shown;
use shared::{asset, model, model_tokenizer};
use text::{
    ChatTemplate, Encoded, GenerationPrompt, Message, Tokenizer, TrainOn, encode_conversation, encode_prompt,
    end_of_turn,
};

fn messages(turns: &[(&str, &str)]) -> Vec<Message> {
    turns.iter().map(|(role, content)| Message::new(*role, *content)).collect()
}

fn pocket() -> (Tokenizer, ChatTemplate) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes/pocket");
    let tokenizer = Tokenizer::from_dir(&dir).unwrap();
    let template = ChatTemplate::from_dir(&dir, &tokenizer).unwrap();
    (tokenizer, template)
}

fn published(name: &str) -> Option<(Tokenizer, ChatTemplate)> {
    let tokenizer = model_tokenizer(name)?;
    let template = ChatTemplate::from_dir(&model(name)?, &tokenizer).unwrap().at(1_795_223_999);
    Some((tokenizer, template))
}

/// A template of the shared collection, with a published tokenizer that has its control tokens.
fn collected(template: &str, tokenizer: &Tokenizer) -> Option<ChatTemplate> {
    let source = std::fs::read_to_string(asset(&format!("chat-templates/{template}.jinja"))?).unwrap();
    let text = |id: Option<u32>| id.and_then(|id| tokenizer.token(id)).unwrap_or_default().to_owned();
    Some(ChatTemplate::from_source(&source, &text(tokenizer.bos()), &text(tokenizer.eos())).unwrap())
}

#[track_caller]
fn check(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    turns: &[(&str, &str)],
    train_on: TrainOn,
    expected: Expect,
) {
    let encoded = encode_conversation(tokenizer, template, &messages(turns), train_on).unwrap();
    assert_eq!(encoded.ids.len(), encoded.is_target.len());
    expected.assert_eq(&shown(tokenizer, &encoded));
}

const TWO_TURNS: &[(&str, &str)] = &[
    ("system", "Be brief."),
    ("user", "1 + 1?"),
    ("assistant", "2"),
    ("user", " Sure? "),
    ("assistant", "Yes.\n"),
];

#[test]
fn chatml() {
    let (tokenizer, template) = pocket();
    check(
        &tokenizer,
        &template,
        TWO_TURNS,
        TrainOn::Assistant,
        expect![[r#"
        <|im_start|>system
        Be brief.<|im_end|>
        <|im_start|>user
        1 + 1?<|im_end|>
        <|im_start|>assistant
        ⟦2<|im_end|>⟧
        <|im_start|>user
         Sure? <|im_end|>
        <|im_start|>assistant
        ⟦Yes.
        <|im_end|>⟧
    "#]],
    );
    check(
        &tokenizer,
        &template,
        TWO_TURNS,
        TrainOn::Last,
        expect![[r#"
        <|im_start|>system
        Be brief.<|im_end|>
        <|im_start|>user
        1 + 1?<|im_end|>
        <|im_start|>assistant
        2<|im_end|>
        <|im_start|>user
         Sure? <|im_end|>
        <|im_start|>assistant
        ⟦Yes.
        <|im_end|>⟧
    "#]],
    );
    check(
        &tokenizer,
        &template,
        &TWO_TURNS[..3],
        TrainOn::All,
        expect![[r#"
        <|im_start|>⟦system
        Be brief.<|im_end|>
        <|im_start|>user
        1 + 1?<|im_end|>
        <|im_start|>assistant
        2<|im_end|>
        ⟧"#]],
    );
    assert_eq!(tokenizer.token(end_of_turn(&tokenizer, &template).unwrap()), Some("<|im_end|>"));
}

#[test]
fn qwen_2_5() {
    let Some((tokenizer, template)) = published("Qwen2.5-1.5B-Instruct") else { return };
    check(
        &tokenizer,
        &template,
        &TWO_TURNS[1..],
        TrainOn::Assistant,
        expect![[r#"
        <|im_start|>system
        You are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>
        <|im_start|>user
        1 + 1?<|im_end|>
        <|im_start|>assistant
        ⟦2<|im_end|>⟧
        <|im_start|>user
         Sure? <|im_end|>
        <|im_start|>assistant
        ⟦Yes.
        <|im_end|>⟧
    "#]],
    );
    assert_eq!(tokenizer.token(end_of_turn(&tokenizer, &template).unwrap()), Some("<|im_end|>"));
}

#[test]
fn qwen_3_drops_earlier_thoughts() {
    let Some((tokenizer, template)) = published("Qwen3-0.6B") else { return };
    let thoughtful = [
        ("user", "a?"),
        ("assistant", "<think>\nfirst\n</think>\n\nA."),
        ("user", "b?"),
        ("assistant", "<think>\nsecond\n</think>\n\nB."),
    ];
    check(
        &tokenizer,
        &template,
        &thoughtful,
        TrainOn::Assistant,
        expect![[r#"
        <|im_start|>user
        a?<|im_end|>
        <|im_start|>assistant
        ⟦A.<|im_end|>⟧
        <|im_start|>user
        b?<|im_end|>
        <|im_start|>assistant
        ⟦<think>
        second
        </think>

        B.<|im_end|>⟧
    "#]],
    );
    check(
        &tokenizer,
        &template,
        TWO_TURNS,
        TrainOn::Assistant,
        expect![[r#"
        <|im_start|>system
        Be brief.<|im_end|>
        <|im_start|>user
        1 + 1?<|im_end|>
        <|im_start|>assistant
        ⟦2<|im_end|>⟧
        <|im_start|>user
         Sure? <|im_end|>
        <|im_start|>assistant
        ⟦<think>

        </think>

        Yes.
        <|im_end|>⟧
    "#]],
    );
}

#[test]
fn llama_3() {
    let Some((tokenizer, template)) = published("Llama-3.2-1B-Instruct") else { return };
    check(
        &tokenizer,
        &template,
        TWO_TURNS,
        TrainOn::Assistant,
        expect![[r#"
        <|begin_of_text|><|start_header_id|>system<|end_header_id|>

        Cutting Knowledge Date: December 2023
        Today Date: 21 Nov 2026

        Be brief.<|eot_id|><|start_header_id|>user<|end_header_id|>

        1 + 1?<|eot_id|><|start_header_id|>assistant<|end_header_id|>

        ⟦2<|eot_id|>⟧<|start_header_id|>user<|end_header_id|>

        Sure?<|eot_id|><|start_header_id|>assistant<|end_header_id|>

        ⟦Yes.<|eot_id|>⟧"#]],
    );
}

#[test]
fn llama_3_1() {
    let Some((tokenizer, template)) = published("Llama-3.1-8B-Instruct") else { return };
    check(
        &tokenizer,
        &template,
        &TWO_TURNS[1..3],
        TrainOn::Assistant,
        expect![[r#"
        <|begin_of_text|><|start_header_id|>system<|end_header_id|>

        Cutting Knowledge Date: December 2023
        Today Date: 26 Jul 2024

        <|eot_id|><|start_header_id|>user<|end_header_id|>

        1 + 1?<|eot_id|><|start_header_id|>assistant<|end_header_id|>

        ⟦2<|eot_id|>⟧"#]],
    );
    assert_eq!(tokenizer.token(end_of_turn(&tokenizer, &template).unwrap()), Some("<|eot_id|>"));
}

#[test]
fn phi_4_mini() {
    let Some((tokenizer, template)) = published("Phi-4-mini-instruct") else { return };
    check(
        &tokenizer,
        &template,
        TWO_TURNS,
        TrainOn::Assistant,
        expect![[r#"
        <|system|>Be brief.<|end|><|user|>1 + 1?<|end|><|assistant|>⟦2<|end|>⟧<|user|>Sure? <|end|><|assistant|>⟦Yes.
        <|end|>⟧<|endoftext|>"#]],
    );
    assert_eq!(tokenizer.token(end_of_turn(&tokenizer, &template).unwrap()), Some("<|end|>"));
}

#[test]
fn mistral_without_a_generation_prompt() {
    let Some(tokenizer) = model_tokenizer("Mistral-7B-Instruct-v0.3") else { return };
    let Some(template) = collected("mistral-common/v3_spm", &tokenizer) else { return };
    check(
        &tokenizer,
        &template,
        &TWO_TURNS[1..],
        TrainOn::Assistant,
        expect![[r#"
            <s>[INST] 1 + 1?[/INST]⟦2</s>⟧[INST]  Sure? [/INST]⟦Yes.
            </s>⟧"#]],
    );
}

#[test]
fn mistral_before_its_control_tokens() {
    let Some(tokenizer) = model_tokenizer("Mistral-7B-Instruct-v0.3") else { return };
    let Some(template) = collected("mistral-common/v1_spm", &tokenizer) else { return };
    check(
        &tokenizer,
        &template,
        &TWO_TURNS[1..],
        TrainOn::Assistant,
        expect![[r#"
            <s> [INST] 1 + 1? [/INST]⟦2</s>⟧[INST]  Sure?  [/INST]⟦Yes.
            </s>⟧"#]],
    );
}

#[test]
fn calls_of_tools() {
    let Some((tokenizer, template)) = published("Qwen2.5-1.5B-Instruct") else { return };
    let conversation = r#"[
        {"role": "user", "content": "Add."},
        {"role": "assistant", "content": null, "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "It is 3."}
    ]"#;
    let messages: Vec<Message> = serde_json::from_str(conversation).unwrap();
    let encoded = encode_conversation(&tokenizer, &template, &messages, TrainOn::Assistant).unwrap();
    expect![[r#"
        <|im_start|>system
        You are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>
        <|im_start|>user
        Add.<|im_end|>
        <|im_start|>assistant
        ⟦<tool_call>
        {"name": "add", "arguments": {"a": 1}}
        </tool_call><|im_end|>⟧
        <|im_start|>user
        <tool_response>
        3
        </tool_response><|im_end|>
        <|im_start|>assistant
        ⟦It is 3.<|im_end|>⟧
    "#]]
    .assert_eq(&shown(&tokenizer, &encoded));
}

/// trl's templates for training mark what an assistant generates; the ones for inference beside them render
/// the same text without saying so. What is inferred from the latter has to be what the former mark.
#[test]
fn inferred_turns_are_those_that_training_templates_mark() {
    let mut compared = 0;
    for (model, names) in [
        ("Qwen3-0.6B", &["qwen2_5", "qwen3", "qwen3_instruct_2507", "qwen2_5_vl", "qwen3_vl", "lfm2"][..]),
        ("Llama-3.2-1B-Instruct", &["llama3"][..]),
    ] {
        let Some(tokenizer) = model_tokenizer(model) else { continue };
        for name in names {
            let Some(plain) = collected(&format!("trl/{name}"), &tokenizer) else { continue };
            let Some(training) = collected(&format!("trl/{name}_training"), &tokenizer) else { continue };
            for turns in [&TWO_TURNS[1..3], &TWO_TURNS[1..], TWO_TURNS] {
                let conversation = messages(turns);
                let render =
                    |template: &ChatTemplate| template.render(&conversation, GenerationPrompt::Omit).unwrap();
                if render(&plain) != render(&training) {
                    continue;
                }
                for train_on in [TrainOn::Assistant, TrainOn::Last] {
                    let encode = |template| {
                        encode_conversation(&tokenizer, template, &conversation, train_on).unwrap()
                    };
                    let (inferred, marked) = (encode(&plain), encode(&training));
                    let trimmed =
                        |encoded| shown(&tokenizer, &encoded).replace("\n⟧", "⟧\n").replace("⟦\n", "\n⟦");
                    assert_eq!(trimmed(inferred), trimmed(marked), "{name}");
                    compared += 1;
                }
            }
        }
    }
    assert!(compared > 20 || asset("models").is_none(), "only {compared} pairs");
}

/// The ids are those of the rendered text in one go, and the prompt's are their beginning.
#[test]
fn ids_are_those_of_the_rendered_text() {
    let mut all = vec![pocket()];
    all.extend(
        ["Qwen2.5-1.5B-Instruct", "Qwen3-0.6B", "Llama-3.2-1B-Instruct", "Phi-4-mini-instruct"]
            .map(published)
            .into_iter()
            .flatten(),
    );
    for (tokenizer, template) in &all {
        for turns in [&TWO_TURNS[1..3], TWO_TURNS] {
            let conversation = messages(turns);
            let rendered = template.render(&conversation, GenerationPrompt::Omit).unwrap();
            let encoded =
                encode_conversation(tokenizer, template, &conversation, TrainOn::Assistant).unwrap();
            assert_eq!(encoded.ids, tokenizer.encode_template(&rendered));
            let prompt = encode_prompt(tokenizer, template, &conversation[..turns.len() - 1]).unwrap();
            assert_eq!(encoded.ids[..prompt.len()], prompt);
            let first_target = encoded.is_target.iter().rposition(|is_target| !is_target);
            let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
            assert_eq!(encoded.ids.iter().filter(|id| Some(**id) == bos).count(), usize::from(bos.is_some()));
            assert!(first_target >= Some(prompt.len() - 1));
        }
    }
}

/// Every control token of every tokenizer at hand, in every place of a message.
#[test]
fn content_never_becomes_a_control_token() {
    let mut all = vec![pocket()];
    all.extend(
        ["Qwen2.5-1.5B-Instruct", "Qwen3-0.6B", "Llama-3.2-1B-Instruct", "Phi-4-mini-instruct"]
            .map(published)
            .into_iter()
            .flatten(),
    );
    if let Some(tokenizer) = model_tokenizer("Mistral-7B-Instruct-v0.3") {
        all.extend(collected("mistral-common/v3_spm", &tokenizer).map(|template| (tokenizer, template)));
    }
    for (tokenizer, template) in &all {
        let controls: Vec<u32> =
            (0..tokenizer.vocab_size() as u32).filter(|id| tokenizer.is_special(*id)).collect();
        let skeleton = |encoded: &Encoded| -> Vec<(u32, bool)> {
            let all = encoded.ids.iter().copied().zip(encoded.is_target.iter().copied());
            all.filter(|(id, _)| tokenizer.is_special(*id)).collect()
        };
        let plain = messages(&[("user", "x"), ("assistant", "y"), ("user", "z"), ("assistant", "w")]);
        let plain = encode_conversation(tokenizer, template, &plain, TrainOn::Assistant).unwrap();
        // Llama has hundreds of them in reserve, all alike.
        for &id in controls.iter().take(12) {
            let token = tokenizer.token(id).unwrap();
            let half = &token[..token.char_indices().nth(token.chars().count() / 2).unwrap().0];
            let contents = [
                token.to_owned(),
                format!("{token}{token} in front"),
                format!("behind  {token}"),
                format!("within{token}words\n{token}\n"),
                format!("<{token}>"),
                half.to_owned(),
                token[half.len()..].to_owned(),
            ];
            for content in &contents {
                let turns = [
                    ("user", content.as_str()),
                    ("assistant", content),
                    ("user", content),
                    ("assistant", content),
                ];
                let encoded =
                    encode_conversation(tokenizer, template, &messages(&turns), TrainOn::Assistant).unwrap();
                assert_eq!(skeleton(&encoded), skeleton(&plain), "{content:?}");
                let text = tokenizer.decode(&encoded.ids);
                assert!(text.matches(content.trim()).count() >= 4, "{content:?} in {text:?}");
                assert!(!tokenizer.encode(content).iter().any(|id| tokenizer.is_special(*id)), "{content:?}");
            }
        }
    }
}

#[test]
fn conversations_that_teach_nothing_are_refused() {
    let (tokenizer, template) = pocket();
    let refused = |template: &ChatTemplate, turns: &[(&str, &str)]| {
        encode_conversation(&tokenizer, template, &messages(turns), TrainOn::Assistant)
            .unwrap_err()
            .to_string()
    };
    expect!["no part of the conversation is to be learnt: no message is an assistant's"]
        .assert_eq(&refused(&template, &[("user", "hi")]));
    let endless = ChatTemplate::from_source(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
        "",
        "",
    );
    expect!["message 1 (assistant): the template puts no control token behind it, so that a model could not learn to stop"].assert_eq(&refused(&endless.unwrap(), &[("user", "hi"), ("assistant", "ho")]));
    let twice = ChatTemplate::from_source(
        "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content * 2 }}<|im_end|>{% endfor %}",
        "",
        "",
    );
    expect!["message 1 (assistant): its beginning cannot be told from the template's own text"]
        .assert_eq(&refused(&twice.unwrap(), &[("user", "hi"), ("assistant", "ho")]));
    let raises = ChatTemplate::from_source("{{ raise_exception('no assistants here') }}", "", "");
    expect!["chat template: no assistants here"]
        .assert_eq(&refused(&raises.unwrap(), &[("assistant", "ho")]));
}

#[test]
fn streams_give_whole_characters() {
    let (tokenizer, _) = pocket();
    let text = "Zwölf 🚀 und 日本語, … done";
    let ids = tokenizer.encode(text);
    let mut stream = tokenizer.stream();
    let pieces: Vec<String> = ids.iter().filter_map(|id| stream.push(*id)).collect();
    assert!(stream.finish().is_none());
    assert_eq!(pieces.concat(), text);
    assert_eq!(tokenizer.decode(&ids), text);

    // Half a character at the end, and bytes that are none in the middle.
    let rocket = tokenizer.encode("🚀");
    let broken: Vec<u32> = rocket[..rocket.len() - 1]
        .iter()
        .chain(&tokenizer.encode("a"))
        .chain(&rocket[..1])
        .copied()
        .collect();
    let mut stream = tokenizer.stream();
    let mut text: String = broken.iter().filter_map(|id| stream.push(*id)).collect();
    text.extend(stream.finish());
    assert_eq!(text, tokenizer.decode(&broken));
    assert_eq!(text, "\u{FFFD}a\u{FFFD}");
}
