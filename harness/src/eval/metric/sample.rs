//! One item with a model's text and scores: what metrics read, split and segmented once for all of
//! them.

use std::cell::OnceCell;

use super::key_points::{self, KeyPoints, Statements};
use super::tokens::TokenPair;
use super::{jieba, python, rouge};
use crate::eval::think::{Parts, ThinkTags};
use crate::eval::{Item, PartScore, Prediction, ReferenceScore};

/// An item, the text a model wrote for it, and the reference's log-probabilities under that model
/// where they are known.
pub(crate) struct Sample<'a> {
    /// How reasoning is told from answers.
    pub tags: &'a ThinkTags,
    /// The item.
    pub item: &'a Item,
    /// The text.
    pub prediction: &'a Prediction,
    /// The scores.
    pub reference: Option<&'a ReferenceScore>,
    /// The text, split.
    pub parts: Parts<'a>,
    characters: OnceCell<rouge::Rouge>,
    words: OnceCell<TokenPair>,
    answer_points: OnceCell<[KeyPoints; 2]>,
    think_points: OnceCell<[KeyPoints; 2]>,
}

impl<'a> Sample<'a> {
    pub fn new(
        tags: &'a ThinkTags,
        item: &'a Item,
        prediction: &'a Prediction,
        reference: Option<&'a ReferenceScore>,
    ) -> Self {
        Sample {
            tags,
            item,
            prediction,
            reference,
            parts: tags.split(&prediction.text),
            characters: OnceCell::new(),
            words: OnceCell::new(),
            answer_points: OnceCell::new(),
            think_points: OnceCell::new(),
        }
    }

    /// The answer of the text, without its reasoning.
    pub fn answer(&self) -> &'a str {
        self.parts.answer
    }

    /// The answer of the reference, without white space around it.
    pub fn reference_answer(&self) -> &'a str {
        python::strip(&self.item.answer)
    }

    /// The reasoning of the reference, without white space around it.
    pub fn reference_think(&self) -> &'a str {
        python::strip(&self.item.think)
    }

    /// `value` where the reference has an answer to compare with.
    pub fn answered(&self, value: impl Fn() -> f64) -> Option<f64> {
        (!self.reference_answer().is_empty()).then(value)
    }

    /// `value` where the reference has reasoning to compare with.
    pub fn reasoned(&self, value: impl Fn() -> f64) -> Option<f64> {
        (!self.reference_think().is_empty()).then(value)
    }

    /// The score of the whole reference.
    pub fn whole(&self) -> Option<PartScore> {
        self.reference.map(ReferenceScore::whole)
    }

    /// ROUGE of the answers by characters.
    pub fn characters(&self) -> &rouge::Rouge {
        self.characters.get_or_init(|| rouge::score(&TokenPair::visible(self.reference_answer(), self.answer())))
    }

    /// The answers as jieba words, without white space.
    pub fn words(&self) -> &TokenPair {
        self.words.get_or_init(|| {
            let words = |text: &'a str| jieba::segment(text, true).into_iter().filter(|w| !python::strip(w).is_empty());
            TokenPair::new(words(self.reference_answer()), words(self.answer()))
        })
    }

    /// Key points of the answers: recall, then precision.
    pub fn answer_points(&self) -> &[KeyPoints; 2] {
        self.answer_points.get_or_init(|| both_ways(self.reference_answer(), self.answer()))
    }

    /// Key points of the reasonings: recall, then precision.
    pub fn think_points(&self) -> &[KeyPoints; 2] {
        self.think_points.get_or_init(|| both_ways(self.reference_think(), self.parts.think))
    }
}

fn both_ways(reference: &str, candidate: &str) -> [KeyPoints; 2] {
    let (reference, candidate) = (Statements::read(reference), Statements::read(candidate));
    [key_points::compare(&reference, &candidate), key_points::compare(&candidate, &reference)]
}

/// 1 for what is so, 0 for what is not.
pub(super) fn flag(is: bool) -> Option<f64> {
    Some(f64::from(u8::from(is)))
}
