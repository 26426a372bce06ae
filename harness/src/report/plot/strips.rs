//! Learning rate and gradient norm of a training run: narrow strips below its loss, on the same
//! steps.

use super::super::model::Training;
use super::super::number::{fixed, scientific};
use super::axis::Scale;
use super::svg::{Anchor, Svg, thinned};
use crate::report::i18n::sentences::Labels;

const HEAD: f64 = 20.0;
const STRIP: f64 = 34.0;
const GAP: f64 = 14.0;

/// How high [`draw`] draws.
pub(super) fn height(training: &Training) -> f64 {
    rows(training).len() as f64 * (HEAD + STRIP + GAP)
}

/// A quantity by step, how its name and its largest value are written.
struct Strip {
    points: Vec<(f64, f64)>,
    title: fn(&Labels) -> &'static str,
    write: fn(f64) -> String,
}

fn rows(training: &Training) -> Vec<Strip> {
    let of = |value: fn(&super::super::model::CurvePoint) -> Option<f64>| -> Vec<(f64, f64)> {
        training.curve.iter().filter_map(|p| Some((p.step as f64, value(p)?))).collect()
    };
    let strips = [
        Strip { points: of(|p| p.learning_rate), title: |l| l.learning_rate, write: scientific },
        Strip {
            points: of(|p| p.grad_norm),
            title: |l| l.grad_norm,
            write: |x| fixed(x, if x < 10.0 { 2 } else { 0 }),
        },
    ];
    strips.into_iter().filter(|s| s.points.len() > 1 && s.points.iter().any(|p| p.1 > 0.0)).collect()
}

/// The strips, from `top` on, along the `x` scale of the plot above. The line fills its strip from
/// zero to its maximum.
pub(super) fn draw(svg: &mut Svg, training: &Training, l: &Labels, color: &str, x: &Scale, top: f64, ends: (f64, f64)) {
    for (i, strip) in rows(training).iter().enumerate() {
        let from = top + i as f64 * (HEAD + STRIP + GAP);
        let highest = strip.points.iter().map(|p| p.1).fold(0.0, f64::max);
        let y = Scale::new(0.0, highest, from + HEAD + STRIP, from + HEAD);
        svg.text((ends.0, from + 12.0), Anchor::Start, "soft", (strip.title)(l));
        svg.text((ends.1, from + 12.0), Anchor::End, "soft", &format!("{} {}", l.highest, (strip.write)(highest)));
        svg.line((ends.0, from + HEAD + STRIP), (ends.1, from + HEAD + STRIP), "grid");
        let points: Vec<(f64, f64)> = strip.points.iter().map(|p| (x.at(p.0), y.at(p.1))).collect();
        svg.polyline(&thinned(&points), &format!("{color} stroke line strip"));
    }
}
