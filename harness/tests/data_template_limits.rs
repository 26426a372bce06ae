//! Chat templates made to do harm end with an error that names them; what templates in use do is
//! left alone.

#![allow(clippy::unwrap_used)]

use std::time::Instant;

use karat::ErrorKind;
use karat::data::template::{ChatTemplate, Message, RenderOptions};
use karat::data::tokens::SpecialTokens;

fn render(source: &str, messages: &[Message]) -> karat::Result<String> {
    let template = ChatTemplate::new(source, "folder/chat_template.jinja", SpecialTokens::default())?;
    template.render(messages, &RenderOptions::default())
}

fn refused(name: &str, source: &str) {
    let began = Instant::now();
    let error = match render(source, &[Message::new("user", "Hi"), Message::new("assistant", "Ho")]) {
        Ok(text) => panic!("{name}: rendered {} bytes", text.len()),
        Err(error) => error,
    };
    assert_eq!(error.kind(), ErrorKind::Data, "{name}");
    assert!(error.place().unwrap_or_default().starts_with("folder/chat_template.jinja"), "{name}: {error}");
    assert!(error.what().len() < 5_000, "{name}: the error repeats the template's text");
    assert!(began.elapsed().as_secs() < 30, "{name} took {:?}", began.elapsed());
}

#[test]
fn a_text_that_grows_is_stopped_wherever_it_grows() {
    let doubled =
        |step: &str| format!("{{% set ns = namespace(a='x'*1000) %}}{{% for i in range(60) %}}{step}{{% endfor %}}");
    for (name, source) in [
        ("~", doubled("{% set ns.a = ns.a ~ ns.a %}")),
        ("+", doubled("{% set ns.a = ns.a + ns.a %}")),
        ("*", doubled("{% set ns.a = ns.a * 2 %}")),
        ("a block", doubled("{% set b %}{{ ns.a }}{{ ns.a }}{% endset %}{% set ns.a = b %}")),
        (
            "a macro",
            format!("{{% macro m(x) %}}{{{{ x }}}}{{{{ x }}}}{{% endmacro %}}{}", doubled("{% set ns.a = m(ns.a) %}")),
        ),
        ("join", doubled("{% set ns.a = [ns.a, ns.a] | join %}")),
        ("str.join", doubled("{% set ns.a = ''.join([ns.a, ns.a]) %}")),
        ("replace", doubled("{% set ns.a = ns.a | replace('x', 'xx') %}")),
        ("str.replace", doubled("{% set ns.a = ns.a.replace('x', 'xx') %}")),
        ("format", doubled("{% set ns.a = '%s%s' | format(ns.a, ns.a) %}")),
        ("str.format", doubled("{% set ns.a = '{}{}'.format(ns.a, ns.a) %}")),
        ("indent", doubled("{% set ns.a = ns.a.replace('x', '\\n') | indent(100, true, true) %}")),
        (
            "a filter block",
            doubled("{% set b %}{% filter upper %}{{ ns.a }}{{ ns.a }}{% endfilter %}{% endset %}{% set ns.a = b %}"),
        ),
        (
            "a call block",
            format!(
                "{{% macro m() %}}{{{{ caller() }}}}{{{{ caller() }}}}{{% endmacro %}}{}",
                doubled("{% set b %}{% call m() %}{{ ns.a }}{% endcall %}{% endset %}{% set ns.a = b %}")
            ),
        ),
        ("tojson", doubled("{% set ns.a = [ns.a, ns.a] | tojson %}")),
        ("map", doubled("{% set ns.a = ([ns.a] | map('replace', 'x', 'xx') | list)[0] %}")),
        (
            "autoescape",
            format!(
                "{{% autoescape true %}}{}{{% endautoescape %}}",
                doubled("{% set b %}{{ ns.a ~ '<<' }}{% endset %}{% set ns.a = b ~ b %}")
            ),
        ),
    ] {
        refused(name, &source);
    }
}

#[test]
fn a_single_step_that_asks_for_the_machine_is_stopped() {
    for source in [
        "{{ 'x' | indent(10000000000) }}",
        "{{ 'x\\ny' | indent(width=10000000000) }}",
        "{{ messages | tojson(indent=9999999999) }}",
        "{{ [[[1]]] | tojson(indent=9999999) }}",
        "{{ ('x'*100000) | replace('x', 'y'*100000) }}",
        "{{ ('x'*100000) | replace('', 'y'*100000) }}",
        "{{ ('x'*100000).replace('x', 'y'*100000) }}",
        "{{ 'x' * 9999999999 }}",
        "{{ 'x' * 100000000 }}",
        "{{ 100000000 * 'x' }}",
        "{{ (['x'*100000] * 100000) | join }}",
        "{{ range(100000) | join('x'*100000) }}",
        "{{ ('x'*100000).join(range(100000)) }}",
        "{{ '%9999999999d' | format(1) }}",
        "{{ '%*d' | format(9999999999, 1) }}",
        "{{ '%.999999999f' | format(1.5) }}",
        "{{ '{:>9999999999}'.format('x') }}",
        "{{ [1] | batch(9999999999, 'x') | list }}",
        "{{ [1] | slice(9999999999, 'x') | list }}",
        "{{ ([1] * 100000000) | list | length }}",
        "{{ range(9999999999) }}",
        "{{ raise_exception('x' * 10000000) }}",
        "{{ strftime_now('%A' * 10000000) }}",
        "{{ 'x' ~ ('y' * 50000000) }}",
        "{% set a = 'x' * 90000000 %}{% set b = 'x' * 90000000 %}{{ a }}",
    ] {
        refused(source, source);
    }
}

#[test]
fn output_is_bounded_also_where_the_template_writes_its_own_words() {
    let raw = "y".repeat(100_000);
    refused("raw text", &format!("{{% for i in range(100000) %}}{raw}{{% endfor %}}"));
    refused(
        "raw text into a variable",
        &format!("{{% set x %}}{{% for i in range(100000) %}}{raw}{{% endfor %}}{{% endset %}}"),
    );
    let short = "{% for i in range(100000) %}{% for j in range(100000) %}short text {% endfor %}{% endfor %}";
    refused("short raw text", short);
    refused("a value", "{% set x = 'x'*1000000 %}{% for i in range(100000) %}{{ x }}{% endfor %}");
}

#[test]
fn lists_that_nest_share_or_grow_are_stopped() {
    let looped = |step: &str| {
        format!(
            "{{% set ns = namespace(l=[1], d={{}}) %}}{{% for i in range(100000) %}}{{% for j in range(20) %}}{step}{{% endfor %}}{{% endfor %}}"
        )
    };
    for (name, source) in [
        ("nested", looped("{% set ns.l = [ns.l] %}")),
        ("nested and printed", "{% set ns = namespace(l=[1]) %}{% for i in range(1500) %}{% set ns.l = [ns.l] %}{% endfor %}{{ ns.l }}".into()),
        ("nested and as JSON", "{% set ns = namespace(l=[1]) %}{% for i in range(1500) %}{% set ns.l = [ns.l] %}{% endfor %}{{ ns.l | tojson }}".into()),
        ("nested and compared", "{% set ns = namespace(l=[1], m=[1]) %}{% for i in range(900) %}{% set ns.l = [ns.l] %}{% set ns.m = [ns.m] %}{% endfor %}{{ ns.l == ns.m }}".into()),
        ("nested maps", looped("{% set ns.d = {'a': ns.d} %}")),
        ("nested tuples", looped("{% set ns.l = (ns.l,) %}")),
        ("nested by dict()", looped("{% set ns.d = dict(a=ns.d) %}")),
        ("nested namespaces", looped("{% set ns.d = namespace(a=ns.d) %}")),
        ("slices of slices", looped("{% set ns.l = ns.l[0:] %}")),
        ("reversed", looped("{% set ns.l = ns.l | reverse %}")),
        ("chained", looped("{% set ns.l = ns.l | chain([j]) %}")),
        ("added", looped("{% set ns.l = ns.l + ns.l %}")),
        ("shared and printed", "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}".into()),
        ("shared and as text", "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ 'x' ~ ns.l }}".into()),
        ("shared and as JSON", "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l | tojson }}".into()),
        ("shared and pretty", "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l | pprint }}".into()),
        ("shared and compared", "{% set ns = namespace(l=[1], m=[1]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% set ns.m = [ns.m, ns.m] %}{% endfor %}{{ ns.l == ns.m }}".into()),
        ("shared and searched", "{% set ns = namespace(l=[1], m=[1]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% set ns.m = [ns.m, ns.m] %}{% endfor %}{{ ns.l in [ns.m, 2] }}".into()),
        ("shared and sorted", "{% set ns = namespace(l=[1], m=[1]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% set ns.m = [ns.m, ns.m] %}{% endfor %}{{ [ns.l, ns.m] | sort }}".into()),
        ("shared and in upper case", "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l | upper }}".into()),
        ("a circle, printed", "{% set ns = namespace(a=1) %}{% set ns.a = ns %}{{ ns }}".into()),
        ("a circle, as JSON", "{% set ns = namespace(a=1) %}{% set ns.a = [ns] %}{{ ns | tojson }}".into()),
        ("a circle, compared", "{% set ns = namespace(a=1) %}{% set m = namespace(a=1) %}{% set ns.a = ns %}{% set m.a = m %}{{ ns == m }}".into()),
        ("many parts", "{{ (('x ' * 5000000).split(' ')) | length }}".into()),
        ("many characters", "{{ ('x' * 10000000) | list | length }}".into()),
        ("many arguments", "{% macro m() %}{{ varargs }}{% endmacro %}{{ m(*([1] * 100000000)) }}".into()),
    ] {
        refused(name, &source);
    }
}

#[test]
fn work_without_output_is_stopped() {
    let text = "{% set x = 'x' * 10000000 %}";
    for step in [
        "{% set y = x | length %}",
        "{% set y = 'y' in x %}",
        "{% set y = x == x ~ '' %}",
        "{% set y = x[9999999] %}",
        "{% set y = x[-1:] %}",
        "{% set y = x.count('y') %}",
        "{% set y = x.find('y') %}",
        "{% set y = x is lower %}",
        "{% set y = x.startswith(x) %}",
        "{% set y = x | upper | length %}",
        "{% set y = x.strip() %}",
        "{% for c in x %}{% break %}{% endfor %}",
    ] {
        refused(
            step,
            &format!(
                "{text}{{% for i in range(100000) %}}{{% for j in range(1000) %}}{step}{{% endfor %}}{{% endfor %}}"
            ),
        );
    }
    refused(
        "instructions",
        "{% for a in range(100000) %}{% for b in range(100000) %}{% set c = a + b %}{% endfor %}{% endfor %}",
    );
}

#[test]
fn a_source_that_nests_too_deep_is_refused_before_it_is_followed() {
    let many = |n: usize, what: &str| what.repeat(n);
    for (name, source) in [
        ("sums", format!("{{{{ 1{} }}}}", many(50_000, "+1"))),
        ("items", format!("{{{{ a{} }}}}", many(50_000, "[0]"))),
        ("attributes", format!("{{{{ a{} }}}}", many(50_000, ".b"))),
        ("calls", format!("{{{{ a{} }}}}", many(50_000, "()"))),
        ("calls with arguments", format!("{{{{ a{} }}}}", many(50_000, "(1,1)"))),
        ("filters", format!("{{{{ a{} }}}}", many(50_000, "|trim"))),
        ("not", format!("{{{{ {}a }}}}", many(50_000, "not "))),
        ("signs", format!("{{{{ {}1 }}}}", many(100_000, "-"))),
        ("powers", format!("{{{{ 2{} }}}}", many(50_000, "**2"))),
        ("tests", format!("{{{{ a{} }}}}", many(50_000, " is defined"))),
        ("conditions", format!("{{{{ 1{} }}}}", many(50_000, " if a else 1"))),
        ("or", format!("{{{{ a{} }}}}", many(50_000, " or a"))),
        ("comparisons", format!("{{{{ 1{} }}}}", many(50_000, " < 1"))),
        ("texts", format!("{{{{ 'a'{} }}}}", many(50_000, "~'a'"))),
        ("brackets", format!("{{{{ {}1{} }}}}", many(50_000, "["), many(50_000, "]"))),
        ("parentheses", format!("{{{{ {}1{} }}}}", many(50_000, "("), many(50_000, ")"))),
        ("elif", format!("{{% if a %}}{}{{% endif %}}", many(20_000, "{% elif a %}"))),
        ("if", format!("{}{}", many(10_000, "{% if a %}"), many(10_000, "{% endif %}"))),
        ("for", format!("{}{}", many(10_000, "{% for a in b %}"), many(10_000, "{% endfor %}"))),
        ("a large source", many(2_000_000, "x")),
        ("literals", format!("{{{{ [{}] }}}}", many(3_000, "'x'*100000000,"))),
        ("macros that call themselves", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}".into()),
        ("loops that call themselves", "{% for a in [[1]] recursive %}{{ loop([a]) }}{% endfor %}".into()),
        ("an include of itself", "{% include 'chat_template' %}".into()),
    ] {
        refused(name, &source);
    }
}

#[test]
fn a_long_conversation_is_as_legal_as_a_short_one() {
    // 4,000 turns and 12 MB; lists are made for each turn, more than a small stack could free in a
    // chain.
    let turns: Vec<Message> =
        (0..4_000).map(|i| Message::new(if i % 2 == 0 { "user" } else { "assistant" }, "word ".repeat(600))).collect();
    let source = "{% for m in messages %}{% set pair = [m.role, {'content': m.content}] %}{% set rest = messages[loop.index0:] %}\
        {{ pair[0] + ': ' ~ (pair[1].content | trim) }}{{ m.content.split(' ')[0] }}\n{% endfor %}";
    let text = render(source, &turns).unwrap();
    assert!(text.len() > 11_000_000, "{}", text.len());
    assert!(text.starts_with("user: word word") && text.ends_with("wordword\n"));
    // The same on a thread with the small stack of a pool.
    let small = std::thread::Builder::new().stack_size(2 << 20).spawn(move || render(source, &turns).unwrap()).unwrap();
    assert_eq!(small.join().unwrap(), text);
}

#[test]
fn a_template_that_makes_a_chain_of_lists_does_not_need_the_callers_stack() {
    let source = "{% set ns = namespace(l=[1]) %}{% for i in range(15000) %}{% set ns.l = [ns.l] %}{% endfor %}done";
    let small = std::thread::Builder::new().stack_size(2 << 20).spawn(move || render(source, &[])).unwrap();
    assert_eq!(small.join().unwrap().unwrap(), "done");
}

#[test]
fn what_is_counted_renders_as_it_did() {
    let turns = [Message::new("system", "Be <b>."), Message::new("user", "1 & 2"), Message::new("assistant", "3")];
    for (source, text) in [
        ("{{ 1 ~ none ~ [1, 'a'] ~ 1.5 ~ true }}", "1None[1, 'a']1.5True"),
        ("{{ (messages[1:] | map(attribute='content') | list) + ['x'] }}", "['1 & 2', '3', 'x']"),
        ("{{ [1] * 3 }}{{ 'ab' * 2 }}{{ 2 * 3 }}", "[1, 1, 1]abab6"),
        ("{{ 1 < 2 < 3 }}{{ 'a' in 'abc' }}{{ 'role' in messages[0] }}{{ 4 not in [1, 2] }}", "TrueTrueTrueTrue"),
        (
            "{{ messages[-1].content }}{{ (messages[::-1] | first)['role'] }}{{ 'abc'[1] }}{{ 'abcd'[1:3] }}",
            "3assistantbbc",
        ),
        ("{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join('|') }}", "1 & 2"),
        (
            "{{ dict(a=1, b=[2]) | tojson }}{{ {'k': none} | tojson(indent=2) }}",
            "{\"a\": 1, \"b\": [2]}{\n  \"k\": null\n}",
        ),
        (
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + m.content | length %}{% endfor %}{{ ns.n }}",
            "13",
        ),
        (
            "{% macro m(a, b='-') %}{{ a }}{{ b }}{{ caller() if caller else '' }}{% endmacro %}{{ m('x') }}{% call m('y') %}z{% endcall %}",
            "x-y-z",
        ),
        (
            "{{ 'a-b'.split('-') | last }}{{ 'x'.join(['1', '2']) }}{{ '%s=%d' | format('a', 3) }}{{ 'aXb'.replace('X', '') }}",
            "b1x2a=3ab",
        ),
        ("{% for a, b in {'k': 'v'}.items() %}{{ a }}{{ b }}{{ loop.last }}{% endfor %}", "kvTrue"),
        (
            "{% for m in messages if m.role != 'system' %}{{ loop.index }}{{ m.role }} {% else %}none{% endfor %}",
            "1user 2assistant ",
        ),
    ] {
        assert_eq!(render(source, &turns).unwrap(), text, "{source}");
    }
}
