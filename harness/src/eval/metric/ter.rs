//! Translation edit rate as sacrebleu 2.6.0 computes it (Snover et al. 2006; Tercom's shifts),
//! lower-cased, words by white space; with `asian` also normalised and Chinese characters apart.
//!
//! A greedy search shifts spans of at most 10 words by at most 50 positions while that lowers the
//! edit distance; the distance is computed in a band of 25 around the diagonal. Chinese is one word
//! a line without `asian`, so a score says little there.

use std::sync::LazyLock;

use regex::Regex;

use super::python;
use super::sacrebleu_tokenizers::western_symbols_and_stops;
use super::tokens::TokenPair;

const MAX_SHIFT_SIZE: usize = 10;
const MAX_SHIFT_DISTANCE: usize = 50;
const BEAM_WIDTH: usize = 25;
const MAX_SHIFT_CANDIDATES: usize = 1000;
const UNREACHED: u32 = u32::MAX / 2;

/// Edits and reference length of one pair or, summed, of a corpus.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TerCounts {
    /// Edits: insertions, deletions, substitutions and shifts.
    pub edits: u64,
    /// Words of the reference.
    pub reference: u64,
}

impl TerCounts {
    /// Counts of one pair. `asian` is sacrebleu's `TER(normalized=True, asian_support=True)`.
    pub fn of(reference: &str, candidate: &str, asian: bool) -> Self {
        // The package normalises the reference twice, the candidate once; the possessive rule sees
        // more the second time ("it's," becomes "it's ,", then "it 's ,").
        let reference = python::split(&normalise(reference, asian)).collect::<Vec<_>>().join(" ");
        let (reference, candidate) = (normalise(&reference, asian), normalise(candidate, asian));
        let pair = TokenPair::new(python::split(&reference), python::split(&candidate));
        TerCounts { edits: edits(&pair.candidate, &pair.reference), reference: pair.reference.len() as u64 }
    }

    /// Adds the next pair of a corpus.
    pub fn add(&mut self, next: &TerCounts) {
        self.edits += next.edits;
        self.reference += next.reference;
    }

    /// Percent of the reference's words, at least 0; 100 where only the reference is empty.
    pub fn score(&self) -> f64 {
        match (self.reference, self.edits) {
            (0, 0) => 0.0,
            (0, _) => 100.0,
            (reference, edits) => 100.0 * (edits as f64 / reference as f64),
        }
    }
}

/// sacrebleu's signature of a score.
pub fn signature(asian: bool) -> String {
    let asian = if asian { "yes" } else { "no" };
    format!("nrefs:1|case:lc|tok:tercom|norm:{asian}|punct:yes|asian:{asian}|version:{}", super::sacrebleu::VERSION)
}

fn normalise(text: &str, asian: bool) -> String {
    let text = python::strip_end(text).to_lowercase();
    if !asian || text.is_empty() {
        return text;
    }
    let text = text.replace("\n-", "").replace('\n', " ");
    let text = text.replace("&quot;", "\"").replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">");
    let mut text = western_symbols_and_stops(&format!(" {text} "), |spaced| {
        let spaced = spaced.replace("'s ", " 's ");
        match spaced.strip_suffix("'s") {
            Some(head) => format!("{head} 's"),
            None => spaced,
        }
    });
    for pattern in ASIAN.iter() {
        text = pattern.replace_all(&text, " $0 ").into_owned();
    }
    text
}

/// Chinese characters and punctuation apart, in sacrebleu's order. Its range for enclosed letters
/// ends at U+3F22 (sic); its rules for kana can only match at the start of the text, where a space
/// stands, and so never do.
static ASIAN: LazyLock<[Regex; 6]> = LazyLock::new(|| {
    [
        r"[\u{4e00}-\u{9fff}\u{3400}-\u{4dbf}]",
        r"[\u{31c0}-\u{31ef}\u{2e80}-\u{2eff}]",
        r"[\u{3300}-\u{33ff}\u{f900}-\u{faff}\u{fe30}-\u{fe4f}]",
        r"[\u{3200}-\u{3f22}]",
        r"[\u{3001}\u{3002}\u{3008}-\u{3011}\u{3014}-\u{301f}\u{ff61}-\u{ff65}\u{30fb}]",
        r"[\u{ff0e}\u{ff0c}\u{ff1f}\u{ff1a}\u{ff1b}\u{ff01}\u{ff02}\u{ff08}\u{ff09}]",
    ]
    .map(|pattern| Regex::new(pattern).expect("the pattern is a constant"))
});

/// Shifts plus edit distance.
fn edits(candidate: &[u32], reference: &[u32]) -> u64 {
    if reference.is_empty() {
        return candidate.len() as u64;
    }
    let mut words = candidate.to_vec();
    let mut table = EditTable::new(reference, words.len());
    let (mut shifts, mut checked) = (0, 0);
    loop {
        table.fill(&words);
        let best = best_shift(&words, reference, &table, &mut checked);
        let Some(shifted) = best.filter(|_| checked < MAX_SHIFT_CANDIDATES) else { break };
        shifts += 1;
        words = shifted;
    }
    // The last words that were filled in are those that no shift made better.
    shifts + u64::from(table.distance())
}

/// The shift that lowers the distance most (at least by 1): then the longest, the earliest, the one
/// with the earliest target. The table is that of `words`.
fn best_shift(words: &[u32], reference: &[u32], table: &EditTable<'_>, checked: &mut usize) -> Option<Vec<u32>> {
    let distance = i64::from(table.distance());
    let alignment = table.alignment();
    // Rank of a shift, greatest first, and the words after it.
    type Rank = (i64, usize, std::cmp::Reverse<usize>, std::cmp::Reverse<usize>);
    let mut best: Option<(Rank, Vec<u32>)> = None;
    for (start, start_reference, length) in matching_spans(words, reference) {
        if !alignment.candidate_wrong[start..start + length].contains(&true)
            || !alignment.reference_wrong[start_reference..start_reference + length].contains(&true)
        {
            continue;
        }
        let aligned = alignment.after[start_reference];
        if aligned > start && aligned <= start + length {
            continue; // within the span itself
        }
        let mut previous = None;
        for offset in 0..=length {
            // Before the reference's word start_reference + offset: where the word before that is
            // aligned.
            let target = match (start_reference + offset).checked_sub(1) {
                None => 0,
                Some(before) => alignment.after[before],
            };
            if previous == Some(target) {
                continue;
            }
            previous = Some(target);
            let shifted = shift(words, start, length, target);
            let gain = distance - i64::from(table.distance_of(words, &shifted));
            let rank = (gain, length, std::cmp::Reverse(start), std::cmp::Reverse(target));
            *checked += 1;
            if best.as_ref().is_none_or(|(of_best, _)| rank > *of_best) {
                best = Some((rank, shifted));
            }
        }
        if *checked >= MAX_SHIFT_CANDIDATES {
            break;
        }
    }
    best.filter(|((gain, ..), _)| *gain > 0).map(|(_, shifted)| shifted)
}

/// Spans that occur in both, as (start in the candidate, start in the reference, length): every
/// length up to the longest.
fn matching_spans<'a>(words: &'a [u32], reference: &'a [u32]) -> impl Iterator<Item = (usize, usize, usize)> + 'a {
    (0..words.len()).flat_map(move |start| {
        let first = start.saturating_sub(MAX_SHIFT_DISTANCE);
        let last = reference.len().min(start + MAX_SHIFT_DISTANCE + 1);
        (first..last).flat_map(move |start_reference| {
            let equal = words[start..].iter().zip(&reference[start_reference..]).take_while(|(a, b)| a == b);
            let longest = equal.take(MAX_SHIFT_SIZE).count();
            (1..=longest).map(move |length| (start, start_reference, length))
        })
    })
}

/// Moves `words[start..start + length]` so that it stands before what is now at `target`; a target
/// within the span counts on from behind it, as in sacrebleu.
fn shift(words: &[u32], start: usize, length: usize, target: usize) -> Vec<u32> {
    let span = &words[start..start + length];
    let n = words.len();
    if target < start {
        [&words[..target], span, &words[target..start], &words[start + length..]].concat()
    } else if target > start + length {
        [&words[..start], &words[start + length..target], span, &words[target..]].concat()
    } else {
        let end = (length + target).min(n);
        [&words[..start], &words[start + length..end], span, &words[end..]].concat()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Edit {
    Keep,
    Substitute,
    Insert,
    Delete,
    Unknown,
}

/// Which words the edit distance keeps, and where the reference's words are in the candidate.
struct Alignment {
    candidate_wrong: Vec<bool>,
    reference_wrong: Vec<bool>,
    /// Per word of the reference, the number of candidate words up to and with the one aligned to
    /// it.
    after: Vec<usize>,
}

/// A row of the table within the band: the costs of the columns from `from` on, and how each was
/// reached. Columns outside are not reached.
#[derive(Clone, Default)]
struct Row {
    from: usize,
    costs: Vec<u32>,
    edits: Vec<Edit>,
}

impl Row {
    fn cost(&self, column: usize) -> u32 {
        column.checked_sub(self.from).and_then(|at| self.costs.get(at)).copied().unwrap_or(UNREACHED)
    }

    fn edit(&self, column: usize) -> Edit {
        column.checked_sub(self.from).and_then(|at| self.edits.get(at)).copied().unwrap_or(Edit::Unknown)
    }
}

/// Edit distances of the candidate's prefixes (rows) to the reference's (columns). Of each row only
/// the band is kept, so memory is linear in the longer text: about twice the beam in cells a word.
struct EditTable<'a> {
    reference: &'a [u32],
    rows: Vec<Row>,
    beam: usize,
    ratio: f64,
}

impl<'a> EditTable<'a> {
    fn new(reference: &'a [u32], candidate_length: usize) -> Self {
        let ratio = if candidate_length == 0 { 1.0 } else { reference.len() as f64 / candidate_length as f64 };
        // Where the lengths differ so much that bands of neighbouring rows would not overlap, the
        // band is widened.
        let half = ratio / 2.0;
        let beam = if (BEAM_WIDTH as f64) < half { (half + BEAM_WIDTH as f64).ceil() as usize } else { BEAM_WIDTH };
        let width = reference.len() + 1;
        let mut rows = vec![Row::default(); candidate_length + 1];
        rows[0] = Row { from: 0, costs: (0..width as u32).collect(), edits: vec![Edit::Insert; width] };
        EditTable { reference, rows, beam, ratio }
    }

    /// The columns of row `i` that are within the band; the last row reaches to the end.
    fn band(&self, i: usize) -> std::ops::Range<usize> {
        let width = self.reference.len() + 1;
        let diagonal = (i as f64 * self.ratio).floor() as usize;
        let to = if i + 1 == self.rows.len() { width } else { width.min(diagonal + self.beam) };
        diagonal.saturating_sub(self.beam)..to
    }

    /// The row of `word` below the row `above`, into `row`.
    fn step(&self, word: u32, above: &Row, band: std::ops::Range<usize>, row: &mut Row) {
        row.from = band.start;
        row.costs.clear();
        row.edits.clear();
        let mut left = UNREACHED;
        for j in band {
            let (cost, edit) = if j == 0 {
                (above.cost(0) + 1, Edit::Delete)
            } else {
                let (cost, edit) = if word == self.reference[j - 1] { (0, Edit::Keep) } else { (1, Edit::Substitute) };
                // Ties: substitution, then deletion, then insertion.
                let mut cell = (UNREACHED, Edit::Unknown);
                for option in
                    [(above.cost(j - 1) + cost, edit), (above.cost(j) + 1, Edit::Delete), (left + 1, Edit::Insert)]
                {
                    if option.0 < cell.0 {
                        cell = option;
                    }
                }
                cell
            };
            row.costs.push(cost);
            row.edits.push(edit);
            left = cost;
        }
    }

    /// Computes all rows.
    fn fill(&mut self, words: &[u32]) {
        for (i, &word) in words.iter().enumerate() {
            let mut row = std::mem::take(&mut self.rows[i + 1]);
            self.step(word, &self.rows[i], self.band(i + 1), &mut row);
            self.rows[i + 1] = row;
        }
    }

    /// The distance of `shifted`, the table being that of `words`: only rows from the first changed
    /// word on are computed, up to where they run beside the table's at one distance, as they then
    /// do to the end.
    fn distance_of(&self, words: &[u32], shifted: &[u32]) -> u32 {
        let Some(first) = words.iter().zip(shifted).position(|(a, b)| a != b) else { return self.distance() };
        let last = words.iter().zip(shifted).rposition(|(a, b)| a != b).unwrap_or(first);
        let (mut above, mut row) = (self.rows[first].clone(), Row::default());
        for (i, &word) in shifted.iter().enumerate().skip(first) {
            self.step(word, &above, self.band(i + 1), &mut row);
            if i >= last
                && let Some(by) = offset(&self.rows[i + 1].costs, &row.costs)
            {
                return (i64::from(self.distance()) + by) as u32;
            }
            std::mem::swap(&mut above, &mut row);
        }
        above.costs.last().copied().unwrap_or(UNREACHED)
    }

    fn distance(&self) -> u32 {
        self.rows.last().and_then(|row| row.costs.last()).copied().unwrap_or(UNREACHED)
    }

    fn alignment(&self) -> Alignment {
        let (mut i, mut j) = (self.rows.len() - 1, self.reference.len());
        let mut alignment =
            Alignment { candidate_wrong: vec![false; i], reference_wrong: vec![false; j], after: vec![0; j] };
        while i > 0 || j > 0 {
            match self.rows[i].edit(j) {
                edit @ (Edit::Keep | Edit::Substitute) => {
                    let wrong = edit == Edit::Substitute;
                    alignment.candidate_wrong[i - 1] = wrong;
                    alignment.reference_wrong[j - 1] = wrong;
                    alignment.after[j - 1] = i;
                    i -= 1;
                    j -= 1;
                }
                Edit::Insert => {
                    alignment.reference_wrong[j - 1] = true;
                    alignment.after[j - 1] = i;
                    j -= 1;
                }
                // A cell outside the band is not reached from the last one; were it, deleting ends
                // the walk.
                Edit::Delete | Edit::Unknown => {
                    alignment.candidate_wrong[i - 1] = true;
                    i -= 1;
                }
            }
        }
        alignment
    }
}

/// By how much `of` differs from `base`, where that is the same in every cell that is reached.
fn offset(base: &[u32], of: &[u32]) -> Option<i64> {
    let mut by = None;
    for (&a, &b) in base.iter().zip(of) {
        match (a == UNREACHED, b == UNREACHED) {
            (true, true) => {}
            (false, false) if by.is_none_or(|by| by == i64::from(b) - i64::from(a)) => {
                by = Some(i64::from(b) - i64::from(a));
            }
            _ => return None,
        }
    }
    by
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// sacrebleu's table as it stands there: every cell of every row.
    fn whole_table(words: &[u32], reference: &[u32], beam: usize, ratio: f64) -> Vec<Vec<(u32, Edit)>> {
        let width = reference.len() + 1;
        let mut table = vec![vec![(UNREACHED, Edit::Unknown); width]; words.len() + 1];
        table[0] = (0..width as u32).map(|j| (j, Edit::Insert)).collect();
        for i in 1..=words.len() {
            let diagonal = (i as f64 * ratio).floor() as usize;
            let to = if i == words.len() { width } else { width.min(diagonal + beam) };
            for j in diagonal.saturating_sub(beam)..to {
                if j == 0 {
                    table[i][0] = (table[i - 1][0].0 + 1, Edit::Delete);
                    continue;
                }
                let same = words[i - 1] == reference[j - 1];
                let (cost, edit) = if same { (0, Edit::Keep) } else { (1, Edit::Substitute) };
                let options = [
                    (table[i - 1][j - 1].0 + cost, edit),
                    (table[i - 1][j].0 + 1, Edit::Delete),
                    (table[i][j - 1].0 + 1, Edit::Insert),
                ];
                for option in options {
                    if option.0 < table[i][j].0 {
                        table[i][j] = option;
                    }
                }
            }
        }
        table
    }

    proptest! {
        #[test]
        fn the_band_alone_is_the_whole_table(
            words in prop::collection::vec(0u32..4, 0..140),
            reference in prop::collection::vec(0u32..4, 1..140),
            start in 0usize..140,
            length in 1usize..10,
            target in 0usize..140,
        ) {
            let mut table = EditTable::new(&reference, words.len());
            table.fill(&words);
            let whole = whole_table(&words, &reference, table.beam, table.ratio);
            for (i, row) in whole.iter().enumerate() {
                for (j, cell) in row.iter().enumerate() {
                    prop_assert!((table.rows[i].cost(j), table.rows[i].edit(j)) == *cell, "cell {} {}", i, j);
                }
            }
            if !words.is_empty() {
                let start = start % words.len();
                let length = length.min(words.len() - start);
                let shifted = shift(&words, start, length, target.min(words.len()));
                let whole = whole_table(&shifted, &reference, table.beam, table.ratio);
                prop_assert_eq!(table.distance_of(&words, &shifted), whole[words.len()][reference.len()].0);
            }
        }
    }

    #[test]
    fn texts_of_sixty_thousand_words_take_memory_by_the_word_and_not_by_its_square() {
        // 3.6 billion cells of 8 bytes, were they all kept.
        let (reference, candidate) = ("a b ".repeat(30_000), "b a ".repeat(30_000));
        let pair = TokenPair::new(python::split(&reference), python::split(&candidate));
        let table = EditTable::new(&pair.reference, pair.candidate.len());
        let cells: usize = (0..table.rows.len()).map(|i| table.band(i).len()).sum();
        assert!(cells < 60_000 * 2 * (BEAM_WIDTH + 1), "{cells}");
        assert!(ter(&reference, &candidate) < 1.0);
    }

    fn ter(reference: &str, candidate: &str) -> f64 {
        TerCounts::of(reference, candidate, false).score()
    }

    #[test]
    fn a_shift_is_one_edit() {
        assert_eq!(ter("a b c d e", "c d e a b"), 20.0);
        assert_eq!(ter("a b c d", "a b c d"), 0.0);
        assert_eq!(ter("", "a"), 100.0);
        assert_eq!(ter("", ""), 0.0);
        assert_eq!(ter("a b", ""), 100.0);
    }
}
