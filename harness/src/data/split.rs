//! Python's `random` bit for bit, and the recipe's split by parts.
//!
//! The public recipes do `random.seed(42); random.shuffle(rows)` and cut at `int(len(rows) * 0.9)`.
//! To have the same validation rows as their published tables, the generator (MT19937, seeded by
//! `init_by_array` with the 32-bit words of the seed's absolute value), `_randbelow` (rejection of
//! `getrandbits`), `shuffle` (Fisher-Yates from the end) and `sample` are those of CPython 3.2 to
//! 3.14.

use std::collections::BTreeSet;
use std::str::FromStr;

use rand_mt::Mt;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// `random.Random(seed)` of Python for an integer seed.
#[derive(Clone, Debug)]
pub struct PyRandom(Mt);

impl PyRandom {
    /// `random.seed(seed)`. As in Python, the sign does not matter.
    pub fn new(seed: i128) -> Self {
        let magnitude = seed.unsigned_abs();
        let words = (128 - magnitude.leading_zeros()).div_ceil(32).max(1);
        PyRandom(Mt::new_with_key((0..words).map(move |i| (magnitude >> (32 * i)) as u32)))
    }

    /// `random.getrandbits(bits)` for 1 to 64 bits.
    fn bits(&mut self, bits: u32) -> u64 {
        let word = |rng: &mut Mt, bits: u32| u64::from(rng.next_u32() >> (32 - bits));
        if bits <= 32 {
            return word(&mut self.0, bits);
        }
        let low = word(&mut self.0, 32);
        low | word(&mut self.0, bits - 32) << 32
    }

    /// `random.randrange(n)`: uniform in `0..n`, for `n` of at least 1.
    pub fn below(&mut self, n: usize) -> usize {
        assert!(n > 0, "nothing is below 0");
        let bits = usize::BITS - n.leading_zeros();
        loop {
            let drawn = self.bits(bits);
            if drawn < n as u64 {
                return drawn as usize;
            }
        }
    }

    /// `random.shuffle(rows)`.
    pub fn shuffle<T>(&mut self, rows: &mut [T]) {
        for i in (1..rows.len()).rev() {
            let j = self.below(i + 1);
            rows.swap(i, j);
        }
    }

    /// `random.sample(range(n), k)`: `k` different numbers below `n`, in the order drawn.
    ///
    /// # Errors
    /// If `k` is more than `n`.
    pub fn sample(&mut self, n: usize, k: usize) -> Result<Vec<usize>> {
        if k > n {
            let help = format!("ask for at most {n}");
            return Err(Error::usage(format!("cannot pick {k} of {n} rows")).help(help));
        }
        // Python picks between a pool and a set by estimated memory; the choice changes what is
        // drawn.
        let mut set_size = 21.0;
        if k > 5 {
            // 3k is never a power of 4, so no rounding error can move the ceiling.
            set_size += 4f64.powf((((3 * k) as f64).ln() / 4f64.ln()).ceil());
        }
        if n as f64 <= set_size {
            let mut pool: Vec<usize> = (0..n).collect();
            return Ok((0..k)
                .map(|i| {
                    let j = self.below(n - i);
                    let picked = pool[j];
                    pool[j] = pool[n - i - 1];
                    picked
                })
                .collect());
        }
        let mut picked = BTreeSet::new();
        Ok((0..k)
            .map(|_| {
                loop {
                    let j = self.below(n);
                    if picked.insert(j) {
                        return j;
                    }
                }
            })
            .collect())
    }
}

/// Parts of a whole, written `9:1` (training, validation) or `8:1:1` (training, validation, test).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SplitParts {
    train: u32,
    validation: u32,
    test: Option<u32>,
}

impl SplitParts {
    /// The recipe's 9:1.
    pub const NINE_ONE: SplitParts = SplitParts { train: 9, validation: 1, test: None };
    /// The other recipe's 8:1:1.
    pub const EIGHT_ONE_ONE: SplitParts = SplitParts { train: 8, validation: 1, test: Some(1) };

    /// Whether there is a third share.
    pub fn has_test(&self) -> bool {
        self.test.is_some()
    }
}

impl FromStr for SplitParts {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        // An error in a suite's file shows the message alone, so the examples stand there too.
        let wrong = || {
            Error::usage(format!("{text:?} is not a split such as 9:1 or 8:1:1"))
                .help("write the parts as whole numbers, like 9:1 or 8:1:1")
        };
        let numbers: Vec<u32> =
            text.split(':').map(|n| n.trim().parse()).collect::<Result<_, _>>().map_err(|_| wrong())?;
        let parts = match numbers[..] {
            [train, validation] => SplitParts { train, validation, test: None },
            [train, validation, test] => SplitParts { train, validation, test: Some(test) },
            _ => return Err(wrong()),
        };
        if numbers.iter().any(|&n| n > 1_000_000) || numbers.iter().sum::<u32>() == 0 {
            return Err(wrong());
        }
        Ok(parts)
    }
}

impl TryFrom<String> for SplitParts {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<SplitParts> for String {
    fn from(parts: SplitParts) -> String {
        match parts.test {
            Some(test) => format!("{}:{}:{test}", parts.train, parts.validation),
            None => format!("{}:{}", parts.train, parts.validation),
        }
    }
}

/// Which rows go where, in the order they are written out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Split {
    /// Rows to train on.
    pub train: Vec<usize>,
    /// Rows to evaluate on.
    pub validation: Vec<usize>,
    /// Rows kept apart; empty for a two-part split.
    pub test: Vec<usize>,
}

/// Shuffles `0..rows` as Python does with `seed` and cuts it: the first `int(rows * share)` rows
/// train, where `share` is the float `train / sum`; the validation ends at `int(rows * share)` of
/// both together; the rest is the test part.
pub fn split(rows: usize, seed: i128, parts: SplitParts) -> Split {
    let mut order: Vec<usize> = (0..rows).collect();
    PyRandom::new(seed).shuffle(&mut order);
    cut(order, parts)
}

/// [`split`] without the shuffle, for data that is already in its order.
pub fn cut(mut order: Vec<usize>, parts: SplitParts) -> Split {
    let whole = f64::from(parts.train + parts.validation + parts.test.unwrap_or(0));
    let rows = order.len() as f64;
    let until = |part: u32| (rows * (f64::from(part) / whole)) as usize;
    let test = match parts.test {
        Some(_) => order.split_off(until(parts.train + parts.validation)),
        None => Vec::new(),
    };
    let train = until(parts.train);
    let validation = order.split_off(train.min(order.len()));
    Split { train: order, validation, test }
}
