//! The longest common subsequence, 64 cells at a time.
//!
//! Row `i` of the dynamic programme is kept as one bit a column: bit `j` is set where
//! `L(i, j+1) = L(i, j) + 1`. A row follows from the one above with an addition per machine word
//! (Crochemore, Iliopoulos, Pinzon and Reid 2001; Hyyrö 2004), so two texts of 20,000 tokens take
//! milliseconds. [`Columns::path`] also says *which* subsequence the usual back-tracking finds: it
//! keeps every k-th row, with k about the square root of their number, and computes the rows
//! between again.
//!
//! Memory stays linear in the texts: tokens that fill more than one bit a word have a mask of their
//! own (there can be at most 64 such), the others a list of positions.

/// One sequence, indexed to be compared with others.
pub struct Columns<'a> {
    tokens: &'a [u32],
    words: usize,
    /// Positions of token `t` are `positions[starts[t]..starts[t + 1]]`.
    starts: Vec<u32>,
    positions: Vec<u32>,
    /// Mask number of a frequent token, or `NO_MASK`.
    mask_of: Vec<u32>,
    masks: Vec<u64>,
}

const NO_MASK: u32 = u32::MAX;

impl<'a> Columns<'a> {
    /// Indexes `tokens`, whose ids are below `vocabulary`.
    pub fn new(tokens: &'a [u32], vocabulary: usize) -> Self {
        let words = tokens.len().div_ceil(64);
        let mut starts = vec![0u32; vocabulary + 1];
        for &t in tokens {
            starts[t as usize + 1] += 1;
        }
        for t in 0..vocabulary {
            starts[t + 1] += starts[t];
        }
        let mut next = starts.clone();
        let mut positions = vec![0u32; tokens.len()];
        for (at, &t) in tokens.iter().enumerate() {
            positions[next[t as usize] as usize] = at as u32;
            next[t as usize] += 1;
        }
        let mut mask_of = vec![NO_MASK; vocabulary];
        let mut masks = Vec::new();
        for t in 0..vocabulary {
            let of_token = &positions[starts[t] as usize..starts[t + 1] as usize];
            if of_token.len() > words {
                mask_of[t] = (masks.len() / words) as u32;
                masks.resize(masks.len() + words, 0);
                let mask = masks.len() - words;
                for &at in of_token {
                    masks[mask + at as usize / 64] |= 1 << (at % 64);
                }
            }
        }
        Columns { tokens, words, starts, positions, mask_of, masks }
    }

    /// The row below `row` for the token `t`. `scratch` is all zero before and after.
    fn step(&self, row: &mut [u64], t: u32, scratch: &mut [u64]) {
        let t = t as usize;
        let mask = self.mask_of[t];
        if mask != NO_MASK {
            let from = mask as usize * self.words;
            advance(row, &self.masks[from..from + self.words]);
            return;
        }
        let positions = &self.positions[self.starts[t] as usize..self.starts[t + 1] as usize];
        if positions.is_empty() {
            return;
        }
        for &at in positions {
            scratch[at as usize / 64] |= 1 << (at % 64);
        }
        advance(row, scratch);
        for &at in positions {
            scratch[at as usize / 64] = 0;
        }
    }

    /// Length of the longest common subsequence with `rows`.
    pub fn length(&self, rows: &[u32]) -> usize {
        let mut row = vec![u64::MAX; self.words];
        let mut scratch = vec![0; self.words];
        for &t in rows {
            self.step(&mut row, t, &mut scratch);
        }
        (0..self.tokens.len()).filter(|&j| row[j / 64] >> (j % 64) & 1 == 0).count()
    }

    /// Walks one longest common subsequence from its end to its start and calls
    /// `visit(row, column)` for each pair of it.
    ///
    /// Of the many that may exist it is the one found by going back from the last cell: to the
    /// upper left where the tokens are equal, else *up* where the cell above is greater than the
    /// one to the left, else *left*. Returns the number of cells visited before an edge of the
    /// table is reached.
    pub fn path(&self, rows: &[u32], mut visit: impl FnMut(usize, usize)) -> usize {
        let words = self.words;
        if rows.is_empty() || words == 0 {
            return 0;
        }
        let stride = rows.len().isqrt().max(1);
        let mut scratch = vec![0; words];
        // kept[b] is the row above rows[b * stride].
        let mut kept = Vec::with_capacity(rows.len().div_ceil(stride) * words);
        let mut row = vec![u64::MAX; words];
        for (i, &t) in rows.iter().enumerate() {
            if i % stride == 0 {
                kept.extend_from_slice(&row);
            }
            self.step(&mut row, t, &mut scratch);
        }
        let mut block_rows = vec![0u64; stride * words];
        let (mut i, mut j, mut steps) = (rows.len(), self.tokens.len(), 0);
        while i > 0 && j > 0 {
            let block = (i - 1) / stride;
            let first = block * stride;
            row.copy_from_slice(&kept[block * words..(block + 1) * words]);
            for (k, &t) in rows[first..i].iter().enumerate() {
                self.step(&mut row, t, &mut scratch);
                block_rows[k * words..(k + 1) * words].copy_from_slice(&row);
            }
            while i > first && j > 0 {
                steps += 1;
                let grows = block_rows[(i - 1 - first) * words + (j - 1) / 64] >> ((j - 1) % 64) & 1 == 0;
                if rows[i - 1] == self.tokens[j - 1] {
                    visit(i - 1, j - 1);
                    i -= 1;
                    j -= 1;
                } else if grows {
                    // The tokens differ, so L(i, j) is the greater of its neighbours: it exceeds
                    // the left one, so the one above does.
                    i -= 1;
                } else {
                    j -= 1;
                }
            }
        }
        steps
    }
}

/// One row of the programme in complement: zero bits are where the length grows.
fn advance(row: &mut [u64], mask: &[u64]) {
    let mut carry = false;
    for (v, &m) in row.iter_mut().zip(mask) {
        let (sum, overflow_a) = v.overflowing_add(*v & m);
        let (sum, overflow_b) = sum.overflowing_add(u64::from(carry));
        carry = overflow_a || overflow_b;
        *v = sum | (*v & !m);
    }
}

/// Length of the longest common subsequence of two sequences of ids below `vocabulary`.
pub fn length(a: &[u32], b: &[u32], vocabulary: usize) -> usize {
    let (rows, columns) = if a.len() < b.len() { (a, b) } else { (b, a) };
    Columns::new(columns, vocabulary).length(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn table(x: &[u32], y: &[u32]) -> Vec<Vec<usize>> {
        let mut table = vec![vec![0; y.len() + 1]; x.len() + 1];
        for i in 1..=x.len() {
            for j in 1..=y.len() {
                table[i][j] =
                    if x[i - 1] == y[j - 1] { table[i - 1][j - 1] + 1 } else { table[i - 1][j].max(table[i][j - 1]) };
            }
        }
        table
    }

    proptest! {
        #[test]
        fn length_and_path_are_those_of_the_full_table(
            x in prop::collection::vec(0u32..5, 0..200),
            y in prop::collection::vec(0u32..7, 0..200),
        ) {
            let t = table(&x, &y);
            prop_assert_eq!(length(&x, &y, 7), t[x.len()][y.len()]);
            let (mut i, mut j, mut steps, mut expected) = (x.len(), y.len(), 0, Vec::new());
            while i > 0 && j > 0 {
                steps += 1;
                if x[i - 1] == y[j - 1] {
                    expected.push((i - 1, j - 1));
                    i -= 1;
                    j -= 1;
                } else if t[i - 1][j] > t[i][j - 1] {
                    i -= 1;
                } else {
                    j -= 1;
                }
            }
            let mut found = Vec::new();
            prop_assert_eq!(Columns::new(&y, 7).path(&x, |r, c| found.push((r, c))), steps);
            prop_assert_eq!(found, expected);
        }
    }
}
