//! The response of an example: what is written after the prompt, and where in it reasoning ends and
//! the answer stands.

use std::ops::Range;

use super::{Formatter, OutputFormat, Reasoning, Rendered, RenderedPrompt, Token};
use crate::data::message::{self, Message};
use crate::data::record::Record;
use crate::{Error, Result};

/// The response as text, how many of its bytes are the reasoning with its tags, and where its
/// answer stands.
pub(super) struct Response {
    pub(super) text: String,
    pub(super) think_bytes: usize,
    pub(super) answer: Range<usize>,
    /// What became of the record's reasoning.
    pub(super) reasoning: Rendered,
    /// The turn as the template was told it, if it was.
    pub(super) told: Option<Message>,
}

/// What is said where a template and a row do not go together.
const HELP: &str = "choose the output `recipe`, or a template whose assistant turn begins as its generation prompt does \
    (enable_thinking = false asks for an empty think block in both)";

impl Formatter {
    pub(super) fn response(&self, record: &Record, prompt: &RenderedPrompt) -> Result<(Response, Vec<Token>)> {
        match self.options.output {
            OutputFormat::Template => self.templated(record, prompt),
            OutputFormat::Recipe => self.literal(record, " \n "),
            OutputFormat::RecipeNewline => self.literal(record, "\n"),
        }
    }

    /// The reasoning that is to be rendered, and what becomes of it if it is.
    fn reasoning<'r>(&self, record: &'r Record) -> (&'r str, Rendered) {
        match (record.think.trim().is_empty(), self.options.reasoning) {
            (true, _) => ("", Rendered::None),
            (false, Reasoning::Drop) => ("", Rendered::Dropped),
            (false, _) => (&record.think, Rendered::InPlace),
        }
    }

    /// The recipe's response, tokenized apart from the prompt.
    fn literal(&self, record: &Record, separator: &str) -> Result<(Response, Vec<Token>)> {
        let (think, reasoning) = self.reasoning(record);
        let think = format!("<think>{think}</think>");
        let think_bytes = think.len();
        let text = format!("{think}{separator}{}", record.answer);
        let answer = text.len() - record.answer.len()..text.len();
        let response = Response { text, think_bytes, answer, reasoning, told: None };
        let encoded = self.tokenizer.encode_with_spans(&response.text)?;
        Ok((response, encoded.ids.into_iter().zip(encoded.spans).collect()))
    }

    /// The template's response. Reasoning goes to the template's own place for it; where the
    /// template drops it, the options say what becomes of it.
    fn templated(&self, record: &Record, prompt: &RenderedPrompt) -> Result<(Response, Vec<Token>)> {
        self.check_lists(record)?;
        let (think, reasoning) = self.reasoning(record);
        if think.is_empty() {
            let (mut response, tokens) = self.turn(record, prompt, answered(record, record.answer.clone(), None))?;
            response.reasoning = reasoning;
            return Ok((response, tokens));
        }
        let own = self.turn(record, prompt, answered(record, record.answer.clone(), Some(think)));
        if let Ok((response, _)) = &own
            && self.shows(record, prompt, think, response)?
        {
            return own;
        }
        if self.options.reasoning == Reasoning::Template {
            return match own {
                Err(error) => Err(error),
                Ok(_) => Err(Error::usage("the chat template drops the reasoning, and data.reasoning = \"template\" forbids that")
                    .at(self.template.origin())
                    .help(
                        "choose data.reasoning = \"auto\" (it is written into the answer) or \"drop\", data.output = \"recipe\", or a \
                         template that writes reasoning_content",
                    )),
            };
        }
        let tag = self.options.think_tags.written();
        let content = format!("<{tag}>\n{}\n</{tag}>\n\n{}", think.trim_matches('\n'), record.answer);
        match (self.turn(record, prompt, answered(record, content, None)), own) {
            (Ok((mut response, tokens)), _) if response.text[..response.answer.start].contains(think.trim()) => {
                response.reasoning = Rendered::Written;
                Ok((response, tokens))
            }
            (_, Err(error)) => Err(error),
            (_, Ok(_)) => {
                Err(Error::data("the chat template drops the reasoning, also where it is written into the answer")
                    .at(self.template.origin())
                    .help("choose data.output = \"recipe\", another template, or data.reasoning = \"drop\""))
            }
        }
    }

    /// Whether the reasoning stands in a rendered turn: as it is, or changed by the template, which
    /// then writes another turn without.
    fn shows(&self, record: &Record, prompt: &RenderedPrompt, think: &str, response: &Response) -> Result<bool> {
        if response.text[..response.answer.start].contains(think.trim()) {
            return Ok(true);
        }
        let mut messages = self.question(record)?;
        messages.push(answered(record, record.answer.clone(), None));
        let without = self.render(&messages, false)?;
        Ok(without.strip_prefix(&prompt.text).is_none_or(|text| !text.starts_with(&response.text)))
    }

    /// What the rendered conversation has after the prompt, up to the end of the turn.
    fn turn(&self, record: &Record, prompt: &RenderedPrompt, answer: Message) -> Result<(Response, Vec<Token>)> {
        let reasoning = if answer.reasoning_content.is_some() { Rendered::InPlace } else { Rendered::None };
        let think = answer.reasoning_content.clone();
        let mut messages = self.question(record)?;
        let told = Some(answer.clone());
        messages.push(answer);
        let full = self.render(&messages, false)?;
        let refuse = |what: &str| Error::data(what).at(self.template.origin()).help(HELP);
        let text = full
            .strip_prefix(&prompt.text)
            .ok_or_else(|| refuse("the rendered prompt is not the beginning of the rendered conversation"))?;
        let encoded = self.tokenizer.encode_with_spans(&full)?;
        if !encoded.ids.starts_with(&prompt.ids) {
            return Err(refuse(
                "the prompt's tokens are not the first tokens of the conversation: a token spans the border",
            ));
        }
        let start = prompt.text.len();
        let tokens = encoded.ids.into_iter().zip(encoded.spans).skip(prompt.ids.len());
        let mut tokens: Vec<Token> =
            tokens.map(|(id, span)| (id, span.start.saturating_sub(start)..span.end.saturating_sub(start))).collect();
        let (answer, last) = self.find(text, record.answer.trim(), &tokens).map_err(|(what, end)| match end {
            Some(id) => refuse(what).help(self.tokenizer.help_to_stop_at(id)),
            None => refuse(what),
        })?;
        tokens.truncate(last + 1);
        // The end token is no text of the answer's.
        let end = tokens[last].1.start;
        tokens[last].1 = end..end;
        let before = &text[..answer.start];
        let closed = self.options.think_tags.last_close(before).unwrap_or(0);
        let shown = think.and_then(|think| Some(before.rfind(think.trim())? + think.trim().len())).unwrap_or(0);
        let think_bytes = closed.max(shown);
        Ok((Response { text: text[..end].into(), think_bytes, answer, reasoning, told }, tokens))
    }

    /// Where the answer stands in the text of a turn, and the token that ends the turn: of all
    /// places that read as the answer, the last that a stop token follows and none lies in. (From
    /// the end, for reasoning may quote the answer; but an answer such as `end` also stands in
    /// `<|im_end|>`.) If there is none: why, and the token that ends the turn where it is not one
    /// of the model's stops.
    fn find(&self, text: &str, answer: &str, tokens: &[Token]) -> Result<(Range<usize>, usize), Unfound> {
        let stop = |(id, _): &Token| self.tokenizer.stop_ids().contains(id);
        let stops: Vec<(usize, &Range<usize>)> =
            tokens.iter().enumerate().filter(|(_, token)| stop(token)).map(|(at, token)| (at, &token.1)).collect();
        let mut quoting = None;
        for (at, _) in text.rmatch_indices(answer) {
            let place = at..at + answer.len();
            let Some(&(last, _)) = stops.iter().find(|(_, span)| span.start >= place.end) else { continue };
            if stops.iter().all(|(_, span)| span.end <= place.start || span.start >= place.end) {
                return Ok((place, last));
            }
            // An answer may hold a stop token itself.
            quoting = quoting.or(Some((place, last)));
        }
        quoting.ok_or_else(|| {
            let Some(at) = text.rfind(answer) else {
                return ("the chat template does not write the answer as it is", None);
            };
            let after = || tokens.iter().filter(|(_, span)| span.start >= at + answer.len()).map(|(id, _)| *id);
            let end = after().find(|id| self.tokenizer.is_special(*id)).or_else(|| after().next());
            ("no stop id of the model ends the assistant's turn", end)
        })
    }

    /// A content that is a list of texts is joined only where the template writes the same of both:
    /// others would train on other ids than transformers.
    fn check_lists(&self, record: &Record) -> Result<()> {
        let list = |keys: &serde_json::Map<String, serde_json::Value>| keys.contains_key("content");
        if !(list(&record.question_keys) || list(&record.answer_keys) || record.history.iter().any(|t| list(&t.keys))) {
            return Ok(());
        }
        let conversation = |joined: bool| {
            let mut messages = record.history.clone();
            messages.push(Message::new("user", &record.question).with_keys(&record.question_keys));
            messages.push(Message::new("assistant", &record.answer).with_keys(&record.answer_keys));
            for message in &mut messages {
                if joined && let Some(list) = message.keys.shift_remove("content") {
                    let texts = list.as_array().into_iter().flatten().filter_map(|part| part.get("text")?.as_str());
                    message.content = texts.collect();
                }
            }
            messages
        };
        let (given, joined) = (self.render(&conversation(false), false), self.render(&conversation(true), false)?);
        match given {
            Ok(given) if given == joined => Ok(()),
            _ => Err(Error::data(
                "a \"content\" is a list of texts, which the chat template does not read as it reads their joined text",
            )
            .at(self.template.origin())
            .help("give each content as one string")),
        }
    }
}

/// The assistant's turn of a record.
fn answered(record: &Record, content: String, think: Option<&str>) -> Message {
    let mut keys = record.answer_keys.clone();
    // What a list of texts joins to is told in its place.
    keys.shift_remove("content");
    if think.is_none() {
        keys.retain(|name, _| !message::REASONING.contains(&name.as_str()));
    }
    Message { reasoning_content: think.map(String::from), ..Message::new("assistant", content).with_keys(&keys) }
}

/// Why the answer or the end of a turn is not found, and the token that ends it where it is no
/// stop.
type Unfound = (&'static str, Option<u32>);
