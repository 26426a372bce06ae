//! Models and data by name, as a user types them, against a hub on this machine.
#![allow(clippy::unwrap_used)]

#[path = "../../hub/tests/mock/mod.rs"]
mod mock;
mod place;

use std::path::{Path, PathBuf};
use std::process::Command;

use mock::{Fault, MockHub};
use place::{Place, good, refused, repository};

struct Hub {
    place: Place,
    hub: MockHub,
}

impl Hub {
    /// The base of medical-r1 as the model `o/m` of the hub, and rows as the dataset `o/d`.
    fn new() -> Hub {
        let hub = Hub { place: Place::new(), hub: MockHub::start() };
        hub.push_model("first");
        let items = std::fs::read(hub.place.root.join("items.jsonl")).unwrap();
        hub.hub.push("datasets/o/d", "main", &[("README.md", b"# d\n"), ("items.jsonl", &items)]);
        hub
    }

    fn push_model(&self, card: &str) -> String {
        let mut files: Vec<(String, Vec<u8>)> = std::fs::read_dir(repository().join("suites/medical-r1/base"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| (path.file_name().unwrap().to_str().unwrap().to_string(), std::fs::read(&path).unwrap()))
            .filter(|(name, _)| name != "README.md")
            .collect();
        files.push(("README.md".into(), format!("---\nlicense: cc0-1.0\n---\n{card}\n").into_bytes()));
        let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
        self.hub.push("models/o/m", "main", &files)
    }

    fn karat(&self, args: &[&str]) -> Command {
        let mut command = self.place.karat(args);
        command.env("HF_ENDPOINT", &self.hub.url).env("MODELSCOPE_ENDPOINT", &self.hub.url);
        command.env("HF_HUB_CACHE", self.cache()).env("MODELSCOPE_CACHE", self.place.root.join("ms"));
        for variable in ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "HTTP_PROXY", "http_proxy"] {
            command.env_remove(variable);
        }
        command
    }

    fn cache(&self) -> PathBuf {
        self.place.root.join("cache")
    }

    fn suite(&self, name: &str) -> String {
        let text = place::SUITE.replace("\"items.jsonl\"", "\"hf:o/d\"").replace("\"base\"", "\"hf:o/m\"");
        self.place.put(name, &text);
        name.into()
    }
}

#[test]
fn a_model_is_downloaded_once_and_found_offline_and_listed() {
    let hub = Hub::new();
    let said = good(hub.karat(&["download", "hf:o/m"]));
    let folder = said.lines().next().unwrap();
    assert!(Path::new(folder).join("config.json").is_file() && said.contains("licence: cc0-1.0"), "{said}");
    hub.hub.take_requests();
    assert_eq!(good(hub.karat(&["--offline", "download", "hf:o/m"])).lines().next(), Some(folder));
    assert_eq!(hub.hub.take_requests(), Vec::<String>::new());
    let listed = good(hub.karat(&["cache"]));
    assert!(listed.contains("hf:o/m") && listed.contains("(main)"), "{listed}");
    std::fs::write(hub.cache().join("models--o--m/blobs").join("a".repeat(64)), [0; 5000]).unwrap();
    let object: serde_json::Value = serde_json::from_str(&good(hub.karat(&["--json", "cache", "--prune"]))).unwrap();
    assert_eq!(object["pruned_bytes"], 5000);
    let data = good(hub.karat(&["--json", "download", "hf:o/d", "--dataset"]));
    let data: serde_json::Value = serde_json::from_str(&data).unwrap();
    assert_eq!(data["splits"][0]["split"], "train");
}

#[test]
fn what_cannot_be_had_is_refused_by_its_kind() {
    let hub = Hub::new();
    refused(hub.karat(&["download", "o/m"]), 2, "give hf:o/m or ms:o/m");
    refused(hub.karat(&["download", "hf:o/nothing"]), 2, "no such model");
    refused(hub.karat(&["score", "--model", "hf:m", "x"]), 2, "hf:owner/name or ms:owner/name");
    refused(hub.karat(&["--offline", "download", "hf:o/m"]), 2, "offline, and the cache lacks");
    refused(hub.karat(&["download", "hf:o/m", "--include", "*.bin"]), 2, "names no file");
    refused(hub.karat(&["download", "hf:o/m@a", "--revision", "b"]), 2, "give one");
    refused(hub.karat(&["download", "ms:o/m"]), 2, "ModelScope has no such model");
    hub.hub.state().repos.get_mut("models/o/m").unwrap().gated = true;
    refused(hub.karat(&["score", "--model", "hf:o/m", "x"]), 2, "accept the licence at");
    hub.hub.state().repos.get_mut("models/o/m").unwrap().gated = false;
    hub.hub.fail("GET /", Fault::WrongByte, 99);
    refused(hub.karat(&["download", "hf:o/m"]), 1, "no JSON");
    // Nothing of all that is in the cache but what the branch means.
    let cache: serde_json::Value = serde_json::from_str(&good(hub.karat(&["--json", "cache"]))).unwrap();
    assert_eq!(cache["bytes"], 0, "{cache}");
}

#[test]
fn a_suite_of_ids_is_shown_as_one_of_files_is() {
    let hub = Hub::new();
    let suite = hub.suite("ids.toml");
    let of_files: serde_json::Value =
        serde_json::from_str(&good(hub.karat(&["--json", "data", "my-experiment.toml"]))).unwrap();
    let of_ids: serde_json::Value = serde_json::from_str(&good(hub.karat(&["--json", "data", &suite]))).unwrap();
    assert_eq!(of_ids["splits"], of_files["splits"]);
}

#[test]
fn a_run_reports_its_commits_stays_with_them_and_a_gate_names_a_branch_that_moved() {
    let hub = Hub::new();
    let suite = hub.suite("ids.toml");
    let report = |args: &[&str]| -> serde_json::Value {
        serde_json::from_str::<serde_json::Value>(&good(hub.karat(args))).unwrap()["report"].take()
    };
    let first = report(&["--json", "run", &suite, "--out", "first"]);
    let source = &first["suite"]["sources"][1];
    assert_eq!((source["key"].as_str(), source["id"].as_str()), (Some("model.base"), Some("hf:o/m")));
    assert_eq!(source["licence"], "cc0-1.0");
    assert!(source["files"].as_array().unwrap().iter().all(|file| file["sha256"].as_str().unwrap().len() == 64));
    assert!(std::fs::read_to_string(hub.place.root.join("first/report/report.md")).unwrap().contains("hf:o/m (main)"));
    let commit = hub.push_model("second");
    let again = report(&["--json", "run", &suite, "--out", "first"]);
    assert_eq!(again["suite"], first["suite"], "a run that goes on stays with its commit");
    let anew = report(&["--json", "run", &suite, "--out", "second"]);
    assert_eq!(anew["suite"]["sources"][1]["state"], commit.as_str());
    assert_ne!(anew["suite"]["sha256"], first["suite"]["sha256"]);
    let output = hub.karat(&["check", "second", "--baseline", "first/report/report.json"]).output().unwrap();
    let said = place::said(&output);
    assert!(said.contains("main of hf:o/m moved from"), "{said}");
}
