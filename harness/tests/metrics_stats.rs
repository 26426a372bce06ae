//! The statistics against scipy, statsmodels and numpy, and their reproducibility.

use std::path::{Path, PathBuf};

use karat::eval::stats::{
    Agreement, EXACT_UP_TO, MarginVerdict, StatsOptions, bootstrap_mean_ci, clustered_standard_error, compare_paired,
    holm, mcnemar_exact, mean, non_inferiority, sign_flip_p, standard_deviation, standard_error,
};
use serde_json::Value;

/// The vectors' file, or `None` with a printed reason.
fn vectors() -> Option<Vec<Value>> {
    let wanted = Path::new("conformance/metrics/stats.json");
    let found = match std::env::var_os("KARAT_SHARED") {
        Some(shared) => Some(PathBuf::from(shared).join(wanted)).filter(|p| p.is_file()),
        None => Path::new(env!("CARGO_MANIFEST_DIR"))
            .ancestors()
            .map(|folder| folder.join("shared").join(wanted))
            .find(|file| file.is_file()),
    };
    let Some(file) = found else {
        println!("skipped: no shared/conformance/metrics beside a folder above this crate; set KARAT_SHARED");
        return None;
    };
    let text = std::fs::read_to_string(file).expect("readable");
    let all: Value = serde_json::from_str(&text).expect("JSON");
    Some(all["entries"].as_array().expect("entries").clone())
}

fn doubles(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|v| v.as_f64().expect("a number")).collect()
}

fn double(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

struct Compared(usize);

impl Compared {
    fn close(&mut self, place: &str, found: f64, expected: &Value) {
        self.0 += 1;
        let expected = double(expected);
        assert!(
            (found - expected).abs() <= 1e-9 * expected.abs().max(1.0),
            "{place}: expected {expected}, found {found}"
        );
    }

    fn within(&mut self, place: &str, found: f64, expected: f64, tolerance: f64) {
        self.0 += 1;
        assert!((found - expected).abs() <= tolerance, "{place}: expected {expected} ± {tolerance}, found {found}");
    }
}

fn options(seed: u64, resamples: usize) -> StatsOptions {
    StatsOptions { seed, resamples, confidence: 0.95 }
}

#[test]
fn paired_statistics_are_those_of_scipy() {
    let Some(entries) = vectors() else { return };
    let mut compared = Compared(0);
    for entry in entries.iter().filter(|e| e["kind"] == "paired") {
        let id = entry["id"].as_str().expect("an id");
        let (a, b) = (doubles(&entry["a"]), doubles(&entry["b"]));
        let results = &entry["results"];
        // The vectors take a - b, Karat b - a: the sides are swapped.
        let ours = compare_paired(&b, &a, &options(7, 10_000)).expect("comparable");
        let differences: Vec<f64> = a.iter().zip(&b).map(|(a, b)| a - b).collect();
        compared.close(id, ours.mean_b, &results["a"]["mean"]);
        compared.close(id, ours.mean_a, &results["b"]["mean"]);
        for (values, of) in [(&a, "a"), (&b, "b"), (&differences, "diff_a_minus_b")] {
            compared.close(id, mean(values), &results[of]["mean"]);
            compared.close(id, standard_deviation(values), &results[of]["sd_ddof1"]);
            compared.close(id, standard_error(values), &results[of]["se"]);
        }
        compared.close(id, ours.difference, &results["diff_a_minus_b"]["mean"]);
        for (values, of) in [(&a, "bootstrap_a"), (&b, "bootstrap_b"), (&differences, "bootstrap_diff")] {
            let bootstrap = &results[of];
            let interval = bootstrap_mean_ci(values, &options(7, 10_000));
            // Another generator than numpy's: within the spread of 30 numpy seeds, widened by the
            // tolerance suggested there.
            let tolerance = double(&bootstrap["suggested_abs_tolerance"]);
            for (found, end) in [(interval.low, "lo"), (interval.high, "hi")] {
                let envelope = doubles(&bootstrap["envelope_30_seeds"][end]);
                let middle = f64::midpoint(envelope[0], envelope[1]);
                let half = (envelope[1] - envelope[0]) / 2.0;
                compared.within(&format!("{id} {of} {end}"), found, middle, half + tolerance);
            }
        }
        let test = &results["signflip_permutation_diff"];
        if test["method"] == "exact" {
            compared.close(id, ours.p_value, &test["p_two_sided"]);
        } else {
            let p = sign_flip_p(&differences, &options(7, 99_999));
            // Both are estimates: five standard errors of their difference, and one count.
            let tolerance = 5.0 * 2f64.sqrt() * double(&test["mc_se"]) + 1e-5;
            compared.within(id, p, double(&test["p_two_sided"]), tolerance);
        }
    }
    println!("paired: {} values compared", compared.0);
    assert!(compared.0 > 100);
}

#[test]
fn clustered_standard_errors_mcnemar_and_holm_are_those_of_statsmodels() {
    let Some(entries) = vectors() else { return };
    let mut compared = Compared(0);
    for entry in &entries {
        let id = entry["id"].as_str().expect("an id");
        let results = &entry["results"];
        match entry["kind"].as_str().expect("a kind") {
            "clustered_se" => {
                let clusters: Vec<String> =
                    entry["cluster"].as_array().expect("a list").iter().map(Value::to_string).collect();
                let values = doubles(&entry["s"]);
                compared.close(id, clustered_standard_error(&values, &clusters), &results["se_clustered_miller2024"]);
                compared.close(id, standard_error(&values), &results["se_clt"]);
            }
            "mcnemar" => {
                let count = |key: &str| entry["table"][key].as_u64().expect("a count");
                let p = mcnemar_exact(count("a_only_b"), count("b_only_c"));
                compared.close(id, p, &results["statsmodels_exact"]["p"]);
                if let Some(scipy) = results["scipy_binomtest_two_sided"].as_f64() {
                    compared.close(id, p, &Value::from(scipy));
                }
            }
            "multiple_testing" => {
                let adjusted = holm(&doubles(&entry["p"]));
                let expected = results["holm"]["adjusted"].as_array().expect("a list");
                for (found, expected) in adjusted.iter().zip(expected) {
                    compared.close(id, *found, expected);
                }
                let alpha = double(&entry["alpha"]);
                let rejected: Vec<bool> = adjusted.iter().map(|p| *p <= alpha).collect();
                assert_eq!(serde_json::json!(rejected), results["holm"]["reject"], "{id}");
                compared.0 += rejected.len();
            }
            "perplexity" => {
                let losses = doubles(&entry["losses"]);
                compared.close(id, mean(&losses).exp(), &results["exp_of_mean"]);
            }
            "paired" => {}
            other => panic!("{id}: a kind of vector that no test reads: {other}"),
        }
    }
    println!("clusters, McNemar, Holm, perplexity: {} values compared", compared.0);
    assert!(compared.0 > 40);
}

/// Values of numpy, scipy and statsmodels on numbers of our own, for where the large set is absent.
#[test]
fn small_examples_agree_with_scipy_and_statsmodels() {
    // scipy 1.17.1: permutation_test((b - a,), np.mean, permutation_type="samples",
    // n_resamples=np.inf).
    let (a, b) = ([0.1, 0.4, 0.3, 0.9, 0.5], [0.2, 0.7, 0.2, 1.0, 0.9]);
    let ours = compare_paired(&a, &b, &StatsOptions::default()).expect("comparable");
    assert!((ours.difference - 0.16).abs() < 1e-12);
    assert!((ours.p_value - 0.25).abs() < 1e-12, "{}", ours.p_value);
    // statsmodels: mcnemar(exact=True), multipletests(method="holm").
    assert!((mcnemar_exact(3, 7) - 0.34375).abs() < 1e-12);
    assert_eq!(mcnemar_exact(0, 0), 1.0);
    let adjusted = holm(&[0.04, 0.001, 0.03]);
    for (found, expected) in adjusted.iter().zip([0.06, 0.003, 0.06]) {
        assert!((found - expected).abs() < 1e-12);
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes_on_any_number_of_threads() {
    let a: Vec<f64> = (0..240).map(|i| f64::from(i * 7919 % 101) / 101.0).collect();
    let b: Vec<f64> = (0..240).map(|i| f64::from(i * 104_729 % 97) / 97.0).collect();
    let with_threads = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        pool.install(|| compare_paired(&a, &b, &StatsOptions::default()).expect("comparable"))
    };
    let one = with_threads(1);
    for threads in [2, 3, 8] {
        let other = with_threads(threads);
        assert_eq!(one.ci_low.to_bits(), other.ci_low.to_bits());
        assert_eq!(one.ci_high.to_bits(), other.ci_high.to_bits());
        assert_eq!(one.p_value.to_bits(), other.p_value.to_bits());
    }
    let reseeded = compare_paired(&a, &b, &StatsOptions { seed: 43, ..StatsOptions::default() }).expect("comparable");
    assert_ne!(one, reseeded, "the seed is used");
}

#[test]
fn equal_models_differ_by_nothing_and_pass_every_gate() {
    let values: Vec<f64> = (0..30).map(f64::from).collect();
    let same = compare_paired(&values, &values, &StatsOptions::default()).expect("comparable");
    assert_eq!((same.difference, same.ci_low, same.ci_high, same.p_value), (0.0, 0.0, 0.0, 1.0));
    let gate = non_inferiority(&values, &values, true, 0.0, &StatsOptions::default());
    assert_eq!(gate.verdict, MarginVerdict::Pass);
}

#[test]
fn a_gate_passes_regresses_or_says_that_it_cannot_tell() {
    let options = StatsOptions::default();
    let baseline: Vec<f64> = (0..200).map(|i| f64::from(i % 10) / 10.0).collect();
    let shifted = |by: f64| baseline.iter().map(|v| v + by).collect::<Vec<f64>>();
    let verdict = |candidate: &[f64], higher, margin| {
        let n = candidate.len();
        non_inferiority(&baseline[..n], candidate, higher, margin, &options).verdict
    };
    assert_eq!(verdict(&shifted(-0.01), true, 0.02), MarginVerdict::Pass);
    assert_eq!(verdict(&shifted(-0.05), true, 0.02), MarginVerdict::Regress);
    assert_eq!(verdict(&shifted(0.05), false, 0.02), MarginVerdict::Regress, "lower is better");
    // Noise far above the margin, few items.
    let noisy: Vec<f64> =
        baseline[..20].iter().enumerate().map(|(i, v)| v + if i % 2 == 0 { 0.5 } else { -0.5 }).collect();
    let gate = non_inferiority(&baseline[..20], &noisy, true, 0.02, &options);
    assert_eq!(gate.verdict, MarginVerdict::Inconclusive);
    assert!(gate.minimum_detectable.is_some_and(|d| d > gate.margin), "the margin is below what 20 items can see");
    assert_eq!(
        non_inferiority(&baseline, &noisy, true, 0.02, &options).verdict,
        MarginVerdict::Inconclusive,
        "items are missing"
    );
    assert_eq!(non_inferiority(&[], &[], true, 0.02, &options).verdict, MarginVerdict::Inconclusive);
}

#[test]
fn one_value_has_no_interval() {
    let one = compare_paired(&[0.2], &[0.9], &StatsOptions::default()).expect("comparable");
    assert!(one.ci_low.is_nan() && one.ci_high.is_nan() && one.difference > 0.6);
    assert!(bootstrap_mean_ci(&[1.0], &StatsOptions::default()).low.is_nan());
    assert_eq!(
        non_inferiority(&[0.2], &[0.9], true, 0.02, &StatsOptions::default()).verdict,
        MarginVerdict::Inconclusive,
        "one item shows nothing of the next"
    );
}

#[test]
fn a_comparison_of_different_items_is_refused() {
    let error = compare_paired(&[1.0], &[1.0, 2.0], &StatsOptions::default()).expect_err("different lengths");
    assert!(error.to_string().contains("1 and 2"));
    assert!(compare_paired(&[1.0], &[f64::NAN], &StatsOptions::default()).is_err());
    assert!(compare_paired(&[], &[], &StatsOptions::default()).is_err());
}

#[test]
fn enumeration_and_sampling_of_sign_patterns_agree() {
    let differences: Vec<f64> = (1..=EXACT_UP_TO).map(|i| if i % 3 == 0 { -(i as f64) } else { i as f64 }).collect();
    let exact = sign_flip_p(&differences, &options(1, 1));
    // One more difference, too small to matter, and the patterns are sampled.
    let mut more = differences;
    more.push(1e-300);
    let sampled = sign_flip_p(&more, &options(1, 200_000));
    assert!((exact - sampled).abs() < 0.005, "{exact} and {sampled}");
}

#[test]
fn agreement_counts_right_and_wrong() {
    let agreement = Agreement::of(&[1.0, 1.0, 0.0, 0.0], &[1.0, 0.0, 1.0, 0.0]);
    assert_eq!(agreement, Some(Agreement { both: 1, only_a: 1, only_b: 1, neither: 1 }));
    assert_eq!(Agreement::of(&[0.5], &[1.0]), None);
}
