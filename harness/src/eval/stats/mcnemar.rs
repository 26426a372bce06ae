//! Power of McNemar's exact test.

use super::contingency::mcnemar_exact;
use super::student::incomplete_beta;

/// The probability that McNemar's exact test of `n` pairs has p below `level`, where a share `rate`
/// of pairs is discordant and the true difference of the shares is `difference` (Duffy 1984,
/// Biometrics 40): the test's power given the discordant pairs, over their binomial number.
pub fn mcnemar_power(n: u64, rate: f64, difference: f64, level: f64) -> f64 {
    if rate <= 0.0 {
        return 0.0;
    }
    let (rate, toward) = (rate.min(1.0), (0.5 * (1.0 + difference / rate)).clamp(0.0, 1.0));
    let middle = n as f64 * rate;
    // Beyond 9 standard deviations there is nothing.
    let reach = 9.0 * (middle * (1.0 - rate)).sqrt() + 1.0;
    let (from, to) = ((middle - reach).max(0.0).floor() as u64, ((middle + reach).ceil() as u64).min(n));
    let mut fewer = critical(from, level);
    let mut power = 0.0;
    for discordant in from..=to {
        // The most of the rarer kind with which the test still rejects rises with their number.
        while rejects(fewer.map_or(0, |f| f + 1), discordant, level) {
            fewer = Some(fewer.map_or(0, |f| f + 1));
        }
        let Some(fewer) = fewer else { continue };
        let given = binomial(fewer, discordant, toward) + binomial(fewer, discordant, 1.0 - toward);
        power += probability(discordant, n, rate) * given;
    }
    power.min(1.0)
}

/// Whether McNemar's test rejects with `fewer` of `discordant` pairs going the rarer way.
pub(super) fn rejects(fewer: u64, discordant: u64, level: f64) -> bool {
    2 * fewer < discordant && mcnemar_exact(fewer, discordant - fewer) < level
}

/// The most of the rarer kind with which it does; none if it never does.
pub(super) fn critical(discordant: u64, level: f64) -> Option<u64> {
    let (mut none, mut some) = (discordant.div_ceil(2), None);
    // Rejects up to a number, and not from there on.
    let mut low = 0;
    while low < none {
        let middle = (low + none) / 2;
        if rejects(middle, discordant, level) {
            some = Some(middle);
            low = middle + 1;
        } else {
            none = middle;
        }
    }
    some
}

/// `P(X <= k)` of `X` binomial with `n` and `p`.
pub(super) fn binomial(k: u64, n: u64, p: f64) -> f64 {
    if k >= n { 1.0 } else { incomplete_beta((n - k) as f64, k as f64 + 1.0, 1.0 - p) }
}

/// `P(X = k)` of the same.
pub(super) fn probability(k: u64, n: u64, p: f64) -> f64 {
    let (k, n) = (k as f64, n as f64);
    let choose = libm::lgamma(n + 1.0) - libm::lgamma(k + 1.0) - libm::lgamma(n - k + 1.0);
    // 0 ln 0 is 0.
    let times_ln = |count: f64, p: f64| if count == 0.0 { 0.0 } else { count * p.ln() };
    (choose + times_ln(k, p) + times_ln(n - k, 1.0 - p)).exp()
}

/// The fewest pairs, all going one way, of which the two-sided probability `2^(1 - k)` is below
/// `level`.
pub(super) fn least_one_way(level: f64) -> u64 {
    let mut k = 1;
    while 2f64.powi(1 - k as i32) >= level && k < 1000 {
        k += 1;
    }
    k
}
