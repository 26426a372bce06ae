//! `karat generate`: continues given prompts.

use karat::backend::{Event, Tokens};
use karat::data::tokens::Tokenizer;
use karat::run::{Backends, StageSink, backend_error, evaluator};
use karat::Result;
use serde_json::{Value, json};

use crate::args::{GenerateArgs, Global};
use crate::host::{Plugins, cancel_on_interrupt, generate_config, open_config};
use crate::output::Output;
use crate::progress::Progress;

pub fn run(args: &GenerateArgs, global: &Global, output: &Output) -> Result<u8> {
    let rows = super::rows::read(&args.input, &args.model.model)?;
    // Ids need no tokenizer: without one they are continued all the same, and the text is null.
    let has_tokenizer = args.model.model.join("tokenizer.json").is_file();
    let tokenizer = if has_tokenizer { Some(Tokenizer::from_model_dir(&args.model.model)?) } else { None };
    let stop_ids = match &tokenizer {
        Some(tokenizer) if !args.ignore_eos => tokenizer.stop_ids().to_vec(),
        _ => Vec::new(),
    };
    let config = generate_config(args, stop_ids);
    let backend = Plugins::new(global)?.backend(&args.model.backend)?;
    let cancel = cancel_on_interrupt()?;
    let mut session = backend.open(&open_config(&args.model))?;
    let evaluator = evaluator(&mut session, &args.model.backend)?;
    let prompts: Tokens = rows.iter().map(|r| &r.ids).collect();
    let mut progress = Progress::new(output);
    let mut sink = StageSink {
        stage: "generate",
        total: None,
        observer: &mut progress,
        cancel: &cancel,
        keep: |_: &Event| Ok(()),
        error: None,
    };
    let completions = evaluator
        .generate(prompts.view(), &config, &mut sink)
        .map_err(|e| backend_error("generation failed", e))?;
    drop(progress);
    let mut lines = Vec::with_capacity(rows.len());
    for (row, completion) in rows.into_iter().zip(completions) {
        let ended = completion.ids.last().is_some_and(|id| config.stop_ids.contains(id));
        let text = match &tokenizer {
            Some(t) => Value::from(t.decode(&completion.ids[..completion.ids.len() - usize::from(ended)], true)?),
            None => Value::Null,
        };
        lines.push(json!({"id": row.id, "ids": completion.ids, "text": text, "stop": completion.stop}));
    }
    super::score::print(&lines, output)?;
    Ok(0)
}
