//! `karat generate`: continues given prompts.

use std::cell::Cell;

use karat::backend::{Completion, Event, GenerateConfig, Tokens};
use karat::data::tokens::{StopToken, Unnamed};
use karat::run::{StageSink, backend_error, evaluator};
use karat::{Error, Result};
use serde_json::{Value, json};

use super::rows::{Printer, Rows, Work, exit_code, has_tokenizer, tokenizer};
use crate::args::{GenerateArgs, Global};
use crate::host::{Opening, cancel_on_interrupt, generate_config};
use crate::output::Output;
use crate::progress::Progress;

pub fn run(args: &GenerateArgs, global: &Global, output: &Output) -> Result<u8> {
    let opening = Opening::of(&args.model, global, output)?;
    let model = &opening.config;
    let mut read = super::rows::asked(&args.rows, model, output)?;
    // Ids need no tokenizer: without one they are continued all the same, and the text is null.
    let mut tokenizer = match read.tokenizer.take() {
        None if has_tokenizer(model) => Some(tokenizer(model)?),
        read => read,
    };
    if let Some(tokenizer) = &mut tokenizer {
        tokenizer.stop_also_at(&args.stop)?;
    }
    let stop_ids = match &tokenizer {
        Some(tokenizer) if !args.ignore_eos => tokenizer.stop_ids().to_vec(),
        // Without a tokenizer an id is all there is to know of a token.
        None if !args.ignore_eos => ids_of(&args.stop)?,
        _ => Vec::new(),
    };
    let config = GenerateConfig {
        batch_size: args.batch_size,
        ..generate_config(&args.sampling, args.max_new_tokens, stop_ids)
    };
    let cancel = cancel_on_interrupt()?;
    let mut session = opening.session(output)?;
    read.fit(Work::Generate, &session.info(), output)?;
    let Rows { rows, bad, .. } = read;
    let evaluator = evaluator(&mut session, args.model.open.backend())?;
    let prompts: Tokens = rows.iter().map(|r| &r.ids).collect();
    let quiet = output.among_rows();
    let mut progress = Progress::new(&quiet);
    let mut printer = Printer::new(output, rows.len());
    let unread = Cell::new(false);
    let line = |row: usize, completion: &Completion| -> Result<Value> {
        let id = rows.get(row).map(|r| &r.id);
        let id = id.ok_or_else(|| Error::backend(format!("the backend completed row {row} of {}", rows.len())))?;
        let ended = completion.ids.last().is_some_and(|id| config.stop_ids.contains(id));
        let text = match &tokenizer {
            Some(t) => {
                let written = &completion.ids[..completion.ids.len() - usize::from(ended)];
                Value::from(t.decode(written, true)?)
            }
            None => Value::Null,
        };
        Ok(json!({"id": id, "ids": completion.ids, "text": text, "stop": completion.stop}))
    };
    let mut sink = StageSink {
        stage: "generate",
        total: None,
        observer: &mut progress,
        cancel: &cancel,
        keep: |event: &Event| {
            let Event::Completion { row, completion } = event else { return Ok(()) };
            if !printer.put(*row, line(*row, completion)?)? {
                unread.set(true);
                return Err(Error::interrupted());
            }
            Ok(())
        },
        error: None,
    };
    let result = evaluator.generate(prompts.view(), &config, &mut sink);
    let error = sink.error.take();
    drop(progress);
    if unread.get() {
        return Ok(0);
    }
    let completions = match (error, result) {
        (None, Ok(completions)) => completions,
        (Some(error), _) => return Err(error),
        (None, Err(error)) => return Err(backend_error("generation failed", error)),
    };
    // Completions are told as they come and returned all together; a row that was only returned is
    // printed now.
    for (row, completion) in completions.iter().enumerate() {
        printer.put(row, line(row, completion)?)?;
    }
    printer.finish()?;
    if let Some(tokenizer) = &tokenizer {
        let mut unnamed = Unnamed::default();
        for (row, completion) in rows.iter().zip(&completions) {
            let id = row.id.as_str().map_or_else(|| row.id.to_string(), String::from);
            unnamed.look(tokenizer, &id, &completion.ids);
        }
        unnamed.warning().iter().for_each(|warning| output.say(format!("warning: {warning}")));
    }
    Ok(exit_code(&bad))
}

/// The stops that are given as ids.
fn ids_of(stops: &[StopToken]) -> Result<Vec<u32>> {
    let id = |stop: &StopToken| match stop {
        StopToken::Id(id) => Ok(*id),
        StopToken::Text(text) => {
            let error = Error::usage(format!("--stop {text:?} is a text, and the model has no tokenizer.json"));
            Err(error.help("give the token's id"))
        }
    };
    stops.iter().map(id).collect()
}
