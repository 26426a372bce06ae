//! Labelled rows as the model is trained on them: which tokens are targets, and where.

use karat_backend::{IGNORE, LabelledView};

/// A label that is trained on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// The place in its row of the token that predicts it.
    pub at: usize,
    /// The token to be predicted.
    pub id: u32,
}

/// The targets among the labels of a row. The label of a row's first token predicts nothing and is
/// none.
fn targets(labels: &[i32]) -> impl Iterator<Item = Label> + '_ {
    let trained = labels.iter().enumerate().skip(1).filter(|(_, label)| **label != IGNORE);
    trained.map(|(i, label)| Label { at: i - 1, id: *label as u32 })
}

/// Rows of labelled data that go through the model together.
#[derive(Clone, Copy, Debug)]
pub struct MicroBatch<'a> {
    data: LabelledView<'a>,
    rows: &'a [u32],
}

impl<'a> MicroBatch<'a> {
    /// `rows` of `data`.
    pub fn new(data: LabelledView<'a>, rows: &'a [u32]) -> Self {
        MicroBatch { data, rows }
    }

    /// The ids of each row, and the targets in it.
    pub fn rows(self) -> impl Iterator<Item = (&'a [u32], impl Iterator<Item = Label> + use<'a>)> {
        let row = move |row: &u32| {
            let row = *row as usize;
            (self.data.tokens().row(row), targets(self.data.row_labels(row)))
        };
        self.rows.iter().map(row)
    }

    /// How many ids the rows have.
    pub fn tokens(self) -> u64 {
        self.rows().map(|(ids, _)| ids.len() as u64).sum()
    }

    /// The targets of all rows, in order.
    pub fn targets(self) -> impl Iterator<Item = Label> + use<'a> {
        self.rows().flat_map(|(_, targets)| targets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use karat_backend::Tokens;

    #[test]
    fn the_first_label_predicts_nothing_and_what_is_ignored_is_no_target() {
        let of = |labels: &[i32]| targets(labels).map(|Label { at, id }| (at, id)).collect::<Vec<_>>();
        assert_eq!(of(&[5, IGNORE, 7, 8]), [(1, 7), (2, 8)]);
        assert!(of(&[5]).is_empty() && of(&[]).is_empty());
    }

    #[test]
    fn a_micro_batch_has_the_rows_that_it_names_in_their_order() {
        let tokens: Tokens = [&[1u32, 2, 3][..], &[4, 5], &[]].into_iter().collect();
        let data = LabelledView::new(tokens.view(), &[IGNORE, 2, 3, 4, IGNORE]).unwrap();
        let batch = MicroBatch::new(data, &[1, 0, 2, 0]);
        assert_eq!((batch.tokens(), batch.targets().count()), (8, 4));
        let rows: Vec<(&[u32], usize)> = batch.rows().map(|(ids, targets)| (ids, targets.count())).collect();
        assert_eq!(rows, [(&[4, 5][..], 0), (&[1, 2, 3], 2), (&[], 0), (&[1, 2, 3], 2)]);
    }
}
