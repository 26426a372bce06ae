//! One file a command.

mod backends;
mod cache;
mod check;
mod compare;
mod data;
mod doctor;
mod download;
mod eval;
mod export;
mod generate;
mod import;
mod merge;
mod metrics;
mod parity;
mod power;
mod report;
mod rows;
mod run;
mod score;
mod seed_compat;
mod track;
mod train;
mod watch;

use clap::CommandFactory;
use karat::{Error, Result};

use crate::args::{Cli, Command};
use crate::hub::bring_named;
use crate::output::Output;

/// Runs the command that was typed; the number is the exit code of a command that did what it
/// should.
pub fn dispatch(mut cli: Cli, output: &Output) -> Result<u8> {
    cli.global.sources = bring_named(&mut cli.command, &cli.global, output)?;
    let global = &cli.global;
    match cli.command {
        Command::Run(args) => run::run(&args, global, output),
        Command::Data(args) => data::run(&args, output),
        Command::Train(args) => train::run(&args, global, output),
        Command::Score(args) => score::run(&args, global, output),
        Command::Generate(args) => generate::run(&args, global, output),
        Command::Export(args) => export::run(&args, global, output),
        Command::Eval(args) => eval::run(&args, global, output),
        Command::Compare(args) => compare::run(&args, global, output),
        Command::Report(args) => report::run(&args, global, output),
        Command::Check(args) => check::run(&args, output),
        Command::Watch(args) => watch::run(&args, global, output),
        Command::Track(args) => track::run(&args, output),
        Command::Power(args) => power::run(&args, output),
        Command::Merge(args) => merge::run(&args, global, output),
        Command::Metrics(args) => metrics::run(&args, output),
        Command::Import(args) => import::run(&args, global, output),
        Command::Download(args) => download::run(&args, global, output),
        Command::Cache(args) => cache::run(&args, output),
        Command::Backends => backends::run(global, output),
        Command::Doctor(args) => doctor::run(&args, global, output),
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "karat", &mut text);
            output.data(&String::from_utf8_lossy(&text)).map(|()| 0)
        }
        Command::Man => {
            let mut text = Vec::new();
            clap_mangen::Man::new(Cli::command())
                .render(&mut text)
                .map_err(|e| Error::failed("could not render the manual page").because(e))?;
            output.data(&String::from_utf8_lossy(&text)).map(|()| 0)
        }
    }
}
