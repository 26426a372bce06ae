//! The configuration of an adapter under PEFT's names, and PEFT's rules for which modules get one.
//!
//! The rules are those of peft 0.21's `check_target_module_exists` and `get_pattern_key`, so that a
//! configuration means the same here and there. What PEFT itself reads in two ways is refused:
//! where several keys of a pattern match one module, its answer depends on their order, which its
//! own `adapter_config.json` (sorted keys) does not keep.

use std::collections::BTreeMap;
use std::fmt;

use regex::Regex;
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::BackendError;

type Result<T, E = BackendError> = std::result::Result<T, E>;

/// No adapter of use has a larger alpha.
const LARGEST_ALPHA: f64 = 1e6;

/// PEFT's word for every linear layer but the head.
pub const ALL_LINEAR: &str = "all-linear";

/// A LoRA adapter, under PEFT's names (Hu et al., arXiv 2106.09685; peft `LoraConfig`).
///
/// `y = W x + s * B (A dropout(x))` with `s = lora_alpha / r`, or `lora_alpha / sqrt(r)` with
/// rsLoRA. `B` starts at zero, `A` as [`InitLora`] says. With DoRA (arXiv 2402.09353)
/// `y = m / ||W + s B A|| * (W + s B A) x`, row by row; the norm gets no gradient and `m` starts as
/// `||W||`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// Rank.
    pub r: usize,
    /// Numerator of the scale.
    pub lora_alpha: f64,
    /// Probability of dropping an input of `A` during training.
    pub lora_dropout: f64,
    /// The linear layers that get an adapter.
    pub target_modules: Modules,
    /// Scale by `lora_alpha / sqrt(r)` (arXiv 2312.03732).
    pub use_rslora: bool,
    /// Of these, the ones that get none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exclude_modules: Option<Modules>,
    /// Only the layers of these numbers (from 0); empty is all. Not with a pattern, as in PEFT, and
    /// of no effect on a target that is a whole path.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "one_or_more")]
    pub layers_to_transform: Vec<usize>,
    /// Other ranks for modules whose path ends with a match of the key, a regular expression.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub rank_pattern: BTreeMap<String, usize>,
    /// Other alphas, likewise.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Train the magnitude of each row apart from its direction (DoRA).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub use_dora: bool,
    /// Modules trained whole beside the adapter and stored with it: `norm`, `lm_head` ... A module
    /// is meant whose path ends with one of these texts, wherever that begins (PEFT's rule: `norm`
    /// also means `input_layernorm`).
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "none_or_more")]
    pub modules_to_save: Vec<String>,
    /// What `A` is drawn from.
    #[serde(skip_serializing_if = "InitLora::is_default")]
    pub init_lora_weights: InitLora,
}

impl Default for LoraConfig {
    /// The recipe's: r 8, alpha 32, dropout 0.1, all seven projections.
    fn default() -> Self {
        LoraConfig {
            r: 8,
            lora_alpha: 32.0,
            lora_dropout: 0.1,
            target_modules: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"].into(),
            use_rslora: false,
            exclude_modules: None,
            layers_to_transform: Vec::new(),
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            use_dora: false,
            modules_to_save: Vec::new(),
            init_lora_weights: InitLora::Kaiming,
        }
    }
}

impl LoraConfig {
    /// Every key of a configuration.
    pub const KEYS: [&str; 12] = [
        "r",
        "lora_alpha",
        "lora_dropout",
        "target_modules",
        "use_rslora",
        "exclude_modules",
        "layers_to_transform",
        "rank_pattern",
        "alpha_pattern",
        "use_dora",
        "modules_to_save",
        "init_lora_weights",
    ];

    /// Refuses what cannot be an adapter on any model.
    ///
    /// # Errors
    /// Unsupported, naming the key.
    pub fn check(&self) -> Result<()> {
        let fail = |what: String| Err(BackendError::unsupported(what));
        let ranks = self.rank_pattern.iter().map(|(key, r)| (format!("rank_pattern.{key}"), *r));
        for (key, r) in [("r".to_owned(), self.r)].into_iter().chain(ranks) {
            if r == 0 {
                return fail(format!("{key}: a rank must be at least 1"));
            }
        }
        let alphas = self.alpha_pattern.iter().map(|(key, alpha)| (format!("alpha_pattern.{key}"), *alpha));
        for (key, alpha) in [("lora_alpha".to_owned(), self.lora_alpha)].into_iter().chain(alphas) {
            // What is larger makes numbers that are not finite of any weights.
            if !alpha.is_finite() || alpha.abs() > LARGEST_ALPHA {
                return fail(format!("{key}: an alpha must be a number up to {LARGEST_ALPHA:e}, not {alpha:e}"));
            }
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return fail(format!("lora_dropout = {} must be at least 0 and below 1", self.lora_dropout));
        }
        if self.target_modules.is_empty() {
            return fail("target_modules must name a module".into());
        }
        if !self.layers_to_transform.is_empty() && matches!(self.target_modules, Modules::Pattern(_)) {
            return fail(
                "layers_to_transform cannot stand beside a pattern as target_modules; put it in the pattern".into(),
            );
        }
        if self.modules_to_save.iter().any(String::is_empty) {
            return fail("modules_to_save: an empty name would mean every module".into());
        }
        self.matcher().map(drop)
    }

    /// The rules of this configuration, ready to be asked about modules.
    ///
    /// # Errors
    /// Unsupported, for a pattern that is not a regular expression.
    pub fn matcher(&self) -> Result<Matcher<'_>> {
        let full = |key: &str, modules: &Modules| match modules {
            Modules::Pattern(pattern) if !modules.is_all_linear() => {
                regex(key, &format!("^(?:{pattern})$"), pattern).map(Some)
            }
            _ => Ok(None),
        };
        let end = |key: &str, pattern: &str| regex(key, &format!("^(?:.*\\.)?(?:{pattern})$"), pattern);
        let ranks =
            self.rank_pattern.iter().map(|(key, r)| Ok((end("rank_pattern", key)?, *r))).collect::<Result<_>>()?;
        let alphas =
            self.alpha_pattern.iter().map(|(key, a)| Ok((end("alpha_pattern", key)?, *a))).collect::<Result<_>>()?;
        let whole = |name: &String| regex("modules_to_save", &format!("^(?:|.*\\.)(?:{name})(?:$|\\..*)"), name);
        Ok(Matcher {
            config: self,
            target: full("target_modules", &self.target_modules)?,
            exclude: self.exclude_modules.as_ref().map_or(Ok(None), |m| full("exclude_modules", m))?,
            kept: self.modules_to_save.iter().map(whole).collect::<Result<_>>()?,
            ranks,
            alphas,
        })
    }
}

fn regex(key: &str, built: &str, written: &str) -> Result<Regex> {
    Regex::new(built).map_err(|e| {
        BackendError::unsupported(format!(
            "{key}: {written:?} is not a regular expression that can be used here; look-around and back-references are not \
             implemented; name the modules in a list instead"
        ))
        .because(&e)
    })
}

/// What an adapter on one module is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdapterShape {
    /// Rank.
    pub r: usize,
    /// The factor on `B A x`.
    pub scale: f64,
}

/// The rules of a [`LoraConfig`].
pub struct Matcher<'a> {
    config: &'a LoraConfig,
    target: Option<Regex>,
    exclude: Option<Regex>,
    kept: Vec<Regex>,
    ranks: Vec<(Regex, usize)>,
    alphas: Vec<(Regex, f64)>,
}

impl Matcher<'_> {
    /// The adapter of the linear layer at `path` (`model.layers.0.self_attn.q_proj`), or none.
    ///
    /// # Errors
    /// Unsupported, where two keys of a pattern want different things of it.
    pub fn adapter(&self, path: &str) -> Result<Option<AdapterShape>> {
        let excluded = match (&self.exclude, &self.config.exclude_modules) {
            (Some(pattern), _) => pattern.is_match(path),
            (None, Some(Modules::Names(names))) => names.iter().any(|name| names_it(name, path)),
            // The word is no pattern here: PEFT takes it as a regular expression that matches
            // nothing.
            (None, _) => false,
        };
        if excluded || self.kept.iter().any(|pattern| pattern.is_match(path)) || !self.targeted(path) {
            return Ok(None);
        }
        let r = only("rank_pattern", &self.ranks, path)?.unwrap_or(self.config.r);
        let alpha = only("alpha_pattern", &self.alphas, path)?.unwrap_or(self.config.lora_alpha);
        let under = r as f64;
        Ok(Some(AdapterShape { r, scale: alpha / if self.config.use_rslora { under.sqrt() } else { under } }))
    }

    fn targeted(&self, path: &str) -> bool {
        let Modules::Names(names) = &self.config.target_modules else {
            return match &self.target {
                Some(pattern) => pattern.is_match(path),
                None => !path.ends_with("lm_head"),
            };
        };
        if names.iter().any(|name| name == path) {
            return true;
        }
        let layers = &self.config.layers_to_transform;
        names.iter().any(|name| names_it(name, path))
            && (layers.is_empty() || layer_of(path).is_some_and(|layer| layers.contains(&layer)))
    }

    /// Whether the module at `path` is trained whole.
    pub fn trained_whole(&self, path: &str) -> bool {
        self.config.modules_to_save.iter().any(|name| path.ends_with(name.as_str()))
    }

    /// A name among the targets that matches none of `paths`, if there is one; for a pattern, the
    /// pattern.
    pub fn without_module<'p>(&self, paths: impl Iterator<Item = &'p str> + Clone) -> Option<String> {
        match &self.config.target_modules {
            Modules::Names(names) => names.iter().find(|name| !paths.clone().any(|path| names_it(name, path))).cloned(),
            Modules::Pattern(pattern) => (!paths.clone().any(|path| self.targeted(path))).then(|| pattern.clone()),
        }
    }
}

/// Whether `name` is the whole path or its last part.
fn names_it(name: &str, path: &str) -> bool {
    path == name || path.strip_suffix(name).is_some_and(|rest| rest.ends_with('.'))
}

/// The number behind a layer's name: the first part of the path that is one and has two parts
/// before it.
fn layer_of(path: &str) -> Option<usize> {
    let parts: Vec<&str> = path.split('.').collect();
    parts.iter().enumerate().skip(2).take(parts.len().saturating_sub(3)).find_map(|(_, part)| part.parse().ok())
}

/// What the patterns say of `path`; several may match if they say the same.
fn only<T: Copy + PartialEq + fmt::Display>(key: &str, patterns: &[(Regex, T)], path: &str) -> Result<Option<T>> {
    let mut found: Option<T> = None;
    for (_, value) in patterns.iter().filter(|(pattern, _)| pattern.is_match(path)) {
        match found {
            Some(first) if first != *value => {
                return Err(BackendError::unsupported(format!(
                    "{key}: two keys match {path}, one says {first}, the other {value}; make them exclude each other"
                )));
            }
            _ => found = Some(*value),
        }
    }
    Ok(found)
}

/// What `A` is drawn from; `B` starts at zero in each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InitLora {
    /// `true` in PEFT: `U(-1/sqrt(in), 1/sqrt(in))`.
    #[default]
    Kaiming,
    /// `"gaussian"`: `N(0, 1/r)` with `1/r` as the standard deviation.
    Gaussian,
}

impl InitLora {
    fn is_default(&self) -> bool {
        *self == InitLora::Kaiming
    }
}

impl Serialize for InitLora {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            InitLora::Kaiming => to.serialize_bool(true),
            InitLora::Gaussian => to.serialize_str("gaussian"),
        }
    }
}

impl<'de> Deserialize<'de> for InitLora {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Init;
        impl Visitor<'_> for Init {
            type Value = InitLora;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true or \"gaussian\" (other values of init_lora_weights are not implemented)")
            }
            fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<InitLora, E> {
                match value {
                    true => Ok(InitLora::Kaiming),
                    false => Err(E::invalid_value(serde::de::Unexpected::Bool(false), &self)),
                }
            }
            fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<InitLora, E> {
                match value {
                    "gaussian" => Ok(InitLora::Gaussian),
                    other => Err(E::invalid_value(serde::de::Unexpected::Str(other), &self)),
                }
            }
        }
        from.deserialize_any(Init)
    }
}

/// Modules as PEFT names them: a list of names, each a whole path or its last part, or one regular
/// expression that the whole path must match, or [`ALL_LINEAR`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Modules {
    /// Names.
    Names(Vec<String>),
    /// A regular expression, or [`ALL_LINEAR`].
    Pattern(String),
}

impl Modules {
    /// Nothing is named.
    pub fn is_empty(&self) -> bool {
        match self {
            Modules::Names(names) => names.is_empty(),
            Modules::Pattern(pattern) => pattern.is_empty(),
        }
    }
    /// Whether this is [`ALL_LINEAR`], in any case of its letters.
    pub fn is_all_linear(&self) -> bool {
        matches!(self, Modules::Pattern(word) if word.eq_ignore_ascii_case(ALL_LINEAR))
    }
}

impl<const N: usize> From<[&str; N]> for Modules {
    fn from(names: [&str; N]) -> Self {
        Modules::Names(names.map(String::from).to_vec())
    }
}

impl Serialize for Modules {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Modules::Names(names) => names.serialize(to),
            Modules::Pattern(pattern) => to.serialize_str(pattern),
        }
    }
}

impl<'de> Deserialize<'de> for Modules {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Modules;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of module names, a regular expression or \"all-linear\"")
            }
            fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Modules, E> {
                Ok(Modules::Pattern(value.into()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Modules, A::Error> {
                let mut names = Vec::new();
                while let Some(name) = list.next_element()? {
                    names.push(name);
                }
                Ok(Modules::Names(names))
            }
        }
        from.deserialize_any(Either)
    }
}

/// A number or a list of numbers, as `layers_to_transform` is written.
fn one_or_more<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<usize>, D::Error> {
    struct Layers;
    impl<'de> Visitor<'de> for Layers {
        type Value = Vec<usize>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("the number of a layer or a list of them")
        }
        fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Vec<usize>, E> {
            usize::try_from(value).map(|layer| vec![layer]).map_err(E::custom)
        }
        fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Vec<usize>, E> {
            usize::try_from(value).map(|layer| vec![layer]).map_err(E::custom)
        }
        fn visit_unit<E: serde::de::Error>(self) -> Result<Vec<usize>, E> {
            Ok(Vec::new())
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<usize>, A::Error> {
            let mut layers = Vec::new();
            while let Some(layer) = list.next_element()? {
                layers.push(layer);
            }
            Ok(layers)
        }
    }
    from.deserialize_any(Layers)
}

/// A list, or null for none.
fn none_or_more<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    Option::<Vec<String>>::deserialize(from).map(Option::unwrap_or_default).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests;
