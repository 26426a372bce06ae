//! `karat merge`: an adapter folded into its model's weights.

use karat::backend::{Capability, OpenConfig, TEMPORARY_MODEL};
use karat::data::companions;
use karat::fsio::{self, PassingFolder};
use karat::import::retype;
use karat::run::opening_warnings;
use karat::{Error, Result};
use serde_json::json;

use crate::args::{ComputeArgs, Global, MergeArgs, OpenArgs};
use crate::host::{Opening, element};
use crate::output::Output;

/// The merged model in the folder that passes.
const MERGED: &str = "merged";

pub fn run(args: &MergeArgs, global: &Global, output: &Output) -> Result<u8> {
    let out = fsio::new_folder(&args.out)?;
    // The type of what is written: what is added up is added in f32.
    let written = match args.open.compute.dtype.map(element) {
        None => None,
        Some(Ok(dtype)) => Some(dtype),
        Some(Err(few)) => {
            return Err(Error::usage(format!("--dtype {few}: weights are merged in f32, bf16 or f16"))
                .help(format!("merge first, then karat export --dtype {few}")));
        }
    };
    let open = OpenArgs { compute: ComputeArgs { dtype: None, ..args.open.compute.clone() }, ..args.open.clone() };
    let Opening { backend, config } = Opening::new(&args.model, args.adapter.as_deref(), &open, global, output)?;
    let adapter = config.adapter.clone().ok_or_else(|| {
        Error::usage("there is no adapter to merge")
            .at(args.model.display())
            .help("add --adapter DIR, or give the adapter's folder as --model")
    })?;
    if !backend.backend.describe().capabilities.contains(&Capability::Merge) {
        return Err(Error::backend(format!("backend {} does not merge adapters", args.open.backend()))
            .help("leave out --backend to merge with native"));
    }
    // Before anything is merged: a token without a row in the model cannot be carried over.
    let carried = companions::differences(&config.model, &adapter)?;
    // Half a result would be taken for one: it has its name once the weights have their type and
    // the tokenizer is there.
    let purpose = TEMPORARY_MODEL.trim_start_matches(fsio::PASSING).trim_end_matches('-');
    let passing = PassingFolder::beside(&out, purpose).map_err(|e| Error::io("create a folder beside", &out, e))?;
    let merged = passing.path().join(MERGED);
    let open = OpenConfig { merge_into: Some(merged.clone()), ..config };
    let info = backend.open(&open)?.info();
    let warnings = opening_warnings(&open, &info);
    warnings.iter().for_each(|w| output.say(format!("warning: {w}")));
    if let Some(dtype) = written {
        retype(&merged, dtype).map_err(|error| error.at(out.display()))?;
    }
    companions::carry_over(&carried, &open.model, &adapter, &merged)?;
    passing.publish_inside(MERGED, &out).map_err(|e| Error::io("name the folder", &out, e))?;
    let dtype = written.unwrap_or(info.dtype);
    let mut text = format!("{}\n{} parameters, {dtype}\n", out.display(), info.parameters);
    if !carried.is_empty() {
        text.push_str(&format!("with the adapter's own {}, which differs from the model's\n", carried.join(" and ")));
    }
    let object = json!({"folder": out, "parameters": info.parameters, "dtype": dtype, "from_adapter": carried,
        "warnings": warnings});
    output.result(&object, &text)?;
    Ok(0)
}
