//! Student's t distribution: what a mean of few values, divided by its own standard error, follows.

use super::normal;

/// Distribution function at `x` for `df` degrees of freedom, by the regularised incomplete beta
/// function (Abramowitz and Stegun 26.7.1). NaN unless `df` is above 0.
pub fn cumulative(x: f64, df: f64) -> f64 {
    if df.is_nan() || df <= 0.0 || x.is_nan() {
        return f64::NAN;
    }
    let tail = 0.5 * incomplete_beta(df / 2.0, 0.5, df / (df + x * x));
    if x > 0.0 { 1.0 - tail } else { tail }
}

/// Its inverse, by bisection to the last bit; infinite at 0 and 1, NaN outside or unless `df` is
/// above 0.
pub fn quantile(p: f64, df: f64) -> f64 {
    if !(0.0..=1.0).contains(&p) || df.is_nan() || df <= 0.0 {
        return f64::NAN;
    }
    if p == 0.5 {
        return 0.0;
    }
    // The lower tail keeps its digits; the upper one is its mirror.
    let tail = p.min(1.0 - p);
    if tail == 0.0 {
        return if p == 0.0 { f64::NEG_INFINITY } else { f64::INFINITY };
    }
    let (mut low, mut high) = (-1.0, 0.0);
    while cumulative(low, df) > tail && low > f64::MIN / 2.0 {
        (low, high) = (low * 2.0, low);
    }
    loop {
        let middle = f64::midpoint(low, high);
        if middle <= low || middle >= high {
            return if p < 0.5 { middle } else { -middle };
        }
        if cumulative(middle, df) < tail {
            low = middle;
        } else {
            high = middle;
        }
    }
}

/// Regularised incomplete beta function `I_x(a, b)`: by its continued fraction (Numerical Recipes,
/// section 6.4, by the method of Lentz), to some 14 digits.
pub(super) fn incomplete_beta(a: f64, b: f64, x: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    if x >= 1.0 {
        return 1.0;
    }
    // The fraction converges fast below the mean of the distribution; above, its mirror does.
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - incomplete_beta(b, a, 1.0 - x);
    }
    let front = libm::lgamma(a + b) - libm::lgamma(a) - libm::lgamma(b) + a * x.ln() + b * (-x).ln_1p();
    let away = |value: f64| if value.abs() < 1e-300 { 1e-300 } else { value };
    let (mut c, mut d) = (1.0, 1.0 / away(1.0 - (a + b) * x / (a + 1.0)));
    let mut fraction = d;
    for m in (1..10_000).map(f64::from) {
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let before = fraction;
        for term in [even, odd] {
            d = 1.0 / away(1.0 + term * d);
            c = away(1.0 + term / c);
            fraction *= c * d;
        }
        if (fraction - before).abs() <= 1e-15 * fraction.abs() {
            break;
        }
    }
    front.exp() * fraction / a
}

/// The probability that a two-sided t test at level `alpha` rejects, where the true mean is
/// `effect` standard errors from 0: `P(|T| > t)` of the noncentral t distribution, `T = (Z +
/// effect) / s` with `s^2` a chi-squared variable over its `df` degrees of freedom (Johnson, Kotz
/// and Balakrishnan 1995, chapter 31).
///
/// Integrated over `s` by Simpson's rule to some 7 digits.
pub fn t_test_power(effect: f64, df: f64, alpha: f64) -> f64 {
    power_beyond(effect, df, -quantile(alpha / 2.0, df))
}

/// `P(|T| > t)` of the same.
pub(super) fn power_beyond(effect: f64, df: f64, t: f64) -> f64 {
    given_spread(df, |s| normal::cumulative(effect - t * s) + normal::cumulative(-effect - t * s))
}

/// The same of a one-sided test: `P(T > t)`, `t` the quantile of `1 - alpha`.
pub fn one_sided_t_test_power(effect: f64, df: f64, alpha: f64) -> f64 {
    let t = -quantile(alpha, df);
    given_spread(df, |s| normal::cumulative(effect - t * s))
}

/// The mean of `value(s)` over `s = sqrt(chi-squared / df)`.
fn given_spread(df: f64, value: impl Fn(f64) -> f64) -> f64 {
    const STEPS: u32 = 400;
    // The density is negligible 9 standard deviations (about 1 / sqrt(2 df)) from 1.
    let reach = 9.0 / (2.0 * df).sqrt();
    let (from, to) = ((1.0 - reach).max(1e-9), 1.0 + reach);
    let log_front = std::f64::consts::LN_2 + (df / 2.0) * (df / 2.0).ln() - libm::lgamma(df / 2.0);
    let density = |s: f64| (log_front + (df - 1.0) * s.ln() - df * s * s / 2.0).exp();
    let step = (to - from) / f64::from(STEPS);
    let (mut sum, mut mass) = (0.0, 0.0);
    for i in 0..=STEPS {
        let s = from + step * f64::from(i);
        let weight = if i == 0 || i == STEPS { 1.0 } else { f64::from(2 + 2 * (i % 2)) };
        sum += weight * density(s) * value(s);
        mass += weight * density(s);
    }
    // Over the mass: what the rule errs by is in both.
    sum / mass
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_tables() {
        // scipy.stats.t.ppf
        for (p, df, t) in [
            (0.975, 1.0, 12.706_204_736_174_694),
            (0.975, 9.0, 2.262_157_162_798_205),
            (0.975, 19.0, 2.093_024_054_408_309),
            (0.999, 13.0, 3.851_982_391_168_387),
            (0.025, 59.0, -2.000_995_378_088_268),
            (0.9, 1e6, 1.281_552_412_129_94),
        ] {
            let ours = quantile(p, df);
            assert!((ours / t - 1.0).abs() < 1e-9, "{p} {df}: {ours}");
            assert!((cumulative(ours, df) - p).abs() < 1e-9, "{p} {df}");
        }
        assert_eq!((quantile(0.5, 3.0), quantile(0.0, 3.0)), (0.0, f64::NEG_INFINITY));
        assert!(quantile(1.5, 3.0).is_nan() && quantile(0.3, 0.0).is_nan());
    }

    #[test]
    fn power_is_that_of_the_noncentral_distribution() {
        // No effect: the level. Else scipy.stats.nct: sf(t, df, effect) + cdf(-t, df, effect).
        for (effect, df, alpha, power) in [
            (0.0, 9.0, 0.05, 0.05),
            (0.0, 3.0, 0.01, 0.01),
            (10f64.sqrt(), 9.0, 0.05, 0.803_096_856_6),
            (0.5 * 20f64.sqrt(), 19.0, 0.05, 0.564_504_418_4),
            (4.0, 2.0, 0.002, 0.033_399_500_4),
            (3.9, 25.0, 0.05 / 23.0, 0.679_986_924_7),
        ] {
            let ours = t_test_power(effect, df, alpha);
            assert!((ours - power).abs() < 1e-7, "{effect} {df}: {ours} for {power}");
        }
        assert!((one_sided_t_test_power(0.0, 12.0, 0.025) - 0.025).abs() < 1e-7);
        let large = one_sided_t_test_power(2.8, 1e5, 0.025);
        assert!((large - normal::cumulative(2.8 - 1.959_963_98)).abs() < 1e-4, "{large}");
    }
}
