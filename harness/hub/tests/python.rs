//! The hubs' own client beside this one: it reads the cache that was written here, this one reads
//! its cache, and it downloads from the mock hub of these tests, so that the mock is an honest one.
//! Without the package huggingface_hub they say so and prove nothing.
#![allow(clippy::unwrap_used)]

mod mock;
mod place;

use std::fs;
use std::process::Command;

use karat_hub::{RepoKind, survey};
use mock::noise;
use place::Place;

/// Runs Python with a cache and a hub; none where huggingface_hub is not there.
fn python(place: &Place, code: &str) -> Option<String> {
    let mut command = Command::new("python3");
    command.args(["-c", &format!("import huggingface_hub as hub\n{code}")]);
    command.env("HF_ENDPOINT", &place.hub.url).env("HF_HUB_CACHE", place.folder.path().join("hf"));
    command.env("HF_HUB_DISABLE_XET", "1").env("HF_HUB_DISABLE_PROGRESS_BARS", "1").env("NO_PROXY", "127.0.0.1");
    command.env("HF_HOME", place.folder.path().join("home"));
    let Ok(output) = command.output() else {
        eprintln!("skipped: there is no python3");
        return None;
    };
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if said.contains("No module named 'huggingface_hub'") {
        eprintln!("skipped: python3 has no huggingface_hub (pip install huggingface_hub)");
        return None;
    }
    assert!(output.status.success(), "{said}");
    Some(String::from_utf8(output.stdout).unwrap().trim().to_string())
}

fn with_model() -> Place {
    let place = Place::new();
    let weights = noise(300_000, 5);
    place.hub.push(
        "models/o/n",
        "main",
        &[
            ("README.md", b"---\nlicense: mit\n---\n"),
            ("config.json", b"{}"),
            ("model.safetensors", &weights),
            ("sub/deep/vocab.json", b"[]"),
        ],
    );
    place
}

#[test]
fn it_finds_what_was_downloaded_here() {
    let place = with_model();
    let model = place.model("hf:o/n").unwrap();
    // Everything of the snapshot, by its own rules of what lies where.
    let code = "p = hub.snapshot_download('o/n', local_files_only=True, allow_patterns=['*.json', '*.safetensors', '*.md'], \
                ignore_patterns=['sub/*'])\nprint(p)\n\
                print(hub.hf_hub_download('o/n', 'model.safetensors', local_files_only=True))\n\
                print(hub.try_to_load_from_cache('o/n', 'vocab.json'))\n\
                info = hub.scan_cache_dir()\nprint(len(info.warnings), [r.repo_id for r in info.repos], [r.refs.keys() and sorted(r.refs) for r in info.repos])";
    let Some(said) = python(&place, code) else { return };
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[0], model.local().to_str().unwrap());
    assert_eq!(lines[1], model.local().join("model.safetensors").to_str().unwrap());
    assert!(lines[2].starts_with("<object"), "known to be absent: {}", lines[2]);
    assert_eq!(lines[3], "0 ['o/n'] [['main']]");
}

#[test]
fn what_it_downloaded_is_not_downloaded_again() {
    let place = with_model();
    let Some(folder) = python(&place, "print(hub.snapshot_download('o/n'))") else { return };
    place.hub.was_respected();
    place.hub.take_requests();
    let model = place.model("hf:o/n").unwrap();
    assert_eq!(model.local().to_str().unwrap(), folder);
    let requests = place.hub.take_requests();
    assert!(requests.iter().all(|line| line.contains("/api/")), "{requests:?}");
    // And without asking anybody.
    fs::remove_dir_all(place.repo().join(".karat")).unwrap();
    assert_eq!(place.fetch(&place.offline(), "hf:o/n").unwrap().files.len(), 3);
    assert!(survey(&place.settings()).iter().all(|one| one.dangling.is_empty() && one.kind == RepoKind::Model));
}

#[test]
fn it_goes_on_in_a_cache_that_was_begun_here() {
    let place = with_model();
    place.model("hf:o/n/config.json").unwrap();
    let code = "print(hub.snapshot_download('o/n'))";
    let Some(folder) = python(&place, code) else { return };
    let file = |name: &str| fs::read(std::path::Path::new(&folder).join(name)).unwrap();
    assert_eq!(file("model.safetensors"), noise(300_000, 5));
    assert_eq!(file("sub/deep/vocab.json"), b"[]");
    // The same paths, whoever made them.
    assert_eq!(place.model("hf:o/n").unwrap().local().to_str().unwrap(), folder);
}
