//! Experiment trackers: TensorBoard's event files, SwanLab's offline run folder and runs on an MLflow
//! server, written while a model trains, or afterwards from Karat's own log by the same code.
//!
//! ```text
//! notices of a run -> Tags (names, rates) -> entries -> bounded queue, thread -> event file
//!                                                                             -> run folder
//!                                                    -> bounded queue, thread -> server
//! ```
//!
//! Each model has a run of its own, so that curves of base, LoRA and full lie over each other. Files
//! need no account, no network and no Python; they are uploaded by the tracker's own tool. A tracker that fails is left out with one warning, and the run goes on.
//!
//! ```text
//! RUN/track/tensorboard/lora/events.out.tfevents.<second>.<host>.<pid>.0.karat
//! RUN/track/swanlab/lora/run-<time>-<id>/run-<id>.swanlab, files/config.yaml, media/text/
//! RUN/track/mlflow/lora/run.json
//! ```
//!
//! Trackers are no part of an experiment: nothing of them is in a fingerprint or a report.

mod entry;
mod export;
mod feed;
#[cfg(feature = "hub")]
mod mlflow;
mod queue;
mod settings;
mod sink;
mod swanlab;
mod tags;
mod tensorboard;
mod wire;
mod yaml;

#[cfg(test)]
mod reader;
#[cfg(test)]
mod tests;

use std::path::Path;

use serde::{Deserialize, Serialize};

pub use export::{Tracked, export};
pub use feed::{Follower, Tracking};
pub use sink::{Origin, Title};
pub use tags::Extent;

/// Where a browser shows the run of a model on a server; none where its folder names none.
pub fn page(of_model: &Path) -> Option<String> {
    let stored: serde_json::Value = crate::fsio::read_json(&of_model.join("run.json")).ok()?;
    stored["page"].as_str().map(String::from)
}

/// A tracker that can be written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum TrackerName {
    /// Event files.
    TensorBoard,
    /// An offline run folder.
    SwanLab,
    /// A server.
    MlFlow,
}

impl TrackerName {
    /// All of them.
    pub const ALL: [TrackerName; 3] = [TrackerName::TensorBoard, TrackerName::SwanLab, TrackerName::MlFlow];

    /// As it is written in a suite.
    pub fn name(self) -> &'static str {
        match self {
            TrackerName::TensorBoard => "tensorboard",
            TrackerName::SwanLab => "swanlab",
            TrackerName::MlFlow => "mlflow",
        }
    }

    /// As its makers write it.
    pub fn title(self) -> &'static str {
        match self {
            TrackerName::TensorBoard => "TensorBoard",
            TrackerName::SwanLab => "SwanLab",
            TrackerName::MlFlow => "MLflow",
        }
    }
}

impl TryFrom<String> for TrackerName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let known = Self::ALL.map(Self::name).join(", ");
        Self::ALL.into_iter().find(|tracker| tracker.name() == name).ok_or_else(|| {
            let others = match name.as_str() {
                "wandb" | "trackio" | "comet" | "neptune" => ", whose files other trackers import",
                _ => "",
            };
            format!("there is no tracker {name:?}; known are {known}{others}")
        })
    }
}

impl From<TrackerName> for String {
    fn from(tracker: TrackerName) -> String {
        tracker.name().into()
    }
}
