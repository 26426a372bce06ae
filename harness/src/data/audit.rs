//! Looks at the data before anything is trained on it: repeated questions, questions that leak from
//! one split into another, lengths, cuts, broken rows.
//!
//! A leak makes a held-out score worthless, so near copies count too: two questions are near when
//! the Jaccard index of their sets of character n-grams is at least a threshold. The search is
//! exact, not sampled: by prefix filtering (Bayardo, Ma, Srikant 2007), a pair can only reach the
//! threshold if the rarest n-grams of both overlap.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use unicode_normalization::UnicodeNormalization;

use super::examples::Examples;
use super::record::{BadRow, Record};

/// What counts as near.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuditOptions {
    /// Characters per n-gram; at least 1.
    pub ngram: usize,
    /// Smallest Jaccard index of a near pair, above 0; above 1 looks for exact copies only.
    pub threshold: f64,
}

impl Default for AuditOptions {
    /// Trigrams and 0.8.
    fn default() -> Self {
        AuditOptions { ngram: 3, threshold: 0.8 }
    }
}

/// Everything the audit found. Ordered as the data is; the same on every machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DataAudit {
    /// What counted as near.
    pub options: AuditOptions,
    /// Split name to its numbers.
    pub splits: BTreeMap<String, SplitAudit>,
    /// How many pairs there are.
    pub counts: PairCounts,
    /// Pairs within one split, the first [`DataAudit::LISTED`].
    pub duplicates: Vec<Pair>,
    /// Pairs across splits, the first [`DataAudit::LISTED`].
    pub leaks: Vec<Pair>,
    /// Lines that could not be read.
    pub bad_rows: Vec<BadRow>,
}

/// How many pairs of questions are the same or nearly so. Of n rows that are all near there are n
/// (n - 1) / 2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PairCounts {
    /// Within one split.
    pub duplicates: u64,
    /// Across splits, equal after normalisation.
    pub exact_leaks: u64,
    /// Across splits, near.
    pub near_leaks: u64,
}

/// The numbers of one split.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SplitAudit {
    /// Rows.
    pub records: usize,
    /// Rows with reasoning.
    pub with_think: usize,
    /// Tokens of the prompt, if the split was tokenized.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_tokens: Option<Lengths>,
    /// Tokens of a whole example before it is cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_tokens: Option<Lengths>,
    /// Ids of rows that were cut.
    #[serde(default)]
    pub truncated: Vec<String>,
    /// Ids of rows left out because nothing to train on was left.
    #[serde(default)]
    pub dropped: Vec<String>,
}

/// How long things are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Lengths {
    /// Shortest.
    pub min: usize,
    /// Lower median.
    pub median: usize,
    /// Nearest-rank 95th percentile.
    pub p95: usize,
    /// Longest.
    pub max: usize,
    /// Arithmetic mean.
    pub mean: f64,
    /// All together.
    pub sum: usize,
}

impl Lengths {
    /// Of any number of lengths; `None` of none.
    pub fn of(lengths: impl IntoIterator<Item = usize>) -> Option<Self> {
        let mut sorted: Vec<usize> = lengths.into_iter().collect();
        sorted.sort_unstable();
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let n = sorted.len();
        let sum: usize = sorted.iter().sum();
        let p95 = sorted[(n * 95).div_ceil(100) - 1];
        Some(Lengths { min, median: sorted[(n - 1) / 2], p95, max, mean: sum as f64 / n as f64, sum })
    }
}

/// Two questions that are the same or nearly so.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// The earlier one.
    pub first: RowPlace,
    /// The later one.
    pub second: RowPlace,
    /// Jaccard index of the n-gram sets; 1 with `exact` means equal after normalisation.
    pub similarity: f64,
    /// Equal after NFKC and folding of white space.
    pub exact: bool,
}

/// Where a record stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowPlace {
    /// The split.
    pub split: String,
    /// The record's id.
    pub id: String,
    /// Its line in its file.
    pub line: usize,
}

/// Compares all questions of all splits; of equal questions each is paired with the first of its
/// kind per split only, so that a question repeated k times in one split gives k - 1 duplicates.
pub fn audit(splits: &[(&str, &[Record])], options: AuditOptions) -> DataAudit {
    let mut result = DataAudit { options, ..DataAudit::default() };
    let mut all = Vec::new();
    for (split, (name, records)) in splits.iter().enumerate() {
        let with_think = records.iter().filter(|r| !r.think.is_empty()).count();
        let numbers = SplitAudit { records: records.len(), with_think, ..SplitAudit::default() };
        result.splits.insert((*name).to_string(), numbers);
        all.extend(records.iter().map(|record| (split, record, normalize(&record.question))));
    }
    let place = |index: usize| {
        let (split, record, _) = &all[index];
        RowPlace { split: splits[*split].0.to_string(), id: record.id.clone(), line: record.line }
    };
    // The first row of each question in each split stands for its copies there.
    let mut kinds: BTreeMap<&str, BTreeMap<usize, usize>> = BTreeMap::new();
    let same_split = |a: usize, b: usize| all[a].0 == all[b].0;
    let mut found = Pairs::default();
    for (index, (split, _, question)) in all.iter().enumerate() {
        let firsts = kinds.entry(question).or_default();
        match firsts.get(split) {
            Some(&first) => found.add(first, index, 1.0, true, true),
            None => {
                firsts.values().for_each(|&first| found.add(first, index, 1.0, true, false));
                firsts.insert(*split, index);
            }
        }
    }
    let representatives: Vec<(&str, Vec<usize>)> =
        kinds.iter().map(|(text, firsts)| (*text, firsts.values().copied().collect())).collect();
    let texts: Vec<&str> = representatives.iter().map(|(text, _)| *text).collect();
    let near = |mut found: Pairs, (a, b, similarity): (usize, usize, f64)| {
        for &x in &representatives[a].1 {
            for &y in &representatives[b].1 {
                found.add(x.min(y), x.max(y), similarity, false, same_split(x, y));
            }
        }
        found
    };
    let found = fold_near_pairs(&texts, options, found, near);
    let listed = |heap: BinaryHeap<Found>| {
        let pairs = heap.into_sorted_vec().into_iter();
        let pair =
            |f: Found| Pair { first: place(f.at.0), second: place(f.at.1), similarity: f.similarity, exact: f.exact };
        pairs.map(pair).collect()
    };
    result.counts = found.counts;
    (result.duplicates, result.leaks) = (listed(found.duplicates), listed(found.leaks));
    result
}

/// A pair by the places of its rows among all.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Found {
    at: (usize, usize),
    similarity: f64,
    exact: bool,
}

impl Eq for Found {}

impl Ord for Found {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        // No two rows are a pair twice.
        self.at.cmp(&other.at)
    }
}

impl PartialOrd for Found {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// Pairs as they are found: all are counted, the first in the order of the data are kept.
#[derive(Default)]
struct Pairs {
    counts: PairCounts,
    duplicates: BinaryHeap<Found>,
    leaks: BinaryHeap<Found>,
}

impl Pairs {
    fn add(&mut self, a: usize, b: usize, similarity: f64, exact: bool, same_split: bool) {
        let count = match (same_split, exact) {
            (true, _) => &mut self.counts.duplicates,
            (false, true) => &mut self.counts.exact_leaks,
            (false, false) => &mut self.counts.near_leaks,
        };
        *count += 1;
        let pairs = if same_split { &mut self.duplicates } else { &mut self.leaks };
        keep(pairs, Found { at: (a, b), similarity, exact });
    }

    fn join(mut self, other: Pairs) -> Pairs {
        self.counts.duplicates += other.counts.duplicates;
        self.counts.exact_leaks += other.counts.exact_leaks;
        self.counts.near_leaks += other.counts.near_leaks;
        other.duplicates.into_iter().for_each(|pair| keep(&mut self.duplicates, pair));
        other.leaks.into_iter().for_each(|pair| keep(&mut self.leaks, pair));
        self
    }
}

/// Adds `pair` to the first [`DataAudit::LISTED`], of which the last is on top.
fn keep(first: &mut BinaryHeap<Found>, pair: Found) {
    if first.len() < DataAudit::LISTED {
        first.push(pair);
    } else if let Some(mut last) = first.peek_mut()
        && pair < *last
    {
        *last = pair;
    }
}

impl DataAudit {
    /// How many duplicates, and how many leaks, are listed one by one.
    pub const LISTED: usize = 200;

    /// Adds what tokenizing showed about `split`.
    pub fn add_examples(&mut self, split: &str, examples: &Examples) {
        let numbers = self.splits.entry(split.to_string()).or_default();
        // Of a part that was rendered as a whole, the rendered texts are counted: a template may
        // drop what the rows have.
        if examples.examples.len() + examples.dropped.len() == numbers.records {
            numbers.with_think = examples.with_think;
        }
        numbers.prompt_tokens = Lengths::of(examples.examples.iter().map(|e| e.prompt_len));
        numbers.total_tokens = Lengths::of(examples.examples.iter().map(|e| e.full_len));
        numbers.truncated = examples.truncated.clone();
        numbers.dropped = examples.dropped.clone();
    }
}

/// NFKC, white space folded to single spaces, trimmed.
pub fn normalize(text: &str) -> String {
    let text: String = text.nfkc().collect();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Hands `found` through `add` with every pair of different texts that has a Jaccard index of at
/// least the threshold, as (smaller index, larger index, index), in no order: they may be too many
/// to be kept.
fn fold_near_pairs(
    texts: &[&str],
    options: AuditOptions,
    found: Pairs,
    add: impl Fn(Pairs, (usize, usize, f64)) -> Pairs + Sync,
) -> Pairs {
    let t = options.threshold.max(f64::MIN_POSITIVE);
    if t > 1.0 {
        return found;
    }
    let n = options.ngram.max(1);
    // A gram is where it begins in its text: four bytes instead of a copy of its characters.
    let characters: Vec<Vec<char>> = texts.par_iter().map(|text| text.chars().collect()).collect();
    let grams: Vec<Vec<u32>> = characters.par_iter().map(|text| ngrams(text, n)).collect();
    let gram = |text: usize, at: u32| {
        let (text, at) = (&characters[text], at as usize);
        &text[at..text.len().min(at + n)]
    };
    // Rank n-grams from rare to frequent, ties by text, so that prefixes are selective and the
    // order is fixed.
    let mut frequency: HashMap<&[char], u32> = HashMap::new();
    for (text, starts) in grams.iter().enumerate() {
        for &at in starts {
            *frequency.entry(gram(text, at)).or_default() += 1;
        }
    }
    let mut ranked: Vec<(u32, &[char])> = frequency.iter().map(|(gram, &count)| (count, *gram)).collect();
    ranked.par_sort_unstable();
    let rank: HashMap<&[char], u32> = (0..).zip(&ranked).map(|(rank, (_, gram))| (*gram, rank)).collect();
    drop((frequency, ranked));
    let sets: Vec<Vec<u32>> = grams
        .par_iter()
        .enumerate()
        .map(|(text, starts)| {
            let mut set: Vec<u32> = starts.iter().map(|&at| rank[gram(text, at)]).collect();
            set.sort_unstable();
            set
        })
        .collect();
    drop((rank, grams));
    // A pair at or above t shares at least ceil(t * len) n-grams, hence one among the first len -
    // ceil(t * len) + 1. The small number keeps a product that was rounded up from shortening the
    // prefix.
    let prefix = |set: &[u32]| set.len() - ((t * set.len() as f64 - 1e-9).ceil() as usize).clamp(1, set.len()) + 1;
    let mut holders: HashMap<u32, Vec<usize>> = HashMap::new();
    for (i, set) in sets.iter().enumerate().filter(|(_, set)| !set.is_empty()) {
        for &gram in &set[..prefix(set)] {
            holders.entry(gram).or_default().push(i);
        }
    }
    let near = sets
        .par_iter()
        .enumerate()
        .filter(|(_, set)| !set.is_empty())
        .fold(Pairs::default, |found, (i, set)| {
            let candidates: BTreeSet<usize> =
                set[..prefix(set)].iter().flat_map(|gram| holders[gram].iter().copied()).filter(|&j| j > i).collect();
            let near = candidates.into_iter().map(|j| (i, j, jaccard(set, &sets[j]))).filter(|&(.., x)| x >= t);
            near.fold(found, &add)
        })
        .reduce(Pairs::default, Pairs::join);
    found.join(near)
}

/// Where the different character n-grams of a text begin; a shorter text is its own only one.
fn ngrams(text: &[char], n: usize) -> Vec<u32> {
    let last = text.len().saturating_sub(n);
    let mut starts: Vec<u32> = (0..=last as u32).filter(|_| !text.is_empty()).collect();
    let gram = |at: u32| &text[at as usize..text.len().min(at as usize + n)];
    starts.sort_unstable_by(|&a, &b| gram(a).cmp(gram(b)));
    starts.dedup_by(|a, b| gram(*a) == gram(*b));
    starts
}

/// Jaccard index of two ascending lists.
fn jaccard(a: &[u32], b: &[u32]) -> f64 {
    let (mut i, mut j, mut shared) = (0, 0, 0);
    while i < a.len() && j < b.len() {
        match a[i].cmp(&b[j]) {
            std::cmp::Ordering::Less => i += 1,
            std::cmp::Ordering::Greater => j += 1,
            std::cmp::Ordering::Equal => {
                shared += 1;
                i += 1;
                j += 1;
            }
        }
    }
    shared as f64 / (a.len() + b.len() - shared) as f64
}
