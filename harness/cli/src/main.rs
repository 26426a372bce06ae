//! The command line of Karat: what was typed becomes what it means once, in [`args`]; each command
//! is one file.

mod args;
mod commands;
#[cfg(feature = "hub")]
mod downloads;
mod host;
mod hub;
mod output;
mod progress;
mod signals;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = match args::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return output::usage_error(error),
    };
    let output = output::Output::new(cli.global.json, cli.global.quiet);
    signals::name_files_that_shrink(output.json());
    match commands::dispatch(cli, &output) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            output.error(&error);
            ExitCode::from(signals::exit_code(&error))
        }
    }
}
