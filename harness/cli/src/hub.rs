//! Ids of the hubs on the command line: brought to this machine before a command begins, so that
//! each command sees paths. The one place that knows which arguments name models and data.

use std::collections::BTreeMap;
use std::path::PathBuf;

use karat::Result;
use karat::hub::{Place, Source, bring, short};

use crate::args::{Command, Global};
use crate::output::Output;

/// The arguments of a command that name a model or data, each with its flag.
fn named(command: &mut Command) -> Vec<(&'static str, Place, &mut PathBuf)> {
    const TRAIN: Place = Place::Data("train");
    let mut all: Vec<(&'static str, Place, Option<&mut PathBuf>)> = Vec::new();
    match command {
        Command::Train(args) => {
            all.push(("--model", Place::Model, Some(&mut args.model)));
            all.push(("--data", TRAIN, Some(&mut args.data)));
            all.push(("--eval-data", Place::Data("validation"), args.eval_data.as_mut()));
            all.push(("--init-adapter", Place::Model, args.init_adapter.as_mut()));
        }
        Command::Score(args) => model(&mut all, &mut args.model),
        Command::Generate(args) => model(&mut all, &mut args.model),
        Command::Export(args) => all.push(("--model", Place::Model, Some(&mut args.model))),
        Command::Eval(args) => {
            all.push(("--model", Place::Model, args.model.as_mut()));
            all.push(("--adapter", Place::Model, args.adapter.as_mut()));
        }
        Command::Compare(args) => {
            all.push(("--model", Place::Model, args.parity.model.as_mut()));
            all.push(("--adapter", Place::Model, args.parity.adapter.as_mut()));
        }
        Command::Report(args) => {
            all.push(("--base-model", Place::Model, args.base_model.as_mut()));
            all.push(("--finetuned-model", Place::Model, args.finetuned_model.as_mut()));
            all.push(("--finetuned-adapter", Place::Model, args.finetuned_adapter.as_mut()));
        }
        Command::Watch(args) => all.push(("--adapter-base", Place::Model, args.adapter_base.as_mut())),
        Command::Merge(args) => {
            all.push(("--model", Place::Model, Some(&mut args.model)));
            all.push(("--adapter", Place::Model, args.adapter.as_mut()));
        }
        Command::Import(args) => all.push(("--gguf", Place::Model, Some(&mut args.gguf))),
        Command::Doctor(args) => {
            all.push(("--model", Place::Model, args.model.as_mut()));
            all.push(("--adapter", Place::Model, args.adapter.as_mut()));
        }
        _ => {}
    }
    all.into_iter().filter_map(|(flag, place, path)| Some((flag, place, path?))).collect()
}

fn model<'a>(all: &mut Vec<(&'static str, Place, Option<&'a mut PathBuf>)>, args: &'a mut crate::args::ModelArgs) {
    all.push(("--model", Place::Model, Some(&mut args.model)));
    all.push(("--adapter", Place::Model, args.adapter.as_mut()));
}

/// Brings what the arguments name; gives where each came from.
///
/// # Errors
/// As [`bring`].
pub fn bring_named(command: &mut Command, global: &Global, output: &Output) -> Result<Vec<Source>> {
    allow(global, output)?;
    let pins = BTreeMap::new();
    let mut sources = Vec::new();
    for (flag, place, path) in named(command) {
        sources.extend(bring(flag, path, place, &pins)?);
    }
    if let Command::Export(args) = command {
        for adapter in &mut args.adapter {
            let (name, path) = match adapter.split_once('=') {
                Some((name, path)) => (Some(name.to_string()), path),
                None => (None, adapter.as_str()),
            };
            let mut path = PathBuf::from(path);
            if let Some(source) = bring("--adapter", &mut path, Place::Model, &pins)? {
                // Without a name the repository's: a snapshot's folder is called by its commit.
                let repo = source.repository().rsplit('/').next().unwrap_or_default().replace('@', "-");
                *adapter = format!("{}={}", name.unwrap_or(repo), path.display());
                sources.push(source);
            }
        }
    }
    say_sources(&sources, &pins, output);
    Ok(sources)
}

/// Says what ids meant, and under which licence; `began` are the states that an earlier run noted.
pub fn say_sources(sources: &[Source], began: &BTreeMap<String, String>, output: &Output) {
    for source in sources {
        let licence = source.licence.as_ref().map_or_else(String::new, |licence| format!(", licence {licence}"));
        let as_begun = match began.get(&source.pin()) == Some(&source.state) && source.revision != source.state {
            true => format!(", as when this run began (--fresh takes what {} means now)", source.revision),
            false => String::new(),
        };
        let state = short(&source.state);
        output.say(format!("{}: {} ({}) = {state}{licence}{as_begun}", source.key, source.id, source.revision));
    }
}

#[cfg(not(feature = "hub"))]
fn allow(_: &Global, _: &Output) -> Result<()> {
    Ok(())
}

#[cfg(feature = "hub")]
fn allow(global: &Global, output: &Output) -> Result<()> {
    use std::sync::Arc;
    let progress = crate::downloads::Downloads::new(output, false)?;
    let mut settings = karat::hub::client::Settings::from_env();
    settings.offline |= global.offline;
    karat::hub::allow(karat::hub::Access { settings, progress: Arc::new(progress) });
    Ok(())
}
