//! The report: data first, pages as pure functions of it.
//!
//! [`build`] turns what a run left ([`Inputs`]) into a [`Report`], which is `report.json`. From the
//! report alone come the Markdown ([`markdown`]), the page ([`html`]), the plots ([`plot`]), the
//! table of items ([`csv`]) and the blocks of a README ([`splice`]); [`write()`] puts them in a
//! folder. The same report gives the same bytes.

pub mod benchmark;
mod build;
pub mod compare;
pub mod csv;
mod determinism;
mod diff;
mod escape;
mod flips;
pub mod gate;
mod general;
pub mod html;
mod i18n;
mod inputs;
pub mod junit;
pub mod latex;
pub mod markdown;
mod model;
mod number;
pub mod plot;
mod provenance;
mod recommend;
mod replicates;
mod samples;
pub mod seed_compat;
mod significance;
pub mod splice;
mod tables;
pub mod timeline;
mod warning;
mod write;

pub use build::build;
pub use escape::legible;
pub use inputs::{CheckpointRecord, GeneralText, Inputs, MetricInfo, ModelRun, Pooled, TrainingRecord};
pub use model::*;
pub use recommend::Priorities;
pub use write::{REPORT_JSON, check_folder, write};

/// What a report does not cover, in one English sentence: models with items that they have no
/// result for, rows of the data that could not be used. None where everything was measured. Every
/// page begins with it.
pub fn coverage(report: &Report) -> Option<String> {
    i18n::sentences::coverage(report, Language::English).map(|text| legible(&text))
}
