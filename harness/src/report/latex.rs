//! The result table as LaTeX, for a paper: `booktabs`, the best in bold, ± and significance marks;
//! and beside it, where reasoning was never closed, what that can have done to each metric.
//!
//! It needs `\usepackage{booktabs}`, and for Chinese a class such as `ctexart` under XeLaTeX.
//! Everything that is not ours is escaped: a name or title can hold anything.

use std::fmt::Write;

use super::i18n::{sentences, terms};
use super::model::{Metric, Report};
use super::number::{self, UNDEFINED};
use super::tables;

/// A `table` with the rows and columns of the Markdown report, the verdict as its caption, labelled
/// `tab:SUITE`; where there is unclosed reasoning, a second one labelled `tab:SUITE-unclosed`.
pub fn table(report: &Report) -> String {
    let l = report.language.labels();
    let against = report.against_base();
    // Of many models the marks stand at the values.
    let compact = tables::compact(report);
    let beside = if compact { Vec::new() } else { against.clone() };
    let columns = report.models.len() + beside.len() + 1;
    let label: String = report.suite.name.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
    let mut tex = String::from("% \\usepackage{booktabs}\n");
    begin(&mut tex, &sentences::verdict(report, report.language), &label, &format!("l{}", "r".repeat(columns)));
    let mut header = vec![l.metric.to_string()];
    header.extend(report.models.iter().map(|m| m.name.clone()));
    header.extend(beside.iter().map(|c| format!("{} {} {}", c.candidate, l.against, c.baseline)));
    header.push("n".to_string());
    row(&mut tex, &header.iter().map(|h| escaped(h)).collect::<Vec<_>>());
    tex.push_str("\\midrule\n");
    for metric in &report.metrics {
        let mut cells = vec![title(metric, report)];
        cells.extend(report.models.iter().map(|m| {
            let compared = against.iter().find(|c| compact && c.candidate == m.name);
            match compared.and_then(|c| c.metrics.get(&metric.name)).filter(|c| !c.mark.is_empty()) {
                Some(c) => format!("{}\\textsuperscript{{{}}}", value(metric, &m.name), c.mark),
                None => value(metric, &m.name),
            }
        }));
        cells.extend(beside.iter().map(|c| match c.metrics.get(&metric.name) {
            Some(c) => {
                let change = escaped(&number::improvement(metric, c));
                if c.mark.is_empty() { change } else { format!("{change}\\textsuperscript{{{}}}", c.mark) }
            }
            None => escaped(UNDEFINED),
        }));
        cells.push(escaped(&tables::sample_size(metric, report)));
        row(&mut tex, &cells);
    }
    end(&mut tex, l.legend);
    let unclosed = tables::truncation(report);
    if !unclosed.is_empty() {
        tex.push('\n');
        begin(&mut tex, l.truncation, &format!("{label}-unclosed"), "llrrrr");
        row(&mut tex, &tables::truncation_header(l).map(escaped));
        tex.push_str("\\midrule\n");
        unclosed.iter().for_each(|cells| row(&mut tex, &cells.each_ref().map(|cell| escaped(cell))));
        end(&mut tex, l.truncation_help);
    }
    tex
}

/// A table up to the header of its columns.
fn begin(tex: &mut String, caption: &str, label: &str, columns: &str) {
    let _ = writeln!(tex, "\\begin{{table}}[t]\n\\centering\n\\small\n\\caption{{{}}}", escaped(caption));
    let _ = writeln!(tex, "\\label{{tab:{label}}}\n\\begin{{tabular}}{{{columns}}}\n\\toprule");
}

/// The end of a table, with a note below it.
fn end(tex: &mut String, note: &str) {
    let _ = writeln!(tex, "\\bottomrule\n\\end{{tabular}}\n\n\\smallskip\n{{\\footnotesize {}}}", escaped(note));
    tex.push_str("\\end{table}\n");
}

fn row(tex: &mut String, cells: &[String]) {
    let _ = writeln!(tex, "{} \\\\", cells.join(" & "));
}

fn title(metric: &Metric, report: &Report) -> String {
    let unit = terms::unit(metric, report.language);
    let unit = if unit.is_empty() { unit } else { format!(" ({unit})") };
    let text = format!("{}{unit} {}", metric.title(report.language), metric.arrow());
    escaped(text.trim_end())
}

fn value(metric: &Metric, model: &str) -> String {
    let Some(value) = metric.models.get(model) else { return escaped(UNDEFINED) };
    let text = escaped(&number::value(metric, value));
    let text = if metric.best.iter().any(|b| b == model) { format!("\\textbf{{{text}}}") } else { text };
    match number::plus_minus(metric, value) {
        Some(spread) => format!("{text} {{\\scriptsize {}}}", escaped(&spread)),
        None => text,
    }
}

/// Text in LaTeX's text mode, on one line; signs that its fonts lack in math mode.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in super::escape::visible(text).chars() {
        match c {
            '\\' => out.push_str("\\textbackslash{}"),
            '~' => out.push_str("\\textasciitilde{}"),
            '^' => out.push_str("\\textasciicircum{}"),
            '{' | '}' | '$' | '&' | '#' | '_' | '%' => {
                out.push('\\');
                out.push(c);
            }
            '<' => out.push_str("$<$"),
            '>' => out.push_str("$>$"),
            '−' => out.push_str("$-$"),
            '±' => out.push_str("$\\pm$"),
            '↑' => out.push_str("$\\uparrow$"),
            '↓' => out.push_str("$\\downarrow$"),
            '–' => out.push_str("--"),
            '\n' | '\r' | '\t' => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_text_is_a_command() {
        assert_eq!(
            escaped("50 % of $x_1$ & \\input{a}~^#"),
            "50 \\% of \\$x\\_1\\$ \\& \\textbackslash{}input\\{a\\}\\textasciitilde{}\\textasciicircum{}\\#"
        );
        assert_eq!(escaped("±0.1 −2 ↑ <p"), "$\\pm$0.1 $-$2 $\\uparrow$ $<$p");
    }
}
