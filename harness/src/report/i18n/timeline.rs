//! The words of a watch's pages, English and Chinese.

use crate::eval::stats::MarginVerdict;
use crate::report::model::Language;
use crate::report::timeline::{Entry, Status, Timeline};

/// Labels in one language.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub(in crate::report) struct Words {
    pub title: &'static str,
    pub folder: &'static str,
    pub checkpoints: &'static str,
    pub checkpoint: &'static str,
    pub step: &'static str,
    pub outcome: &'static str,
    pub seconds: &'static str,
    pub baseline: &'static str,
    pub curves: &'static str,
    pub curves_help: &'static str,
    pub gates: &'static str,
    /// The columns of a gate's table.
    pub checks: [&'static str; 6],
    pub legend: &'static str,
    pub chosen: &'static str,
    pub pass: &'static str,
    pub inconclusive: &'static str,
    pub regress: &'static str,
    pub failed: &'static str,
    pub vanished: &'static str,
    pub unjudged: &'static str,
    pub worse_by: &'static str,
    pub same_as: &'static str,
    pub replaced: &'static str,
}

const ENGLISH: Words = Words {
    title: "checkpoints over time",
    folder: "Watched",
    checkpoints: "Checkpoints",
    checkpoint: "Checkpoint",
    step: "Step",
    outcome: "Verdict",
    seconds: "Time",
    baseline: "baseline",
    curves: "Metrics over the steps",
    curves_help: "Whiskers are intervals of a value; the dashed line is the baseline. The verdict rests on paired differences, which are more exact than the whiskers.",
    gates: "What the verdicts rest on",
    checks: ["Verdict", "Metric", "Baseline", "Now", "Gain [interval]", "Margin"],
    legend: "↑ higher is better, ↓ lower is better; ± is half the width of the interval of a value. A checkpoint passes if the whole interval of its paired gain over the baseline lies above minus the margin, and regresses if all of it lies below.",
    chosen: "A checkpoint that is chosen by these numbers is chosen on the held-out items: measure it on others before you publish how good it is.",
    pass: "pass",
    inconclusive: "inconclusive",
    regress: "regress",
    failed: "not measured",
    vanished: "gone before it was measured",
    unjudged: "not judged",
    worse_by: "worse in",
    same_as: "the same bytes as",
    replaced: "overwritten, and evaluated again",
};

const CHINESE: Words = Words {
    title: "检查点随训练的变化",
    folder: "监视目录",
    checkpoints: "检查点",
    checkpoint: "检查点",
    step: "步",
    outcome: "结论",
    seconds: "用时",
    baseline: "基线",
    curves: "指标随步数的变化",
    curves_help: "须线为该值的区间，虚线为基线。结论依据配对差异得出，比须线更精确。",
    gates: "结论的依据",
    checks: ["结论", "指标", "基线", "当前", "增益 [区间]", "界值"],
    legend: "↑ 越高越好，↓ 越低越好；± 为该值区间宽度的一半。相对基线的配对增益区间整体高于负界值为通过，整体低于负界值为退化。",
    chosen: "按这些数字挑选检查点即是在留出集上挑选：公布其水平之前，请在其他条目上重新评测。",
    pass: "通过",
    inconclusive: "无法判定",
    regress: "退化",
    failed: "未能评测",
    vanished: "评测前已消失",
    unjudged: "未判定",
    worse_by: "变差的指标",
    same_as: "内容与其相同：",
    replaced: "已被覆盖，重新评测",
};

/// The words of a language.
pub(in crate::report) fn words(language: Language) -> &'static Words {
    match language {
        Language::English => &ENGLISH,
        Language::Chinese => &CHINESE,
    }
}

impl Words {
    /// The word for a verdict.
    pub fn verdict(&self, verdict: MarginVerdict) -> &'static str {
        match verdict {
            MarginVerdict::Pass => self.pass,
            MarginVerdict::Inconclusive => self.inconclusive,
            MarginVerdict::Regress => self.regress,
        }
    }
}

/// What the page says first: how many checkpoints there are, what became of them, and how the
/// newest does.
pub(in crate::report) fn summary(timeline: &Timeline) -> String {
    let current = timeline.current();
    let count = |verdict| current.iter().filter(|e| e.has_values() && e.verdict == Some(verdict)).count();
    let measured = current.iter().filter(|e| e.has_values()).count();
    let failed = current.iter().filter(|e| e.status == Status::Failed).count();
    let (pass, open, worse) =
        (count(MarginVerdict::Pass), count(MarginVerdict::Inconclusive), count(MarginVerdict::Regress));
    let newest = current.iter().rev().find(|e| e.has_values() && e.verdict.is_some());
    let base = &timeline.baseline;
    match timeline.language {
        Language::English => {
            if current.is_empty() {
                return "No checkpoint has been evaluated yet.".into();
            }
            let plural = if measured == 1 { "" } else { "s" };
            let mut text = format!(
                "{measured} checkpoint{plural} against {base}: {pass} pass, {open} inconclusive, {worse} regress."
            );
            if failed > 0 {
                text.push_str(&format!(" {failed} could not be measured."));
            }
            if let Some(newest) = newest {
                let how = match newest.verdict {
                    Some(MarginVerdict::Pass) => "is not worse than the baseline by more than the margins".to_string(),
                    Some(MarginVerdict::Regress) => format!("regresses in {}", timeline.regressed(newest).join(", ")),
                    _ => "cannot be told from the baseline within the margins by so many items".to_string(),
                };
                text.push_str(&format!(" The newest, {}, {how}.", newest.name));
            }
            text
        }
        Language::Chinese => {
            chinese(timeline, current.is_empty(), [measured, pass, open, worse, failed], newest.copied())
        }
    }
}

fn chinese(
    timeline: &Timeline,
    empty: bool,
    [measured, pass, open, worse, failed]: [usize; 5],
    newest: Option<&Entry>,
) -> String {
    if empty {
        return "尚未评测任何检查点。".into();
    }
    let mut text = format!(
        "相对 {} 评测了 {measured} 个检查点：{pass} 个通过，{open} 个无法判定，{worse} 个退化。",
        timeline.baseline
    );
    if failed > 0 {
        text.push_str(&format!("{failed} 个未能评测。"));
    }
    if let Some(newest) = newest {
        let how = match newest.verdict {
            Some(MarginVerdict::Pass) => "与基线相比未变差超过界值".to_string(),
            Some(MarginVerdict::Regress) => format!("在 {} 上退化", timeline.regressed(newest).join("、")),
            _ => "以现有条目数无法判定是否变差超过界值".to_string(),
        };
        text.push_str(&format!("最新的 {} {how}。", newest.name));
    }
    text
}
