//! The report as Markdown, a pure function of the JSON.
//!
//! Laid out as the field's tables are: one row a metric with its arrow, one column a model with ±,
//! the best in bold, improvements over the base with significance marks. Texts of models and data
//! are escaped: they can hold anything.

use std::fmt::Write;

use super::escape::escaped;
use super::i18n::sentences::{self, Labels};
use super::i18n::terms;
use super::model::{Comparison, Divergence, FlipTable, ItemExample, Language, Metric, Model, Report};
use super::number::{self, UNDEFINED};
use super::tables;

/// The whole report, in its own language.
pub fn render(report: &Report) -> String {
    let (language, l) = (report.language, report.language.labels());
    let mut md = String::new();
    let title = if report.suite.title.is_empty() { &report.suite.name } else { &report.suite.title };
    let _ = writeln!(md, "# {}\n", inline(title));
    let _ = writeln!(md, "**{}**\n", inline(&sentences::verdict(report, language)));
    if !report.suite.description.is_empty() {
        let _ = writeln!(md, "{}\n", inline(&report.suite.description));
    }
    if !report.warnings.is_empty() {
        let _ = writeln!(md, "## {}\n", l.warnings);
        for warning in &report.warnings {
            let sign = if warning.is_note() { "ℹ️" } else { "⚠️" };
            let _ = writeln!(md, "- {sign} {}", inline(&sentences::warning(warning, report, language)));
        }
        md.push('\n');
    }
    if !report.metrics.is_empty() && !report.models.is_empty() {
        let _ = writeln!(md, "## {}\n", l.results);
        md.push_str(&results_table(report));
        let _ = writeln!(md, "\n{}\n", inline(l.legend));
        for (title, signature) in tables::signatures(report) {
            let _ = writeln!(md, "{} ({}): `{signature}`\n", l.signature, inline(title));
        }
        truncation(&mut md, report, l);
    }
    differences(&mut md, report, l);
    samples(&mut md, report, l);
    recipes(&mut md, report, l);
    flips(&mut md, report, l);
    general(&mut md, report, l);
    training(&mut md, report, l);
    adapters(&mut md, report, l);
    cost(&mut md, report, l);
    if !report.examples.is_empty() {
        let _ = writeln!(md, "## {}\n\n{}\n", l.examples, l.examples_help);
        for (i, example) in report.examples.iter().enumerate() {
            let _ = writeln!(md, "### {}. {}\n", i + 1, inline(&example.question));
            md.push_str(&side_by_side(example, &report.models, language));
        }
    }
    reproduce(&mut md, report, l);
    md.truncate(md.trim_end().len());
    md.push('\n');
    md
}

/// The verdict, the table and its legend: what a README quotes.
pub fn results_block(report: &Report) -> String {
    let verdict = sentences::verdict(report, report.language);
    let table = results_table(report);
    format!("{}\n\n{table}\n<sub>{}</sub>\n", inline(&verdict), inline(report.language.labels().legend))
}

/// The table of all metrics and models; of many models one column each.
pub fn results_table(report: &Report) -> String {
    if tables::compact(report) {
        return compact_table(report);
    }
    let l = report.language.labels();
    let against = report.against_base();
    let mut header = vec![l.metric.to_string()];
    header.extend(report.models.iter().map(|m| cell(&m.name)));
    header.extend(against.iter().map(|c| format!("{} {} {}", cell(&c.candidate), l.against, cell(&c.baseline))));
    header.push("n".to_string());
    let mut table = Table::new(header, 1);
    for metric in &report.metrics {
        let mut row = vec![metric_title(metric, report.language)];
        row.extend(report.models.iter().map(|model| value_cell(metric, model)));
        row.extend(against.iter().map(|comparison| change_cell(metric, comparison)));
        row.push(tables::sample_size(metric, report));
        table.row(row);
    }
    table.finish()
}

/// A value and its change against the baseline, a column a model.
fn compact_table(report: &Report) -> String {
    let l = report.language.labels();
    let against = report.against_base();
    let mut header = vec![l.metric.to_string()];
    header.extend(report.models.iter().map(|m| cell(&m.name)));
    header.push("n".to_string());
    let mut table = Table::new(header, 1);
    for metric in &report.metrics {
        let mut row = vec![metric_title(metric, report.language)];
        row.extend(report.models.iter().map(|model| {
            let value = plain_cell(metric, model);
            match against.iter().find(|c| c.candidate == model.name) {
                Some(comparison) if value != UNDEFINED => {
                    format!("{value}<br><sub>{}</sub>", change_cell(metric, comparison))
                }
                _ => value,
            }
        }));
        row.push(tables::sample_size(metric, report));
        table.row(row);
    }
    table.finish()
}

/// The relative change with its mark.
fn change_cell(metric: &Metric, comparison: &Comparison) -> String {
    match comparison.metrics.get(&metric.name) {
        Some(c) => {
            let change = number::improvement(metric, c);
            // Marks are literal asterisks.
            format!("{change} {}", c.mark.replace('*', "\\*")).trim().to_string()
        }
        None => UNDEFINED.to_string(),
    }
}

fn metric_title(metric: &Metric, language: Language) -> String {
    let unit = terms::unit(metric, language);
    let unit = if unit.is_empty() { unit } else { format!(" ({})", cell(&unit)) };
    format!("{}{unit} {}", cell(metric.title(language)), metric.arrow()).trim_end().to_string()
}

/// The value, the best in bold.
fn plain_cell(metric: &Metric, model: &Model) -> String {
    let Some(value) = metric.models.get(&model.name) else { return UNDEFINED.to_string() };
    let text = number::value(metric, value);
    if metric.best.contains(&model.name) { format!("**{text}**") } else { text }
}

/// The same with its interval.
fn value_cell(metric: &Metric, model: &Model) -> String {
    let text = plain_cell(metric, model);
    match metric.models.get(&model.name).and_then(|value| number::plus_minus(metric, value)) {
        Some(interval) => format!("{text} {interval}"),
        None => text,
    }
}

fn differences(md: &mut String, report: &Report, l: &Labels) {
    if report.comparisons.is_empty() || report.metrics.is_empty() {
        return;
    }
    let _ = writeln!(md, "## {}\n", l.differences);
    let folded = report.comparisons.len() > tables::WIDE;
    for comparison in &report.comparisons {
        let title = format!("{} − {}", inline(&comparison.candidate), inline(&comparison.baseline));
        let _ = match folded {
            true => writeln!(md, "<details><summary>{title}</summary>\n"),
            false => writeln!(md, "### {title}\n"),
        };
        for m in &comparison.allowed {
            let _ = writeln!(md, "{}\n", inline(&sentences::allowed(m, report.language)));
        }
        let level = number::fixed(100.0 * report.statistics.confidence, 0);
        let header = [
            l.metric.into(),
            "n".into(),
            format!("{} [{level} %]", l.difference),
            "p".into(),
            l.adjusted_p.into(),
            l.wins_losses.into(),
            l.detectable.into(),
            l.verdict.into(),
        ];
        let mut table = Table::new(header.to_vec(), 1);
        for metric in &report.metrics {
            let Some(c) = comparison.metrics.get(&metric.name) else { continue };
            let d = tables::difference(metric, c, report.language);
            let adjusted = format!("{} {}", d.adjusted, d.mark.replace('*', "\\*")).trim_end().to_string();
            let title = metric_title(metric, report.language);
            table.row(vec![title, d.n, d.difference, d.p, adjusted, d.wins, d.detectable, d.verdict.to_string()]);
        }
        let _ = writeln!(md, "{}{}", table.finish(), if folded { "\n</details>\n" } else { "" });
    }
    let _ = writeln!(md, "{}\n", l.detectable_help);
}

fn samples(md: &mut String, report: &Report, l: &Labels) {
    let rows = tables::samples(report);
    if rows.is_empty() {
        return;
    }
    let _ = writeln!(md, "## {}\n\n{}\n", l.samples, l.samples_help);
    let mut table = Table::new(tables::sample_header(l).map(String::from).to_vec(), 2);
    rows.into_iter().for_each(|row| table.row(row.iter().map(|c| cell(c)).collect()));
    let _ = writeln!(md, "{}", table.finish());
}

fn recipes(md: &mut String, report: &Report, l: &Labels) {
    if report.recipes.is_empty() {
        return;
    }
    let _ = writeln!(md, "## {}\n\n{}\n", l.recipes, l.recipes_help);
    for comparison in &report.recipes {
        let _ = writeln!(md, "### {}\n", inline(&tables::recipe_title(comparison, report.language)));
        let mut table = Table::new(tables::recipe_header(report).iter().map(|c| cell(c)).collect(), 1);
        let rows = tables::recipe(comparison, report);
        rows.into_iter().for_each(|row| table.row(row.iter().map(|c| cell(c)).collect()));
        let _ = writeln!(md, "{}", table.finish());
    }
}

fn training(md: &mut String, report: &Report, l: &Labels) {
    let rows = tables::training(report);
    if rows.is_empty() {
        return;
    }
    let _ = writeln!(md, "## {}\n", l.training);
    let mut table = Table::new(tables::training_header(l).map(String::from).to_vec(), 1);
    for (model, cells) in rows {
        let overfits = model.training.as_ref().is_some_and(|t| t.overfitting == Some(true));
        let note = if overfits { format!("⚠️ {}", l.overfits) } else { String::new() };
        table.row([vec![cell(&model.name)], cells.to_vec(), vec![note]].concat());
    }
    let _ = writeln!(md, "{}", table.finish());
    tables::chosen(report).iter().for_each(|sentence| {
        let _ = writeln!(md, "{}\n", inline(sentence));
    });
    let rows = tables::checkpoints(report);
    if !rows.is_empty() {
        let _ = writeln!(md, "### {}\n\n{}\n", l.checkpoints, l.checkpoints_help);
        let mut table = Table::new(tables::checkpoint_header(report).iter().map(|c| cell(c)).collect(), 1);
        rows.into_iter().for_each(|row| table.row(row.iter().map(|c| cell(c)).collect()));
        let _ = writeln!(md, "{}", table.finish());
    }
}

fn cost(md: &mut String, report: &Report, l: &Labels) {
    let rows = tables::costs(report);
    if rows.is_empty() {
        return;
    }
    let _ = writeln!(md, "## {}\n", l.cost);
    let mut table = Table::new(tables::cost_header(report).iter().map(|c| cell(c)).collect(), 2);
    for (model, cells) in rows {
        table.row([vec![cell(&model.name)], cells.iter().map(|c| cell(c)).collect()].concat());
    }
    let _ = writeln!(md, "{}", table.finish());
}

/// How many items that became wrong are shown, one comparison after the other.
const SHOWN_FLIPS: usize = 3;

fn flips(md: &mut String, report: &Report, l: &Labels) {
    if report.flips.is_empty() {
        return;
    }
    let _ = writeln!(md, "## {}\n\n{}\n", l.flips, l.flips_help);
    let header = [l.comparison, l.metric, l.flip_lost, l.flip_won, l.both_right, l.both_wrong];
    let mut table = Table::new(header.map(String::from).to_vec(), 2);
    for row in tables::flips(report) {
        table.row(row.iter().map(|c| cell(c)).collect());
    }
    let _ = writeln!(md, "{}", table.finish());
    // The texts of two models at a time, where it went the wrong way.
    for comparison in report.against_base() {
        let here = |t: &&FlipTable| t.baseline == comparison.baseline && t.candidate == comparison.candidate;
        let lost = |id: &String| {
            let in_table = |t: &&FlipTable| t.flips.right_to_wrong.contains(id);
            let names =
                report.flips.iter().filter(here).filter(in_table).map(|t| tables::metric_title(report, &t.metric));
            names.collect::<Vec<_>>().join(", ")
        };
        let shown = report.flipped.iter().map(|f| (f, lost(&f.item.id))).filter(|(_, names)| !names.is_empty());
        for (flipped, names) in shown.take(SHOWN_FLIPS) {
            let title =
                format!("{} {} {}, {}: {names}", comparison.candidate, l.against, comparison.baseline, l.flip_lost);
            let _ = writeln!(md, "**{}**", inline(&title));
            let of_pair = |d: &&Divergence| d.baseline == comparison.baseline && d.candidate == comparison.candidate;
            if let Some(divergence) = flipped.divergences.iter().find(of_pair) {
                let _ = writeln!(md, "<br>{}", inline(&tables::divergence(divergence, report.language)));
            }
            let _ = writeln!(md, "\n{}\n", inline(&flipped.item.question));
            let pair = [&comparison.baseline, &comparison.candidate];
            let models: Vec<Model> = pair.iter().filter_map(|name| report.model(name).cloned()).collect();
            md.push_str(&side_by_side(&flipped.item, &models, report.language));
        }
    }
}

fn general(md: &mut String, report: &Report, l: &Labels) {
    let Some(general) = &report.general else { return };
    let _ = writeln!(md, "## {}\n\n{}\n", l.general, l.general_help);
    let against: Vec<&Comparison> = report.against_base_of(&general.comparisons);
    let mut header = vec![l.metric.to_string()];
    header.extend(report.models.iter().map(|m| cell(&m.name)));
    header.extend(against.iter().map(|c| format!("{} − {}", cell(&c.candidate), cell(&c.baseline))));
    header.push("n".to_string());
    let mut table = Table::new(header, 1);
    for metric in &general.metrics {
        let mut row = vec![metric_title(metric, report.language)];
        row.extend(report.models.iter().map(|model| value_cell(metric, model)));
        row.extend(against.iter().map(|c| match c.metrics.get(&metric.name) {
            Some(c) => format!("{} {}", number::difference(metric, c), c.mark.replace('*', "\\*")).trim().to_string(),
            None => UNDEFINED.to_string(),
        }));
        row.push(tables::sample_size(metric, report));
        table.row(row);
    }
    let _ = writeln!(md, "{}", table.finish());
    let _ = writeln!(md, "{}\n", inline(&tables::general_source(general, report.language)));
}

fn truncation(md: &mut String, report: &Report, l: &Labels) {
    let rows = tables::truncation(report);
    if rows.is_empty() {
        return;
    }
    let _ = writeln!(md, "### {}\n\n{}\n", l.truncation, l.truncation_help);
    let mut table = Table::new(tables::truncation_header(l).map(String::from).to_vec(), 2);
    for row in rows {
        table.row(row.iter().map(|c| cell(c)).collect());
    }
    let _ = writeln!(md, "{}", table.finish());
}

fn adapters(md: &mut String, report: &Report, l: &Labels) {
    let rows = tables::adapters(report);
    if rows.is_empty() {
        return;
    }
    let _ = writeln!(md, "## {}\n\n{}\n", l.adapter, l.adapter_help);
    let mut table = Table::new(tables::adapter_header(l).map(String::from).to_vec(), 1);
    for (model, cells) in rows {
        table.row([vec![cell(&model.name)], cells.to_vec()].concat());
    }
    let _ = writeln!(md, "{}", table.finish());
}

/// An HTML table: a Markdown table cannot hold paragraphs, and an HTML block ends at the first
/// blank line.
fn side_by_side(example: &ItemExample, models: &[Model], language: Language) -> String {
    let l = language.labels();
    let text = |model: &Model| match example.models.get(&model.name) {
        None => format!("<em>{}</em>", l.no_result),
        Some(text) => {
            let note = sentences::state_note(text.thinking, text.stop, language);
            let note = if note.is_empty() { note } else { format!("<em>{}</em><br>", html(&note)) };
            let answer = if text.answer.is_empty() { format!("<em>{}</em>", l.no_answer) } else { html(&text.answer) };
            format!("{note}{}{answer}", folded(&text.think, l))
        }
    };
    let reference = format!("{}{}", folded(&example.think, l), html(&example.answer));
    let texts = std::iter::once((l.reference.to_string(), reference))
        .chain(models.iter().map(|model| (html(&model.name), text(model))));
    // Columns of many models would be a word wide.
    if models.len() > tables::WIDE {
        let rows: String =
            texts.map(|(name, text)| format!("<tr valign=\"top\"><th>{name}</th><td>{text}</td></tr>\n")).collect();
        return format!("<table>\n{rows}</table>\n\n");
    }
    let (mut head, mut body) = (String::new(), String::new());
    for (name, text) in texts {
        let _ = write!(head, "<th>{name}</th>");
        let _ = write!(body, "<td>{text}</td>");
    }
    format!("<table>\n<tr>{head}</tr>\n<tr valign=\"top\">{body}</tr>\n</table>\n\n")
}

fn folded(think: &str, l: &Labels) -> String {
    if think.is_empty() {
        return String::new();
    }
    format!("<details><summary>{}</summary>{}</details>", l.think, html(think))
}

fn reproduce(md: &mut String, report: &Report, l: &Labels) {
    let _ = writeln!(md, "## {}\n", l.reproduce);
    for (label, text) in super::provenance::facts(report) {
        let _ = writeln!(md, "- {label}: {}", inline(&text));
        if label == l.bad_rows {
            for row in &report.data.bad_rows {
                let _ = writeln!(md, "  - {}:{}: {}", inline(&row.file), row.line, inline(&row.reason));
            }
        }
    }
    let _ = writeln!(md, "- {}: {}", l.schema, report.schema_version);
}

/// A pipe table; the first columns are set left, the others right.
struct Table {
    text: String,
}

impl Table {
    fn new(header: Vec<String>, left: usize) -> Self {
        let rule: Vec<&str> = (0..header.len()).map(|i| if i < left { ":--" } else { "--:" }).collect();
        let text = format!("| {} |\n| {} |\n", header.join(" | "), rule.join(" | "));
        Table { text }
    }

    fn row(&mut self, cells: Vec<String>) {
        let _ = writeln!(self.text, "| {} |", cells.join(" | "));
    }

    fn finish(self) -> String {
        self.text
    }
}

/// Text of strangers in running Markdown: one line, nothing in it is markup.
pub(super) fn inline(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in escaped(text).chars() {
        match c {
            '\n' | '\r' => out.push(' '),
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '~' | '#' | '$' => {
                out.push('\\');
                out.push(c);
            }
            c => out.push(c),
        }
    }
    out.replace("&quot;", "\"")
}

/// The same in a table's cell.
pub(super) fn cell(text: &str) -> String {
    inline(text).trim().to_string()
}

/// Text of strangers in an HTML block of Markdown: entities, and no blank line that would end the
/// block.
fn html(text: &str) -> String {
    escaped(text).replace('\r', "").replace('\n', "<br>")
}
