//! `karat data`: what a suite's data becomes.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use karat::backend::IGNORE;
use karat::data::record::Record;
use karat::report::Language;
use karat::run::{Prepared, prepare};
use karat::{Result, fsio};
use serde_json::json;

use crate::args::DataArgs;
use crate::output::{Output, shown, shown_lines};

/// Leaks and bad lines that are shown; `--json` lists more.
const LEAKS: usize = 5;
const BAD_LINES: usize = 10;

pub fn run(args: &DataArgs, output: &Output) -> Result<u8> {
    let suite = super::run::load_suite(&args.suite, Default::default())?;
    let prepared = prepare(&suite)?;
    say_notes(&prepared, output);
    let mut text = String::new();
    if let Some(file) = &args.prompts {
        write_prompts(&prepared, file)?;
        output.say(format!("wrote {} prompts to {}", prepared.items.len(), file.display()));
    }
    summary(&prepared, &mut text);
    if let Some(told) = super::run::told_power(&suite, &prepared) {
        let _ = writeln!(text, "{told}");
    }
    for record in prepared.parts.get("train").into_iter().flatten().take(args.show) {
        let example = prepared.formatter.example(record)?;
        let tokenizer = prepared.formatter.tokenizer();
        let part = |ids: &[u32]| tokenizer.decode(ids, false);
        let (id, tokens) = (shown(&record.id), example.ids.len());
        let runs = example.labels.chunk_by(|a, b| (*a == IGNORE) == (*b == IGNORE));
        let (mut parts, mut rest) = (Vec::new(), &example.ids[..]);
        for run in runs {
            let (ids, behind) = rest.split_at(run.len());
            parts.push(part(ids)?);
            rest = behind;
        }
        let kinds = ["not trained on", "trained on"].into_iter().cycle().take(parts.len()).collect::<Vec<_>>();
        let _ = writeln!(text, "\n--- {id} ({tokens} tokens; {})", kinds.join(" | "));
        let _ = writeln!(text, "{}", shown_lines(&parts.join("|")));
    }
    let object = json!({
        "files": prepared.files.iter()
            .map(|file| {
                let (name, sha256, rows) = (&file.name, &file.sha256, file.rows);
                json!({"name": name, "sha256": sha256, "rows": rows, "read_as": file.read_as, "not_read": file.unread})
            })
            .collect::<Vec<_>>(),
        "split_rule": prepared.split_rule,
        "audit": prepared.audit,
        "lengths": prepared.lengths,
        "evaluated_items": prepared.items.len(),
        "notes": prepared.notes.iter().map(|note| note.english.as_str()).collect::<Vec<_>>(),
    });
    output.result(&object, &text)?;
    Ok(0)
}

/// The evaluated items as any other system can answer them: the turns, the rendered prompt, its
/// token ids.
fn write_prompts(prepared: &Prepared, file: &Path) -> Result<()> {
    let records: BTreeMap<&str, &Record> = prepared.parts["heldout"].iter().map(|r| (r.id.as_str(), r)).collect();
    let mut lines = String::new();
    for item in &prepared.items {
        let Some(record) = records.get(item.id.as_str()) else { continue };
        let prompt = prepared.formatter.prompt(record)?;
        let messages = prepared.formatter.question(record)?;
        let line = json!({"id": item.id, "messages": messages, "prompt": prompt.text, "ids": prompt.ids});
        let _ = writeln!(lines, "{line}");
    }
    fsio::write_atomic(file, lines.as_bytes())
}

/// What a reader must know of what was made of the data, on standard error.
pub fn say_notes(prepared: &Prepared, output: &Output) {
    for note in &prepared.notes {
        output.say(format!("warning: {}", note.english));
    }
}

fn summary(prepared: &Prepared, text: &mut String) {
    for file in &prepared.files {
        let (name, hash) = (shown(&file.name), &file.sha256[..12]);
        let _ = writeln!(text, "{name}: {} items, read as: {} (sha256 {hash})", file.rows, file.read_as);
        if let Some(columns) = &file.unread {
            let _ = writeln!(text, "{name}: columns that are not read: {}", shown(columns));
        }
    }
    let _ = writeln!(text, "split: {}", prepared.split_rule.describe(Language::English));
    for (name, split) in &prepared.audit.splits {
        let lengths = split.total_tokens.as_ref().map_or(String::new(), |l| {
            format!("; tokens min {} median {} max {} sum {}", l.min, l.median, l.max, l.sum)
        });
        let _ = writeln!(
            text,
            "  {name}: {} items, {} with reasoning{lengths}; {} cut, {} dropped",
            split.records,
            split.with_think,
            split.truncated.len(),
            split.dropped.len()
        );
    }
    let _ = writeln!(text, "{}", shown_lines(&prepared.lengths.describe()));
    if prepared.untrained_turns > 0 {
        let rows = prepared.untrained_turns;
        let _ = writeln!(
            text,
            "of {rows} rows only the last turn is trained on; data.train_on = \"all\" trains the earlier ones too"
        );
    }
    let _ = writeln!(text, "evaluated: {} items", prepared.items.len());
    let audit = &prepared.audit;
    let _ = writeln!(
        text,
        "duplicates within a part: {}; leaks between parts: {} exact, {} near",
        audit.counts.duplicates, audit.counts.exact_leaks, audit.counts.near_leaks
    );
    let more = |listed: usize, all: u64| match all.saturating_sub(listed as u64) {
        0 => String::new(),
        more => format!("  and {more} more\n"),
    };
    for leak in audit.leaks.iter().take(LEAKS) {
        let (a, b) = (&leak.first, &leak.second);
        let pair = format!("{} {} ~ {} {}", a.split, a.id, b.split, b.id);
        let _ = writeln!(text, "  {} (similarity {:.2})", shown(&pair), leak.similarity);
    }
    text.push_str(&more(LEAKS, audit.counts.exact_leaks + audit.counts.near_leaks));
    let _ = writeln!(text, "bad lines: {}", prepared.bad.len());
    for row in prepared.bad.iter().take(BAD_LINES) {
        let _ = writeln!(text, "  {}", shown(&format!("{}:{}: {}", row.file, row.line, row.reason)));
    }
    text.push_str(&more(BAD_LINES, prepared.bad.len() as u64));
}
