//! `karat merge`: an adapter folded into its model's weights.

use karat::backend::{Capability, OpenConfig};
use karat::data::companions;
use karat::run::Backends;
use karat::{Error, Result};
use serde_json::json;

use crate::args::{Global, MergeArgs};
use crate::host::Plugins;
use crate::output::Output;

pub fn run(args: &MergeArgs, global: &Global, output: &Output) -> Result<u8> {
    if args.out.exists() {
        return Err(Error::usage("there is something here already; nothing was merged")
            .at(args.out.display())
            .help("give --out a new folder"));
    }
    let backend = Plugins::new(global)?.backend(&args.backend)?;
    if !backend.backend.describe().capabilities.contains(&Capability::Merge) {
        return Err(Error::backend(format!("backend {} does not merge adapters", args.backend))
            .help("leave out --backend to merge with candle"));
    }
    // Before anything is merged: a token without a row in the model cannot be carried over.
    companions::differences(&args.model, &args.adapter)?;
    let out = std::path::absolute(&args.out).map_err(|e| Error::io("resolve", &args.out, e))?;
    let open = OpenConfig {
        adapter: Some(args.adapter.clone()),
        merge_into: Some(out.clone()),
        ..OpenConfig::new(&args.model)
    };
    let info = backend.open(&open)?.info();
    let carried = companions::carry_over(&args.model, &args.adapter, &out)?;
    let mut text = format!("{}\n{} parameters, {}\n", out.display(), info.parameters, info.dtype);
    if !carried.is_empty() {
        text.push_str(&format!("with the adapter's own {}, which differs from the model's\n", carried.join(" and ")));
    }
    let object = json!({"folder": out, "parameters": info.parameters, "dtype": info.dtype, "from_adapter": carried});
    output.result(&object, &text)?;
    Ok(0)
}
