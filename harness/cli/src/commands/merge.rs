//! `karat merge`: an adapter folded into its model's weights.

use karat::backend::{Capability, OpenConfig};
use karat::{Error, Result};
use serde_json::json;

use crate::args::{Global, MergeArgs};
use crate::host::Opening;
use crate::output::Output;

pub fn run(args: &MergeArgs, global: &Global, output: &Output) -> Result<u8> {
    if args.out.exists() {
        return Err(Error::usage("there is something here already; nothing was merged")
            .at(args.out.display())
            .help("give --out a new folder"));
    }
    let Opening { backend, config } = Opening::new(&args.model, args.adapter.as_deref(), &args.open, global)?;
    if config.adapter.is_none() {
        return Err(Error::usage("there is no adapter to merge")
            .at(args.model.display())
            .help("add --adapter DIR, or give the adapter's folder as --model"));
    }
    if !backend.backend.describe().capabilities.contains(&Capability::Merge) {
        return Err(Error::backend(format!("backend {} does not merge adapters", args.open.backend()))
            .help("leave out --backend to merge with candle"));
    }
    let out = std::path::absolute(&args.out).map_err(|e| Error::io("resolve", &args.out, e))?;
    let open = OpenConfig { merge_into: Some(out.clone()), ..config };
    let info = backend.open(&open)?.info();
    let text = format!("{}\n{} parameters, {}\n", out.display(), info.parameters, info.dtype);
    output.result(&json!({"folder": out, "parameters": info.parameters, "dtype": info.dtype}), &text)?;
    Ok(0)
}
