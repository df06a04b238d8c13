//! A model behind an OpenAI-compatible server, which is played here as vLLM and llama.cpp's server answer.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request as HttpRequest, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use runner::card::{CardOptions, ExpertCard, Model, OpenAiModel};
use runner::engine::remote::Patience;
use runner::engine::{Engine, EngineByModel, Finish, Form, Loaded, Prompt, Request, Servers};
use runner::{Error, Result};
use serde_json::{Value, json};
use text::Message;

use crate::engine::{ask, hasty, heard, is_left_alone, patience};

/// What the server does with the next requests, each once; then it answers as it should.
#[derive(Debug, Clone)]
enum Does {
    Refuse(u16, &'static str),
    /// These bytes as a stream, and then the connection ends.
    Break(String),
    /// These bytes as a whole stream.
    Stream(String),
    Hang,
}

#[derive(Default)]
struct Inside {
    does: Vec<Does>,
    /// Key and body of every request for an answer.
    asked: Vec<(Option<String>, Value)>,
    models: Value,
}

struct Played {
    url: String,
    inside: Arc<Mutex<Inside>>,
    _stop: tokio::sync::oneshot::Sender<()>,
}

fn play() -> Played {
    let models = json!({"object": "list", "data": [{"id": "architect", "max_model_len": 8192}]});
    let inside = Arc::new(Mutex::new(Inside { models, ..Inside::default() }));
    let state = Arc::clone(&inside);
    let (told, address) = std::sync::mpsc::channel();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            told.send(listener.local_addr().unwrap()).unwrap();
            let serve =
                async { axum::serve(listener, Router::new().fallback(answer).with_state(state)).await };
            tokio::select! { _ = serve => {}, _ = stopped => {} }
        });
        runtime.shutdown_background();
    });
    Played { url: format!("http://{}/v1", address.recv().unwrap()), inside, _stop: stop }
}

async fn answer(State(inside): State<Arc<Mutex<Inside>>>, request: HttpRequest) -> Response {
    let key = request.headers().get("authorization").map(|key| key.to_str().unwrap().to_owned());
    let path = request.uri().path().to_owned();
    let bytes = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
    if path == "/v1/models" {
        return axum::Json(inside.lock().unwrap().models.clone()).into_response();
    }
    if path == "/v1/embeddings" {
        let body: Value = serde_json::from_slice(&bytes).unwrap();
        let texts = body["input"].as_array().unwrap();
        let vector =
            |(i, text): (usize, &Value)| json!({"index": i, "embedding": [text.as_str().unwrap().len(), 0]});
        let data: Vec<Value> = texts.iter().enumerate().map(vector).rev().collect();
        return axum::Json(json!({"data": data})).into_response();
    }
    assert_eq!(path, "/v1/chat/completions");
    let body: Value = serde_json::from_slice(&bytes).unwrap();
    let said = body["messages"].as_array().unwrap().last().unwrap()["content"].as_str().unwrap().to_owned();
    let does = {
        let mut inside = inside.lock().unwrap();
        inside.asked.push((key, body));
        if inside.does.is_empty() { Does::Stream(whole(&said)) } else { inside.does.remove(0) }
    };
    match does {
        Does::Refuse(status, words) => {
            let body = json!({"error": {"message": words, "type": "x"}});
            (StatusCode::from_u16(status).unwrap(), axum::Json(body)).into_response()
        }
        Does::Stream(text) => Body::from(text).into_response(),
        Does::Break(text) => {
            let pieces = [Ok(text), Err(std::io::Error::other("gone"))];
            Body::from_stream(futures::stream::iter(pieces).then(|piece| async {
                tokio::task::yield_now().await;
                piece
            }))
            .into_response()
        }
        Does::Hang => futures::future::pending().await,
    }
}

fn event(value: &Value) -> String {
    format!("data: {value}\n\n")
}

fn delta(text: &str) -> String {
    event(&json!({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": null}]}))
}

/// An answer in two pieces, its end and its figures.
fn whole(said: &str) -> String {
    let end = event(&json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}));
    let usage = event(&json!({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}));
    format!(": hello\n\n{}{}{end}{usage}data: [DONE]\n\n", delta("so: "), delta(said))
}

fn card(url: &str, key_env: Option<&str>) -> ExpertCard {
    let model = OpenAiModel {
        url: url.to_owned(),
        model: "architect".to_owned(),
        key_env: key_env.map(str::to_owned),
    };
    ExpertCard::of_model("architect", Model::OpenAi(model), &CardOptions::default()).unwrap()
}

fn load(card: &ExpertCard) -> Result<Box<dyn Loaded>> {
    load_with(card, patience())
}

fn load_with(card: &ExpertCard, patience: Patience) -> Result<Box<dyn Loaded>> {
    let keys = [("ARCHITECT_KEY".to_owned(), "sk-secret".to_owned())].into_iter().collect();
    let mut engine = EngineByModel::new(Servers { keys, patience })?;
    engine.load(card, &mut |_| ControlFlow::Continue(()))
}

#[test]
fn an_answer_comes_as_a_stream_with_its_figures() {
    let played = play();
    let mut card = card(&played.url, Some("ARCHITECT_KEY"));
    card.system = Some("Plan.".to_owned());
    let mut expert = load(&card).unwrap();
    assert_eq!(expert.context_tokens(), 8192);
    let mut request = Request::new(&card, Prompt::Chat(vec![Message::new("user", "a house")]));
    request.form = Form::Schema(json!({"type": "string"}));
    request.stop = vec!["END".to_owned()];
    request.sampling.max_tokens = Some(9);
    let (generated, pieces) = heard(expert.as_mut(), &request);
    assert_eq!((generated.text.as_str(), generated.finish), ("so: a house", Finish::Stop));
    assert_eq!((generated.prompt_tokens, generated.output_tokens), (5, 2));
    assert_eq!(pieces, ["so: ", "a house"]);
    let inside = played.inside.lock().unwrap();
    let (key, body) = &inside.asked[0];
    assert_eq!(key.as_deref(), Some("Bearer sk-secret"));
    assert_eq!(body["response_format"]["json_schema"]["schema"], json!({"type": "string"}));
    assert_eq!((&body["stop"], &body["max_tokens"]), (&json!(["END"]), &json!(9)));
    assert_eq!(body["messages"][0], json!({"role": "system", "content": "Plan."}));
    assert!(body.get("top_k").is_none(), "a cloud refuses what it does not know");
}

#[test]
fn a_model_that_the_server_does_not_know_is_refused_with_those_it_knows() {
    let played = play();
    played.inside.lock().unwrap().models = json!({"data": [{"id": "gpt-9"}, {"id": "other"}]});
    let error = load(&card(&played.url, None)).map(drop).unwrap_err().to_string();
    assert!(
        error.contains("can't find `architect`: it knows no model of that name; it has: gpt-9, other"),
        "{error}"
    );
    // A server without a list is asked when there is something to ask.
    played.inside.lock().unwrap().models = json!({});
    let mut expert = load(&card(&played.url, None)).unwrap();
    assert_eq!(ask(expert.as_mut(), "x").unwrap(), "so: x");
    assert_eq!(played.inside.lock().unwrap().asked[0].0, None);
}

#[test]
fn what_passes_is_tried_again_and_what_was_heard_is_not() {
    let played = play();
    let busy = || Does::Refuse(429, "slow down");
    let asked = |does: &[Does]| {
        let hangs = matches!(does.first(), Some(Does::Hang));
        let mut inside = played.inside.lock().unwrap();
        inside.asked.clear();
        inside.does = does.to_vec();
        drop(inside);
        let went = ask(
            load_with(&card(&played.url, None), if hangs { hasty() } else { patience() }).unwrap().as_mut(),
            "x",
        );
        let mut inside = played.inside.lock().unwrap();
        inside.does.clear();
        (went, inside.asked.len())
    };
    let (went, n) = asked(&[busy(), Does::Break(": nothing yet\n\n".into())]);
    assert_eq!((went.unwrap().as_str(), n), ("so: x", 3));
    let (went, n) = asked(&[busy(), busy(), busy()]);
    let error = went.unwrap_err().to_string();
    assert_eq!(n, 3);
    assert!(error.contains("can't answer with `architect`: slow down (429) (after 3 tries)"), "{error}");
    for (does, words, tries) in [
        (Does::Refuse(401, "bad key"), "bad key (401)", 1),
        (Does::Break(delta("half a th")), "broke off after 9 characters", 1),
        (Does::Stream(delta("half")), "the stream ended before its last event", 1),
        (
            Does::Stream(event(&json!({"choices": [{"delta": {}, "finish_reason": "content_filter"}]}))),
            "`content_filter`",
            1,
        ),
        (
            Does::Stream(format!("{}{}", delta("ha"), event(&json!({"error": {"message": "out of luck"}})))),
            "out of luck",
            1,
        ),
        (Does::Stream("x".repeat(5 << 20)), "longer than 4194304 bytes", 1),
        (Does::Hang, "nothing came for", 3),
    ] {
        let (went, n) = asked(&vec![does; tries]);
        let error = went.unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
        assert_eq!(n, tries, "{error}");
    }
}

#[test]
fn texts_get_vectors_of_length_one() {
    let played = play();
    let mut expert = load(&card(&played.url, None)).unwrap();
    let texts = ["a".to_owned(), "bcd".to_owned()];
    let vectors = expert.embed(&texts, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(vectors, [[1.0, 0.0], [1.0, 0.0]]);
}

#[test]
fn a_key_that_is_missing_is_named_and_never_told() {
    let played = play();
    let error = load(&card(&played.url, Some("NO_SUCH_KEY"))).map(drop).unwrap_err();
    assert!(matches!(error, Error::Card { .. }));
    assert!(error.to_string().contains("NO_SUCH_KEY, which is not set"), "{error}");
    played.inside.lock().unwrap().does = vec![Does::Refuse(401, "no"); 3];
    let card = card(&played.url, Some("ARCHITECT_KEY"));
    let error = ask(load(&card).unwrap().as_mut(), "x").unwrap_err();
    assert!(!format!("{error} {error:?} {card:?}").contains("sk-secret"));
    assert!(!serde_json::to_string(&card).unwrap().contains("sk-secret"));
}

#[test]
fn a_listener_that_leaves_ends_the_answer() {
    let played = play();
    let card = card(&played.url, None);
    let mut expert = load(&card).unwrap();
    played.inside.lock().unwrap().does = vec![Does::Hang];
    is_left_alone(expert.as_mut());
    let raw = Request::new(&card, Prompt::Raw("x".to_owned()));
    assert!(
        expert
            .generate(&raw, &mut |_| ControlFlow::Continue(()))
            .unwrap_err()
            .to_string()
            .contains("conversations alone")
    );
}
