//! How fast the metrics are, beside the Python packages they reproduce, in one go on the same
//! pairs; how they scale with cores; and what long texts cost in time and memory.
//!
//! ```text
//! karat-tools metrics python=VENV/bin/python pairs=PAIRS.jsonl
//! karat-tools metrics pairs=PAIRS.jsonl                            # Karat alone
//! karat-tools metrics long=20000                                   # one text length; peak memory
//! ```
//!
//! Pairs are lines `{"reference", "candidate"}`, or data rows `{"think", "answer"}`, each of which
//! is then compared with the next one. Python (`python/metrics_speed.py` says which packages) and
//! Karat take turns, group by group. Python works through the pairs until `seconds=` are over
//! (default: no limit); Karat is then timed on exactly those pairs, on one thread, the mean of
//! several rounds. Both are timed by the processor time of their thread, so that other work on the
//! machine does not count; `all cores` compares wall clocks. Segmentation is part of every time.

use std::error::Error;
use std::hint::black_box;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::Instant;

use karat::eval::metric::chrf::ChrfCounts;
use karat::eval::metric::conformance::Texts;
use karat::eval::metric::nltk_bleu::{BleuCounts, Smoothing};
use karat::eval::metric::sacrebleu::Counts;
use karat::eval::metric::sacrebleu_tokenizers::BleuTokenizer;
use karat::eval::metric::{rouge, vocabulary};
use rayon::prelude::*;
use serde_json::Value;

use crate::Done;
use crate::args::Args;

type Pair = (String, String);
type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What is measured: the name that Python knows, the ratio that is wanted, and the same work here.
type Group = (&'static str, f64, fn(&Texts<'_>));

const GROUPS: &[Group] = &[
    ("rouge_jieba", 300.0, |t| whole_group(t, "rouge_jieba")),
    ("rouge_char", 300.0, |t| whole_group(t, "rouge_char")),
    ("rouge_chinese_jieba", 300.0, |t| whole_group(t, "rouge_chinese_jieba")),
    ("rouge_score_jieba", 300.0, |t| keep(rouge::score(t.word_ids(true)))),
    ("nltk_bleu_jieba.m4", 10.0, |t| keep(BleuCounts::of(t.word_ids(true)).score(Smoothing::Method4))),
    ("vocab", 10.0, |t| keep(vocabulary::vocabulary(t.word_ids(true)))),
    ("sacrebleu_eff.zh", 10.0, |t| keep(Counts::of(t.reference(), t.candidate(), BleuTokenizer::Zh).score(true))),
    ("chrf", 30.0, |t| keep(ChrfCounts::of(t.reference(), t.candidate(), 0).score())),
    ("chrfpp", 30.0, |t| keep(ChrfCounts::of(t.reference(), t.candidate(), 2).score())),
    ("jieba", 0.0, |t| keep(t.words(true))),
];

/// Makes sure that a result is computed.
fn keep<T>(value: T) {
    black_box(value);
}

fn whole_group(texts: &Texts<'_>, group: &str) {
    black_box(texts.group(group));
}

/// Measures and prints.
pub fn run(args: &Args) -> Done {
    let python = args.get("python").map(PathBuf::from);
    let (pairs_file, only) = (args.get("pairs").map(PathBuf::from), args.get("only").map(str::to_owned));
    let (seconds, long) = (args.number("seconds", f64::INFINITY)?, args.get("long"));
    // The dictionary is loaded at first use.
    Texts::new("预热", "预热").words(true);
    if long.is_some() {
        return long_texts(args.number("long", 0)?, only.as_deref());
    }
    let pairs = read_pairs(&pairs_file.ok_or("pairs=FILE is needed")?)?;
    let groups = GROUPS.iter().filter(|(name, ..)| only.as_ref().is_none_or(|only| name.starts_with(only.as_str())));
    let written = tempfile::NamedTempFile::new()?;
    let mut packages = match python {
        Some(python) => Some(Packages::start(&python, &pairs, written.path(), seconds)?),
        None => None,
    };
    println!("{} pairs, {:.0} characters a text", pairs.len(), mean_length(&pairs));
    println!(
        "{:<22}{:>7}{:>14}{:>14}{:>9}{:>9}{:>12}",
        "metric", "pairs", "Python /s", "Karat /s", "ratio", "wanted", "all cores"
    );
    for (name, wanted, work) in groups {
        let (n, theirs) = match &mut packages {
            Some(packages) => packages.time(name)?,
            None => (pairs.len(), f64::NAN),
        };
        let chosen = &pairs[..n];
        let alone = || chosen.iter().for_each(|(r, c)| work(&Texts::new(r, c)));
        let ours = mean_of_rounds(processor_seconds, alone);
        let wall = mean_of_rounds(wall_seconds, alone);
        let parallel = mean_of_rounds(wall_seconds, || chosen.par_iter().for_each(|(r, c)| work(&Texts::new(r, c))));
        let rate = |seconds: f64| n as f64 / seconds;
        println!(
            "{name:<22}{n:>7}{:>14.2}{:>14.0}{:>9.1}{:>9}{:>12}",
            rate(theirs),
            rate(ours),
            theirs / ours,
            if *wanted > 0.0 { format!("{wanted:.0}") } else { String::new() },
            format!("x {:.2}", wall / parallel),
        );
    }
    Ok(())
}

/// The Python side: a process that times one group at a time.
struct Packages {
    child: std::process::Child,
    answers: BufReader<std::process::ChildStdout>,
    seconds: f64,
}

impl Packages {
    fn start(python: &Path, pairs: &[Pair], file: &Path, seconds: f64) -> Result<Self> {
        let rows: String =
            pairs.iter().map(|(r, c)| format!("{}\n", serde_json::json!({"reference": r, "candidate": c}))).collect();
        std::fs::write(file, rows)?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/metrics_speed.py");
        let mut child = Command::new(python)
            .arg(script)
            .arg(file)
            .envs([("OMP_NUM_THREADS", "1"), ("PYTHONHASHSEED", "0")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let answers = BufReader::new(child.stdout.take().ok_or("no pipe")?);
        let mut packages = Packages { child, answers, seconds };
        packages.line()?;
        Ok(packages)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        match self.answers.read_line(&mut line)? {
            0 => Err("Python ended; see its message above".into()),
            _ => Ok(line),
        }
    }

    /// Pairs done and seconds they took.
    fn time(&mut self, group: &str) -> Result<(usize, f64)> {
        let budget = self.seconds.min(1e9);
        writeln!(self.child.stdin.as_mut().ok_or("no pipe")?, "{group} {budget}")?;
        let answer = self.line()?;
        let (pairs, seconds) = answer.trim().split_once(' ').ok_or("no answer")?;
        Ok((pairs.parse()?, seconds.parse()?))
    }
}

impl Drop for Packages {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Seconds of a clock that one round of the work takes: the mean over at least three rounds and 0.4
/// seconds, since processor time advances in steps of some milliseconds.
fn mean_of_rounds(clock: fn() -> f64, work: impl Fn()) -> f64 {
    let (start, began, mut rounds) = (clock(), wall_seconds(), 0);
    while rounds < 3 || wall_seconds() - began < 0.4 {
        work();
        rounds += 1;
    }
    (clock() - start) / f64::from(rounds)
}

fn wall_seconds() -> f64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_secs_f64()
}

/// Processor time of this thread, where Linux tells it; else the wall clock.
fn processor_seconds() -> f64 {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let nanoseconds = told.and_then(|text| text.split(' ').next()?.parse::<f64>().ok());
    nanoseconds.map_or_else(wall_seconds, |n| n * 1e-9)
}

fn mean_length(pairs: &[Pair]) -> f64 {
    let all: usize = pairs.iter().map(|(r, c)| r.chars().count() + c.chars().count()).sum();
    all as f64 / (2 * pairs.len()).max(1) as f64
}

fn read_pairs(file: &Path) -> Result<Vec<Pair>> {
    let text = std::fs::read_to_string(file)?;
    let rows: Vec<Value> =
        text.split('\n').filter(|l| !l.is_empty()).map(serde_json::from_str).collect::<std::result::Result<_, _>>()?;
    let field = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_string();
    if rows.iter().all(|row| row["reference"].is_string()) {
        return Ok(rows.iter().map(|row| (field(row, "reference"), field(row, "candidate"))).collect());
    }
    let whole = |row: &Value| format!("<think>{}</think>\n{}", field(row, "think"), field(row, "answer"));
    let texts: Vec<String> = rows.iter().map(whole).collect();
    Ok(texts.iter().cloned().zip(texts.iter().cycle().skip(1).cloned()).collect())
}

/// Every group on one pair of `length` characters: milliseconds, and the process's peak memory
/// before and after.
fn long_texts(length: usize, only: Option<&str>) -> Result<()> {
    // Like prose: words that come back, never the same sentence twice. A multiplicative generator,
    // so that it needs no file.
    let words = [
        "患者",
        "应当",
        "注意",
        "血压",
        "140",
        "mmHg",
        "，",
        "并且",
        "定期",
        "复查",
        "肝功能",
        "。",
        "不宜",
        "与",
        "华法林",
        "合用",
        "ibuprofen ",
        "每日",
        "3次",
    ];
    let text = |mut state: u64| {
        let mut text = String::new();
        let mut n = 0;
        while n < length {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let word = words[(state >> 33) as usize % words.len()];
            text.push_str(word);
            n += word.chars().count();
        }
        text.chars().take(length).collect::<String>()
    };
    let (reference, candidate) = (text(1), text(2));
    println!("one pair of {length} characters");
    let mib = || karat::memory::peak().unwrap_or(0) as f64 / f64::from(1 << 20);
    for (name, _, work) in GROUPS.iter().filter(|(name, ..)| only.is_none_or(|only| name.starts_with(only))) {
        let before = mib();
        let seconds = mean_of_rounds(processor_seconds, || work(&Texts::new(&reference, &candidate)));
        println!("{name:<22}{:>10.1} ms   peak memory {before:.1} -> {:.1} MiB", seconds * 1e3, mib());
    }
    Ok(())
}
