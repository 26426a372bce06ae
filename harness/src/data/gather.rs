//! Rows to a data set: one form a file, every id once, bad rows named.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::fields::Reading;
use super::format::{self, Format, KNOWN};
use super::layout::{self, Body};
use super::record::{BadRow, Dataset, Parsed, Record, SourceFile, short};
use crate::eval::{Choice, Decision};
use crate::{Error, Result, fsio};

/// Rows without a form that are kept until one has it; of later ones only the line is.
const KEPT: usize = 1_000;
/// Columns that an error names.
const NAMED: usize = 24;

/// Takes the rows of one file after the other.
pub(super) struct Gatherer<'a> {
    reading: &'a Reading<'a>,
    /// The form that every row is said to have.
    forced: Option<Format>,
    rows: Rows,
    bad: Vec<BadRow>,
    bad_ids: Vec<String>,
    files: Vec<SourceFile>,
    file: File,
}

/// The file that is read.
#[derive(Default)]
struct File {
    source: String,
    /// Its form, and the line that has it first.
    form: Option<(Format, usize)>,
    /// Rows that have no form, while none has.
    waiting: Vec<(usize, Option<Map<String, Value>>)>,
    /// Names of columns, as they were met.
    columns: Vec<String>,
    /// Columns that are not read, with the rows that have them.
    unread: Vec<(String, usize)>,
    /// Of all files before it.
    good_before: usize,
    bad_before: usize,
}

impl File {
    fn count_unread(&mut self, name: String) {
        let name = short(name);
        match self.unread.iter().position(|(known, _)| *known == name) {
            Some(at) => self.unread[at].1 += 1,
            None if self.unread.len() < NAMED => self.unread.push((name, 1)),
            None => {}
        }
    }
}

impl<'a> Gatherer<'a> {
    pub(super) fn new(reading: &'a Reading<'a>) -> Self {
        let forced = Some(format::forced(reading)).filter(|format| *format != Format::Auto);
        let (rows, bad, bad_ids, files, file) = Default::default();
        Gatherer { reading, forced, rows, bad, bad_ids, files, file }
    }

    /// Begins a file.
    pub(super) fn begin(&mut self, source: &str) {
        let (good_before, bad_before) = (self.rows.records.len(), self.bad.len());
        self.file = File { source: source.into(), good_before, bad_before, ..File::default() };
    }

    /// Takes a row.
    ///
    /// # Errors
    /// With `strict`, for a bad one; for one of another form than the file's, and for a form that is
    /// not read.
    pub(super) fn take(&mut self, line: usize, row: Parsed) -> Result<()> {
        let mut row = match row {
            Ok(row) => row,
            Err(reason) => return self.leave(line, None, reason),
        };
        layout::parse_turns(&mut row, self.reading.fields);
        let found = self.forced.or_else(|| format::detect(&row, self.reading.fields));
        match (self.file.form, found) {
            (None, None) => return self.wait(line, row),
            (None, Some(found)) => self.decide(found, line)?,
            (Some((form, first)), Some(found)) if form != found => {
                let what = format!("the row is of the form {found}, the one on line {first} of the form {form}");
                return Err(Error::data(what).at(format_args!("{}:{line}", self.file.source)).help(format!(
                    "part the file by form; or set data.format = \"{form}\" (karat train: --format), which makes rows of other forms bad ones"
                )));
            }
            (Some(_), _) => {}
        }
        self.read(line, row)
    }

    /// The form of the file is known: the rows that waited for it are read.
    fn decide(&mut self, form: Format, line: usize) -> Result<()> {
        if let Some(error) = format::refused(form, self.reading) {
            return Err(error.at(format_args!("{}:{line}", self.file.source)));
        }
        self.file.form = Some((form, line));
        for (line, row) in std::mem::take(&mut self.file.waiting) {
            match row {
                Some(row) => self.read(line, row)?,
                None => self.leave(line, None, "it has no columns of a known form".into())?,
            }
        }
        Ok(())
    }

    /// Notes the columns of a row, for what is said if no row is good.
    fn note(&mut self, row: &Map<String, Value>) {
        for name in row.keys() {
            if self.file.columns.len() < NAMED && !self.file.columns.contains(name) {
                self.file.columns.push(short(name.clone()));
            }
        }
    }

    fn wait(&mut self, line: usize, row: Map<String, Value>) -> Result<()> {
        self.note(&row);
        let row = (self.file.waiting.len() < KEPT).then_some(row);
        self.file.waiting.push((line, row));
        Ok(())
    }

    fn read(&mut self, line: usize, row: Map<String, Value>) -> Result<()> {
        let form = self.file.form.map_or(Format::Columns, |(form, _)| form);
        if self.forced.is_some() && self.rows.records.len() == self.file.good_before {
            self.note(&row);
        }
        let id = layout::label(&row, &self.reading.fields.id).ok().flatten();
        let place = (self.files.len(), line);
        let unread: Vec<String> = layout::unread(&row, form, self.reading).take(NAMED).cloned().collect();
        match self.rows.take(place, &self.files, row, form, self.reading) {
            Ok(()) => {
                unread.into_iter().for_each(|name| self.file.count_unread(name));
                Ok(())
            }
            Err(reason) => self.leave(line, id, reason),
        }
    }

    /// A row that is none.
    fn leave(&mut self, line: usize, id: Option<String>, reason: String) -> Result<()> {
        let row = BadRow { file: self.file.source.clone(), line, reason: short(reason) };
        if self.reading.strict {
            return Err(row.into());
        }
        self.bad.push(row);
        self.bad_ids.extend(id);
        Ok(())
    }

    /// Ends the file.
    ///
    /// # Errors
    /// If it has no good row.
    pub(super) fn end(&mut self, sha256: String) -> Result<()> {
        let found = std::mem::take(&mut self.file.columns);
        let mut columns = String::new();
        if !found.is_empty() {
            let names: Vec<String> = found.iter().map(|name| format!("{name:?}")).collect();
            columns = format!("; the columns are {}", names.join(", "));
        }
        if self.file.form.is_none() {
            // Read as what they come nearest to, the rows say what they lack.
            let waiting = std::mem::take(&mut self.file.waiting);
            let near = waiting.iter().find_map(|(_, row)| format::nearest(row.as_ref()?, self.reading.fields));
            let said = |error: Error| {
                let what = format!("{}{columns}", error.what());
                Err(super::examples::rephrased(error, what).help(KNOWN))
            };
            match (near, waiting.first()) {
                (Some(near), Some((line, _))) => {
                    let line = *line;
                    self.file.waiting = waiting;
                    self.decide(near, line).or_else(said)?;
                }
                _ => {
                    for (line, _) in waiting {
                        self.leave(line, None, "it has no columns of a known form".into()).or_else(said)?;
                    }
                }
            }
        }
        let bad = &mut self.bad[self.file.bad_before..];
        bad.sort_by_key(|row| row.line);
        let rows = self.rows.records.len() - self.file.good_before;
        let source = std::mem::take(&mut self.file.source);
        if rows == 0 {
            return Err(no_rows(&source, bad, &columns));
        }
        let read_as = self.file.form.map_or(Format::Columns, |(form, _)| form);
        let unread = std::mem::take(&mut self.file.unread);
        self.files.push(SourceFile { path: source, sha256, read_as, rows, unread });
        Ok(())
    }

    /// The data set.
    ///
    /// # Errors
    /// If there was no file.
    pub(super) fn finish(self) -> Result<Dataset> {
        if self.files.is_empty() {
            return Err(Error::data("there is no data file").help("give at least one"));
        }
        let Rows { records, earlier_weights, untrained_turns, .. } = self.rows;
        let (bad, bad_ids, files) = (self.bad, self.bad_ids, self.files);
        Ok(Dataset { records, bad, bad_ids, files, earlier_weights, untrained_turns })
    }
}

fn no_rows(source: &str, bad: &[BadRow], columns: &str) -> Error {
    let Some(first) = bad.first() else {
        return Error::data("the data set is empty")
            .at(source)
            .help("give a file with one JSON object a line, a JSON array, or a .csv, .tsv or .parquet");
    };
    let what =
        format!("none of the {} lines is a usable row; line {}: {}{columns}", bad.len(), first.line, first.reason);
    let help = match columns.is_empty() {
        false => KNOWN,
        true => {
            "check that the file is what its name says (.jsonl, .json, .csv, .tsv, .parquet) and that the suite's field names are the \
             file's"
        }
    };
    Error::data(what).at(source).help(help)
}

#[derive(Default)]
struct Rows {
    /// Explicit id to the file and line that had it first.
    seen: BTreeMap<String, (usize, usize)>,
    taken: BTreeSet<String>,
    records: Vec<Record>,
    earlier_weights: usize,
    untrained_turns: usize,
}

impl Rows {
    fn take(
        &mut self,
        (file, line): (usize, usize),
        files: &[SourceFile],
        row: Map<String, Value>,
        form: Format,
        reading: &Reading<'_>,
    ) -> Result<(), String> {
        let fields = reading.fields;
        let body = layout::read(&row, form, reading)?;
        for (name, text) in [("question", &body.question), ("think", &body.think), ("answer", &body.answer)]
            .into_iter()
            .chain(body.instruction.iter().map(|text| ("instruction", text)))
            .chain(body.history.iter().map(|turn| ("message", &turn.content)))
            .chain(body.history.iter().filter_map(|turn| Some(("message", turn.reasoning_content.as_ref()?))))
        {
            if text.contains('\0') {
                return Err(format!("the {name} contains a NUL character"));
            }
        }
        let choice = match layout::options(&row, &fields.options)? {
            Some(options) => Some(Choice::new(options, &body.answer)?),
            None => None,
        };
        let (given, cluster) = (layout::label(&row, &fields.id)?, layout::label(&row, &fields.cluster)?);
        let id = match given {
            Some(id) => {
                if let Some(&(of, first)) = self.seen.get(&id) {
                    let of = files.get(of).map_or(String::new(), |other| format!(" of {}", other.path));
                    return Err(format!("the id {id:?} was already used on line {first}{of}"));
                }
                self.seen.insert(id.clone(), (file, line));
                id
            }
            None => self.content_id(&body),
        };
        let decision = decision(&row)?;
        self.taken.insert(id.clone());
        let cluster = cluster.unwrap_or_else(|| id.clone());
        self.earlier_weights += usize::from(body.earlier_weight);
        let Body { instruction, history, question, question_keys, think, answer, answer_keys, trained, .. } = body;
        let answered = history.iter().any(|turn| turn.role == "assistant");
        self.untrained_turns += usize::from(answered && trained.is_empty());
        self.records.push(Record {
            id,
            instruction,
            history,
            trained,
            question,
            question_keys,
            think,
            answer,
            answer_keys,
            cluster,
            choice,
            decision,
            file,
            line,
        });
        Ok(())
    }

    fn content_id(&self, body: &Body) -> String {
        let content = [body.question.as_str(), &body.think, &body.answer].join("\0");
        let digest = fsio::sha256(content.as_bytes());
        let base = format!("sha256:{}", &digest[..16]);
        if !self.taken.contains(&base) {
            return base;
        }
        (2..).map(|n| format!("{base}#{n}")).find(|id| !self.taken.contains(id)).unwrap_or(base)
    }
}

/// What a right answer decides, if the row says so under `metrics.decision`.
fn decision(row: &Map<String, Value>) -> Result<Option<Decision>, String> {
    match row.get("metrics").and_then(|metrics| metrics.get("decision")) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => Decision::from_value(value)
            .map(Some)
            .ok_or_else(|| format!("\"metrics.decision\" must be \"yes\" or \"no\", found {value}")),
    }
}
