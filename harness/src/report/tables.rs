//! The cells of the report's tables as plain text, unescaped: Markdown and the page lay out the
//! same ones.

use super::i18n::sentences::{self, Labels};
use super::model::{
    Cost, Direction, General, Language, Metric, MetricComparison, Model, RecipeComparison, Report, Verdict,
};
use super::number::{self, UNDEFINED};

/// With more models than this a table has one column a model, with the difference below the value:
/// a column for each of both would be no table that anyone reads.
pub(super) const WIDE: usize = 3;

/// Whether a report's tables are of one column a model.
pub(super) fn compact(report: &Report) -> bool {
    report.models.len() > WIDE
}

/// One number where all models that have a value have the same, `18–20` where they differ.
pub(super) fn sample_size(metric: &Metric, report: &Report) -> String {
    let all = || report.models.iter().filter_map(|m| Some(metric.models.get(&m.name)?.n));
    // A model without a single value shows as that.
    let none_has = all().all(|n| n == 0);
    let sizes = || all().filter(move |n| none_has || *n > 0);
    match (sizes().min(), sizes().max()) {
        (Some(a), Some(b)) if a == b => a.to_string(),
        (Some(a), Some(b)) => format!("{a}–{b}"),
        _ => UNDEFINED.to_string(),
    }
}

/// A row of a table of paired differences.
pub(super) struct Difference {
    pub n: String,
    pub difference: String,
    pub p: String,
    pub adjusted: String,
    pub mark: String,
    pub wins: String,
    pub detectable: String,
    pub verdict: &'static str,
}

pub(super) fn difference(metric: &Metric, c: &MetricComparison, language: Language) -> Difference {
    Difference {
        n: c.n.to_string(),
        difference: number::difference(metric, c),
        p: number::p_value(c.p_value),
        adjusted: number::p_value(c.p_adjusted),
        mark: c.mark.clone(),
        wins: match metric.direction {
            Direction::Neutral => UNDEFINED.to_string(),
            _ => format!("{} / {}", c.wins, c.losses),
        },
        detectable: c.detectable.map_or(UNDEFINED.into(), |d| number::fixed(d, metric.decimals)),
        verdict: sentences::verdict_word(c.verdict, language),
    }
}

/// The header of [`training`]: the model, its cells, a note.
pub(super) fn training_header(l: &Labels) -> [&'static str; 9] {
    [l.model, l.parameters, l.trainable, l.steps, l.tokens, l.train_loss, l.best_eval, l.last_eval, ""]
}

/// The trained models and their cells.
pub(super) fn training(report: &Report) -> Vec<(&Model, [String; 7])> {
    let l = report.language.labels();
    let loss = |x: Option<f64>| x.map_or(UNDEFINED.to_string(), |x| number::fixed(x, 4));
    let trained = report.models.iter().filter_map(|m| Some((m, m.training.as_ref()?)));
    trained
        .map(|(model, t)| {
            let best = |b: super::model::Evaluation| format!("{} ({} {})", loss(b.loss), l.at_step, b.step);
            let cells = [
                model.parameters.map_or(UNDEFINED.into(), number::grouped),
                model.trainable_parameters.map_or(UNDEFINED.into(), number::grouped),
                number::grouped(t.steps as u64),
                number::grouped(t.tokens),
                loss(t.curve.last().and_then(|p| p.loss)),
                t.best.map_or(UNDEFINED.into(), best),
                loss(t.evaluations.last().and_then(|e| e.loss)),
            ];
            (model, cells)
        })
        .collect()
}

/// The header of [`samples`].
pub(super) fn sample_header(l: &Labels) -> [&'static str; 6] {
    [l.metric, l.model, l.sample_mean, l.sample_spread, l.item_spread, l.pass_at]
}

/// The rows of the table of samples, metric by metric.
pub(super) fn samples(report: &Report) -> Vec<[String; 6]> {
    let Some(samples) = &report.samples else { return Vec::new() };
    let row = |metric: &Metric, model: &Model| {
        let v = samples.models.get(&model.name)?.get(&metric.name)?;
        let value = |x: f64| number::fixed(x, metric.decimals);
        let pass: Vec<String> = v.pass_at.iter().map(|(k, x)| format!("{k}: {}", number::fixed(*x, 3))).collect();
        Some([
            format!("{} {}", metric.title(report.language), metric.arrow()).trim_end().to_string(),
            model.name.clone(),
            format!("{} (n = {})", value(v.mean), v.n),
            value(v.between_samples.sqrt()),
            value(v.between_items.sqrt()),
            if pass.is_empty() { UNDEFINED.to_string() } else { pass.join(", ") },
        ])
    };
    report.metrics.iter().flat_map(|metric| report.models.iter().filter_map(move |model| row(metric, model))).collect()
}

/// The header of [`recipe`].
pub(super) fn recipe_header(report: &Report) -> [String; 7] {
    let l = report.language.labels();
    let difference = format!("{} [{} %]", l.difference, number::fixed(100.0 * report.statistics.confidence, 0));
    [
        l.metric.into(),
        "n".into(),
        difference,
        l.adjusted_p.into(),
        l.seed_share.into(),
        l.seed_difference.into(),
        String::new(),
    ]
}

/// The rows of a comparison of recipes.
pub(super) fn recipe(comparison: &RecipeComparison, report: &Report) -> Vec<[String; 7]> {
    let l = report.language.labels();
    let row = |metric: &Metric| {
        let c = comparison.metrics.get(&metric.name)?;
        let value = |x: f64| number::fixed(x, metric.decimals);
        let interval = match (c.ci_low, c.ci_high) {
            (Some(low), Some(high)) => format!(" [{}, {}]", value(low), value(high)),
            _ => String::new(),
        };
        Some([
            format!("{} {}", metric.title(report.language), metric.arrow()).trim_end().to_string(),
            c.n.to_string(),
            format!("{}{interval}", number::signed(c.difference, metric.decimals)),
            number::p_value(c.p_adjusted),
            c.seed_share.map_or(UNDEFINED.into(), |share| format!("{} %", number::fixed(100.0 * share, 0))),
            c.seed_difference.map_or(UNDEFINED.into(), value),
            if c.within_seeds == Some(true) { l.within_seeds.to_string() } else { String::new() },
        ])
    };
    report.metrics.iter().filter_map(row).collect()
}

/// What two recipes are called above their table.
pub(super) fn recipe_title(c: &RecipeComparison, language: Language) -> String {
    let l = language.labels();
    let seeds = |name: &str, n: usize| match n {
        1 => name.to_string(),
        n => language.pick(format!("{name} ({n} seeds)"), format!("{name}（{n} 个种子）")),
    };
    format!("{} {} {}", seeds(&c.candidate, c.candidate_seeds), l.against, seeds(&c.baseline, c.baseline_seeds))
}

/// Which checkpoints were chosen by a metric, in words.
pub(super) fn chosen(report: &Report) -> Vec<String> {
    let sentence = |model: &Model| {
        let c = model.training.as_ref()?.chosen.as_ref()?;
        let title = metric_title(report, &c.metric);
        let info = report.metric(&c.metric);
        let value =
            |x: &Option<f64>| x.map_or(UNDEFINED.to_string(), |x| number::fixed(x, info.map_or(4, |m| m.decimals)));
        let values: Vec<String> = c.values.iter().map(|(step, x)| format!("{step}: {}", value(x))).collect();
        let (name, step, items, list) = (&model.name, c.step, c.items, values.join(", "));
        Some(report.language.pick(
            format!(
                "The checkpoint of {name} (step {step}) was chosen by {title} on {items} validation items, not on the \
                 items below ({list})."
            ),
            format!("{name} 的检查点（第 {step} 步）按 {items} 条验证集条目上的 {title} 选出，未使用下文的评测条目（{list}）。"),
        ))
    };
    report.models.iter().filter_map(sentence).collect()
}

/// The header of [`checkpoints`]: the model, the step, the headline metrics.
pub(super) fn checkpoint_header(report: &Report) -> Vec<String> {
    let l = report.language.labels();
    let metrics = headline(report).into_iter().map(|m| format!("{} {}", m.title(report.language), m.arrow()));
    [l.model, l.steps].map(String::from).into_iter().chain(metrics.map(|m| m.trim_end().to_string())).collect()
}

/// The checkpoints that were measured, model by model.
pub(super) fn checkpoints(report: &Report) -> Vec<Vec<String>> {
    let metrics = headline(report);
    let mut rows = Vec::new();
    for model in &report.models {
        for checkpoint in model.training.iter().flat_map(|t| &t.checkpoints) {
            let value = |m: &&Metric| checkpoint.metrics.get(&m.name).map_or(UNDEFINED.into(), |v| number::value(m, v));
            let cells = [model.name.clone(), number::grouped(checkpoint.step as u64)];
            rows.push(cells.into_iter().chain(metrics.iter().map(value)).collect());
        }
    }
    rows
}

/// The headline metrics; all, if none is one.
fn headline(report: &Report) -> Vec<&Metric> {
    let headline: Vec<&Metric> = report.metrics.iter().filter(|m| m.headline).collect();
    if headline.is_empty() { report.metrics.iter().collect() } else { headline }
}

/// The metric by which cost is weighed: the first headline metric, in percent or as a share, that
/// more of is better.
fn weighed(report: &Report) -> Option<&Metric> {
    let scaled = |m: &&Metric| matches!(m.unit.as_str(), "%" | "share") && m.direction == Direction::Higher;
    report.metrics.iter().filter(scaled).find(|m| m.headline)
}

/// The points (hundredths of a share, or percent) that a model gained over the base on [`weighed`];
/// none where the gain is not significant.
fn points_gained(report: &Report, model: &Model) -> Option<f64> {
    let metric = weighed(report)?;
    let comparison = report.against_base().into_iter().find(|c| c.candidate == model.name)?;
    let c = comparison.metrics.get(&metric.name).filter(|c| c.verdict == Verdict::Better)?;
    Some(c.difference? * if metric.unit == "share" { 100.0 } else { 1.0 })
}

/// The header of [`costs`]: the model and its cells.
pub(super) fn cost_header(report: &Report) -> Vec<String> {
    let l = report.language.labels();
    let mut header = [
        l.model,
        l.device,
        l.trainable,
        l.train_time,
        l.train_speed,
        l.score_time,
        l.generate_time,
        l.speed,
        l.memory,
        l.disk,
    ]
    .map(String::from)
    .to_vec();
    header.extend(weighed(report).map(|m| format!("{} {}", l.per_point, m.title(report.language))));
    header
}

/// The models whose cost is known and their cells.
pub(super) fn costs(report: &Report) -> Vec<(&Model, Vec<String>)> {
    let seconds = |s: Option<f64>| s.map_or(UNDEFINED.to_string(), number::duration);
    let whole = |x: Option<f64>| x.map_or(UNDEFINED.to_string(), |x| number::grouped(x.round() as u64));
    let train_speed = |model: &Model, cost: &Cost| {
        Some(model.training.as_ref()?.tokens as f64 / cost.train_seconds.filter(|s| *s > 0.0)?)
    };
    let known = report.models.iter().filter_map(|m| Some((m, report.environment.costs.get(&m.name)?)));
    known
        .map(|(model, cost)| {
            let mut cells = vec![
                if cost.device.is_empty() { UNDEFINED.into() } else { cost.device.clone() },
                model.trainable_parameters.map_or(UNDEFINED.into(), number::grouped),
                seconds(cost.train_seconds),
                whole(train_speed(model, cost)),
                seconds(cost.score_seconds),
                seconds(cost.generate_seconds),
                whole(cost.tokens_per_second()),
                cost.peak_memory.map_or(UNDEFINED.into(), number::bytes),
                cost.disk_bytes.map_or(UNDEFINED.into(), number::bytes),
            ];
            if weighed(report).is_some() {
                let per_point = cost.train_seconds.zip(points_gained(report, model)).map(|(s, points)| s / points);
                cells.push(per_point.map_or(UNDEFINED.into(), |s| number::fixed(s, if s < 10.0 { 2 } else { 0 })));
            }
            (model, cells)
        })
        .collect()
}

/// The metrics with a signature: what a table calls them, and it.
pub(super) fn signatures(report: &Report) -> Vec<(&str, &str)> {
    report.metrics.iter().filter_map(|m| Some((m.title(report.language), m.signature.as_deref()?))).collect()
}

/// The header of [`truncation`].
pub(super) fn truncation_header(l: &Labels) -> [&'static str; 6] {
    [l.metric, l.model, l.over_all, l.over_closed, l.were_worst, l.were_best]
}

/// What reasoning that was never closed can have done, by metric and model; empty where all of it
/// was closed.
pub(super) fn truncation(report: &Report) -> Vec<[String; 6]> {
    let row = |metric: &Metric, model: &Model| {
        let value = metric.models.get(&model.name)?;
        let b = value.truncation?;
        let number = |x: f64| number::fixed(x, metric.decimals);
        Some([
            format!("{} {}", metric.title(report.language), metric.arrow()).trim_end().to_string(),
            model.name.clone(),
            format!("{} (n = {})", number(b.all), value.n),
            format!("{} (n = {})", b.completed.map_or(UNDEFINED.into(), number), b.n_completed),
            number(b.low),
            number(b.high),
        ])
    };
    report.metrics.iter().flat_map(|metric| report.models.iter().filter_map(move |model| row(metric, model))).collect()
}

/// The header of [`adapters`]: the model and its cells.
pub(super) fn adapter_header(l: &Labels) -> [&'static str; 6] {
    [l.model, l.items_word, l.adapter_change, l.merged_difference, l.merged_flips, l.merged_texts]
}

/// The models with an adapter, and what was found of it.
pub(super) fn adapters(report: &Report) -> Vec<(&Model, [String; 5])> {
    let l = report.language.labels();
    let looked_at = report.models.iter().filter_map(|m| Some((m, m.adapter.as_ref()?)));
    looked_at
        .map(|(model, a)| {
            let [difference, flips, texts] = match &a.merged {
                Some(m) => [
                    number::scientific(m.largest_difference),
                    format!("{} / {}", m.argmax_flips, number::grouped(a.tokens)),
                    format!("{} / {}", m.changed_texts, a.items),
                ],
                None => [l.not_merged.to_string(), UNDEFINED.into(), UNDEFINED.into()],
            };
            (model, [a.items.to_string(), number::fixed(a.largest_change, 3), difference, flips, texts])
        })
        .collect()
}

/// A row of the table of flips: comparison, metric, and the four counts.
pub(super) fn flips(report: &Report) -> Vec<[String; 6]> {
    let l = report.language.labels();
    let row = |t: &super::model::FlipTable| {
        [
            format!("{} {} {}", t.candidate, l.against, t.baseline),
            metric_title(report, &t.metric).to_string(),
            t.flips.right_to_wrong.len().to_string(),
            t.flips.wrong_to_right.len().to_string(),
            t.flips.both_right.to_string(),
            t.flips.both_wrong.to_string(),
        ]
    };
    report.flips.iter().map(row).collect()
}

/// What a report calls a metric.
pub(super) fn metric_title<'a>(report: &'a Report, name: &'a str) -> &'a str {
    report.metric(name).map_or(name, |m| m.title(report.language))
}

/// Where two texts part, in words.
pub(super) fn divergence(d: &super::model::Divergence, language: Language) -> String {
    let l = language.labels();
    let token = |t: &Option<super::model::Token>| match t {
        Some(t) if t.text.is_empty() => format!("#{}", t.id),
        Some(t) => format!("“{}” (#{})", t.text.escape_debug(), t.id),
        None => l.text_ends.to_string(),
    };
    format!(
        "{} {} {}, {} {}: {} → {}",
        d.candidate,
        l.against,
        d.baseline,
        l.parts_at,
        d.at.saturating_add(1),
        token(&d.baseline_token),
        token(&d.candidate_token)
    )
}

/// What general text was scored, in words.
pub(super) fn general_source(general: &General, language: Language) -> String {
    let l = language.labels();
    let (texts, tokens) = (number::grouped(general.file.rows), number::grouped(general.tokens));
    let hash = number::short_hash(&general.file.sha256);
    format!("{}: {texts} {}, {tokens} {}, sha256 {hash}", general.file.name, l.texts_word, l.tokens_word)
}
