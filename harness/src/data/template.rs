//! Chat templates: messages to the text a model reads, exactly as transformers renders them.
//!
//! A template is Jinja2 written for Python. transformers renders it in a sandbox with
//! `trim_blocks`, `lstrip_blocks`, loop controls, its own `tojson` (no HTML escapes),
//! `raise_exception`, `strftime_now`, `{% generation %}` blocks, and the tokenizer's special tokens
//! as variables (transformers `utils/chat_template_utils.py`). The same is set up here on
//! minijinja; what Python does and minijinja does not is in `template/python.rs`.
//! `harness/tests/data_template.rs` compares the two on texts that transformers rendered.

mod compile;
mod limits;
mod python;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, LazyLock, OnceLock};

use minijinja::machinery::{eval, make_string_output};
use minijinja::{AutoEscape, Environment, Value};
use regex::{Captures, Regex};
use serde::{Deserialize, Serialize};

pub use super::message::Message;
use super::tokens::SpecialTokens;
use super::untrusted;
use crate::{Error, Result, fsio};

/// The recipe's literal ChatML: every message between `<|im_start|>role\n` and `<|im_end|>\n`,
/// nothing else.
const CHATML_RECIPE: &str = "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + \
    '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// Largest file of a template that is read; what is compiled is bounded in `template/compile.rs`.
const FILE_BYTES: u64 = 16 << 20;

/// Bounds the instructions of a template, so that a hostile one ends with an error (about a
/// second).
const FUEL: u64 = 30_000_000;

/// What a template is told besides the messages.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RenderOptions {
    /// End with the start of an assistant's turn.
    pub add_generation_prompt: bool,
    /// Qwen3's switch; `None` leaves the variable undefined, as a call without it does.
    pub enable_thinking: Option<bool>,
    /// More variables (`tools`, `documents`, whatever the template knows).
    pub extra: BTreeMap<String, serde_json::Value>,
    /// Seconds since 1970 (UTC) that `strftime_now` tells; `None` is the clock's. A report that
    /// must render again should set it: a template that prints the date changes every prompt every
    /// day.
    pub now: Option<i64>,
}

/// A compiled chat template with the tokenizer's special tokens.
#[derive(Clone)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    compiled: Arc<compile::Compiled>,
    /// The same with marks around what `{% generation %}` encloses; compiled when it is first asked
    /// for.
    marked: Arc<OnceLock<Result<compile::Compiled, String>>>,
    source: String,
    origin: String,
    special: SpecialTokens,
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate").field("origin", &self.origin).field("special", &self.special).finish()
    }
}

impl ChatTemplate {
    /// The template of a model folder: `chat_template.jinja`, else `chat_template` in
    /// `tokenizer_config.json` (a text, or a list of named ones, of which `default` is taken), with
    /// the folder's special tokens.
    ///
    /// # Errors
    /// If there is none, or it does not compile.
    pub fn from_model_dir(dir: impl AsRef<Path>) -> Result<Self> {
        Self::named_in_model_dir(dir, "default")
    }

    /// The template called `name` of a model folder: in the list of `tokenizer_config.json`, or
    /// `additional_chat_templates/NAME.jinja`; `default` is the unnamed one.
    ///
    /// # Errors
    /// As [`ChatTemplate::from_model_dir`]; the message lists the names there are.
    pub fn named_in_model_dir(dir: impl AsRef<Path>, name: &str) -> Result<Self> {
        let dir = dir.as_ref();
        let special = SpecialTokens::from_model_dir(dir)?;
        let file = match name {
            "default" => dir.join("chat_template.jinja"),
            _ => dir.join("additional_chat_templates").join(format!("{name}.jinja")),
        };
        if let Some(bytes) = super::tokens::read_file(&file, FILE_BYTES)? {
            let source = String::from_utf8(bytes)
                .map_err(|e| Error::data("the chat template is not UTF-8").at(file.display()).because(e))?;
            return Self::new(&source, &file.display().to_string(), special);
        }
        let config = dir.join("tokenizer_config.json");
        let mut names = Vec::new();
        let wrong = |what: &str| {
            let help = "give a text, or a list of objects with `name` and `template`";
            Error::data(format!("chat_template {what}")).at(config.display()).help(help)
        };
        match super::tokens::read_json(&config)?.and_then(|mut c| c.get_mut("chat_template").map(std::mem::take)) {
            None | Some(serde_json::Value::Null) => {}
            Some(serde_json::Value::String(source)) if name == "default" => {
                return Self::new(&source, &config.display().to_string(), special);
            }
            Some(serde_json::Value::String(_)) => {}
            Some(serde_json::Value::Array(list)) => {
                for entry in &list {
                    let text = |key: &str| entry.get(key).and_then(serde_json::Value::as_str);
                    let (Some(n), Some(source)) = (text("name"), text("template")) else {
                        return Err(wrong("has an entry without a text as `name` and as `template`"));
                    };
                    if n == name {
                        return Self::new(source, &format!("{} ({name})", config.display()), special);
                    }
                    names.push(n.to_string());
                }
            }
            Some(_) => return Err(wrong("is neither a text nor a list")),
        }
        let what = match &names[..] {
            [] => format!("the model folder has no chat template {name:?}"),
            names => format!("the model folder has no chat template {name:?}, only {}", names.join(", ")),
        };
        Err(Error::data(what).at(dir.display()).help(
            "add a chat_template.jinja to the folder, or choose the template `chatml-recipe` in the suite, which needs none",
        ))
    }

    /// The recipe's literal ChatML text; needs no model folder.
    pub fn chatml_recipe() -> Self {
        Self::new(CHATML_RECIPE, "chatml-recipe", SpecialTokens::default()).expect("the built-in template compiles")
    }

    /// Compiles `source`; `origin` names it in errors.
    ///
    /// # Errors
    /// If it does not compile.
    pub fn new(source: &str, origin: &str, special: SpecialTokens) -> Result<Self> {
        // As Jinja2 reads it: one kind of line end.
        let source = source.replace("\r\n", "\n").replace('\r', "\n");
        let mut environment = python::environment();
        environment.set_fuel(Some(FUEL));
        let compiled = compile::compile(&without_generation_tags(&source))
            .map_err(|e| template_error("the chat template does not compile", origin, e))?;
        let (environment, compiled) = (Arc::new(environment), Arc::new(compiled));
        Ok(ChatTemplate { environment, compiled, marked: Arc::default(), source, origin: origin.into(), special })
    }

    /// Refuses a template that writes the same whatever is said: a file that was emptied or
    /// overwritten, such as `null`, compiles.
    ///
    /// # Errors
    /// [`ErrorKind::Data`](crate::ErrorKind::Data) if `messages` is never read.
    pub fn reads_messages(&self) -> Result<()> {
        match self.source.contains("messages") {
            true => Ok(()),
            false => Err(Error::data(
                "the chat template never reads `messages`: it would write the same for every conversation",
            )
            .at(&self.origin)
            .help("copy the file from the model again, or choose the template `chatml-recipe` in the suite")),
        }
    }

    /// The conversation as text.
    ///
    /// # Errors
    /// If the template refuses it (`raise_exception`) or fails.
    pub fn render(&self, messages: &[Message], options: &RenderOptions) -> Result<String> {
        self.render_with(&self.compiled, messages, options)
    }

    /// Whether the template says with `{% generation %}` what of a conversation an assistant wrote.
    pub fn marks_generation(&self) -> bool {
        generation_tag().is_match(&self.source)
    }

    /// The conversation as text, and the bytes of it that stand within `{% generation %}` blocks, in
    /// order: what transformers' `return_assistant_tokens_mask` goes by.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_marked(&self, messages: &[Message], options: &RenderOptions) -> Result<(String, Vec<Range<usize>>)> {
        let taken = |text: &str| text.contains([python::BEGIN, python::END]);
        if messages.iter().any(|m| taken(&m.content) || m.reasoning_content.as_deref().is_some_and(taken)) {
            return Err(Error::data(
                "the conversation has characters of private use (U+10F0F0, U+10F0F1), which mark its turns here",
            )
            .at(&self.origin)
            .help("take them out, or set data.train_on = \"last\""));
        }
        let marked = self.marked.get_or_init(|| {
            compile::compile(&with_marks(&self.source))
                .map_err(|e| e.detail().map_or_else(|| e.to_string(), String::from))
        });
        let marked = marked.as_ref().map_err(|why| {
            Error::data(format!("the chat template does not compile with marks around its generation blocks: {why}"))
                .at(&self.origin)
        })?;
        let rendered = self.render_with(marked, messages, options)?;
        let (mut text, mut spans, mut begun) = (String::with_capacity(rendered.len()), Vec::new(), None);
        for c in rendered.chars() {
            match c {
                python::BEGIN => begun = Some(text.len()),
                python::END => spans.extend(begun.take().map(|begin| begin..text.len())),
                c => text.push(c),
            }
        }
        Ok((text, spans))
    }

    fn render_with(
        &self,
        compiled: &compile::Compiled,
        messages: &[Message],
        options: &RenderOptions,
    ) -> Result<String> {
        let fail = |e| template_error("the chat template cannot be rendered", &self.origin, e);
        // The order is transformers': what the caller gives wins over the tokenizer's tokens.
        let mut variables: BTreeMap<&str, Value> =
            self.special.named().map(|(name, token)| (name, Value::from(token))).collect();
        variables.insert("tools", Value::from(()));
        variables.insert("documents", Value::from(()));
        for (name, value) in &options.extra {
            variables.insert(name, Value::from(minijinja::value::Serde(value)));
        }
        if let Some(thinking) = options.enable_thinking {
            variables.insert("enable_thinking", Value::from(thinking));
        }
        variables.insert("messages", messages.iter().map(Message::to_value).collect());
        variables.insert("add_generation_prompt", Value::from(options.add_generation_prompt));
        if let Some(now) = options.now {
            variables.insert(python::NOW, Value::from(now));
        }
        let root = Value::from_pairs(variables);
        let extra: usize = options.extra.values().map(|value| value.to_string().len()).sum();
        let said = |m: &Message| m.content.len() + m.reasoning_content.as_ref().map_or(0, String::len);
        let input = extra + messages.iter().map(said).sum::<usize>();
        let allowed = limits::Allowance::of(input, messages.len());
        let (rendered, many_lists) = self.evaluate(compiled, &root, allowed);
        if !many_lists {
            return rendered.map_err(fail);
        }
        // Seldom: a long conversation of which the template makes many lists, or a template that
        // makes nothing else.
        let allowed = allowed.with_many_lists(messages.len());
        untrusted::on_large_stack(limits::STACK, || self.evaluate(compiled, &root, allowed).0)
            .unwrap_or_else(|panic| Err(panicked(panic)))
            .map_err(fail)
    }

    /// Renders within limits. The flag says whether only the number of lists was too large.
    fn evaluate(
        &self,
        compiled: &compile::Compiled,
        root: &Value,
        allowed: limits::Allowance,
    ) -> (Result<String, minijinja::Error>, bool) {
        limits::within(allowed, || {
            untrusted::caught(|| {
                let mut text = String::new();
                let mut out = make_string_output(&mut text);
                let compile::Compiled { instructions, blocks } = compiled;
                eval(&self.environment, instructions, root.clone(), blocks, &mut out, AutoEscape::None)?;
                drop(out);
                Ok(text)
            })
            .unwrap_or_else(|panic| Err(panicked(panic)))
        })
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }
    /// The special tokens that it is told.
    pub fn special(&self) -> &SpecialTokens {
        &self.special
    }
    /// Where it came from.
    pub fn origin(&self) -> &str {
        &self.origin
    }
    /// SHA-256 of the text, in hexadecimal.
    pub fn sha256(&self) -> String {
        fsio::sha256(self.source.as_bytes())
    }
}

fn generation_tag() -> &'static Regex {
    static TAG: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"\{%([-+]?)(\s*)(end)?generation(\s*)([-+]?)%\}").expect("the pattern is well formed")
    });
    &TAG
}

/// `{% generation %}` marks what an assistant said. A `with` block renders the same text under the
/// same scoping.
fn without_generation_tags(source: &str) -> String {
    generation_tag().replace_all(source, "{%$1$2${3}with$4$5%}").into_owned()
}

/// As [`without_generation_tags`], with a filter within that puts marks around the text.
fn with_marks(source: &str) -> String {
    let tag = |found: &Captures<'_>| {
        let (left, right) = (&found[1], &found[5]);
        match found.get(3) {
            None => format!("{{%{left} with %}}{{% filter {} {right}%}}", python::MARK),
            Some(_) => format!("{{%{left} endfilter %}}{{% endwith {right}%}}"),
        }
    };
    generation_tag().replace_all(source, tag).into_owned()
}

fn panicked(what: String) -> minijinja::Error {
    minijinja::Error::new(minijinja::ErrorKind::OutOfFuel, what)
}

fn template_error(what: &str, origin: &str, error: minijinja::Error) -> Error {
    let place = match error.line() {
        Some(line) => format!("{origin}:{line}"),
        None => origin.into(),
    };
    let reason = error.detail().map_or_else(|| error.to_string(), str::to_string);
    Error::data(format!("{what}: {reason}")).at(place).because(error)
}
