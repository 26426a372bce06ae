//! The report: data first, pages as pure functions of it.
//!
//! [`build`] turns what a run left ([`Inputs`]) into a [`Report`], which is `report.json`. From the report alone come
//! the Markdown ([`markdown`]), the page ([`html`]), the plots ([`plot`]), the table of items ([`csv`]) and the blocks of a
//! README ([`splice`]); [`write()`] puts them in a folder. The same report gives the same bytes.

mod build;
pub mod compare;
pub mod csv;
mod diff;
mod facts;
pub mod gate;
pub mod html;
pub mod junit;
pub mod markdown;
mod model;
mod number;
pub mod plot;
mod significance;
pub mod splice;
mod tables;
mod text;
mod warning;
mod words;
mod write;

pub use build::{Inputs, MetricInfo, ModelRun, Pooled, TrainingRecord, build};
pub use model::*;
pub use warning::Warning;
pub use write::{REPORT_JSON, write};
