//! Exports a checkpoint: `cargo run -p karat-onnxruntime --example export -- MODEL OUT [ADAPTER]`.

use std::path::Path;
use std::process::ExitCode;

use karat_onnxruntime::export::{Request, export_to, unheard};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (model, out, adapter) = match arguments.as_slice() {
        [model, out] => (model, out, None),
        [model, out, adapter] => (model, out, Some(Path::new(adapter))),
        _ => {
            eprintln!("usage: export MODEL OUT [ADAPTER]");
            return ExitCode::from(2);
        }
    };
    match export_to(&Request::new(Path::new(model)).merging(adapter), Path::new(out), &mut unheard) {
        Ok(exported) => {
            println!("{}: {} parameters", exported.folder.display(), exported.manifest.parameters);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
