//! Where the time of a training run goes, by operation: `KARAT_PROFILE=1`.
//!
//! A [`Timer`] stands at the top of each operation in [`crate::cpu`] and counts, while it lives,
//! the time that passes and the processor time of the whole process. The second over the first is
//! the number of processors at work: an operation far below the number of threads has too few
//! tasks, or waits. Without the variable a timer does nothing.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

#[derive(Clone, Copy, Default)]
struct Sum {
    calls: u64,
    seconds: f64,
    processor: f64,
    work: f64,
}

static SUMS: Mutex<BTreeMap<&'static str, Sum>> = Mutex::new(BTreeMap::new());

/// Whether `KARAT_PROFILE` is set to something other than nothing and `0`; read once.
pub fn wanted() -> bool {
    static WANTED: OnceLock<bool> = OnceLock::new();
    *WANTED.get_or_init(|| std::env::var("KARAT_PROFILE").is_ok_and(|v| !v.is_empty() && v != "0"))
}

/// Seconds that all threads of this process have been at work; 0 where the system does not tell.
#[cfg(unix)]
fn processor_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

#[cfg(not(unix))]
fn processor_seconds() -> f64 {
    0.0
}

/// Counts one call of an operation from its creation to its end. Not to be nested: time would count
/// twice.
#[must_use = "it counts as long as it lives"]
pub struct Timer(Option<(&'static str, f64, Instant, f64)>);

impl Timer {
    /// Starts counting `operation`, which does `work` floating-point operations; 0 where memory and
    /// not arithmetic is what it takes.
    pub fn new(operation: &'static str, work: f64) -> Self {
        Timer(wanted().then(|| (operation, work, Instant::now(), processor_seconds())))
    }
    /// [`Timer::new`] for a product of `[m, k]` and `[k, n]`: `2 m n k` operations.
    pub fn product(operation: &'static str, [m, n, k]: [usize; 3]) -> Self {
        Self::new(operation, 2.0 * m as f64 * n as f64 * k as f64)
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        if let Some((operation, work, started, processor)) = self.0 {
            let (seconds, processor) = (started.elapsed().as_secs_f64(), processor_seconds() - processor);
            let mut sums = SUMS.lock().unwrap_or_else(PoisonError::into_inner);
            let sum = sums.entry(operation).or_default();
            sum.calls += 1;
            sum.seconds += seconds;
            sum.processor += processor;
            sum.work += work;
        }
    }
}

/// Forgets what was counted, for example after a step that warms up.
pub fn reset() {
    SUMS.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

/// Times since the last [`reset`] as a table, the longest first; `wall` is the time that they are a
/// share of, in seconds. `None` if nothing was counted.
pub fn table(wall: f64) -> Option<String> {
    let sums = SUMS.lock().unwrap_or_else(PoisonError::into_inner).clone();
    (!sums.is_empty()).then(|| render(&sums, wall))
}

fn render(sums: &BTreeMap<&'static str, Sum>, wall: f64) -> String {
    let mut rows: Vec<(&str, Sum)> = sums.iter().map(|(name, sum)| (*name, *sum)).collect();
    rows.sort_by(|a, b| b.1.seconds.total_cmp(&a.1.seconds));
    let counted: f64 = rows.iter().map(|(_, sum)| sum.seconds).sum();
    let mut text =
        format!("{:<26}{:>8}{:>10}{:>8}{:>12}{:>10}\n", "operation", "calls", "ms", "share", "processors", "GFLOP/s");
    let share = |seconds: f64| 100.0 * seconds / wall;
    for (name, sum) in rows {
        let speed = if sum.work > 0.0 { format!("{:.0}", sum.work / sum.seconds * 1e-9) } else { String::new() };
        let _ = writeln!(
            text,
            "{name:<26}{:>8}{:>10.1}{:>7.1}%{:>12.2}{speed:>10}",
            sum.calls,
            sum.seconds * 1e3,
            share(sum.seconds),
            sum.processor / sum.seconds,
        );
    }
    let rest = (wall - counted).max(0.0);
    let _ = writeln!(text, "{:<26}{:>8}{:>10.1}{:>7.1}%", "between operations", "", rest * 1e3, share(rest));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_comes_first_with_its_speed_and_the_rest_is_named() {
        let sums = BTreeMap::from([
            ("add", Sum { calls: 2, seconds: 0.1, processor: 0.1, work: 0.0 }),
            ("x W^T", Sum { calls: 3, seconds: 0.5, processor: 0.9, work: 1e11 }),
        ]);
        let text = render(&sums, 0.8);
        let lines: Vec<Vec<&str>> = text.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(lines[1], ["x", "W^T", "3", "500.0", "62.5%", "1.80", "200"]);
        assert_eq!(lines[2], ["add", "2", "100.0", "12.5%", "1.00"]);
        assert_eq!(lines[3], ["between", "operations", "200.0", "25.0%"]);
    }
}
