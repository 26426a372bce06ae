//! The proof of an adapter in every run that has one: that the backend applied it, and that the
//! weights with the adapter merged into them, as they would be shipped, are the same model.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use karat_system::safetensors::read_header;
use serde::{Deserialize, Serialize};

use crate::backend::{Capability, Event, Flow, GenerateConfig, OpenConfig, Scores, Session, TEMPORARY_MODEL, Tokens};
use crate::error::{Error, Result};
use crate::fsio::{self, PassingFolder, sha256};
use crate::report::{AdapterCheck, MergedCheck};
use crate::run::evaluate::{EvalJob, evaluator, scores};
use crate::run::{Cancel, Notice, Observer, SessionCache, backend_error};

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

/// Looks at the adapter of `job` on a few of its queries; what an earlier run found is reused.
/// `scratch` is a folder in which the merged model may lie for as long as the check takes.
///
/// # Errors
/// An adapter with weights other than zero that changes no log-probability: the backend did not
/// apply it, and a report would quietly say that LoRA changes nothing. The backend's errors;
/// interrupted; I/O.
pub(super) fn check(
    job: &EvalJob<'_>,
    scratch: &Path,
    sessions: &mut SessionCache,
    observer: &mut dyn Observer,
    cancel: &Cancel,
) -> Result<Option<AdapterCheck>> {
    let Some(adapter) = &job.open.adapter else { return Ok(None) };
    let (n, wanted) = (job.queries.len(), job.queries.len().min(PROBES));
    let probes: Vec<_> = (0..wanted).map(|k| &job.queries[k * n / wanted]).collect();
    let references: Tokens = probes.iter().map(|q| &q.reference).collect();
    let prompts: Tokens = probes.iter().map(|q| &q.prompt).collect();
    let descriptor = job.backend.backend.describe();
    let greedy = GenerateConfig::greedy(job.generate.max_new_tokens.min(PROBE_TOKENS), job.generate.stop_ids.clone());

    let asked = format!("{:?} {:?} {}", references, prompts, greedy.deciding());
    // The options decide how a backend applies an adapter.
    let session = format!("{} {} {:?}", job.open.dtype, job.open.device, job.open.options);
    let plugin = job.backend.origin.sha256.as_deref().unwrap_or_default();
    let key = format!("{:?} {descriptor:?} {plugin} {session} {asked}", job.key);
    let key = sha256(key.as_bytes());
    let file = job.folder.join(format!("adapter-{}-{}.json", job.name, &key[..12]));
    let stage = format!("adapter {}", job.name);
    if file.is_file() {
        let stored: Stored = fsio::read_json(&file)?;
        if stored.key == key && stored.sha256 == digest(&key, &stored.check)? {
            observer.notice(Notice::Reused { name: &stage, detail: format!("{} items", stored.check.items) });
            warn_of_merging(job, &stored.check, observer);
            return Ok(Some(stored.check));
        }
    }
    observer.notice(Notice::Stage { name: &stage, detail: format!("{wanted} items with it, without it, merged") });

    let ask = |sessions: &mut SessionCache, open: &OpenConfig, generates: bool| {
        let session = sessions.session(job.backend, open)?;
        ask(session, &descriptor.name, &references, generates.then_some((&prompts, &greedy)), cancel)
    };
    let without = OpenConfig { adapter: None, ..job.open.clone() };
    let (base, _) = ask(sessions, &without, false)?;
    let (with, texts) = ask(sessions, &job.open, true)?;
    let (largest_change, mean_change) = differences(&base, &with);
    if largest_change == 0.0 && !with.logprobs.is_empty() && !is_zero(adapter)? {
        return Err(Error::backend(format!(
            "the adapter of {} was not applied: its weights are not zero, and every log-probability equals the base model's",
            job.name
        ))
        .at(adapter.display())
        .help("report this backend; no number of this adapter can be believed"));
    }
    let merged = if descriptor.capabilities.contains(&Capability::Merge) {
        std::fs::create_dir_all(scratch).map_err(|e| Error::io("create the folder", scratch, e))?;
        // Dropping it removes it, whatever fails below.
        let purpose = TEMPORARY_MODEL.trim_start_matches(fsio::PASSING).trim_end_matches('-');
        let folder =
            PassingFolder::new_in(scratch, purpose).map_err(|e| Error::io("create a folder in", scratch, e))?;
        let into = folder.path().join("merged");
        sessions.close();
        drop(job.backend.open(&OpenConfig { merge_into: Some(into.clone()), ..job.open.clone() })?);
        // What is opened is what was written: the files as they would be shipped.
        let (scores, merged_texts) = ask(sessions, &OpenConfig { model: into, ..without }, true)?;
        let (largest_difference, mean_difference) = differences(&with, &scores);
        Some(MergedCheck {
            largest_difference,
            mean_difference,
            argmax_flips: with.greedy.iter().zip(&scores.greedy).filter(|(a, b)| a != b).count() as u64,
            changed_texts: texts.iter().zip(&merged_texts).filter(|(a, b)| a != b).count(),
            max_new_tokens: greedy.max_new_tokens,
        })
    } else {
        None
    };
    let check = AdapterCheck { items: wanted, tokens: with.logprobs.len() as u64, largest_change, mean_change, merged };
    let merged = check.merged.as_ref().map_or_else(String::new, |m| {
        format!(
            ", merged differs by at most {:.1e} nats, {} of {wanted} texts change",
            m.largest_difference, m.changed_texts
        )
    });
    let detail = format!("applied: log-probabilities change by up to {:.2} nats{merged}", check.largest_change);
    observer.notice(Notice::Done { name: &stage, detail });
    warn_of_merging(job, &check, observer);
    let stored = Stored { sha256: digest(&key, &check)?, key, check };
    fsio::write_json(&file, &stored)?;
    Ok(Some(stored.check))
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

/// Scores the references and, if asked to, continues the prompts.
fn ask(
    session: &mut Box<dyn Session>,
    backend: &str,
    references: &Tokens,
    generates: Option<(&Tokens, &GenerateConfig)>,
    cancel: &Cancel,
) -> Result<(Scores, Vec<Vec<u32>>)> {
    let longest = session.info().max_positions;
    let evaluator = evaluator(session, backend)?;
    let mut sink = |_: Event| if cancel.requested() { Flow::Stop } else { Flow::Continue };
    let place = |row: usize| format!("row {row} of the adapter's probe");
    let scores = scores(evaluator, references.view(), "scoring the adapter's probe failed", &place, &mut sink)?;
    let texts = match generates {
        Some((prompts, config)) => {
            let fitting: Tokens = prompts.view().iter().filter(|p| p.len() < longest).collect();
            let completions = evaluator
                .generate(fitting.view(), config, &mut sink)
                .map_err(|e| backend_error("continuing the adapter's probe failed", e))?;
            completions.into_iter().map(|c| c.ids).collect()
        }
        None => Vec::new(),
    };
    Ok((scores, texts))
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
