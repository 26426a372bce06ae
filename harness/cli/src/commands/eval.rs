//! `karat eval`: one model on a suite's held-out items.

use karat::Result;
use karat::run::{Brought, evaluate_brought};

use super::run::{interrupted, load_suite, print, run_folder};
use crate::args::{EvalArgs, Global};
use crate::host::{Plugins, cancel_on_interrupt};
use crate::output::Output;
use crate::progress::Progress;

pub fn run(args: &EvalArgs, global: &Global, output: &Output) -> Result<u8> {
    let suite = load_suite(&args.suite)?;
    let default = std::path::Path::new("runs").join(format!("{}-{}", suite.name, args.name));
    let folder = run_folder(&suite, Some(args.out.as_deref().unwrap_or(&default)))?;
    let plugins = Plugins::new(global)?;
    let cancel = cancel_on_interrupt()?;
    let mut progress = Progress::new(output);
    let model = args.model.clone().unwrap_or_else(|| suite.model.base.clone());
    let brought = Brought { name: args.name.clone(), model, adapter: args.adapter.clone() };
    let report = evaluate_brought(&suite, brought, &folder, &plugins, &mut progress, &cancel)
        .map_err(|e| interrupted(e, &folder))?;
    drop(progress);
    print(&report, &folder, output)?;
    Ok(0)
}
