//! A run on an MLflow server, over its REST interface (2.0), as MLflow's own client makes one.
//!
//! Which server, and who asks, says the environment by the names of that client:
//! `MLFLOW_TRACKING_URI`, `MLFLOW_TRACKING_USERNAME` with `MLFLOW_TRACKING_PASSWORD`, or
//! `MLFLOW_TRACKING_TOKEN`; `MLFLOW_EXPERIMENT_NAME` or `MLFLOW_EXPERIMENT_ID`. Metrics have the names
//! of transformers' callback for MLflow (`loss`, `eval_loss`, `train_runtime`).
//!
//! The model's folder keeps the id of its run. What that run has is not sent again: of each metric,
//! steps up to the last that the server knows. So a training that goes on continues its curves, and a
//! run that is written twice stands there once.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use karat_hub::{Api, Login, Reply, Retry, Token};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::entry::{Ending, Entry, Kind, Text, Timed};
use super::sink::{Opening, Sink};
use crate::error::{Error, Result};
use crate::fsio;

/// The interface.
const API: &str = "api/2.0/mlflow";
/// Metrics of one request.
const METRICS: usize = 1000;
/// Parameters of one request.
const PARAMS: usize = 100;
/// Characters of a parameter's value, which older servers hold to.
const LONGEST_PARAM: usize = 500;
/// Characters of a parameter's or a metric's name.
const LONGEST_KEY: usize = 250;
/// Characters of a tag's value.
const LONGEST_TAG: usize = 5000;
/// The tag by which MLflow's pages find tables.
const TABLES: &str = "mlflow.loggedArtifacts";
/// The file in a model's folder that says which run it is.
const RUN_JSON: &str = "run.json";

/// A server, and the experiment on it.
#[derive(Clone, Debug)]
pub(super) struct Server {
    uri: String,
    login: Login,
    experiment: Option<Experiment>,
    user: Option<String>,
    /// How long an answer may take.
    pub timeout: Duration,
    /// How calls are made again.
    pub retry: Retry,
}

#[derive(Clone, Debug)]
enum Experiment {
    Named(String),
    Id(String),
}

impl Server {
    /// What this process' environment says.
    ///
    /// # Errors
    /// Usage, if it names no server that is reached by HTTP.
    pub fn from_env() -> Result<Server> {
        Server::of(&|name| std::env::var(name).ok())
    }

    /// What an environment says; an empty value is as none.
    ///
    /// # Errors
    /// As [`Server::from_env`].
    pub fn of(lookup: &dyn Fn(&str) -> Option<String>) -> Result<Server> {
        let get = |name: &str| lookup(name).map(|value| value.trim().to_string()).filter(|value| !value.is_empty());
        let help = "start one with `mlflow server` and set MLFLOW_TRACKING_URI=http://127.0.0.1:5000";
        let Some(uri) = get("MLFLOW_TRACKING_URI") else {
            return Err(Error::usage("MLFLOW_TRACKING_URI names no server").help(help));
        };
        let Some((scheme, rest)) = uri.split_once("://").filter(|(scheme, _)| ["http", "https"].contains(scheme))
        else {
            let scheme = uri.split(':').next().unwrap_or_default();
            let what =
                format!("MLFLOW_TRACKING_URI ({scheme}) is no address of a server: http and https are spoken here");
            return Err(Error::usage(what).help(help));
        };
        let authority = rest.split('/').next().unwrap_or_default();
        let (inside, uri) = match authority.rsplit_once('@') {
            Some((user, _)) => (Some(user.to_string()), format!("{scheme}://{}", &rest[user.len() + 1..])),
            None => (None, uri.clone()),
        };
        let password = get("MLFLOW_TRACKING_PASSWORD");
        let named = get("MLFLOW_TRACKING_USERNAME").zip(password).map(|(user, password)| format!("{user}:{password}"));
        let login = match named.or(inside) {
            Some(pair) => Token::new(&STANDARD.encode(pair)).map_or(Login::None, Login::Basic),
            None => {
                get("MLFLOW_TRACKING_TOKEN").and_then(|token| Token::new(&token)).map_or(Login::None, Login::Bearer)
            }
        };
        let timeout = get("MLFLOW_HTTP_REQUEST_TIMEOUT").and_then(|seconds| seconds.parse().ok());
        Ok(Server {
            uri: uri.trim_end_matches('/').into(),
            login,
            experiment: get("MLFLOW_EXPERIMENT_NAME")
                .map(Experiment::Named)
                .or_else(|| get("MLFLOW_EXPERIMENT_ID").map(Experiment::Id)),
            user: get("LOGNAME").or_else(|| get("USER")),
            timeout: timeout.filter(|seconds| *seconds > 0).map_or(Duration::from_secs(30), Duration::from_secs),
            retry: Retry { attempts: 3, first: Duration::from_secs(1), longest: Duration::from_secs(10) },
        })
    }
}

/// Which run a model is, as its folder keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stored {
    /// The training; see [`Opening::id`].
    id: String,
    /// The server's address.
    server: String,
    experiment_id: String,
    run_id: String,
    /// Where a browser shows it.
    page: String,
}

/// A model's run.
pub(super) struct TrackedRun {
    api: Api,
    run_id: String,
    /// The path below the server's proxy of artifacts; none where it has none.
    artifacts: Option<String>,
    /// Of each metric, the last step that the server had when this was opened, and the value there.
    had: BTreeMap<String, (i64, Value)>,
    /// Metrics that were not sent yet.
    waiting: Vec<Value>,
    /// Tables of texts that the server keeps.
    tables: Vec<Value>,
}

impl TrackedRun {
    /// Opens the run of the model's folder, or makes one.
    ///
    /// # Errors
    /// A server that is not reached, refuses, or is none of MLflow's; I/O.
    pub fn open(opening: &Opening, server: &Server) -> Result<TrackedRun> {
        let api = Api::new(&server.uri, server.login.clone(), server.timeout, server.retry);
        let folder = opening.of_model();
        std::fs::create_dir_all(&folder).map_err(|e| Error::io("create the folder", &folder, e))?;
        let file = folder.join(RUN_JSON);
        let (stored, info) = match known(&api, &file, opening, server)? {
            Some(known) => known,
            None => made(&api, &file, opening, server)?,
        };
        let list = |key: &str| info["data"][key].as_array().cloned().unwrap_or_default();
        let key = |value: &Value| value["key"].as_str().map(String::from);
        let last = |metric: &Value| Some((key(metric)?, (whole(&metric["step"])?, metric["value"].clone())));
        let had = list("metrics").iter().filter_map(last).collect();
        let tables = list("tags").iter().find(|tag| tag["key"] == TABLES).and_then(|tag| {
            let text = tag["value"].as_str()?;
            serde_json::from_str(text).ok()
        });
        let uri = info["info"]["artifact_uri"].as_str().unwrap_or_default();
        let mut run = TrackedRun {
            api,
            run_id: stored.run_id,
            artifacts: uri.strip_prefix("mlflow-artifacts:").map(|path| path.trim_start_matches('/').into()),
            had,
            waiting: Vec::new(),
            tables: tables.unwrap_or_default(),
        };
        // A parameter has one value for ever; what it is now stands in the file beside it.
        let old: Vec<String> = list("params").iter().filter_map(key).collect();
        let mut params = Vec::new();
        flatten("", &opening.config, &mut params);
        params.retain(|(name, _)| !old.contains(name));
        for some in params.chunks(PARAMS) {
            let some: Vec<Value> = some.iter().map(|(key, value)| json!({"key": key, "value": value})).collect();
            run.batch(&json!({"params": some}))?;
        }
        run.artifact("config.json", &format!("{:#}\n", opening.config))?;
        opening.history.iter().try_for_each(|entry| run.write(entry))?;
        run.flush()?;
        Ok(run)
    }

    fn batch(&self, what: &Value) -> Result<()> {
        let mut what = what.clone();
        what["run_id"] = self.run_id.as_str().into();
        post(&self.api, "runs/log-batch", &what).map(drop)
    }

    fn tag(&self, key: &str, value: &str) -> Result<()> {
        self.batch(&json!({"tags": [{"key": key, "value": cut(value, LONGEST_TAG)}]}))
    }

    /// Keeps a text beside the run; whether the server takes such.
    fn artifact(&self, name: &str, text: &str) -> Result<bool> {
        let Some(place) = &self.artifacts else { return Ok(false) };
        let path = format!("api/2.0/mlflow-artifacts/artifacts/{place}/{name}");
        let reply = self.api.put(&path, text.as_bytes())?;
        // A server that was started without its proxy of artifacts has no such address.
        if [404, 405, 503].contains(&reply.status) {
            return Ok(false);
        }
        read(&self.api, &reply).map(|_| true)
    }
}

impl Sink for TrackedRun {
    fn write(&mut self, (at, entry): &Timed) -> Result<()> {
        let millis = at.as_millis() as u64;
        match entry {
            Entry::Scalars { kind, step, values } => {
                for (tag, value) in values {
                    let (key, value) = (metric_name(*kind, tag), number(*value));
                    let known = self.had.get(&key).is_some_and(|(last, had)| {
                        // A checkpoint that is measured again may have other metrics.
                        let renewed = *kind == Kind::Metrics && *last == *step as i64 && *had != value;
                        *last >= *step as i64 && !renewed
                    });
                    if known {
                        continue;
                    }
                    self.waiting.push(json!({"key": key, "value": value, "timestamp": millis, "step": step}));
                }
                if self.waiting.len() >= METRICS {
                    self.flush()?;
                }
            }
            Entry::Texts { tag, step, texts } => {
                let tag = tag.to_lowercase();
                let rows: Vec<Value> = texts.iter().map(|Text { caption, text }| json!([caption, text])).collect();
                // The form of MLflow's own tables, that its pages show.
                let name = format!("{tag}/step-{step}.json");
                if self.artifact(&name, &json!({"columns": ["id", "text"], "data": rows}).to_string())? {
                    let table = json!({"path": name, "type": "table"});
                    if !self.tables.contains(&table) {
                        self.tables.push(table);
                    }
                    return self.tag(TABLES, &json!(self.tables).to_string());
                }
                for (i, Text { caption, text }) in texts.iter().enumerate() {
                    self.tag(&format!("{tag}.{}", i + 1), &format!("{caption}\n\n{text}"))?;
                }
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        while !self.waiting.is_empty() {
            let some = self.waiting.len().min(METRICS);
            self.batch(&json!({"metrics": self.waiting[..some]}))?;
            self.waiting.drain(..some);
        }
        Ok(())
    }

    fn unsent(&self) -> usize {
        self.waiting.len()
    }

    fn end(&mut self, at: Duration, ending: Ending, why: &str) -> Result<()> {
        self.flush()?;
        if !why.is_empty() {
            self.tag("karat.ended", why)?;
        }
        let status = match ending {
            Ending::Finished => "FINISHED",
            Ending::Crashed => "FAILED",
            Ending::Stopped => "KILLED",
        };
        let update = json!({"run_id": self.run_id, "status": status, "end_time": at.as_millis() as u64});
        post(&self.api, "runs/update", &update).map(drop)
    }
}

/// The run that the folder names, if it is of this training and the server has it still.
fn known(api: &Api, file: &Path, opening: &Opening, server: &Server) -> Result<Option<(Stored, Value)>> {
    let stored = fsio::read_json::<Stored>(file).ok();
    let Some(stored) = stored.filter(|s| s.id == opening.id && s.server == server.uri) else { return Ok(None) };
    let reply = api.get(&format!("{API}/runs/get"), &[("run_id", &stored.run_id)])?;
    if reply.status == 404 {
        return Ok(None);
    }
    let run = read(api, &reply)?["run"].take();
    if run["info"]["lifecycle_stage"] == "deleted" {
        return Ok(None);
    }
    post(api, "runs/update", &json!({"run_id": stored.run_id, "status": "RUNNING"}))?;
    Ok(Some((stored, run)))
}

/// A new run, in the experiment, which is made where it is not there.
fn made(api: &Api, file: &Path, opening: &Opening, server: &Server) -> Result<(Stored, Value)> {
    let experiment_id = match &server.experiment {
        Some(Experiment::Id(id)) => id.clone(),
        Some(Experiment::Named(name)) => experiment(api, name)?,
        None => experiment(api, &opening.title.project)?,
    };
    let mut tags = vec![
        ("mlflow.source.name", "karat".to_string()),
        ("mlflow.source.type", "LOCAL".into()),
        ("karat.id", opening.id.clone()),
        ("karat.model", opening.model.clone()),
    ];
    tags.extend(server.user.clone().map(|user| ("mlflow.user", user)));
    let tags: Vec<Value> = tags.into_iter().map(|(key, value)| json!({"key": key, "value": value})).collect();
    let asked = json!({
        "experiment_id": experiment_id,
        "run_name": format!("{}-{}", opening.title.name, opening.model),
        "start_time": opening.began.as_millis() as u64,
        "tags": tags,
    });
    let run = post(api, "runs/create", &asked)?["run"].take();
    let run_id = run["info"]["run_id"].as_str().ok_or_else(|| strange(api, "a run without run_id"))?.to_string();
    let page = format!("{}/#/experiments/{experiment_id}/runs/{run_id}", server.uri);
    let stored = Stored { id: opening.id.clone(), server: server.uri.clone(), experiment_id, run_id, page };
    fsio::write_json(file, &stored)?;
    Ok((stored, run))
}

/// The id of an experiment; a new one's where there is none of that name.
fn experiment(api: &Api, name: &str) -> Result<String> {
    let asked = || api.get(&format!("{API}/experiments/get-by-name"), &[("experiment_name", name)]);
    let id = |answer: &Value| answer.as_str().map(String::from).ok_or_else(|| strange(api, "an experiment without id"));
    let mut reply = asked()?;
    if reply.status == 404 {
        let made = api.post(&format!("{API}/experiments/create"), &json!({"name": name}))?;
        // Another process may have made it meanwhile.
        if made.status == 200 {
            return id(&read(api, &made)?["experiment_id"]);
        }
        reply = asked()?;
        if reply.status == 404 {
            reply = made;
        }
    }
    let experiment = read(api, &reply)?["experiment"].take();
    if experiment["lifecycle_stage"] == "deleted" {
        return Err(Error::failed(format!("the experiment {name:?} is deleted on {}", api.host()))
            .help("restore it there, or give another name in MLFLOW_EXPERIMENT_NAME or track.project"));
    }
    id(&experiment["experiment_id"])
}

fn post(api: &Api, path: &str, value: &Value) -> Result<Value> {
    read(api, &api.post(&format!("{API}/{path}"), value)?)
}

/// The value of an answer.
fn read(api: &Api, reply: &Reply) -> Result<Value> {
    let host = api.host();
    let said = || {
        let error: Value = serde_json::from_str(&reply.text).unwrap_or_default();
        let text = api.without_secret(error["message"].as_str().unwrap_or(&reply.text));
        let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        cut(&text.split_whitespace().collect::<Vec<_>>().join(" "), 200)
    };
    match reply.status {
        // A file that was taken is answered with nothing.
        200..=299 if reply.text.trim().is_empty() => Ok(Value::Null),
        200 => serde_json::from_str(&reply.text).map_err(|_| strange(api, "what is not JSON")),
        301..=308 => Err(Error::failed(format!("{host} answers {} instead of what was asked", reply.status))
            .help(format!("set MLFLOW_TRACKING_URI to where it leads: {}", reply.location.as_deref().unwrap_or("?")))),
        401 | 403 => Err(Error::failed(format!("{host} refuses ({}): {}", reply.status, said()))
            .help("set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN")),
        status => Err(Error::failed(format!("{host} answers {status}: {}", said()))),
    }
}

fn strange(api: &Api, what: &str) -> Error {
    Error::failed(format!("{} answers with {what}", api.host()))
        .help("is MLFLOW_TRACKING_URI that of an MLflow server?")
}

/// A metric's name as transformers' callback has it on MLflow.
fn metric_name(kind: Kind, tag: &str) -> String {
    let name = match (kind, tag.split_once('/')) {
        (Kind::Train, Some(("train", name))) => name.to_string(),
        (Kind::Evaluation, Some(("eval", name))) => format!("eval_{name}"),
        _ => tag.to_string(),
    };
    legal(&name)
}

/// A name of letters that MLflow takes.
fn legal(name: &str) -> String {
    let legal = |c: char| if c.is_ascii_alphanumeric() || "_-./ ".contains(c) { c } else { '_' };
    name.chars().map(legal).take(LONGEST_KEY).collect()
}

/// A number as JSON; those that JSON has no word for as MLflow writes them.
fn number(value: f64) -> Value {
    match value {
        value if value.is_nan() => "NaN".into(),
        f64::INFINITY => "Infinity".into(),
        f64::NEG_INFINITY => "-Infinity".into(),
        value => value.into(),
    }
}

/// A whole number, which protocol buffers write as a text where it is long.
fn whole(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_str()?.parse().ok())
}

/// The first characters of a text, and a sign where there are more.
fn cut(text: &str, most: usize) -> String {
    match text.chars().nth(most) {
        None => text.into(),
        Some(_) => text.chars().take(most - 1).chain(['…']).collect(),
    }
}

/// Settings as names with dots and texts.
fn flatten(name: &str, value: &Value, params: &mut Vec<(String, String)>) {
    match value {
        Value::Object(table) => {
            for (key, value) in table {
                let key = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                flatten(&key, value, params);
            }
        }
        Value::Null => {}
        Value::String(text) => params.push((legal(name), cut(text, LONGEST_PARAM))),
        other => params.push((legal(name), cut(&other.to_string(), LONGEST_PARAM))),
    }
}

#[cfg(test)]
mod tests;
