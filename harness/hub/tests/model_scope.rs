//! Fetching from a hub that speaks ModelScope's protocol, and what both caches hold.
#![allow(clippy::unwrap_used)]

mod mock;
mod place;

use std::fs;

use karat_hub::{HubId, RepoKind, Token, Want, survey};
use karat_system::ErrorKind;
use mock::{Fault, MockFile, noise};
use place::Place;

fn with_model() -> (Place, Vec<u8>) {
    let (place, weights) = (Place::new(), noise(300_000, 2));
    place.hub.push(
        "models/o/n.5",
        "master",
        &[
            ("README.md", b"---\nlicense: mit\n---\n"),
            ("config.json", b"{}"),
            ("model.safetensors", &weights),
            ("x.py", b""),
        ],
    );
    (place, weights)
}

#[test]
fn a_model_lies_as_the_new_clients_lay_it() {
    let (place, weights) = with_model();
    let model = place.model("ms:o/n.5").unwrap();
    let folder = place.folder.path().join("ms/models/o--n.5/snapshots/master");
    assert_eq!((model.local(), model.licence.as_deref()), (folder.clone(), Some("mit")));
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), weights);
    assert!(!folder.join("x.py").exists() && model.state.starts_with("sha256:"));
    place.hub.was_respected();
    place.hub.take_requests();
    place.model("ms:o/n.5").unwrap();
    let asked = place.hub.take_requests();
    assert_eq!(asked, ["GET /api/v1/models/o/n.5/repo/files?Revision=master&Recursive=True"]);
}

#[test]
fn what_an_older_client_has_is_used_where_it_lies() {
    let (place, weights) = with_model();
    let old = place.folder.path().join("ms/hub/models/o/n___5");
    fs::create_dir_all(&old).unwrap();
    fs::write(old.join("config.json"), "{}").unwrap();
    fs::write(old.join("model.safetensors"), &weights).unwrap();
    let model = place.model("ms:o/n.5").unwrap();
    assert_eq!(model.local(), old);
    assert_eq!(place.hub.take_requests().len(), 1, "the listing alone");
    // So offline; and a file that is not what the hub lists is fetched into the new place.
    assert_eq!(place.fetch(&place.offline(), "ms:o/n.5").unwrap().local(), old);
    fs::write(old.join("config.json"), "[]").unwrap();
    assert!(place.model("ms:o/n.5").unwrap().local().ends_with("o--n.5/snapshots/master"));
}

#[test]
fn a_cut_is_continued_and_a_wrong_byte_gets_no_name() {
    let (place, weights) = with_model();
    let sha256 = MockFile { bytes: weights.clone().into(), large: true }.sha256();
    place.hub.fail(&format!("GET /{sha256}"), Fault::Cut(100_000), 1);
    let model = place.model("ms:o/n.5").unwrap();
    assert_eq!(fs::read(model.local().join("model.safetensors")).unwrap(), weights);
    let requests = place.hub.take_whole_requests();
    assert!(requests.iter().any(|r| r.header("range") == Some("bytes=100000-")));
    let (place, _) = with_model();
    place.hub.fail(&format!("GET /{sha256}"), Fault::WrongByte, 2);
    let error = place.model("ms:o/n.5").unwrap_err();
    assert!(error.what().contains("are not the file"), "{error}");
    assert!(!place.folder.path().join("ms/models/o--n.5/snapshots/master/model.safetensors").exists());
}

#[test]
fn an_error_that_comes_as_success_is_read_from_the_body() {
    let (place, _) = with_model();
    let error = place.model("ms:o/nothing").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.what().contains("code 10010205001 (request request-7)"), "{error}");
    assert!(error.help_text().unwrap().contains("MODELSCOPE_API_TOKEN"));
    let body = r#"{"Code": 500, "Success": false, "Message": "busy"}"#;
    place.hub.fail("repo/files", Fault::Status(200, Vec::new(), body.into()), 9);
    let error = place.model("ms:o/n.5").unwrap_err();
    assert!(error.kind() == ErrorKind::Failed && error.what().contains("busy"), "{error}");
}

#[test]
fn a_token_is_sent_both_ways_and_to_nobody_else() {
    let (place, _) = with_model();
    place.hub.state().repos.get_mut("models/o/n.5").unwrap().private = Some("secret".into());
    assert!(place.model("ms:o/n.5").is_err());
    let client = place.with(|settings| settings.ms_token = Token::new("secret"));
    place.fetch(&client, "ms:o/n.5").unwrap();
    place.hub.was_respected();
}

#[test]
fn a_listing_that_may_be_cut_off_is_walked_folder_by_folder() {
    let place = Place::new();
    let names: Vec<String> = (0..700).map(|n| format!("data/part{}/{n:03}.json", n % 7)).collect();
    let mut files: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b"{}"[..])).collect();
    files.extend([("config.json", &b"{}"[..]), ("zzz.safetensors", b"weights")]);
    place.hub.push("models/o/n", "master", &files);
    place.hub.state().truncated = 500;
    // Among the first 500 entries of the whole there are no weights.
    let model = place.model("ms:o/n").unwrap();
    assert!(model.files.iter().any(|file| file.path == "zzz.safetensors"));
}

#[test]
fn a_dataset_is_listed_page_by_page_and_a_refused_page_is_asked_again() {
    let place = Place::new();
    let names: Vec<String> = (0..450).map(|n| format!("train-{n:03}.jsonl")).collect();
    let files: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b"{}"[..])).collect();
    place.hub.push("datasets/o/d", "master", &files);
    place.hub.fail("PageNumber=2", Fault::Status(403, Vec::new(), String::new()), 1);
    let data = place.data("ms:o/d/train-449.jsonl").unwrap();
    assert!(data.local().ends_with("datasets/o--d/snapshots/master/train-449.jsonl"));
    assert_eq!(place.hub.take_requests().iter().filter(|line| line.contains("/repo/tree")).count(), 4);
}

#[test]
fn without_a_hash_the_size_is_checked_and_that_is_said() {
    let (place, _) = with_model();
    place.hub.state().mute = true;
    place.model("ms:o/n.5").unwrap();
    assert!(place.told.notes().contains("gives no hash of model.safetensors"), "{}", place.told.notes());
}

#[test]
fn a_branch_that_moved_is_no_longer_what_was_pinned() {
    let (place, weights) = with_model();
    let first = place.model("ms:o/n.5").unwrap().state;
    place.hub.push("models/o/n.5", "master", &[("config.json", b"{\"new\": 1}"), ("model.safetensors", &weights)]);
    let id = HubId::parse("ms:o/n.5").unwrap();
    let pinned = |pin: &str| place.client().fetch(&id, RepoKind::Model, &Want::Model, Some(pin), &place.told);
    // What is in the cache is what was pinned: nobody is asked.
    assert_eq!(pinned(&first).unwrap().state, first);
    let second = place.model("ms:o/n.5").unwrap();
    assert_eq!(fs::read_to_string(second.local().join("config.json")).unwrap(), "{\"new\": 1}");
    assert_ne!(second.state, first);
    assert!(pinned(&first).unwrap_err().what().contains("has changed since this run began"));
}

#[test]
fn offline_takes_the_cache_and_names_what_it_lacks() {
    let (place, _) = with_model();
    assert!(place.fetch(&place.offline(), "ms:o/n.5").unwrap_err().what().contains("offline"));
    let model = place.model("ms:o/n.5").unwrap();
    place.fetch(&place.offline(), "ms:o/n.5").unwrap();
    fs::remove_file(model.local().join("config.json")).unwrap();
    let error = place.fetch(&place.offline(), "ms:o/n.5").unwrap_err();
    assert!(error.what().contains("lacks config.json"), "{error}");
}

#[test]
fn a_listing_that_leads_out_of_its_folder_is_refused_whole() {
    let (place, _) = with_model();
    place.hub.state().hostile_paths = vec!["../../etc/x".into()];
    assert!(place.model("ms:o/n.5").unwrap_err().what().contains("nothing of it is fetched"));
}

#[test]
fn the_caches_are_told_and_only_what_nobody_needs_is_removed() {
    let (place, _) = with_model();
    let weights = noise(5000, 3);
    place.hub.push("models/o/n", "main", &[("config.json", b"{}"), ("model.safetensors", &weights)]);
    let model = place.model("hf:o/n").unwrap();
    place.model("ms:o/n.5").unwrap();
    let blobs = place.repo().join("blobs");
    fs::write(blobs.join("a".repeat(64)), vec![0; 700]).unwrap();
    fs::write(blobs.join(format!("{}.karat.incomplete", "b".repeat(64))), vec![0; 30]).unwrap();
    std::os::unix::fs::symlink("../../blobs/gone", model.local().join("gone.json")).unwrap();
    let all = survey(&place.settings());
    let ids: Vec<String> = all.iter().map(|one| one.id()).collect();
    assert_eq!(ids, ["hf:o/n", "ms:o/n.5"]);
    let one = &all[0];
    assert_eq!((one.files, one.bytes), (2, 2 + 5000 + 700 + 30));
    assert_eq!(one.revisions, [(model.state.clone(), vec!["main".to_string()])]);
    assert_eq!((one.dangling.len(), one.incomplete.len(), one.broken.len()), (1, 1, 1));
    assert_eq!(one.prune().unwrap(), 730);
    let again = survey(&place.settings()).remove(0);
    assert_eq!((again.bytes, again.dangling.len(), again.incomplete.len(), again.broken.len()), (5002, 0, 0, 0));
    place.fetch(&place.offline(), "hf:o/n").unwrap();
}
