use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::entry::{Ending, Entry, Kind, Text};
use super::reader::{Shown, event_file, run_folder};
use super::sink::{Opening, Sink, Start};
use super::swanlab::RunFolder;
use super::tensorboard::EventFile;
use super::*;
use crate::backend::{Event, StepEvent, TrainSummary};
use crate::error::Error;
use crate::run::{Begun, Notice, Observer};
use crate::train::log::Curves;

/// What tensorboard 2.21.0 (`event_pb2`, `RecordWriter`) and swanlab 0.10.3 (`record_pb2`,
/// `DataStoreWriter`) make of the same entries.
const EVENT_FILE: &str = "1800000000000000a37f4b220900000040fc54d9411a0d627261696e2e4576656e743a32eced8f9d5000000000000000940f9b82090000\
    0040fc54d9412a450a430a11617267732f746578745f73756d6d61727942240807120412020801421a6060600a7b0a2020226b61726174\
    223a202230220a7d0a6060604a080a060a0474657874f7185bb82a00000000000000ae8d91f50900000040fc54d94110032a1d0a110a0a\
    747261696e2f6c6f737315000020400a080a0178150000807f654c533060000000000000002821c6da0900000040fc54d94110032a530a\
    510a1950726564696374696f6e2f312f746578745f73756d6d617279422a08071204120208014220606931600a0a6060600a3c7468696e\
    6b3ee58cbb3c2f7468696e6b3e0a6060604a080a060a0474657874e77e35ea0f000000000000006d532b090900000040fc54d94110043a\
    020801dbdea3a7";
const RUN_FILE: &str = "3a53574cd6e1027bb8214451000108ffffffffffffffffff01120c0880e2cfaa061080cab5ee0152360a017012017722066e2d6c6f7261\
    32056b617261743a016e42046c6f726152083062616463616665620c0880e2cfaa061080cab5ee014624cc5356000108fdffffffffffff\
    ffff01120c0880e2cfaa061080cab5ee01a2013a0a06636f6e666967122e72756e2d32303233313131345f3232313332302d3062616463\
    6166652f66696c65732f636f6e6669672e79616d6c28015daac9992b00010801120c0880e2cfaa061080cab5ee016219080110011a0a74\
    7261696e2f6c6f73732a05747261696e300389ee14493b00010802120c0880e2cfaa061080cab5ee016a290a0a747261696e2f6c6f7373\
    10031801220c0880e2cfaa061080cab5ee012a09090000000000000440b862668e3200010803120c0880e2cfaa061080cab5ee01622008\
    0110011a11747261696e2f676c6f62616c5f737465702a05747261696e3003611cfa644200010804120c0880e2cfaa061080cab5ee016a\
    300a11747261696e2f676c6f62616c5f7374657010031801220c0880e2cfaa061080cab5ee012a09090000000000000840b4fb977b2400\
    010805120c0880e2cfaa061080cab5ee016212080110041a0a50726564696374696f6e30039e61617b8e00010806120c0880e2cfaa0610\
    80cab5ee01727c0a0a50726564696374696f6e10031804220c0880e2cfaa061080cab5ee012a5c0a5a0a103030332d3066633264363032\
    2e747874124030666332643630323465633733383836386364333862626536663033653039353833336331656639333831393137363164\
    616564343662313434363438386335181222026931230ace3f34000108feffffffffffffffff01120c0880e2cfaa061080cab5ee015a19\
    080212076e6f20726f6f6d1a0c0880e2cfaa061080cab5ee01";

fn opening(folder: &Path, start: Start) -> Opening {
    let at = Duration::from_millis(1_700_000_000_500);
    Opening {
        folder: folder.into(),
        inside: PathBuf::new(),
        model: "lora".into(),
        id: "0badcafe".into(),
        title: Title { project: "p".into(), workspace: "w".into(), name: "n".into() },
        config: serde_json::json!({"karat": "0"}),
        start,
        began: at,
        now: at,
        history: Vec::new(),
        origin: Origin { host: "host".into(), pid: 7 },
    }
}

fn scalars(step: usize, values: &[(&str, f64)]) -> Entry {
    let values = values.iter().map(|(tag, value)| (tag.to_string(), *value)).collect();
    Entry::Scalars { kind: Kind::Train, step, values }
}

fn texts(step: usize, text: &str) -> Entry {
    Entry::Texts { tag: "Prediction", step, texts: vec![Text { caption: "i1".into(), text: text.into() }] }
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// The files below a folder that end so, by name.
fn files(folder: &Path, end: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        match path.is_dir() {
            true => found.extend(files(&path, end)),
            false if path.to_string_lossy().ends_with(end) => found.push(path),
            false => {}
        }
    }
    found.sort();
    found
}

#[test]
fn an_event_file_has_the_bytes_that_tensorboards_own_writer_gives_it() {
    let folder = tempfile::tempdir().unwrap();
    let at = Duration::from_secs(1_700_000_000);
    let opening = Opening { began: at, now: at, ..opening(folder.path(), Start::Anew) };
    let mut events = EventFile::open(&opening).unwrap();
    events.write(&(at, scalars(3, &[("train/loss", 2.5), ("x", f64::INFINITY)]))).unwrap();
    events.write(&(at, texts(3, "<think>医</think>"))).unwrap();
    events.end(at, Ending::Finished, "").unwrap();
    let path = folder.path().join("lora/events.out.tfevents.1700000000.host.7.0.karat");
    let written = std::fs::read(&path).unwrap();
    let golden = hex(EVENT_FILE);
    // The golden file ends with a start, as a resumed one has it.
    assert_eq!(written, golden[..written.len()]);
    let resumed = EventFile::open(&Opening { start: Start::After(3), ..opening }).unwrap();
    drop(resumed);
    let second = std::fs::read(folder.path().join("lora/events.out.tfevents.1700000001.host.7.0.karat")).unwrap();
    assert_eq!(second[..40], golden[..40]);
    assert_eq!(second[40..], golden[written.len()..]);
}

#[test]
fn a_run_folder_has_the_bytes_that_swanlabs_own_writer_gives_it() {
    let folder = tempfile::tempdir().unwrap();
    let opening = opening(folder.path(), Start::Anew);
    let mut run = RunFolder::open(&opening).unwrap();
    run.write(&(opening.now, scalars(3, &[("train/loss", 2.5)]))).unwrap();
    run.write(&(opening.now, texts(3, "<think>医</think>"))).unwrap();
    run.end(opening.now, Ending::Crashed, "no room").unwrap();
    let run = folder.path().join("lora/run-20231114_221320-0badcafe");
    assert_eq!(std::fs::read(run.join("run-0badcafe.swanlab")).unwrap(), hex(RUN_FILE));
    let config = std::fs::read_to_string(run.join("files/config.yaml")).unwrap();
    assert_eq!(config, "\"karat\":\n  value: \"0\"\n  desc: ''\n  sort: 0\n");
    assert_eq!(files(&run.join("media/text"), ".txt").len(), 1);
}

#[test]
fn a_file_that_was_cut_anywhere_shows_what_was_whole() {
    let folder = tempfile::tempdir().unwrap();
    let opening = opening(folder.path(), Start::Anew);
    let mut sinks: [Box<dyn Sink>; 2] =
        [Box::new(EventFile::open(&opening).unwrap()), Box::new(RunFolder::open(&opening).unwrap())];
    for sink in &mut sinks {
        for step in 1..=3 {
            sink.write(&(opening.now, scalars(step, &[("train/loss", f64::NAN)]))).unwrap();
        }
        sink.flush().unwrap();
    }
    let events = files(folder.path(), ".karat").remove(0);
    let run = files(folder.path(), ".swanlab").remove(0);
    let whole = |path: &Path| match path.extension().is_some_and(|e| e == "karat") {
        true => event_file(path),
        false => run_folder(path.parent().unwrap()),
    };
    for path in [events, run] {
        let (bytes, all) = (std::fs::read(&path).unwrap(), format!("{:?}", whole(&path)));
        let mut known = 0;
        for length in 7..bytes.len() {
            std::fs::write(&path, &bytes[..length]).unwrap();
            let shown = whole(&path);
            assert!(shown.len() >= known && all.starts_with(format!("{shown:?}").trim_end_matches(']')), "{length}");
            known = shown.len();
        }
        assert!(known > 2, "{known}");
    }
}

/// What a run says.
#[derive(Default)]
struct Run {
    settings: BTreeMap<String, String>,
    curves: Curves,
}

const EXTENT: Extent =
    Extent { steps: 4, rows: 8, eval_rows: 6, eval_batches: 2, parameters: Some(100), adapter: true };

impl Run {
    fn begun(&self, after: Option<usize>, written: Option<SystemTime>) -> Notice<'_> {
        Notice::Begun(Begun {
            name: "lora",
            fingerprint: "f",
            settings: &self.settings,
            extent: EXTENT,
            curves: &self.curves,
            after,
            written,
        })
    }

    /// Steps and an evaluation after every second one.
    fn steps(&mut self, follower: &mut Follower<'_>, steps: std::ops::RangeInclusive<usize>) {
        for step in steps {
            let event = Event::Step(StepEvent {
                step,
                epoch: step as f64 / 2.0,
                loss: if step == 3 { f64::NAN } else { 4.0 / step as f64 },
                micro_losses: Vec::new(),
                learning_rate: 1e-4,
                grad_norm: f64::INFINITY,
                label_tokens: 3,
                tokens: 10 * step as u64,
                seconds: 0.5,
                memory: Some(100 - step as u64),
            });
            let evaluation = Event::Evaluation { step, loss: 2.0, tokens: 3, seconds: 0.25 };
            for event in [Some(event), (step % 2 == 0).then_some(evaluation)].into_iter().flatten() {
                self.curves.push(&event);
                follower.notice(Notice::Backend { stage: "train lora", total: Some(4), event: &event });
            }
        }
    }

    fn done(&self, follower: &mut Follower<'_>) {
        let summary = TrainSummary {
            last_checkpoint: "checkpoint-4".into(),
            best_checkpoint: None,
            steps: 4,
            trainable_parameters: 20,
            tokens: 40,
            seconds: 2.0,
            peak_memory: None,
        };
        follower.notice(Notice::Trained { name: "lora", summary: &summary, curves: &self.curves });
    }
}

fn tracking(run: &Path) -> Tracking {
    Tracking {
        to: vec![TrackerName::TensorBoard, TrackerName::SwanLab],
        origin: Origin { host: "host".into(), pid: 7 },
        clock: Box::new(|| Duration::from_secs(1_700_000_000)),
        ..Tracking::new(run)
    }
}

/// Numbers and texts alone, sorted: two trackers begin and end differently.
fn numbers(shown: Vec<Shown>) -> Vec<String> {
    let mut rows: Vec<String> = shown
        .into_iter()
        .filter_map(|shown| match shown {
            Shown::Scalar { tag, step, value } => Some(format!("{tag} {step} {}", value as f32)),
            _ => None,
        })
        .collect();
    rows.sort();
    rows
}

fn shown(run: &Path) -> [Vec<Shown>; 2] {
    let events = files(&run.join("track/tensorboard"), ".karat").iter().flat_map(|path| event_file(path)).collect();
    let folders = files(&run.join("track/swanlab"), ".swanlab");
    assert_eq!(folders.len(), 1, "{folders:?}");
    [events, run_folder(folders[0].parent().unwrap())]
}

/// Without a word said to the user.
fn quiet(notice: Notice<'_>) {
    assert!(!matches!(notice, Notice::Warning(_)), "{notice:?}");
}

fn whole_run(folder: &Path) -> Run {
    let (mut run, mut observer) = (Run::default(), quiet);
    let mut follower = Follower::new(&mut observer, tracking(folder)).unwrap();
    follower.notice(run.begun(None, None));
    run.steps(&mut follower, 1..=4);
    run.done(&mut follower);
    follower.end(&Ok(()));
    run
}

#[test]
fn steps_evaluations_and_totals_have_the_names_of_transformers() {
    let folder = tempfile::tempdir().unwrap();
    whole_run(folder.path());
    let [events, run] = shown(folder.path());
    let rows = numbers(events);
    for row in [
        "train/loss 3 NaN",
        "train/grad_norm 1 inf",
        "train/learning_rate 1 0.0001",
        "train/epoch 4 2",
        "perf/tokens_per_second 2 20",
        "perf/step_seconds 2 0.5",
        "perf/peak_memory_bytes 4 99",
        "eval/loss 2 2",
        "eval/runtime 2 0.25",
        "eval/samples_per_second 4 24",
        "eval/steps_per_second 4 8",
        "train/train_runtime 4 2",
        "train/train_samples_per_second 4 4",
        "train/train_steps_per_second 4 2",
        "train/total_flos 4 28800",
        "train/train_loss 4 NaN",
    ] {
        assert!(rows.contains(&row.to_string()), "{row}: {rows:#?}");
    }
    assert_eq!(rows.len(), 4 * 7 + 2 * 4 + 5, "{rows:#?}");
    // SwanLab's callback adds the step, and gives totals no prefix.
    let of_run = numbers(run.clone());
    assert!(of_run.contains(&"train_runtime 4 2".into()) && of_run.contains(&"train/global_step 4 4".into()));
    assert_eq!(of_run.len(), rows.len() + 4);
    assert_eq!(run.last(), Some(&Shown::Ended(1, None)));
}

#[test]
fn what_is_written_of_a_log_afterwards_is_what_was_written_live() {
    let (live, after) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let run = whole_run(live.path());
    let mut observer = quiet;
    let mut follower = Follower::new(&mut observer, tracking(after.path())).unwrap();
    follower.notice(run.begun(None, Some(SystemTime::now())));
    run.done(&mut follower);
    follower.end(&Ok(()));
    let text = |shown: [Vec<Shown>; 2]| format!("{shown:#?}").replace("NaN", "nan");
    // The name is the folder's.
    let named = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    let of_run = |path: &Path| {
        let folder = files(&path.join("track/swanlab"), ".swanlab").remove(0);
        let run = folder.parent().unwrap();
        text(shown(path)).replace(&named(run), "run").replace(&named(path), "run")
    };
    assert_eq!(of_run(live.path()), of_run(after.path()));
}

#[test]
fn a_training_that_goes_on_supersedes_what_is_done_again() {
    let folder = tempfile::tempdir().unwrap();
    let (mut run, mut observer) = (Run::default(), quiet);
    let mut follower = Follower::new(&mut observer, tracking(folder.path())).unwrap();
    follower.notice(run.begun(None, None));
    run.steps(&mut follower, 1..=3);
    follower.end(&Err::<(), _>(Error::interrupted()));
    assert_eq!(shown(folder.path())[1].last(), Some(&Shown::Ended(3, Some("interrupted".into()))));
    run.curves.truncate(2);
    let mut follower = Follower::new(&mut observer, tracking(folder.path())).unwrap();
    follower.notice(run.begun(Some(2), Some(SystemTime::now())));
    run.steps(&mut follower, 3..=4);
    run.done(&mut follower);
    follower.end(&Ok(()));
    let [events, of_swanlab] = shown(folder.path());
    // As TensorBoard reads it: a start drops the steps that are not below it.
    let mut kept: Vec<Shown> = Vec::new();
    for event in events {
        if let Shown::Start(from) = event {
            assert_eq!(from, 3);
            kept.retain(|shown| !matches!(shown, Shown::Scalar { step, .. } if *step >= from));
        }
        kept.push(event);
    }
    let whole = tempfile::tempdir().unwrap();
    whole_run(whole.path());
    let [whole_events, whole_swanlab] = shown(whole.path());
    assert_eq!(numbers(kept), numbers(whole_events));
    assert_eq!(numbers(of_swanlab), numbers(whole_swanlab));
}

#[test]
fn a_training_that_was_done_before_leaves_one_file_of_each_tracker() {
    let folder = tempfile::tempdir().unwrap();
    let run = whole_run(folder.path());
    let before = shown(folder.path()).map(numbers);
    std::fs::write(folder.path().join("track/tensorboard/lora/events.out.tfevents.5.theirs.1.0"), "x").unwrap();
    let mut observer = quiet;
    let mut follower = Follower::new(&mut observer, tracking(folder.path())).unwrap();
    follower.notice(run.begun(None, Some(SystemTime::now())));
    run.done(&mut follower);
    follower.end(&Ok(()));
    assert_eq!(shown(folder.path()).map(numbers), before);
    assert_eq!(files(&folder.path().join("track/tensorboard"), "").len(), 2, "files of others stay");
}

#[test]
fn a_tracker_that_fails_warns_once_and_the_other_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("track")).unwrap();
    std::fs::write(folder.path().join("track/tensorboard"), "a file in the way").unwrap();
    let (mut run, mut warnings) = (Run::default(), Vec::new());
    let mut observer = |notice: Notice<'_>| {
        if let Notice::Warning(text) = notice {
            warnings.push(text);
        }
    };
    let mut follower = Follower::new(&mut observer, tracking(folder.path())).unwrap();
    for _ in 0..2 {
        run.curves = Curves::default();
        follower.notice(run.begun(None, None));
        run.steps(&mut follower, 1..=4);
    }
    follower.end(&Ok(()));
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].starts_with("TensorBoard: ") && warnings[0].contains("the run goes on"), "{warnings:?}");
    let run = files(&folder.path().join("track/swanlab"), ".swanlab").remove(0);
    assert_eq!(numbers(run_folder(run.parent().unwrap())).len(), 4 * 8 + 2 * 4);
}

#[test]
fn a_fence_holds_whatever_the_text_has() {
    let folder = tempfile::tempdir().unwrap();
    let opening = opening(folder.path(), Start::Anew);
    let mut events = EventFile::open(&opening).unwrap();
    events.write(&(opening.now, texts(1, "````\n<think>"))).unwrap();
    events.flush().unwrap();
    let last = event_file(&files(folder.path(), ".karat")[0]).pop();
    let text = "`i1`\n\n`````\n````\n<think>\n`````".to_string();
    assert_eq!(last, Some(Shown::Text { tag: "Prediction/1/text_summary".into(), step: 1, text }));
}
