//! **What did fine-tuning do to this model?** Karat trains a base model into a LoRA and a
//! full-parameter checkpoint, measures all three on the same items and writes reports that a test
//! can hold on to.
//!
//! ```no_run
//! use karat::run::{Backends, Cancel, LoadedBackend, Notice, Origin, run};
//! use karat::{plugin, suite::Suite};
//! use std::{path::Path, sync::Arc};
//!
//! struct Plugins;
//! impl Backends for Plugins {
//!     fn backend(&self, name: &str) -> karat::Result<LoadedBackend> {
//!         let plugin = plugin::find(name, &plugin::Search::from_env())?;
//!         let origin = Origin { path: Some(plugin.path().into()), sha256: Some(plugin.sha256().into()) };
//!         Ok(LoadedBackend { backend: Arc::new(plugin), origin })
//!     }
//! }
//!
//! # fn main() -> karat::Result<()> {
//! let suite = Suite::load("medical-r1", &[])?;
//! let mut watch = |_: Notice<'_>| {};
//! let report = run(&suite, Path::new("runs/medical-r1"), &Plugins, &mut watch, &Cancel::new())?;
//! println!("{}", karat::report::markdown::results_block(&report));
//! # Ok(())
//! # }
//! ```
//!
//! # The words
//!
//! A **suite** ([`suite`]) is one TOML file that says everything about an experiment: the data, the
//! base model, how LoRA and full are trained, what is measured. Models and data may be named by an
//! id of a hub ([`hub`]): `hf:Qwen/Qwen3-0.6B`.
//!
//! A **backend** ([`backend`], the crate `karat-backend`) is a library of model code. It sees token
//! ids, never text: tokenizing, chat template, truncation, loss mask, the order of batches, the
//! schedule and every seed are decided here, on the host's side, and handed over as data. That is
//! why two backends given the same plan can be compared number by number. A **session** is one
//! model on one device, opened by a backend; it offers an [`Evaluator`](backend::Evaluator) (score,
//! generate), a [`Trainer`](backend::Trainer), or both. Backends are shared libraries behind a C
//! table ([`abi`]), found and loaded at run time ([`plugin`]); what each must satisfy is a suite of
//! checks ([`conformance`]). This crate links no ML framework.
//!
//! A **run** ([`mod@run`]) carries out a suite in a folder. Its stages are data, training,
//! evaluation and report; each is keyed by a digest of its inputs, so that running again reuses
//! what is unchanged, goes on where it was interrupted, and does the rest. Predictions are appended
//! as they are complete: a crash loses at most what was in flight.
//!
//! A **report** ([`report`]) is data first: JSON with sorted keys and a schema version, everything
//! volatile under `environment`. Markdown, the HTML page, the plots and README tables are pure
//! functions of it. A difference between two models comes with its paired uncertainty
//! ([`eval::stats`]); a gate ([`report::gate`]) says pass, regress or inconclusive.
//!
//! # The way of a run
//!
//! ```text
//! suite.toml -> data: records -> audit -> split -> chat template -> token ids + loss mask        (data, run::prepare)
//!            -> train plan: batches in order, schedule -> Trainer -> checkpoints (HF / PEFT)      (train, run::train)
//!            -> base, lora, full: score the references, generate -> stored rows                   (run::evaluate)
//!            -> metrics per item -> paired statistics -> report.json -> md, html, svg, README     (eval, report)
//! ```
//!
//! # What is stored
//!
//! ```text
//! runs/NAME/suite.toml                     the effective suite: defaults, file and overrides
//!           data.json                      the audit: duplicates, leaks, lengths, bad lines
//!           train/lora-<key>/              events.jsonl, checkpoint-N/, done.json; training.json has the settings by name and
//!                                          the digest of every file of the checkpoints
//!           train/full-<key>/
//!           eval/base-<key>/               scores.jsonl, effort.json; the key is over all that decides a number
//!           eval/base-<key>/decode-<key>/  predictions.jsonl, effort.json; the key is over the decode settings too
//!           results/base.json ...          one model's part of the report, enough to make it again without the model
//!           track/                         what trackers read, one folder each (track)
//!           report/                        report.json, report.md, report.html, items.csv, metrics.svg, curves.svg
//! ```
//!
//! # Errors
//!
//! Everything returns [`Error`]: what, where, what to do. Its kind decides the exit code of the
//! command line ([`ErrorKind::exit_code`]).

mod calendar;
pub mod data;
pub mod escape;
pub mod eval;
pub mod hub;
pub mod import;
pub mod model_dir;
mod nearest;
pub mod plugin;
pub mod report;
pub mod run;
pub mod suite;
pub mod track;
pub mod train;
pub mod watch;

pub use karat_backend as backend;
pub use karat_backend::{abi, conformance};
pub use karat_system::{Error, ErrorKind, Result, error, exit, fsio, memory};
pub use nearest::nearest;
pub use report::gate;
