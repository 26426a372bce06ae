//! The rotary embedding that a configuration asks for: which base, and how its frequencies are
//! stretched beyond the length that the model was trained with.
//!
//! Four places can say it: `rope_parameters` (transformers 5), `rope_scaling`, `rope_theta` (4)
//! and, for yarn and llama3, `original_max_position_embeddings` beside them. Which one counts is
//! what transformers 5.24 does (`RotaryEmbeddingConfigMixin.convert_rope_params_to_dict`,
//! `standardize_rope_params`): a `rope_scaling` that is neither null nor empty *replaces*
//! `rope_parameters`; its own `rope_theta` goes before the one beside it. `config_references.py` of
//! the tools asks transformers itself, `tests/rope.rs` compares.

use std::f64::consts::PI;
use std::ops::Range;

use karat_backend::BackendError;
use serde_json::{Map, Value};

use crate::keys::{Keys, unimplemented, wrong};

/// transformers' `default_theta`.
pub(crate) const DEFAULT_THETA: f64 = 10_000.0;
/// No base of a real model is larger.
const LARGEST_THETA: f64 = 1e15;

/// How frequencies are stretched.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scaling {
    /// `theta^(-2j/d)` as it is.
    Default,
    /// All frequencies divided by a factor (Chen et al., arXiv 2306.15595).
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Low frequencies divided, high ones kept, a ramp between (Llama 3.1;
    /// `modeling_rope_utils._compute_llama3_parameters`).
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original / low` are low frequencies.
        low: f64,
        /// Wavelengths below `original / high` are high frequencies.
        high: f64,
        /// Length the model was trained with.
        original: f64,
    },
    /// The same by dimensions instead of wavelengths, and larger logits (Peng et al., arXiv
    /// 2309.00071; `modeling_rope_utils._compute_yarn_parameters`).
    Yarn {
        /// The divisor of low frequencies.
        factor: f64,
        /// Length the model was trained with.
        original: f64,
        /// Rotations within that length above which a frequency is kept.
        beta_fast: f64,
        /// Rotations below which it is divided.
        beta_slow: f64,
        /// Whether the ends of the ramp are whole dimensions.
        truncate: bool,
        /// What cosines and sines are multiplied by.
        attention_factor: f64,
    },
}

/// A rotary embedding.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// How they are stretched.
    pub scaling: Scaling,
}

impl Rope {
    /// The frequencies as they are, over the base `theta`.
    pub fn plain(theta: f64) -> Self {
        Rope { theta, scaling: Scaling::Default }
    }

    /// What the keys of a `config.json` ask for. `max_positions` is its `max_position_embeddings`.
    /// Keys of the section that its type does not read are named in `remarks`: transformers passes
    /// over them too, with a warning.
    pub(crate) fn read(keys: Keys<'_>, max_positions: usize, remarks: &mut Vec<String>) -> Result<Self, BackendError> {
        let (rope, Part { factor, place }) = Rope::read_part(keys, max_positions, DEFAULT_THETA, remarks)?;
        match factor {
            None | Some(1.0) => Ok(rope),
            Some(factor) => Err(unimplemented(format!("partial_rotary_factor {factor} ({place})"))),
        }
    }

    /// As [`Rope::read`], over the base `theta` where none is given, and which part of a head's
    /// dimensions is rotated.
    pub(crate) fn read_part(
        keys: Keys<'_>,
        max_positions: usize,
        theta: f64,
        remarks: &mut Vec<String>,
    ) -> Result<(Self, Part), BackendError> {
        let section = |key: &str| match keys.some(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map).filter(|map| !map.is_empty())),
            Some(other) => Err(wrong(key, "an object or null", other)),
        };
        let (scaling, parameters) = (section("rope_scaling")?, section("rope_parameters")?);
        let (name, map) = match (scaling, parameters) {
            (Some(map), _) => ("rope_scaling", Some(map)),
            (None, map) => ("rope_parameters", map),
        };
        let empty = Map::new();
        let section = Section { name, keys: Keys(map.unwrap_or(&empty)), outer: keys, max_positions };
        let (rope, part) = section.read(theta, remarks)?;
        let unread: Vec<&str> = section.keys.0.keys().map(String::as_str).filter(|key| !rope.reads(key)).collect();
        if !unread.is_empty() {
            let kind = section.kind()?;
            remarks.push(format!("{name}: {} changes nothing for rope_type \"{kind}\"", unread.join(", ")));
        }
        if let (Some(scaling), Some(parameters)) = (scaling, parameters)
            && scaling != parameters
        {
            remarks.push(
                "rope_scaling and rope_parameters are both given and differ: rope_scaling counts alone, as in \
                 transformers 5; remove one of them"
                    .into(),
            );
        }
        Ok((rope, part))
    }

    /// Whether this type of embedding reads `key` in its section.
    fn reads(&self, key: &str) -> bool {
        let own: &[&str] = match self.scaling {
            Scaling::Default => &[],
            Scaling::Linear { .. } => &["factor"],
            Scaling::Llama3 { .. } => {
                &["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]
            }
            Scaling::Yarn { .. } => &[
                "factor",
                "original_max_position_embeddings",
                "attention_factor",
                "beta_fast",
                "beta_slow",
                "mscale",
                "mscale_all_dim",
                "truncate",
            ],
        };
        ["rope_type", "type", "rope_theta", "partial_rotary_factor"].contains(&key) || own.contains(&key)
    }

    /// The angle of each pair of dimensions for one position, `[head_dim / 2]`, in radians:
    /// computed in f64 and rounded to f32, in which transformers computes and keeps them.
    pub fn inverse_frequencies(&self, head_dim: usize) -> Vec<f32> {
        let dim = head_dim as f64;
        let ramp = match self.scaling {
            Scaling::Yarn { original, beta_fast, beta_slow, truncate, .. } => {
                yarn_ramp(self.theta, dim, original, [beta_fast, beta_slow], truncate)
            }
            _ => [0.0, 0.0],
        };
        let frequency = |j: usize| {
            let plain = self.theta.powf(-2.0 * j as f64 / dim);
            let stretched = match self.scaling {
                Scaling::Default => plain,
                Scaling::Linear { factor } => plain / factor,
                Scaling::Llama3 { factor, low, high, original } => {
                    let wavelength = 2.0 * PI / plain;
                    if wavelength > original / low {
                        plain / factor
                    } else if wavelength < original / high {
                        plain
                    } else {
                        let smooth = (original / wavelength - low) / (high - low);
                        (1.0 - smooth) * plain / factor + smooth * plain
                    }
                }
                Scaling::Yarn { factor, .. } => {
                    let divided = ((j as f64 - ramp[0]) / (ramp[1] - ramp[0])).clamp(0.0, 1.0);
                    plain / factor * divided + plain * (1.0 - divided)
                }
            };
            stretched as f32
        };
        (0..head_dim / 2).map(frequency).collect()
    }

    /// What cosines and sines are multiplied by: 1 but for yarn.
    pub fn attention_factor(&self) -> f32 {
        match self.scaling {
            Scaling::Yarn { attention_factor, .. } => attention_factor as f32,
            _ => 1.0,
        }
    }

    /// Cosines and sines of the first `positions`, `[positions, head_dim / 2]` each, times the
    /// attention factor. Angles are products in f32, and cosines and sines are rounded before they
    /// are scaled, as transformers has it.
    pub fn tables(&self, head_dim: usize, positions: usize) -> (Vec<f32>, Vec<f32>) {
        tables(&self.inverse_frequencies(head_dim), self.attention_factor(), 0..positions)
    }
}

/// Cosines and sines of `positions`, times `factor`.
pub(crate) fn tables(frequencies: &[f32], factor: f32, positions: Range<usize>) -> (Vec<f32>, Vec<f32>) {
    let angles = positions.flat_map(|p| frequencies.iter().map(move |f| f64::from(p as f32 * f)));
    angles.map(|a| (a.cos() as f32 * factor, a.sin() as f32 * factor)).unzip()
}

/// The part of a head's dimensions that is rotated, if a key says so, and where that key stands.
pub(crate) struct Part {
    pub factor: Option<f64>,
    place: &'static str,
}

/// The first and the last dimension of yarn's ramp.
fn yarn_ramp(theta: f64, dim: f64, original: f64, betas: [f64; 2], truncate: bool) -> [f64; 2] {
    let dimension = |rotations: f64| dim * (original / (rotations * 2.0 * PI)).ln() / (2.0 * theta.ln());
    let [low, high] = betas.map(dimension);
    let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
    let (low, high) = (low.max(0.0), high.min(dim - 1.0));
    // transformers' own way around a division by zero.
    [low, if low == high { high + 0.001 } else { high }]
}

/// The section that counts, and what stands beside it.
struct Section<'a> {
    name: &'static str,
    keys: Keys<'a>,
    outer: Keys<'a>,
    max_positions: usize,
}

impl Section<'_> {
    /// Names the section in an error about one of its keys.
    fn inside<T>(&self, result: Result<T, BackendError>) -> Result<T, BackendError> {
        result.map_err(|e| BackendError { message: format!("{}: {}", self.name, e.message), ..e })
    }

    fn kind(&self) -> Result<&str, BackendError> {
        let key = if self.keys.get("rope_type").is_some() { "rope_type" } else { "type" };
        Ok(self.inside(self.keys.text(key))?.unwrap_or("default"))
    }

    fn read(&self, default_theta: f64, remarks: &mut Vec<String>) -> Result<(Rope, Part), BackendError> {
        if let Some((kind, _)) = self.keys.0.iter().find(|(_, value)| value.is_object()) {
            return Err(unimplemented(format!("a rotary embedding for each kind of layer ({}, {kind:?})", self.name)));
        }
        let kind = self.kind()?;
        let mut part = Part { factor: None, place: self.name };
        for (keys, place) in [(self.outer, "config.json"), (self.keys, self.name)] {
            if let Some(factor) = keys.some("partial_rotary_factor") {
                let fits = factor.as_f64().filter(|x| *x > 0.0 && *x <= 1.0);
                let fits = fits.ok_or_else(|| wrong("partial_rotary_factor", "a number above 0 and at most 1", factor));
                part = Part { factor: Some(fits?), place };
            }
        }
        let want = "a number above 1 and at most 1e15";
        let theta = |keys: Keys<'_>| keys.number_that("rope_theta", want, |t| t > 1.0 && t <= LARGEST_THETA);
        let theta = match self.inside(theta(self.keys))? {
            Some(inside) => {
                // It does not count, but one that cannot be is a sign of a broken file.
                if self.outer.some("rope_theta").is_some() && theta(self.outer)? != Some(inside) {
                    remarks
                        .push(format!("rope_theta stands beside and in {}: {inside}, as it says, counts", self.name));
                }
                inside
            }
            None => theta(self.outer)?.unwrap_or(default_theta),
        };
        let scaling = match kind {
            "default" => Scaling::Default,
            "linear" => Scaling::Linear { factor: self.need("factor")? },
            "llama3" => {
                let (low, high) = (self.need("low_freq_factor")?, self.need("high_freq_factor")?);
                if high <= low {
                    return Err(BackendError::failed(format!(
                        "{}: \"high_freq_factor\" {high} must be above \"low_freq_factor\" {low}",
                        self.name
                    )));
                }
                Scaling::Llama3 { factor: self.need("factor")?, low, high, original: self.original()? }
            }
            "yarn" => self.yarn()?,
            other => {
                return Err(BackendError::unsupported(format!(
                    "rope type {other:?} ({}) is not implemented (implemented: default, linear, llama3, yarn)",
                    self.name
                )));
            }
        };
        Ok((Rope { theta, scaling }, part))
    }

    /// A positive number, if it is there; neither so small nor so large that frequencies vanish.
    fn positive(&self, key: &str) -> Result<Option<f64>, BackendError> {
        self.inside(self.keys.number_that(key, "a number from 1e-6 to 1e9", |x| (1e-6..=1e9).contains(&x)))
    }
    fn need(&self, key: &str) -> Result<f64, BackendError> {
        let missing = || BackendError::failed(format!("{}: \"{key}\" is missing for its rope_type", self.name));
        self.positive(key)?.ok_or_else(missing)
    }
    /// As `positive`, where null or 0 is as good as nothing: Python's `value or default`.
    fn positive_or(&self, key: &str, default: f64) -> Result<f64, BackendError> {
        match self.keys.some(key) {
            None => Ok(default),
            Some(value) if value.as_f64() == Some(0.0) => Ok(default),
            Some(_) => Ok(self.positive(key)?.unwrap_or(default)),
        }
    }
    /// Length the model was trained with: beside the section, in it, or the longest there is.
    fn original(&self) -> Result<f64, BackendError> {
        let key = "original_max_position_embeddings";
        let inside = self.inside(self.keys.optional_size(key))?;
        Ok(self.outer.optional_size(key)?.or(inside).unwrap_or(self.max_positions) as f64)
    }

    fn yarn(&self) -> Result<Scaling, BackendError> {
        let original = self.original()?;
        let factor = match self.keys.get("factor") {
            Some(Value::Null) => self.max_positions as f64 / original,
            _ => self.need("factor")?,
        };
        let (beta_fast, beta_slow) = (self.positive_or("beta_fast", 32.0)?, self.positive_or("beta_slow", 1.0)?);
        if beta_fast < beta_slow {
            return Err(BackendError::failed(format!(
                "{}: \"beta_fast\" {beta_fast} must not be below \"beta_slow\" {beta_slow}",
                self.name
            )));
        }
        let truncate = match self.keys.get("truncate") {
            // Left out it is true; null is false to Python.
            Some(Value::Null) => false,
            _ => self.inside(self.keys.flag("truncate"))?.unwrap_or(true),
        };
        let scale = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
        let (mscale, all) = (self.positive_or("mscale", 0.0)?, self.positive_or("mscale_all_dim", 0.0)?);
        let attention_factor = match self.keys.some("attention_factor") {
            Some(_) => self.need("attention_factor")?,
            None if mscale != 0.0 && all != 0.0 => scale(mscale) / scale(all),
            None => scale(1.0),
        };
        Ok(Scaling::Yarn { factor, original, beta_fast, beta_slow, truncate, attention_factor })
    }
}
