//! Experiment trackers: TensorBoard's event files and SwanLab's offline run folder, written while a
//! model trains, or afterwards from Karat's own log by the same code.
//!
//! ```text
//! notices of a run -> Tags (names, rates) -> entries -> one bounded queue, one thread -> event file
//!                                                                                    -> run folder
//! ```
//!
//! Each model has files of its own, so that curves of base, LoRA and full lie over each other. No
//! account, no network and no Python are needed; what is uploaded is uploaded by the tracker's own
//! tool. A tracker that fails is left out with one warning, and the run goes on.
//!
//! ```text
//! RUN/track/tensorboard/lora/events.out.tfevents.<second>.<host>.<pid>.0.karat
//! RUN/track/swanlab/lora/run-<time>-<id>/run-<id>.swanlab, files/config.yaml, media/text/
//! ```
//!
//! Trackers are no part of an experiment: nothing of them is in a fingerprint or a report.

mod entry;
mod export;
mod feed;
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

use serde::{Deserialize, Serialize};

pub use export::{Tracked, export};
pub use feed::{Follower, Tracking};
pub use sink::{Origin, Title};
pub use tags::Extent;

/// A tracker that can be written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum TrackerName {
    /// Event files.
    TensorBoard,
    /// An offline run folder.
    SwanLab,
}

impl TrackerName {
    /// All of them.
    pub const ALL: [TrackerName; 2] = [TrackerName::TensorBoard, TrackerName::SwanLab];

    /// As it is written in a suite.
    pub fn name(self) -> &'static str {
        match self {
            TrackerName::TensorBoard => "tensorboard",
            TrackerName::SwanLab => "swanlab",
        }
    }

    /// As its makers write it.
    pub fn title(self) -> &'static str {
        match self {
            TrackerName::TensorBoard => "TensorBoard",
            TrackerName::SwanLab => "SwanLab",
        }
    }
}

impl TryFrom<String> for TrackerName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let known = Self::ALL.map(Self::name).join(", ");
        Self::ALL.into_iter().find(|tracker| tracker.name() == name).ok_or_else(|| {
            let others = match name.as_str() {
                "wandb" | "mlflow" | "trackio" | "comet" | "neptune" => ", whose files other trackers import",
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
