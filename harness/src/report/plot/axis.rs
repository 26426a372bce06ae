//! Axes: a scale from data to drawing, with ticks at round numbers.

use super::super::number::fixed;

/// A linear scale. `to` may lie before `from`: drawings count downwards.
#[derive(Clone, Copy)]
pub(super) struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Scale {
    /// Maps `low..high` to `from..to`; an empty range is widened.
    pub fn new(low: f64, high: f64, from: f64, to: f64) -> Self {
        let high = if high > low { high } else { low + if low == 0.0 { 1.0 } else { low.abs() * 0.1 } };
        Scale { low, high, from, to }
    }

    pub fn at(&self, x: f64) -> f64 {
        self.from + (x - self.low) / (self.high - self.low) * (self.to - self.from)
    }
}

/// Round numbers from at or below `low` to at or above `high`, about `count` of them: steps of 1, 2
/// or 5 times a power of ten. With the decimals they need.
pub(super) fn ticks(low: f64, high: f64, count: usize) -> (Vec<f64>, usize) {
    let span = if high > low { high - low } else { low.abs().max(1.0) * 0.1 };
    // Below this a step is no number that divides, above it the span is none.
    let rough = (span / count.max(1) as f64).clamp(1e-300, 1e300);
    let power = rough.log10().floor();
    let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * 10f64.powf(power)).into_iter().find(|s| *s >= rough * 0.999);
    let step = step.unwrap_or(10f64.powf(power + 1.0));
    let decimals = (-step.log10().floor()).clamp(0.0, 12.0) as usize;
    let first = (low / step + 1e-9).floor() as i64;
    let last = ((high / step - 1e-9).ceil() as i64).max(first.saturating_add(1));
    // Where the ends are so far from 0 that doubles between them are sparse, rounding may put them
    // anywhere.
    let last = last.min(first.saturating_add(8 * count.max(1) as i64));
    ((first..=last).map(|i| i as f64 * step).collect(), decimals)
}

/// A tick's label.
pub(super) fn label(tick: f64, decimals: usize) -> String {
    fixed(tick, decimals)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_cover_the_range() {
        assert_eq!(ticks(0.0, 10.0, 5), (vec![0.0, 2.0, 4.0, 6.0, 8.0, 10.0], 0));
        let (t, decimals) = ticks(1.13, 2.87, 4);
        assert_eq!((t.first(), t.last(), decimals), (Some(&1.0), Some(&3.0), 1));
        let (t, decimals) = ticks(0.0, 0.043, 4);
        assert_eq!((t.len(), decimals), (4, 2));
    }

    #[test]
    fn a_flat_curve_still_has_an_axis() {
        for x in [0.0, 1.0, -3.0, 1e-9] {
            let (t, _) = ticks(x, x, 4);
            assert!(t.len() >= 2 && t.len() < 20, "{x}: {t:?}");
            assert!(Scale::new(x, x, 0.0, 100.0).at(x).is_finite());
        }
    }
}
