//! Arguments of every command: `key=value`.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::str::FromStr;

/// Arguments by key. A key that a command never asked for is said when it ends.
#[derive(Debug)]
pub struct Args {
    given: BTreeMap<String, String>,
    asked: RefCell<BTreeSet<String>>,
}

impl Args {
    /// Reads `key=value` words.
    ///
    /// # Errors
    /// A word without `=`.
    pub fn read(words: impl Iterator<Item = String>) -> Result<Self, Box<dyn Error>> {
        let pair = |word: String| match word.split_once('=') {
            Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
            None => Err(format!("{word:?} is not of the form key=value")),
        };
        Ok(Args { given: words.map(pair).collect::<Result<_, _>>()?, asked: RefCell::default() })
    }

    /// The value of `key`, if it was given.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.asked.borrow_mut().insert(key.to_owned());
        self.given.get(key).map(String::as_str)
    }

    /// The value of `key`, or `default`.
    pub fn text(&self, key: &str, default: &str) -> String {
        self.get(key).unwrap_or(default).to_owned()
    }

    /// The value of `key`.
    ///
    /// # Errors
    /// If it was not given.
    pub fn needed(&self, key: &str) -> Result<&str, Box<dyn Error>> {
        self.get(key).ok_or_else(|| format!("{key}=... is needed").into())
    }

    /// The number at `key`, or `default`.
    ///
    /// # Errors
    /// If it is no number.
    pub fn number<T: FromStr>(&self, key: &str, default: T) -> Result<T, Box<dyn Error>> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.parse().map_err(|_| format!("{key}={value} is no such number").into()),
        }
    }
}

impl Drop for Args {
    fn drop(&mut self) {
        let asked = self.asked.borrow();
        for key in self.given.keys().filter(|key| !asked.contains(*key)) {
            eprintln!("warning: {key}= was passed over: this command has no such argument");
        }
    }
}

/// Seconds of processor time of this process: on a machine that others use too, the steadier
/// measure.
pub fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<f64> = stat.split_whitespace().skip(13).take(2).filter_map(|f| f.parse().ok()).collect();
    fields.iter().sum::<f64>() / 100.0
}
