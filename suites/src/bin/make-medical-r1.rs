//! Makes the data of the suite `medical-r1` again, from its table of facts.
//!
//! `make-medical-r1` alone checks that the committed files are current; `--write` writes them;
//! `--corpus FILE` writes the pretraining corpus, documents parted by blank lines;
//! `--finish CHECKPOINT` makes the base model's weights of a checkpoint that was pretrained on it;
//! `--stats` counts tokens.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use karat::data::bpe;
use karat::{Error, Result, fsio};
use karat_suites::medical_r1::items::{Item, jsonl};
use karat_suites::medical_r1::{self, MAX_POSITIONS, Source, choices};
use tokenizers::Tokenizer;

/// Make or check the data of the suite medical-r1.
#[derive(Parser)]
struct Flags {
    /// Write the committed files: data, tokenizer and configuration of the base model.
    #[arg(long)]
    write: bool,
    /// Write the pretraining corpus to this file, documents parted by blank lines.
    #[arg(long, value_name = "FILE")]
    corpus: Option<PathBuf>,
    /// Make the base model's weights from this pretrained checkpoint: new rows for the control
    /// tokens, bfloat16.
    #[arg(long, value_name = "CHECKPOINT")]
    finish: Option<PathBuf>,
    /// Where --finish writes [default: the suite's base folder].
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
    /// Count items and tokens.
    #[arg(long)]
    stats: bool,
}

fn main() -> ExitCode {
    match run(&Flags::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let cause = std::error::Error::source(&error).map(|s| format!(": {s}")).unwrap_or_default();
            eprintln!("error: {error}{cause}");
            if let Some(help) = error.help_text() {
                eprintln!("help: {help}");
            }
            ExitCode::from(error.kind().exit_code())
        }
    }
}

fn run(flags: &Flags) -> Result<()> {
    let source = Source::load()?;
    let tokenizer = source.tokenizer()?;
    let items = source.items();
    let dir = medical_r1::dir();
    let files = [
        ("train.jsonl", jsonl(&items.train)),
        ("heldout.jsonl", jsonl(&items.heldout)),
        ("general.jsonl", jsonl(&source.general())),
        ("../medical-r1-choice/heldout.jsonl", choices::jsonl(&choices::make(&source))),
        ("base/tokenizer.json", bpe::tokenizer_json(&tokenizer)?),
        ("base/tokenizer_config.json", bpe::tokenizer_config_json(MAX_POSITIONS)),
        ("base/config.json", format!("{:#}\n", medical_r1::model_config())),
        ("base/generation_config.json", format!("{:#}\n", medical_r1::generation_config())),
    ];
    for (name, text) in &files {
        let path = dir.join(name);
        if flags.write {
            fsio::write_atomic(&path, text.as_bytes())?;
        } else if std::fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))? != *text {
            return Err(Error::data("not what the table of facts gives")
                .at(path.display())
                .help("cargo run -p karat-suites --bin make-medical-r1 -- --write"));
        }
    }
    if let Some(path) = &flags.corpus {
        let mut text = source.corpus().join("\n\n");
        text.push('\n');
        fsio::write_atomic(path, text.as_bytes())?;
    }
    if let Some(checkpoint) = &flags.finish {
        let weights = flags.weights.clone().unwrap_or_else(|| dir.join("base/model.safetensors"));
        medical_r1::finish::finish(&checkpoint.join("model.safetensors"), &weights)?;
    }
    if flags.stats {
        let corpus = source.corpus();
        let tokens = corpus.iter().try_fold(0, |sum, text| Ok::<_, Error>(sum + count(&tokenizer, text)?))?;
        println!("corpus: {} documents, {tokens} tokens, {} bytes", corpus.len(), corpus.join("\n").len());
        for (name, set) in [("train", &items.train), ("heldout", &items.heldout)] {
            stats(name, set, &tokenizer, &source.wording.system)?;
        }
    }
    Ok(())
}

/// Tokens of an item as the recipe lays it out.
fn stats(name: &str, items: &[Item], tokenizer: &Tokenizer, system: &str) -> Result<()> {
    let (mut prompts, mut outputs, mut longest, mut english) = (0, 0, 0, 0);
    for item in items {
        let prompt = count(
            tokenizer,
            &format!(
                "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
                item.question
            ),
        )?;
        let output = count(tokenizer, &format!("<think>\n{}\n</think>\n\n{}<|im_end|>\n", item.think, item.answer))?;
        prompts += prompt;
        outputs += output;
        longest = longest.max(prompt + output);
        english += usize::from(item.language == "en");
    }
    let mean = |sum: usize| sum as f64 / items.len().max(1) as f64;
    println!(
        "{name}: {} items, {english} English; mean tokens: prompt {:.1}, output {:.1}; longest item {longest}",
        items.len(),
        mean(prompts),
        mean(outputs)
    );
    Ok(())
}

fn count(tokenizer: &Tokenizer, text: &str) -> Result<usize> {
    tokenizer.encode(text, false).map(|e| e.len()).map_err(|e| Error::failed("could not encode").because(e))
}
