//! Notes on the data that a reader must know: said on standard error and at the head of a report.

use super::examples::Reasoning;
use super::record::Record;
use crate::eval::think::ThinkTags;

/// One thing to know, in the languages of reports.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Note {
    /// In English, without a full stop.
    pub english: String,
    /// In Chinese.
    pub chinese: String,
}

/// Ids that a note names; the others are counted.
const NAMED: usize = 5;

/// Of how many rows of each part the reasoning was written into the answer, since the template has
/// no place for it.
pub fn written(parts: &[(&str, usize)], tags: &ThinkTags) -> Option<Note> {
    let parts: Vec<String> = parts.iter().filter(|part| part.1 > 0).map(|(name, n)| format!("{name} {n}")).collect();
    let (list, tag) = (parts.join(", "), tags.written());
    (!parts.is_empty()).then(|| Note {
        english: format!(
            "the chat template has no place for reasoning, which is written into the answer as <{tag}>…</{tag}> ({list}); \
             data.reasoning = \"template\" makes that an error, \"drop\" leaves the reasoning out"
        ),
        chinese: format!(
            "对话模板没有推理的位置，推理以 <{tag}>…</{tag}> 写入回答（{list}）；data.reasoning = \"template\" 将其视为错误，\"drop\" 则略去推理"
        ),
    })
}

/// How many rows have reasoning that `reasoning` says to leave out.
pub fn left_out(reasoning: Reasoning, rows: usize) -> Option<Note> {
    (reasoning == Reasoning::Drop && rows > 0).then(|| Note {
        english: format!("the reasoning of {rows} rows is left out, as data.reasoning = \"drop\" says"),
        chinese: format!("按 data.reasoning = \"drop\"，{rows} 行的推理被略去"),
    })
}

/// The records whose answers hold a tag of reasoning.
pub fn stray<'r>(records: impl IntoIterator<Item = &'r Record>, tags: &ThinkTags) -> Option<Note> {
    let ids: Vec<&str> =
        records.into_iter().filter(|record| tags.stray(&record.answer)).map(|record| record.id.as_str()).collect();
    (!ids.is_empty()).then(|| Note {
        english: format!(
            "{} reference answers hold a tag of reasoning, which stays in them: {}",
            ids.len(),
            named(&ids, " and others")
        ),
        chinese: format!("{} 条参考回答含有推理标签，标签保留在回答中：{}", ids.len(), named(&ids, " 等")),
    })
}

/// The items whose texts of the model `name` were found by their question, for want of an id.
pub fn by_question(name: &str, items: &[String]) -> Option<Note> {
    (!items.is_empty()).then(|| Note {
        english: format!("{} texts of {name} were matched to items by their question, not by id", items.len()),
        chinese: format!("{name} 有 {} 条文本按问题（而非编号）与条目匹配", items.len()),
    })
}

/// The lines of texts of the model `name` that are of no item.
pub fn unmatched(name: &str, lines: &[usize]) -> Option<Note> {
    let shown: Vec<String> = lines.iter().take(NAMED).map(usize::to_string).collect();
    let (shown, more) = (shown.join(", "), lines.len() > NAMED);
    (!lines.is_empty()).then(|| Note {
        english: format!(
            "{} texts of {name} are of no item of the suite and were left out: line {shown}{}",
            lines.len(),
            if more { " and others" } else { "" }
        ),
        chinese: format!(
            "{name} 有 {} 条文本不属于套件中的任何条目，已略去：第 {shown} 行{}",
            lines.len(),
            if more { "等" } else { "" }
        ),
    })
}

/// The texts of the model `name`, by id, whose answers hold a tag of reasoning.
pub fn stray_texts<'t>(
    name: &str,
    texts: impl IntoIterator<Item = (&'t str, &'t str)>,
    tags: &ThinkTags,
) -> Option<Note> {
    let stray = texts.into_iter().filter(|(_, text)| tags.stray(tags.split(text).answer));
    let ids: Vec<&str> = stray.map(|(id, _)| id).collect();
    (!ids.is_empty()).then(|| Note {
        english: format!(
            "{} answers of {name} hold a second tag of reasoning, which stays in them: {}",
            ids.len(),
            named(&ids, " and others")
        ),
        chinese: format!("{name} 的 {} 条回答含有第二个推理标签，标签保留在回答中：{}", ids.len(), named(&ids, " 等")),
    })
}

/// How many rows ask for an earlier turn to be trained on.
pub fn earlier_weights(rows: usize) -> Option<Note> {
    (rows > 0).then(|| Note {
        english: format!(
            "{rows} rows give an earlier turn \"weight\" 1, which is not trained on: data.train_on = \"last\" is the last turn of a row, \
             \"all\" every one"
        ),
        chinese: format!("{rows} 行给较早的轮次 \"weight\" 1，但未训练：data.train_on = \"last\" 只训练每行的最后一轮，\"all\" 训练每一轮"),
    })
}

/// Items of more tokens than the model has positions.
pub fn beyond(longest: usize, holds: usize) -> Option<Note> {
    Some(Note {
        english: format!(
            "items of up to {longest} tokens are kept, and the model holds {holds}: set data.max_length = {holds}, which cuts them"
        ),
        chinese: format!(
            "保留的条目最长 {longest} 个词元，而模型最多容纳 {holds}：请设 data.max_length = {holds} 以截断"
        ),
    })
}

/// How the files of the data were found, where there is something to know.
pub fn found(what: &str) -> Note {
    Note { english: what.into(), chinese: format!("数据文件：{what}") }
}

fn named(ids: &[&str], others: &str) -> String {
    let list = ids.iter().take(NAMED).map(|id| format!("{id:?}")).collect::<Vec<_>>().join(", ");
    if ids.len() > NAMED { list + others } else { list }
}
