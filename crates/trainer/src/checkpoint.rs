//! Checkpoints: everything that a run needs to go on to the same bits, whole or not at all.
//!
//! ```text
//! checkpoints/step-N/adapter/          PEFT layout, f32
//!                    moments/          model.safetensors: first_moment, second_moment, in the adapter's flat order;
//!                                      in eight bits first_moment.codes and first_moment.scales, block by block
//!                    state.json        step, cursor, best so far, figures, hashes of the inputs
//!                    manifest.json     BLAKE3 and size of each file above; written last
//! ```
//!
//! A checkpoint is written aside, synced and renamed; only after the new one was read back and found sound may an
//! older one go.  A damaged one is renamed to `step-N.damaged` and the one before it is used.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use formats::adapter::{AdapterFiles, read_adapter_as_trained, write_adapter};
use formats::checkpoint::Checkpoint;
use formats::safetensors::{Data, SafetensorsFile, write_safetensors, write_safetensors_by};
use formats::{TensorSource, atomic, hash};
use model::device::CODED_BLOCK;
use model::optimizer::{Moment, MomentForm, MomentValues};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::event::ExactMatch;
use crate::record::{Inputs, read_json, write_json};
use crate::run_dir::RunDir;
use crate::spikes::Usual;

/// Where a run stands; all that is not weights.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// [`crate::record::LAYOUT_VERSION`].
    pub version: u32,
    /// Optimiser steps done.
    pub step: u64,
    /// Optimiser steps in all.
    pub total_steps: u64,
    /// Updates that the optimiser made; fewer than steps when some were skipped.
    pub updates: u64,
    /// Seed of adapter and order; with `step` it is the whole state of all random numbers.
    pub seed: u64,
    /// The pass over the data that the next step belongs to, and the rows of it that are done.
    pub cursor: (u64, u64),
    /// Lowest validation loss of an adapter so far, and its step.
    pub best: Option<(f64, u64)>,
    /// Hash of that adapter's weights in the folder of the best.
    pub best_blake3: Option<String>,
    /// Measurements of the validation loss since the lowest one.
    pub evaluations_since_best: u64,
    /// Whether these were too many, so that the run is over before its last step.
    pub is_stopped_early: bool,
    /// Newest validation loss.
    pub validation_loss: Option<f64>,
    /// Validation loss of the base.
    pub base_validation_loss: Option<f64>,
    /// Exact match of the base.
    pub base_exact_match: Option<ExactMatch>,
    /// Loss of the newest step.
    pub train_loss: Option<f64>,
    /// Steps skipped because something was not finite.
    pub skipped_steps: u32,
    /// Steps skipped because loss or gradient was too large.
    pub skipped_spikes: u32,
    /// What is usual, by which the next step is judged.
    pub usual: Usual,
    /// Seconds spent so far.
    pub seconds: f64,
    /// What the run was started with.
    pub inputs: Inputs,
}

/// A sound checkpoint; its moments stay on disk until they are asked for.
#[derive(Debug)]
pub struct Saved {
    /// Where the run stood.
    pub state: State,
    /// The adapter.
    pub adapter: AdapterFiles,
    moments: PathBuf,
}

impl Saved {
    /// A moment of the optimiser.
    ///
    /// # Errors
    /// What reading meets.
    pub fn moment(&self, moment: Moment) -> Result<MomentValues> {
        let file = SafetensorsFile::open(&self.moments.join(MOMENTS_FILE))?;
        let checkpoint = Checkpoint::open(&self.moments)?;
        let read = |name: &str| {
            let mut values = Vec::new();
            checkpoint.read(name, &mut values)?;
            Ok::<_, Error>(values)
        };
        let [codes_name, scales_name] = coded_names(moment);
        match file.tensor(&codes_name) {
            None => Ok(MomentValues::F32(read(name(moment))?)),
            Some(codes) => {
                Ok(MomentValues::Int8 { codes: file.data(&codes).to_vec(), scales: read(&scales_name)? })
            }
        }
    }
}

fn name(moment: Moment) -> &'static str {
    match moment {
        Moment::First => "first_moment",
        Moment::Second => "second_moment",
    }
}

fn coded_names(moment: Moment) -> [String; 2] {
    ["codes", "scales"].map(|part| format!("{}.{part}", name(moment)))
}

/// What a checkpoint is made of, handed over part by part, so that only one copy of one part is in memory.
pub trait Contents {
    /// Where the run stands.
    fn state(&self) -> &State;

    /// The adapter as it is trained.
    ///
    /// # Errors
    /// [`Error::BrokenAdapter`].
    fn adapter(&self) -> Result<AdapterFiles>;

    /// How the moments are held.
    fn moment_form(&self) -> MomentForm;

    /// A moment.
    ///
    /// # Errors
    /// What the device meets.
    fn moment(&self, moment: Moment) -> Result<MomentValues>;

    /// How many weights are trained.
    fn n_weights(&self) -> usize;
}

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    files: BTreeMap<String, FileHash>,
}

#[derive(Debug, Serialize, Deserialize)]
struct FileHash {
    bytes: u64,
    blake3: String,
}

const MANIFEST: &str = "manifest.json";
const MOMENTS_FILE: &str = "model.safetensors";

/// Writes a checkpoint, reads it back, and removes all but the newest `keep`; returns its folder and size.
///
/// # Errors
/// What writing meets; [`Error::CheckpointDamaged`] when the disk does not give back what was written.
pub fn save(run_dir: &RunDir, contents: &dyn Contents, keep: usize) -> Result<(PathBuf, u64)> {
    let path = run_dir.checkpoint(contents.state().step);
    let bytes = atomic::write_dir(&path, |dir| write_files(dir, contents))?;
    verify(&path)?;
    remove_old(run_dir, keep)?;
    Ok((path, bytes))
}

fn write_files(dir: &Path, contents: &dyn Contents) -> Result<u64> {
    write_adapter(&dir.join("adapter"), &contents.adapter()?)?;
    let moments = dir.join("moments");
    create_dir(&moments)?;
    write_moments(&moments.join(MOMENTS_FILE), contents)?;
    write_json(&dir.join("state.json"), contents.state())?;

    let mut files = BTreeMap::new();
    for name in list_files(dir)? {
        let path = dir.join(&name);
        let bytes =
            std::fs::metadata(&path).map_err(|source| Error::Io { path: path.clone(), source })?.len();
        files.insert(name, FileHash { bytes, blake3: hash::blake3_file(&path)? });
    }
    let bytes = files.values().map(|file| file.bytes).sum();
    write_json(&dir.join(MANIFEST), &Manifest { files })?;
    Ok(bytes)
}

fn write_moments(path: &Path, contents: &dyn Contents) -> Result<()> {
    let finite = |moment| {
        let values = contents.moment(moment)?;
        let broken = Error::BrokenMoments { step: contents.state().step };
        if values.is_finite() { Ok(values) } else { Err(broken) }
    };
    if contents.moment_form() == MomentForm::F32 {
        let planned = Moment::ALL.map(|moment| (name(moment).to_owned(), vec![contents.n_weights()]));
        return write_safetensors_by(path, &planned, |index| match finite(Moment::ALL[index])? {
            MomentValues::F32(values) => Ok(values),
            MomentValues::Int8 { scales, .. } => Ok(scales),
        });
    }
    // Both at once are half of what one is in 32 bits.
    let mut held = Vec::new();
    for moment in Moment::ALL {
        held.push((coded_names(moment), finite(moment)?));
    }
    let mut tensors = Vec::new();
    for (names, values) in &held {
        let MomentValues::Int8 { codes, scales } = values else { continue };
        let n_blocks = scales.len();
        tensors.push((names[0].clone(), vec![n_blocks, CODED_BLOCK], Data::U8(codes)));
        tensors.push((names[1].clone(), vec![n_blocks], Data::F32(scales)));
    }
    Ok(write_safetensors(path, &tensors)?)
}

/// Checks every file of a checkpoint against its manifest.
///
/// # Errors
/// [`Error::CheckpointDamaged`] names the first file that is not what was written.
pub fn verify(path: &Path) -> Result<()> {
    let damaged = |name: &str, reason: String| Error::CheckpointDamaged { path: path.join(name), reason };
    let manifest: Manifest = match read_json(&path.join(MANIFEST)) {
        Ok(Some(manifest)) => manifest,
        Ok(None) => return Err(damaged(MANIFEST, "the manifest is missing".into())),
        Err(error) => return Err(damaged(MANIFEST, error.to_string())),
    };
    for needed in ["state.json", "moments/model.safetensors", "adapter/adapter_model.safetensors"] {
        if !manifest.files.contains_key(needed) {
            return Err(damaged(MANIFEST, format!("`{needed}` is not listed")));
        }
    }
    for (name, expected) in &manifest.files {
        let file = path.join(name);
        let bytes = std::fs::metadata(&file).map_err(|error| damaged(name, error.to_string()))?.len();
        if bytes != expected.bytes {
            return Err(damaged(
                name,
                format!("the file has {bytes} bytes, {} were written", expected.bytes),
            ));
        }
        let found = hash::blake3_file(&file).map_err(|error| damaged(name, error.to_string()))?;
        if found != expected.blake3 {
            return Err(damaged(name, "the contents are not what was written".into()));
        }
    }
    Ok(())
}

/// Reads a checkpoint after verifying it.
///
/// # Errors
/// [`Error::CheckpointDamaged`].
pub fn read(path: &Path) -> Result<Saved> {
    verify(path)?;
    let damaged = |reason: String| Error::CheckpointDamaged { path: path.into(), reason };
    let state: State = read_json(&path.join("state.json"))
        .map_err(|error| damaged(error.to_string()))?
        .ok_or_else(|| damaged("state.json is missing".into()))?;
    let moments = path.join("moments");
    Ok(Saved { adapter: read_adapter_as_trained(&path.join("adapter"))?, moments, state })
}

/// What [`newest_sound`] found.
#[derive(Debug, Default)]
pub struct Found {
    /// The newest sound checkpoint.
    pub saved: Option<Saved>,
    /// Newer ones that are damaged, and why; they were renamed.
    pub damaged: Vec<(PathBuf, String)>,
}

/// Finds the newest sound checkpoint, setting damaged ones aside.
///
/// # Errors
/// [`Error::NoSoundCheckpoint`] when there are checkpoints and all are damaged; what renaming meets.
pub fn newest_sound(run_dir: &RunDir) -> Result<Found> {
    let mut found = Found::default();
    for step in steps(run_dir)?.into_iter().rev() {
        let path = run_dir.checkpoint(step);
        match read(&path) {
            Ok(saved) if saved.state.step == step => {
                found.saved = Some(saved);
                return Ok(found);
            }
            Ok(_) => found.damaged.push((path.clone(), "the folder's name is of another step".into())),
            Err(error) => found.damaged.push((path.clone(), error.to_string())),
        }
        set_aside(&path)?;
    }
    match found.damaged.first() {
        None => Ok(found),
        Some((_, reason)) => {
            Err(Error::NoSoundCheckpoint { run_dir: run_dir.path().into(), reason: reason.clone() })
        }
    }
}

/// Keeps a damaged checkpoint for inspection, out of the way of the rotation.
fn set_aside(path: &Path) -> Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".damaged");
    let aside = PathBuf::from(name);
    if aside.exists() {
        remove_dir(&aside)?;
    }
    std::fs::rename(path, &aside).map_err(|source| Error::Io { path: path.into(), source })
}

/// Steps of all complete checkpoints, ascending.
pub fn steps(run_dir: &RunDir) -> Result<Vec<u64>> {
    let mut steps: Vec<u64> =
        entries(&run_dir.checkpoints())?.iter().filter_map(|name| step_of(name)).collect();
    steps.sort_unstable();
    Ok(steps)
}

/// Removes what a killed process left half-written or half-removed.
pub fn sweep(run_dir: &RunDir) -> Result<()> {
    for path in leftovers(run_dir)? {
        if path.is_dir() { remove_dir(&path)? } else { remove_file(&path)? }
    }
    Ok(())
}

/// What a killed process left half-written or half-removed, if no process trains the run.
pub fn leftovers(run_dir: &RunDir) -> Result<Vec<PathBuf>> {
    let dir = run_dir.checkpoints();
    let mut names = entries(&dir)?;
    names.retain(|name| step_of(name).is_none() && !name.ends_with(".damaged"));
    Ok(names.iter().map(|name| dir.join(name)).collect())
}

fn remove_old(run_dir: &RunDir, keep: usize) -> Result<()> {
    let steps = steps(run_dir)?;
    for &step in steps.iter().rev().skip(keep) {
        let (path, leaving) =
            (run_dir.checkpoint(step), run_dir.checkpoints().join(format!("removed-{step}")));
        // Renamed first, so that a half-removed one never looks like a checkpoint.
        std::fs::rename(&path, &leaving).map_err(|source| Error::Io { path, source })?;
        remove_dir(&leaving)?;
    }
    Ok(())
}

fn step_of(name: &str) -> Option<u64> {
    name.strip_prefix("step-")?.parse().ok()
}

fn entries(dir: &Path) -> Result<Vec<String>> {
    let failed = |source| Error::Io { path: dir.into(), source };
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    entries.map(|entry| Ok(entry.map_err(failed)?.file_name().to_string_lossy().into_owned())).collect()
}

/// Names of all files under a folder, relative to it, with `/` between.
fn list_files(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for name in entries(dir)? {
        let path = dir.join(&name);
        if path.is_dir() {
            names.extend(list_files(&path)?.into_iter().map(|inner| format!("{name}/{inner}")));
        } else {
            names.push(name);
        }
    }
    Ok(names)
}

fn create_dir(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(|source| Error::Io { path: path.into(), source })
}

fn remove_dir(path: &Path) -> Result<()> {
    std::fs::remove_dir_all(path).map_err(|source| Error::Io { path: path.into(), source })
}

fn remove_file(path: &Path) -> Result<()> {
    std::fs::remove_file(path).map_err(|source| Error::Io { path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use formats::adapter::{AdapterConfig, AdapterTensor};

    use super::*;

    /// A run at some step.
    struct Run(State);

    /// A step after which the moments are not finite.
    const BROKEN: u64 = 13;

    impl Contents for Run {
        fn state(&self) -> &State {
            &self.0
        }

        fn adapter(&self) -> Result<AdapterFiles> {
            Ok(adapter(self.0.step))
        }

        fn moment_form(&self) -> MomentForm {
            if self.0.step.is_multiple_of(2) { MomentForm::F32 } else { MomentForm::Int8 }
        }

        fn moment(&self, moment: Moment) -> Result<MomentValues> {
            let value = match (moment, self.0.step) {
                (_, BROKEN) => f32::INFINITY,
                (Moment::First, _) => 0.1,
                (Moment::Second, _) => 1e-12,
            };
            Ok(match self.moment_form() {
                MomentForm::F32 => MomentValues::F32(vec![value; 14]),
                MomentForm::Int8 => {
                    let codes = (0..2 * CODED_BLOCK).map(|i| (i * 7 + moment as usize) as u8).collect();
                    MomentValues::Int8 { codes, scales: vec![value; 2] }
                }
            })
        }

        fn n_weights(&self) -> usize {
            14
        }
    }

    fn saved(step: u64) -> Run {
        Run(State { step, updates: step, seconds: 0.1, best: Some((0.3, 1)), ..State::default() })
    }

    fn adapter(step: u64) -> AdapterFiles {
        let tensor = AdapterTensor {
            module: "model.layers.0.self_attn.q_proj".into(),
            a: vec![step as f32; 6],
            b: vec![-0.5; 8],
            magnitude: None,
            r: 2,
            in_features: 3,
            out_features: 4,
        };
        let config = AdapterConfig::lora(2, 4.0, vec!["q_proj".into()]);
        AdapterFiles { config, tune: None, tensors: vec![tensor] }
    }

    fn run(steps: impl IntoIterator<Item = u64>, keep: usize) -> (tempfile::TempDir, RunDir) {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = RunDir::new(dir.path());
        for step in steps {
            save(&run_dir, &saved(step), keep).unwrap();
        }
        (dir, run_dir)
    }

    #[test]
    fn what_was_saved_is_read_and_only_the_newest_stay() {
        let (_dir, run_dir) = run([5, 10, 100], 2);
        assert_eq!(steps(&run_dir).unwrap(), [10, 100]);
        let found = newest_sound(&run_dir).unwrap();
        let (read, written) = (found.saved.unwrap(), saved(100));
        for moment in Moment::ALL {
            assert_eq!(read.moment(moment).unwrap(), written.moment(moment).unwrap());
        }
        assert_eq!((read.state, read.adapter), (written.0, adapter(100)));
        assert!(found.damaged.is_empty());
    }

    #[test]
    fn moments_of_both_forms_come_back_to_the_bit() {
        let (_dir, run_dir) = run([4, 5], 2);
        for step in [4, 5] {
            let read = read(&run_dir.checkpoint(step)).unwrap();
            for moment in Moment::ALL {
                assert_eq!(read.moment(moment).unwrap(), saved(step).moment(moment).unwrap());
            }
        }
    }

    #[test]
    fn what_is_not_finite_is_never_saved() {
        let (_dir, run_dir) = run([12], 2);
        let error = save(&run_dir, &saved(BROKEN), 2).unwrap_err();
        assert!(matches!(error, Error::BrokenMoments { step: BROKEN }), "{error}");
        assert_eq!(steps(&run_dir).unwrap(), [12]);
        assert_eq!(entries(&run_dir.checkpoints()).unwrap(), ["step-12"]);
    }

    #[test]
    fn damage_anywhere_leads_to_the_checkpoint_before() {
        let (_dir, run_dir) = run([1], 2);
        let files = list_files(&run_dir.checkpoint(1)).unwrap();
        assert!(files.len() >= 5, "{files:?}");
        for name in files {
            for damage in [flip_a_bit as fn(&Path), truncate, remove] {
                let (_dir, run_dir) = run([1, 2], 2);
                damage(&run_dir.checkpoint(2).join(&name));
                let found = newest_sound(&run_dir).unwrap();
                assert_eq!(found.saved.unwrap().state.step, 1, "{name}");
                assert_eq!(found.damaged.len(), 1, "{name}");
                assert!(run_dir.checkpoints().join("step-2.damaged").is_dir());
                // The damaged one must not count when old ones are removed.
                save(&run_dir, &saved(2), 2).unwrap();
                assert_eq!(steps(&run_dir).unwrap(), [1, 2]);
            }
        }
    }

    fn flip_a_bit(path: &Path) {
        let mut bytes = std::fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(path, bytes).unwrap();
    }

    fn truncate(path: &Path) {
        let mut bytes = std::fs::read(path).unwrap();
        bytes.pop();
        std::fs::write(path, bytes).unwrap();
    }

    fn remove(path: &Path) {
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn all_damaged_is_an_error_and_none_is_not() {
        let (_dir, run_dir) = run([1], 1);
        truncate(&run_dir.checkpoint(1).join("state.json"));
        assert!(matches!(newest_sound(&run_dir), Err(Error::NoSoundCheckpoint { .. })));
        let (_dir, run_dir) = run([], 1);
        assert!(newest_sound(&run_dir).unwrap().saved.is_none());
    }

    #[test]
    fn leftovers_of_a_killed_process_are_swept() {
        let (_dir, run_dir) = run([3], 1);
        let dir = run_dir.checkpoints();
        std::fs::create_dir_all(dir.join("removed-2/adapter")).unwrap();
        std::fs::create_dir_all(dir.join(".step-4.tmp")).unwrap();
        std::fs::create_dir_all(dir.join("step-1.damaged")).unwrap();
        std::fs::write(dir.join("x.tmp"), "x").unwrap();
        sweep(&run_dir).unwrap();
        let mut left = entries(&dir).unwrap();
        left.sort();
        assert_eq!(left, ["step-1.damaged", "step-3"]);
    }
}
