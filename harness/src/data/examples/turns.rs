//! Earlier turns of a conversation that are trained on as well: how they are written, and which
//! tokens they are.
//!
//! A template that marks what an assistant wrote (`{% generation %}`) is taken at its word: the tokens
//! that touch a marked text are trained on, as transformers' `return_assistant_tokens_mask` has it.
//! Without marks a turn begins where the conversation before it, with its generation prompt, ends, and
//! goes up to the token that ends it.

use std::ops::Range;

use super::response::Response;
use super::{Formatter, OutputFormat, Reasoning, RenderedPrompt, Token, TrainOn, joined};
use crate::data::message::{self, Message};
use crate::data::record::Record;
use crate::eval::think::ThinkState;
use crate::{Error, Result};

const HELP: &str = "set data.train_on = \"last\", choose data.template = \"chatml-recipe\", or give the model a template that marks \
    the assistant's turns with {% generation %}";

/// Which tokens of an example are trained on.
pub(super) struct Trained {
    /// Of the prompt.
    pub(super) prompt: Vec<bool>,
    /// Of the response.
    pub(super) response: Vec<bool>,
}

impl Formatter {
    /// The turns before the question as the template is told them. The reasoning of those that are
    /// trained on is written where it will be seen, or it is an error.
    pub(super) fn told_history(&self, record: &Record) -> Result<Vec<Message>> {
        let mut turns: Vec<Message> = record.history.iter().cloned().map(joined).collect();
        for &at in &record.trained {
            let Some((think, answer)) = self.part(&turns[at]) else { continue };
            let without = |content: String| {
                let mut turn = Message { content, reasoning_content: None, ..turns[at].clone() };
                turn.keys.retain(|name, _| !message::REASONING.contains(&name.as_str()));
                turn
            };
            match (self.options.reasoning, self.options.output) {
                (Reasoning::Drop, _) => turns[at] = without(answer),
                (_, OutputFormat::Recipe) => turns[at] = without(format!("<think>{think}</think> \n {answer}")),
                (_, OutputFormat::RecipeNewline) => turns[at] = without(format!("<think>{think}</think>\n{answer}")),
                (reasoning, OutputFormat::Template) => {
                    let apart = Message { reasoning_content: Some(think.clone()), ..without(answer.clone()) };
                    let tag = self.options.think_tags.written();
                    let written = without(format!("<{tag}>\n{}\n</{tag}>\n\n{answer}", think.trim_matches('\n')));
                    // As it was given first, for that is what transformers would write.
                    let mut forms = vec![turns[at].clone(), apart];
                    forms.extend((reasoning == Reasoning::Auto).then_some(written));
                    let mut shown = None;
                    for form in forms {
                        if self.shows_earlier(record, &turns, at, &form, (&think, &answer))? {
                            shown = Some(form);
                            break;
                        }
                    }
                    turns[at] = shown.ok_or_else(|| self.dropped(at))?;
                }
            }
        }
        Ok(turns)
    }

    fn dropped(&self, at: usize) -> Error {
        let what = format!("the chat template drops the reasoning of turn {}, which is to be trained on", at + 1);
        Error::data(what).at(self.template.origin()).help(
            "set data.train_on = \"last\", data.reasoning = \"drop\", or data.template = \"chatml-recipe\", which has a place for it",
        )
    }

    /// Reasoning and answer of an earlier turn, if it has any reasoning.
    fn part(&self, turn: &Message) -> Option<(String, String)> {
        if let Some(think) = turn.reasoning_content.as_ref().filter(|think| !think.trim().is_empty()) {
            return Some((think.clone(), turn.content.clone()));
        }
        let cut = self.options.think_tags.cut(&turn.content);
        let (think, answer) = (turn.content[cut.think].trim_matches('\n'), turn.content[cut.answer].trim_start());
        let whole = matches!(cut.state, ThinkState::Closed | ThinkState::CloseOnly) && !think.trim().is_empty();
        whole.then(|| (think.to_string(), answer.to_string()))
    }

    /// Whether the template writes the reasoning of an earlier turn that is told as `form`.
    fn shows_earlier(
        &self,
        record: &Record,
        turns: &[Message],
        at: usize,
        form: &Message,
        (think, answer): (&str, &str),
    ) -> Result<bool> {
        let mut turns = turns.to_vec();
        turns[at] = form.clone();
        let messages = self.with_question(record, turns);
        let text = self.render(&messages, true)?;
        let before = self.render(&messages[..self.place(record, at)], true)?;
        // Up to the token that ends it; where it does not begin as the generation prompt does, it begins
        // somewhere later.
        let turn = text.strip_prefix(&before).map_or(text.as_str(), |turn| {
            let stops = self.tokenizer.stop_ids().iter().filter_map(|&id| turn.find(&self.tokenizer.text_of(id)?));
            &turn[..stops.min().unwrap_or(turn.len())]
        });
        let think = think.trim();
        Ok(turn.find(think).is_some_and(|at| turn[at + think.len()..].contains(answer.trim())))
    }

    /// Where a turn of the history stands among the messages.
    fn place(&self, record: &Record, at: usize) -> usize {
        let system = record.history.first().is_some_and(|turn| turn.role == "system");
        at + usize::from(self.options.system.is_some()) - usize::from(system && self.options.system.is_some())
    }

    /// Which tokens are trained on where every turn is.
    pub(super) fn trained(
        &self,
        record: &Record,
        prompt: &RenderedPrompt,
        (response, tokens): (&Response, &[Token]),
    ) -> Result<Trained> {
        let mut trained = Trained { prompt: vec![false; prompt.ids.len()], response: vec![true; tokens.len()] };
        if self.options.train_on == TrainOn::Last {
            return Ok(trained);
        }
        let marks = self.template.marks_generation();
        if record.trained.is_empty() && !marks {
            return Ok(trained);
        }
        let encoded = self.tokenizer.encode_with_spans(&prompt.text)?;
        let messages = self.question(record)?;
        let refuse = |what: String| Error::data(what).at(self.template.origin()).help(HELP);
        if !marks {
            for &at in &record.trained {
                let place = self.place(record, at);
                let before = self.render(&messages[..place], true)?;
                let number = at + 1;
                let turn = prompt.text.strip_prefix(&before).ok_or_else(|| {
                    refuse(format!(
                        "the conversation before turn {number} is not the beginning of the rendered conversation"
                    ))
                })?;
                let (begin, message) = (before.len(), &messages[place]);
                let said = self.part(message).map_or_else(|| message.content.clone(), |(_, answer)| answer);
                let said = said.trim();
                let found = turn
                    .find(said)
                    .ok_or_else(|| refuse(format!("the chat template does not write turn {number} as it is")))?;
                let end = begin + found + said.len();
                let last = (encoded.ids.iter().zip(&encoded.spans))
                    .position(|(id, span)| span.start >= end && self.tokenizer.stop_ids().contains(id))
                    .ok_or_else(|| refuse(format!("no stop id of the model ends turn {number}")))?;
                for (index, span) in encoded.spans[..=last].iter().enumerate() {
                    if span.start < begin && span.end > begin {
                        return Err(refuse(format!("a token spans the border before turn {number}")));
                    }
                    trained.prompt[index] |= span.start >= begin;
                }
            }
            return Ok(trained);
        }
        // The last turn of the recipe's outputs is no turn of the template's.
        let told = response.told.clone();
        let is_whole = told.is_some();
        let conversation: Vec<Message> = messages.iter().cloned().chain(told).collect();
        let (text, spans) = self.template.render_marked(&conversation, &self.render_options(!is_whole))?;
        if !text.starts_with(&prompt.text) {
            return Err(refuse("the rendered prompt is not the beginning of the rendered conversation".into()));
        }
        let said = |message: &&Message| message.role == "assistant";
        let turns = conversation.iter().filter(said).count();
        if spans.len() != turns {
            return Err(refuse(format!("the chat template marks {} of {turns} turns of the assistant", spans.len())));
        }
        let mut wanted: Vec<usize> = record.trained.iter().map(|&at| self.place(record, at)).collect();
        wanted.extend(is_whole.then_some(messages.len()));
        let places = conversation.iter().enumerate().filter(|(_, message)| said(message)).map(|(place, _)| place);
        let spans: Vec<Range<usize>> =
            places.zip(spans).filter(|(place, _)| wanted.contains(place)).map(|(_, span)| span).collect();
        let touches = |token: Range<usize>| {
            spans.iter().any(|span| token.start < span.end && token.end.max(token.start + 1) > span.start)
        };
        for (flag, span) in trained.prompt.iter_mut().zip(encoded.spans) {
            *flag = touches(span);
        }
        if is_whole {
            let start = prompt.text.len();
            for (flag, (_, span)) in trained.response.iter_mut().zip(tokens) {
                *flag = touches(start + span.start..start + span.end);
            }
            if !trained.response.contains(&true) {
                return Err(refuse("the chat template marks no token of the last turn".into()));
            }
        }
        Ok(trained)
    }
}
