//! Arguments of `karat track`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use karat::track::TrackerName;

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TrackerArg {
    /// Event files
    Tensorboard,
    /// An offline run folder, which `swanlab sync` uploads
    Swanlab,
    /// A run on the server that MLFLOW_TRACKING_URI names
    Mlflow,
}

impl From<TrackerArg> for TrackerName {
    fn from(tracker: TrackerArg) -> TrackerName {
        match tracker {
            TrackerArg::Tensorboard => TrackerName::TensorBoard,
            TrackerArg::Swanlab => TrackerName::SwanLab,
            TrackerArg::Mlflow => TrackerName::MlFlow,
        }
    }
}

#[derive(Args)]
pub struct TrackArgs {
    /// A run folder, the name of one below runs/, or the --out of a `karat train`
    pub run: PathBuf,
    /// Trackers, separated by commas [default: those of the suite's [track]]
    #[arg(long, value_enum, value_delimiter = ',')]
    pub to: Vec<TrackerArg>,
    /// A folder that runs share, where each is under its name [default: `track` in the run folder]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Items whose question and answer are logged, the first ones [default: the suite's, or 3]
    #[arg(long, value_name = "N")]
    pub samples: Option<usize>,
    /// The experiment's name [default: the suite's, or the folder's]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// SwanLab's project [default: the experiment's name]
    #[arg(long, value_name = "NAME")]
    pub project: Option<String>,
    /// SwanLab's workspace [default: the user's own]
    #[arg(long, value_name = "NAME")]
    pub workspace: Option<String>,
}
