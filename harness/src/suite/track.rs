//! `[track]`: which trackers a run is written for.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::track::TrackerName;

/// The `[track]` table. Nothing of it belongs to the experiment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrackConfig {
    /// Trackers: `"tensorboard"`, `"swanlab"`, `"mlflow"`; none by default.
    pub to: Vec<TrackerName>,
    /// Items whose question and answer are logged, the first ones.
    pub samples: usize,
    /// A folder that several runs share, instead of `track` in the run's own; each is under its
    /// name there. A suite file cannot give it: `--set track.dir=DIR`.
    #[serde(skip_serializing)]
    pub dir: Option<PathBuf>,
    /// SwanLab's project, MLflow's experiment; absent, the suite's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// SwanLab's workspace; absent, the user's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workspace: Option<String>,
    /// The experiment's name, to which that of a model is added; absent, the suite's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl Default for TrackConfig {
    /// No tracker; three items, as the published scripts show.
    fn default() -> Self {
        TrackConfig { to: Vec::new(), samples: 3, dir: None, project: None, workspace: None, name: None }
    }
}

impl TrackConfig {
    pub(super) fn is_default(&self) -> bool {
        *self == TrackConfig::default()
    }
}
