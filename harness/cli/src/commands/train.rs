//! `karat train`: one model, outside a suite.

use std::collections::BTreeMap;
use std::path::Path;

use clap::ValueEnum;
use karat::backend::{Capability, Method, OpenConfig, TrainPlan, Weights};
use karat::data::companions;
use karat::data::examples::{FormatOptions, Formatter, LabelledRows, OutputFormat};
use karat::data::fields::{Fields, Reading};
use karat::data::files::{self, Found, Part};
use karat::data::format::{Format, Preference};
use karat::data::notes;
use karat::data::pretraining::{read_ids_jsonl, read_texts_of, text_examples};
use karat::data::record::BadRow;
use karat::data::template::ChatTemplate;
use karat::data::tokens::Tokenizer;
use karat::model_dir::{adapter_folder, base_to_train, given};
use karat::run::{Base, TrainJob, adapter_config, plan, start_from_adapter, train};
use karat::suite::{Hyperparameters, LoraTrain, limits, parse_setting};
use karat::track::{Follower, Tracking};
use karat::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::rows::say_bad;
use crate::args::{ComputeArgs, ComputeDtype, Global, MethodArg, OpenArgs, TrainArgs};
use crate::host::{Plugins, backend, cancel_on_interrupt, computed, element};
use crate::output::Output;
use crate::progress::Progress;

/// What `--set` reaches besides the hyperparameters and the adapter: `data.max_length`,
/// `data.system`, `model.dtype` ...
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    data: FormatOptions,
    fields: Fields,
    model: Computing,
    lora: LoraTrain,
}

/// What computes, under a suite's names; each has a flag too.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Computing {
    backend: Option<String>,
    device: Option<String>,
    dtype: Option<String>,
    threads: Option<u64>,
    options: BTreeMap<String, Value>,
}

impl Computing {
    /// These settings and the flags; what both say is an error.
    fn with(self, flags: &OpenArgs) -> Result<OpenArgs> {
        fn one<T>(key: &str, set: Option<T>, flag: Option<T>) -> Result<Option<T>> {
            match (set, flag) {
                (Some(_), Some(_)) => Err(Error::usage(format!("model.{key} is given twice: as --set and as --{key}"))),
                (set, flag) => Ok(set.or(flag)),
            }
        }
        let wrong = |key: &str, why: String| Error::usage(format!("model.{key}: {why}")).at("--set");
        let dtype = self.dtype.map(|name| ComputeDtype::from_str(&name, false)).transpose().map_err(|_| {
            let known: Vec<String> = ComputeDtype::value_variants()
                .iter()
                .filter_map(|v| Some(v.to_possible_value()?.get_name().into()))
                .collect();
            wrong("dtype", format!("it must be one of {}", known.join(", ")))
        })?;
        let threads = self.threads.map(limits::threads).transpose().map_err(|why| wrong("threads", why))?;
        let ComputeArgs { device, dtype: typed, option } = flags.compute.clone();
        Ok(OpenArgs {
            backend: one("backend", self.backend, flags.backend.clone())?,
            threads: one("threads", threads, flags.threads)?,
            compute: ComputeArgs {
                device: one("device", self.device, device)?,
                dtype: one("dtype", dtype, typed)?,
                option: self.options.into_iter().chain(option).collect(),
            },
        })
    }
}

impl Default for Settings {
    fn default() -> Self {
        let data = FormatOptions { output: OutputFormat::Template, ..FormatOptions::default() };
        Settings { data, fields: Fields::default(), model: Computing::default(), lora: LoraTrain::default() }
    }
}

pub fn run(args: &TrainArgs, global: &Global, output: &Output) -> Result<u8> {
    if args.init_adapter.is_some() && args.method == MethodArg::Full {
        return Err(Error::usage("--init-adapter is for --method lora"));
    }
    if args.from_scratch && args.method == MethodArg::Lora {
        return Err(Error::usage("--from-scratch trains all parameters").help("add --method full"));
    }
    base_to_train(&args.model)?;
    args.init_adapter.as_deref().map_or(Ok(()), adapter_folder)?;
    files::found(&args.data, Part::Train)?;
    args.eval_data.iter().try_for_each(|path| files::found(path, Part::Validation).map(drop))?;
    let mut settings = settings(args)?;
    let flags = std::mem::take(&mut settings.model).with(&args.open)?;
    let able = match args.method {
        MethodArg::Full => Capability::TrainFull,
        MethodArg::Lora => Capability::TrainLora,
    };
    let backend = backend(&flags, &args.model, &[able], &Plugins::new(global)?, output)?;
    if !backend.backend.describe().capabilities.contains(&able) {
        return Err(Error::backend(format!("backend {} cannot train this", flags.backend()))
            .help("leave out --backend to train with native; `karat backends` says what each can"));
    }
    if let Some(Err(few)) = flags.compute.dtype.map(element) {
        return Err(Error::usage(format!("--dtype {few} is for evaluation; nothing is trained in {few}"))
            .help("train in f32 or bf16, then evaluate with --backend onnxruntime --dtype ".to_string() + few));
    }
    let open = OpenConfig {
        weights: if args.from_scratch { Weights::Random } else { Weights::Load },
        threads: flags.threads.unwrap_or(0),
        seed: args.seed,
        ..OpenConfig::new(&args.model)
    };
    let open = computed(open, &flags.compute, &backend)?;
    let train_rows = rows(args, &settings, (&args.data, Part::Train), output)?;
    let eval_rows = match &args.eval_data {
        Some(path) => rows(args, &settings, (path, Part::Validation), output)?,
        None => LabelledRows::default(),
    };
    let mut hyperparameters: Hyperparameters = settings.lora.hyperparameters.clone();
    hyperparameters.shuffle &= !args.no_shuffle;
    let method = match args.method {
        MethodArg::Full => Method::Full,
        MethodArg::Lora => Method::Lora(settings.lora.adapter.clone()),
    };
    let run = std::path::absolute(&args.out).map_err(|e| Error::io("resolve", &args.out, e))?;
    let base = Base::of(open)?;
    let mut plan: TrainPlan = plan(&train_rows, &eval_rows, method, &hyperparameters, args.seed, &backend, &base)?;
    plan.output_dir.clone_from(&run);
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
    let job = TrainJob { name, backend: &backend, base, train: &train_rows, eval: &eval_rows, plan };
    let tracking = Tracking { to: args.track.iter().map(|&tracker| tracker.into()).collect(), ..Tracking::new(&run) };
    let mut follower = Follower::new(&mut progress, tracking)?;
    let trained = train(job, &mut follower, &cancel);
    follower.end(&trained);
    let trained = trained?;
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

/// Settings after `--set`: `KEY` is a hyperparameter or an adapter's key, `data.KEY` and
/// `fields.KEY` say how rows are read, `model.KEY` what computes. An adapter that is trained on
/// brings its own configuration.
fn settings(args: &TrainArgs) -> Result<Settings> {
    let mut settings = Settings::default();
    if let Some(folder) = &args.init_adapter {
        given(folder)?;
        settings.lora.adapter = adapter_config(folder)?;
    }
    for assignment in &args.set {
        // One by one, so that an error can say which.
        let mut table = toml_table(&settings)?;
        parse_setting(&mut table, assignment)?;
        settings = table
            .try_into()
            .map_err(|e: toml::de::Error| Error::usage(format!("{assignment}: {}", e.message().trim())).at("--set"))?;
    }
    settings.lora.check("--set")?;
    Ok(settings)
}

fn toml_table(settings: &Settings) -> Result<toml::Table> {
    toml::Table::try_from(settings).map_err(|e| Error::failed("could not write the settings").because(e))
}

/// The rows of a file, in the form the flags name.
fn rows(args: &TrainArgs, settings: &Settings, (path, part): (&Path, Part), output: &Output) -> Result<LabelledRows> {
    let max_length = settings.data.max_length;
    let Found { files, note } = files::found(path, part)?;
    note.iter().for_each(|note| output.say(format!("warning: {note}")));
    if args.ids {
        let [file] = &files[..] else {
            return Err(Error::usage("--ids reads one file").at(path.display()).help("join the files, or name one"));
        };
        let read = read_ids_jsonl(file, args.strict)?;
        say_bad(&read.bad, output);
        return Ok(read.rows);
    }
    let tokenizer = Tokenizer::from_model_dir(&args.model)?;
    if args.text {
        let texts = read_texts_of(&files)?;
        let end = tokenizer
            .pad_id()
            .or(tokenizer.eos_id())
            .ok_or_else(|| Error::data("the tokenizer names no token that ends a text").at(args.model.display()))?;
        return text_examples(&tokenizer, texts.iter().map(String::as_str), max_length, end);
    }
    let options = &settings.data;
    let reading = Reading {
        format: args.format,
        preference: if args.chosen { Preference::Chosen } else { Preference::Refuse },
        train_on: options.train_on,
        strict: args.strict,
        ..Reading::new(&settings.fields, &options.think_tags)
    };
    let mut data = reading.read_files(&files)?;
    for file in data.files.iter().filter(|file| file.read_as != Format::Columns) {
        output.say(format!("{}: read as: {}", file.path, file.read_as));
    }
    for file in &data.files {
        if let Some(columns) = file.unread_columns() {
            output.say(format!("{}: columns that are not read: {columns}", file.path));
        }
    }
    let template = ChatTemplate::from_model_dir(&args.model)?;
    let formatter = Formatter::new(template, tokenizer, settings.data.clone())?;
    let examples = formatter.examples(&data.records)?;
    for bad in &examples.bad {
        let file = data.files[bad.file].path.clone();
        let row = BadRow { file, line: bad.line, reason: bad.reason.clone() };
        if args.strict {
            return Err(row.into());
        }
        data.bad.push(row);
    }
    let place = |row: &BadRow| data.files.iter().position(|file| file.path == row.file);
    data.bad.sort_by_key(|row| (place(row), row.line));
    say_bad(&data.bad, output);
    if !examples.truncated.is_empty() {
        output.say(format!("{} examples were cut to {max_length} tokens", examples.truncated.len()));
    }
    if !examples.dropped.is_empty() {
        let dropped = examples.dropped.len();
        output.say(format!("{dropped} examples were dropped: no token of their answers lies within {max_length}"));
    }
    let with_think = data.records.iter().filter(|record| !record.think.trim().is_empty()).count();
    let notes = [
        notes::written(&[("rows", examples.written.len())], &options.think_tags),
        notes::left_out(options.reasoning, with_think),
        notes::stray(&data.records, &options.think_tags),
        notes::earlier_weights(data.earlier_weights),
    ];
    for note in notes.into_iter().flatten() {
        output.say(format!("warning: {}", note.english));
    }
    Ok(examples.rows())
}
