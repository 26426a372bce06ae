//! Ragged rows of token ids, and their labels.

use crate::BackendError;

/// The label of a position that is not trained on (PyTorch's `ignore_index`).
pub const IGNORE: i32 = -100;

/// Ragged rows of token ids, owned: row `i` is `ids[offsets[i]..offsets[i + 1]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    ids: Vec<u32>,
    offsets: Vec<usize>,
}

impl Default for Tokens {
    fn default() -> Self {
        Tokens { ids: Vec::new(), offsets: vec![0] }
    }
}

impl Tokens {
    /// No rows.
    pub fn new() -> Self {
        Self::default()
    }
    /// Appends a row (which may be empty).
    pub fn push(&mut self, row: &[u32]) {
        self.ids.extend_from_slice(row);
        self.offsets.push(self.ids.len());
    }
    /// A borrowed view.
    pub fn view(&self) -> TokensView<'_> {
        TokensView { ids: &self.ids, offsets: &self.offsets }
    }
}

impl<R: AsRef<[u32]>> FromIterator<R> for Tokens {
    fn from_iter<I: IntoIterator<Item = R>>(rows: I) -> Self {
        let mut tokens = Tokens::new();
        rows.into_iter().for_each(|row| tokens.push(row.as_ref()));
        tokens
    }
}

/// Borrowed ragged rows of token ids.
#[derive(Clone, Copy, Debug)]
pub struct TokensView<'a> {
    ids: &'a [u32],
    offsets: &'a [usize],
}

impl<'a> TokensView<'a> {
    /// Checks and wraps raw parts: `offsets` starts at 0, never falls and ends at `ids.len()`.
    ///
    /// # Errors
    /// Says which of these is broken.
    pub fn new(ids: &'a [u32], offsets: &'a [usize]) -> Result<Self, BackendError> {
        let ordered = offsets.windows(2).all(|w| w[0] <= w[1]);
        if offsets.first() != Some(&0) || offsets.last() != Some(&ids.len()) || !ordered {
            return Err(BackendError::failed(format!(
                "ragged offsets must rise from 0 to the number of ids ({}), got {} offsets from {:?} to {:?}",
                ids.len(),
                offsets.len(),
                offsets.first(),
                offsets.last()
            )));
        }
        Ok(TokensView { ids, offsets })
    }
    /// How many rows.
    pub fn rows(&self) -> usize {
        self.offsets.len() - 1
    }
    /// Row `i`.
    pub fn row(&self, i: usize) -> &'a [u32] {
        &self.ids[self.offsets[i]..self.offsets[i + 1]]
    }
    /// All rows in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &'a [u32]> + use<'a> {
        let (ids, offsets) = (self.ids, self.offsets);
        (0..offsets.len() - 1).map(move |i| &ids[offsets[i]..offsets[i + 1]])
    }
    /// The ids of all rows, back to back.
    pub fn ids(&self) -> &'a [u32] {
        self.ids
    }
    /// Where each row starts; one more entry than rows.
    pub fn offsets(&self) -> &'a [usize] {
        self.offsets
    }
}

/// Ragged rows of token ids with a label for each: `labels[k]` is the id at `k`, or [`IGNORE`]
/// where position `k` is not trained on. Labels are *not* shifted: position `k` is predicted from
/// `k - 1`.
#[derive(Clone, Copy, Debug)]
pub struct LabelledView<'a> {
    tokens: TokensView<'a>,
    labels: &'a [i32],
}

impl<'a> LabelledView<'a> {
    /// Checks that there is one label per id.
    ///
    /// # Errors
    /// If the lengths differ.
    pub fn new(tokens: TokensView<'a>, labels: &'a [i32]) -> Result<Self, BackendError> {
        if labels.len() != tokens.ids.len() {
            return Err(BackendError::failed(format!("{} labels for {} ids", labels.len(), tokens.ids.len())));
        }
        Ok(LabelledView { tokens, labels })
    }
    /// The ids.
    pub fn tokens(&self) -> TokensView<'a> {
        self.tokens
    }
    /// All labels, back to back.
    pub fn labels(&self) -> &'a [i32] {
        self.labels
    }
    /// The labels of row `i`.
    pub fn row_labels(&self, i: usize) -> &'a [i32] {
        &self.labels[self.tokens.offsets[i]..self.tokens.offsets[i + 1]]
    }
}
