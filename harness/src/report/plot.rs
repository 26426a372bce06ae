//! Plots as SVG text, pure functions of the report: loss curves and metric bars.
//!
//! One drawing is 420 units wide with text of 13, so that it stays legible on a phone without
//! zooming. It has no script and no external part, its colours (after Okabe and Ito, safe for
//! colour-blind readers) follow the reader's light or dark scheme, and equal reports give equal
//! bytes: all numbers have one fixed decimal.

mod axis;
mod bars;
mod curves;
mod steps;
mod strips;
mod svg;

pub use bars::{metric_bars, metric_panel};
pub use curves::{curve_panel, training_curves};
pub use steps::{step_panel, steps};

use super::model::{Report, Role};

/// The class that gives a model's marks their colour: by its role, so that LoRA is the same blue
/// everywhere.
pub(super) fn color_class(report: &Report, name: &str) -> &'static str {
    const OTHERS: [&str; 3] = ["c-other", "c-other2", "c-other3"];
    let Some(at) = report.models.iter().position(|m| m.name == name) else { return OTHERS[0] };
    let role = report.models[at].role;
    let earlier = report.models[..at].iter().filter(|m| m.role == role).count();
    match (role, earlier) {
        (Role::Base, 0) => "c-base",
        (Role::Lora, 0) => "c-lora",
        (Role::Full, 0) => "c-full",
        // A second model of a role must not look like the first.
        _ => OTHERS[report.models[..at].iter().filter(|m| m.role == Role::Other).count() % OTHERS.len()],
    }
}
