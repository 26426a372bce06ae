//! Exports a checkpoint to ONNX: `karat-tools onnx-export model=DIR out=DIR [adapter=DIR]`.

use std::path::Path;

use karat_onnxruntime::export::{Request, export_to, unheard};

use crate::Done;
use crate::args::Args;

/// Exports, and prints where to.
pub fn run(args: &Args) -> Done {
    let (model, out) = (Path::new(args.needed("model")?), Path::new(args.needed("out")?));
    let request = Request::new(model).merging(args.get("adapter").map(Path::new));
    let exported = export_to(&request, out, &mut unheard)?;
    println!("{}: {} parameters", exported.folder.display(), exported.manifest.parameters);
    Ok(())
}
