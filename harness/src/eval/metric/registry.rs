//! The registry: the list of all metrics.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use super::definition::{Direction, ItemValue, MetricDef, PERCENT, Reads, SHARE, unbounded};
use super::{
    choices, conformance, decisions, diversity, exact, form, key_points, likelihood, repetition, rouge, sacrebleu,
    vocabulary,
};

/// Karat's own, a file a slice.
const OWN: [&[MetricDef]; 11] = [
    likelihood::METRICS,
    sacrebleu::METRICS,
    rouge::METRICS,
    vocabulary::METRICS,
    exact::METRICS,
    choices::METRICS,
    decisions::METRICS,
    key_points::METRICS,
    form::METRICS,
    repetition::METRICS,
    diversity::METRICS,
];

static REGISTRY: LazyLock<Vec<MetricDef>> = LazyLock::new(|| {
    let mut all = OWN.concat();
    // Made once in a process and used as long: the names live as constants do.
    all.extend(conformance::number_names().into_iter().map(|name| package_metric(String::leak(name))));
    all
});

static BY_NAME: LazyLock<BTreeMap<&'static str, usize>> =
    LazyLock::new(|| REGISTRY.iter().enumerate().map(|(at, metric)| (metric.name, at)).collect());

/// All metrics: Karat's own, then those of the Python packages.
pub fn registry() -> &'static [MetricDef] {
    &REGISTRY
}

/// The declaration of a metric.
pub fn info(name: &str) -> Option<&'static MetricDef> {
    BY_NAME.get(name).map(|at| &REGISTRY[*at])
}

fn package_metric(name: &'static str) -> MetricDef {
    let group = name.split('.').next().unwrap_or(name);
    use Direction::{Higher, Lower, Neutral};
    let share = unbounded("share");
    let (unit, direction, description) = match group {
        "nltk_bleu_jieba" => (share, Higher, "nltk sentence_bleu over jieba words, by smoothing method"),
        "nltk_bleu_char" => (share, Higher, "nltk sentence_bleu over characters, by smoothing method"),
        "sacrebleu" => {
            (unbounded("%"), Higher, "sacrebleu's BLEU without effective order, by tokenizer, with its counts")
        }
        "sacrebleu_eff" => (PERCENT, Higher, "sacrebleu's sentence_bleu, by tokenizer"),
        "chrf" => (PERCENT, Higher, "sacrebleu's chrF"),
        "chrfpp" => (PERCENT, Higher, "sacrebleu's chrF++"),
        "ter" => (unbounded("%"), Lower, "sacrebleu's TER"),
        "ter_asian_normalized" => (unbounded("%"), Lower, "sacrebleu's TER, normalised, Chinese characters apart"),
        "rouge_raw" => (SHARE, Higher, "package rouge on the unsegmented text"),
        "rouge_jieba" => (SHARE, Higher, "package rouge on jieba words"),
        "rouge_char" => (SHARE, Higher, "package rouge on characters"),
        "rouge_chinese_jieba" => (SHARE, Higher, "package rouge-chinese on jieba words"),
        "rouge_score" => (SHARE, Higher, "package rouge_score: Chinese is dropped"),
        "rouge_score_jieba" => (SHARE, Higher, "package rouge_score with jieba as its tokenizer"),
        "vocab" => (SHARE, Higher, "overlap of the sets of jieba words"),
        "vocab_nohmm" => (SHARE, Higher, "overlap of the sets of jieba words, HMM off"),
        "exact_match" => (SHARE, Higher, "equality of strings"),
        "token_f1_jieba" => (share, Higher, "SQuAD's token F1 over jieba words"),
        "token_f1_char" => (share, Higher, "SQuAD's token F1 over characters"),
        "distinct" => (SHARE, Neutral, "distinct n-grams of the whole text"),
        "length_ratio" => (unbounded("ratio"), Neutral, "tokens of the text over those of the reference"),
        _ => (unbounded("calls"), Neutral, "depth of recursion of package rouge"),
    };
    let metric = MetricDef::new(name, unit, direction, Reads::FullText, description, ItemValue::Package);
    if group == "exact_match" { metric.yes_or_no() } else { metric }
}
