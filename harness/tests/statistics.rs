//! What intervals, tests and `detectable` keep of their promises at the sizes people use: a part of
//! the table in `docs/statistics.md`, from fixed seeds.

use karat::eval::stats::StatsOptions;
use karat::eval::stats::simulation::{Calibration, Kind, calibrate};

/// The standard error of a share of 0.95 is 0.0126.
const REPLICATIONS: u64 = 300;

fn simulated(kind: Kind, n: usize) -> Calibration {
    let options = StatsOptions { seed: 7, resamples: 300, confidence: 0.95 };
    let found = calibrate(kind, n, REPLICATIONS, &options);
    println!("{} {n}: {found:?}", kind.title());
    found
}

#[test]
fn intervals_cover_from_twenty_items_on_and_nearly_at_fourteen() {
    let some = [Kind::Skewed, Kind::Overlap, Kind::Binary, Kind::Rare, Kind::Pooled];
    let most: Vec<Kind> = Kind::ALL.into_iter().filter(|kind| *kind != Kind::Heavy).collect();
    for (n, least, kinds) in [(14, 0.92, &some[..]), (20, 0.93, &most)] {
        for &kind in kinds {
            let found = simulated(kind, n);
            assert!(found.single >= least, "{kind:?} of {n}: {found:?}");
            assert!(found.paired >= least, "{kind:?} of {n}: {found:?}");
            // Two-sided 0.05 and one-sided 0.025, each with three standard errors.
            assert!(found.null <= 0.088 && found.alarm <= 0.052, "{kind:?} of {n}: {found:?}");
            assert!(found.passed.is_none_or(|passed| passed <= 0.052), "{kind:?} of {n}: {found:?}");
        }
    }
}

#[test]
fn the_percentile_bootstrap_did_not() {
    let found = simulated(Kind::Skewed, 14);
    assert!(found.percentile < 0.91 && found.single > found.percentile + 0.03, "{found:?}");
}

#[test]
fn what_is_called_detectable_is_found_four_times_out_of_five() {
    for (kind, n) in
        [(Kind::Continuous, 20), (Kind::Binary, 14), (Kind::Binary, 60), (Kind::Rare, 60), (Kind::Sparse, 60)]
    {
        let power = simulated(kind, n).power.expect("detectable");
        assert!((0.73..0.9).contains(&power), "{kind:?} of {n}: {power}");
    }
}
