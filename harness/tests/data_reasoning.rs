//! Reasoning on its way from a row into the tokens: where a template writes it, where it does not,
//! and what is told of that.

#![allow(clippy::unwrap_used)]

mod byte_model;

use byte_model::byte_model;
use karat::ErrorKind;
use karat::data::examples::{Example, FormatOptions, Formatter, OutputFormat, Reasoning, Rendered};
use karat::data::fields::{Fields, Reading, RowLayout};
use karat::data::notes;
use karat::data::read::parse_jsonl;
use karat::data::record::{Dataset, Record};
use karat::data::template::ChatTemplate;
use karat::data::tokens::Tokenizer;
use karat::eval::think::{ThinkState, ThinkTags, split};
use serde_json::json;

/// Writes role and content alone, as SmolLM2's does.
const PLAIN: &str = "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n\
    {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// Opens the reasoning in the prompt, as the templates of models that always think do.
const OPENS: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and m.reasoning_content %}<think>\n\
    {{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}";

/// Forgets everything up to the last closing tag, wherever it stands.
const STRIPS: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1].lstrip('\\n') }}<|im_end|>\n\
    {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

fn formatter(template: &str, options: FormatOptions) -> Formatter {
    let dir = byte_model(Some(template));
    let options = FormatOptions { output: OutputFormat::Template, ..options };
    let template = ChatTemplate::from_model_dir(dir.path()).unwrap();
    Formatter::new(template, Tokenizer::from_model_dir(dir.path()).unwrap(), options).unwrap()
}

fn records(rows: &[serde_json::Value]) -> Vec<Record> {
    let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
    parse_jsonl(text.as_bytes(), "f", &Fields::default(), true).unwrap().records
}

fn response(formatter: &Formatter, example: &Example) -> String {
    formatter.tokenizer().decode(&example.ids[example.prompt_len..], false).unwrap()
}

#[test]
fn reasoning_that_a_template_drops_is_written_into_the_answer_and_told() {
    let rows = records(&[
        json!({"id": "a", "question": "q", "think": "why", "answer": "so"}),
        json!({"question": "q", "answer": "so"}),
    ]);
    let plain = formatter(PLAIN, FormatOptions::default());
    let examples = plain.examples(&rows).unwrap();
    assert_eq!((examples.with_think, examples.written.clone()), (1, vec!["a".to_string()]));
    let [first, second] = &examples.examples[..] else { panic!("{examples:?}") };
    assert_eq!(response(&plain, first), "<think>\nwhy\n</think>\n\nso<|im_end|>");
    assert_eq!(plain.tokenizer().decode(&first.ids[first.think.clone()], false).unwrap(), "<think>\nwhy\n</think>");
    assert_eq!((first.think_bytes, first.answer_bytes), ("<think>\nwhy\n</think>".len(), "\n\nso".len()));
    assert_eq!((first.reasoning, second.reasoning), (Rendered::Written, Rendered::None));
    assert_eq!(response(&plain, second), "so<|im_end|>");
    let note = notes::written(&[("train", 1), ("heldout", 0)], &ThinkTags::default()).unwrap();
    assert!(note.english.contains("train 1") && note.english.contains("data.reasoning"), "{note:?}");
    assert!(notes::written(&[("train", 0)], &ThinkTags::default()).is_none());

    // The first tag of the suite is the one that is written.
    let think_tags = ThinkTags::try_from(vec!["scratch".to_string()]).unwrap();
    let own = formatter(PLAIN, FormatOptions { think_tags, ..FormatOptions::default() });
    assert_eq!(response(&own, &own.example(&rows[0]).unwrap()), "<scratch>\nwhy\n</scratch>\n\nso<|im_end|>");
}

#[test]
fn a_template_that_must_write_reasoning_and_drops_it_is_an_error_with_remedies() {
    let rows = records(&[json!({"question": "q", "think": "why", "answer": "so"})]);
    let error = formatter(PLAIN, FormatOptions { reasoning: Reasoning::Template, ..FormatOptions::default() })
        .examples(&rows)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.place().unwrap().ends_with("chat_template.jinja"), "{error}");
    let help = error.help_text().unwrap();
    assert!(["auto", "drop", "recipe"].iter().all(|remedy| help.contains(remedy)), "{help}");
    // One that writes it satisfies both.
    for reasoning in [Reasoning::Auto, Reasoning::Template] {
        let opens = formatter(OPENS, FormatOptions { reasoning, ..FormatOptions::default() });
        let example = opens.example(&rows[0]).unwrap();
        assert_eq!(response(&opens, &example), "why\n</think>\n\nso<|im_end|>");
        assert_eq!((example.reasoning, example.think_bytes), (Rendered::InPlace, "why\n</think>".len()));
    }
    let strips = formatter(STRIPS, FormatOptions::default()).examples(&rows).unwrap_err();
    assert!(strips.what().contains("drops the reasoning, also where it is written into the answer"), "{strips}");
}

#[test]
fn reasoning_is_left_out_where_that_is_asked_for() {
    let rows = records(&[json!({"question": "q", "think": "why", "answer": "so"})]);
    let options = FormatOptions { reasoning: Reasoning::Drop, ..FormatOptions::default() };
    for template in [PLAIN, STRIPS] {
        let drop = formatter(template, options.clone());
        let examples = drop.examples(&rows).unwrap();
        assert_eq!(response(&drop, &examples.examples[0]), "so<|im_end|>");
        assert_eq!((examples.examples[0].reasoning, examples.with_think), (Rendered::Dropped, 0));
    }
    assert!(notes::left_out(Reasoning::Drop, 1).is_some() && notes::left_out(Reasoning::Auto, 1).is_none());
}

#[test]
fn one_record_that_cannot_be_rendered_leaves_the_others_alone() {
    let row = |i: usize| json!({"id": i.to_string(), "question": "q", "think": "why", "answer": format!("a{i}")});
    let mut rows: Vec<_> = (0..100).map(row).collect();
    rows.insert(57, json!({"id": "bad", "question": "q", "answer": "no reasoning"}));
    let opens = formatter(OPENS, FormatOptions::default());
    let examples = opens.examples(&records(&rows)).unwrap();
    assert_eq!((examples.examples.len(), examples.bad.len()), (100, 1));
    assert_eq!((examples.bad[0].id.as_str(), examples.bad[0].line), ("bad", 58));
    assert!(examples.bad[0].reason.contains("not the beginning of the rendered conversation"), "{:?}", examples.bad);
    let error = opens.examples(&records(&rows[57..58])).unwrap_err();
    assert!(error.what().contains("none of 1 records can be rendered"), "{error}");
    assert!(error.place().unwrap().ends_with("chat_template.jinja") && error.help_text().is_some());
    // A row that a template raises against is one as well.
    let raises =
        format!("{{% if messages[0].content == 'no' %}}{{{{ raise_exception('never no') }}}}{{% endif %}}{PLAIN}");
    let rows = records(&[json!({"question": "no", "answer": "a"}), json!({"question": "yes", "answer": "a"})]);
    let examples = formatter(&raises, FormatOptions::default()).examples(&rows).unwrap();
    assert_eq!((examples.examples.len(), examples.bad[0].line), (1, 1));
    assert!(examples.bad[0].reason.contains("never no"), "{:?}", examples.bad);
}

#[test]
fn an_answer_that_reads_like_part_of_the_end_token_is_found_in_its_own_place() {
    let plain = formatter(PLAIN, FormatOptions::default());
    for answer in ["end", "m", "i", "<", "|>", "im_end", "a<|im_end|>b"] {
        let rows = records(&[json!({"question": "q", "think": answer, "answer": answer})]);
        let example = plain.example(&rows[0]).unwrap();
        assert_eq!(
            response(&plain, &example),
            format!("<think>\n{answer}\n</think>\n\n{answer}<|im_end|>"),
            "{answer}"
        );
        assert_eq!(example.think_bytes, format!("<think>\n{answer}\n</think>").len(), "{answer}");
    }
}

/// The rows of chats with one question each, whose last turn is `content`.
fn chats(contents: &[&str], tags: &ThinkTags) -> Dataset {
    let row = |content: &&str| json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": content}]});
    let text: String = contents.iter().map(|content| format!("{}\n", row(content))).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    Reading::new(&Fields::messages(), tags).read(file.path()).unwrap()
}

#[test]
fn references_and_candidates_are_taken_apart_by_one_rule_in_every_state() {
    let texts = [
        "<think>t</think>A",
        "<think>\nt\n</think>\n\nA",
        "t\n</think>\n\nA",
        "t</THINK>A",
        "A",
        "<think></think>A",
        "<THINK>t</Think>A",
        "<thinking>t</thinking>A",
        "<Reasoning>t</reasoning>A",
        "<think>t</think>A</think>A",
        "<think>t</think>B<think>u</think>A",
        "<think>a<think>b</think>c</think>A",
        "<think>say </think> tag</think>A",
        "never opened <thinker>A",
    ];
    let data = chats(&texts, &ThinkTags::default());
    assert!(data.bad.is_empty(), "{:?}", data.bad);
    for (record, text) in data.records.iter().zip(texts) {
        let parts = split(text);
        assert_eq!((record.think.trim(), record.answer.trim()), (parts.think, parts.answer), "{text}");
    }
    // What has no answer as a candidate is no reference either, and nothing of a text is lost.
    let data = chats(
        &["ok", "<think>never closed", "so: <think>", "<think>t</think> ", "Sure. <think>t</think>A"],
        &ThinkTags::default(),
    );
    let reasons: Vec<&str> = data.bad.iter().map(|bad| bad.reason.as_str()).collect();
    assert_eq!((reasons.len(), split("<think>never closed").state), (4, ThinkState::Unclosed));
    assert!(reasons[0].contains("never closes it") && reasons[1].contains("never closes it"), "{reasons:?}");
    assert!(reasons[2].contains("no answer") && reasons[3].contains("before its reasoning"), "{reasons:?}");
    // Other tags, and none.
    let own =
        chats(&["<scratch>t</scratch>A", "<think>t</think>A"], &ThinkTags::try_from(vec!["scratch".into()]).unwrap());
    let parts: Vec<_> = own.records.iter().map(|r| (r.think.as_str(), r.answer.as_str())).collect();
    assert_eq!(parts, [("t", "A"), ("", "<think>t</think>A")]);
    let none = chats(&["use the <think> tag"], &ThinkTags::try_from(Vec::new()).unwrap());
    assert_eq!(none.records[0].answer, "use the <think> tag");
}

#[test]
fn the_answer_of_a_plain_row_is_parted_too_and_a_second_tag_is_told_by_id() {
    let rows = records(&[
        json!({"id": "in", "question": "q", "answer": "<think>because</think>so"}),
        json!({"id": "own", "question": "q", "think": "t", "answer": "A</think>B"}),
    ]);
    assert_eq!((rows[0].think.as_str(), rows[0].answer.as_str()), ("because", "so"));
    assert_eq!((rows[1].think.as_str(), rows[1].answer.as_str()), ("t", "A</think>B"));
    let note = notes::stray(&rows, &ThinkTags::default()).unwrap();
    assert!(note.english.contains("\"own\"") && !note.english.contains("\"in\""), "{note:?}");
    let texts = [("x", "<think>t</think>A</think>B"), ("y", "<think>t</think>A"), ("z", "<think>t")];
    let note = notes::stray_texts("lora", texts, &ThinkTags::default()).unwrap();
    assert!(note.english.contains("1 answers of lora") && note.english.contains("\"x\""), "{note:?}");
    let alpaca = Fields { layout: RowLayout::Alpaca, ..Fields::alpaca() };
    let row = json!({"instruction": "i", "output": "t</think>A"}).to_string();
    let data = parse_jsonl(row.as_bytes(), "f", &alpaca, true).unwrap();
    assert_eq!((data.records[0].think.as_str(), data.records[0].answer.as_str()), ("t", "A"));
}
