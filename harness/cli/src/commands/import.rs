//! `karat import`: a model folder of a GGUF file.

use std::path::Path;

use karat::backend::{Backend, Capability, Dtype, OpenConfig};
use karat::import::{ImportOptions, import_gguf};
use karat::model_dir::given_file;
use karat::{Error, Result};
use serde_json::json;

use crate::args::{DtypeArg, Global, ImportArgs};
use crate::host::{Plugins, cancel_on_interrupt};
use crate::output::Output;
use crate::progress::Progress;

pub fn run(args: &ImportArgs, global: &Global, output: &Output) -> Result<u8> {
    let options = ImportOptions {
        dtype: match args.dtype {
            DtypeArg::F32 => Dtype::F32,
            DtypeArg::Bf16 => Dtype::Bf16,
            DtypeArg::F16 => Dtype::F16,
        },
        max_shard: args.max_shard,
    };
    given_file(&args.gguf)?;
    let cancel = cancel_on_interrupt()?;
    let mut progress = Progress::new(output);
    let mut watch = |done: u64, total: u64| {
        progress.show("import", done, total, "values".into());
        if cancel.requested() { Err(Error::interrupted().help("nothing was left behind")) } else { Ok(()) }
    };
    let mut imported = import_gguf(&args.gguf, &args.out, options, &mut watch)?;
    drop(progress);
    imported.notes.extend(no_backend_opens(&imported.folder, global)?);
    for note in &imported.notes {
        output.say(format!("warning: {note}"));
    }
    let types: Vec<String> = imported.source_types.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
    let text = format!(
        "{}\n{} {}, {:.1} M parameters, {} tokens; tensors: {}; written as {} in {} file{}\n",
        imported.folder.display(),
        imported.architecture,
        imported.name.as_deref().unwrap_or("without a name"),
        imported.parameters as f64 / 1e6,
        imported.tokens,
        types.join(", "),
        imported.dtype,
        imported.weight_files,
        if imported.weight_files == 1 { "" } else { "s" },
    );
    output.result(&json!(imported), &text)?;
    Ok(0)
}

/// What to say if no backend that is there can open the model in `folder`. Backends that export a
/// model before they open it are not asked: that would take as long as an export.
fn no_backend_opens(folder: &Path, global: &Global) -> Result<Option<String>> {
    let mut refused = Vec::new();
    for found in Plugins::new(global)?.list() {
        let Ok(plugin) = found.plugin else { continue };
        let described = plugin.descriptor();
        let (scores, exports) = (Capability::Score, Capability::Export);
        if described.model_families.is_empty()
            || !described.capabilities.contains(&scores)
            || described.capabilities.contains(&exports)
        {
            continue;
        }
        match plugin.open(&OpenConfig::new(folder)) {
            Ok(_) => return Ok(None),
            Err(error) => refused.push(format!("{}: {error}", found.name)),
        }
    }
    Ok((!refused.is_empty()).then(|| format!("no backend can open what was written: {}", refused.join("; "))))
}
