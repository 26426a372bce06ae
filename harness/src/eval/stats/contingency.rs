//! Exact tests of 0/1 metrics, and p-values of several metrics together.

/// The four outcomes of two models on the same items with a right-or-wrong metric.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Agreement {
    /// Right for both.
    pub both: u64,
    /// Right for the first alone.
    pub only_a: u64,
    /// Right for the second alone.
    pub only_b: u64,
    /// Right for neither.
    pub neither: u64,
}

impl Agreement {
    /// Counts the outcomes; `None` if a value is neither 0 nor 1, or the lengths differ.
    pub fn of(a: &[f64], b: &[f64]) -> Option<Self> {
        if a.len() != b.len() {
            return None;
        }
        let mut counts = Agreement::default();
        for pair in a.iter().zip(b) {
            match pair {
                (1.0, 1.0) => counts.both += 1,
                (1.0, 0.0) => counts.only_a += 1,
                (0.0, 1.0) => counts.only_b += 1,
                (0.0, 0.0) => counts.neither += 1,
                _ => return None,
            }
        }
        Some(counts)
    }

    /// [`mcnemar_exact`] of the discordant counts.
    pub fn p_value(&self) -> f64 {
        mcnemar_exact(self.only_a, self.only_b)
    }
}

/// McNemar's exact two-sided test: the probability, under a fair coin, of discordant counts at
/// least as uneven as these. 1 where there are none.
pub fn mcnemar_exact(only_a: u64, only_b: u64) -> f64 {
    let n = only_a + only_b;
    let smaller = only_a.min(only_b);
    // Binomial(n, 1/2) up to `smaller`, each term from the one before, in logarithms.
    let mut ln_choose = 0.0;
    let mut tail = 0.0;
    for k in 0..=smaller {
        if k > 0 {
            ln_choose += ((n - k + 1) as f64).ln() - (k as f64).ln();
        }
        tail += (ln_choose - n as f64 * std::f64::consts::LN_2).exp();
    }
    (2.0 * tail).min(1.0)
}

/// Holm's step-down adjustment (1979): adjusted p-values in the order given; reject where they are
/// at most the level.
///
/// Controls the probability of any false rejection among the metrics of a table, whatever their
/// dependence.
pub fn holm(p_values: &[f64]) -> Vec<f64> {
    let m = p_values.len();
    let mut order: Vec<usize> = (0..m).collect();
    order.sort_by(|a, b| p_values[*a].total_cmp(&p_values[*b]));
    let mut adjusted = vec![0.0; m];
    let mut greatest = 0.0f64;
    for (rank, at) in order.into_iter().enumerate() {
        greatest = greatest.max((m - rank) as f64 * p_values[at]).min(1.0);
        adjusted[at] = greatest;
    }
    adjusted
}
