//! The schema of `report.json`. Everything else (Markdown, HTML, plots, README tables) is made from
//! this alone.
//!
//! Keys are sorted and floats are written in their shortest exact form, so that equal reports are
//! equal bytes. All that may differ between two equal runs (timings, memory, versions, paths) lives
//! under `environment`; a golden test drops that key ([`Report::without_environment`]) and compares
//! the rest. A value that is not a finite number is `null`.

mod adapter;
mod comparison;
mod damage;
mod environment;
mod flips;
mod general;
mod inputs;
mod items;
mod metric;
mod recommendation;
mod replicates;
mod samples;
mod training;
mod unknown;
mod warning;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::eval::stats::StatsOptions;

pub use adapter::{AdapterCheck, MergedCheck};
pub use comparison::{Comparison, MetricComparison, PairedTest, Verdict};
pub use environment::{Cost, Environment, PluginInfo};
pub use flips::{Divergence, FlipTable, FlippedItem, Token};
pub use general::General;
pub use inputs::{BadRow, Data, DataFile, Decoding, Fingerprints, Leak, SplitRule, Suite};
pub use items::{ExampleText, ItemExample, ItemRow, ItemValues};
pub use metric::{Direction, Metric, MetricValue};
pub use recommendation::{Floor, FloorState, Recommendation};
pub use replicates::{RecipeComparison, RecipeMetric};
pub use samples::{SampleValues, Samples};
pub use training::{CheckpointValues, ChosenBy, CurvePoint, Evaluation, Model, Role, Training};
pub use warning::Warning;

/// The version of the JSON this build writes and reads; raised even when a field is only added.
pub const SCHEMA_VERSION: u32 = 3;

/// The whole report of one run: one set of items, one or more models, compared in pairs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The language of its pages.
    pub language: Language,
    /// Which experiment this is.
    pub suite: Suite,
    /// Every seed of the run by purpose: `split`, `train`, `bootstrap`.
    pub seeds: BTreeMap<String, u64>,
    /// Hashes of what must be equal for two reports to be compared.
    pub fingerprints: Fingerprints,
    /// Where the items come from.
    pub data: Data,
    /// How texts were generated; none where nobody knows.
    pub decoding: Option<Decoding>,
    /// How intervals and p-values were drawn.
    pub statistics: StatsOptions,
    /// The models, in the order of the columns of every table.
    pub models: Vec<Model>,
    /// The metrics, in the order of the rows of every table.
    pub metrics: Vec<Metric>,
    /// Paired comparisons: every model against the baseline, full against LoRA, and those that the
    /// suite names.
    pub comparisons: Vec<Comparison>,
    /// What several answers to each item show, if there were several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples: Option<Samples>,
    /// Recipes that were trained with several seeds, compared over items and seeds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recipes: Vec<RecipeComparison>,
    /// Which model the suite's priorities speak for, if it has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recommendation: Option<Recommendation>,
    /// General text beside the target, if the suite has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub general: Option<General>,
    /// Items that changed sides, by comparison and metric; only where an item did.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flips: Vec<FlipTable>,
    /// The items of `flips` in full, those that became wrong first; at most
    /// [`Report::LISTED_FLIPS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flipped: Vec<FlippedItem>,
    /// Every item's values.
    pub items: Vec<ItemRow>,
    /// A few items in full.
    pub examples: Vec<ItemExample>,
    /// What a reader should know before believing a number.
    pub warnings: Vec<Warning>,
    /// Everything volatile.
    pub environment: Environment,
}

/// The language of a report's pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Language {
    /// English.
    #[default]
    #[serde(rename = "en")]
    English,
    /// Simplified Chinese.
    #[serde(rename = "zh")]
    Chinese,
}

impl Report {
    /// How many flipped items a report shows in full.
    pub const LISTED_FLIPS: usize = 300;

    /// The JSON text: sorted keys, two spaces, a final line break.
    ///
    /// # Errors
    /// If serde cannot represent it, which no report built here runs into.
    pub fn to_json(&self) -> Result<String> {
        let mut value =
            serde_json::to_value(self).map_err(|e| Error::failed("could not write the report as JSON").because(e))?;
        value.sort_all_objects();
        Ok(format!("{value:#}\n"))
    }

    /// Reads the JSON text; `place` (a file name) is for errors.
    ///
    /// # Errors
    /// Text that is no JSON, no report, or a report of another schema version; a value of a wrong
    /// type, two models, metrics or items of one name, numbers that cannot be, by their key.
    pub fn from_json(text: &str, place: &str) -> Result<Report> {
        let no_report = || {
            Error::data("this is no report: it is not JSON with a whole number `schema_version`")
                .at(place)
                .help("point at the report.json that `karat run` wrote")
        };
        let value: serde_json::Value = serde_json::from_str(text).map_err(|e| no_report().because(e))?;
        let found = value.get("schema_version").and_then(serde_json::Value::as_u64).ok_or_else(no_report)?;
        if found != u64::from(SCHEMA_VERSION) {
            let remedy = if found > u64::from(SCHEMA_VERSION) {
                "it was made by a newer karat: use that one to read it"
            } else {
                "it was made by an older karat: make it again with `karat run`"
            };
            return Err(Error::data(format!(
                "the report has schema version {found}, this karat reads version {SCHEMA_VERSION}"
            ))
            .at(place)
            .help(remedy));
        }
        let report: Report = serde_json::from_str(text).map_err(|e| {
            let key = damage::key_at(text, e.line(), e.column());
            let what = if key.is_empty() { String::new() } else { format!(" at `{key}`") };
            Error::data(format!("the report is damaged{what}"))
                .at(format!("{place}:{}:{}", e.line(), e.column()))
                .because(e)
        })?;
        damage::check(&report, place)?;
        Ok(report)
    }

    /// The same report without what is volatile: what a golden test compares and a README quotes.
    #[must_use]
    pub fn without_environment(&self) -> Report {
        Report { environment: Environment::default(), ..self.clone() }
    }

    /// The model of that name.
    pub fn model(&self, name: &str) -> Option<&Model> {
        self.models.iter().find(|m| m.name == name)
    }

    /// What the model of that name was asked.
    pub fn fingerprints_of(&self, name: &str) -> &Fingerprints {
        self.model(name).and_then(|model| model.fingerprints.as_ref()).unwrap_or(&self.fingerprints)
    }

    /// The model that the others are compared with.
    pub fn baseline(&self) -> Option<&Model> {
        let of = |role: Role| self.models.iter().find(|m| m.role == role);
        of(Role::Baseline).or(of(Role::Base))
    }

    /// The metric of that name.
    pub fn metric(&self, name: &str) -> Option<&Metric> {
        self.metrics.iter().find(|m| m.name == name)
    }

    /// The comparison of `candidate` with `baseline`.
    pub fn comparison(&self, baseline: &str, candidate: &str) -> Option<&Comparison> {
        self.comparisons.iter().find(|c| c.baseline == baseline && c.candidate == candidate)
    }

    /// The comparisons with the base model, or all where there is no base: the improvement columns
    /// of a table.
    pub fn against_base(&self) -> Vec<&Comparison> {
        self.against_base_of(&self.comparisons)
    }

    /// Those of `comparisons` that are with the base model.
    pub fn against_base_of<'a>(&self, comparisons: &'a [Comparison]) -> Vec<&'a Comparison> {
        let base = self.baseline();
        comparisons.iter().filter(|c| base.is_none_or(|b| b.name == c.baseline)).collect()
    }
}
