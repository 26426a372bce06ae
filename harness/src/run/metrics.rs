//! From predictions to the numbers of a report: every metric of every item, and how tables name them.

use std::collections::BTreeMap;

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::eval::metric::{self, Corpus, Direction};
use crate::eval::stats::StatsOptions;
use crate::eval::think::ThinkTags;
use crate::eval::{Item, ItemResult, Prediction, ReferenceScore};
use crate::report::{self, MetricInfo, Pooled};

/// Every metric of every item, on all cores, in the order of the items; `tags` tell reasoning from answers.
///
/// # Errors
/// A metric that does not exist.
pub fn measure(
    tags: &ThinkTags,
    names: &[String],
    items: &[Item],
    predictions: Vec<Prediction>,
    references: Vec<ReferenceScore>,
) -> Result<Vec<ItemResult>> {
    let mut references: BTreeMap<String, ReferenceScore> = references.into_iter().map(|r| (r.id.clone(), r)).collect();
    let by_id: BTreeMap<&str, &Item> = items.iter().map(|i| (i.id.as_str(), i)).collect();
    let rows: Vec<(Prediction, Option<ReferenceScore>)> =
        predictions.into_iter().map(|p| (references.remove(&p.id), p)).map(|(r, p)| (p, r)).collect();
    rows.into_par_iter()
        .map(|(prediction, reference)| {
            let item = by_id.get(prediction.id.as_str()).ok_or_else(|| {
                Error::data(format!("`{}` is no item of the suite's data", prediction.id))
                    .help("these predictions were made from other data")
            })?;
            let metrics = metric::evaluate_by(tags, names, item, &prediction, reference.as_ref())?;
            Ok(ItemResult { prediction, reference, metrics })
        })
        .collect()
}

/// The corpus values of metrics that are pooled over the items, with their intervals.
pub fn pooled(
    names: &[String],
    items: &[Item],
    results: &[ItemResult],
    options: &StatsOptions,
) -> BTreeMap<String, Pooled> {
    let clusters: BTreeMap<&str, &str> = items.iter().map(|i| (i.id.as_str(), i.cluster.as_str())).collect();
    let cluster_of = |id| clusters.get(id).copied().unwrap_or(id);
    let is_pooled = |name: &&String| metric::info(name).is_some_and(|m| m.corpus != Corpus::Mean);
    names
        .iter()
        .filter(is_pooled)
        .map(|name| {
            let (value, interval) = metric::aggregate_with_interval(name, results, cluster_of, options);
            (name.clone(), Pooled { value, interval: interval.map(|i| (i.low, i.high)) })
        })
        .collect()
}

/// Titles, decimals, and whether a metric is a headline: named in the verdict and drawn.
const TITLES: &[(&str, &str, &str, usize, bool)] = &[
    ("nll", "Reference NLL", "参考文本负对数似然", 3, true),
    ("nll_think", "NLL, reasoning", "负对数似然（思考）", 3, false),
    ("nll_answer", "NLL, answer", "负对数似然（回答）", 3, false),
    ("perplexity", "Reference perplexity", "参考文本困惑度", 2, false),
    ("bits_per_byte", "Bits per byte", "每字节比特数", 3, false),
    ("greedy_share", "Greedy share", "贪心命中率", 3, false),
    ("bleu", "BLEU (zh)", "BLEU (zh)", 2, true),
    ("rouge1", "ROUGE-1 (char)", "ROUGE-1（字）", 3, false),
    ("rouge2", "ROUGE-2 (char)", "ROUGE-2（字）", 3, false),
    ("rougeL", "ROUGE-L (char)", "ROUGE-L（字）", 3, true),
    ("rouge1_jieba", "ROUGE-1 (jieba)", "ROUGE-1（词）", 3, false),
    ("rouge2_jieba", "ROUGE-2 (jieba)", "ROUGE-2（词）", 3, false),
    ("rougeL_jieba", "ROUGE-L (jieba)", "ROUGE-L（词）", 3, false),
    ("think_rougeL", "ROUGE-L, reasoning (char)", "ROUGE-L（思考，字）", 3, false),
    ("vocab_precision", "Vocabulary precision", "词汇精确率", 3, false),
    ("vocab_recall", "Vocabulary recall", "词汇召回率", 3, false),
    ("vocab_f1", "Vocabulary F1", "词汇 F1", 3, true),
    ("key_points", "Key points recalled", "要点召回率", 3, true),
    ("key_points_precision", "Key points precision", "要点精确率", 3, false),
    ("think_key_points", "Reasoning key points recalled", "思维链要点召回率", 3, false),
    ("think_key_points_precision", "Reasoning key points precision", "思维链要点精确率", 3, false),
    ("contradictions", "Contradicted key points", "与参考相反的要点", 3, false),
    ("acc", "Accuracy (log-likelihood)", "准确率（对数似然）", 3, true),
    ("acc_norm", "Accuracy (per character)", "准确率（按字符归一）", 3, true),
    ("acc_bytes", "Accuracy (per byte)", "准确率（按字节归一）", 3, false),
    ("acc_extracted", "Accuracy (extracted)", "准确率（抽取）", 3, true),
    ("unparsed", "Unparsed answers", "未能解析的回答", 3, false),
    ("exact_match", "Exact match", "完全匹配", 3, true),
    ("format", "Format kept", "格式正确率", 3, true),
    ("truncated", "Truncated", "截断率", 3, false),
    ("repetition", "Loops", "循环重复率", 3, false),
    ("repeated_4grams", "Repeated 4-grams", "重复四元组", 3, false),
    ("distinct1", "Distinct words", "不同词占比", 3, false),
    ("distinct2", "Distinct word pairs", "不同词对占比", 3, false),
    ("length_ratio", "Length ratio", "长度比", 2, false),
    ("generated_tokens", "Generated tokens", "生成词元数", 1, false),
];

/// How the named metrics appear in a report.
pub fn describe(names: &[String]) -> Vec<MetricInfo> {
    names
        .iter()
        .filter_map(|name| {
            let info = metric::info(name)?;
            let title = TITLES.iter().find(|t| t.0 == name);
            Some(MetricInfo {
                name: name.clone(),
                title_en: title.map_or(name.clone(), |t| t.1.into()),
                title_zh: title.map_or(name.clone(), |t| t.2.into()),
                unit: info.unit.into(),
                direction: match info.direction {
                    Direction::Higher => report::Direction::Higher,
                    Direction::Lower => report::Direction::Lower,
                    Direction::Neutral => report::Direction::Neutral,
                },
                decimals: title.map_or(3, |t| t.3),
                headline: title.is_some_and(|t| t.4),
            })
        })
        .collect()
}
