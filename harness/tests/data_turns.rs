//! The turns of a chat row: every key reaches the template as transformers hands it on, or the row
//! says which does not.

#![allow(clippy::unwrap_used)]

mod byte_model;

use byte_model::byte_model;
use karat::data::examples::{FormatOptions, Formatter, OutputFormat};
use karat::data::fields::Fields;
use karat::data::notes;
use karat::data::read::parse_jsonl;
use karat::data::record::Dataset;
use karat::data::template::ChatTemplate;
use karat::data::tokens::Tokenizer;
use serde_json::{Value, json};

/// Writes what it is told of a turn: its name, a note, its reasoning under three names, its texts.
const KEYS: &str = "{% for m in messages %}<|im_start|>{{ m.role }}{% if m.name is defined %} {{ m.name }}{% endif %}\
    {% if m.note is defined %} {{ m.note | tojson }}{% endif %}\n\
    {% if m.reasoning_content %}[{{ m.reasoning_content }}|{{ m.thinking }}|{{ m.reasoning }}]{% endif %}\
    {% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}\
    <|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

fn read(rows: &[Value]) -> Dataset {
    let text: String = rows.iter().map(|row| format!("{}\n", json!({"messages": row}))).collect();
    parse_jsonl(text.as_bytes(), "f", &Fields::messages(), false).unwrap()
}

fn formatter(template: &str) -> Formatter {
    let dir = byte_model(Some(template));
    let options = FormatOptions { output: OutputFormat::Template, ..FormatOptions::default() };
    let template = ChatTemplate::from_model_dir(dir.path()).unwrap();
    Formatter::new(template, Tokenizer::from_model_dir(dir.path()).unwrap(), options).unwrap()
}

/// The text of the only row's example.
fn text(template: &str, messages: Value) -> String {
    let formatter = formatter(template);
    let data = read(&[messages]);
    let example = formatter.example(&data.records[0]).unwrap();
    formatter.tokenizer().decode(&example.ids, false).unwrap()
}

#[test]
fn every_key_of_a_turn_reaches_the_template_as_transformers_hands_it_on() {
    let turns = |first: Value, last: Value| {
        let mut turns = [json!({"role": "assistant", "content": "a"}), json!({"role": "assistant", "content": "b"})];
        turns.iter_mut().zip([first, last]).for_each(|(turn, more)| {
            turn.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        });
        let [first, last] = turns;
        json!([{"role": "user", "content": "x"}, first, {"role": "user", "content": "y"}, last])
    };
    // The texts are those of transformers 5.24 (apply_chat_template), up to the end of the last
    // turn.
    let cases = [
        (
            turns(json!({"reasoning_content": "hist"}), json!({"reasoning_content": "now"})),
            "<|im_start|>userx<|im_end|>\n<|im_start|>assistant[hist|hist|]a<|im_end|>\n<|im_start|>usery<|im_end|>\n\
             <|im_start|>assistant[now|now|]b<|im_end|>",
        ),
        (
            turns(json!({"thinking": "hist"}), json!({"thinking": "now"})),
            "<|im_start|>userx<|im_end|>\n<|im_start|>assistant[hist|hist|]a<|im_end|>\n<|im_start|>usery<|im_end|>\n\
             <|im_start|>assistant[now|now|]b<|im_end|>",
        ),
        (
            turns(json!({"reasoning": "hist"}), json!({"reasoning": "now"})),
            "<|im_start|>userx<|im_end|>\n<|im_start|>assistant[hist|hist|hist]a<|im_end|>\n<|im_start|>usery<|im_end|>\n\
             <|im_start|>assistant[now|now|now]b<|im_end|>",
        ),
        (
            turns(json!({"reasoning": "hist", "thinking": "other"}), json!({"thinking": "now", "reasoning": "more"})),
            "<|im_start|>userx<|im_end|>\n<|im_start|>assistant[other|other|hist]a<|im_end|>\n<|im_start|>usery<|im_end|>\n\
             <|im_start|>assistant[now|now|more]b<|im_end|>",
        ),
        (
            json!([
                {"role": "system", "content": "s", "name": null, "note": {"b": 1, "a": [1.5, "é<"]}},
                {"role": "user", "content": "x", "name": "Ann", "weight": 0},
                {"role": "assistant", "content": "a", "name": "Bot", "note": []},
                {"role": "user", "content": "y", "note": true},
                {"role": "assistant", "content": "b", "name": "Bot", "weight": 1, "refusal": null, "tool_calls": null},
            ]),
            "<|im_start|>system {\"b\": 1, \"a\": [1.5, \"é<\"]}s<|im_end|>\n<|im_start|>user Annx<|im_end|>\n\
             <|im_start|>assistant Bot []a<|im_end|>\n<|im_start|>user truey<|im_end|>\n<|im_start|>assistant Botb<|im_end|>",
        ),
        (
            json!([
                {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "b"}]},
            ]),
            "<|im_start|>userxy<|im_end|>\n<|im_start|>assistantb<|im_end|>",
        ),
    ];
    for (messages, expected) in cases {
        // The generation prompt of this template has no name, so a named turn would not begin with
        // it.
        let template = KEYS.replace("<|im_start|>assistant\n", "<|im_start|>assistant");
        let template = match messages.to_string().contains("Bot") {
            true => template.replace("}<|im_start|>assistant{", "}<|im_start|>assistant Bot{"),
            false => template,
        };
        assert_eq!(text(&template, messages.clone()), expected, "{messages}");
    }
}

#[test]
fn what_is_more_than_text_is_a_bad_line_that_names_the_key() {
    let question = json!({"role": "user", "content": "q"});
    let answered = |more: Value| {
        let mut turn = json!({"role": "assistant", "content": "a"});
        turn.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!([question, turn])
    };
    let asked = |content: Value| json!([{"role": "user", "content": content}, {"role": "assistant", "content": "a"}]);
    let cases = [
        (answered(json!({"tool_calls": [{"id": 1}]})), "message 2: \"tool_calls\" is not read"),
        (answered(json!({"images": ["x.png"]})), "message 2: \"images\" is not read"),
        (answered(json!({"function_call": {"name": "f"}})), "message 2: \"function_call\" is not read"),
        (
            answered(json!({"reasoning_content": 5})),
            "message 2: \"reasoning_content\" must be a string, found a number",
        ),
        (answered(json!({"weight": 0.5})), "message 2: \"weight\" must be 0 or 1, found 0.5"),
        (answered(json!({"weight": "0"})), "message 2: \"weight\" must be 0 or 1, found \"0\""),
        (answered(json!({"weight": 0})), "\"weight\" 0 of the last message leaves nothing to train on"),
        (answered(json!({"weight": 0.0})), "\"weight\" 0 of the last message leaves nothing to train on"),
        (asked(json!([{"type": "image_url"}])), "message 1: part 1 of \"content\" is of type \"image_url\""),
        (asked(json!([{"type": "text"}])), "message 1: part 1 of \"content\" has no \"text\""),
        (asked(json!(["q"])), "message 1: part 1 of \"content\" must be"),
        (asked(json!([])), "message 1: \"content\" is empty"),
        (asked(json!({"text": "q"})), "message 1: \"content\" must be a string or a list of texts, found an object"),
        (
            json!([question, {"role": "tool", "content": "5", "tool_call_id": "x"}]),
            "message 2: \"tool_call_id\" is not read",
        ),
    ];
    let mut rows = vec![answered(json!({"weight": 1, "tool_calls": [], "refusal": null, "id": 7}))];
    rows.extend(cases.iter().map(|case| case.0.clone()));
    let data = read(&rows);
    assert_eq!((data.records.len(), data.bad.len()), (1, cases.len()));
    for (bad, (_, reason)) in data.bad.iter().zip(&cases) {
        assert!(bad.reason.starts_with(reason), "{} instead of {reason}", bad.reason);
    }
}

#[test]
fn an_empty_system_turn_is_no_turn() {
    let turns =
        |system: Value| json!([system, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]);
    let rows = [
        turns(json!({"role": "system", "content": ""})),
        turns(json!({"role": "system", "content": " \n"})),
        turns(json!({"role": "system", "content": null})),
        turns(json!({"role": "system"})),
    ];
    let data = read(&rows);
    assert_eq!((data.records.len(), data.bad.len()), (4, 0), "{:?}", data.bad);
    assert!(data.records.iter().all(|record| record.history.is_empty()));
}

#[test]
fn a_list_of_texts_is_joined_only_where_the_template_writes_the_same_of_both() {
    let turns = json!([
        {"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "<think>t</think>"}, {"type": "text", "text": "A"}]},
    ]);
    let data = read(&[turns]);
    let record = &data.records[0];
    assert_eq!((record.question.as_str(), record.think.as_str(), record.answer.as_str()), ("xy", "t", "A"));
    let part =
        |write: &str| format!("{{% if m.content is string %}}{{{{ m.content }}}}{{% else %}}{write}{{% endif %}}");
    let template = |content: &str| {
        format!(
            "{{% for m in messages %}}<|im_start|>{{{{ m.role }}}}\n{content}<|im_end|>\n{{% endfor %}}\
             {{% if add_generation_prompt %}}<|im_start|>assistant\n{{% endif %}}"
        )
    };
    let reads = template(&part("{% for part in m.content %}{{ part.text }}{% endfor %}"));
    assert!(formatter(&reads).example(record).is_ok());
    for other in ["{% for part in m.content %}{{ part.text }} {% endfor %}", "{{ '' + m.content }}"] {
        let error = formatter(&template(&part(other))).example(record).unwrap_err();
        assert!(error.what().contains("list of texts"), "{error}");
    }
}

#[test]
fn a_weight_of_an_earlier_turn_is_told_where_it_asks_for_training() {
    let turns = |weight: u8| {
        json!([{"role": "user", "content": "x"}, {"role": "assistant", "content": "a", "weight": weight},
            {"role": "user", "content": "y"}, {"role": "assistant", "content": "b", "weight": 1}])
    };
    let data = read(&[turns(0), turns(1)]);
    assert_eq!((data.records.len(), data.earlier_weights), (2, 1));
    assert!(notes::earlier_weights(1).unwrap().english.contains("data.train_on"));
    assert!(notes::earlier_weights(0).is_none());
}
