//! The proof of an adapter in every run that has one: that the backend applied it, and that the
//! weights with the adapter merged into them, as they would be shipped, are the same model.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use karat_system::safetensors::read_header;
use serde::{Deserialize, Serialize};

use crate::backend::{Capability, Event, GenerateConfig, OpenConfig, Scores, TEMPORARY_MODEL, Tokens};
use crate::error::{Error, Result};
use crate::eval::Prediction;
use crate::fsio::{self, PassingFolder, sha256};
use crate::report::{AdapterCheck, MergedCheck};
use crate::run::evaluate::{EvalJob, evaluator, scores};
use crate::run::{Cancel, Notice, Observer, SessionCache, StageSink, backend_error};

/// Items that are looked at, evenly spread over the data.
const PROBES: usize = 12;
/// Bytes of an adapter that are in memory at once; a multiple of every element's width.
const PIECE: usize = 1 << 20;
/// Longest greedy text of the merged check.
const PROBE_TOKENS: usize = 64;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    key: String,
    /// [`digest`] of `check`, so that one that was changed since is not believed.
    #[serde(default)]
    sha256: String,
    check: AdapterCheck,
}

/// Of what was found, under the key of what was asked.
fn digest(key: &str, check: &AdapterCheck) -> Result<String> {
    let text = serde_json::to_string(check).map_err(|e| Error::failed("could not write a check as JSON").because(e))?;
    Ok(sha256(format!("{key} {text}").as_bytes()))
}

/// The probe of an adapter: a few fixed queries of a job.
struct Probe<'a> {
    job: &'a EvalJob<'a>,
    /// Which queries of the job.
    rows: Vec<usize>,
    references: Tokens,
    prompts: Tokens,
    greedy: GenerateConfig,
    stage: String,
}

/// What was found of an adapter before its model was evaluated.
pub(super) enum Proof {
    /// An earlier run found all there is to find.
    Known(AdapterCheck),
    /// The adapter was applied: scores of the probe with it, and what it changes at most and on
    /// average.
    Applied { with: Scores, largest: f64, mean: f64 },
}

impl<'a> Probe<'a> {
    fn new(job: &'a EvalJob<'a>) -> Probe<'a> {
        let (n, wanted) = (job.queries.len(), job.queries.len().min(PROBES));
        let rows: Vec<usize> = (0..wanted).map(|k| k * n / wanted).collect();
        let most = job.generate.max_new_tokens.min(PROBE_TOKENS);
        Probe {
            references: rows.iter().map(|&i| &job.queries[i].reference).collect(),
            prompts: rows.iter().map(|&i| &job.queries[i].prompt).collect(),
            greedy: GenerateConfig::greedy(most, job.generate.stop_ids.clone()),
            stage: format!("adapter {}", job.name),
            rows,
            job,
        }
    }

    /// What the answers of the model `weights` depend on.
    fn key(&self, weights: &BTreeMap<String, String>, asked: &str) -> String {
        let open = &self.job.open;
        // The options decide how a backend applies an adapter.
        let session = format!("{} {} {:?}", open.dtype, open.device, open.options);
        let plugin = self.job.backend.origin.sha256.as_deref().unwrap_or_default();
        let descriptor = self.job.backend.backend.describe();
        sha256(format!("{weights:?} {descriptor:?} {plugin} {session} {asked}").as_bytes())
    }

    /// The key of all that is found, and where it is kept.
    fn file(&self) -> (String, PathBuf) {
        let asked = format!("{:?} {:?} {}", self.references, self.prompts, self.greedy.deciding());
        let key = self.key(&self.job.key, &asked);
        let file = self.job.folder.join(format!("adapter-{}-{}.json", self.job.name, &key[..12]));
        (key, file)
    }

    /// Scores of the probe under the model without the adapter, which all adapters on it share.
    fn base(&self, sessions: &mut SessionCache, observer: &mut dyn Observer, cancel: &Cancel) -> Result<Scores> {
        #[derive(Serialize, Deserialize)]
        struct Kept {
            key: String,
            logprobs: Vec<f32>,
            greedy: Vec<bool>,
        }
        let mut weights = self.job.key.clone();
        weights.remove("adapter");
        let key = self.key(&weights, &format!("{:?}", self.references));
        let file = self.job.folder.join(format!("probe-{}.json", &key[..12]));
        if file.is_file()
            && let Ok(kept) = fsio::read_sealed_json::<Kept>(&file)
            && kept.key == key
        {
            return Ok(Scores { logprobs: kept.logprobs, greedy: kept.greedy });
        }
        let without = OpenConfig { adapter: None, ..self.job.open.clone() };
        let (found, _) = self.ask(sessions, &without, false, observer, cancel)?;
        let kept = Kept { key, logprobs: found.logprobs.clone(), greedy: found.greedy.clone() };
        fsio::write_sealed_json(&file, &kept)?;
        Ok(found)
    }

    /// Scores the references and, if asked to, continues the prompts.
    fn ask(
        &self,
        sessions: &mut SessionCache,
        open: &OpenConfig,
        generates: bool,
        observer: &mut dyn Observer,
        cancel: &Cancel,
    ) -> Result<(Scores, Vec<Vec<u32>>)> {
        let session = sessions.session(self.job.backend, open)?;
        let longest = session.info().max_positions;
        let evaluator = evaluator(session, &self.job.backend.backend.describe().name)?;
        let keep = |_: &Event| Ok(());
        let mut sink = StageSink { stage: &self.stage, total: None, observer, cancel, keep, error: None };
        let place = |row: usize| format!("row {row} of the adapter's probe");
        let references = self.references.view();
        let scores = scores(evaluator, references, "scoring the adapter's probe failed", &place, &mut sink)?;
        if !generates {
            return Ok((scores, Vec::new()));
        }
        let fitting: Tokens = self.prompts.view().iter().filter(|p| p.len() < longest).collect();
        let completions = evaluator
            .generate(fitting.view(), &self.greedy, &mut sink)
            .map_err(|e| backend_error("continuing the adapter's probe failed", e))?;
        Ok((scores, completions.into_iter().map(|c| c.ids).collect()))
    }
}

/// Proves on a few queries of `job` that its adapter is applied, before hours are spent on it; what
/// an earlier run found is reused. None without an adapter.
///
/// # Errors
/// An adapter with weights other than zero that changes no log-probability: the backend did not
/// apply it, and a report would quietly say that LoRA changes nothing. The backend's errors;
/// interrupted; I/O.
pub(super) fn prove(
    job: &EvalJob<'_>,
    sessions: &mut SessionCache,
    observer: &mut dyn Observer,
    cancel: &Cancel,
) -> Result<Option<Proof>> {
    let Some(adapter) = &job.open.adapter else { return Ok(None) };
    let probe = Probe::new(job);
    let (key, file) = probe.file();
    if file.is_file() {
        let stored: Stored = fsio::read_json(&file)?;
        if stored.key == key && stored.sha256 == digest(&key, &stored.check)? {
            observer.notice(Notice::Reused { name: &probe.stage, detail: format!("{} items", stored.check.items) });
            warn_of_merging(job, &stored.check, observer);
            return Ok(Some(Proof::Known(stored.check)));
        }
    }
    let detail = format!("{} items with it and without it", probe.rows.len());
    observer.notice(Notice::Stage { name: &probe.stage, detail });
    let base = probe.base(sessions, observer, cancel)?;
    let (with, _) = probe.ask(sessions, &job.open, false, observer, cancel)?;
    let (largest, mean) = differences(&base, &with);
    if largest == 0.0 && !with.logprobs.is_empty() && !is_zero(adapter)? {
        return Err(Error::backend(format!(
            "the adapter of {} was not applied: its weights are not zero, and every log-probability equals the base model's",
            job.name
        ))
        .at(adapter.display())
        .help("report this backend; no number of this adapter can be believed"));
    }
    let detail = format!("applied: log-probabilities change by up to {largest:.2} nats");
    observer.notice(Notice::Done { name: &probe.stage, detail });
    Ok(Some(Proof::Applied { with, largest, mean }))
}

/// The rest of the proof, once the model is evaluated: the adapter merged into its weights says the
/// same. What the model wrote with the adapter is among its `predictions`, if those are greedy.
/// `scratch` is a folder in which the merged model may lie for as long as the check takes.
///
/// # Errors
/// The backend's errors; interrupted; I/O.
pub(super) fn merged(
    proof: Proof,
    job: &EvalJob<'_>,
    predictions: &[Prediction],
    scratch: &Path,
    sessions: &mut SessionCache,
    observer: &mut dyn Observer,
    cancel: &Cancel,
) -> Result<AdapterCheck> {
    let (with, largest_change, mean_change) = match proof {
        Proof::Known(check) => return Ok(check),
        Proof::Applied { with, largest, mean } => (with, largest, mean),
    };
    let probe = Probe::new(job);
    let wanted = probe.rows.len();
    let merged = if job.backend.backend.describe().capabilities.contains(&Capability::Merge) {
        let detail = format!("{wanted} items merged into the weights");
        observer.notice(Notice::Stage { name: &probe.stage, detail });
        let known: Option<Vec<Vec<u32>>> = if job.generate.temperature == 0.0 {
            let begun = |row: &usize| Some(predictions.get(*row)?.ids.as_ref()?.iter().copied());
            let cut = |ids: Option<_>| ids.map(|ids| Iterator::take(ids, probe.greedy.max_new_tokens).collect());
            probe.rows.iter().map(|row| cut(begun(row))).collect()
        } else {
            None
        };
        std::fs::create_dir_all(scratch).map_err(|e| Error::io("create the folder", scratch, e))?;
        // Dropping it removes it, whatever fails below.
        let purpose = TEMPORARY_MODEL.trim_start_matches(fsio::PASSING).trim_end_matches('-');
        let folder =
            PassingFolder::new_in(scratch, purpose).map_err(|e| Error::io("create a folder in", scratch, e))?;
        let into = folder.path().join("merged");
        let texts = match known {
            Some(texts) => texts.into_iter().filter(|text: &Vec<u32>| !text.is_empty()).collect(),
            None => probe.ask(sessions, &job.open, true, observer, cancel)?.1,
        };
        sessions.close();
        drop(job.backend.open(&OpenConfig { merge_into: Some(into.clone()), ..job.open.clone() })?);
        // What is opened is what was written: the files as they would be shipped.
        let shipped = OpenConfig { model: into, adapter: None, ..job.open.clone() };
        let (scores, merged_texts) = probe.ask(sessions, &shipped, true, observer, cancel)?;
        let (largest_difference, mean_difference) = differences(&with, &scores);
        Some(MergedCheck {
            largest_difference,
            mean_difference,
            argmax_flips: with.greedy.iter().zip(&scores.greedy).filter(|(a, b)| a != b).count() as u64,
            changed_texts: texts.iter().zip(&merged_texts).filter(|(a, b)| a != b).count(),
            max_new_tokens: probe.greedy.max_new_tokens,
        })
    } else {
        None
    };
    let check = AdapterCheck { items: wanted, tokens: with.logprobs.len() as u64, largest_change, mean_change, merged };
    if let Some(m) = &check.merged {
        let detail = format!(
            "merged differs by at most {:.1e} nats, {} of {wanted} texts change",
            m.largest_difference, m.changed_texts
        );
        observer.notice(Notice::Done { name: &probe.stage, detail });
    }
    warn_of_merging(job, &check, observer);
    let (key, file) = probe.file();
    let stored = Stored { sha256: digest(&key, &check)?, key, check };
    fsio::write_json(&file, &stored)?;
    Ok(stored.check)
}

/// Says that the merged weights are another model, where they are, and what to do.
fn warn_of_merging(job: &EvalJob<'_>, check: &AdapterCheck, observer: &mut dyn Observer) {
    let Some(merged) = check.merged.as_ref().filter(|_| check.merging_loses()) else { return };
    let (name, dtype) = (job.name, job.open.dtype);
    let or = if dtype == crate::backend::Dtype::F32 { "" } else { ", or compute the merged weights in f32" };
    observer.notice(Notice::Warning(format!(
        "the adapter of {name} loses its effect when it is merged and computed in {dtype}: log-probabilities differ by up to {:.2} \
         nats, where it changes them by up to {:.2}; use it beside its base{or}",
        merged.largest_difference, check.largest_change
    )));
}

/// Largest and mean absolute difference of two lists of log-probabilities.
fn differences(a: &Scores, b: &Scores) -> (f64, f64) {
    let each = || a.logprobs.iter().zip(&b.logprobs).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs());
    (each().fold(0.0, f64::max), each().sum::<f64>() / a.logprobs.len().max(1) as f64)
}

/// Whether an adapter in the PEFT layout says nothing: every `lora_B` is zero and there is nothing
/// else but `lora_A`. What is not in that layout is taken to say something.
fn is_zero(folder: &Path) -> Result<bool> {
    let path = folder.join("adapter_model.safetensors");
    if !path.is_file() {
        return Ok(false);
    }
    let tensors = read_header(&path)?;
    let read = |e| Error::io("read", &path, e);
    let mut file = File::open(&path).map_err(read)?;
    // An adapter of high rank has gigabytes: a piece of it is in memory at a time.
    let mut piece = vec![0; PIECE];
    for (name, stored) in tensors.iter().filter(|(name, _)| !name.contains("lora_A")) {
        if !name.contains("lora_B") {
            return Ok(false);
        }
        // The sign of a zero does not count.
        let nothing =
            |x: &[u8]| x.split_last().is_none_or(|(top, rest)| top & 0x7f == 0 && rest.iter().all(|b| *b == 0));
        let width = (stored.dtype.bitsize() / 8).max(1);
        file.seek(SeekFrom::Start(stored.bytes.start)).map_err(read)?;
        let mut left = stored.bytes.end - stored.bytes.start;
        while left > 0 {
            let part = &mut piece[..left.min(PIECE as u64) as usize];
            file.read_exact(part).map_err(read)?;
            if !part.chunks(width).all(nothing) {
                return Ok(false);
            }
            left -= part.len() as u64;
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(b: &[f32], more: Option<&str>) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let end = 8 + 4 * b.len();
        let mut header = serde_json::json!({
            "m.lora_A.weight": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]},
            "m.lora_B.weight": {"dtype": "F32", "shape": [b.len(), 1], "data_offsets": [8, end]},
        });
        if let Some(name) = more {
            header[name] = serde_json::json!({"dtype": "F32", "shape": [0], "data_offsets": [end, end]});
        }
        let header = header.to_string();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend([1.0f32, -2.0].iter().chain(b).flat_map(|x| x.to_le_bytes()));
        std::fs::write(folder.path().join("adapter_model.safetensors"), bytes).unwrap();
        folder
    }

    #[test]
    fn a_stored_check_that_was_changed_is_not_believed() {
        let check = AdapterCheck { items: 3, tokens: 40, largest_change: 0.1 + 0.2, mean_change: 1e-300, merged: None };
        let sha256 = digest("key", &check).unwrap();
        let stored = serde_json::to_string(&Stored { key: "key".into(), sha256: sha256.clone(), check }).unwrap();
        let read = |text: &str| serde_json::from_str::<Stored>(text).unwrap();
        assert_eq!(digest("key", &read(&stored).check).unwrap(), sha256);
        let changed = read(&stored.replace("\"tokens\":40", "\"tokens\":41"));
        assert_ne!(digest("key", &changed.check).unwrap(), changed.sha256);
        assert_ne!(digest("other", &read(&stored).check).unwrap(), sha256);
    }

    #[test]
    fn an_adapter_is_zero_only_if_every_b_is_and_nothing_else_is_there() {
        assert!(is_zero(adapter(&[0.0, -0.0], None).path()).unwrap());
        assert!(!is_zero(adapter(&[0.0, 1e-30], None).path()).unwrap());
        // Read piece by piece: the last number of several pieces counts as the first does.
        let mut long = vec![0.0; PIECE / 2 + 3];
        assert!(is_zero(adapter(&long, None).path()).unwrap());
        *long.last_mut().unwrap() = 1e-30;
        assert!(!is_zero(adapter(&long, None).path()).unwrap());
        assert!(!is_zero(adapter(&[0.0], Some("m.lora_magnitude_vector")).path()).unwrap());
        assert!(!is_zero(Path::new("/no/such/adapter")).unwrap());
        let folder = adapter(&[0.0], None);
        std::fs::write(folder.path().join("adapter_model.safetensors"), b"short").unwrap();
        assert!(is_zero(folder.path()).is_err());
    }
}
