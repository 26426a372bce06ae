//! Labelled rows: token ids with their loss masks, and the records that became none.

use super::{Example, Rendered, reason};
use crate::backend::{LabelledView, Tokens, TokensView};
use crate::data::record::{Record, short};
use crate::{Error, Result};

/// Ragged rows with labels, owned: what a trainer is given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelledRows {
    tokens: Tokens,
    labels: Vec<i32>,
}

impl LabelledRows {
    /// Appends a row.
    ///
    /// # Errors
    /// If there is not one label per id.
    pub fn push(&mut self, ids: &[u32], labels: &[i32]) -> Result<()> {
        if ids.len() != labels.len() {
            return Err(Error::data(format!("{} labels for {} ids", labels.len(), ids.len())));
        }
        self.tokens.push(ids);
        self.labels.extend_from_slice(labels);
        Ok(())
    }
    /// How many rows.
    pub fn len(&self) -> usize {
        self.tokens.view().rows()
    }
    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The ids alone.
    pub fn tokens(&self) -> TokensView<'_> {
        self.tokens.view()
    }
    /// A borrowed view.
    pub fn view(&self) -> LabelledView<'_> {
        LabelledView::new(self.tokens.view(), &self.labels).expect("push keeps one label per id")
    }
}

/// The examples of a split, and what truncation did to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Examples {
    /// In the order of the records, without the dropped ones.
    pub examples: Vec<Example>,
    /// Ids of records that were cut to `max_length` (the dropped ones included).
    pub truncated: Vec<String>,
    /// How long each of `truncated` was before the cut.
    pub full_lens: Vec<usize>,
    /// Ids of records left out because nothing to train on was left after the cut.
    pub dropped: Vec<String>,
    /// Records that could not be rendered or tokenized, in the order of the records.
    pub bad: Vec<BadRecord>,
    /// How many rendered texts hold reasoning, those of dropped records included.
    pub with_think: usize,
    /// Ids of records whose reasoning was written into the answer, since the template has no place
    /// for it.
    pub written: Vec<String>,
}

/// A record that cannot be rendered, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRecord {
    /// Its id.
    pub id: String,
    /// Which of the data set's files it is of.
    pub file: usize,
    /// Where it stands in its file.
    pub line: usize,
    /// A lowercase fragment.
    pub reason: String,
}

impl BadRecord {
    /// A record, and the error that it met.
    pub(crate) fn of(record: &Record, error: &Error) -> Self {
        BadRecord { id: record.id.clone(), file: record.file, line: record.line, reason: short(reason(record, error)) }
    }
}

impl Examples {
    pub(super) fn take(&mut self, example: Example) {
        self.with_think += usize::from(example.reasoning.is_there());
        if example.reasoning == Rendered::Written {
            self.written.push(example.id.clone());
        }
        if example.truncated {
            self.truncated.push(example.id.clone());
            self.full_lens.push(example.full_len);
        }
        if example.has_labels() {
            self.examples.push(example);
        } else {
            self.dropped.push(example.id);
        }
    }

    /// As a trainer's rows, without a second copy of all of them.
    pub fn into_rows(self) -> LabelledRows {
        let mut rows = LabelledRows::default();
        for example in self.examples {
            rows.push(&example.ids, &example.labels).expect("an example has one label per id");
        }
        rows
    }

    /// As a trainer's rows.
    pub fn rows(&self) -> LabelledRows {
        let mut rows = LabelledRows::default();
        for example in &self.examples {
            rows.push(&example.ids, &example.labels).expect("an example has one label per id");
        }
        rows
    }
}
