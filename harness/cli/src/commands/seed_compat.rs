//! `karat report --format seed-compat`: the published comparison's table, as its script computes
//! and prints it.

use std::path::Path;

use karat::backend::{Event, Tokens};
use karat::data::tokens::Tokenizer;
use karat::report::Role;
use karat::report::seed_compat::{self, Hidden, Results, Side};
use karat::run::{Cancel, Recorded, StageSink, evaluator, prepare, scores};
use karat::suite::Suite;
use karat::{Error, Result};
use serde_json::json;

use super::rows::tokenizer;
use crate::args::{Global, ReportArgs};
use crate::host::{Opening, cancel_on_interrupt};
use crate::output::Output;
use crate::progress::Progress;

pub fn run(args: &ReportArgs, global: &Global, output: &Output) -> Result<u8> {
    match args.report.is_dir() {
        true => of_run(args, global, output),
        false => of_file(args, global, output),
    }
}

/// A published file: its own table as it was printed, then the same numbers over the texts it
/// gives.
fn of_file(args: &ReportArgs, global: &Global, output: &Output) -> Result<u8> {
    let text = std::fs::read_to_string(&args.report).map_err(|e| Error::io("read", &args.report, e))?;
    let published = Results::from_json(&text, &args.report.display().to_string())?;
    let (mut again, hidden) = published.recomputed();
    perplexities(&mut again, args, global, output)?;
    let page = format!(
        "{}\nover the {} items whose texts are given, beside what was published over all:\n\n{}",
        seed_compat::printed(&published),
        again.qualitative.len(),
        seed_compat::beside(&published, &again)
    );
    let object = json!({ "published": published, "recomputed": again, "hidden_exceptions": hidden });
    output.result(&object, &page)?;
    notes(&again, hidden, output);
    Ok(0)
}

/// A run: the table of each trained model against the base, over all of its items.
fn of_run(args: &ReportArgs, global: &Global, output: &Output) -> Result<u8> {
    let folder = &args.report;
    let stored = folder.join("suite.toml");
    if !stored.is_file() {
        return Err(Error::data("this is no run folder: the texts of a run are needed")
            .at(folder.display())
            .help("give the folder of `karat run`, or a published results file"));
    }
    let suite = Suite::load(&stored.display().to_string(), &[])?;
    let items = prepare(&suite)?.items;
    let recorded = Recorded::read_all(&folder.join("results"))?;
    let base = recorded.iter().find(|r| r.role == Role::Base);
    let base = base.ok_or_else(|| Error::data("the run has no base model to compare with").at(folder.display()))?;
    let (mut page, mut all) = (String::new(), serde_json::Map::new());
    for model in recorded.iter().filter(|r| r.role != Role::Base) {
        let (mut results, hidden) = Results::of_run(&items, &base.predictions, &model.predictions);
        perplexities(&mut results, args, global, output)?;
        page.push_str(&format!("{} against {}, {} items\n", model.name, base.name, results.qualitative.len()));
        page.push_str(&seed_compat::printed(&results));
        page.push('\n');
        notes(&results, hidden, output);
        // A published file gives five texts, so this one does.
        results.qualitative.truncate(5);
        all.insert(model.name.clone(), json!({ "results": results, "hidden_exceptions": hidden }));
    }
    output.result(&all.into(), &page)?;
    Ok(0)
}

/// Says what a reader could take for something else.
fn notes(results: &Results, hidden: [Hidden; 2], output: &Output) {
    for (name, hidden) in ["base model", "fine-tuned model"].iter().zip(hidden) {
        if let Some(exception) = hidden {
            output.say(format!(
                "ROUGE of the {name} is 0 throughout: package rouge raises {exception} on one pair, and the script's `except` \
                 zeroes the whole corpus"
            ));
        }
    }
    let q = &results.quantitative;
    if q.base_model.perplexity.is_none() || q.finetuned_model.perplexity.is_none() {
        output.say(
            "a perplexity (of the model's own texts, without prompt) needs the models: give --base-model and --finetuned-model",
        );
    }
}

/// The perplexities of the models that were given.
fn perplexities(results: &mut Results, args: &ReportArgs, global: &Global, output: &Output) -> Result<()> {
    let Some(base) = &args.base_model else { return Ok(()) };
    let texts = |side| results.qualitative.iter().map(|s| s.text(side)).collect::<Vec<_>>();
    let model = |model: &Path, adapter: Option<&Path>| Opening::new(model, adapter, &args.open, global, output);
    let opened = model(base, None)?;
    // Both models' texts are cut into the base model's tokens, as the script does.
    let scorer = Scorer { tokenizer: tokenizer(&opened.config)?, cancel: cancel_on_interrupt()?, output };
    let (of_base, of_tuned) = (texts(Side::Base), texts(Side::Finetuned));
    let value = scorer.perplexity(&of_base, &opened)?;
    let tuned = match (&args.finetuned_model, &args.finetuned_adapter) {
        (None, None) => None,
        (folder, adapter) => {
            let folder = folder.as_deref().unwrap_or(base);
            scorer.perplexity(&of_tuned, &model(folder, adapter.as_deref())?)?
        }
    };
    results.quantitative.base_model.perplexity = value;
    results.quantitative.finetuned_model.perplexity = tuned;
    Ok(())
}

/// What scores texts under a model.
struct Scorer<'a> {
    tokenizer: Tokenizer,
    cancel: Cancel,
    output: &'a Output,
}

impl Scorer<'_> {
    fn perplexity(&self, texts: &[&str], opening: &Opening) -> Result<Option<f64>> {
        let mut rows = Vec::with_capacity(texts.len());
        for text in texts {
            let mut ids = self.tokenizer.encode(text)?;
            ids.truncate(seed_compat::PERPLEXITY_TOKENS);
            rows.push(ids);
        }
        let mut session = opening.session(self.output)?;
        let evaluator = evaluator(&mut session, &opening.backend.backend.describe().name)?;
        let tokens: Tokens = rows.iter().collect();
        let mut progress = Progress::new(self.output);
        let mut sink = StageSink {
            stage: "perplexity",
            total: None,
            observer: &mut progress,
            cancel: &self.cancel,
            keep: |_: &Event| Ok(()),
            error: None,
        };
        let place = |row: usize| format!("text {row}");
        let scores = scores(evaluator, tokens.view(), "scoring failed", &place, &mut sink)?;
        let mut rest = scores.logprobs.as_slice();
        let mut by_text = Vec::with_capacity(rows.len());
        for ids in &rows {
            let (row, after) = rest.split_at(ids.len().saturating_sub(1));
            by_text.push(row.to_vec());
            rest = after;
        }
        Ok(seed_compat::perplexity(&by_text))
    }
}
