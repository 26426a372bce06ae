//! `karat merge`: an adapter folded into its model's weights.

use karat::backend::{Capability, OpenConfig};
use karat::run::{Backends, opening_warnings};
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
    let out = std::path::absolute(&args.out).map_err(|e| Error::io("resolve", &args.out, e))?;
    let open = OpenConfig {
        adapter: Some(args.adapter.clone()),
        merge_into: Some(out.clone()),
        ..OpenConfig::new(&args.model)
    };
    let info = backend.open(&open)?.info();
    opening_warnings(&open, &info).iter().for_each(|w| output.say(format!("warning: {w}")));
    let text = format!("{}\n{} parameters, {}\n", out.display(), info.parameters, info.dtype);
    output.result(&json!({"folder": out, "parameters": info.parameters, "dtype": info.dtype}), &text)?;
    Ok(0)
}
