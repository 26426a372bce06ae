//! Records to token ids and loss masks: the prompt, the response, and where reasoning ends and the
//! answer begins.

mod options;
mod response;
mod rows;
mod turns;

pub use options::{Choices, End, FormatOptions, OutputFormat, RECIPE_SYSTEM, Reasoning, Rendered, TrainOn};
pub use rows::{BadRecord, Examples, LabelledRows};

use std::ops::Range;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::message::Message;
use super::record::Record;
use super::template::{ChatTemplate, RenderOptions};
use super::tokens::Tokenizer;
use crate::backend::IGNORE;
use crate::eval::choice;
use crate::{Error, ErrorKind, Result};

/// A rendered prompt: everything up to where the assistant begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenderedPrompt {
    /// The text.
    pub text: String,
    /// Its ids.
    pub ids: Vec<u32>,
}

/// One training or scoring example. `ids = prompt + think + answer`; the last two are contiguous.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Example {
    /// The record's id.
    pub id: String,
    /// Token ids, at most `max_length`.
    pub ids: Vec<u32>,
    /// The id at each position that is trained on, else [`IGNORE`]: the response, and with
    /// [`TrainOn::All`] the assistant's earlier turns. Same length as `ids`, not shifted.
    pub labels: Vec<i32>,
    /// How many ids are the prompt.
    pub prompt_len: usize,
    /// Positions of the reasoning with its tags: tokens that begin before the end of `</think>`.
    /// Empty if there is none.
    pub think: Range<usize>,
    /// Positions of the rest of the response: separator, answer and end token.
    pub answer: Range<usize>,
    /// UTF-8 bytes of the text that the tokens of `think` came from.
    pub think_bytes: usize,
    /// UTF-8 bytes of the text that the tokens of `answer` came from; the end token counts none.
    pub answer_bytes: usize,
    /// Something was cut off.
    pub truncated: bool,
    /// Length before it was cut.
    pub full_len: usize,
    /// What became of the record's reasoning, before anything was cut.
    #[serde(default)]
    pub reasoning: Rendered,
}

impl Example {
    /// Whether any token after the first is trained on; the first has no prefix to be predicted
    /// from.
    pub fn has_labels(&self) -> bool {
        self.labels.iter().skip(1).any(|&label| label != IGNORE)
    }
}

/// Renders and tokenizes records.
#[derive(Clone, Debug)]
pub struct Formatter {
    template: ChatTemplate,
    tokenizer: Tokenizer,
    options: FormatOptions,
}

/// An option as the whole answer to a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionExample {
    /// Prompt and response, up to the last token of the option.
    pub ids: Vec<u32>,
    /// Position of the option's first token.
    pub start: usize,
    /// The text that is scored: the option's, or its label.
    pub text: String,
}

impl Formatter {
    /// Puts the parts together.
    ///
    /// # Errors
    /// If `max_length` is 0, a stop is no token, the end is [`End::Template`] without
    /// [`OutputFormat::Template`], or the tokenizer has no token for the end that is asked for.
    pub fn new(template: ChatTemplate, mut tokenizer: Tokenizer, options: FormatOptions) -> Result<Self> {
        template.reads_messages()?;
        tokenizer.stop_also_at(&options.stop)?;
        if options.max_length == 0 {
            return Err(Error::usage("max_length must be at least 1"));
        }
        let formatter = Formatter { template, tokenizer, options };
        match formatter.end() {
            End::Template if formatter.options.output != OutputFormat::Template => Err(Error::usage(
                "the end `template` needs the output `template`: the recipe's outputs have no end of turn",
            )
            .help("choose the end `pad` or `eos`, or the output `template`")),
            End::Pad if formatter.tokenizer.pad_id().is_none() => {
                Err(Error::data("the tokenizer names no padding token")
                    .help("choose the end `template`, or set pad_token in tokenizer_config.json"))
            }
            End::Eos if formatter.tokenizer.eos_id().is_none() => Err(Error::data("the tokenizer names no end token")
                .help("choose another end, or set eos_token in tokenizer_config.json")),
            _ => Ok(formatter),
        }
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }
    /// The template.
    pub fn template(&self) -> &ChatTemplate {
        &self.template
    }
    /// The options.
    pub fn options(&self) -> &FormatOptions {
        &self.options
    }
    /// What ends an example.
    pub fn end(&self) -> End {
        self.options.end.unwrap_or(match self.options.output {
            OutputFormat::Template => End::Template,
            OutputFormat::Recipe | OutputFormat::RecipeNewline => End::Pad,
        })
    }
    /// The ids that must end generation: the tokenizer's, and the padding token where examples end
    /// with it.
    pub fn stop_ids(&self) -> Vec<u32> {
        let mut ids = self.tokenizer.stop_ids().to_vec();
        if self.end() == End::Pad {
            ids.extend(self.tokenizer.pad_id());
        }
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// The prompt of a record. It is not cut to `max_length`.
    ///
    /// # Errors
    /// If the template or the tokenizer fails.
    pub fn prompt(&self, record: &Record) -> Result<RenderedPrompt> {
        self.try_prompt(record).map_err(|e| about(record, e))
    }

    fn try_prompt(&self, record: &Record) -> Result<RenderedPrompt> {
        let text = self.render(&self.question(record)?, true)?;
        let ids = self.tokenizer.encode(&text)?;
        Ok(RenderedPrompt { text, ids })
    }

    /// The training example of a record: the prompt's ids, then the response's, tokenized apart as
    /// the recipe does, then the end. With [`OutputFormat::Template`] prompt and response are
    /// rendered and tokenized as one text, as a chat model will see it; the prompt must be a prefix
    /// of that text and its ids of those ids.
    ///
    /// # Errors
    /// If the template or the tokenizer fails, or with [`OutputFormat::Template`] the prompt is no
    /// such prefix or nothing ends the turn.
    pub fn example(&self, record: &Record) -> Result<Example> {
        self.try_example(record).map_err(|e| about(record, e))
    }

    fn try_example(&self, record: &Record) -> Result<Example> {
        let prompt = self.try_prompt(record)?;
        let (response, tokens) = self.response(record, &prompt)?;
        let trained = self.trained(record, &prompt, (&response, &tokens))?;
        let prompt_len = prompt.ids.len();
        let mut ids = prompt.ids;
        let (tail, mut spans): (Vec<u32>, Vec<Range<usize>>) = tokens.into_iter().unzip();
        ids.extend(tail);
        let end = match self.end() {
            End::Pad => self.tokenizer.pad_id(),
            End::Eos => self.tokenizer.eos_id(),
            End::Template => None,
        };
        if let Some(end) = end {
            ids.push(end);
            spans.push(response.text.len()..response.text.len());
        }
        let full_len = ids.len();
        ids.truncate(self.options.max_length);
        let prompt_len = prompt_len.min(ids.len());
        spans.truncate(ids.len() - prompt_len);
        // The end that is put behind the response is trained on.
        let flags = trained.prompt.iter().chain(&trained.response).copied().chain([true]);
        let mut labels = Vec::with_capacity(ids.len());
        for (&id, is_trained) in ids.iter().zip(flags) {
            labels.push(match is_trained {
                true => i32::try_from(id).map_err(|_| Error::data(format!("the id {id} is too large")))?,
                false => IGNORE,
            });
        }
        let think_tokens = spans.iter().take_while(|span| span.start < response.think_bytes).count();
        // How far into the text the kept tokens reach; a character cut in half counts in full.
        let reach = |count: usize| spans[..count].iter().map(|span| span.end).max().unwrap_or(0);
        let think_end = if think_tokens == 0 { 0 } else { reach(think_tokens).min(response.think_bytes) };
        let answer_start = prompt_len + think_tokens;
        Ok(Example {
            id: record.id.clone(),
            think: prompt_len..answer_start,
            answer: answer_start..ids.len(),
            think_bytes: think_end,
            answer_bytes: reach(spans.len()).saturating_sub(think_end),
            truncated: full_len > ids.len(),
            full_len,
            reasoning: response.reasoning,
            prompt_len,
            ids,
            labels,
        })
    }

    /// The options of a record, each as the whole answer, rendered as a training example without
    /// reasoning is: what a model is scored on for a multiple choice. Only the tokens of the
    /// option's text count, so neither separators nor the end token favour an option. Empty if the
    /// record has no options, or one does not fit into `max_length`.
    ///
    /// # Errors
    /// As [`example`](Self::example).
    pub fn option_examples(&self, record: &Record) -> Result<Vec<OptionExample>> {
        self.try_options(record).map_err(|e| about(record, e))
    }

    fn try_options(&self, record: &Record) -> Result<Vec<OptionExample>> {
        let Some(choice) = &record.choice else { return Ok(Vec::new()) };
        let prompt = self.try_prompt(record)?;
        let mut examples = Vec::with_capacity(choice.options.len());
        for (at, option) in choice.options.iter().enumerate() {
            let text = match self.options.choices {
                Choices::Letter => choice::label(at).to_string(),
                Choices::Text => option.trim().to_string(),
            };
            let answered = Record { think: String::new(), answer: text.clone(), ..record.clone() };
            let (response, tokens) = self.response(&answered, &prompt)?;
            let of_option = |token: &Token| token.1.start < response.answer.end && token.1.end > response.answer.start;
            let (Some(first), Some(last)) = (tokens.iter().position(of_option), tokens.iter().rposition(of_option))
            else {
                return Err(Error::data(format!("the option {text:?} has no token of its own")));
            };
            let mut ids = prompt.ids.clone();
            ids.extend(tokens[..=last].iter().map(|t| t.0));
            let start = prompt.ids.len() + first;
            // The first token of a text has no prefix that it could be predicted from.
            if ids.len() > self.options.max_length || start == 0 {
                return Ok(Vec::new());
            }
            examples.push(OptionExample { ids, start, text });
        }
        Ok(examples)
    }

    /// The examples of many records, on all cores, in their order. A record that cannot be rendered
    /// ends nothing: it is among the bad ones.
    ///
    /// # Errors
    /// What is wrong with the options or the template rather than with a record;
    /// [`ErrorKind::Data`] if nothing to train on is left.
    pub fn examples(&self, records: &[Record]) -> Result<Examples> {
        let (examples, first) = self.try_examples(records)?;
        match first {
            Some(error) if examples.examples.is_empty() && examples.dropped.is_empty() => {
                let what = format!("none of {} records can be rendered; {}", records.len(), error.what());
                Err(rephrased(error, what))
            }
            _ => Ok(examples),
        }
    }

    /// [`Formatter::examples`], also where none can be rendered: with the error of the first record
    /// that cannot.
    pub(crate) fn try_examples(&self, records: &[Record]) -> Result<(Examples, Option<Error>)> {
        // One by itself first: a template that runs without end does so for every record.
        let (first, rest) = records.split_at(records.len().min(1));
        let mut all: Vec<Result<Example>> = first.iter().map(|record| self.try_example(record)).collect();
        if !all.iter().any(|example| example.as_ref().is_err_and(|e| !of_the_record(e))) {
            all.par_extend(rest.par_iter().map(|record| self.try_example(record)));
        }
        let (mut result, mut first) = (Examples::default(), None);
        for (example, record) in all.into_iter().zip(records) {
            match example {
                Ok(example) => result.take(example),
                Err(error) if !of_the_record(&error) => return Err(about(record, error)),
                Err(error) => {
                    result.bad.push(BadRecord::of(record, &error));
                    first.get_or_insert_with(|| about(record, error));
                }
            }
        }
        if result.examples.is_empty() && !result.dropped.is_empty() {
            let what = format!(
                "no answer token of any of the {} records lies within max_length = {}",
                records.len(),
                self.options.max_length
            );
            return Err(Error::new(ErrorKind::Data, what).help("raise max_length: the prompts alone are longer"));
        }
        Ok((result, first))
    }

    /// The turns up to the question, as the template is given them.
    ///
    /// # Errors
    /// If an earlier turn is to be trained on and the template drops its reasoning.
    pub fn question(&self, record: &Record) -> Result<Vec<Message>> {
        Ok(self.with_question(record, self.told_history(record)?))
    }

    /// The turns of a record with this history.
    fn with_question(&self, record: &Record, history: Vec<Message>) -> Vec<Message> {
        let mut messages = Vec::new();
        if let Some(system) = &self.options.system {
            messages.push(Message::new("system", system));
        }
        messages.extend(history.into_iter().filter(|turn| turn.role != "system" || self.options.system.is_none()));
        let mut question = record.question.clone();
        if let Some(choice) = record.choice.as_ref().filter(|_| self.options.choices == Choices::Letter) {
            for (at, option) in choice.options.iter().enumerate() {
                question.push_str(&format!("\n{}. {}", choice::label(at), option.trim()));
            }
        }
        messages.push(joined(Message::new("user", &question).with_keys(&record.question_keys)));
        messages
    }

    fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.template.render(messages, &self.render_options(add_generation_prompt))
    }

    fn render_options(&self, add_generation_prompt: bool) -> RenderOptions {
        RenderOptions {
            add_generation_prompt,
            enable_thinking: self.options.enable_thinking,
            now: self.options.now,
            ..RenderOptions::default()
        }
    }
}

/// An id and the bytes of the response it came from.
type Token = (u32, Range<usize>);

/// The turn as text alone: a list of texts is told as what it joins to ([`Formatter::example`]
/// refuses rows where that is not the same).
fn joined(mut turn: Message) -> Message {
    turn.keys.shift_remove("content");
    turn
}

/// Whether another record may fare better than the one that met this error: not so if the options
/// make no sense, or the template runs without end.
pub fn of_the_record(error: &Error) -> bool {
    let template = std::error::Error::source(error).and_then(|source| source.downcast_ref::<minijinja::Error>());
    error.kind() == ErrorKind::Data && template.is_none_or(|e| e.kind() != minijinja::ErrorKind::OutOfFuel)
}

/// [`reason_of`] an error of a record, whose place is known.
fn reason(record: &Record, error: &Error) -> String {
    let reason = reason_of(error);
    reason.strip_prefix(&named(record)).map(String::from).unwrap_or(reason)
}

/// An error in one line, without its place: what is wrong, and its cause where that is not said
/// yet.
pub fn reason_of(error: &Error) -> String {
    let what = error.what();
    match std::error::Error::source(error).map(ToString::to_string) {
        Some(cause) if !what.contains(": ") && !cause.contains(what) => format!("{what}: {cause}"),
        _ => what.to_string(),
    }
}

fn named(record: &Record) -> String {
    format!("record {:?} (line {}): ", record.id, record.line)
}

fn about(record: &Record, error: Error) -> Error {
    let what = format!("{}{}", named(record), error.what());
    rephrased(error, what)
}

/// The error in other words, with its kind, place and help.
pub(crate) fn rephrased(error: Error, what: String) -> Error {
    let mut wrapped = Error::new(error.kind(), what);
    if let Some(place) = error.place() {
        wrapped = wrapped.at(place);
    }
    if let Some(help) = error.help_text() {
        wrapped = wrapped.help(help);
    }
    // Without causes of its own the error says nothing that is not in `what`.
    match std::error::Error::source(&error) {
        Some(_) => wrapped.because(error),
        None => wrapped,
    }
}
