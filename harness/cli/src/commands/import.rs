//! `karat import`: a model folder of a GGUF file.

use karat::backend::Dtype;
use karat::import::{ImportOptions, import_gguf};
use karat::model_dir::given_file;
use karat::{Error, Result};
use serde_json::json;

use crate::args::{DtypeArg, ImportArgs};
use crate::host::cancel_on_interrupt;
use crate::output::Output;
use crate::progress::Progress;

pub fn run(args: &ImportArgs, output: &Output) -> Result<u8> {
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
    let imported = import_gguf(&args.gguf, &args.out, options, &mut watch)?;
    drop(progress);
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
