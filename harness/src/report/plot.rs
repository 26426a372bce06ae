//! Plots as SVG text, pure functions of the report: loss curves, metric bars, quality against cost.
//!
//! One drawing is 420 units wide with text of 13, so that it stays legible on a phone without
//! zooming. It has no script and no external part, its colours (after Okabe and Ito, safe for
//! colour-blind readers) follow the reader's light or dark scheme, and equal reports give equal
//! bytes: all numbers have one fixed decimal.

mod axis;
mod bars;
mod checkpoints;
mod curves;
mod frontier;
mod steps;
mod strips;
mod svg;

pub use bars::{metric_bars, metric_panel};
pub use checkpoints::checkpoint_panels;
pub use curves::{curve_panel, training_curves};
pub use frontier::frontier_panels;
pub use steps::{step_panel, steps};

use super::model::{Report, Role};

/// The class that gives a model's marks their colour: by its role, so that LoRA is the same blue
/// everywhere; a second model of a role has one of the others, in turn.
pub(super) fn color_class(report: &Report, name: &str) -> &'static str {
    const OTHERS: [&str; 5] = ["c-other", "c-other2", "c-other3", "c-other4", "c-other5"];
    let of_role = |at: usize| {
        let role = report.models[at].role;
        let class = match role {
            Role::Base => "c-base",
            Role::Lora => "c-lora",
            Role::Full => "c-full",
            Role::Baseline | Role::Other => return None,
        };
        report.models[..at].iter().all(|m| m.role != role).then_some(class)
    };
    let Some(at) = report.models.iter().position(|m| m.name == name) else { return OTHERS[0] };
    let others = (0..at).filter(|&earlier| of_role(earlier).is_none()).count();
    of_role(at).unwrap_or(OTHERS[others % OTHERS.len()])
}
