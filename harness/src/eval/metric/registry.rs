//! What every metric declares.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use super::conformance;

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// The more the better.
    Higher,
    /// The less the better.
    Lower,
    /// Neither: it describes.
    Neutral,
}

/// What a metric reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reads {
    /// The answer part of the generated text and of the reference.
    Answer,
    /// The reasoning part of both.
    Think,
    /// The whole generated text; and the whole reference, reasoning in tags, where it compares.
    FullText,
    /// Why the generation stopped.
    Stop,
    /// The reference's log-probabilities under the model.
    Reference,
    /// The log-probabilities of a multiple-choice item's options under the model.
    Options,
}

/// How the value of a corpus comes from its items.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Corpus {
    /// Mean over the items that have a value.
    Mean,
    /// Sum of log-probabilities over the sum of tokens.
    PooledByToken,
    /// Sum of log-probabilities over the sum of bytes.
    PooledByByte,
    /// `exp` of the pooled value per token.
    ExpOfPooled,
}

/// A metric's declaration.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct MetricInfo {
    /// Its name, unique.
    pub name: &'static str,
    /// Unit of the value: `nats/token`, `bits/byte`, `%` (0 to 100), `share` (0 to 1), `ratio`, `tokens`, `calls`.
    pub unit: &'static str,
    /// Which way is better.
    pub direction: Direction,
    /// Smallest and greatest value it can have; infinite where there is no bound.
    #[serde(skip)]
    pub range: (f64, f64),
    /// What it reads.
    pub reads: Reads,
    /// How a corpus value comes from items.
    pub corpus: Corpus,
    /// What it says, in one sentence.
    pub description: &'static str,
    /// Every item's value is 0 or 1.
    pub binary: bool,
    /// The value from which on (in the metric's direction) an item counts as right; `None` where the metric grades and has
    /// no such point.
    pub right_from: Option<f64>,
}

impl MetricInfo {
    /// Whether an item with this value is right; `None` if the metric has no notion of right.
    pub fn is_right(&self, value: f64) -> Option<bool> {
        let from = self.right_from?;
        Some(match self.direction {
            Direction::Lower => value <= from,
            Direction::Higher | Direction::Neutral => value >= from,
        })
    }

    /// Whether only items that ask for a yes or a no have a value: of the others nothing is missing.
    pub fn is_of_decisions(&self) -> bool {
        self.name.split('_').next() == Some("decision")
    }

    /// The same metric as a yes-or-no: right with a value of 1, or of 0 where less is better.
    const fn yes_or_no(mut self) -> Self {
        self.binary = true;
        self.right_from = Some(match self.direction {
            Direction::Lower => 0.0,
            Direction::Higher | Direction::Neutral => 1.0,
        });
        self
    }

    /// The same metric, an item being right from `value` on.
    const fn right_from(mut self, value: f64) -> Self {
        self.right_from = Some(value);
        self
    }
}

use Corpus::{ExpOfPooled, Mean, PooledByByte, PooledByToken};
use Direction::{Higher, Lower, Neutral};

const SHARE: (f64, f64) = (0.0, 1.0);
const PERCENT: (f64, f64) = (0.0, 100.0);
const UNBOUNDED: (f64, f64) = (0.0, f64::INFINITY);

const fn metric(
    name: &'static str,
    unit: &'static str,
    direction: Direction,
    range: (f64, f64),
    reads: Reads,
    corpus: Corpus,
    description: &'static str,
) -> MetricInfo {
    MetricInfo { name, unit, direction, range, reads, corpus, description, binary: false, right_from: None }
}

#[rustfmt::skip]
const OWN: &[MetricInfo] = &[
    metric("nll", "nats/token", Lower, UNBOUNDED, Reads::Reference, PooledByToken, "negative log-likelihood of the reference"),
    metric("nll_think", "nats/token", Lower, UNBOUNDED, Reads::Reference, PooledByToken, "negative log-likelihood of the reference's reasoning"),
    metric("nll_answer", "nats/token", Lower, UNBOUNDED, Reads::Reference, PooledByToken, "negative log-likelihood of the reference's answer, after its reasoning"),
    metric("perplexity", "ratio", Lower, (1.0, f64::INFINITY), Reads::Reference, ExpOfPooled, "exp of nll: of the reference, not of the generated text"),
    metric("bits_per_byte", "bits/byte", Lower, UNBOUNDED, Reads::Reference, PooledByByte, "negative log-likelihood of the reference per UTF-8 byte, comparable between tokenizers"),
    metric("greedy_share", "share", Higher, SHARE, Reads::Reference, PooledByToken, "tokens of the reference that were the most probable one"),
    metric("bleu", "%", Higher, PERCENT, Reads::Answer, Mean, "sentence BLEU of sacrebleu, tokenizer zh, effective order, smoothing exp"),
    metric("rouge1", "share", Higher, SHARE, Reads::Answer, Mean, "F1 of clipped characters"),
    metric("rouge2", "share", Higher, SHARE, Reads::Answer, Mean, "F1 of clipped character pairs"),
    metric("rougeL", "share", Higher, SHARE, Reads::Answer, Mean, "F1 of the longest common subsequence of characters"),
    metric("rouge1_jieba", "share", Higher, SHARE, Reads::Answer, Mean, "F1 of clipped jieba words"),
    metric("rouge2_jieba", "share", Higher, SHARE, Reads::Answer, Mean, "F1 of clipped pairs of jieba words"),
    metric("rougeL_jieba", "share", Higher, SHARE, Reads::Answer, Mean, "F1 of the longest common subsequence of jieba words"),
    metric("think_rougeL", "share", Higher, SHARE, Reads::Think, Mean, "F1 of the longest common subsequence of characters, of the reasoning"),
    metric("vocab_precision", "share", Higher, SHARE, Reads::Answer, Mean, "distinct jieba words of the answer that the reference has"),
    metric("vocab_recall", "share", Higher, SHARE, Reads::Answer, Mean, "distinct jieba words of the reference that the answer has"),
    metric("vocab_f1", "share", Higher, SHARE, Reads::Answer, Mean, "harmonic mean of vocab_precision and vocab_recall"),
    metric("exact_match", "share", Higher, SHARE, Reads::Answer, Mean, "answers equal after normalising width, case, white space and sentence punctuation").yes_or_no(),
    metric("acc", "share", Higher, SHARE, Reads::Options, Mean, "the right option is the most probable one").yes_or_no(),
    metric("acc_norm", "share", Higher, SHARE, Reads::Options, Mean, "the right option is the most probable one per character").yes_or_no(),
    metric("acc_bytes", "share", Higher, SHARE, Reads::Options, Mean, "the right option is the most probable one per UTF-8 byte").yes_or_no(),
    metric("acc_extracted", "share", Higher, SHARE, Reads::Answer, Mean, "the option that the answer names is the right one; an answer that names none is wrong").yes_or_no(),
    metric("unparsed", "share", Lower, SHARE, Reads::FullText, Mean, "answers to multiple-choice items that name no option, or not one alone").yes_or_no(),
    metric("decision", "share", Higher, SHARE, Reads::Answer, Mean, "yes-or-no items that the answer decides rightly at its head; one that decides nothing is wrong").yes_or_no(),
    metric("decision_yes_to_no", "share", Lower, SHARE, Reads::Answer, Mean, "items to be answered with no that the answer says yes to").yes_or_no(),
    metric("decision_no_to_yes", "share", Lower, SHARE, Reads::Answer, Mean, "items to be answered with yes that the answer says no to").yes_or_no(),
    metric("decision_undecided", "share", Lower, SHARE, Reads::Answer, Mean, "yes-or-no items that the answer decides neither way").yes_or_no(),
    metric("key_points", "share", Higher, SHARE, Reads::Answer, Mean, "key points of the reference answer that the answer makes (numbers with units, negation aware)").right_from(1.0),
    metric("key_points_precision", "share", Higher, SHARE, Reads::Answer, Mean, "key points of the answer that the reference makes"),
    metric("think_key_points", "share", Higher, SHARE, Reads::Think, Mean, "key points of the reference reasoning that the reasoning makes").right_from(1.0),
    metric("think_key_points_precision", "share", Higher, SHARE, Reads::Think, Mean, "key points of the reasoning that the reference reasoning makes"),
    metric("contradictions", "share", Lower, SHARE, Reads::Answer, Mean, "key points of the reference answer, and its yes or no, that the answer states with another polarity, number or unit").right_from(0.0),
    metric("format", "share", Higher, SHARE, Reads::FullText, Mean, "reasoning closed (or absent where the reference has none), then an answer, nothing before").yes_or_no(),
    metric("truncated", "share", Lower, SHARE, Reads::Stop, Mean, "generations cut off by the token limit or the context").yes_or_no(),
    metric("repetition", "share", Lower, SHARE, Reads::FullText, Mean, "texts that run in a loop").yes_or_no(),
    metric("repeated_4grams", "share", Lower, SHARE, Reads::FullText, Mean, "4-grams of characters that occurred before in the text"),
    metric("distinct1", "share", Neutral, SHARE, Reads::Answer, Mean, "distinct jieba words among the words of the answer"),
    metric("distinct2", "share", Neutral, SHARE, Reads::Answer, Mean, "distinct pairs of jieba words among the pairs of the answer"),
    metric("length_ratio", "ratio", Neutral, UNBOUNDED, Reads::Answer, Mean, "characters of the answer over those of the reference answer, white space left out"),
    metric("generated_tokens", "tokens", Neutral, UNBOUNDED, Reads::Stop, Mean, "tokens generated"),
];

static REGISTRY: LazyLock<Vec<MetricInfo>> = LazyLock::new(|| {
    let mut all = OWN.to_vec();
    // Made once in a process and used as long: the names live as constants do.
    all.extend(conformance::number_names().into_iter().map(|name| package_metric(String::leak(name))));
    all
});

static BY_NAME: LazyLock<BTreeMap<&'static str, usize>> =
    LazyLock::new(|| REGISTRY.iter().enumerate().map(|(at, metric)| (metric.name, at)).collect());

/// All metrics: Karat's own, then those of the Python packages.
pub fn registry() -> &'static [MetricInfo] {
    &REGISTRY
}

/// The declaration of a metric.
pub fn info(name: &str) -> Option<&'static MetricInfo> {
    BY_NAME.get(name).map(|at| &REGISTRY[*at])
}

fn package_metric(name: &'static str) -> MetricInfo {
    let group = name.split('.').next().unwrap_or(name);
    let (unit, direction, range, description) = match group {
        "nltk_bleu_jieba" => ("share", Higher, UNBOUNDED, "nltk sentence_bleu over jieba words, by smoothing method"),
        "nltk_bleu_char" => ("share", Higher, UNBOUNDED, "nltk sentence_bleu over characters, by smoothing method"),
        "sacrebleu" => {
            ("%", Higher, UNBOUNDED, "sacrebleu's BLEU without effective order, by tokenizer, with its counts")
        }
        "sacrebleu_eff" => ("%", Higher, PERCENT, "sacrebleu's sentence_bleu, by tokenizer"),
        "chrf" => ("%", Higher, PERCENT, "sacrebleu's chrF"),
        "chrfpp" => ("%", Higher, PERCENT, "sacrebleu's chrF++"),
        "ter" => ("%", Lower, UNBOUNDED, "sacrebleu's TER"),
        "ter_asian_normalized" => ("%", Lower, UNBOUNDED, "sacrebleu's TER, normalised, Chinese characters apart"),
        "rouge_raw" => ("share", Higher, SHARE, "package rouge on the unsegmented text"),
        "rouge_jieba" => ("share", Higher, SHARE, "package rouge on jieba words"),
        "rouge_char" => ("share", Higher, SHARE, "package rouge on characters"),
        "rouge_chinese_jieba" => ("share", Higher, SHARE, "package rouge-chinese on jieba words"),
        "rouge_score" => ("share", Higher, SHARE, "package rouge_score: Chinese is dropped"),
        "rouge_score_jieba" => ("share", Higher, SHARE, "package rouge_score with jieba as its tokenizer"),
        "vocab" => ("share", Higher, SHARE, "overlap of the sets of jieba words"),
        "vocab_nohmm" => ("share", Higher, SHARE, "overlap of the sets of jieba words, HMM off"),
        "exact_match" => ("share", Higher, SHARE, "equality of strings"),
        "token_f1_jieba" => ("share", Higher, UNBOUNDED, "SQuAD's token F1 over jieba words"),
        "token_f1_char" => ("share", Higher, UNBOUNDED, "SQuAD's token F1 over characters"),
        "distinct" => ("share", Neutral, SHARE, "distinct n-grams of the whole text"),
        "length_ratio" => ("ratio", Neutral, UNBOUNDED, "tokens of the text over those of the reference"),
        _ => ("calls", Neutral, UNBOUNDED, "depth of recursion of package rouge"),
    };
    let metric = metric(name, unit, direction, range, Reads::FullText, Mean, description);
    if group == "exact_match" { metric.yes_or_no() } else { metric }
}
