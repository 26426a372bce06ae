//! The parts of a suite's data: its files read, the rows that cannot be used left out, the rest
//! split.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use rayon::prelude::*;

use crate::data::examples::{BadRecord, Formatter, Reasoning, rephrased};
use crate::data::files::{self, Part};
use crate::data::record::{BadRow, Dataset, Record, SourceFile};
use crate::data::split::split;
use crate::error::{Error, ErrorKind, Result};
use crate::report::SplitRule;
use crate::suite::Suite;

/// The files as they were read.
pub(super) struct Loaded {
    /// Rows to be cut, or training, held-out and perhaps validation items.
    pub(super) files: Vec<Rows>,
    pub(super) bad: Vec<BadRow>,
    pub(super) earlier_weights: usize,
    /// Rows of which earlier turns of the assistant are not trained on.
    pub(super) untrained_turns: usize,
    /// What is to be known of how the files were found.
    pub(super) found: Vec<String>,
    /// Records that have reasoning in their file.
    pub(super) with_think: usize,
    /// Ids of rows that could not be read or rendered.
    pub(super) left_out: BTreeSet<String>,
    /// Of the first of them.
    error: Option<Error>,
    /// File and line of the bad rows.
    seen: HashSet<(String, usize)>,
}

/// The rows of one file or several that belong together.
pub(super) struct Rows {
    pub(super) sources: Vec<SourceFile>,
    /// The usable ones.
    pub(super) records: Vec<Record>,
}

/// The records in parts.
pub(super) struct Cut {
    pub(super) parts: BTreeMap<String, Vec<Record>>,
    /// Records of the training part beyond the limit.
    pub(super) unused: Vec<Record>,
    /// Which of the files' rows a part is of.
    pub(super) source: BTreeMap<&'static str, usize>,
    /// How they came about, in words.
    pub(super) rule: SplitRule,
}

/// Reads the files.
pub(super) fn load(suite: &Suite) -> Result<Loaded> {
    let data = &suite.data;
    let reading = data.reading();
    let all = match (&data.file, &data.train, &data.heldout) {
        (Some(file), ..) => vec![(Part::Train, file)],
        (None, None, Some(heldout)) => vec![(Part::Test, heldout)],
        (None, Some(train), Some(heldout)) => {
            let validation = data.validation.iter().map(|paths| (Part::Validation, paths));
            [(Part::Train, train), (Part::Test, heldout)].into_iter().chain(validation).collect()
        }
        _ => return Err(Error::usage("[data] needs either `file`, or `train` and `heldout`")),
    };
    let mut loaded = Loaded {
        files: Vec::new(),
        bad: Vec::new(),
        earlier_weights: 0,
        untrained_turns: 0,
        found: Vec::new(),
        with_think: 0,
        left_out: BTreeSet::new(),
        error: None,
        seen: HashSet::new(),
    };
    for (part, paths) in all {
        let mut files = Vec::new();
        for path in paths.iter() {
            let found = files::found(path, part)?;
            files.extend(found.files);
            loaded.found.extend(found.note);
        }
        let Dataset { mut records, bad, bad_ids, files, earlier_weights, untrained_turns } =
            reading.read_files(&files)?;
        loaded.earlier_weights += earlier_weights;
        loaded.untrained_turns += if part == Part::Test { 0 } else { untrained_turns };
        loaded.with_think += records.iter().filter(|record| !record.think.trim().is_empty()).count();
        if data.reasoning == Reasoning::Drop {
            // A reference without reasoning is also what is measured against.
            records.iter_mut().for_each(|record| record.think.clear());
        }
        loaded.files.push(Rows { sources: files, records });
        bad.into_iter().for_each(|row| loaded.push_bad(row));
        loaded.left_out.extend(bad_ids);
    }
    Ok(loaded)
}

impl Loaded {
    /// A file that serves as two parts has its bad rows once.
    fn push_bad(&mut self, row: BadRow) {
        if self.seen.insert((row.file.clone(), row.line)) {
            self.bad.push(row);
        }
    }

    /// Makes records that cannot be rendered bad rows of their files; `error` is what the first of
    /// them met.
    ///
    /// # Errors
    /// With `strict`, the first.
    pub(super) fn leave_out(&mut self, bad: Vec<(usize, BadRecord)>, error: Option<Error>, strict: bool) -> Result<()> {
        let mut lines: Vec<HashSet<(usize, usize)>> = vec![HashSet::new(); self.files.len()];
        for (rows, BadRecord { id, file, line, reason }) in bad {
            let row = BadRow { file: self.files[rows].sources[file].path.clone(), line, reason };
            if strict {
                return Err(row.into());
            }
            lines[rows].insert((file, line));
            self.left_out.insert(id);
            self.push_bad(row);
        }
        for (file, lines) in self.files.iter_mut().zip(&lines) {
            file.records.retain(|record| !lines.contains(&(record.file, record.line)));
        }
        self.error = self.error.take().or(error);
        Ok(())
    }

    /// Leaves out every record that cannot be rendered, used or not.
    pub(super) fn sift(&mut self, formatter: &Formatter) -> Result<()> {
        let mut bad = Vec::new();
        for (number, file) in self.files.iter().enumerate() {
            bad.extend(formatter.try_examples(&file.records)?.0.bad.into_iter().map(|record| (number, record)));
            let choices = file.records.par_iter().filter(|record| record.choice.is_some());
            let options: Vec<_> = choices.map(|record| (record, formatter.option_examples(record))).collect();
            for (record, options) in options {
                match options {
                    Err(error) if error.kind() == ErrorKind::Data => bad.push((number, BadRecord::of(record, &error))),
                    other => drop(other?),
                }
            }
        }
        self.leave_out(bad, None, false)
    }

    /// The bad rows in the order of their files and lines.
    pub(super) fn sort_bad(&mut self) {
        let sources = self.files.iter().flat_map(|rows| &rows.sources).map(|source| source.path.as_str());
        // The first of a file that serves twice.
        let mut places = HashMap::new();
        for (at, path) in sources.enumerate() {
            places.entry(path).or_insert(at);
        }
        self.bad.sort_by_key(|row| (places.get(row.file.as_str()).copied(), row.line));
    }

    /// Cuts the records into `train`, `heldout` and perhaps `validation`, of which none may be
    /// empty; where nothing is trained, held-out items may stand alone. The records are moved, not
    /// copied: [`Loaded::restore`] takes them back.
    pub(super) fn cut(&mut self, suite: &Suite) -> Result<Cut> {
        let shares = String::from(suite.data.split);
        let seed = suite.seed;
        let mut source = BTreeMap::from([("train", 0), ("heldout", 0), ("validation", 0)]);
        let mut files = self.files.iter_mut().map(|rows| std::mem::take(&mut rows.records));
        let (records, heldout, own_validation) = (files.next().unwrap_or_default(), files.next(), files.next());
        let mut parts = BTreeMap::new();
        let rule = if suite.data.file.is_none() && suite.data.train.is_none() {
            parts.insert("heldout".to_string(), records);
            SplitRule::HeldoutAlone
        } else if let Some(validation) = own_validation {
            source.extend([("heldout", 1), ("validation", 2)]);
            parts.insert("train".to_string(), records);
            parts.insert("heldout".to_string(), heldout.unwrap_or_default());
            parts.insert("validation".to_string(), validation);
            SplitRule::OwnFiles
        } else {
            let rows = split(records.len(), i128::from(seed), suite.data.split);
            let mut left: Vec<Option<Record>> = records.into_iter().map(Some).collect();
            let mut take = |rows: &[usize]| rows.iter().filter_map(|&i| left[i].take()).collect::<Vec<_>>();
            parts.insert("train".to_string(), take(&rows.train));
            match heldout {
                Some(heldout) => {
                    parts.insert("validation".to_string(), take(&rows.validation));
                    parts.insert("heldout".to_string(), heldout);
                    source.insert("heldout", 1);
                    SplitRule::HeldoutFile { seed, shares }
                }
                None if rows.test.is_empty() => {
                    parts.insert("heldout".to_string(), take(&rows.validation));
                    SplitRule::Shuffled { seed, shares, heldout_gives_loss: true }
                }
                None => {
                    parts.insert("validation".to_string(), take(&rows.validation));
                    parts.insert("heldout".to_string(), take(&rows.test));
                    SplitRule::Shuffled { seed, shares, heldout_gives_loss: false }
                }
            }
        };
        let mut unused = Vec::new();
        if suite.data.train_limit > 0
            && let Some(train) = parts.get_mut("train")
            && train.len() > suite.data.train_limit
        {
            unused = train.split_off(suite.data.train_limit);
        }
        match parts.iter().find(|(_, records): &(_, &Vec<Record>)| records.is_empty()) {
            Some((name, _)) => Err(self.empty(name)),
            None => Ok(Cut { parts, unused, source, rule }),
        }
    }

    /// Takes the records of a cut back, in the order of their files.
    pub(super) fn restore(&mut self, cut: Cut) {
        let Cut { parts, unused, source, .. } = cut;
        for (part, records) in parts.into_iter().chain([("train".to_string(), unused)]) {
            self.files[source[part.as_str()]].records.extend(records);
        }
        for rows in &mut self.files {
            rows.records.sort_by_key(|record| (record.file, record.line));
        }
    }

    /// What is said where a part has no rows, because of bad ones or not.
    fn empty(&mut self, part: &str) -> Error {
        let what = format!("the {part} part of the data is empty");
        let without = format!("{what} once {} bad rows are left out", self.bad.len());
        match (self.error.take(), self.bad.first()) {
            (Some(error), _) => {
                let what = format!("{without}; {}", error.what());
                return rephrased(error, what);
            }
            (None, Some(bad)) => {
                let help = "mend the bad rows, or give more items or another split";
                return Error::data(format!("{without}; {}", bad.reason))
                    .at(format_args!("{}:{}", bad.file, bad.line))
                    .help(help);
            }
            (None, None) => {}
        }
        let names = self.files.iter().flat_map(|rows| &rows.sources).map(SourceFile::name);
        let source = names.collect::<Vec<_>>().join(", ");
        Error::data(what).at(source).help("give more items or another split")
    }
}
