//! Texts that are there already, of any origin, measured without a model.
//!
//! Four forms are read: a `results` folder of a run, one of its files, a store (`predictions.jsonl`
//! of a run's `eval` folder), and plain JSON lines `{"id", "candidate"}` that anything may have
//! written (`text` is understood for `candidate`, so what `karat generate` prints can be measured).
//! What a form does not tell is not claimed: fingerprints, decoding settings, reasons to stop,
//! tokens, seconds and parameters are none where nobody knows them, and a comparison with such a
//! report says so.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::backend::StopReason;
use crate::data::notes;
use crate::error::{Error, Result};
use crate::eval::metric::{self, Reads};
use crate::eval::stats::StatsOptions;
use crate::eval::think::{self, ThinkTags};
use crate::eval::{Item, Prediction, ReferenceScore};
use crate::fsio::{self, sha256};
use crate::report::{self, Cost, Data, DataFile, Environment, Fingerprints, Inputs, Language, ModelRun, Report, Role};
use crate::run::renderings::fingerprints;
use crate::run::report_inputs::brought_along;
use crate::run::{Prepared, Recorded, is_store, metrics, read_store, report_recorded};
use crate::suite::{DEFAULT_METRICS, Suite};

/// What is known of how stored texts came about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// They are results of a run of the suite.
    Run,
    /// They are rows of a store: the hash of the decode settings, and whether they were asked with
    /// the suite's prompts.
    Store {
        /// SHA-256 over the decode settings.
        decoding: String,
        /// Every text was made from the prompt that the suite renders.
        prompts: bool,
    },
    /// Nothing.
    Nothing,
}

impl Known {
    /// What such texts are known to have been asked, where it is not what the suite asks.
    pub(super) fn fingerprints(&self, prepared: &Prepared, suite: &Suite) -> Option<Fingerprints> {
        let ours = fingerprints(prepared, suite);
        let found = match self {
            Known::Run => return None,
            Known::Store { decoding, prompts: true } => Fingerprints { decoding: decoding.clone(), ..ours.clone() },
            Known::Store { decoding, prompts: false } => {
                Fingerprints { data: ours.data.clone(), decoding: decoding.clone(), ..Fingerprints::default() }
            }
            Known::Nothing => Fingerprints { data: ours.data.clone(), ..Fingerprints::default() },
        };
        Some(found).filter(|found| *found != ours)
    }

    /// Whether nobody knows how they came about.
    pub(super) fn is_unknown(&self) -> bool {
        *self == Known::Nothing
    }
}

/// A model of which there are texts.
#[derive(Clone, Debug)]
pub struct StoredModel {
    /// What it did.
    pub recorded: Recorded,
    /// How far its origin is known.
    pub known: Known,
}

/// A line of another origin. Other systems have the question under one of three names.
#[derive(Deserialize)]
struct Line {
    id: Option<Value>,
    #[serde(alias = "prompt", alias = "input")]
    question: Option<String>,
    candidate: Option<String>,
    text: Option<String>,
    reference: Option<String>,
    ids: Option<Vec<u32>>,
    stop: Option<StopReason>,
}

/// Reads stored texts for the items of a suite; `name` names the model where the form does not (the
/// file's name, if there is no `name`).
///
/// # Errors
/// I/O; a broken line with its number; an id that is no item, or is there twice; a reference that
/// is not the suite's.
pub fn read_stored(path: &Path, name: Option<&str>, prepared: &Prepared) -> Result<Vec<StoredModel>> {
    if path.is_dir() {
        let inner = path.join("results");
        if path.join("config.json").is_file() || path.join("adapter_config.json").is_file() {
            return Err(Error::usage("this folder holds a model, not texts")
                .at(path.display())
                .help("give a run's folder, its results, or a file of texts; a model is named by path or adapter"));
        }
        let recorded = Recorded::read_all(if inner.is_dir() { &inner } else { path })?;
        return Ok(recorded.into_iter().map(|recorded| StoredModel { recorded, known: Known::Run }).collect());
    }
    let stem = || path.file_stem().map_or_else(|| "model".into(), |s| s.to_string_lossy().into_owned());
    if path.extension().is_some_and(|e| e == "json") {
        let mut recorded: Recorded = fsio::read_json(path)?;
        if let Some(name) = name {
            recorded.name = name.to_string();
            recorded.role = role(name);
        }
        return Ok(vec![StoredModel { recorded, known: Known::Run }]);
    }
    let name = name.map_or_else(stem, str::to_string);
    let model = if is_store(path) { from_store(path, name, prepared)? } else { from_lines(path, name, prepared)? };
    Ok(vec![model])
}

/// The part that a name says.
pub(super) fn role(name: &str) -> Role {
    match name {
        "base" => Role::Base,
        "lora" => Role::Lora,
        "full" => Role::Full,
        _ => Role::Other,
    }
}

/// A recording of texts alone.
fn recording(name: String, predictions: Vec<Prediction>, references: Vec<ReferenceScore>) -> Recorded {
    Recorded {
        role: role(&name),
        name,
        checkpoint_sha256: String::new(),
        fingerprints: None,
        brought: false,
        notes: Vec::new(),
        effort: None,
        disk_bytes: None,
        training: None,
        predictions,
        samples: Vec::new(),
        references,
        general: Vec::new(),
        adapter: None,
    }
}

fn from_store(path: &Path, name: String, prepared: &Prepared) -> Result<StoredModel> {
    let (key, rows) = read_store::<Prediction>(path)?;
    let mut by_item: BTreeMap<&str, Vec<&Prediction>> = BTreeMap::new();
    for row in rows.values() {
        by_item.entry(&row.id).or_default().push(row);
    }
    let (mut predictions, mut prompts) = (Vec::new(), true);
    for query in &prepared.queries {
        // A store keeps the texts of earlier prompts; this suite's is the one that counts.
        let asked = rows.get(&query.prompt_id());
        let found = match (asked, by_item.get(query.id.as_str()).map(Vec::as_slice)) {
            (Some(row), _) => row,
            (None, Some([other])) => {
                prompts = false;
                other
            }
            (None, Some(others @ [_, ..])) => {
                let what =
                    format!("{} texts for `{}`, none of the prompt that the suite renders", others.len(), query.id);
                return Err(Error::data(what).at(path.display()).help("give the suite that they were made with"));
            }
            (None, _) => continue,
        };
        predictions.push(found.clone());
    }
    if predictions.is_empty() {
        return Err(Error::data("none of these texts is of an item of the suite").at(path.display()));
    }
    let beside = path.parent().and_then(Path::parent).map(|folder| folder.join("scores.jsonl"));
    let scores = match beside.filter(|file| file.is_file()) {
        Some(file) => read_store::<ReferenceScore>(&file)?.1,
        None => BTreeMap::new(),
    };
    let references = prepared.queries.iter().filter_map(|q| scores.get(&q.score_id()).cloned()).collect();
    let decoding = key.get("decode").map_or_else(String::new, |settings| sha256(settings.as_bytes()));
    let mut recorded = recording(name, predictions, references);
    recorded.checkpoint_sha256 = key.get("adapter").or(key.get("weights")).cloned().unwrap_or_default();
    Ok(StoredModel { recorded, known: Known::Store { decoding, prompts } })
}

fn from_lines(path: &Path, name: String, prepared: &Prepared) -> Result<StoredModel> {
    let items: BTreeMap<&str, &Item> = prepared.items.iter().map(|i| (i.id.as_str(), i)).collect();
    // None where two items ask the same.
    let mut by_question: BTreeMap<&str, Option<&Item>> = BTreeMap::new();
    for item in &prepared.items {
        by_question.entry(item.question.trim()).and_modify(|found| *found = None).or_insert(Some(item));
    }
    let heldout = prepared.parts.get("heldout").into_iter().flatten();
    let unasked: BTreeSet<&str> = heldout.map(|record| record.id.as_str()).collect();
    let mut seen = BTreeSet::new();
    let (mut predictions, mut asked, mut unmatched) = (Vec::new(), Vec::new(), Vec::new());
    for (number, mut line) in lines(path)? {
        let here = || format!("{}:{number}", path.display());
        let question = line.question.take();
        let (mut prediction, reference) = prediction(line).map_err(|e| e.at(here()))?;
        let item = match items.get(prediction.id.as_str()) {
            Some(item) => {
                // A text under one item's id that answers another's question is of neither for sure.
                let other = question.as_deref().and_then(|question| *by_question.get(question.trim())?);
                if let Some(other) = other.filter(|other| other.id != item.id) {
                    let what = format!("the id is of `{}`, the question of `{}`", item.id, other.id);
                    return Err(Error::data(what).at(here()).help("correct the id, or leave it or the question out"));
                }
                *item
            }
            // Its row was left out, and named among the bad lines; or it is one of the held-out items
            // that the suite does not ask.
            None if prepared.left_out.contains(&prediction.id) || unasked.contains(prediction.id.as_str()) => continue,
            None => match question.as_deref().and_then(|question| *by_question.get(question.trim())?) {
                Some(item) => {
                    asked.push(item.id.clone());
                    item
                }
                None => {
                    unmatched.push((number, prediction.id));
                    continue;
                }
            },
        };
        prediction.id.clone_from(&item.id);
        let same = |reference: &String| {
            let whole = think::join(&item.think, &item.answer);
            let parts = prepared.formatter.options().think_tags.split(reference);
            [whole.as_str(), item.answer.as_str()].iter().any(|ours| ours.trim() == reference.trim())
                || (parts.think, parts.answer) == (item.think.trim(), item.answer.trim())
        };
        if !reference.as_ref().is_none_or(same) {
            return Err(Error::data(format!("the reference of `{}` is not the suite's", prediction.id))
                .at(here())
                .help("leave `reference` out to measure against the suite's, or use `karat metrics` for these pairs alone"));
        }
        if !seen.insert(prediction.id.clone()) {
            return Err(Error::data(format!("a second text for `{}`", prediction.id)).at(here()));
        }
        predictions.push(prediction);
    }
    if let (true, [(first, id), ..]) = (predictions.is_empty(), unmatched.as_slice()) {
        let what = format!("none of these texts is of an item of the suite; the first says `{id}`");
        return Err(Error::data(what)
            .at(format!("{}:{first}", path.display()))
            .help("a line is matched by its id, else by its question: karat data SUITE --prompts FILE writes both"));
    }
    let order: BTreeMap<&str, usize> =
        prepared.items.iter().enumerate().map(|(i, item)| (item.id.as_str(), i)).collect();
    predictions.sort_by_key(|p| order.get(p.id.as_str()).copied());
    let notes = [
        notes::by_question(&name, &asked),
        notes::unmatched(&name, &unmatched.iter().map(|(line, _)| *line).collect::<Vec<_>>()),
    ];
    let notes = notes.into_iter().flatten().collect();
    let recorded = Recorded { notes, ..recording(name, predictions, Vec::new()) };
    Ok(StoredModel { recorded, known: Known::Nothing })
}

/// The lines of a file, with their numbers; at least one.
fn lines(path: &Path) -> Result<Vec<(usize, Line)>> {
    let text = std::fs::read(path).map_err(|e| Error::io("read the predictions", path, e))?;
    let text = String::from_utf8(text).map_err(|e| Error::data("invalid UTF-8").at(path.display()).because(e))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let mut lines = Vec::new();
    // Texts may hold other line separators: only `\n` ends a line of JSON.
    for (number, line) in text.split('\n').enumerate().filter(|(_, l)| !l.trim().is_empty()) {
        let line = serde_json::from_str(line).map_err(|e| {
            Error::data("broken line of predictions")
                .at(format!("{}:{}", path.display(), number + 1))
                .because(e)
                .help(r#"lines are {"id", "candidate"}, perhaps with "question", "reference", "ids" and "stop""#)
        })?;
        lines.push((number + 1, line));
    }
    if lines.is_empty() {
        return Err(Error::data("there are no predictions here").at(path.display()));
    }
    Ok(lines)
}

fn prediction(line: Line) -> Result<(Prediction, Option<String>)> {
    let id = match line.id {
        Some(Value::String(id)) => id,
        Some(Value::Number(id)) => id.to_string(),
        // Matched by its question, if it has one.
        None => String::new(),
        Some(other) => return Err(Error::data(format!("the id {other} is neither a text nor a number"))),
    };
    let text = match (line.candidate, line.text) {
        (Some(text), None) | (None, Some(text)) => text,
        _ => return Err(Error::data(format!("`{id}` needs exactly one of `candidate` and `text`"))),
    };
    Ok((Prediction { id, text, ids: line.ids, stop: line.stop }, line.reference))
}

/// The report of stored texts over the suite's items.
///
/// # Errors
/// As [`report_recorded`].
pub fn report_stored(
    suite: &Suite,
    prepared: &Prepared,
    models: Vec<StoredModel>,
    environment: Environment,
) -> Result<Report> {
    let known: Vec<(String, Known)> = models.iter().map(|m| (m.recorded.name.clone(), m.known.clone())).collect();
    let recorded = models.into_iter().map(|m| m.recorded).collect();
    let mut report = report_recorded(suite, prepared, recorded, environment)?;
    let ours = report.fingerprints.decoding.clone();
    let decoding: BTreeSet<&str> = known
        .iter()
        .map(|(_, known)| match known {
            Known::Run => ours.as_str(),
            Known::Store { decoding, .. } => decoding,
            Known::Nothing => "",
        })
        .collect();
    report.fingerprints.decoding = match decoding.iter().collect::<Vec<_>>().as_slice() {
        [only] => (**only).to_string(),
        _ => String::new(),
    };
    // The settings are the suite's: shown only where they are what the texts were made with.
    if report.fingerprints.decoding != ours {
        report.decoding = None;
    }
    if !known.iter().all(|(_, k)| matches!(k, Known::Run | Known::Store { prompts: true, .. })) {
        report.fingerprints.prompts.clear();
        report.fingerprints.template.clear();
        report.decoding = None;
    }
    let unknown: Vec<&str> = known.iter().filter(|(_, k)| *k == Known::Nothing).map(|(n, _)| n.as_str()).collect();
    if !unknown.is_empty() {
        // Seeds of what nobody carried out here.
        report.seeds.retain(|purpose, _| !matches!(purpose.as_str(), "train" | "generate"));
        report.warnings.extend(brought_along(&unknown, suite.language));
    }
    Ok(report)
}

/// Keeps `models` in `results`, and gives them with the other models that are kept there and were
/// asked the same items; and what is to be said of them.
///
/// # Errors
/// I/O; a broken file there.
pub fn gather_stored(
    results: &Path,
    suite: &Suite,
    prepared: &Prepared,
    mut models: Vec<StoredModel>,
) -> Result<(Vec<StoredModel>, Vec<String>)> {
    let (ours, mut said) = (fingerprints(prepared, suite), Vec::new());
    for StoredModel { recorded, known } in &models {
        if recorded.replaces(results) {
            said.push(format!("{} takes the place of another model of that name here", recorded.name));
        }
        let own = known.fingerprints(prepared, suite).or(recorded.fingerprints.clone()).unwrap_or_else(|| ours.clone());
        let brought = recorded.brought || known.is_unknown();
        Recorded { fingerprints: Some(own), brought, ..recorded.clone() }.write(results)?;
    }
    for recorded in Recorded::read_all(results)? {
        if models.iter().any(|model| model.recorded.name == recorded.name) {
            continue;
        }
        let known = match &recorded.fingerprints {
            Some(theirs) if *theirs == ours => Known::Run,
            Some(theirs) if theirs.data != ours.data => {
                said.push(format!(
                    "{} was measured in this folder too, but on other items: it is left out of the report",
                    recorded.name
                ));
                continue;
            }
            Some(theirs) if !recorded.brought => {
                Known::Store { decoding: theirs.decoding.clone(), prompts: theirs.prompts == ours.prompts }
            }
            _ => Known::Nothing,
        };
        models.push(StoredModel { recorded, known });
    }
    Ok((models, said))
}

/// The report of pairs of reference and candidate alone, without a suite: one model, named `name`,
/// measured by the usual text metrics.
///
/// # Errors
/// I/O; a broken line, one without a reference, or a second one of an id.
pub fn report_pairs(path: &Path, name: &str) -> Result<Report> {
    let tags = ThinkTags::default();
    let (mut items, mut predictions, mut content) = (Vec::new(), Vec::new(), Vec::new());
    for (number, line) in lines(path)? {
        let here = || format!("{}:{number}", path.display());
        let (prediction, reference) = prediction(line).map_err(|e| e.at(here()))?;
        let reference = reference.ok_or_else(|| {
            Error::data(format!("`{}` has no reference to compare with", prediction.id))
                .at(here())
                .help(r#"lines are {"id", "reference", "candidate"}; with a suite's references: karat eval SUITE --predictions FILE"#)
        })?;
        content.push([&prediction.id, &reference].map(|part| format!("{}:{part}\n", part.len())).concat());
        let parts = tags.split(&reference);
        items.push(Item {
            id: prediction.id.clone(),
            question: String::new(),
            think: parts.think.to_string(),
            answer: parts.answer.to_string(),
            cluster: prediction.id.clone(),
            choice: None,
            decision: None,
        });
        predictions.push(prediction);
    }
    // The same pairs are the same data, in whatever order a file has them.
    items.sort_by(|a: &Item, b: &Item| a.id.cmp(&b.id));
    predictions.sort_by(|a: &Prediction, b: &Prediction| a.id.cmp(&b.id));
    content.sort();
    let of_text = |name: &&str| {
        metric::info(name).is_some_and(|m| matches!(m.reads, Reads::Answer | Reads::Think | Reads::FullText))
    };
    let names: Vec<String> = DEFAULT_METRICS.iter().filter(|n| of_text(n)).map(|n| (*n).to_string()).collect();
    let results = metrics::measure(&tags, &names, &items, predictions, Vec::new())?;
    let file = path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    let data = sha256(content.concat().as_bytes());
    let stats = StatsOptions::default();
    report::build(&Inputs {
        language: Language::English,
        suite: report::Suite { name: file.clone(), ..report::Suite::default() },
        seeds: BTreeMap::from([("statistics".to_string(), stats.seed)]),
        fingerprints: Fingerprints { data, ..Fingerprints::default() },
        data: Data {
            files: vec![DataFile {
                name: file,
                sha256: fsio::sha256_file(path)?,
                rows: items.len() as u64,
                read_as: None,
            }],
            splits: BTreeMap::from([("pairs".to_string(), items.len() as u64)]),
            ..Data::default()
        },
        decoding: None,
        stats,
        items: &items,
        models: vec![ModelRun {
            name: name.to_string(),
            role: Role::Other,
            checkpoint_sha256: String::new(),
            fingerprints: None,
            samples: Vec::new(),
            session: None,
            think_tags: tags,
            items: results,
            pooled: BTreeMap::new(),
            training: None,
            adapter: None,
            cost: Cost::default(),
        }],
        pairs: Vec::new(),
        recipes: Vec::new(),
        recipe_pairs: Vec::new(),
        priorities: None,
        metrics: metrics::describe(&names),
        examples: Vec::new(),
        general: None,
        tokens: BTreeMap::new(),
        overfitting_margin: Inputs::OVERFITTING_MARGIN,
        warnings: Vec::new(),
        environment: Environment::default(),
    })
}
