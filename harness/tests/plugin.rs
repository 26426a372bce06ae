//! No plugin, however broken or hostile, may crash, hang or leak the host; each gives one clear
//! error.
//!
//! Every test loads its own copy of the hostile library, so that what is alive in it can be
//! counted.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use karat::ErrorKind;
use karat::backend::{
    AdamW, Backend, BackendError, BackendErrorKind, Event, EventSink, Flow, GenerateConfig, LabelledView, Method,
    OpenConfig, Scores, Session, Tokens, TrainPlan, TrainSummary,
};
use karat::plugin::{Plugin, Search, find, list};
use karat_hostile::Bigram;
use tempfile::TempDir;

/// A copy of the hostile library, and a model that it can open.
struct Fixture {
    folder: TempDir,
    library: PathBuf,
}

impl Fixture {
    fn new(fault: &str) -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        Bigram::write_model(folder.path(), 11, 5).unwrap();
        let built = find("hostile", &Search::from_env()).unwrap();
        let library = folder.path().join(format!("libkarat_hostile-{fault}.so"));
        fs::copy(built.path(), &library).unwrap();
        Fixture { folder, library }
    }
    fn load(&self) -> Plugin {
        Plugin::load(&self.library).unwrap()
    }
    /// The error of loading, its causes joined.
    fn load_error(&self) -> String {
        let error = Plugin::load(&self.library).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Backend);
        assert_eq!(error.place(), Some(self.library.to_str().unwrap()));
        chain(&error)
    }
    fn config(&self, fault: &str) -> OpenConfig {
        let mut config = OpenConfig::new(self.folder.path());
        if !fault.is_empty() {
            config.options.insert("fault".into(), fault.into());
        }
        config
    }
    fn plan(&self) -> TrainPlan {
        TrainPlan {
            method: Method::Full,
            steps: vec![vec![vec![0]], vec![vec![1]]],
            learning_rates: vec![1e-2, 1e-3],
            epochs: vec![0.5, 1.0],
            optimizer: AdamW::default(),
            max_grad_norm: 1.0,
            eval_every: 0,
            eval_batch_size: 1,
            save_every: 0,
            save_total_limit: 0,
            early_stopping: None,
            recompute: false,
            output_dir: self.folder.path().to_owned(),
            resume_from: None,
            init_adapter: None,
            seed: 0,
            fingerprint: String::new(),
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

fn open(plugin: &Plugin, config: &OpenConfig) -> Box<dyn Session> {
    plugin.open(config).unwrap()
}

fn go_on(_: Event) -> Flow {
    Flow::Continue
}

fn score(session: &mut dyn Session, sink: &mut dyn EventSink) -> Result<Scores, BackendError> {
    session.evaluator().unwrap().score(rows().view(), sink)
}

fn rows() -> Tokens {
    [vec![1, 2, 3], vec![], vec![4, 5]].iter().collect()
}

fn train(session: &mut dyn Session, plan: &TrainPlan, sink: &mut dyn EventSink) -> Result<TrainSummary, BackendError> {
    let (rows, none) = ([vec![1u32, 2, 3], vec![4, 5, 6]].iter().collect::<Tokens>(), Tokens::new());
    let train = LabelledView::new(rows.view(), &[-100, 2, 3, -100, 5, 6]).unwrap();
    session.trainer().unwrap().train(train, LabelledView::new(none.view(), &[]).unwrap(), plan, sink)
}

/// What is alive in the plugin's copy of the library, told by a new session before it counts itself
/// in an answer.
fn alive(plugin: &Plugin, fixture: &Fixture) -> Vec<String> {
    open(plugin, &fixture.config("")).info().kernels
}

/// The one session that is asked is alive, its answer is not made yet.
const NOTHING_LEAKED: [&str; 2] = ["answers alive: 0", "sessions alive: 1"];

#[test]
fn a_plugin_says_where_it_is_what_it_is_and_its_hash() {
    use sha2::{Digest, Sha256};
    let fixture = Fixture::new("none");
    let plugin = fixture.load();
    assert_eq!(plugin.path(), fs::canonicalize(&fixture.library).unwrap());
    let sha256: String =
        Sha256::digest(fs::read(&fixture.library).unwrap()).iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(plugin.sha256(), sha256);
    assert_eq!(plugin.descriptor().name, "hostile");
    assert_eq!(plugin.interface(), (karat::abi::MAJOR, karat::abi::MINOR));
    assert_eq!(alive(&plugin, &fixture), NOTHING_LEAKED);
}

#[test]
fn the_same_numbers_come_from_both_sides_of_the_boundary() {
    let fixture = Fixture::new("none");
    let config = fixture.config("");
    let mut here = Bigram.open(&config).unwrap();
    let mut there = open(&fixture.load(), &config);
    assert_eq!(score(&mut *here, &mut go_on), score(&mut *there, &mut go_on));
    let sampling =
        GenerateConfig { temperature: 1.3, top_p: 0.9, top_k: 7, seed: 3, ..GenerateConfig::greedy(9, vec![2]) };
    let prompts: Tokens = [[1u32, 2], [3, 4]].iter().collect();
    let texts =
        |session: &mut dyn Session| session.evaluator().unwrap().generate(prompts.view(), &sampling, &mut go_on);
    assert_eq!(texts(&mut *here).unwrap(), texts(&mut *there).unwrap());
    let events = |session: &mut dyn Session| {
        let mut losses = Vec::new();
        train(session, &fixture.plan(), &mut |event: Event| {
            if let Event::Step(step) = event {
                losses.push((step.step, step.loss.to_bits(), step.grad_norm.to_bits()));
            }
            Flow::Continue
        })
        .unwrap();
        losses
    };
    let (a, b) = (events(&mut *here), events(&mut *there));
    assert_eq!(a.len(), 2);
    assert_eq!(a, b);
}

#[test]
fn files_that_are_no_plugins_are_refused_before_they_are_run() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |what: &str, bytes: Option<&[u8]>, wanted: &str| {
        let path = folder.path().join("libkarat_x.so");
        if let Some(bytes) = bytes {
            fs::write(&path, bytes).unwrap();
        }
        let error = Plugin::load(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Backend);
        let text = chain(&error);
        assert!(text.contains(wanted) && text.contains("libkarat_x.so"), "{what}: {text}");
        text
    };
    refused("missing", None, "cannot be opened");
    refused("text", Some(b"echo I am a library\n"), "no shared library");
    refused("empty", Some(b""), "no shared library");
    let library = fs::read(Fixture::new("none").library).unwrap();
    // With the headers, the symbols and some of the code there, the system's loader would map what
    // is missing and die.
    for keep in [20, 100, 5000, library.len() / 4, library.len() / 2, library.len() - 1] {
        refused(&format!("the first {keep} bytes"), Some(&library[..keep]), "part of one");
    }
    let executable = fs::read(std::env::current_exe().unwrap()).unwrap();
    refused("an executable", Some(&executable), "this library is no plugin");
    fs::remove_file(folder.path().join("libkarat_x.so")).unwrap();
    fs::create_dir(folder.path().join("libkarat_x.so")).unwrap();
    refused("a folder", None, "a plugin is a file");
}

#[test]
fn a_library_the_system_cannot_load_is_refused_in_the_loaders_words() {
    let fixture = Fixture::new("none");
    let mut bytes = fs::read(&fixture.library).unwrap();
    // Another libc: the parse is fine, the dependency is not to be found.
    let name = b"libc.so.6\0";
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap();
    bytes[at..at + 4].copy_from_slice(b"lost");
    fs::write(&fixture.library, bytes).unwrap();
    let text = fixture.load_error();
    assert!(text.contains("cannot load") && text.contains("lost.so.6"), "{text}");
}

#[test]
fn a_table_that_breaks_the_contract_is_refused_with_a_reason() {
    for (fault, wanted) in [
        ("wrong_major", "speaks version 7.3 of the plugin interface and this Karat speaks 1.3"),
        ("null_table", "no table"),
        ("empty_table", "has 8 bytes"),
        ("short_table", "(24 bytes, version 1.3) has no `open`"),
        ("no_open", "has no `open`"),
        ("describe_panics", "the backend panicked: describe went wrong"),
        ("describe_null_bytes", "10 bytes at address 0x0"),
        ("describe_huge", "which cannot be"),
        ("describe_garbage", "not what it should be: ` ELF, or so it seems`"),
        ("describe_bad_utf8", "the tape \u{fffd}( is torn: \u{fffd}"),
        ("describe_strange_status", "status 77"),
    ] {
        let text = Fixture::new(fault).load_error();
        assert!(text.contains(wanted), "{fault}: {text}");
    }
}

#[test]
fn a_shorter_table_of_the_same_major_lacks_only_its_last_functions() {
    for fault in ["old_table", "cut_in_a_field"] {
        let fixture = Fixture::new(fault);
        let plugin = fixture.load();
        let mut session = open(&plugin, &fixture.config(""));
        let error = train(&mut *session, &fixture.plan(), &mut go_on).unwrap_err();
        assert_eq!(error.kind, BackendErrorKind::Unsupported, "{fault}: {error}");
        assert!(error.message.contains("no `train`"), "{fault}: {error}");
        assert_eq!(score(&mut *session, &mut go_on).is_ok(), fault == "cut_in_a_field");
    }
}

#[test]
fn a_plugin_of_version_1_0_works_and_lacks_what_came_later() {
    let fixture = Fixture::new("version_1_0");
    let plugin = fixture.load();
    assert_eq!(plugin.interface(), (1, 0));
    let mut session = open(&plugin, &fixture.config(""));
    assert!(score(&mut *session, &mut go_on).is_ok());
    let error = session.set_adapter(None).unwrap_err();
    assert!(error.kind == BackendErrorKind::Unsupported && error.message.contains("no `adapt`"), "{error}");
    let config = karat::backend::ExportConfig::new("model", "out");
    let error = plugin.export(&config, &mut go_on).unwrap_err();
    assert!(error.kind == BackendErrorKind::Unsupported && error.message.contains("no `export`"), "{error}");
    assert!(plugin.measure("cpu").unwrap().facts.is_empty());
}

#[test]
fn a_newer_minor_is_accepted_and_its_events_are_passed_over() {
    let fixture = Fixture::new("newer_minor");
    let plugin = fixture.load();
    assert_eq!(plugin.interface().1, karat::abi::MINOR + 1);
    let mut heard = 0;
    let mut count = |_: Event| {
        heard += 1;
        Flow::Continue
    };
    let scores = score(&mut *open(&plugin, &fixture.config("")), &mut count).unwrap();
    assert_eq!(scores.logprobs, [-9.0; 3]);
    assert_eq!(heard, 0);

    // The same event from a plugin of this version is a fault.
    let fixture = Fixture::new("event_of_the_future");
    let error = score(&mut *open(&fixture.load(), &fixture.config("")), &mut go_on).unwrap_err();
    assert!(error.message.contains("mood"), "{error}");
}

#[test]
fn an_answer_that_makes_no_sense_is_an_error() {
    let fixture = Fixture::new("no_session");
    let error = fixture.load().open(&fixture.config("")).err().unwrap();
    assert!(error.kind == BackendErrorKind::Failed && error.message.contains("gave no session"), "{error}");
    for (fault, wanted) in [
        ("score_bad_utf8", "the tape is torn"),
        ("score_unwritten", "left number 0 unscored"),
        ("score_bad_flags", "flag 2"),
        ("event_garbage", "an event that cannot be read: `\u{fffd} {`"),
        ("event_null", "an event of 5 bytes at address 0x0"),
    ] {
        let fixture = Fixture::new(fault);
        let plugin = fixture.load();
        let mut session = open(&plugin, &fixture.config(""));
        let mut heard = 0;
        let mut count = |_: Event| {
            heard += 1;
            Flow::Continue
        };
        let error = score(&mut *session, &mut count).unwrap_err();
        assert_eq!(error.kind, BackendErrorKind::Failed, "{fault}: {error}");
        assert!(error.to_string().contains(wanted), "{fault}: {error}");
        assert_eq!(heard, 0, "{fault}: an event came through");
        drop(session);
        assert_eq!(alive(&plugin, &fixture), NOTHING_LEAKED, "{fault}");
    }
}

#[test]
fn a_wrongly_described_session_is_closed() {
    let fixture = Fixture::new("open_garbage");
    let plugin = fixture.load();
    let error = plugin.open(&fixture.config("open_garbage")).err().unwrap();
    assert!(error.to_string().contains("not what it should be: `{\"info\": \"all is well\"}`"), "{error}");
    assert_eq!(alive(&plugin, &fixture), NOTHING_LEAKED);
}

#[test]
fn a_panic_in_the_plugin_poisons_its_session_and_nothing_else() {
    let fixture = Fixture::new("none");
    let plugin = fixture.load();
    let mut healthy = open(&plugin, &fixture.config(""));
    for fault in ["open_panics", "info_panics", "payload_panics"] {
        let error = plugin.open(&fixture.config(fault)).err().unwrap();
        assert_eq!(error.kind, BackendErrorKind::Panicked, "{fault}: {error}");
        let wanted = if fault == "payload_panics" { "did not say why" } else { "went wrong" };
        assert!(error.message.contains(wanted), "{fault}: {error}");
    }
    for fault in ["score_panics", "generate_panics", "train_panics"] {
        let mut session = open(&plugin, &fixture.config(fault));
        let mut work = |call: &str| match call {
            "score" => score(&mut *session, &mut go_on).err(),
            "generate" => {
                let prompts: Tokens = [[1u32]].iter().collect();
                let config = GenerateConfig::greedy(2, Vec::new());
                session.evaluator().unwrap().generate(prompts.view(), &config, &mut go_on).err()
            }
            _ => train(&mut *session, &fixture.plan(), &mut go_on).err(),
        };
        let call = fault.strip_suffix("_panics").unwrap();
        let error = work(call).unwrap();
        assert_eq!(error.kind, BackendErrorKind::Panicked);
        assert_eq!(error.message, format!("the backend panicked: {call} went wrong"));
        for later in ["score", "generate", "train"] {
            let error = work(later).unwrap();
            assert_eq!(error.kind, BackendErrorKind::Panicked, "{later} after {fault}: {error}");
            assert_eq!(error.causes, [format!("{call} went wrong")], "{later} after {fault}: {error}");
        }
    }
    // A panic while it is closed is swallowed: nobody could act on it.
    drop(open(&plugin, &fixture.config("close_panics")));
    assert!(score(&mut *healthy, &mut go_on).is_ok());
    drop(healthy);
    // The session whose `info` panicked was dropped too.
    assert_eq!(alive(&plugin, &fixture), NOTHING_LEAKED);
}

#[test]
fn a_panic_in_the_hosts_sink_comes_out_of_the_call_and_the_session_lives_on() {
    let fixture = Fixture::new("none");
    let plugin = fixture.load();
    let mut session = open(&plugin, &fixture.config(""));
    let before = score(&mut *session, &mut go_on).unwrap();
    let mut calls = 0;
    let mut sink = |_: Event| -> Flow {
        calls += 1;
        panic!("the sink is full")
    };
    let payload = catch_unwind(AssertUnwindSafe(|| score(&mut *session, &mut sink))).unwrap_err();
    assert_eq!(payload.downcast_ref::<&str>(), Some(&"the sink is full"));
    assert_eq!(calls, 1, "the sink was called again after it had panicked");
    assert_eq!(score(&mut *session, &mut go_on).unwrap(), before);

    let mut sink = |_: Event| -> Flow { panic!("the sink is full") };
    let plan = fixture.plan();
    assert!(catch_unwind(AssertUnwindSafe(|| train(&mut *session, &plan, &mut sink))).is_err());
    drop(session);
    assert_eq!(alive(&plugin, &fixture), NOTHING_LEAKED);
}

#[test]
fn a_slow_cancel_ends_and_is_cancelled() {
    let fixture = Fixture::new("none");
    let plugin = fixture.load();
    let mut session = open(&plugin, &fixture.config("slow_cancel"));
    let mut heard = 0;
    let start = Instant::now();
    let mut sink = |_: Event| {
        heard += 1;
        if heard == 1 { Flow::Stop } else { Flow::Continue }
    };
    let error = score(&mut *session, &mut sink).unwrap_err();
    assert_eq!(error.kind, BackendErrorKind::Cancelled);
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert_eq!(heard, 20, "each event reaches the sink, also those after its stop");
}

#[test]
fn a_loss_that_is_no_number_reaches_the_host() {
    let fixture = Fixture::new("none");
    let mut session = open(&fixture.load(), &fixture.config("diverges"));
    let mut losses = Vec::new();
    train(&mut *session, &fixture.plan(), &mut |event: Event| {
        if let Event::Step(step) = event {
            losses.push((step.loss.is_nan(), step.grad_norm));
        }
        Flow::Continue
    })
    .unwrap();
    assert_eq!(losses, [(true, f64::INFINITY); 2]);
}

#[test]
fn a_thousand_calls_leak_nothing() {
    let fixture = Fixture::new("none");
    let plugin = fixture.load();
    for _ in 0..100 {
        let mut session = open(&plugin, &fixture.config(""));
        for _ in 0..3 {
            score(&mut *session, &mut go_on).unwrap();
            score(&mut *session, &mut |_: Event| Flow::Stop).unwrap_err();
            let prompts: Tokens = [[1u32], [2]].iter().collect();
            let config = GenerateConfig::greedy(2, Vec::new());
            session.evaluator().unwrap().generate(prompts.view(), &config, &mut go_on).unwrap();
        }
        assert!(plugin.open(&OpenConfig::new("/no/such/model")).is_err());
    }
    assert_eq!(alive(&plugin, &fixture), NOTHING_LEAKED);
}

#[test]
fn sessions_may_move_to_and_work_on_other_threads() {
    let fixture = Fixture::new("none");
    let plugin = fixture.load();
    let wanted = score(&mut *open(&plugin, &fixture.config("")), &mut go_on).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let mut session = open(&plugin, &fixture.config(""));
            let wanted = &wanted;
            scope.spawn(move || assert_eq!(score(&mut *session, &mut go_on).unwrap(), *wanted));
        }
    });
    assert_eq!(alive(&plugin, &fixture), NOTHING_LEAKED);
}

#[test]
fn a_list_shows_the_good_and_the_broken() {
    let fixture = Fixture::new("none");
    let folder = tempfile::tempdir().unwrap();
    fs::copy(&fixture.library, folder.path().join("libkarat_good.so")).unwrap();
    fs::write(folder.path().join("libkarat_broken.so"), "no library").unwrap();
    fs::write(folder.path().join("libother.so"), "not looked at").unwrap();
    let found = list(&Search::in_folders([folder.path()]));
    let names: Vec<&str> = found.iter().map(|found| found.name.as_str()).collect();
    assert_eq!(names, ["broken", "good"]);
    assert!(found[0].plugin.is_err());
    assert_eq!(found[1].plugin.as_ref().unwrap().descriptor().name, "hostile");
    assert_eq!(
        find("good", &Search::in_folders([folder.path()])).unwrap().path(),
        found[1].plugin.as_ref().unwrap().path()
    );
}
