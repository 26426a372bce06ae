//! The report's sentences, English and Chinese: the verdict, the warnings.

use crate::eval::think::ThinkState;

pub(in crate::report) use super::labels::Labels;
use super::labels::{CHINESE, ENGLISH};
use crate::backend::StopReason;
use crate::report::compare::Mismatch;
use crate::report::model::{
    Comparison, Direction, FloorState, Language, RecipeComparison, Recommendation, Report, Verdict, Warning,
};
use crate::report::number::{fixed, percent};
use crate::report::significance::ALPHA;

impl Language {
    pub(in crate::report) fn labels(self) -> &'static Labels {
        match self {
            Language::English => &ENGLISH,
            Language::Chinese => &CHINESE,
        }
    }

    pub(crate) fn pick<T>(self, en: T, zh: T) -> T {
        match self {
            Language::English => en,
            Language::Chinese => zh,
        }
    }

    fn and(self) -> &'static str {
        self.pick(" and ", " 与 ")
    }

    /// `a`, `a and b`, `a, b and 3 more`.
    fn list(self, names: &[&str], shown: usize) -> String {
        let comma = self.pick(", ", "、");
        if names.len() > shown {
            let rest = names.len() - shown;
            let more = self.pick(format!(" and {rest} more"), format!("等 {} 项", names.len()));
            return format!("{}{more}", names[..shown].join(comma));
        }
        match names {
            [] => String::new(),
            [one] => (*one).to_string(),
            [first @ .., last] => format!("{}{}{last}", first.join(comma), self.and()),
        }
    }
}

pub(in crate::report) fn verdict_word(verdict: Verdict, language: Language) -> &'static str {
    match verdict {
        Verdict::Better => language.pick("better", "更好"),
        Verdict::Worse => language.pick("worse", "更差"),
        Verdict::Different => language.pick("different", "有差异"),
        Verdict::Unclear => language.pick("no clear difference", "无明显差异"),
        Verdict::Undefined => language.pick("undefined", "无定义"),
    }
}

/// In what two compared models differ although they should be asked the same.
pub(in crate::report) fn allowed(mismatch: &Mismatch, language: Language) -> String {
    let Mismatch { what, first, second } = mismatch;
    let short = |hash: &String| hash.chars().take(12).collect::<String>();
    let (first, second) = (short(first), short(second));
    language.pick(
        format!("They were not asked the same: {what} {first} against {second}."),
        format!("两者的评测条件不同：{what} {first} 与 {second}。"),
    )
}

/// What to say of a text's end and thinking, empty where all is well.
pub(in crate::report) fn state_note(thinking: ThinkState, stop: Option<StopReason>, language: Language) -> String {
    let mut notes = Vec::new();
    match stop {
        None | Some(StopReason::Stop) => {}
        Some(StopReason::Length) => notes.push(language.pick("cut off at the token limit", "达到词元上限被截断")),
        Some(StopReason::Context) => notes.push(language.pick("cut off at the context limit", "达到上下文上限被截断")),
    }
    match thinking {
        ThinkState::Closed => {}
        ThinkState::Unclosed => notes.push(language.pick("thinking never closed", "思考未闭合")),
        ThinkState::CloseOnly => notes.push(language.pick("thinking closed but never opened", "思考只有结束标记")),
        ThinkState::None => notes.push(language.pick("no thinking", "没有思考")),
    }
    notes.join(language.pick(", ", "，"))
}

/// A comparison's outcome over the metrics that have a direction.
struct Outcome<'a> {
    better: Vec<&'a str>,
    worse: Vec<&'a str>,
    judged: usize,
}

fn outcome<'a>(report: &'a Report, comparison: &Comparison, language: Language) -> Outcome<'a> {
    // Headline metrics first: the list may be cut.
    let (head, rest): (Vec<_>, Vec<_>) = report.metrics.iter().partition(|m| m.headline);
    let mut outcome = Outcome { better: Vec::new(), worse: Vec::new(), judged: 0 };
    for metric in head.into_iter().chain(rest).filter(|m| m.direction != Direction::Neutral) {
        match comparison.metrics.get(&metric.name).map(|c| c.verdict) {
            Some(Verdict::Better) => outcome.better.push(metric.title(language)),
            Some(Verdict::Worse) => outcome.worse.push(metric.title(language)),
            Some(Verdict::Undefined) | None => continue,
            Some(_) => {}
        }
        outcome.judged += 1;
    }
    outcome
}

/// What was not measured, in one sentence: models with items that they have no result for, rows of
/// the data that could not be used. None where all was.
pub(in crate::report) fn coverage(report: &Report, language: Language) -> Option<String> {
    let all = report.items.len();
    let mut parts: Vec<String> = report
        .models
        .iter()
        .filter(|m| m.items < all)
        .map(|m| {
            language.pick(
                format!("{} answered {} of {all} items", m.name, m.items),
                format!("{} 只回答了 {all} 条中的 {} 条", m.name, m.items),
            )
        })
        .collect();
    let bad = report.data.bad_row_count;
    if bad > 0 {
        parts.push(language.pick(
            format!("{bad} {} of the data could not be used", if bad == 1 { "row" } else { "rows" }),
            format!("数据中有 {bad} 行无法使用"),
        ));
    }
    if parts.is_empty() {
        return None;
    }
    let list = parts.join(language.pick("; ", "；"));
    Some(language.pick(format!("Not everything was measured: {list}."), format!("并非全部条目都参与了评测：{list}。")))
}

/// The report in a few sentences: what was not measured, then what came of the rest.
pub(in crate::report) fn verdict(report: &Report, language: Language) -> String {
    verdict_lines(report, language).join(language.pick(" ", ""))
}

/// The same, sentence by sentence.
pub(in crate::report) fn verdict_lines(report: &Report, language: Language) -> Vec<String> {
    coverage(report, language).into_iter().chain(findings(report, language)).collect()
}

fn findings(report: &Report, language: Language) -> Vec<String> {
    if report.items.is_empty() {
        return vec![language.pick("No item was evaluated.", "没有评测任何条目。").to_string()];
    }
    let Some(first) = report.comparisons.first() else {
        let alone = language
            .pick("One model was measured; there is nothing to compare.", "只评测了一个模型，没有可比较的对象。");
        return vec![alone.to_string()];
    };
    let anchor = &first.baseline;
    let mut sentences = Vec::new();
    // Candidates with the same outcome against the same baseline share a sentence.
    let mut groups: Vec<(Vec<&str>, Outcome<'_>)> = Vec::new();
    for comparison in report.comparisons.iter().filter(|c| &c.baseline == anchor) {
        let outcome = outcome(report, comparison, language);
        match groups.iter_mut().find(|(_, o)| o.better == outcome.better && o.worse == outcome.worse) {
            Some((names, _)) => names.push(&comparison.candidate),
            None => groups.push((vec![&comparison.candidate], outcome)),
        }
    }
    for (names, outcome) in &groups {
        sentences.push(against_anchor(names, anchor, outcome, language));
    }
    for comparison in report.comparisons.iter().filter(|c| &c.baseline != anchor) {
        sentences.push(between(comparison, &outcome(report, comparison, language), language));
    }
    sentences.extend(report.recipes.iter().filter_map(|recipe| over_seeds(recipe, report, language)));
    sentences.extend(report.recipes.iter().filter_map(|recipe| within_seeds(recipe, report, language)));
    sentences.extend(recommendation(report, language));
    sentences
}

/// The metrics by which a recipe is better or worse than what it is compared with, whatever the seed.
fn over_seeds(recipe: &RecipeComparison, report: &Report, language: Language) -> Option<String> {
    let titles = |gains: bool| -> Vec<&str> {
        let marked = report.metrics.iter().filter(|metric| {
            recipe.metrics.get(&metric.name).is_some_and(|c| {
                let sign = if metric.direction == Direction::Lower { -1.0 } else { 1.0 };
                metric.direction != Direction::Neutral
                    && c.p_adjusted.is_some_and(|p| p < ALPHA)
                    && (sign * c.difference > 0.0) == gains
            })
        });
        marked.map(|metric| metric.title(language)).collect()
    };
    let (better, worse) = (titles(true), titles(false));
    let (candidate, baseline) = (&recipe.candidate, &recipe.baseline);
    let part = |names: &[&str], english: &str, chinese: &str| {
        (!names.is_empty()).then(|| {
            let list = language.list(names, 6);
            language.pick(format!("{english} on {list}"), format!("在 {list} 上{chinese}"))
        })
    };
    let parts: Vec<String> =
        [part(&better, "better", "更好"), part(&worse, "worse", "更差")].into_iter().flatten().collect();
    let parts = parts.join(language.pick(", ", "，"));
    (!parts.is_empty()).then(|| {
        language.pick(
            format!("Over items and seeds {candidate} is significantly {parts} than {baseline}."),
            format!("计入条目与种子的变化，{candidate} 相比 {baseline} {parts}（显著）。"),
        )
    })
}

/// The headline metrics by which two recipes differ by less than two seeds of one.
fn within_seeds(recipe: &RecipeComparison, report: &Report, language: Language) -> Option<String> {
    let within = |name: &str| recipe.metrics.get(name).is_some_and(|c| c.within_seeds == Some(true));
    let shown = report.metrics.iter().filter(|m| m.headline && within(&m.name));
    let names: Vec<&str> = shown.map(|m| m.title(language)).collect();
    let list = language.list(&names, 6);
    (!names.is_empty()).then(|| {
        language.pick(
            format!(
                "{} and {} differ by less than two seeds of one recipe do on {list}.",
                recipe.candidate, recipe.baseline
            ),
            format!("{} 与 {} 在 {list} 上的差异小于同一配方两个种子之间的差异。", recipe.candidate, recipe.baseline),
        )
    })
}

/// What the suite's priorities come to.
fn recommendation(report: &Report, language: Language) -> Option<String> {
    let Recommendation { primary, baseline, ship, floors } = report.recommendation.as_ref()?;
    let all = || report.metrics.iter().chain(report.general.iter().flat_map(|g| &g.metrics));
    let title = |name: &str| all().find(|m| m.name == name).map_or(name.to_string(), |m| m.title(language).to_string());
    let of = |wanted: FloorState| -> Vec<String> {
        let found = floors.iter().filter(|floor| floor.state == wanted);
        found.map(|floor| format!("{} ({})", floor.model, title(&floor.metric))).collect()
    };
    let list = |names: &[String]| language.list(&names.iter().map(String::as_str).collect::<Vec<_>>(), 6);
    let (broken, open) = (of(FloorState::Broken), of(FloorState::Open));
    let mut text = match ship {
        Some(model) => language.pick(
            format!("By the suite's priorities ({} decides) one would ship {model}.", title(primary)),
            format!("按套件的优先级（以 {} 为准），应发布 {model}。", title(primary)),
        ),
        None => language.pick(
            format!(
                "By the suite's priorities one would keep {baseline}: no model is significantly better on {} and shown to \
                 keep every floor.",
                title(primary)
            ),
            format!("按套件的优先级应保留 {baseline}：没有模型既在 {} 上显著更好、又被证明守住全部底线。", title(primary)),
        ),
    };
    if !broken.is_empty() {
        text += &language.pick(format!(" Below a floor: {}.", list(&broken)), format!("低于底线：{}。", list(&broken)));
    }
    if !open.is_empty() {
        text += &language.pick(
            format!(" Floors that these items cannot show to be kept: {}.", list(&open)),
            format!("现有条目不足以证明守住的底线：{}。", list(&open)),
        );
    }
    Some(text)
}

fn against_anchor(names: &[&str], anchor: &str, outcome: &Outcome<'_>, language: Language) -> String {
    let Outcome { better, worse, judged } = outcome;
    let who = language.list(names, 4);
    if *judged == 0 {
        return language.pick(
            format!("Nothing can be said of {who} against {anchor}: no metric is defined on both."),
            format!("{who} 与 {anchor} 没有共同有定义的指标，无法比较。"),
        );
    }
    let (is, both) = match names.len() {
        1 => ("is", ""),
        2 => ("are", " both"),
        _ => ("are", " all"),
    };
    let (worst, best) = (language.list(worse, 3), language.list(better, 4));
    match language {
        Language::English => match (better.len(), worse.len()) {
            (0, 0) => format!("{who} {is} not significantly different from {anchor} on any of {judged} metrics."),
            (b, 0) if b == *judged => {
                format!("{who} {is}{both} significantly better than {anchor} on all {judged} metrics.")
            }
            (b, 0) => format!(
                "{who} {is}{both} significantly better than {anchor} on {b} of {judged} metrics ({best}), worse on none."
            ),
            (0, w) => format!(
                "{who} {is}{both} significantly worse than {anchor} on {w} of {judged} metrics ({worst}), better on none."
            ),
            (b, w) => format!(
                "{who} {is}{both} significantly better than {anchor} on {b} of {judged} metrics ({best}), but worse on {w} ({worst})."
            ),
        },
        Language::Chinese => {
            let both = if names.len() > 1 { "均" } else { "" };
            match (better.len(), worse.len()) {
                (0, 0) => format!("{who} 与 {anchor} 在 {judged} 项指标上均无显著差异。"),
                (b, 0) if b == *judged => format!("{who} 在全部 {judged} 项指标上{both}显著优于 {anchor}。"),
                (b, 0) => {
                    format!("{who} 在 {judged} 项指标中的 {b} 项（{best}）上{both}显著优于 {anchor}，没有更差的。")
                }
                (0, w) => {
                    format!("{who} 在 {judged} 项指标中的 {w} 项（{worst}）上{both}显著差于 {anchor}，没有更好的。")
                }
                (b, w) => format!(
                    "{who} 在 {judged} 项指标中的 {b} 项（{best}）上{both}显著优于 {anchor}，但在 {w} 项（{worst}）上更差。"
                ),
            }
        }
    }
}

fn between(comparison: &Comparison, outcome: &Outcome<'_>, language: Language) -> String {
    let (a, b) = (&comparison.candidate, &comparison.baseline);
    let Outcome { better, worse, judged } = outcome;
    let list = |names: &[&str]| if names.is_empty() { String::new() } else { language.list(names, 3) };
    match language {
        Language::English => match (better.len(), worse.len()) {
            (0, 0) => format!("Between {a} and {b} no metric shows a significant difference."),
            (n, 0) => format!("{a} is significantly better than {b} on {n} of {judged} ({}).", list(better)),
            (0, n) => format!("{a} is significantly worse than {b} on {n} of {judged} ({}).", list(worse)),
            (n, m) => format!(
                "{a} is significantly better than {b} on {n} of {judged} ({}), worse on {m} ({}).",
                list(better),
                list(worse)
            ),
        },
        Language::Chinese => match (better.len(), worse.len()) {
            (0, 0) => format!("{a} 与 {b} 之间没有显著差异的指标。"),
            (n, 0) => format!("{a} 在 {judged} 项中的 {n} 项（{}）上显著优于 {b}。", list(better)),
            (0, n) => format!("{a} 在 {judged} 项中的 {n} 项（{}）上显著差于 {b}。", list(worse)),
            (n, m) => format!(
                "{a} 在 {judged} 项中的 {n} 项（{}）上显著优于 {b}，在 {m} 项（{}）上更差。",
                list(better),
                list(worse)
            ),
        },
    }
}

/// How many items would decide what a comparison leaves open, of its headline metrics; none where
/// nothing is, or nobody can say.
pub(in crate::report) fn needed(comparison: &Comparison, report: &Report, language: Language) -> Option<String> {
    let mut clustered = false;
    let open: Vec<String> = report
        .metrics
        .iter()
        .filter(|m| m.headline)
        .filter_map(|metric| {
            let c = comparison.metrics.get(&metric.name)?;
            let needed = c.needed?;
            clustered |= c.clusters.is_some();
            Some(format!("{} {needed}", metric.title(language)))
        })
        .collect();
    if open.is_empty() {
        return None;
    }
    let list = language.list(&open.iter().map(String::as_str).collect::<Vec<_>>(), 12);
    let (what, unit) = match clustered {
        // Of a metric that few items have the others may share no source.
        true => ("items, or sources where items share one", "条数（同源条目按来源计）"),
        false => ("items", "条数"),
    };
    Some(language.pick(
        format!("What is unclear here would be decided four times out of five, if the differences are as observed, by so many {what}: {list}."),
        format!("此处未定的差异若与观测相同，要有五分之四把握作出判定，所需{unit}为：{list}。"),
    ))
}

/// A warning as a sentence.
pub(in crate::report) fn warning(warning: &Warning, report: &Report, language: Language) -> String {
    let title = |name: &str| report.metric(name).map_or(name.to_string(), |m| m.title(language).to_string());
    match warning {
        Warning::NoItems => language.pick("No item was evaluated: there is nothing to report.", "没有评测任何条目。").into(),
        Warning::NoBase => language
            .pick(
                "There is no base model among these: what fine-tuning did cannot be told.",
                "其中没有基座模型，无法说明微调带来了什么。",
            )
            .into(),
        Warning::OneModel => language.pick("There is only one model: nothing is compared.", "只有一个模型，没有比较。").into(),
        Warning::Overfitting { model, best_step, best_loss, last_step, last_loss } => {
            let rise = percent(last_loss / best_loss - 1.0);
            let (best, last) = (fixed(*best_loss, 4), fixed(*last_loss, 4));
            language.pick(
                format!("{model} overfits: its evaluation loss was lowest at step {best_step} ({best}) and has risen by {rise} to {last} at step {last_step}. Prefer the best checkpoint."),
                format!("{model} 过拟合：验证损失在第 {best_step} 步最低（{best}），到第 {last_step} 步升高了 {rise}（{last}）。建议使用最佳检查点。"),
            )
        }
        Warning::Forgetting { model, baseline, before, after } => {
            let rise = percent(after / before - 1.0);
            let (before, after) = (fixed(*before, 3), fixed(*after, 3));
            language.pick(
                format!("{model} forgets: general text costs it {after} bits per byte, {rise} more than {baseline} ({before})."),
                format!("{model} 出现遗忘：通用文本每字节需 {after} 比特，比 {baseline}（{before}）多 {rise}。"),
            )
        }
        Warning::YesToNo { model, count, of, undecided, decisions } => {
            let left = match undecided {
                0 => [String::new(), String::new()],
                n => [
                    format!("; {n} of {decisions} yes-or-no items it does not decide"),
                    format!("；{decisions} 条是否题中有 {n} 条未作判断"),
                ],
            };
            language.pick(
                format!("{model} says yes to {count} of {of} items whose right answer is no{}. Read these texts.", left[0]),
                format!("{of} 条应答“否”的题目中，{model} 有 {count} 条答“可”{}。请阅读这些原文。", left[1]),
            )
        }
        Warning::Truncated { model, truncated, items, unclosed } => {
            let share = percent(*truncated as f64 / (*items).max(1) as f64);
            language.pick(
                format!("{truncated} of {items} texts of {model} ({share}) were cut off by the token limit, {unclosed} of them before an answer began. Their scores describe the limit as much as the model."),
                format!("{model} 的 {items} 条文本中有 {truncated} 条（{share}）因词元上限被截断，其中 {unclosed} 条还没有开始回答。这些分数既反映模型也反映上限。"),
            )
        }
        Warning::Missing { model, metrics, items } => {
            let list: Vec<String> = metrics.iter().map(|(name, n)| format!("{} ({n})", title(name))).collect();
            let list = language.list(&list.iter().map(String::as_str).collect::<Vec<_>>(), 12);
            language.pick(
                format!("Undefined for some of the {items} items of {model}, which are left out of values and comparisons: {list}."),
                format!("{model} 的 {items} 条中部分条目的下列指标无定义，未计入数值与比较：{list}。"),
            )
        }
        Warning::MergedDiffers { model, dtype, effect, difference, mean_effect, mean_difference } => {
            let [effect, difference] = [effect, difference].map(|x| fixed(*x, 2));
            let [mean_effect, mean_difference] = [mean_effect, mean_difference].map(|x| fixed(*x, 3));
            let or = match dtype.as_str() {
                "f32" => "",
                _ => language.pick(", or compute the merged weights in f32", "，或以 f32 计算合并后的权重"),
            };
            language.pick(
                format!("Merged into its weights and computed in {dtype}, the adapter of {model} loses its effect: log-probabilities differ from those with the adapter beside them by up to {difference} nats (mean {mean_difference}), where it changes them by up to {effect} (mean {mean_effect}). Use it beside its base{or}."),
                format!("{model} 的适配器合并进权重并以 {dtype} 计算后会失去效果：对数概率与不合并时最多相差 {difference} nat（平均 {mean_difference}），而适配器本身的影响最多为 {effect}（平均 {mean_effect}）。请把它与基座分开使用{or}。"),
            )
        }
        Warning::BadRows { count } => language.pick(
            format!("{count} {} of the data could not be used; see the data section.", if *count == 1 { "row" } else { "rows" }),
            format!("数据中有 {count} 行无法使用，见数据部分。"),
        ),
        Warning::Leaks { exact, near } => language.pick(
            format!("{exact} evaluated items also stand in the training data word for word, {near} nearly so: scores on them measure memory."),
            format!("有 {exact} 条评测条目与训练数据完全相同，{near} 条近似相同：这些分数衡量的是记忆。"),
        ),
        Warning::FewItems { items, detectable } => {
            let list: Vec<String> = detectable
                .iter()
                .map(|(name, d)| {
                    let decimals = report.metric(name).map_or(4, |m| m.decimals);
                    format!("{} {}", title(name), fixed(*d, decimals))
                })
                .collect();
            let list: Vec<&str> = list.iter().map(String::as_str).collect();
            let tail = if list.is_empty() {
                String::new()
            } else {
                language.pick(
                    format!(" Smaller true differences than these would be missed more often than once in five: {}.", language.list(&list, 12)),
                    format!("小于下列数值的真实差异有超过五分之一的可能被漏掉：{}。", language.list(&list, 12)),
                )
            };
            language.pick(format!("{items} items are few.{tail}"), format!("只有 {items} 条，数量偏少。{tail}"))
        }
        Warning::Clustered { items, sources } => language.pick(
            format!("The {items} items come from {sources} sources, and items of one source are related: intervals, p-values and standard errors draw or flip whole sources."),
            format!("{items} 条条目来自 {sources} 个来源，同源条目彼此相关：区间、p 值与标准误均以来源为单位抽取或翻转。"),
        ),
        Warning::OverlapIsNotCorrectness => language
            .pick(
                "Overlap with a reference is not correctness: a negated sentence can score higher than a right paraphrase. Read the texts.",
                "与参考文本的重合不等于正确：被否定的句子可能比正确的改写得分更高。请阅读原文。",
            )
            .into(),
        Warning::Dropped { count } => language.pick(
            format!("{count} items lost their whole answer to the maximum length and were left out."),
            format!("有 {count} 条因超过最大长度失去了全部回答，已被剔除。"),
        ),
        Warning::Cut { part, cut, of, max_length, keeps_all, holds } => {
            let share = percent(*cut as f64 / (*of).max(1) as f64);
            let (what, zh) = match part.as_str() {
                "train" => ("training items", "训练条目"),
                "validation" => ("validation items", "验证条目"),
                _ => ("references", "参考文本"),
            };
            let holds = holds.map_or([String::new(), String::new()], |n| [format!(", the model holds {n}"), format!("，模型最多容纳 {n}")]);
            language.pick(
                format!("{cut} of {of} {what} ({share}) are cut at {max_length} tokens: what is behind is neither learnt nor scored. data.max_length = {keeps_all} keeps all{}.", holds[0]),
                format!("{of} 条{zh}中有 {cut} 条（{share}）在 {max_length} 个词元处被截断，其后的内容既不参与训练也不计分。data.max_length = {keeps_all} 可全部保留{}。", holds[1]),
            )
        }
        Warning::Other { text } => text.clone(),
    }
}
