//! `tune serve`, asked over HTTP as Ollama's clients ask.

mod harness;
