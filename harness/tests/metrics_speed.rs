//! Pairs per second on one thread over 241 long pairs. Ignored: it measures, it claims nothing.
//!
//!     cargo test --release -p karat --test metrics_speed -- --ignored --nocapture

use std::path::Path;
use std::time::Instant;

use karat::eval::metric::conformance::Texts;

/// The pairs of the vectors' `throughput.json`: each row of the validation data against the next.
fn pairs() -> Option<Vec<(String, String)>> {
    let wanted = Path::new("data/medical-r1/val.jsonl");
    let shared = std::env::var_os("KARAT_SHARED").map(std::path::PathBuf::from);
    let file = match shared {
        Some(shared) => Some(shared.join(wanted)),
        None => Path::new(env!("CARGO_MANIFEST_DIR"))
            .ancestors()
            .map(|f| f.join("shared").join(wanted))
            .find(|f| f.is_file()),
    };
    let text = std::fs::read_to_string(file?).ok()?;
    let texts: Vec<String> = text
        .split('\n')
        .filter(|line| !line.is_empty())
        .map(|line| {
            let row: serde_json::Value = serde_json::from_str(line).expect("a JSON line");
            let field = |key: &str| row[key].as_str().unwrap_or_default();
            format!("<think>{}</think>\n{}", field("think"), field("answer"))
        })
        .collect();
    let next = texts.iter().cycle().skip(1);
    Some(texts.iter().cloned().zip(next.cloned()).collect())
}

#[test]
#[ignore = "a measurement"]
fn pairs_per_second() {
    let Some(pairs) = pairs() else {
        println!("skipped: no shared/data/medical-r1/val.jsonl");
        return;
    };
    Texts::new("预热", "预热").whole_row();
    let measure = |name: &str, of: &dyn Fn(&Texts<'_>)| {
        let best = (0..3)
            .map(|_| {
                let start = Instant::now();
                pairs.iter().for_each(|(r, c)| of(&Texts::new(r, c)));
                start.elapsed().as_secs_f64()
            })
            .fold(f64::INFINITY, f64::min);
        println!("{name}: {:.0} pairs/s", pairs.len() as f64 / best);
    };
    measure("jieba", &|t| {
        t.words(true);
    });
    for group in [
        "nltk_bleu_jieba",
        "nltk_bleu_char",
        "vocab",
        "rouge_raw",
        "rouge_jieba",
        "rouge_char",
        "rouge_chinese_jieba",
        "rouge_score",
        "rouge_score_jieba",
        "sacrebleu",
        "chrf",
        "chrfpp",
        "ter",
    ] {
        measure(group, &|t| {
            std::hint::black_box(t.group(group));
        });
    }
    let characters: Vec<char> = pairs.iter().flat_map(|(r, _)| r.chars()).collect();
    let long = |from: usize| characters[from..from + 20_000].iter().collect::<String>();
    let (a, b) = (long(0), long(30_000));
    let texts = Texts::new(&a, &b);
    for group in ["rouge_char", "rouge_jieba", "chrf", "nltk_bleu_char"] {
        let start = Instant::now();
        std::hint::black_box(texts.group(group));
        println!("{group} of 20,000 characters: {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
    }
}
