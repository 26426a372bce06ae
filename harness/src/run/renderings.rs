//! The data of a suite as its models are asked: one rendering for all that share tokenizer, chat
//! template and system turn, and one for each that has its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::data::companions;
use crate::error::{Error, Result};
use crate::fsio::{sha256, sha256_file};
use crate::model_dir::{ModelDir, holds_both, said_of_both};
use crate::report::compare::{Mismatch, differing};
use crate::report::{Fingerprints, Language, Warning};
use crate::run::pipeline::generate_config;
use crate::run::subject::{locate, rendering};
use crate::run::{Prepared, prepare};
use crate::suite::{NamedModel, Suite, SuiteModel, TemplateChoice};

/// What decides how a model is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Asking {
    /// The folder of tokenizer and template.
    folder: PathBuf,
    template: TemplateChoice,
    system_prompt: String,
}

/// The renderings of a suite.
pub(super) struct Renderings {
    /// That of the suite.
    pub main: Prepared,
    main_asking: Asking,
    others: Vec<(Asking, Prepared)>,
    /// The rendering of each model that has not the suite's, by its place in `others`.
    of: BTreeMap<String, usize>,
    /// What the user should know of them.
    pub notes: Vec<String>,
}

impl Renderings {
    /// Renders the data of `suite` for its models.
    ///
    /// # Errors
    /// As [`prepare`]; usage, for models that are asked differently without leave (`eval.allow`).
    pub fn new(suite: &Suite) -> Result<Renderings> {
        let folder = rendering(suite)?;
        let main = Asking {
            folder: folder.clone(),
            template: suite.data.template,
            system_prompt: suite.data.system_prompt.clone(),
        };
        let mut renderings = Renderings {
            main: prepare(suite)?,
            main_asking: main.clone(),
            others: Vec::new(),
            of: BTreeMap::new(),
            notes: Vec::new(),
        };
        let models = suite.all_models();
        for SuiteModel { name, entry, .. } in models.iter().filter(|m| m.entry.predictions.is_none()) {
            let (asking, note) = asking(entry, &models, suite, &main)?;
            renderings.notes.extend(note.map(|note| format!("{name}: {note}")));
            let both = entry.path.as_ref().filter(|path| entry.adapter.is_none() && holds_both(path));
            renderings.notes.extend(both.map(|path| format!("{name}: {}", said_of_both(path))));
            if let (Some(path), Some(adapter)) = (&entry.path, &entry.adapter)
                && let Ok(own) = ModelDir::of_adapter(adapter)
                && let Ok(given) = ModelDir::resolve(path, None)
                && own.model.canonicalize().ok() != given.model.canonicalize().ok()
            {
                let (own, given) = (own.model.display(), path.display());
                renderings.notes.push(format!("{name}: the adapter names {own} as its base, and is put on {given}"));
            }
            if asking == main {
                continue;
            }
            let known = renderings.others.iter().position(|(known, _)| *known == asking);
            let at = match known {
                Some(at) => at,
                None => {
                    let mut prepared = prepare(&asked_so(suite, &asking))?;
                    // All models are asked with the same settings: the base's.
                    prepared.generation.clone_from(&renderings.main.generation);
                    renderings.others.push((asking, prepared));
                    renderings.others.len() - 1
                }
            };
            renderings.of.insert(name.clone(), at);
            renderings.check(name, suite)?;
        }
        Ok(renderings)
    }

    /// One rendering for all.
    pub fn single(main: Prepared, suite: &Suite) -> Renderings {
        let data = &suite.data;
        let main_asking = Asking {
            folder: suite.model.base.clone(),
            template: data.template,
            system_prompt: data.system_prompt.clone(),
        };
        Renderings { main, main_asking, others: Vec::new(), of: BTreeMap::new(), notes: Vec::new() }
    }

    /// What the model called `name` is asked.
    pub fn of(&self, name: &str) -> &Prepared {
        self.of.get(name).map_or(&self.main, |at| &self.others[*at].1)
    }

    /// The fingerprints of a model that is not asked as the suite says; none of one that is.
    pub fn fingerprints(&self, name: &str, suite: &Suite) -> Option<Fingerprints> {
        self.of.get(name).map(|at| fingerprints(&self.others[*at].1, suite))
    }

    /// A warning where models of several tokenizers stand side by side.
    pub fn warning(&self, language: Language) -> Option<Warning> {
        let other = |at: usize| self.others[at].0.folder != self.main_asking.folder;
        let names: Vec<&str> = self.of.iter().filter(|(_, at)| other(**at)).map(|(name, _)| name.as_str()).collect();
        if names.is_empty() {
            return None;
        }
        let list = names.join(language.pick(", ", "、"));
        let text = language.pick(
            format!(
                "{list} read other tokens than the rest: values a token (nll, perplexity) do not compare with theirs, \
                 bits_per_byte does."
            ),
            format!(
                "{list} 使用不同的分词器：按词元计的指标（nll、perplexity）不可与其他模型比较，bits_per_byte 可以。"
            ),
        );
        Some(Warning::Other { text })
    }

    /// Refuses a model that is asked other items, or asked otherwise without leave.
    fn check(&self, name: &str, suite: &Suite) -> Result<()> {
        let (ours, theirs) = (&self.main, self.of(name));
        if let Some(item) = first_difference(ours, theirs) {
            return Err(Error::data(format!(
                "the item {item} can be asked of some models of the suite and not of {name}"
            ))
            .help("leave the item out of the data, or evaluate the model in a suite of its own"));
        }
        let (a, b) = (fingerprints(ours, suite), fingerprints(theirs, suite));
        let refused: Vec<Mismatch> =
            differing(&a, &b).into_iter().filter(|m| !suite.eval.allow.contains(&m.what)).collect();
        if refused.is_empty() {
            return Ok(());
        }
        let list: Vec<String> =
            refused.iter().map(|m| format!("{} ({} against {})", m.what, m.first, m.second)).collect();
        let keys: Vec<String> = refused.iter().map(|m| format!("{:?}", m.what)).collect();
        Err(Error::usage(format!("{name} is not asked as the other models are: they differ in {}", list.join("; ")))
            .at(format!("models.{name}"))
            .help(format!(
                "give all models the same tokenizer, template and system_prompt, or compare them all the same with \
                 [eval] allow = [{}]",
                keys.join(", ")
            )))
    }
}

/// The fingerprints of a rendering.
pub(super) fn fingerprints(prepared: &Prepared, suite: &Suite) -> Fingerprints {
    Fingerprints {
        data: prepared.data_fingerprint(),
        prompts: prepared.prompts_fingerprint(),
        template: prepared.template_fingerprint(),
        decoding: sha256(generate_config(suite, prepared).deciding().as_bytes()),
    }
}

fn first_difference(ours: &Prepared, theirs: &Prepared) -> Option<String> {
    let ids = |prepared: &Prepared| prepared.items.iter().map(|item| item.id.clone()).collect::<Vec<_>>();
    let (ours, theirs) = (ids(ours), ids(theirs));
    let at = ours.iter().zip(&theirs).position(|(a, b)| a != b);
    let at = at.or((ours.len() != theirs.len()).then_some(ours.len().min(theirs.len())))?;
    ours.get(at).or(theirs.get(at)).cloned()
}

/// `suite` for models that are asked so.
fn asked_so(suite: &Suite, asking: &Asking) -> Suite {
    let mut suite = suite.clone();
    suite.model.base.clone_from(&asking.folder);
    suite.data.template = asking.template;
    suite.data.system_prompt.clone_from(&asking.system_prompt);
    suite
}

/// How `entry` is asked, and what to say of a template of its own that is not used.
fn asking(entry: &NamedModel, models: &[SuiteModel], suite: &Suite, main: &Asking) -> Result<(Asking, Option<String>)> {
    let own = ancestor(entry, models)?;
    let mut asking = Asking {
        folder: main.folder.clone(),
        template: entry.template.unwrap_or(suite.data.template),
        system_prompt: entry.system_prompt.clone().unwrap_or_else(|| suite.data.system_prompt.clone()),
    };
    let Some(own) = own.filter(|own| *own != main.folder) else { return Ok((asking, None)) };
    // A model's own template is wanted where its table says so.
    if entry.template == Some(TemplateChoice::Model) || has_other_tokenizer(&own, &main.folder)? {
        asking.folder = own;
        return Ok((asking, None));
    }
    let differs = match suite.data.template {
        TemplateChoice::Model => companions::differences(&main.folder, &own)?,
        _ => Vec::new(),
    };
    let note = (!differs.is_empty()).then(|| {
        format!(
            "its own {} differs from that of {} and is not used; template = \"model\" in its table uses it",
            differs.join(" and "),
            main.folder.display()
        )
    });
    Ok((asking, note))
}

/// The folder of the model that `entry` is, or is trained from in the end.
fn ancestor(entry: &NamedModel, models: &[SuiteModel]) -> Result<Option<PathBuf>> {
    let mut entry = entry;
    while let Some(train) = &entry.train {
        let from = models.iter().find(|model| Some(&model.name) == train.from.as_ref());
        match from {
            Some(from) => entry = &from.entry,
            None => return Ok(None),
        }
    }
    Ok(Some(locate(entry)?.model))
}

/// Whether `model` has a tokenizer, and not the one of `base`.
pub(super) fn has_other_tokenizer(model: &Path, base: &Path) -> Result<bool> {
    let (theirs, ours) = (model.join("tokenizer.json"), base.join("tokenizer.json"));
    Ok(theirs.is_file() && (!ours.is_file() || sha256_file(&theirs)? != sha256_file(&ours)?))
}
