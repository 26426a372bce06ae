//! Which items changed sides: counted for every comparison and metric with a notion of right, shown
//! in full with the first token in which two texts part.

use super::inputs::{Inputs, ModelResults, example, values};
use super::model::{Comparison, Divergence, FlipTable, FlippedItem, Report, Token};
use crate::eval::Item;
use crate::eval::flips::flips;

/// The tables in which an item flipped, and the flipped items in full.
pub(super) fn find(
    comparisons: &[Comparison],
    inputs: &Inputs<'_>,
    runs: &[ModelResults<'_>],
) -> (Vec<FlipTable>, Vec<FlippedItem>) {
    let run = |name: &str| runs.iter().find(|r| r.0.name == name);
    let mut tables = Vec::new();
    for comparison in comparisons {
        let (Some(baseline), Some(candidate)) = (run(&comparison.baseline), run(&comparison.candidate)) else {
            continue;
        };
        for metric in &inputs.metrics {
            let (a, b) = (values(&metric.name, baseline, inputs.items), values(&metric.name, candidate, inputs.items));
            let rows = inputs.items.iter().zip(a.into_iter().zip(b)).map(|(item, (a, b))| (item.id.as_str(), a, b));
            let found = flips(&metric.name, rows)
                .filter(|found| !(found.right_to_wrong.is_empty() && found.wrong_to_right.is_empty()));
            tables.extend(found.map(|flips| FlipTable {
                baseline: comparison.baseline.clone(),
                candidate: comparison.candidate.clone(),
                metric: metric.name.clone(),
                flips,
            }));
        }
    }
    // What became wrong is what one wants to read: it stands first.
    let became_wrong = |id: &String| tables.iter().any(|t| t.flips.right_to_wrong.contains(id));
    let became_right = |id: &String| tables.iter().any(|t| t.flips.wrong_to_right.contains(id));
    let (lost, rest): (Vec<&Item>, Vec<&Item>) = inputs.items.iter().partition(|item| became_wrong(&item.id));
    let won = rest.into_iter().filter(|item| became_right(&item.id));
    let flipped = lost.into_iter().chain(won).take(Report::LISTED_FLIPS).map(|item| {
        let here = comparisons.iter().filter(|c| {
            let table = |t: &&FlipTable| t.baseline == c.baseline && t.candidate == c.candidate;
            tables
                .iter()
                .filter(table)
                .any(|t| t.flips.right_to_wrong.contains(&item.id) || t.flips.wrong_to_right.contains(&item.id))
        });
        let parting = here.filter_map(|c| {
            // Where the tokens of one side are unknown, so is where the two part.
            let ids = |name: &str| run(name)?.1.get(item.id.as_str())?.prediction.ids.as_deref();
            let (a, b) = (ids(&c.baseline)?, ids(&c.candidate)?);
            let at = a.iter().zip(b).take_while(|(a, b)| a == b).count();
            let token = |ids: &[u32]| {
                let id = *ids.get(at)?;
                Some(Token { id, text: inputs.tokens.get(&id).cloned().unwrap_or_default() })
            };
            let (baseline_token, candidate_token) = (token(a), token(b));
            (baseline_token.is_some() || candidate_token.is_some()).then(|| Divergence {
                baseline: c.baseline.clone(),
                candidate: c.candidate.clone(),
                at,
                baseline_token,
                candidate_token,
            })
        });
        FlippedItem { item: example(item, runs), divergences: parting.collect() }
    });
    let flipped = flipped.collect();
    (tables, flipped)
}
