//! Searches: the passages that fit each item's question, as a text with their sources.

use std::ops::ControlFlow;
use std::time::Instant;

use super::super::check::Retrieve;
use super::super::event::ItemResult;
use super::super::retrieve::{Corpus, Hit, Index, Words, key};
use super::super::step::By;
use super::{Run, Stage, milliseconds};
use crate::engine::Loaded;
use crate::{Error, Residency, Result};

/// Passages that are given to an engine at once.
const BATCH: usize = 64;

impl Run<'_> {
    /// A step that looks something up for each item.
    pub(super) fn finds(
        &mut self,
        stage: &mut Stage<'_>,
        work: &Retrieve,
        pending: Vec<usize>,
        residency: &mut Residency,
    ) -> Result<()> {
        match (work.by, &work.expert) {
            (By::Meaning, Some(expert)) if !pending.is_empty() => {
                self.by_meaning(stage, work, expert, pending, residency)
            }
            _ => {
                let words = Words::new(&work.corpus);
                self.each(stage, pending, |run, stage, item| {
                    let question = run.question(stage, work, item)?;
                    Ok(found(stage.result(item), &work.corpus, &words.find(&question, work.top)))
                })
            }
        }
    }

    fn by_meaning(
        &mut self,
        stage: &mut Stage<'_>,
        work: &Retrieve,
        expert: &str,
        pending: Vec<usize>,
        residency: &mut Residency,
    ) -> Result<()> {
        let begun = Instant::now();
        let index = self.index(stage, work, expert, residency)?;
        stage.busy_ms += milliseconds(begun);
        for item in pending {
            self.stop_if_cancelled()?;
            let loaded = self.load(expert, residency)?;
            let begun = Instant::now();
            let result = self.nearest(stage, work, &index, loaded, item);
            stage.busy_ms += milliseconds(begun);
            self.settle(stage, item, result)?;
        }
        Ok(())
    }

    fn nearest(
        &self,
        stage: &Stage<'_>,
        work: &Retrieve,
        index: &Index,
        expert: &mut dyn Loaded,
        item: usize,
    ) -> Result<ItemResult> {
        let question = self.question(stage, work, item)?;
        let vectors = self.vectors(stage, item, expert, std::slice::from_ref(&question))?;
        let hits = index.find(&vectors.concat(), work.top).map_err(|reason| stage.failed(item, reason))?;
        let name = Some(expert.card().name.clone());
        Ok(ItemResult { expert: name, ..found(stage.result(item), &work.corpus, &hits) })
    }

    /// The vectors of all passages: those that were kept, or made now and kept.
    fn index(
        &mut self,
        stage: &Stage<'_>,
        work: &Retrieve,
        expert: &str,
        residency: &mut Residency,
    ) -> Result<Index> {
        let key = key(&work.corpus.blake3, &self.pipeline.experts[expert]);
        let passages = &work.corpus.passages;
        if let Some(index) = Index::read(&self.index_folder, &key, passages.len()) {
            return Ok(index);
        }
        let loaded = self.load(expert, residency)?;
        let mut vectors = Vec::with_capacity(passages.len());
        for batch in passages.chunks(BATCH) {
            let texts: Vec<String> = batch.iter().map(|passage| passage.text.clone()).collect();
            vectors.extend(self.vectors(stage, 0, loaded, &texts)?);
        }
        let index = Index::new(&vectors).map_err(|reason| stage.failed(0, reason))?;
        index.write(&self.index_folder, &key)?;
        Ok(index)
    }

    fn vectors(
        &self,
        stage: &Stage<'_>,
        item: usize,
        expert: &mut dyn Loaded,
        texts: &[String],
    ) -> Result<Vec<Vec<f32>>> {
        let vectors = expert.embed(texts, &mut |_| match (self.cancelled)() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        });
        match vectors {
            Ok(vectors) if vectors.len() == texts.len() => Ok(vectors),
            Ok(vectors) => {
                let reason = format!("the engine gave {} vectors for {} texts", vectors.len(), texts.len());
                Err(stage.failed(item, reason))
            }
            Err(Error::Cancelled) => Err(Error::Cancelled),
            Err(error) => Err(stage.failed(item, error.to_string())),
        }
    }

    fn question(&self, stage: &Stage<'_>, work: &Retrieve, item: usize) -> Result<String> {
        let question = self.render(&work.query, stage.index, item, None, &[]);
        question.map_err(|reason| stage.failed(item, reason))
    }
}

/// Passages as a text: `[1] docs/a.md:3-9`, the passage, an empty line.
fn found(result: ItemResult, corpus: &Corpus, hits: &[Hit]) -> ItemResult {
    let passages = hits.iter().filter_map(|hit| Some((corpus.passages.get(hit.passage)?, hit.score)));
    let (mut sources, mut parts) = (Vec::new(), Vec::new());
    for (i, (passage, score)) in passages.enumerate() {
        parts.push(format!("[{}] {}\n{}", i + 1, passage.source, passage.text));
        sources.push(format!("{} ({score:.3})", passage.source));
    }
    let note = hits.is_empty().then(|| "no passage has a word of the question".to_owned());
    ItemResult { output: parts.join("\n\n"), attempts: 1, sources, note, ..result }
}
