//! Which files of a repository training needs: configuration, tokenizer, template, and safetensors or one GGUF.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use formats::config::TOKENIZER_FILES;
use serde::Deserialize;

use crate::{Error, ModelId, Result};

/// What training cannot do without, besides a tokenizer and weights.
const CONFIG: &str = "config.json";
/// Of these the first that is there is the tokenizer.
const TOKENIZERS: [&str; 2] = ["tokenizer.json", "tokenizer.model"];
/// What it reads where it is there, before and after the tokenizer's files.
const GENERATION: &str = "generation_config.json";
const TEMPLATES: [&str; 2] = ["chat_template.jinja", "chat_template.json"];
const SINGLE: &str = "model.safetensors";
/// Names the shards.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// Files of a listing that are to be downloaded, those of a few kilobytes first; shards come on top of an index.
///
/// # Errors
/// [`Error::NoFile`], [`Error::PickleOnly`], [`Error::NoWeights`].
pub(crate) fn choose(id: &ModelId, listed: &[String]) -> Result<Vec<String>> {
    let has = |name: &str| listed.iter().any(|file| file == name);
    let repository = || id.repository().to_owned();
    if let Some(file) = id.file().map(str::to_owned) {
        return match has(&file) {
            true if is_part(&file) => Err(Error::SplitGguf { repository: repository(), file }),
            true => Ok(vec![file]),
            false => Err(Error::NoFile { repository: repository(), file, there_are: ggufs(listed) }),
        };
    }
    let Some(weights) = [SINGLE, INDEX].into_iter().find(|name| has(name)) else {
        let pickle = listed.iter().find(|file| is_pickle(file));
        return Err(match pickle {
            Some(file) => Error::PickleOnly { repository: repository(), file: file.clone() },
            None => Error::NoWeights { repository: repository(), ggufs: ggufs(listed) },
        });
    };
    if let Some(file) = lacking_beside_weights(has).into_iter().next() {
        return Err(Error::NoFile { repository: repository(), file, there_are: Vec::new() });
    }
    let present = [CONFIG].into_iter().chain(beside()).filter(|name| has(name));
    Ok(present.chain([weights]).map(str::to_owned).collect())
}

fn lacking_beside_weights(has: impl Fn(&str) -> bool) -> Vec<String> {
    let tokenizer = (!TOKENIZERS.into_iter().any(&has)).then_some(TOKENIZERS[0]);
    let config = (!has(CONFIG)).then_some(CONFIG);
    config.into_iter().chain(tokenizer).map(str::to_owned).collect()
}

/// What may be missing in a repository, and is to be remembered as missing.
pub(crate) fn optional(id: &ModelId) -> Vec<&'static str> {
    if id.file().is_some() { Vec::new() } else { beside().collect() }
}

fn beside() -> impl Iterator<Item = &'static str> {
    [GENERATION].into_iter().chain(TOKENIZER_FILES).chain(TEMPLATES)
}

fn ggufs(listed: &[String]) -> Vec<String> {
    listed.iter().filter(|file| file.ends_with(".gguf")).cloned().collect()
}

/// As llama.cpp names the parts of a file: `x-00001-of-00003.gguf`.
fn is_part(file: &str) -> bool {
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let parts: Vec<&str> = file.trim_end_matches(".gguf").rsplitn(4, '-').collect();
    matches!(parts[..], [count, "of", number, _] if is_number(count) && is_number(number))
}

fn is_pickle(file: &str) -> bool {
    file.starts_with("pytorch_model") && file.ends_with(".bin")
        || [".pt", ".pth", ".ckpt", ".pkl"].iter().any(|extension| file.ends_with(extension))
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The shards that an index names, each once.
///
/// # Errors
/// [`Error::HostileName`] for one that is not a plain name; [`Error::NoFile`] for one that the repository lacks.
pub(crate) fn shards(id: &ModelId, index: &Path, listed: Option<&[String]>) -> Result<Vec<String>> {
    let index: Index = formats::json::read(index)?;
    let shards: BTreeSet<String> = index.weight_map.into_values().collect();
    for shard in &shards {
        let repository = id.repository().to_owned();
        if shard.contains('/') || !crate::model_id::is_harmless(shard) {
            return Err(Error::HostileName { repository, name: shard.clone() });
        }
        if listed.is_some_and(|listed| !listed.contains(shard)) {
            return Err(Error::NoFile { repository, file: shard.clone(), there_are: Vec::new() });
        }
    }
    Ok(shards.into_iter().collect())
}

/// What a folder lacks for training.
///
/// # Errors
/// A broken index.
pub(crate) fn lacking(id: &ModelId, folder: &Path) -> Result<Vec<String>> {
    let has = |name: &str| folder.join(name).is_file();
    let only_lacking =
        |names: Vec<String>| names.into_iter().filter(|name| !has(name)).collect::<Vec<String>>();
    if let Some(file) = id.file() {
        return Ok(only_lacking(vec![file.to_owned()]));
    }
    let mut missing = lacking_beside_weights(has);
    match (has(SINGLE), has(INDEX)) {
        (true, _) => {}
        (false, true) => missing.extend(only_lacking(shards(id, &folder.join(INDEX), None)?)),
        (false, false) => missing.push(SINGLE.to_owned()),
    }
    Ok(missing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn check(id: &str, listed: &[&str], expected: Expect) {
        let listed: Vec<String> = listed.iter().map(|&file| file.to_owned()).collect();
        let chosen = choose(&id.parse().unwrap(), &listed);
        let shown = match chosen {
            Ok(files) => files.join(" "),
            Err(error) => format!("{error}\n{}", error.hint().unwrap_or_default()),
        };
        expected.assert_eq(&shown);
    }

    #[test]
    fn what_training_needs_is_chosen() {
        let whole = [
            ".gitattributes",
            "README.md",
            "config.json",
            "generation_config.json",
            "merges.txt",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            INDEX,
            "original/consolidated.00.pth",
            "tokenizer.json",
        ];
        check(
            "a/b",
            &whole,
            expect![
                "config.json generation_config.json tokenizer.json merges.txt model.safetensors.index.json"
            ],
        );
        // As the loader prefers it.
        check(
            "a/b",
            &["config.json", "tokenizer.json", SINGLE, INDEX],
            expect!["config.json tokenizer.json model.safetensors"],
        );
        check(
            "a/b",
            &["config.json", "tokenizer.model", SINGLE],
            expect!["config.json tokenizer.model model.safetensors"],
        );
        check("a/b:q/x.gguf", &["q/x.gguf", "README.md"], expect!["q/x.gguf"]);
    }

    #[test]
    fn what_cannot_be_trained_on_is_refused() {
        check(
            "a/b",
            &["config.json", "pytorch_model.bin"],
            expect![[r#"
                a/b has only pickled weights (pytorch_model.bin): such a file is a program, and this one runs none
                choose a repository with model.safetensors; many have a copy on a branch `refs/pr/N`"#]],
        );
        check(
            "a/b",
            &["x-q4.gguf", "x-q8.gguf"],
            expect![[r#"
                a/b has no weights that can be trained on: no model.safetensors and no index of shards
                it has 2 GGUF files; name one of them: a/b:x-q4.gguf"#]],
        );
        check(
            "a/b",
            &["README.md"],
            expect![[r#"
                a/b has no weights that can be trained on: no model.safetensors and no index of shards
                choose a repository in transformers' layout"#]],
        );
        check(
            "a/b",
            &["config.json", SINGLE],
            expect![[r#"
                a/b has no file `tokenizer.json`
            "#]],
        );
        check(
            "a/b:q8/x-00001-of-00002.gguf",
            &["q8/x-00001-of-00002.gguf", "q8/x-00002-of-00002.gguf"],
            expect![[r#"
                q8/x-00001-of-00002.gguf of a/b is one part of a GGUF that is split over several files
                a base is one file: choose a smaller quantisation, or the 16-bit repository that it was made of"#]],
        );
        check(
            "a/b:z.gguf",
            &["x.gguf", "y.gguf"],
            expect![[r#"
                a/b has no file `z.gguf`; there are x.gguf, y.gguf
            "#]],
        );
    }

    #[test]
    fn an_index_names_plain_files_of_the_repository() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(INDEX);
        let id: ModelId = "a/b".parse().unwrap();
        let read = |shard: &str| {
            std::fs::write(&path, format!(r#"{{"weight_map": {{"x": {shard:?}, "y": "s"}}}}"#)).unwrap();
            shards(&id, &path, Some(&["s".to_owned()])).map_err(|error| error.to_string())
        };
        assert_eq!(read("s"), Ok(vec!["s".to_owned()]));
        assert_eq!(read("t"), Err("a/b has no file `t`".to_owned()));
        for hostile in ["../s", "/s", "a/s", "a\\s"] {
            assert!(read(hostile).unwrap_err().contains("outside its folder"), "{hostile}");
        }
    }
}
