use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use super::*;
use crate::track::sink::{Origin, Start, Title};

/// What a server does instead of what it should.
#[derive(Clone, Debug)]
enum Fault {
    Status(u16, &'static str),
    Redirect(&'static str),
    /// The connection is taken and nothing said.
    Silence,
    /// A body without an end.
    Endless,
}

#[derive(Default)]
struct State {
    experiments: BTreeMap<String, Value>,
    runs: BTreeMap<String, Value>,
    artifacts: BTreeMap<String, String>,
    /// Method, path and credentials of each request.
    requests: Vec<(String, String, String)>,
    /// By a part of the path, how often.
    faults: Vec<(&'static str, Fault, usize)>,
    no_proxy: bool,
    /// What a server of MLflow would have refused.
    violations: Vec<String>,
}

/// A server on this machine, with the rules that MLflow's has for names, values and lists.
struct Mock {
    state: Arc<Mutex<State>>,
    url: String,
}

impl Mock {
    fn start() -> Mock {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(|stream| stream.ok()) {
                let shared = shared.clone();
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        Mock { state, url }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn fault(&self, path: &'static str, fault: Fault, times: usize) {
        self.state().faults.push((path, fault, times));
    }

    fn server(&self, more: &[(&str, &str)]) -> Server {
        let lookup = |name: &str| match name {
            "MLFLOW_TRACKING_URI" => Some(self.url.clone()),
            name => more.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string()),
        };
        let retry = Retry { attempts: 3, first: Duration::from_millis(1), longest: Duration::from_millis(5) };
        Server { timeout: Duration::from_secs(1), retry, ..Server::of(&lookup).unwrap() }
    }

    /// The only run.
    fn run(&self) -> Value {
        let state = self.state();
        assert_eq!((state.runs.len(), &state.violations), (1, &Vec::new()));
        state.runs.values().next().unwrap().clone()
    }

    /// The points of a metric, in the order in which they came.
    fn points(&self, key: &str) -> Vec<(i64, Value)> {
        let run = self.run();
        let of_key = run["data"]["history"].as_array().unwrap().iter().filter(|metric| metric["key"] == key);
        of_key.map(|metric| (metric["step"].as_i64().unwrap(), metric["value"].clone())).collect()
    }
}

fn serve(mut stream: TcpStream, state: &Mutex<State>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let mut words = line.split(' ');
        let (method, path) = (words.next().unwrap().to_string(), words.next().unwrap().to_string());
        let (mut length, mut login) = (0, String::new());
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).unwrap();
            let Some((name, value)) = header.trim_end().split_once(':') else { break };
            match name.to_lowercase().as_str() {
                "content-length" => length = value.trim().parse().unwrap(),
                "authorization" => login = value.trim().into(),
                _ => {}
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let body = String::from_utf8(body).unwrap();
        let mut guard = state.lock().unwrap();
        guard.requests.push((method.clone(), path.clone(), login));
        let fault = guard.faults.iter_mut().find(|(part, _, times)| path.contains(part) && *times > 0);
        let fault = fault.map(|(_, fault, times)| (*times -= 1, fault.clone()).1);
        let (status, more, text) = match fault {
            None => {
                let (status, value) = answer(&mut guard, &method, &path, &body);
                (status, String::new(), if value.is_null() { String::new() } else { value.to_string() })
            }
            Some(Fault::Status(status, text)) => (status, String::new(), text.to_string()),
            Some(Fault::Redirect(to)) => (302, format!("location: {to}\r\n"), String::new()),
            Some(Fault::Silence) => {
                drop(guard);
                std::thread::sleep(Duration::from_secs(5));
                return;
            }
            Some(Fault::Endless) => {
                drop(guard);
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
                while stream.write_all(b"4\r\n{\"a\"\r\n").is_ok() {
                    std::thread::sleep(Duration::from_millis(1));
                }
                return;
            }
        };
        drop(guard);
        let head = format!("HTTP/1.1 {status} X\r\n{more}content-length: {}\r\n\r\n", text.len());
        if stream.write_all((head + &text).as_bytes()).is_err() {
            return;
        }
    }
}

fn answer(state: &mut State, method: &str, path: &str, body: &str) -> (u16, Value) {
    let missing = (404, json!({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "none"}));
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    if let Some(name) = path.strip_prefix("/api/2.0/mlflow-artifacts/artifacts/") {
        if state.no_proxy {
            return missing;
        }
        state.artifacts.insert(name.into(), body.into());
        return (200, Value::Null);
    }
    let asked: Value = serde_json::from_str(body).unwrap_or_default();
    let name = query.split_once('=').map_or("", |(_, value)| value);
    let Some(path) = path.strip_prefix("/api/2.0/mlflow/") else { return missing };
    match (method, path) {
        ("GET", "experiments/get-by-name") => match state.experiments.get(name) {
            Some(experiment) => (200, json!({"experiment": experiment})),
            None => missing,
        },
        ("POST", "experiments/create") => {
            let id = (state.experiments.len() + 1).to_string();
            let made = json!({"experiment_id": id, "lifecycle_stage": "active"});
            state.experiments.insert(asked["name"].as_str().unwrap().into(), made);
            (200, json!({"experiment_id": id}))
        }
        ("POST", "runs/create") => {
            let id = format!("run{}", state.runs.len());
            let place = format!("mlflow-artifacts:/{}/{id}/artifacts", asked["experiment_id"].as_str().unwrap());
            let info = json!({
                "run_id": id, "run_name": asked["run_name"], "status": "RUNNING", "lifecycle_stage": "active",
                "artifact_uri": if state.no_proxy { "/srv/mlruns/1".into() } else { place },
            });
            let data = json!({"tags": asked["tags"], "params": [], "metrics": [], "history": []});
            state.runs.insert(id, json!({"info": info, "data": data}));
            (200, json!({"run": state.runs.values().last()}))
        }
        ("GET", "runs/get") => match state.runs.get(name) {
            Some(run) => (200, json!({"run": run})),
            None => missing,
        },
        ("POST", "runs/update") => {
            let Some(run) = state.runs.get_mut(asked["run_id"].as_str().unwrap()) else { return missing };
            run["info"]["status"] = asked["status"].clone();
            run["info"]["end_time"] = asked["end_time"].clone();
            (200, json!({}))
        }
        ("POST", "runs/log-batch") => {
            let State { runs, violations, .. } = state;
            let data = &mut runs.get_mut(asked["run_id"].as_str().unwrap()).unwrap()["data"];
            log(data, &asked, violations);
            (200, json!({}))
        }
        _ => missing,
    }
}

/// Takes a batch, as far as MLflow would.
fn log(data: &mut Value, asked: &Value, violations: &mut Vec<String>) {
    let list = |key: &str| asked[key].as_array().cloned().unwrap_or_default();
    let legal = |key: &str| key.chars().all(|c| c.is_ascii_alphanumeric() || "_-./ ".contains(c)) && key.len() <= 250;
    for (what, most) in [("metrics", 1000), ("params", 100), ("tags", 100)] {
        let values = list(what);
        if values.len() > most || values.iter().any(|value| !legal(value["key"].as_str().unwrap())) {
            violations.push(format!("{what}: {values:?}"));
        }
    }
    for metric in list("metrics") {
        let latest = data["metrics"].as_array_mut().unwrap();
        latest.retain(|old| old["key"] != metric["key"]);
        // Protocol buffers write 64-bit numbers as texts.
        latest.push(json!({"key": metric["key"], "value": metric["value"], "step": metric["step"].to_string()}));
        data["history"].as_array_mut().unwrap().push(metric);
    }
    for param in list("params") {
        let params = data["params"].as_array_mut().unwrap();
        if params.iter().any(|old| old["key"] == param["key"]) || param["value"].as_str().unwrap().len() > 6000 {
            violations.push(format!("param {param}"));
        }
        params.push(param);
    }
    for tag in list("tags") {
        data["tags"].as_array_mut().unwrap().push(tag);
    }
}

fn opening(folder: &Path, history: Vec<Timed>) -> Opening {
    let at = Duration::from_millis(1_700_000_000_500);
    Opening {
        folder: folder.into(),
        inside: PathBuf::new(),
        model: "lora".into(),
        id: "0badcafe".into(),
        title: Title { project: "p".into(), workspace: String::new(), name: "n".into() },
        config: json!({"karat": "0", "training": {"lora.r(x)": 8, "list": [1, 2], "long": "医".repeat(900), "none": null}}),
        start: Start::Anew,
        began: at,
        now: at,
        history,
        origin: Origin { host: "host".into(), pid: 7 },
    }
}

fn scalars(kind: Kind, step: usize, values: &[(&str, f64)]) -> Timed {
    let values = values.iter().map(|(tag, value)| (tag.to_string(), *value)).collect();
    (Duration::from_millis(1_700_000_001_000 + step as u64), Entry::Scalars { kind, step, values })
}

fn loss(step: usize) -> Timed {
    scalars(Kind::Train, step, &[("train/loss", step as f64)])
}

fn said(error: &Error) -> String {
    format!("{error} {} {:?}", error.help_text().unwrap_or_default(), std::error::Error::source(error))
}

#[test]
fn a_run_has_the_names_that_transformers_gives_and_ends_as_it_ended() {
    let (mock, folder) = (Mock::start(), tempfile::tempdir().unwrap());
    let server = mock.server(&[("MLFLOW_TRACKING_TOKEN", "secret"), ("USER", "ann")]);
    let mut run = TrackedRun::open(&opening(folder.path(), Vec::new()), &server).unwrap();
    for entry in [
        scalars(Kind::Train, 1, &[("train/loss", 2.5), ("train/grad_norm", f64::NAN), ("perf/step_seconds", 0.5)]),
        scalars(Kind::Evaluation, 1, &[("eval/loss", f64::INFINITY)]),
        scalars(Kind::Totals, 1, &[("train_runtime", 3.0)]),
        scalars(Kind::Metrics, 1, &[("metrics/rougeL@think|x", 0.25)]),
    ] {
        run.write(&entry).unwrap();
    }
    let texts = vec![Text { caption: "i1".into(), text: "<think>医</think>".into() }];
    run.write(&(Duration::from_secs(1), Entry::Texts { tag: "Prediction", step: 1, texts })).unwrap();
    run.end(Duration::from_millis(1_700_000_009_000), Ending::Crashed, "no room").unwrap();
    let found = mock.run();
    assert_eq!((&found["info"]["run_name"], &found["info"]["status"]), (&json!("n-lora"), &json!("FAILED")));
    assert_eq!(found["info"]["end_time"], 1_700_000_009_000_u64);
    assert_eq!(
        found["data"]["history"],
        json!([
            {"key": "loss", "value": 2.5, "timestamp": 1_700_000_001_001_u64, "step": 1},
            {"key": "grad_norm", "value": "NaN", "timestamp": 1_700_000_001_001_u64, "step": 1},
            {"key": "perf/step_seconds", "value": 0.5, "timestamp": 1_700_000_001_001_u64, "step": 1},
            {"key": "eval_loss", "value": "Infinity", "timestamp": 1_700_000_001_001_u64, "step": 1},
            {"key": "train_runtime", "value": 3.0, "timestamp": 1_700_000_001_001_u64, "step": 1},
            {"key": "metrics/rougeL_think_x", "value": 0.25, "timestamp": 1_700_000_001_001_u64, "step": 1},
        ])
    );
    let params: BTreeMap<&str, &str> = found["data"]["params"]
        .as_array()
        .unwrap()
        .iter()
        .map(|param| (param["key"].as_str().unwrap(), param["value"].as_str().unwrap()))
        .collect();
    assert_eq!((params["training.lora.r_x_"], params["training.list"]), ("8", "[1,2]"));
    assert_eq!(params["training.long"], format!("{}…", "医".repeat(499)));
    assert!(!params.contains_key("training.none"));
    let tags = found["data"]["tags"].to_string();
    assert!(tags.contains("\"ann\"") && tags.contains("no room") && !tags.contains("secret"), "{tags}");
    let state = mock.state();
    let table: Value = serde_json::from_str(&state.artifacts["1/run0/artifacts/prediction/step-1.json"]).unwrap();
    assert_eq!(table, json!({"columns": ["id", "text"], "data": [["i1", "<think>医</think>"]]}));
    assert!(state.artifacts["1/run0/artifacts/config.json"].contains(&"医".repeat(900)), "nothing is cut there");
    assert!(state.requests.iter().all(|(.., login)| login == "Bearer secret"));
    let kept = std::fs::read_to_string(folder.path().join("lora/run.json")).unwrap();
    assert!(kept.contains("/#/experiments/1/runs/run0") && !kept.contains("secret"), "{kept}");
}

#[test]
fn what_the_server_has_is_not_sent_again() {
    let (mock, folder) = (Mock::start(), tempfile::tempdir().unwrap());
    let (server, all) = (mock.server(&[]), |steps: usize| (1..=steps).map(loss).collect::<Vec<_>>());
    // A training is killed after step 3 and goes on from its checkpoint at step 1.
    let mut run = TrackedRun::open(&opening(folder.path(), Vec::new()), &server).unwrap();
    all(3).iter().for_each(|entry| run.write(entry).unwrap());
    run.flush().unwrap();
    drop(run);
    let resumed = Opening { start: Start::After(1), ..opening(folder.path(), all(1)) };
    let mut run = TrackedRun::open(&resumed, &server).unwrap();
    all(5).iter().skip(1).for_each(|entry| run.write(entry).unwrap());
    run.end(Duration::from_secs(9), Ending::Finished, "").unwrap();
    let expected: Vec<(i64, Value)> = (1..=5).map(|step| (step, json!(step as f64))).collect();
    assert_eq!(mock.points("loss"), expected);
    // Written afterwards once more, as `karat track` does.
    let mut run = TrackedRun::open(&opening(folder.path(), all(5)), &server).unwrap();
    assert_eq!(mock.run()["info"]["status"], "RUNNING");
    run.end(Duration::from_secs(9), Ending::Finished, "").unwrap();
    assert_eq!((mock.points("loss"), &mock.run()["info"]["status"]), (expected, &json!("FINISHED")));
    // Metrics of a checkpoint that was measured again and has others.
    for value in [0.5, 0.5, 0.75] {
        let mut run = TrackedRun::open(&opening(folder.path(), all(5)), &server).unwrap();
        run.write(&scalars(Kind::Metrics, 5, &[("metrics/bleu", value)])).unwrap();
        run.flush().unwrap();
    }
    assert_eq!(mock.points("metrics/bleu"), [(5, json!(0.5)), (5, json!(0.75))]);
    // One that was deleted on the server, or another training, is another run.
    mock.state().runs.get_mut("run0").unwrap()["info"]["lifecycle_stage"] = "deleted".into();
    drop(TrackedRun::open(&opening(folder.path(), all(5)), &server).unwrap());
    let other = Opening { id: "another".into(), ..opening(folder.path(), all(5)) };
    drop(TrackedRun::open(&other, &server).unwrap());
    assert_eq!(mock.state().runs.len(), 3);
    assert_eq!(mock.state().experiments.len(), 1);
}

#[test]
fn many_metrics_and_parameters_go_in_requests_that_mlflow_takes() {
    let (mock, folder) = (Mock::start(), tempfile::tempdir().unwrap());
    let config: serde_json::Map<String, Value> = (0..250).map(|i| (format!("k{i}"), i.into())).collect();
    let opening = Opening { config: config.into(), ..opening(folder.path(), (1..=2500).map(loss).collect()) };
    drop(TrackedRun::open(&opening, &mock.server(&[])).unwrap());
    assert_eq!((mock.points("loss").len(), mock.run()["data"]["params"].as_array().unwrap().len()), (2500, 250));
    let batches = mock.state().requests.iter().filter(|(_, path, _)| path.ends_with("log-batch")).count();
    assert_eq!(batches, 3 + 3);
}

#[test]
fn without_a_proxy_of_artifacts_texts_are_tags() {
    let (mock, folder) = (Mock::start(), tempfile::tempdir().unwrap());
    mock.state().no_proxy = true;
    let mut run = TrackedRun::open(&opening(folder.path(), Vec::new()), &mock.server(&[])).unwrap();
    let texts = vec![Text { caption: "i1".into(), text: "x".repeat(9000) }];
    run.write(&(Duration::from_secs(1), Entry::Texts { tag: "Prediction", step: 1, texts })).unwrap();
    let tags = mock.run()["data"]["tags"].clone();
    let tag = tags.as_array().unwrap().iter().find(|tag| tag["key"] == "prediction.1").unwrap();
    assert!(tag["value"].as_str().unwrap().starts_with("i1\n\nxxx") && tag["value"].as_str().unwrap().ends_with("…"));
}

#[test]
fn what_passes_is_asked_again_and_what_stays_is_said() {
    let (mock, folder) = (Mock::start(), tempfile::tempdir().unwrap());
    mock.fault("runs/create", Fault::Status(503, "busy"), 2);
    mock.fault("log-batch", Fault::Status(429, ""), 1);
    drop(TrackedRun::open(&opening(folder.path(), vec![loss(1)]), &mock.server(&[])).unwrap());
    assert_eq!(mock.points("loss"), [(1, json!(1.0))]);
    let mut run = TrackedRun::open(&opening(folder.path(), Vec::new()), &mock.server(&[])).unwrap();
    mock.fault("log-batch", Fault::Status(500, "full"), 99);
    run.write(&loss(2)).unwrap();
    assert!(said(&run.flush().unwrap_err()).contains("answers 500: full") && run.unsent() == 1);
    for (fault, expected) in [
        (Fault::Status(500, "<html>boom</html>"), "answers 500: <html>boom</html>"),
        (Fault::Status(200, "<html>a login page</html>"), "what is not JSON"),
        (Fault::Status(401, "{\"message\": \"who is Bearer secret\\u001b[31m\"}"), "who is Bearer *** [31m"),
        (Fault::Redirect("https://elsewhere.example/login"), "https://elsewhere.example/login"),
        (Fault::Silence, "does not answer"),
        (Fault::Endless, "does not answer"),
    ] {
        let (mock, folder) = (Mock::start(), tempfile::tempdir().unwrap());
        mock.fault("experiments/get-by-name", fault.clone(), 99);
        let begun = Instant::now();
        let server = mock.server(&[("MLFLOW_TRACKING_TOKEN", "secret")]);
        let error = TrackedRun::open(&opening(folder.path(), Vec::new()), &server).err().unwrap();
        assert!(said(&error).contains(expected), "{fault:?}: {}", said(&error));
        assert!(!said(&error).contains("secret") && begun.elapsed() < Duration::from_secs(30));
        assert!(!folder.path().join("lora/run.json").exists());
    }
}

#[test]
fn the_environment_is_read_as_mlflows_client_reads_it() {
    let of = |variables: &[(&str, &str)]| {
        Server::of(&|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string()))
    };
    let uri = ("MLFLOW_TRACKING_URI", "https://me:pw@host:1/base/");
    let server = of(&[uri, ("MLFLOW_EXPERIMENT_NAME", "mine")]).unwrap();
    assert_eq!(server.uri, "https://host:1/base");
    let basic = |server: &Server| match &server.login {
        Login::Basic(token) => Token::new(&STANDARD.encode("me:pw")) == Some(token.clone()),
        _ => false,
    };
    assert!(basic(&server) && matches!(server.experiment, Some(Experiment::Named(_))));
    let named = [
        ("MLFLOW_TRACKING_URI", "http://host"),
        ("MLFLOW_TRACKING_USERNAME", "me"),
        ("MLFLOW_TRACKING_PASSWORD", "pw"),
        ("MLFLOW_TRACKING_TOKEN", "t"),
        ("MLFLOW_EXPERIMENT_ID", "7"),
        ("MLFLOW_EXPERIMENT_NAME", "mine"),
    ];
    let server = of(&named).unwrap();
    assert!(basic(&server) && matches!(server.experiment, Some(Experiment::Named(_))));
    assert!(!format!("{server:?}").contains("pw"));
    for (uri, expected) in [
        (None, "names no server"),
        (Some("sqlite:///mlflow.db"), "(sqlite)"),
        (Some("file:///tmp/mlruns"), "(file)"),
        (Some("databricks"), "(databricks)"),
    ] {
        let given: Vec<_> = uri.map(|uri| ("MLFLOW_TRACKING_URI", uri)).into_iter().collect();
        let error = of(&given).unwrap_err();
        assert!(said(&error).contains(expected) && said(&error).contains("mlflow server"), "{}", said(&error));
    }
}
