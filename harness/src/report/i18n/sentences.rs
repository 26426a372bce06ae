//! The report's words, English and Chinese: labels, the verdict, the warnings.

use crate::eval::think::ThinkState;

use crate::backend::StopReason;
use crate::report::compare::Mismatch;
use crate::report::model::{
    Comparison, Direction, FloorState, Language, RecipeComparison, Recommendation, Report, Verdict, Warning,
};
use crate::report::number::{fixed, percent};

macro_rules! labels {
    ($($name:ident: $en:literal, $zh:literal;)*) => {
        /// Labels of tables and headings in one language.
        #[derive(Clone, Copy, Debug, serde::Serialize)]
        pub(in crate::report) struct Labels { $(pub $name: &'static str,)* }
        const ENGLISH: Labels = Labels { $($name: $en,)* };
        const CHINESE: Labels = Labels { $($name: $zh,)* };
    };
}

labels! {
    lang: "en", "zh-CN";
    results: "Results", "评测结果";
    metric: "Metric", "指标";
    against: "vs", "相对";
    legend: "↑ higher is better, ↓ lower is better; best in bold. ± is half the width of the bootstrap interval of a value. Improvements are relative changes over the items both models have a value for, positive where better; where the baseline is 0, the difference itself. Significance of the paired difference (sign-flip permutation test, of right-or-wrong metrics McNemar's exact test; Holm-adjusted over the metrics of a comparison): * p < 0.05, ** p < 0.01, *** p < 0.001.", "↑ 越高越好，↓ 越低越好；最佳值加粗。± 为该值自助法区间宽度的一半。提升为两模型共有条目上的相对变化，正值表示变好；基线为 0 时为差值本身。配对差异的显著性（符号翻转置换检验，0/1 指标用 McNemar 精确检验；对同一比较内的指标做 Holm 校正）：* p < 0.05，** p < 0.01，*** p < 0.001。";
    signature: "Signature", "签名";
    truncation: "Reasoning that was never closed", "未闭合的思考";
    truncation_help: "A text whose reasoning was never closed has no answer and scores as an empty one. Beside the value over all items stand the one over the items whose reasoning was closed (not the same items for every model), and what the value would be if every unclosed text had the lowest, or the highest, value there is.", "思考未闭合的文本没有回答，按空回答计分。除全部条目的得分外，另列思考已闭合条目的得分（各模型的条目不尽相同），以及未闭合文本全部取最低值或最高值时的得分。";
    over_all: "all items", "全部条目";
    over_closed: "reasoning closed", "思考已闭合";
    were_worst: "if all lowest", "全取最低值";
    were_best: "if all highest", "全取最高值";
    determinism: "Determinism", "确定性";
    repeats: "repeats itself", "可复现";
    repeats_not: "does not repeat itself", "不可复现";
    texts_change: "texts change", "条文本改变";
    drift: "log-probabilities by at most", "对数概率最大变化";
    differences: "Paired differences", "配对差异";
    difference: "difference", "差值";
    interval: "interval", "区间";
    adjusted_p: "adjusted p", "校正 p";
    wins_losses: "better / worse items", "变好 / 变差条数";
    detectable: "detectable", "可检出差异";
    detectable_help: "“Detectable” is the smallest true difference that so many items find four times out of five (two-sided 5 %).", "“可检出差异”指在该条数下有五分之四把握检出的最小真实差异（双侧 5 %）。";
    verdict: "verdict", "结论";
    training: "Training", "训练";
    model: "Model", "模型";
    parameters: "Parameters", "参数量";
    trainable: "Trainable", "可训练参数";
    steps: "Steps", "步数";
    tokens: "Tokens", "词元数";
    train_loss: "Train loss, last", "末步训练损失";
    best_eval: "Best eval loss", "最低验证损失";
    last_eval: "Last eval loss", "末次验证损失";
    at_step: "step", "步";
    step_axis: "optimizer step", "优化步";
    loss_axis: "loss, nats per token", "损失（nat/词元）";
    train_line: "train", "训练";
    eval_line: "eval", "验证";
    best: "best", "最佳";
    overfits: "overfits", "过拟合";
    curves: "Loss curves", "损失曲线";
    bars: "Metrics with intervals", "指标与区间";
    warnings: "Before you believe a number", "阅读数字之前";
    items: "Every item", "逐条结果";
    items_help: "Select a metric, search, sort by any column.", "选择指标、搜索、点击表头排序。";
    examples: "Side by side", "逐条对照";
    examples_help: "Chosen evenly over the data, not by result. Reasoning is folded.", "在数据中等距选取，与结果无关。思考过程已折叠。";
    diff_help: "Marked: what the reference does not say; struck out: what it says and the model does not. Texts with too little in common are not marked.", "底色：参考答案中没有的内容；删除线：参考答案有而模型没有的内容。差异过大时不标注。";
    question: "Question", "问题";
    reference: "Reference", "参考";
    think: "Think", "思考";
    answer: "Answer", "回答";
    no_answer: "no answer", "没有回答";
    no_result: "no result", "没有结果";
    cost: "Cost", "开销";
    train_speed: "Train tokens/s", "训练词元/秒";
    train_time: "Training", "训练时间";
    score_time: "Scoring", "打分时间";
    generate_time: "Generation", "生成时间";
    speed: "Tokens/s", "词元/秒";
    memory: "Peak memory", "峰值内存";
    device: "Device", "设备";
    reproduce: "Data and reproducibility", "数据与可复现性";
    data: "Data", "数据";
    rows: "rows", "行";
    splits: "Splits", "划分";
    bad_rows: "Bad rows", "坏行";
    audit: "Audit", "数据审计";
    seeds: "Seeds", "随机种子";
    decoding: "Decoding", "解码";
    statistics: "Statistics", "统计";
    fingerprints: "Fingerprints", "指纹";
    checkpoint: "Checkpoint", "检查点";
    environment: "Environment", "环境";
    backends: "Backends", "后端";
    machine: "Machine", "机器";
    suite: "Suite", "套件";
    schema: "Report schema", "报告格式版本";
    search: "Search", "搜索";
    show: "Show", "显示";
    all: "all items", "全部";
    truncated: "truncated", "被截断";
    none_found: "No item matches.", "没有符合条件的条目。";
    flips: "What changed sides", "对错变化";
    flips_help: "An item flips where a metric with a notion of right (all key points made, an exact match, the format kept) calls one model right and the other wrong. A mean hides how many went each way.", "当某项有对错之分的指标（要点全部命中、完全匹配、格式正确）认为一个模型对而另一个模型错时，该条目发生翻转。均值看不出双向各有多少。";
    flip_lost: "right → wrong", "对 → 错";
    flip_won: "wrong → right", "错 → 对";
    both_right: "both right", "都对";
    both_wrong: "both wrong", "都错";
    flip_texts: "The texts", "文本";
    comparison: "Comparison", "比较";
    parts_at: "first different token", "首个不同词元";
    text_ends: "end of text", "文本结束";
    not_listed: "The other flips are in report.json by id.", "其余翻转条目的编号见 report.json。";
    general: "Forgetting", "遗忘";
    general_help: "Plain text that is not the task, teacher-forced: what fine-tuning cost in what the model could do before. Differences are paired by text.", "与任务无关的纯文本，教师强制打分：微调让模型损失了多少原有能力。差值按文本配对。";
    tokens_word: "tokens", "词元";
    texts_word: "texts", "条文本";
    adapter: "The adapter", "适配器";
    adapter_help: "The adapter was applied: the same reference tokens are differently probable with and without it. Merged into the weights it must say the same as beside them.", "适配器确已生效：同样的参考词元在有无适配器时概率不同。合并进权重后应与外挂时一致。";
    adapter_change: "largest change, nats", "最大变化（nat）";
    merged_difference: "merged: largest difference, nats", "合并后最大差（nat）";
    merged_flips: "argmax flips", "首选词元变化";
    merged_texts: "greedy texts changed", "贪心文本变化";
    not_merged: "not checked: this backend does not merge", "未检查：该后端不支持合并";
    learning_rate: "learning rate", "学习率";
    grad_norm: "gradient norm, before clipping", "梯度范数（裁剪前）";
    highest: "max", "最大";
    samples: "Several answers to each item", "每条目多次回答";
    samples_help: "Every item was answered several times, each time with a seed of its own; the values above are means over the answers. Spreads are standard deviations: of the answers to one item, and of items. pass@k is the probability that at least one of k answers is right.", "每个条目以不同种子回答多次；上文各值为多次回答的均值。离散度为标准差：同一条目各次回答之间，以及条目之间。pass@k 为 k 次回答中至少一次正确的概率。";
    sample_mean: "mean", "均值";
    sample_spread: "spread of answers", "回答间标准差";
    item_spread: "spread of items", "条目间标准差";
    pass_at: "pass@k", "pass@k";
    recipes: "Recipes over seeds", "多随机种子下的配方";
    recipes_help: "Every recipe was trained once with each of its seeds. The interval is two-level: of other items and of other seeds. The share is the part of the difference's variance that is the choice of seeds; beside it, by how much two seeds of one recipe differ.", "每个配方以每个随机种子各训练一次。区间为两层：既考虑其他条目，也考虑其他种子。占比为差值方差中来自种子的部分；其旁为同一配方两个种子之间的差。";
    seed_share: "variance that is the seed", "种子占方差";
    seed_difference: "two seeds differ by", "两个种子之差";
    within_seeds: "less than two seeds", "小于种子之差";
    checkpoints: "Checkpoints over the training", "训练过程中的检查点";
    checkpoints_help: "The checkpoints that were kept, on the same held-out items. They show the way of a training; choosing one by them would be choosing by the items that the result is claimed on.", "保留的检查点在相同留出条目上的结果。它们展示训练过程；若据此挑选检查点，就等于用报告结果所依据的条目来挑选。";
    disk: "On disk", "磁盘占用";
    frontier: "Quality against cost", "质量与开销";
    frontier_help: "Each mark is a model; the dashed line joins those that no cheaper model beats. Costs are drawn on a logarithmic scale.", "每个点为一个模型；虚线连接没有更便宜的模型能超过的那些模型。开销为对数刻度。";
    between: " ", "";
    values: "Values with their intervals", "各值及其区间";
    per_point: "train s per point of", "每提升一点的训练秒数：";
    leaks: "Leaks", "泄漏";
    more_bars: "The other metrics", "其他指标";
    items_word: "items", "条";
    comma: ", ", "，";
    semicolon: "; ", "；";
    resamples: "resamples", "次重采样";
    seed: "seed", "随机种子";
    greedy: "greedy", "贪心";
    temperature: "temperature", "温度";
    template: "template", "模板";
    threads: "threads", "线程";
    unknown: "unknown", "未知";
}

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
    sentences.extend(report.recipes.iter().filter_map(|recipe| within_seeds(recipe, report, language)));
    sentences.extend(recommendation(report, language));
    sentences
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
        Warning::Other { text } => text.clone(),
    }
}
