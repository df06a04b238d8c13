//! Engines that are servers: Ollama of three generations and OpenAI-compatible ones, played by servers in this process
//! over real connections, and a real Ollama where one answers.

#[path = "../tiny/mod.rs"]
mod tiny;

mod double;
mod engine;
mod faults;
mod go_template;
mod openai;
mod pipelines;
mod real;
mod recorded;
mod registering;
