//! Reports of many models: who is compared with whom, tables that stay readable, recipes over seeds,
//! several answers to an item, checkpoints over time, and the model one would ship.

#![allow(clippy::unwrap_used)]

#[path = "report/fixture.rs"]
#[allow(dead_code)]
mod fixture;

use std::collections::BTreeMap;

use fixture::{inputs, items, model};
use karat::report::*;

fn pairs(report: &Report) -> Vec<(&str, &str)> {
    report.comparisons.iter().map(|c| (c.baseline.as_str(), c.candidate.as_str())).collect()
}

/// A base, and seven others.
fn eight(items: &[karat::eval::Item]) -> Vec<ModelRun> {
    let mut models = vec![model("base", Role::Base, items, 11)];
    models.extend((0..5).map(|i| model(&format!("r{}", 4 << i), Role::Lora, items, 20 + i)));
    models.push(model("full", Role::Full, items, 13));
    models.push(ModelRun { training: None, session: None, ..model("texts", Role::Other, items, 14) });
    models
}

#[test]
fn every_model_is_compared_with_the_baseline_and_the_wanted_pairs_with_each_other() {
    let items = items(24);
    let mut given = inputs(&items, eight(&items));
    given.pairs = vec![("r4".into(), "r64".into()), ("full".into(), "base".into())];
    let report = build(&given).unwrap();
    let found = pairs(&report);
    assert_eq!(found.len(), 8, "{found:?}");
    assert!(found[..7].iter().all(|(baseline, _)| *baseline == "base"));
    // With five adapters none is the one that full is held against; a pair that is there is not
    // there twice.
    assert_eq!(found[7], ("r4", "r64"));
    given.models[6].role = Role::Baseline;
    let report = build(&given).unwrap();
    assert!(pairs(&report)[..7].iter().all(|(baseline, _)| *baseline == "full"), "{:?}", pairs(&report));
    assert_eq!(report.against_base().len(), 7);
    given.pairs = vec![("r4".into(), "r5".into())];
    assert!(build(&given).unwrap_err().to_string().contains("`r5`"));
}

#[test]
fn with_many_models_a_table_has_one_column_each_and_all_forms_are_there() {
    let items = items(24);
    let report = build(&inputs(&items, eight(&items))).unwrap();
    let table = markdown::results_table(&report);
    let header = table.lines().next().unwrap();
    assert_eq!(header.matches('|').count(), 1 + 1 + 8 + 1, "{header}");
    // Three are laid out as they always were.
    let three = build(&inputs(&items, fixture::three_models(&items))).unwrap();
    assert!(markdown::results_table(&three).lines().next().unwrap().contains("lora vs base"));
    let page = html::render(&report).unwrap();
    assert!(page.contains("class=\"scroll pin compact\"") && !html::render(&three).unwrap().contains("pin compact"));
    assert!(page.matches("c-other5").count() > 1, "eight models have colours of their own");
    let tex = latex::table(&report);
    assert!(tex.contains("lrrrrrrrrr}"), "{tex}");
    if let Some(folder) = std::env::var_os("KARAT_LOOK") {
        write(&report, std::path::Path::new(&folder)).unwrap();
    }
}

#[test]
fn quality_is_drawn_against_cost_where_models_differ_in_it() {
    let items = items(24);
    let report = build(&inputs(&items, eight(&items))).unwrap();
    let panels = plot::frontier_panels(&report);
    // Trained parameters and seconds differ, memory is the same for all, and bytes nobody knows.
    assert_eq!(panels.len(), 2);
    assert!(panels.iter().all(|svg| svg.contains("class=\"frontier\"") && svg.contains("full")), "{panels:?}");
}

#[test]
fn what_was_asked_otherwise_stands_in_its_comparisons_and_nowhere_else() {
    let items = items(24);
    let mut models = eight(&items);
    let other = Fingerprints { prompts: "b0".repeat(32), ..inputs(&items, vec![]).fingerprints };
    models[3].fingerprints = Some(other);
    let report = build(&inputs(&items, models)).unwrap();
    for comparison in &report.comparisons {
        let differ: Vec<&str> = comparison.allowed.iter().map(|m| m.what.as_str()).collect();
        let wanted: &[&str] = if comparison.candidate == report.models[3].name { &["prompts"] } else { &[] };
        assert_eq!(differ, wanted, "{}", comparison.candidate);
    }
    // Two reports are compared by what the two models were asked.
    let names = [report.models[3].name.as_str(), report.models[4].name.as_str()];
    let refused = compare::compare((&report, "base"), (&report, names[0]), &[]).unwrap_err();
    assert!(refused.to_string().contains("prompts"), "{refused}");
    compare::compare((&report, "base"), (&report, names[1]), &[]).unwrap();
    let allowed = compare::compare((&report, "base"), (&report, names[0]), &["prompts".into()]).unwrap();
    assert_eq!(allowed.allowed.len(), 1);
}

#[test]
fn replicates_of_a_recipe_are_compared_over_items_and_seeds() {
    let items = items(24);
    let mut models = vec![model("base", Role::Base, &items, 11)];
    models.extend((0..3).map(|s| model(&format!("lora.s{s}"), Role::Lora, &items, 30 + s)));
    models.extend((0..2).map(|s| model(&format!("full.s{s}"), Role::Full, &items, 40 + s)));
    let mut given = inputs(&items, models);
    let named = |name: &str, n: usize| (name.to_string(), (0..n).map(|s| format!("{name}.s{s}")).collect());
    given.recipes = vec![named("lora", 3), named("full", 2)];
    let report = build(&given).unwrap();
    let found: Vec<(&str, &str, usize, usize)> = report
        .recipes
        .iter()
        .map(|c| (c.baseline.as_str(), c.candidate.as_str(), c.baseline_seeds, c.candidate_seeds))
        .collect();
    assert_eq!(found, [("base", "lora", 1, 3), ("base", "full", 1, 2), ("lora", "full", 3, 2)]);
    // The mean over seeds is that of the replicates' own comparisons.
    let alone = |name: &str| report.comparison("base", name).unwrap().metrics["nll_answer"].difference.unwrap();
    let mean = (0..3).map(|s| alone(&format!("lora.s{s}"))).sum::<f64>() / 3.0;
    let metric = &report.recipes[0].metrics["nll_answer"];
    assert!((metric.difference - mean).abs() < 1e-12, "{} is not {mean}", metric.difference);
    let (low, high) = (metric.ci_low.unwrap(), metric.ci_high.unwrap());
    assert!(low < metric.difference && metric.difference < high && metric.seed_share.unwrap() > 0.0);
    assert!(metric.p_adjusted >= metric.p_value);
    let page = html::render(&report).unwrap() + &markdown::render(&report);
    assert!(page.matches("lora (3 seeds) vs base").count() >= 2, "both forms have the table");
    // A seed more or less is another report; without recipes there is no table.
    given.recipes.clear();
    assert!(build(&given).unwrap().recipes.is_empty());
}

#[test]
fn several_answers_are_averaged_and_taken_apart() {
    let items = items(24);
    let mut models = fixture::three_models(&items);
    let again = model("lora", Role::Lora, &items, 77).items;
    models[1].samples = vec![models[1].items.clone(), again.clone(), again];
    let report = build(&inputs(&items, models)).unwrap();
    let samples = report.samples.as_ref().unwrap();
    assert_eq!((samples.count, samples.models.keys().collect::<Vec<_>>()), (3, vec!["lora"]));
    let exact = &samples.models["lora"]["exact"];
    assert!(exact.between_samples > 0.0 && exact.n == 24, "{exact:?}");
    // What is no metric of the registry has no notion of right; texts are there all the same.
    assert!(markdown::render(&report).contains("## Several answers to each item"));
}

#[test]
fn checkpoints_are_drawn_over_the_steps_with_the_model_among_them() {
    let items = items(24);
    let mut models = fixture::three_models(&items);
    let checkpoint = |step, seed| CheckpointRecord {
        step,
        items: model("x", Role::Lora, &items, seed).items,
        pooled: BTreeMap::new(),
    };
    models[1].training.as_mut().unwrap().checkpoints = vec![checkpoint(40, 50), checkpoint(80, 51)];
    let report = build(&inputs(&items, models)).unwrap();
    let checkpoints = &report.model("lora").unwrap().training.as_ref().unwrap().checkpoints;
    assert_eq!(checkpoints.iter().map(|c| c.step).collect::<Vec<_>>(), [40, 80, 120]);
    assert_eq!(checkpoints[2].metrics["rouge_l"].value, report.metric("rouge_l").unwrap().models["lora"].value);
    assert!(report.model("full").unwrap().training.as_ref().unwrap().checkpoints.is_empty());
    let panels = plot::checkpoint_panels(&report);
    assert!(!panels.is_empty() && panels.iter().all(|svg| svg.contains("lora") && svg.contains("base")));
}

#[test]
fn the_model_to_ship_is_the_best_that_is_shown_to_keep_every_floor() {
    let items = items(48);
    let judged = |primary: &str, floors: &[(&str, f64)]| {
        let mut given = inputs(&items, fixture::three_models(&items));
        let floors = floors.iter().map(|(name, most)| (name.to_string(), *most)).collect();
        given.priorities = Some(Priorities { primary: primary.into(), floors });
        build(&given).unwrap()
    };
    let report = judged("rouge_l", &[]);
    let recommendation = report.recommendation.as_ref().unwrap();
    assert_eq!((recommendation.ship.as_deref(), recommendation.floors.len()), (Some("full"), 0));
    assert!(markdown::render(&report).contains("one would ship full"));
    // More tokens than before: the floor on a metric that got worse rules both out.
    let report = judged("nll_answer", &[("nll_think", 0.0), ("closed", 0.0)]);
    assert_eq!(report.recommendation.as_ref().unwrap().ship.as_deref(), Some("full"), "both are far better on these");
    // A metric of no direction counts as one that more of is better.
    let report = judged("nll_answer", &[("exact", 0.0)]);
    let open: Vec<&Floor> = report.recommendation.as_ref().unwrap().floors.iter().collect();
    assert!(open.iter().all(|floor| floor.state != FloorState::Kept && floor.metric == "exact"));
    // Nothing is better by a metric on which all are the same.
    let mut given = inputs(&items, vec![model("base", Role::Base, &items, 11), model("copy", Role::Other, &items, 11)]);
    given.models[1].items.clone_from(&given.models[0].items.clone());
    given.priorities = Some(Priorities { primary: "rouge_l".into(), floors: BTreeMap::from([("exact".into(), 0.01)]) });
    let report = build(&given).unwrap();
    assert_eq!(report.recommendation.as_ref().unwrap().ship, None);
    assert!(markdown::render(&report).contains("one would keep base"));
}
