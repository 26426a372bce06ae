//! Names that data gives to things, in the report's language: units, parts of the data, counts of
//! the audit, seeds, stages. JSON has them as they are; a page in English too.

use crate::report::model::{Language, Metric};

/// Chinese for a name; names that are not here are identifiers and stay.
const TERMS: &[(&str, &str)] = &[
    // units
    ("nats/token", "nat/词元"),
    ("bits/byte", "比特/字节"),
    ("share", "比例"),
    ("ratio", "比值"),
    ("tokens", "词元"),
    ("calls", "次"),
    // parts of the data, in `splits`
    ("train", "训练"),
    ("validation", "验证"),
    ("heldout", "留出"),
    ("test", "测试"),
    // `audit`
    ("duplicates", "重复"),
    ("exact_leaks", "完全泄漏"),
    ("near_leaks", "近似泄漏"),
    ("truncated_rows", "截断行"),
    ("dropped_rows", "丢弃行"),
    // `seeds`
    ("split", "划分"),
    ("generate", "生成"),
    ("statistics", "统计"),
    ("bootstrap", "自助法"),
    // fingerprints
    ("data", "数据"),
    ("prompts", "提示"),
    ("template", "模板"),
    ("decoding", "解码"),
    // the machine
    ("os", "操作系统"),
    ("arch", "架构"),
    ("cores", "核心数"),
    ("cpu", "处理器"),
    ("features", "指令集"),
    ("memory", "内存"),
    // stages and paths
    ("run", "运行目录"),
    ("checkpoint", "检查点"),
    ("score", "打分"),
    ("eval", "评测"),
    ("report", "报告"),
];

/// A name in `language`. Where the first of several words is known, that one: `train lora` is
/// `训练 lora`.
pub(in crate::report) fn term(name: &str, language: Language) -> String {
    let chinese = |name: &str| TERMS.iter().find(|t| t.0 == name).map(|t| t.1);
    match (language, chinese(name), name.split_once(' ')) {
        (Language::English, ..) => name.to_string(),
        (_, Some(known), _) => known.to_string(),
        (_, None, Some((first, rest))) => match chinese(first) {
            Some(known) => format!("{known} {rest}"),
            None => name.to_string(),
        },
        (_, None, None) => name.to_string(),
    }
}

/// A metric's unit.
pub(in crate::report) fn unit(metric: &Metric, language: Language) -> String {
    term(&metric.unit, language)
}
