//! The facts one needs to make a report again, as label and text: the foot of the Markdown and of
//! the page.

use std::collections::BTreeMap;
use std::fmt::Display;

use super::i18n::terms::term;
use super::model::{Language, Report};
use super::number::{self, short_hash};
use crate::hub::short;

/// What was read, how it was cut, drawn, rendered and decoded, and the hashes of all of it.
pub(super) fn facts(report: &Report) -> Vec<(&'static str, String)> {
    let (language, l) = (report.language, report.language.labels());
    let mut facts = vec![(l.suite, format!("{} (sha256 {})", report.suite.name, short_hash(&report.suite.sha256)))];
    for source in &report.suite.sources {
        let licence = source.licence.as_ref().map_or_else(String::new, |licence| format!(", {licence}"));
        let (state, files) = (short(&source.state), source.files.len());
        let text =
            format!("{}: {} ({}) = {state}{licence}, {files} {}", source.key, source.id, source.revision, l.files);
        facts.push((l.source, text));
    }
    for file in &report.data.files {
        let rows = number::grouped(file.rows);
        let read = file.read_as.as_ref().map_or_else(String::new, |form| format!("{}{} {form}", l.comma, l.read_as));
        facts.push((l.data, format!("{}, {rows} {}{read}, sha256 {}", file.name, l.rows, short_hash(&file.sha256))));
    }
    if !report.data.splits.is_empty() {
        let rule = &report.data.split_rule;
        let rule = rule.as_ref().map_or_else(String::new, |r| format!("{}{}", l.semicolon, r.describe(language)));
        facts.push((l.splits, format!("{}{rule}", pairs(&report.data.splits, language))));
    }
    facts.push((l.bad_rows, number::grouped(report.data.bad_row_count)));
    if !report.data.audit.is_empty() {
        facts.push((l.audit, pairs(&report.data.audit, language)));
    }
    for leak in &report.data.leaks {
        facts.push((l.leaks, format!("{} ~ {}, {}", leak.first, leak.second, number::fixed(leak.similarity, 2))));
    }
    facts.push((l.decoding, decoding(report)));
    if !report.seeds.is_empty() {
        facts.push((l.seeds, pairs(&report.seeds, language)));
    }
    let comma = l.comma;
    let s = &report.statistics;
    facts.push((
        l.statistics,
        format!(
            "{} {}{comma}{} {}{comma}{} %",
            number::grouped(s.resamples as u64),
            l.resamples,
            l.seed,
            s.seed,
            number::fixed(100.0 * s.confidence, 0)
        ),
    ));
    let f = &report.fingerprints;
    let prints = [("data", &f.data), ("prompts", &f.prompts), ("template", &f.template), ("decoding", &f.decoding)];
    facts.push((
        l.fingerprints,
        prints.map(|(name, hash)| format!("{} {}", term(name, language), short_hash(hash))).join(comma),
    ));
    for model in &report.models {
        facts.push((
            l.checkpoint,
            match (model.checkpoint_sha256.is_empty(), model.dtype.is_empty()) {
                (true, true) => format!("{}: {}", model.name, l.unknown),
                (_, no_type) => format!(
                    "{}: sha256 {}, {}",
                    model.name,
                    short_hash(&model.checkpoint_sha256),
                    if no_type { l.unknown } else { &model.dtype }
                ),
            },
        ));
    }
    facts
}

fn decoding(report: &Report) -> String {
    let l = report.language.labels();
    let Some(d) = &report.decoding else { return l.unknown.to_string() };
    let g = &d.generate;
    let how = if g.temperature == 0.0 {
        l.greedy.to_string()
    } else {
        format!("{} {}, top_p {}, top_k {}, {} {}", l.temperature, g.temperature, g.top_p, g.top_k, l.seed, g.seed)
    };
    let thinking = d.enable_thinking.map_or(String::new(), |on| format!(", enable_thinking={on}"));
    format!(
        "{how}, max_new_tokens {}, {} {}{thinking}, max_length {}",
        g.max_new_tokens, l.template, d.template, d.max_length
    )
}

fn pairs<V: Display>(map: &BTreeMap<String, V>, language: Language) -> String {
    let pair = |(k, v): (&String, &V)| format!("{} {v}", term(k, language));
    map.iter().map(pair).collect::<Vec<_>>().join(language.labels().comma)
}

/// What was volatile: version, machine, backends, stages, paths.
pub(super) fn environment(report: &Report) -> Vec<(String, String)> {
    let (language, l) = (report.language, report.language.labels());
    let e = &report.environment;
    let (comma, semicolon) = (l.comma, l.semicolon);
    let mut facts = Vec::new();
    if !e.karat.is_empty() {
        facts.push(("karat".to_string(), e.karat.clone()));
    }
    if !e.machine.is_empty() {
        facts.push((l.machine.to_string(), pairs(&e.machine, language)));
    }
    for p in &e.plugins {
        let text = format!("{} {}, sha256 {}, {}", p.name, p.version, short_hash(&p.sha256), p.path);
        facts.push((l.backends.to_string(), text));
    }
    for model in report.models.iter().filter_map(|m| Some((&m.name, e.costs.get(&m.name)?))) {
        let (name, cost) = model;
        let kernels = if cost.kernels.is_empty() { String::new() } else { format!(", {}", cost.kernels.join(", ")) };
        if let Some(threads) = cost.threads {
            facts.push((name.clone(), format!("{}, {threads} {}{kernels}", cost.device, l.threads)));
        }
    }
    if let Some(c) = &e.determinism {
        let pass = |p: &crate::eval::determinism::RunComparison| {
            let drift = match p.logprob_drift {
                0.0 => "0".to_string(),
                drift => number::scientific(drift),
            };
            format!("{}: {} {}{comma}{} {drift} nats", p.pass, p.flipped_texts, l.texts_change, l.drift)
        };
        let passes: Vec<String> = c.comparisons.iter().map(pass).collect();
        let (texts, tokens) = (number::grouped(c.texts as u64), number::grouped(c.tokens as u64));
        let verdict = if c.deterministic { l.repeats } else { l.repeats_not };
        let text = format!(
            "{} {verdict} ({texts} {}{comma}{tokens} {}){semicolon}{}",
            c.backend,
            l.texts_word,
            l.tokens_word,
            passes.join(semicolon)
        );
        facts.push((l.determinism.to_string(), text));
    }
    facts.extend(e.seconds.iter().map(|(stage, s)| (term(stage, language), number::duration(*s))));
    facts.extend(e.paths.iter().chain(&e.notes).map(|(k, v)| (term(k, language), v.clone())));
    facts
}
