//! Which model one would ship under the priorities of the suite: the best by the primary metric
//! among those that are shown to keep every floor.

use std::collections::BTreeMap;

use super::model::{Comparison, Direction, Floor, FloorState, General, Metric, Model, Recommendation, Verdict};

/// What a suite holds its models to.
#[derive(Clone, Debug, PartialEq)]
pub struct Priorities {
    /// The metric that decides.
    pub primary: String,
    /// By metric, how much worse than the baseline a model may be at most, in the metric's unit.
    pub floors: BTreeMap<String, f64>,
}

/// Judges every model against the baseline of `comparisons`; none where there is no baseline to
/// judge by. A floor is kept where the whole interval of the paired difference says so: what these
/// items cannot show is not taken for granted.
pub(super) fn recommend(
    priorities: &Priorities,
    models: &[Model],
    metrics: &[Metric],
    comparisons: &[Comparison],
    general: Option<&General>,
) -> Option<Recommendation> {
    let baseline = &comparisons.first()?.baseline;
    let of_general = general.map_or(&[][..], |g| &g.comparisons);
    let all = || metrics.iter().chain(general.iter().flat_map(|g| &g.metrics));
    let metric = |name: &str| all().find(|m| m.name == name);
    let compared = |name: &str, metric: &str| {
        let both = comparisons.iter().chain(of_general);
        both.filter(|c| c.candidate == name && c.baseline == *baseline).find_map(|c| c.metrics.get(metric))
    };
    let primary = metric(&priorities.primary)?;
    let (mut floors, mut kept) = (Vec::new(), Vec::new());
    for model in models.iter().filter(|m| m.name != *baseline) {
        let mut keeps = true;
        for (name, &most) in &priorities.floors {
            let sign = if metric(name).is_some_and(|m| m.direction == Direction::Lower) { -1.0 } else { 1.0 };
            let found = compared(&model.name, name);
            // The gain, and the ends of its interval.
            let gain = found.and_then(|c| c.difference).map(|d| sign * d);
            let ends = found.and_then(|c| Some((c.ci_low?, c.ci_high?)));
            let state = match ends.map(|(low, high)| if sign > 0.0 { (low, high) } else { (-high, -low) }) {
                Some((low, _)) if low >= -most => FloorState::Kept,
                Some((_, high)) if high < -most => FloorState::Broken,
                _ => FloorState::Open,
            };
            if state != FloorState::Kept {
                keeps = false;
                floors.push(Floor { model: model.name.clone(), metric: name.clone(), most, gain, state });
            }
        }
        let better = compared(&model.name, &primary.name).is_some_and(|c| c.verdict == Verdict::Better);
        if keeps && better {
            kept.push(model);
        }
    }
    let value = |model: &Model| primary.models.get(&model.name).and_then(|v| v.value);
    let sign = if primary.direction == Direction::Lower { -1.0 } else { 1.0 };
    let shown = |model: &Model| value(model).map(|v| (sign * v * 10f64.powi(primary.decimals as i32)).round());
    // What a reader sees as equal is decided by how little was trained, then by the order.
    let ship = kept.into_iter().filter(|m| value(m).is_some()).reduce(|best, model| {
        let cost = |m: &Model| m.trainable_parameters.unwrap_or(u64::MAX);
        match shown(model).partial_cmp(&shown(best)) {
            Some(std::cmp::Ordering::Greater) => model,
            Some(std::cmp::Ordering::Equal) if cost(model) < cost(best) => model,
            _ => best,
        }
    });
    Some(Recommendation {
        primary: primary.name.clone(),
        baseline: baseline.clone(),
        ship: ship.map(|model| model.name.clone()),
        floors,
    })
}
