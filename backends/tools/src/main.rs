//! Measurements and checks of Karat's backends and metrics: one program, a subcommand each.
//!
//! `cargo run --release -p karat-tools -- COMMAND [key=value ...]`; what Python measures beside it
//! lies in `python/`.
//!
//! | command | measures or checks |
//! |---|---|
//! | `train` | training of a model folder, for `python/side_by_side.py` |
//! | `gradients` | the gradients of one batch, for `python/exactness.py` |
//! | `kernels` | GEMMs of layers by shape and mode, for `python/gemm_speed.py` |
//! | `speed` | training, scoring and generation of random weights |
//! | `backends` | the candle backend beside the native one |
//! | `gpu SECTION` | a GPU: `scripts/gpu-checks` of the native backend runs all sections |
//! | `onnx-export` | the export of a checkpoint |
//! | `onnx-worker` | ONNX Runtime, for `python/onnx_bench.py` |
//! | `metrics` | metrics beside the Python packages that they reproduce |
//! | `statistics` | what intervals, tests and gates keep of their promises, simulated: the table of `docs/statistics.md` |

mod args;
mod backends;
mod gpu;
mod gradients;
mod kernels;
mod metrics;
mod onnx_export;
mod onnx_worker;
mod plan;
mod speed;
mod statistics;
mod train;

use std::error::Error;
use std::process::ExitCode;

use args::Args;

/// The result of a command.
type Done = Result<(), Box<dyn Error>>;

fn run(mut words: impl Iterator<Item = String>) -> Done {
    let command = words.next().unwrap_or_default();
    match command.as_str() {
        "train" => train::run(&Args::read(words)?),
        "gradients" => gradients::run(&Args::read(words)?),
        "kernels" => kernels::run(&Args::read(words)?),
        "speed" => speed::run(&Args::read(words)?),
        "backends" => backends::run(&Args::read(words)?),
        "gpu" => {
            let section = words.next().unwrap_or_default();
            gpu::run(&section, &Args::read(words)?)
        }
        "onnx-export" => onnx_export::run(&Args::read(words)?),
        "onnx-worker" => onnx_worker::run(),
        "metrics" => metrics::run(&Args::read(words)?),
        "statistics" => statistics::run(&Args::read(words)?),
        other => Err(format!(
            "{other:?} is no command: train, gradients, kernels, speed, backends, gpu, onnx-export, onnx-worker, metrics \
             or statistics"
        )
        .into()),
    }
}

fn main() -> ExitCode {
    match run(std::env::args().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
