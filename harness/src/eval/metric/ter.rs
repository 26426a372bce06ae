//! Translation edit rate as sacrebleu 2.6.0 computes it (Snover et al. 2006; Tercom's shifts), lower-cased, words by white
//! space; with `asian` also normalised and Chinese characters apart.
//!
//! A greedy search shifts spans of at most 10 words by at most 50 positions while that lowers the edit distance; the distance
//! is computed in a band of 25 around the diagonal. Chinese is one word a line without `asian`, so a score says little there.

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
        // The package normalises the reference twice, the candidate once; the possessive rule sees more the second time
        // ("it's," becomes "it's ,", then "it 's ,").
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

/// Chinese characters and punctuation apart, in sacrebleu's order. Its range for enclosed letters ends at U+3F22 (sic); its
/// rules for kana can only match at the start of the text, where a space stands, and so never do.
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
        table.fill(&words, 0);
        let best = best_shift(&words, reference, &mut table, &mut checked);
        let Some(shifted) = best.filter(|_| checked < MAX_SHIFT_CANDIDATES) else { break };
        shifts += 1;
        words = shifted;
    }
    table.fill(&words, 0);
    shifts + u64::from(table.distance())
}

/// The shift that lowers the distance most (at least by 1): then the longest, the earliest, the one with the earliest
/// target. Leaves the table changed.
fn best_shift(words: &[u32], reference: &[u32], table: &mut EditTable<'_>, checked: &mut usize) -> Option<Vec<u32>> {
    let distance = i64::from(table.distance());
    let alignment = table.alignment();
    // Rank of a shift, greatest first, and the words after it.
    type Rank = (i64, usize, std::cmp::Reverse<usize>, std::cmp::Reverse<usize>);
    let mut best: Option<(Rank, Vec<u32>)> = None;
    table.keep_base();
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
            // Before the reference's word start_reference + offset: where the word before that is aligned.
            let target = match (start_reference + offset).checked_sub(1) {
                None => 0,
                Some(before) => alignment.after[before],
            };
            if previous == Some(target) {
                continue;
            }
            previous = Some(target);
            let shifted = shift(words, start, length, target);
            let first_changed = words.iter().zip(&shifted).position(|(a, b)| a != b).unwrap_or(words.len());
            table.fill_from_base(&shifted, first_changed);
            let gain = distance - i64::from(table.distance());
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

/// Spans that occur in both, as (start in the candidate, start in the reference, length): every length up to the longest.
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

/// Moves `words[start..start + length]` so that it stands before what is now at `target`; a target within the span counts on
/// from behind it, as in sacrebleu.
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
    /// Per word of the reference, the number of candidate words up to and with the one aligned to it.
    after: Vec<usize>,
}

/// Edit distances of the candidate's prefixes (rows) to the reference's (columns), within the band.
struct EditTable<'a> {
    reference: &'a [u32],
    rows: usize,
    cells: Vec<(u32, Edit)>,
    base: Vec<(u32, Edit)>,
    beam: usize,
    ratio: f64,
}

impl<'a> EditTable<'a> {
    fn new(reference: &'a [u32], candidate_length: usize) -> Self {
        let ratio = if candidate_length == 0 { 1.0 } else { reference.len() as f64 / candidate_length as f64 };
        // Where the lengths differ so much that bands of neighbouring rows would not overlap, the band is widened.
        let half = ratio / 2.0;
        let beam = if (BEAM_WIDTH as f64) < half { (half + BEAM_WIDTH as f64).ceil() as usize } else { BEAM_WIDTH };
        let width = reference.len() + 1;
        let mut cells = vec![(UNREACHED, Edit::Unknown); (candidate_length + 1) * width];
        for (j, cell) in cells[..width].iter_mut().enumerate() {
            *cell = (j as u32, Edit::Insert);
        }
        EditTable { reference, rows: candidate_length, base: cells.clone(), cells, beam, ratio }
    }

    fn width(&self) -> usize {
        self.reference.len() + 1
    }

    fn keep_base(&mut self) {
        self.base.copy_from_slice(&self.cells);
    }

    /// Fills the rows from `first` on with those of `words`, the ones before being those of the base.
    fn fill_from_base(&mut self, words: &[u32], first: usize) {
        let end = (first + 1) * self.width();
        self.cells[..end].copy_from_slice(&self.base[..end]);
        self.fill(words, first);
    }

    /// Computes the rows below row `first`.
    fn fill(&mut self, words: &[u32], first: usize) {
        let width = self.width();
        for i in first + 1..=self.rows {
            let diagonal = (i as f64 * self.ratio).floor() as usize;
            let from = diagonal.saturating_sub(self.beam);
            let to = if i == self.rows { width } else { width.min(diagonal + self.beam) };
            let (above, below) = self.cells.split_at_mut(i * width);
            let above = &above[(i - 1) * width..];
            let row = &mut below[..width];
            row.fill((UNREACHED, Edit::Unknown));
            for j in from..to {
                if j == 0 {
                    row[0] = (above[0].0 + 1, Edit::Delete);
                    continue;
                }
                let (cost, edit) =
                    if words[i - 1] == self.reference[j - 1] { (0, Edit::Keep) } else { (1, Edit::Substitute) };
                // Ties: substitution, then deletion, then insertion.
                let mut cell = (UNREACHED, Edit::Unknown);
                for option in
                    [(above[j - 1].0 + cost, edit), (above[j].0 + 1, Edit::Delete), (row[j - 1].0 + 1, Edit::Insert)]
                {
                    if option.0 < cell.0 {
                        cell = option;
                    }
                }
                row[j] = cell;
            }
        }
    }

    fn distance(&self) -> u32 {
        self.cells[self.cells.len() - 1].0
    }

    fn alignment(&self) -> Alignment {
        let width = self.width();
        let (mut i, mut j) = (self.rows, self.reference.len());
        let mut alignment =
            Alignment { candidate_wrong: vec![false; i], reference_wrong: vec![false; j], after: vec![0; j] };
        while i > 0 || j > 0 {
            match self.cells[i * width + j].1 {
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
                // A cell outside the band is not reached from the last one; were it, deleting ends the walk.
                Edit::Delete | Edit::Unknown => {
                    alignment.candidate_wrong[i - 1] = true;
                    i -= 1;
                }
            }
        }
        alignment
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
