//! The data stage: from the suite's files to training rows, items and queries.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::data::audit::{AuditOptions, DataAudit, audit};
use crate::data::examples::{BadRecord, Example, Examples, FormatOptions, Formatter, LabelledRows};
use crate::data::files::{self, Part};
use crate::data::format::Format;
use crate::data::notes::{self, Note};
use crate::data::pretraining::read_texts_of;
use crate::data::record::{BadRow, Record, SourceFile};
use crate::data::split::PyRandom;
use crate::data::template::ChatTemplate;
use crate::data::tokens::Tokenizer;
use crate::error::{Error, ErrorKind, Result};
use crate::eval::{Item, PartScore, ReferenceScore};
use crate::fsio::{sha256, sha256_file};
use crate::report::SplitRule;
use crate::run::evaluate::Query;
use crate::run::generation::GenerationSettings;
use crate::run::lengths::Lengths;
use crate::run::parts::{Cut, Rows, load};
use crate::run::subject::rendering;
use crate::suite::{GeneralConfig, Suite, TemplateChoice};

/// Everything a suite's data becomes.
#[derive(Debug)]
pub struct Prepared {
    /// Renders and tokenizes.
    pub formatter: Formatter,
    /// Training rows.
    pub train: LabelledRows,
    /// Rows for the loss during training.
    pub validation: LabelledRows,
    /// The held-out items that are evaluated.
    pub items: Vec<Item>,
    /// What a model is asked, one query an item.
    pub queries: Vec<Query>,
    /// Duplicates, leaks, lengths, truncation.
    pub audit: DataAudit,
    /// Lines that could not be used.
    pub bad: Vec<BadRow>,
    /// Ids of rows that could not be read or rendered, which are among the bad lines.
    pub left_out: BTreeSet<String>,
    /// The files.
    pub files: Vec<PreparedFile>,
    /// Rows to train on or to give the loss of which earlier turns of the assistant are not trained on.
    pub untrained_turns: usize,
    /// Records by part, as split.
    pub parts: BTreeMap<String, Vec<Record>>,
    /// How the parts came about, in words.
    pub split_rule: SplitRule,
    /// What the maximum length cuts off.
    pub lengths: Lengths,
    /// What else a reader must know of what was made of the data.
    pub notes: Vec<Note>,
    /// How texts are generated.
    pub generation: GenerationSettings,
    /// Plain text beside the items, if the suite has any.
    pub general: Option<GeneralTexts>,
}

/// A file of rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreparedFile {
    /// The last part of its path.
    pub name: String,
    /// SHA-256 of its bytes.
    pub sha256: String,
    /// The form of its rows.
    pub read_as: Format,
    /// Its usable ones.
    pub rows: usize,
    /// Its columns that are not read, in words.
    pub unread: Option<String>,
}

/// The files of all parts, with the usable rows of each.
fn prepared_files(files: Vec<Rows>, cut: &Cut) -> Vec<PreparedFile> {
    let mut usable: Vec<Vec<usize>> = files.iter().map(|rows| vec![0; rows.sources.len()]).collect();
    for (part, records) in &cut.parts {
        records.iter().for_each(|record| usable[cut.source[part.as_str()]][record.file] += 1);
    }
    cut.unused.iter().for_each(|record| usable[cut.source["train"]][record.file] += 1);
    let sources = files.into_iter().flat_map(|rows| rows.sources);
    let file = |(source, rows): (SourceFile, usize)| PreparedFile {
        name: source.name(),
        unread: source.unread_columns(),
        sha256: source.sha256,
        read_as: source.read_as,
        rows,
    };
    sources.zip(usable.into_iter().flatten()).map(file).collect()
}

/// Plain texts as they are scored.
#[derive(Debug)]
pub struct GeneralTexts {
    /// The file's name.
    pub name: String,
    /// SHA-256 of its bytes.
    pub sha256: String,
    /// How many texts.
    pub texts: usize,
    /// Windows of the texts, in order: each begins with the last token of the one before it, or
    /// with the start token, so that every token of a text is predicted once (lm-eval's rolling
    /// log-likelihood).
    pub windows: Vec<Query>,
    /// The text that each window is of.
    pub text_of: Vec<usize>,
}

impl GeneralTexts {
    /// The score of each text from the scores of its windows.
    ///
    /// # Errors
    /// If there is not one score a window.
    pub fn by_text(&self, scores: &[ReferenceScore]) -> Result<Vec<PartScore>> {
        if scores.len() != self.windows.len() {
            return Err(Error::data(format!("{} scores for {} windows of text", scores.len(), self.windows.len()))
                .help("these results were made with another file of general text: run the suite again"));
        }
        let mut texts = vec![PartScore::default(); self.texts];
        for (&text, score) in self.text_of.iter().zip(scores) {
            let sum = &mut texts[text];
            sum.logprob += score.answer.logprob;
            sum.tokens += score.answer.tokens;
            sum.bytes += score.answer.bytes;
            sum.greedy += score.answer.greedy;
        }
        Ok(texts)
    }
}

/// Reads, splits, renders and tokenizes.
///
/// # Errors
/// What is wrong with a file, line, template or tokenizer; a part that is empty.
pub fn prepare(suite: &Suite) -> Result<Prepared> {
    let folder = rendering(suite)?;
    let formatter = formatter(suite, &folder)?;
    let generation = GenerationSettings::new(&suite.eval, &folder)?;
    let mut data = load(suite)?;
    // A row that cannot be rendered is as one that was never there: the rows without it are split
    // again.
    let mut rounds = 0..;
    let (cut, rendered) = loop {
        let cut = data.cut(suite)?;
        let rendered = render(&cut, &formatter, suite)?;
        if rendered.bad.is_empty() {
            break (cut, rendered);
        }
        data.restore(cut);
        data.leave_out(rendered.bad, rendered.error, suite.data.strict)?;
        // Where only some of many rows are used, others take the place of bad ones and may be bad
        // as well: then all are tried.
        if rounds.next() == Some(1) {
            data.sift(&formatter)?;
        }
    };
    data.sort_bad();
    let Rendered { train, heldout, validation, records, queries, .. } = rendered;
    let views: Vec<(&str, &[Record])> = cut.parts.iter().map(|(name, part)| (name.as_str(), &part[..])).collect();
    let mut audit = audit(&views, AuditOptions::default());
    audit.bad_rows.clone_from(&data.bad);
    let mut parts: Vec<(&str, &Examples)> = Vec::new();
    parts.extend(cut.parts.contains_key("train").then_some(("train", &train)));
    parts.push(("heldout", &heldout));
    parts.extend(validation.as_ref().map(|validation| ("validation", validation)));
    for (name, examples) in &parts {
        audit.add_examples(name, examples);
    }
    let lengths = Lengths::of(suite.data.max_length, &folder, &parts);
    let written: Vec<(&str, usize)> = parts.iter().map(|(name, examples)| (*name, examples.written.len())).collect();
    let tags = &suite.data.think_tags;
    let notes = [
        notes::written(&written, tags),
        notes::left_out(suite.data.reasoning, data.with_think),
        notes::stray(cut.parts.values().flatten(), tags),
        notes::earlier_weights(data.earlier_weights),
        lengths.beyond().and_then(|(longest, holds)| notes::beyond(longest, holds)),
    ];
    let found = data.found.iter().map(|what| notes::found(what));
    let items: Vec<Item> = records.iter().map(Record::to_item).collect();
    check_choices(suite, &items)?;
    let general = suite.eval.general.as_ref().map(|g| general(g, &formatter, suite.data.max_length)).transpose()?;
    Ok(Prepared {
        general,
        lengths,
        train: train.into_rows(),
        validation: validation.unwrap_or(heldout).into_rows(),
        formatter,
        items,
        queries,
        audit,
        bad: data.bad,
        left_out: data.left_out,
        files: prepared_files(data.files, &cut),
        untrained_turns: data.untrained_turns,
        parts: cut.parts,
        split_rule: cut.rule,
        generation,
        notes: found.chain(notes.into_iter().flatten()).collect(),
    })
}

/// The parts as token ids, and the records that have none.
struct Rendered {
    train: Examples,
    heldout: Examples,
    validation: Option<Examples>,
    /// The held-out records that are evaluated, one a query.
    records: Vec<Record>,
    queries: Vec<Query>,
    /// By file.
    bad: Vec<(usize, BadRecord)>,
    /// Of the first bad record.
    error: Option<Error>,
}

/// Renders and tokenizes the parts.
fn render(cut: &Cut, formatter: &Formatter, suite: &Suite) -> Result<Rendered> {
    let (mut bad, mut error) = (Vec::new(), None);
    let mut examples = |part: &str, records: &[Record]| -> Result<Examples> {
        let (mut examples, first) = formatter.try_examples(records)?;
        bad.extend(std::mem::take(&mut examples.bad).into_iter().map(|record| (cut.source[part], record)));
        error = error.take().or(first);
        Ok(examples)
    };
    let train = examples("train", cut.parts.get("train").map_or(&[], Vec::as_slice))?;
    let validation = cut.parts.get("validation").map(|records| examples("validation", records)).transpose()?;
    let records = chosen(suite, &cut.parts["heldout"])?;
    // Without a part of their own, the held-out items give the loss too: all of them, however many
    // are asked.
    let heldout = examples("heldout", if validation.is_some() { &records } else { &cut.parts["heldout"] })?;
    let mut queries = Vec::new();
    // While a record is bad, all is rendered again without it.
    if bad.is_empty() {
        let by_id: HashMap<&str, &Example> = heldout.examples.iter().map(|e| (e.id.as_str(), e)).collect();
        let asked: Vec<Result<Query>> =
            records.par_iter().map(|r| query(formatter, r, by_id.get(r.id.as_str()).copied())).collect();
        for (query, record) in asked.into_iter().zip(&records) {
            match query {
                Ok(query) => queries.push(query),
                Err(e) if e.kind() == ErrorKind::Data => {
                    bad.push((cut.source["heldout"], BadRecord::of(record, &e)));
                    error.get_or_insert(e);
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(Rendered { train, heldout, validation, records, queries, bad, error })
}

/// The general texts of a suite, in windows of at most `max_length` tokens.
fn general(config: &GeneralConfig, formatter: &Formatter, max_length: usize) -> Result<GeneralTexts> {
    let tokenizer = formatter.tokenizer();
    let start = tokenizer.bos_id().or(tokenizer.eos_id()).ok_or_else(|| {
        Error::data("the tokenizer has neither a start nor an end token, so that a text's first token has no prefix")
            .at(config.file.display())
            .help("name one in tokenizer_config.json, or leave out [eval.general]")
    })?;
    let files = files::found(&config.file, Part::Test)?.files;
    let mut texts = read_texts_of(&files)?;
    if config.limit > 0 {
        texts.truncate(config.limit);
    }
    let (mut windows, mut text_of) = (Vec::new(), Vec::new());
    for (number, text) in texts.iter().enumerate() {
        let mut before = start;
        for (part, ids) in tokenizer.encode(text)?.chunks(max_length.max(2) - 1).enumerate() {
            let reference: Vec<u32> = std::iter::once(before).chain(ids.iter().copied()).collect();
            before = ids.last().copied().unwrap_or(before);
            let end = reference.len();
            windows.push(Query {
                id: format!("general {number} {part}"),
                prompt: Vec::new(),
                reference,
                think: 1..1,
                answer: 1..end,
                think_bytes: 0,
                // Only the sum over a text's windows says something.
                answer_bytes: if part == 0 { text.len() as u64 } else { 0 },
                options: Vec::new(),
            });
            text_of.push(number);
        }
    }
    let name = config.file.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    Ok(GeneralTexts { name, sha256: sha256_of(&files)?, texts: texts.len(), windows, text_of })
}

/// SHA-256 of a file; of several, of their digests.
fn sha256_of(files: &[PathBuf]) -> Result<String> {
    if let [only] = files {
        return sha256_file(only);
    }
    let digests: Vec<String> = files.iter().map(|file| sha256_file(file)).collect::<Result<_>>()?;
    Ok(sha256(digests.join("\n").as_bytes()))
}

/// Template and tokenizer of the model in `folder`, with the options of a suite.
fn formatter(suite: &Suite, folder: &Path) -> Result<Formatter> {
    let data = &suite.data;
    let template = match data.template {
        TemplateChoice::Model => ChatTemplate::from_model_dir(folder)?,
        TemplateChoice::ChatmlRecipe => ChatTemplate::chatml_recipe(),
    };
    let tokenizer = Tokenizer::from_model_dir(folder)?;
    let options = FormatOptions {
        system: Some(data.system_prompt.clone()).filter(|s| !s.is_empty()),
        output: data.output,
        end: data.end,
        max_length: data.max_length,
        enable_thinking: suite.eval.enable_thinking,
        now: None,
        choices: data.choices,
        reasoning: data.reasoning,
        train_on: data.train_on,
        think_tags: data.think_tags.clone(),
        stop: suite.eval.stop.clone(),
    };
    Formatter::new(template, tokenizer, options)
}

/// The held-out items to evaluate: all, or as many as the suite says, drawn as the published
/// scripts draw them.
fn chosen(suite: &Suite, heldout: &[Record]) -> Result<Vec<Record>> {
    if suite.eval.items == 0 || suite.eval.items >= heldout.len() {
        return Ok(heldout.to_vec());
    }
    let rows = PyRandom::new(i128::from(suite.seed)).sample(heldout.len(), suite.eval.items)?;
    Ok(rows.into_iter().map(|i| heldout[i].clone()).collect())
}

/// Metrics of multiple choice need items with options.
fn check_choices(suite: &Suite, items: &[Item]) -> Result<()> {
    const OF_OPTIONS: [&str; 5] = ["acc", "acc_norm", "acc_bytes", "acc_extracted", "unparsed"];
    let asked = suite.eval.metrics.iter().find(|m| OF_OPTIONS.contains(&m.as_str()));
    match asked {
        Some(metric) if items.iter().all(|item| item.choice.is_none()) => {
            let key = &suite.data.fields.options;
            Err(Error::usage(format!("the metric `{metric}` needs items with options, and no held-out item has any"))
                .help(format!("give each item a list of texts as {key:?}, or name their key as data.fields.options")))
        }
        _ => Ok(()),
    }
}

/// What is asked for a record. An item whose reference was cut away entirely is still asked, with
/// nothing to score.
fn query(formatter: &Formatter, record: &Record, example: Option<&Example>) -> Result<Query> {
    let prompt = formatter.prompt(record)?.ids;
    let options = formatter.option_examples(record)?;
    // One of which an earlier turn is left to train on has nothing to score.
    let example = example.filter(|e| e.think.start < e.ids.len());
    Ok(match example {
        Some(Example { id, ids, think, answer, think_bytes, answer_bytes, .. }) => Query {
            id: id.clone(),
            prompt,
            reference: ids.clone(),
            think: think.clone(),
            answer: answer.clone(),
            think_bytes: *think_bytes as u64,
            answer_bytes: *answer_bytes as u64,
            options,
        },
        None => {
            // One token has nothing to score; the whole prompt may be longer than the model holds.
            let reference = prompt.get(..1).unwrap_or_default().to_vec();
            let end = reference.len();
            Query {
                id: record.id.clone(),
                reference,
                prompt,
                think: end..end,
                answer: end..end,
                think_bytes: 0,
                answer_bytes: 0,
                options,
            }
        }
    })
}

impl Prepared {
    /// The validation part as items that can be asked, with what is asked of each; none where there
    /// is no such part.
    ///
    /// # Errors
    /// A record that cannot be rendered.
    pub fn validation_items(&self) -> Result<Option<(Vec<Item>, Vec<Query>)>> {
        let Some(records) = self.parts.get("validation") else { return Ok(None) };
        let (examples, error) = self.formatter.try_examples(records)?;
        if let Some(error) = error {
            return Err(error);
        }
        let by_id: HashMap<&str, &Example> = examples.examples.iter().map(|e| (e.id.as_str(), e)).collect();
        let queries = records.iter().map(|r| query(&self.formatter, r, by_id.get(r.id.as_str()).copied()));
        Ok(Some((records.iter().map(Record::to_item).collect(), queries.collect::<Result<_>>()?)))
    }

    /// SHA-256 over ids, questions, references and options of the evaluated items, in order.
    pub fn data_fingerprint(&self) -> String {
        let mut text = String::new();
        for item in &self.items {
            for part in [&item.id, &item.question, &item.think, &item.answer] {
                text.push_str(&format!("{}:{part}\n", part.len()));
            }
            if let Some(decision) = item.decision {
                text.push_str(&format!("decision {decision:?}\n"));
            }
            for option in item.choice.iter().flat_map(|c| &c.options) {
                text.push_str(&format!("option {}:{option}\n", option.len()));
            }
        }
        sha256(text.as_bytes())
    }

    /// SHA-256 over the token ids of all rendered prompts, in order.
    pub fn prompts_fingerprint(&self) -> String {
        let mut bytes = Vec::new();
        for query in &self.queries {
            bytes.extend((query.prompt.len() as u64).to_le_bytes());
            bytes.extend(query.prompt.iter().flat_map(|id| id.to_le_bytes()));
        }
        sha256(&bytes)
    }

    /// SHA-256 over the chat template's source and the options that change what is rendered.
    pub fn template_fingerprint(&self) -> String {
        let options = serde_json::to_string(self.formatter.options()).unwrap_or_default();
        sha256(format!("{}\n{options}", self.formatter.template().sha256()).as_bytes())
    }
}
