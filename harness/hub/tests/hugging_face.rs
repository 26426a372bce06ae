//! Fetching from a hub that speaks Hugging Face's protocol, well and badly.
#![allow(clippy::unwrap_used)]

mod mock;
mod place;

use std::fs;
use std::time::Duration;

use karat_hub::{HubId, RepoKind, Token, Want};
use karat_system::ErrorKind;
use mock::{Fault, MockFile, noise};
use place::{Place, all_files};

const CONFIG: &[u8] = b"{\"model_type\": \"qwen3\"}";

/// A small model with large weights at `main` of `o/n`.
fn with_model() -> (Place, Vec<u8>, String) {
    let (place, weights) = (Place::new(), noise(300_000, 1));
    let commit = place.hub.push(
        "models/o/n",
        "main",
        &[
            ("README.md", b"---\nlicense: apache-2.0\n---\n# n\n"),
            ("config.json", CONFIG),
            ("model.safetensors", &weights),
            ("modeling_n.py", b"import os"),
            ("pytorch_model.bin", b"pickle"),
            ("tokenizer.json", b"{}"),
        ],
    );
    (place, weights, commit)
}

fn status(status: u16, headers: &[(&str, &str)]) -> Fault {
    Fault::Status(status, headers.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect(), String::new())
}

#[test]
fn a_model_lies_in_the_cache_as_the_hubs_own_client_lays_it() {
    let (place, weights, commit) = with_model();
    let model = place.model("hf:o/n").unwrap();
    assert_eq!((model.state.as_str(), model.licence.as_deref()), (commit.as_str(), Some("apache-2.0")));
    let names: Vec<&str> = model.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(names, ["README.md", "config.json", "model.safetensors", "tokenizer.json"]);
    assert_eq!(model.local(), place.repo().join("snapshots").join(&commit));
    assert_eq!(fs::read(model.local().join("model.safetensors")).unwrap(), weights);
    assert_eq!(fs::read_to_string(place.repo().join("refs/main")).unwrap(), commit);
    let file = MockFile { bytes: weights.into(), large: true };
    let link = fs::read_link(model.local().join("model.safetensors")).unwrap();
    assert_eq!(link.to_str().unwrap(), format!("../../blobs/{}", file.sha256()));
    let small = MockFile { bytes: CONFIG.to_vec().into(), large: false };
    assert!(place.repo().join("blobs").join(small.git_sha1()).is_file());
    let locks = place.folder.path().join("hf/.locks/models--o--n");
    assert!(locks.join(format!("{}.lock", file.sha256())).is_file());
    assert!(place.repo().join(".no_exist").join(&commit).join("vocab.json").is_file());
    let left: Vec<String> = all_files(&place.repo()).into_iter().filter(|f| f.contains("incomplete")).collect();
    assert_eq!(left, Vec::<String>::new());
    place.hub.was_respected();
}

#[test]
fn requests_are_those_of_the_hubs_own_client_and_a_second_time_there_is_one() {
    let (place, _, commit) = with_model();
    place.model("hf:o/n").unwrap();
    let requests = place.hub.take_requests();
    assert_eq!(
        requests[..4],
        [
            "GET /api/models/o/n/revision/main".to_string(),
            format!("GET /api/models/o/n/tree/{commit}?recursive=true&expand=false"),
            format!("HEAD /o/n/resolve/{commit}/README.md"),
            format!("GET /o/n/resolve/{commit}/README.md"),
        ]
    );
    place.model("hf:o/n").unwrap();
    assert_eq!(place.hub.take_requests(), ["GET /api/models/o/n/revision/main"]);
    // A commit moves nowhere: nobody is asked.
    place.model(&format!("hf:o/n@{commit}")).unwrap();
    assert_eq!(place.hub.take_requests(), Vec::<String>::new());
}

#[test]
fn a_token_goes_to_the_hub_and_not_where_it_redirects_to() {
    let (place, ..) = with_model();
    place.hub.state().repos.get_mut("models/o/n").unwrap().private = Some("secret".into());
    let client = place.with(|settings| settings.hf_token = Token::new("secret"));
    place.fetch(&client, "hf:o/n").unwrap();
    place.hub.was_respected();
    let requests = place.hub.take_whole_requests();
    let is_data = |r: &&mock::Request| !r.path().contains("/o/n/");
    let to_cdn = requests.iter().filter(is_data).count();
    assert_eq!(to_cdn, 1, "the weights came from the other host");
    assert!(requests.iter().filter(|r| !is_data(r)).all(|r| r.header("authorization") == Some("Bearer secret")));
}

#[test]
fn a_repository_that_was_renamed_is_followed_on_the_same_host() {
    let (place, _, commit) = with_model();
    place
        .hub
        .state()
        .repos
        .insert("models/old/name".into(), mock::MockRepo { moved_to: Some("models/o/n".into()), ..Default::default() });
    assert_eq!(place.model("hf:old/name").unwrap().state, commit);
}

#[test]
fn a_listing_of_several_pages_is_read_to_its_end() {
    let (place, ..) = with_model();
    place.hub.state().page = 2;
    let model = place.model("hf:o/n").unwrap();
    assert_eq!(model.files.len(), 4);
    assert_eq!(place.hub.take_requests().iter().filter(|line| line.contains("/tree/")).count(), 3);
}

#[test]
fn a_body_that_is_cut_off_is_continued_where_it_stopped() {
    let (place, weights, _) = with_model();
    let sha256 = MockFile { bytes: weights.clone().into(), large: true }.sha256();
    place.hub.fail(&format!("GET /{sha256}"), Fault::Cut(100_000), 2);
    let model = place.model("hf:o/n").unwrap();
    assert_eq!(fs::read(model.local().join("model.safetensors")).unwrap(), weights);
    let requests = place.hub.take_whole_requests();
    let ranges: Vec<Option<&str>> =
        requests.iter().filter(|r| r.path() == format!("/{sha256}")).map(|r| r.header("range")).collect();
    assert_eq!(ranges, [None, Some("bytes=100000-"), Some("bytes=200000-")]);
}

#[test]
fn what_an_earlier_process_left_is_continued_by_the_next() {
    let (place, weights, _) = with_model();
    let sha256 = MockFile { bytes: weights.clone().into(), large: true }.sha256();
    place.hub.fail(&format!("GET /{sha256}"), Fault::Cut(120_000), 1);
    place.hub.fail(&format!("GET /{sha256}"), Fault::Cut(0), 4);
    let error = place.model("hf:o/n").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Failed);
    assert!(error.help_text().unwrap().contains("120000 of 300000 bytes are kept"), "{:?}", error.help_text());
    let partial = place.repo().join("blobs").join(format!("{sha256}.karat.incomplete"));
    assert_eq!(fs::metadata(&partial).unwrap().len(), 120_000);
    assert!(!place.repo().join("blobs").join(&sha256).exists());
    place.hub.take_requests();
    place.model("hf:o/n").unwrap();
    let requests = place.hub.take_whole_requests();
    let range = requests.iter().find(|r| r.path() == format!("/{sha256}")).unwrap().header("range");
    assert_eq!(range, Some("bytes=120000-"));
    assert!(!partial.exists());
}

#[test]
fn a_server_that_ignores_the_range_is_read_from_the_start() {
    let (place, weights, _) = with_model();
    let sha256 = MockFile { bytes: weights.clone().into(), large: true }.sha256();
    let line = format!("GET /{sha256}");
    place.hub.fail(&line, Fault::Cut(100_000), 1);
    place.hub.fail(&line, Fault::IgnoreRange, 1);
    let model = place.model("hf:o/n").unwrap();
    assert_eq!(fs::read(model.local().join("model.safetensors")).unwrap(), weights);
}

#[test]
fn another_range_or_too_many_bytes_or_a_full_partial_file_end_in_the_right_bytes() {
    for fault in [Fault::WrongRange, Fault::TooMuch, Fault::WrongByte] {
        let (place, weights, _) = with_model();
        let sha256 = MockFile { bytes: weights.clone().into(), large: true }.sha256();
        let line = format!("GET /{sha256}");
        place.hub.fail(&line, Fault::Cut(100_000), 1);
        place.hub.fail(&line, fault.clone(), 1);
        let model = place.model("hf:o/n").unwrap();
        assert_eq!(fs::read(model.local().join("model.safetensors")).unwrap(), weights, "{fault:?}");
    }
    // Bytes of another file, more of them than this one has.
    let (place, weights, _) = with_model();
    let sha256 = MockFile { bytes: weights.clone().into(), large: true }.sha256();
    fs::create_dir_all(place.repo().join("blobs")).unwrap();
    fs::write(place.repo().join("blobs").join(format!("{sha256}.karat.incomplete")), noise(400_000, 9)).unwrap();
    assert_eq!(fs::read(place.model("hf:o/n").unwrap().local().join("model.safetensors")).unwrap(), weights);
}

#[test]
fn a_size_that_the_server_disputes_is_an_error_and_no_loop() {
    let (place, weights, _) = with_model();
    let sha256 = MockFile { bytes: weights.into(), large: true }.sha256();
    let line = format!("GET /{sha256}");
    for _ in 0..9 {
        place.hub.fail(&line, Fault::Cut(100_000), 1);
        place.hub.fail(&line, status(416, &[("Content-Range", "bytes */7")]), 1);
    }
    let error = place.model("hf:o/n").unwrap_err();
    assert!(error.what().contains("broke off 4 times"), "{error}");
}

#[test]
fn a_wrong_byte_never_gets_a_name() {
    let (place, weights, commit) = with_model();
    let sha256 = MockFile { bytes: weights.into(), large: true }.sha256();
    place.hub.fail(&format!("GET /{sha256}"), Fault::WrongByte, 2);
    let error = place.model("hf:o/n").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Data);
    assert!(error.what().contains("are not the file"), "{error}");
    assert_eq!(error.place(), Some("hf:o/n/model.safetensors"));
    assert!(!place.repo().join("blobs").join(&sha256).exists());
    assert!(!place.repo().join("snapshots").join(&commit).join("model.safetensors").is_symlink());
    // So with a small file, whose hash is git's.
    let (place, ..) = with_model();
    place.hub.fail("/resolve/", Fault::WrongByte, 9);
    assert!(place.model("hf:o/n").unwrap_err().what().contains("git blob SHA-1"));
}

#[test]
fn a_hub_that_limits_is_waited_for_and_one_that_stumbles_is_asked_again() {
    let (place, ..) = with_model();
    place.hub.fail("GET /api/models/o/n/revision", status(429, &[("RateLimit", "\"api\";r=0;t=0")]), 1);
    place.hub.fail("/tree/", status(500, &[]), 2);
    place.hub.fail("HEAD /o/n/resolve", status(503, &[("Retry-After", "0")]), 1);
    place.hub.fail("GET /o/n/resolve", Fault::Cut(3), 2);
    let began = std::time::Instant::now();
    let client = place.with(|settings| settings.retry.longest = Duration::from_secs(5));
    place.fetch(&client, "hf:o/n").unwrap();
    // t=0 and Retry-After: 0, and a second more for each.
    assert!(began.elapsed() >= Duration::from_secs(2));
    place.hub.fail("revision/main", status(500, &[("X-Request-Id", "r-1")]), 99);
    let error = place.model("hf:o/n").unwrap_err();
    assert!(error.what().contains("answered 500 (request r-1)"), "{error}");
}

#[test]
fn a_gated_repository_says_what_to_do() {
    let (place, ..) = with_model();
    place.hub.state().repos.get_mut("models/o/n").unwrap().gated = true;
    let error = place.model("hf:o/n").unwrap_err();
    let help = error.help_text().unwrap();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(help.contains(&format!("accept the licence at {}/o/n, then set HF_TOKEN", place.hub.url)), "{help}");
    let client = place.with(|settings| settings.hf_token = Token::new("mine"));
    let error = place.fetch(&client, "hf:o/n").unwrap_err();
    assert!(error.help_text().unwrap().contains("with the account whose token HF_TOKEN holds"));
}

#[test]
fn what_is_not_there_is_told_from_what_may_be_private() {
    let (place, ..) = with_model();
    let error = place.model("hf:o/nothing").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.what().contains("no such model") && error.help_text().unwrap().contains("private"), "{error}");
    let error = place.model("hf:o/n@nowhere").unwrap_err();
    assert!(error.what().contains("no revision \"nowhere\""), "{error}");
    let error = place.model("hf:o/n/nothing.gguf").unwrap_err();
    assert!(error.what().contains("no such file") && error.help_text().unwrap().contains("config.json"), "{error}");
    // Listed, and gone when it is asked for.
    place.hub.fail("HEAD /o/n/resolve", status(404, &[("X-Error-Code", "EntryNotFound")]), 1);
    assert!(place.model("hf:o/n").unwrap_err().what().contains("no such file"));
}

#[test]
fn a_listing_that_leads_out_of_its_folder_is_refused_whole() {
    for path in ["../../etc/x", "/etc/x", "config.json/x", "x -> /etc/passwd"] {
        let (place, ..) = with_model();
        place.hub.state().hostile_paths = vec![path.into()];
        let error = place.model("hf:o/n").unwrap_err();
        assert!(error.what().contains("nothing of it is fetched"), "{path}: {error}");
        assert!(!place.repo().join("snapshots").read_dir().is_ok_and(|mut d| d.next().is_some()), "{path}");
    }
}

#[test]
fn a_branch_that_moves_takes_along_what_is_the_same() {
    let (place, weights, first) = with_model();
    place.model("hf:o/n").unwrap();
    let config = b"{\"model_type\": \"qwen3\", \"changed\": true}";
    let second = place.hub.push(
        "models/o/n",
        "main",
        &[("config.json", config), ("model.safetensors", &weights), ("tokenizer.json", b"{}")],
    );
    place.hub.take_requests();
    let model = place.model("hf:o/n").unwrap();
    assert_eq!(model.state, second);
    assert_eq!(fs::read_to_string(place.repo().join("refs/main")).unwrap(), second);
    let bytes = place.hub.take_requests().into_iter().filter(|line| line.starts_with("GET /o/n/resolve")).count();
    assert_eq!(bytes, 1, "the weights are the same bytes");
    // The old state is there still, and can be asked for: by its commit, or as what `main` once was.
    assert_eq!(place.model(&format!("hf:o/n@{first}")).unwrap().state, first);
    let pinned = place.client().fetch(
        &HubId::parse("hf:o/n").unwrap(),
        RepoKind::Model,
        &Want::Model,
        Some(&first),
        &place.told,
    );
    assert_eq!(pinned.unwrap().state, first);
}

#[test]
fn offline_takes_the_cache_and_names_what_it_lacks() {
    let (place, _, commit) = with_model();
    let error = place.fetch(&place.offline(), "hf:o/n").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(
        error.what().contains("offline") && error.help_text().unwrap().contains("karat download hf:o/n"),
        "{error}"
    );
    place.model("hf:o/n").unwrap();
    place.hub.take_requests();
    assert_eq!(place.fetch(&place.offline(), "hf:o/n").unwrap().state, commit);
    fs::remove_file(place.repo().join("snapshots").join(&commit).join("tokenizer.json")).unwrap();
    let error = place.fetch(&place.offline(), "hf:o/n").unwrap_err();
    assert!(error.what().contains("the cache lacks tokenizer.json"), "{error}");
    assert_eq!(place.hub.take_requests(), Vec::<String>::new());
}

#[test]
fn a_cache_that_another_client_wrote_is_enough_offline_unless_a_part_is_missing() {
    let (place, _, commit) = with_model();
    place.model("hf:o/n").unwrap();
    // Another client keeps no record.
    fs::remove_dir_all(place.repo().join(".karat")).unwrap();
    assert_eq!(place.fetch(&place.offline(), "hf:o/n").unwrap().files.len(), 4);
    fs::remove_dir_all(place.repo().join(".karat")).unwrap();
    let index =
        br#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
    let folder = place.repo().join("snapshots").join(&commit);
    fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
    let error = place.fetch(&place.offline(), "hf:o/n").unwrap_err();
    assert!(error.what().contains("lacks model-00001-of-00002.safetensors"), "{error}");
}

#[test]
fn a_hub_that_is_gone_leaves_the_cache_and_says_so() {
    let (place, _, commit) = with_model();
    place.model("hf:o/n").unwrap();
    let gone = place.with(|settings| settings.hf_endpoint = "http://127.0.0.1:9".into());
    assert_eq!(place.fetch(&gone, "hf:o/n").unwrap().state, commit);
    assert!(
        place.told.notes().contains("cannot be reached; hf:o/n is taken from the cache as it was"),
        "{}",
        place.told.notes()
    );
    let error = place.fetch(&gone, "hf:o/other").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Failed);
    assert!(error.what().contains("127.0.0.1:9 cannot be reached"), "{error}");
}

#[test]
fn a_stalled_download_is_given_up_and_continued() {
    let (place, weights, _) = with_model();
    let sha256 = MockFile { bytes: weights.clone().into(), large: true }.sha256();
    place.hub.fail(&format!("GET /{sha256}"), Fault::Stall(Duration::from_secs(3)), 1);
    let began = std::time::Instant::now();
    let model = place.model("hf:o/n").unwrap();
    assert!(began.elapsed() < Duration::from_secs(3));
    assert_eq!(fs::read(model.local().join("model.safetensors")).unwrap(), weights);
}

#[test]
fn a_file_in_the_cache_that_was_changed_is_named_and_fetched_again() {
    let (place, weights, _) = with_model();
    let model = place.model("hf:o/n").unwrap();
    let blob = fs::canonicalize(model.local().join("model.safetensors")).unwrap();
    let mut bytes = weights.clone();
    bytes[7] ^= 1;
    fs::write(&blob, &bytes).unwrap();
    let model = place.model("hf:o/n").unwrap();
    assert!(place.told.notes().contains("model.safetensors in the cache is not what it should be"));
    assert_eq!(fs::read(model.local().join("model.safetensors")).unwrap(), weights);
}

#[test]
fn without_a_hash_nothing_gets_a_name() {
    let (place, ..) = with_model();
    place.hub.state().mute = true;
    let error = place.model("hf:o/n").unwrap_err();
    assert!(error.what().contains("does not say what the bytes of this file"), "{error}");
}

#[test]
fn two_clients_at_once_fetch_once() {
    let (place, weights, _) = with_model();
    place.hub.state().bytes_per_second = 1_000_000;
    let sha256 = MockFile { bytes: weights.clone().into(), large: true }.sha256();
    std::thread::scope(|scope| {
        let both: Vec<_> = (0..2).map(|_| scope.spawn(|| place.model("hf:o/n").unwrap())).collect();
        for one in both {
            assert_eq!(fs::read(one.join().unwrap().local().join("model.safetensors")).unwrap(), weights);
        }
    });
    let bytes = place.hub.take_requests().into_iter().filter(|line| *line == format!("GET /{sha256}")).count();
    assert_eq!(bytes, 1);
}

#[test]
fn odd_names_are_asked_for_and_stored_as_they_are() {
    let place = Place::new();
    let name = "data/a b#1 100%数.jsonl";
    place.hub.push("datasets/o/d", "main", &[(name, b"{}\n")]);
    let data = place.data("hf:o/d").unwrap();
    assert_eq!(data.splits.len(), 1);
    assert_eq!(fs::read_to_string(data.folder.join(name)).unwrap(), "{}\n");
}

#[test]
fn a_dataset_is_its_files_by_split_and_one_file_is_that_file() {
    let place = Place::new();
    let card = b"---\nlicense: cc-by-4.0\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n  - split: test\n    path: data/test.jsonl\n---\n";
    place.hub.push(
        "datasets/o/d",
        "main",
        &[
            ("README.md", card),
            ("data/test.jsonl", b"{}"),
            ("data/train-1.jsonl", b"{}"),
            ("data/train-0.jsonl", b"{}"),
            ("load.py", b""),
        ],
    );
    let data = place.data("hf:o/d").unwrap();
    let splits: Vec<(&str, &str)> =
        data.splits.iter().map(|(split, path)| (split.as_str(), path.file_name().unwrap().to_str().unwrap())).collect();
    assert_eq!(splits, [("test", "test.jsonl"), ("train", "train-0.jsonl"), ("train", "train-1.jsonl")]);
    assert_eq!(data.licence.as_deref(), Some("cc-by-4.0"));
    let one = place.data("hf:o/d/data/test.jsonl").unwrap();
    assert!(one.local().ends_with("data/test.jsonl") && one.local().is_file());
    // A dataset of one hub is no model of it.
    assert!(
        place.model("hf:o/d").unwrap_err().help_text().unwrap().contains("a dataset stands where data is expected")
    );
}

#[test]
fn what_no_disk_holds_is_not_begun() {
    let (place, ..) = with_model();
    place.hub.state().page = 0;
    let listing = r#"[{"type":"file","path":"config.json","size":2,"oid":"a"},
        {"type":"file","path":"model.safetensors","size":9000000000000000,"oid":"a"}]"#;
    place.hub.fail("/tree/", Fault::Status(200, Vec::new(), listing.into()), 1);
    let error = place.model("hf:o/n").unwrap_err();
    assert!(error.what().contains("are to come") && error.help_text().unwrap().contains("HF_HOME"), "{error}");
}

#[test]
fn a_pin_that_is_no_commit_is_refused_and_leads_nowhere() {
    let (place, ..) = with_model();
    let id = HubId::parse("hf:o/n").unwrap();
    let error = place.client().fetch(&id, RepoKind::Model, &Want::Model, Some("../../x"), &place.told).unwrap_err();
    assert!(error.kind() == ErrorKind::Usage && error.what().contains("no commit"), "{error}");
}

#[test]
fn a_hub_that_speaks_no_tls_cannot_be_reached() {
    let (place, ..) = with_model();
    // Speaks no TLS: the handshake fails at once, or when the answer is read.
    let client = place.with(|settings| settings.hf_endpoint = place.hub.url.replace("http:", "https:"));
    let error = place.fetch(&client, "hf:o/n").unwrap_err();
    assert!(error.kind() == ErrorKind::Failed && error.what().contains("cannot be reached"), "{error}");
}
