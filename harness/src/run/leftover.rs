//! Leftovers in a text once its ids are decoded and its reasoning is taken off: tags, special
//! tokens.

use std::collections::BTreeSet;

use crate::data::tokens::Tokenizer;
use crate::eval::{Prediction, think};

/// Items named in a warning.
const SHOWN: usize = 10;

/// Warns of answers that hold the text of a special token, which decoding leaves out where it is a
/// token and metrics read as words where it is not. Nothing if all answers are clean. (Stray tags
/// of reasoning are [`stray_texts`](crate::data::notes::stray_texts).)
pub fn left_over(model: &str, predictions: &[Prediction], tokenizer: &Tokenizer) -> Option<String> {
    let mut marks = tokenizer.special_texts();
    marks.retain(|mark| ![think::OPEN, think::CLOSE].contains(&mark.as_str()));
    let (mut found, mut items) = (BTreeSet::new(), Vec::new());
    for prediction in predictions {
        let answer = think::split(&prediction.text).answer;
        let here: Vec<&String> = marks.iter().filter(|mark| answer.contains(mark.as_str())).collect();
        if !here.is_empty() {
            items.push(prediction.id.as_str());
            found.extend(here);
        }
    }
    if items.is_empty() {
        return None;
    }
    let found: Vec<&str> = found.into_iter().map(String::as_str).collect();
    let more = if items.len() > SHOWN { format!(" and {} more", items.len() - SHOWN) } else { String::new() };
    Some(format!(
        "{} answers of {model} hold {}, which metrics read as text: {}{more}",
        items.len(),
        found.join(", "),
        items[..items.len().min(SHOWN)].join(", ")
    ))
}
