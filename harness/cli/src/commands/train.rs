//! `karat train`: one model, outside a suite.

use std::path::Path;

use karat::backend::{Method, OpenConfig, TrainPlan, Weights};
use karat::data::blocks::{read_ids_jsonl, read_texts, text_examples};
use karat::data::companions;
use karat::data::format::{FormatOptions, Formatter, LabelledRows, Output as OutputFormat};
use karat::data::record::{Fields, read_rows};
use karat::data::template::ChatTemplate;
use karat::data::tokens::Tokenizer;
use karat::run::{Backends, TrainJob, plan, start_from_adapter, train};
use karat::suite::{Hyperparameters, LoraTrain, parse_setting};
use karat::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::args::{Global, MethodArg, TrainArgs};
use crate::host::{Plugins, cancel_on_interrupt};
use crate::output::Output;
use crate::progress::Progress;

/// What `--set` reaches besides the hyperparameters and the adapter: `data.max_length`, `data.system` ...
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    data: FormatOptions,
    fields: Fields,
    lora: LoraTrain,
}

impl Default for Settings {
    fn default() -> Self {
        let data = FormatOptions { output: OutputFormat::Template, ..FormatOptions::default() };
        Settings { data, fields: Fields::default(), lora: LoraTrain::default() }
    }
}

pub fn run(args: &TrainArgs, global: &Global, output: &Output) -> Result<u8> {
    let settings = settings(args)?;
    let train_rows = rows(args, &settings, &args.data, output)?;
    let eval_rows = match &args.eval_data {
        Some(path) => rows(args, &settings, path, output)?,
        None => LabelledRows::default(),
    };
    let mut hyperparameters: Hyperparameters = settings.lora.hyperparameters.clone();
    hyperparameters.shuffle &= !args.no_shuffle;
    if args.init_adapter.is_some() && args.method == MethodArg::Full {
        return Err(Error::usage("--init-adapter is for --method lora"));
    }
    if args.from_scratch && args.method == MethodArg::Lora {
        return Err(Error::usage("--from-scratch trains all parameters").help("add --method full"));
    }
    let method = match args.method {
        MethodArg::Full => Method::Full,
        MethodArg::Lora => Method::Lora(settings.lora.adapter.clone()),
    };
    let backend = Plugins::new(global)?.backend(&args.backend)?;
    let open = OpenConfig {
        weights: if args.from_scratch { Weights::Random } else { Weights::Load },
        device: args.device.clone(),
        threads: args.threads,
        seed: args.seed,
        ..OpenConfig::new(&args.model)
    };
    let out = std::path::absolute(&args.out).map_err(|e| Error::io("resolve", &args.out, e))?;
    let mut plan: TrainPlan = plan(&train_rows, &eval_rows, method, &hyperparameters, args.seed, &backend, &open)?;
    plan.output_dir = out;
    if let Some(adapter) = &args.init_adapter {
        let own = companions::differences(&args.model, adapter)?;
        if !own.is_empty() && !args.ids {
            output.say(format!(
                "warning: the adapter has its own {}, which differs from the model's: rows are made with the model's",
                own.join(" and ")
            ));
        }
        start_from_adapter(&mut plan, adapter)?;
    }
    let name = if args.method == MethodArg::Full { "full" } else { "lora" };
    let cancel = cancel_on_interrupt()?;
    let mut progress = Progress::new(output);
    let job = TrainJob { name, backend: &backend, open, train: &train_rows, eval: &eval_rows, plan };
    let trained = train(job, &mut progress, &cancel)?;
    drop(progress);
    let last = trained.curves.steps.last();
    let best = trained.summary.best_checkpoint.as_ref().map(|p| args.out.join(p));
    let object = json!({
        "checkpoint": args.out.join(&trained.summary.last_checkpoint),
        "best_checkpoint": best,
        "steps": trained.summary.steps,
        "loss": last.map(|s| s.loss),
        "eval_loss": trained.curves.evaluations.last().map(|e| e.loss),
        "trainable_parameters": trained.summary.trainable_parameters,
        "tokens": trained.summary.tokens,
        "seconds": trained.summary.seconds,
        "peak_memory": trained.summary.peak_memory,
    });
    let mut text = format!("{}\n", args.out.join(&trained.summary.last_checkpoint).display());
    if let Some(best) = best.filter(|b| *b != args.out.join(&trained.summary.last_checkpoint)) {
        text.push_str(&format!("best by evaluation loss: {}\n", best.display()));
    }
    output.result(&object, &text)?;
    Ok(0)
}

/// Settings after `--set`: `KEY` is a hyperparameter or an adapter's key, `data.KEY` and `fields.KEY` say how rows are read.
fn settings(args: &TrainArgs) -> Result<Settings> {
    let broken = |e: &dyn std::fmt::Display| Error::usage(format!("--set: {e}"));
    let mut table = toml_table(&Settings::default())?;
    for assignment in &args.set {
        parse_setting(&mut table, assignment)?;
    }
    let settings: Settings = table.try_into().map_err(|e: toml::de::Error| broken(&e.message().trim()))?;
    settings.lora.check("set")?;
    Ok(settings)
}

fn toml_table(settings: &Settings) -> Result<toml::Table> {
    toml::Table::try_from(settings).map_err(|e| Error::failed("could not write the settings").because(e))
}

/// The rows of a file, in the form the flags name.
fn rows(args: &TrainArgs, settings: &Settings, path: &Path, output: &Output) -> Result<LabelledRows> {
    let max_length = settings.data.max_length;
    let report_bad = |bad: &[karat::data::record::BadRow]| {
        for row in bad.iter().take(10) {
            output.say(format!("warning: {}:{}: {}", row.file, row.line, row.reason));
        }
        if !bad.is_empty() {
            output.say(format!("warning: {} bad lines left out; --strict makes them an error", bad.len()));
        }
    };
    if args.ids {
        let read = read_ids_jsonl(path, args.strict)?;
        report_bad(&read.bad);
        return Ok(read.rows);
    }
    let tokenizer = Tokenizer::from_model_dir(&args.model)?;
    if args.text {
        let texts = read_texts(path)?;
        let end = tokenizer
            .pad_id()
            .or(tokenizer.eos_id())
            .ok_or_else(|| Error::data("the tokenizer names no token that ends a text").at(args.model.display()))?;
        return text_examples(&tokenizer, texts.iter().map(String::as_str), max_length, end);
    }
    let data = read_rows(path, &settings.fields, args.strict)?;
    report_bad(&data.bad);
    let template = ChatTemplate::from_model_dir(&args.model)?;
    let formatter = Formatter::new(template, tokenizer, settings.data.clone())?;
    let examples = formatter.examples(&data.records)?;
    if !examples.truncated.is_empty() {
        output.say(format!("{} examples were cut to {max_length} tokens", examples.truncated.len()));
    }
    Ok(examples.rows())
}
