//! The evaluation stage: one model, all items; what is stored is not done again.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::backend::{
    Descriptor, Evaluator, Event, EventSink, GenerateConfig, OpenConfig, Scores, Session, SessionInfo, StopReason,
    Tokens, TokensView,
};
use crate::data::examples::OptionExample;
use crate::data::tokens::Tokenizer;
use crate::error::{Error, Result};
use crate::eval::{OptionScore, PartScore, Prediction, ReferenceScore};
use crate::fsio::{self, sha256};
use crate::memory;
use crate::run::{
    Cancel, LoadedBackend, Notice, Observer, SessionCache, StageSink, Store, backend_error, opening_warnings,
};

/// What a model is asked on one item, as token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// The item's id.
    pub id: String,
    /// The rendered prompt.
    pub prompt: Vec<u32>,
    /// Prompt and reference response.
    pub reference: Vec<u32>,
    /// Where the reference reasoning lies in `reference`; empty if there is none.
    pub think: Range<usize>,
    /// Where the reference answer lies.
    pub answer: Range<usize>,
    /// UTF-8 bytes of the reasoning.
    pub think_bytes: u64,
    /// UTF-8 bytes of the answer.
    pub answer_bytes: u64,
    /// The options of a multiple-choice item, each as the whole answer.
    pub options: Vec<OptionExample>,
}

impl Query {
    /// The rows that are scored: the reference, then the options.
    fn scored(&self) -> impl Iterator<Item = &Vec<u32>> {
        std::iter::once(&self.reference).chain(self.options.iter().map(|o| &o.ids))
    }

    /// The name of its text in a store.
    pub fn prompt_id(&self) -> String {
        row_id(&self.id, &self.prompt, &[])
    }

    /// The name of its scores in a store.
    pub fn score_id(&self) -> String {
        let spans = [self.think.start, self.think.end, self.answer.start, self.answer.end];
        let options =
            self.options.iter().flat_map(|o| o.ids.iter().map(|&id| id as usize).chain([o.start, o.ids.len()]));
        row_id(&self.id, &self.reference, &spans.into_iter().chain(options).collect::<Vec<_>>())
    }
}

/// One model to be evaluated.
#[derive(Clone)]
pub struct EvalJob<'a> {
    /// `base`, `lora`, `full`.
    pub name: &'a str,
    /// Who evaluates.
    pub backend: &'a LoadedBackend,
    /// What is evaluated.
    pub open: OpenConfig,
    /// Everything that decides the numbers beside the rows themselves: hashes of weights, adapter
    /// and tokenizer.
    pub key: BTreeMap<String, String>,
    /// What is asked.
    pub queries: &'a [Query],
    /// What is scored beside the queries, but never continued.
    pub beside: &'a [Query],
    /// How is generated.
    pub generate: GenerateConfig,
    /// Turns ids into text.
    pub tokenizer: &'a Tokenizer,
    /// Where stores go; each key has its own folder below.
    pub folder: PathBuf,
}

/// What was measured, in the order of the queries.
pub struct Evaluated {
    /// What the model wrote.
    pub predictions: Vec<Prediction>,
    /// How probable it found the references.
    pub references: Vec<ReferenceScore>,
    /// How probable it found what was scored beside them.
    pub beside: Vec<ReferenceScore>,
    /// What it took, earlier calls for the same stores included.
    pub effort: Effort,
}

/// What an evaluation took; kept beside the stores, since a reused stage costs nothing now but did
/// once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Effort {
    /// What really ran.
    pub session: SessionInfo,
    /// Seconds of scoring.
    pub score_seconds: f64,
    /// Seconds of generation.
    pub generate_seconds: f64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Highest resident memory of the process.
    pub peak_memory: Option<u64>,
}

impl Effort {
    /// Nothing done yet.
    pub fn nothing(session: SessionInfo) -> Self {
        Effort { session, score_seconds: 0.0, generate_seconds: 0.0, generated_tokens: 0, peak_memory: None }
    }

    /// This work and other work.
    #[must_use]
    fn and(self, other: Effort) -> Effort {
        Effort {
            session: self.session,
            score_seconds: self.score_seconds + other.score_seconds,
            generate_seconds: self.generate_seconds + other.generate_seconds,
            generated_tokens: self.generated_tokens + other.generated_tokens,
            peak_memory: self.peak_memory.max(other.peak_memory),
        }
    }
}

/// Scores the references and generates an answer for every query that is not stored yet; the
/// session is `sessions`'s.
///
/// # Errors
/// The backend's error; interrupted (what is complete is stored); I/O.
pub fn evaluate(
    job: EvalJob<'_>,
    sessions: &mut SessionCache,
    observer: &mut dyn Observer,
    cancel: &Cancel,
) -> Result<Evaluated> {
    let stage = format!("eval {}", job.name);
    let descriptor = job.backend.backend.describe();
    let (key, decode_key) = keys(&job, &descriptor);
    let digest = |key: &BTreeMap<String, String>| sha256(format!("{key:?}").as_bytes())[..12].to_string();
    // Scores do not depend on how texts are decoded: other settings find them again.
    let folder = job.folder.join(format!("{}-{}", job.name, digest(&key)));
    let decode_folder = folder.join(format!("decode-{}", digest(&decode_key)));
    let mut scores = Store::<ReferenceScore>::open(&folder.join("scores.jsonl"), &key)?;
    let mut predictions = Store::<Prediction>::open(&decode_folder.join("predictions.jsonl"), &decode_key)?;

    let prompt_ids: Vec<String> = job.queries.iter().map(Query::prompt_id).collect();
    let scored_queries: Vec<&Query> = job.queries.iter().chain(job.beside).collect();
    let score_ids: Vec<String> = scored_queries.iter().map(|q| q.score_id()).collect();
    let to_generate = missing(&prompt_ids, |id| predictions.get(id).is_some(), |i| job.queries[i].prompt.len());
    let to_score = missing(&score_ids, |id| scores.get(id).is_some(), |i| scored_queries[i].reference.len());

    let files = [folder.join("effort.json"), decode_folder.join("effort.json")];
    let read = |file: &PathBuf| if file.is_file() { fsio::read_json(file).map(Some) } else { Ok(None) };
    let earlier: [Option<Effort>; 2] = [read(&files[0])?, read(&files[1])?];
    let effort = match earlier {
        [Some(scoring), Some(generating)] if to_generate.is_empty() && to_score.is_empty() => {
            observer.notice(Notice::Reused { name: &stage, detail: format!("{} predictions", job.queries.len()) });
            scoring.and(generating)
        }
        earlier => {
            let stored = |kind: &str, all: usize, missing: &[usize]| match all - missing.len() {
                0 => String::new(),
                n => format!(", {n} already {kind}"),
            };
            let detail = format!(
                "{} items{}{}",
                job.queries.len(),
                stored("scored", scored_queries.len(), &to_score),
                stored("generated", job.queries.len(), &to_generate)
            );
            observer.notice(Notice::Stage { name: &stage, detail });
            let session = sessions.session(job.backend, &job.open)?;
            let info = session.info();
            opening_warnings(&job.open, &info).into_iter().for_each(|w| observer.notice(Notice::Warning(w)));
            let [mut scoring, mut generating] = earlier.map(|e| e.unwrap_or_else(|| Effort::nothing(info.clone())));
            let evaluator = evaluator(session, &descriptor.name)?;
            let began = Instant::now();
            let scored =
                score(&scored_queries, evaluator, &to_score, &score_ids, &mut scores, &stage, observer, cancel);
            scores.sync()?;
            scoring.score_seconds += began.elapsed().as_secs_f64();
            scoring.peak_memory = scoring.peak_memory.max(memory::peak());
            // Also of an interrupted call: what it stored, it worked for.
            fsio::write_json(&files[0], &scoring)?;
            scored?;
            let began = Instant::now();
            let rows = (to_generate.as_slice(), info.max_positions);
            let generated = generate(&job, evaluator, rows, &prompt_ids, &mut predictions, &stage, observer, cancel);
            predictions.sync()?;
            generating.generate_seconds += began.elapsed().as_secs_f64();
            let tokens: u64 = predictions.rows().filter_map(|p| Some(p.ids.as_ref()?.len() as u64)).sum();
            let done_here = tokens - generating.generated_tokens.min(tokens);
            generating.generated_tokens = tokens;
            generating.peak_memory = generating.peak_memory.max(memory::peak());
            fsio::write_json(&files[1], &generating)?;
            generated?;
            observer.notice(Notice::Done {
                name: &stage,
                detail: format!("{} scored, {} generated ({done_here} tokens)", to_score.len(), to_generate.len()),
            });
            scoring.and(generating)
        }
    };
    let lost = || Error::failed("a stored prediction is gone").at(folder.display());
    let mut references: Vec<ReferenceScore> =
        score_ids.iter().map(|id| scores.get(id).cloned().ok_or_else(lost)).collect::<Result<_>>()?;
    let beside = references.split_off(job.queries.len());
    Ok(Evaluated {
        predictions: prompt_ids
            .iter()
            .map(|id| predictions.get(id).cloned().ok_or_else(lost))
            .collect::<Result<_>>()?,
        references,
        beside,
        effort,
    })
}

/// What decides the scores of a job, and what decides its texts: the names of their stores. The
/// rendered ids are no part of them; they are in the name of each row, so that a changed prompt
/// costs its own row alone.
fn keys(job: &EvalJob<'_>, descriptor: &Descriptor) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
    let mut key = job.key.clone();
    key.insert("backend".into(), format!("{} {}", descriptor.name, descriptor.version));
    key.insert("build".into(), format!("{:?}", descriptor.build));
    if let Some(sha256) = &job.backend.origin.sha256 {
        // Another build of the same version may give other numbers.
        key.insert("plugin".into(), sha256.clone());
    }
    key.insert("dtype".into(), job.open.dtype.to_string());
    key.insert("device".into(), job.open.device.clone());
    let options: BTreeMap<_, _> = job.open.options.iter().map(|(k, v)| (k, v.to_string())).collect();
    key.insert("options".into(), format!("{options:?}"));
    let mut decode_key = key.clone();
    decode_key.insert("decode".into(), job.generate.deciding());
    if job.generate.temperature != 0.0 {
        // A sampled text also depends on which prompts stand before it.
        let ids: Vec<u8> = job.queries.iter().flat_map(|q| &q.prompt).flat_map(|id| id.to_le_bytes()).collect();
        decode_key.insert("prompts".into(), sha256(&ids));
    }
    (key, decode_key)
}

/// The session's evaluator.
///
/// # Errors
/// If the backend has none.
pub fn evaluator<'s>(session: &'s mut Box<dyn Session>, backend: &str) -> Result<&'s mut dyn Evaluator> {
    session.evaluator().ok_or_else(|| {
        Error::backend(format!("backend {backend} cannot evaluate"))
            .help("name another one: --backend, or eval.backend in a suite")
    })
}

/// Scores of `rows`, held against what they must be: one for every token that has a prefix, and a
/// number each. Everything that asks for scores asks here, so that a model of broken weights is an
/// error wherever it is asked. `doing` says what failed, `place` names a row.
///
/// # Errors
/// The backend's; scores of another shape; one that is not finite.
pub fn scores(
    evaluator: &mut dyn Evaluator,
    rows: TokensView<'_>,
    doing: &str,
    place: &dyn Fn(usize) -> String,
    sink: &mut dyn EventSink,
) -> Result<Scores> {
    let scores = evaluator.score(rows, sink).map_err(|e| backend_error(doing, e))?;
    let wanted: usize = rows.iter().map(|ids| ids.len().saturating_sub(1)).sum();
    if (scores.logprobs.len(), scores.greedy.len()) != (wanted, wanted) {
        let what = format!("{doing}: {} scores for {wanted} tokens", scores.logprobs.len());
        return Err(Error::backend(what).help("report this backend"));
    }
    let Some(broken) = scores.logprobs.iter().position(|logprob| !logprob.is_finite()) else { return Ok(scores) };
    let mut end = 0;
    let row = rows.iter().position(|ids| {
        end += ids.len().saturating_sub(1);
        broken < end
    });
    Err(Error::data("a log-probability of a given text is not a number")
        .at(place(row.unwrap_or_default()))
        .help("the weights hold numbers that are not finite, or are too large: look at the checkpoint"))
}

/// A seed of its own for `purpose`, which follows from `seed`.
pub(super) fn derived_seed(seed: u64, purpose: &str) -> u64 {
    let digest = sha256(format!("{seed} {purpose}").as_bytes());
    // JSON numbers of other readers hold 53 bits.
    u64::from_str_radix(&digest[..13], 16).unwrap_or(seed)
}

/// An item's id with a digest of the ids it stands for, so that a changed prompt is another row.
fn row_id(id: &str, ids: &[u32], extra: &[usize]) -> String {
    let mut bytes: Vec<u8> = ids.iter().flat_map(|i| i.to_le_bytes()).collect();
    bytes.extend(extra.iter().flat_map(|i| (*i as u64).to_le_bytes()));
    format!("{id}:{}", &sha256(&bytes)[..16])
}

/// Rows that are not stored, longest first: the slowest begin early and neighbours have like
/// lengths.
fn missing(ids: &[String], stored: impl Fn(&str) -> bool, length: impl Fn(usize) -> usize) -> Vec<usize> {
    let mut rows: Vec<usize> = (0..ids.len()).filter(|&i| !stored(&ids[i])).collect();
    rows.sort_by_key(|&i| (std::cmp::Reverse(length(i)), i));
    rows
}

/// Rows scored in one call: what a crash may cost.
const SCORE_CHUNK: usize = 64;

#[allow(clippy::too_many_arguments)]
fn score(
    queries: &[&Query],
    evaluator: &mut dyn Evaluator,
    rows: &[usize],
    ids: &[String],
    store: &mut Store<ReferenceScore>,
    stage: &str,
    observer: &mut dyn Observer,
    cancel: &Cancel,
) -> Result<()> {
    let all: usize = rows.iter().map(|&i| queries[i].scored().count()).sum();
    let (mut rows_before, mut tokens_before) = (0, 0);
    for chunk in rows.chunks(SCORE_CHUNK) {
        if cancel.requested() {
            return Err(Error::interrupted());
        }
        let tokens: Tokens = chunk.iter().flat_map(|&i| queries[i].scored()).collect();
        // The backend counts within its call, people count all rows.
        let mut in_all = |notice: Notice<'_>| match notice {
            Notice::Backend { stage, total, event: Event::Progress { stage: what, done, tokens, .. } } => {
                let (done, tokens) = (rows_before + done, tokens_before + tokens);
                let event = Event::Progress { stage: what.clone(), done, total: all as u64, tokens };
                observer.notice(Notice::Backend { stage, total, event: &event });
            }
            other => observer.notice(other),
        };
        let mut sink =
            StageSink { stage, total: None, observer: &mut in_all, cancel, keep: |_: &Event| Ok(()), error: None };
        let owners: Vec<&str> =
            chunk.iter().flat_map(|&i| queries[i].scored().map(move |_| queries[i].id.as_str())).collect();
        let place = |row: usize| format!("item {}", owners[row]);
        let scores = scores(evaluator, tokens.view(), "scoring the references failed", &place, &mut sink)?;
        let mut start = 0;
        for &i in chunk {
            let query = &queries[i];
            let row = score_row(query, &scores, &mut start);
            store.put(&ids[i], row)?;
        }
        rows_before += tokens.view().rows() as u64;
        tokens_before += tokens.view().ids().len() as u64;
    }
    Ok(())
}

/// The scores of one query, whose rows begin at `start` of a call's scores; moves `start` behind
/// them.
fn score_row(query: &Query, scores: &Scores, start: &mut usize) -> ReferenceScore {
    // The token at position t is predicted at t - 1; the first token of a text has no prediction.
    let sum = |start: usize, range: Range<usize>| -> (f64, u64, u64) {
        range.filter(|&t| t > 0).map(|t| start + t - 1).fold((0.0, 0, 0), |(sum, tokens, greedy), at| {
            (sum + f64::from(scores.logprobs[at]), tokens + 1, greedy + u64::from(scores.greedy[at]))
        })
    };
    let part = |range: &Range<usize>, bytes: u64| {
        let (logprob, tokens, greedy) = sum(*start, range.clone());
        PartScore { logprob, tokens, bytes, greedy }
    };
    let think = part(&query.think, query.think_bytes);
    let answer = part(&query.answer, query.answer_bytes);
    *start += query.reference.len().saturating_sub(1);
    let mut options = Vec::with_capacity(query.options.len());
    for OptionExample { ids, start: first, text } in &query.options {
        let (logprob, tokens, _) = sum(*start, *first..ids.len());
        let (characters, bytes) = (text.chars().count() as u64, text.len() as u64);
        options.push(OptionScore { logprob, tokens, characters, bytes });
        *start += ids.len().saturating_sub(1);
    }
    ReferenceScore { id: query.id.clone(), think, answer, options }
}

/// Rows that are sampled in one call.
const SAMPLE_CHUNK: usize = 64;

/// The calls that generate the missing `rows`: which rows, and with which seed.
///
/// Greedy texts depend on nothing but the prompt, so the missing ones go in one call. A sampled
/// text depends on its row number in the call, so the calls are always the same ones over *all*
/// queries, each with a seed of its own, and those with nothing missing are left out: a resumed run
/// has the texts of one that never stopped.
fn calls(job: &EvalJob<'_>, rows: &[usize]) -> Vec<(Vec<usize>, u64)> {
    let seed = job.generate.seed;
    if job.generate.temperature == 0.0 {
        return vec![(rows.to_vec(), seed)];
    }
    let length = |&i: &usize| (std::cmp::Reverse(job.queries[i].prompt.len()), i);
    let mut all: Vec<usize> = (0..job.queries.len()).collect();
    all.sort_by_key(length);
    let seed_of = |chunk: usize| derived_seed(seed, &format!("sampled in call {chunk}"));
    let chunks = all.chunks(SAMPLE_CHUNK).enumerate();
    let wanted = chunks.filter(|(_, chunk)| chunk.iter().any(|i| rows.contains(i)));
    wanted.map(|(number, chunk)| (chunk.to_vec(), seed_of(number))).collect()
}

/// Generates what is missing: `rows`, of which those whose prompt fills the model's `longest`
/// sequence have no room.
#[allow(clippy::too_many_arguments)]
fn generate(
    job: &EvalJob<'_>,
    evaluator: &mut dyn Evaluator,
    (rows, longest): (&[usize], usize),
    ids: &[String],
    store: &mut Store<Prediction>,
    stage: &str,
    observer: &mut dyn Observer,
    cancel: &Cancel,
) -> Result<()> {
    for (call, seed) in calls(job, rows) {
        // One prompt that is too long is no reason to lose the others.
        let (call, too_long): (Vec<usize>, Vec<usize>) =
            call.into_iter().partition(|&i| job.queries[i].prompt.len() < longest);
        for i in too_long {
            let id = job.queries[i].id.clone();
            store.put(
                &ids[i],
                Prediction { id, text: String::new(), ids: Some(Vec::new()), stop: Some(StopReason::Context) },
            )?;
        }
        if call.is_empty() {
            continue;
        }
        let config = GenerateConfig { seed, ..job.generate.clone() };
        let prompts: Tokens = call.iter().map(|&i| &job.queries[i].prompt).collect();
        let mut sink = StageSink {
            stage,
            total: None,
            observer: &mut *observer,
            cancel,
            keep: |event: &Event| {
                let Event::Completion { row, completion } = event else { return Ok(()) };
                let &i = call
                    .get(*row)
                    .ok_or_else(|| Error::backend(format!("the backend completed row {row} of {} rows", call.len())))?;
                if store.get(&ids[i]).is_some() {
                    return Ok(());
                }
                let ended = completion.ids.last().is_some_and(|id| config.stop_ids.contains(id));
                let text = &completion.ids[..completion.ids.len() - usize::from(ended)];
                let prediction = Prediction {
                    id: job.queries[i].id.clone(),
                    text: job.tokenizer.decode(text, true)?,
                    ids: Some(completion.ids.clone()),
                    stop: Some(completion.stop),
                };
                store.put(&ids[i], prediction)
            },
            error: None,
        };
        let result = evaluator.generate(prompts.view(), &config, &mut sink);
        if let Some(error) = sink.error {
            return Err(error);
        }
        result.map_err(|e| {
            let error = backend_error("generation failed", e);
            error.help("run the same command again: what is complete is stored")
        })?;
    }
    Ok(())
}
