//! A download that is killed at any moment leaves nothing half-named, and the next one fetches the
//! rest alone.
#![allow(clippy::unwrap_used)]

mod mock;
mod place;

use std::process::{Command, Stdio};
use std::time::Duration;

use karat_hub::{Client, HubId, RepoKind, Retry, Settings, Silent, Want};
use mock::{MockFile, MockHub, noise};
use place::all_files;

/// The bytes of the file.
const LENGTH: usize = 64 << 20;
const KILLS: usize = 50;

/// The process that is killed: this test, run again with the cache and the hub in its environment.
#[test]
fn child() {
    if std::env::var_os("KARAT_KILL_CHILD").is_none() {
        return;
    }
    let mut settings = Settings::from_env();
    settings.retry = Retry { attempts: 2, ..Retry::default() };
    let id = HubId::parse("hf:o/n").unwrap();
    Client::new(settings).fetch(&id, RepoKind::Model, &Want::Model, None, &Silent).unwrap();
}

#[test]
fn a_kill_at_any_moment_leaves_what_came_and_no_name_for_it() {
    let hub = MockHub::start();
    let weights = noise(LENGTH, 4);
    hub.push("models/o/n", "main", &[("config.json", b"{}"), ("model.safetensors", &weights)]);
    let file = MockFile { bytes: weights.into(), large: true };
    let sha256 = file.sha256();
    let folder = tempfile::tempdir().unwrap();
    let repo = folder.path().join("models--o--n");
    let run = || {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "child"]).env("KARAT_KILL_CHILD", "1").env("HF_ENDPOINT", &hub.url);
        command.env("HF_HUB_CACHE", folder.path()).env_remove("HF_HUB_OFFLINE").env_remove("TRANSFORMERS_OFFLINE");
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    hub.state().bytes_per_second = LENGTH / 4;
    let partial = repo.join("blobs").join(format!("{sha256}.karat.incomplete"));
    let length = || std::fs::metadata(&partial).map_or(0, |metadata| metadata.len());
    let (mut kills, mut most, mut state) = (0, 0, 12345u64);
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for number in 0..KILLS {
        let mut child = run();
        // One in five at any time, the others when some of it came: in all nearly the whole file.
        let (time, bytes) = match number % 5 {
            0 => (random(200), u64::MAX),
            _ => (20_000, most + random(LENGTH as u64 / 24)),
        };
        let began = std::time::Instant::now();
        let mut done = false;
        while began.elapsed() < Duration::from_millis(time) && length() < bytes && !done {
            done = child.try_wait().unwrap().is_some();
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += usize::from(!done);
        let blob = repo.join("blobs").join(&sha256);
        let named = |path: &str| path.starts_with("snapshots/");
        for path in all_files(&repo).into_iter().filter(|path| named(path)) {
            let bytes = std::fs::read(repo.join(&path)).unwrap();
            let right = if path.ends_with("config.json") { bytes == b"{}" } else { bytes == *file.bytes };
            assert!(right, "{path} is a name of bytes that are not the file");
        }
        if blob.exists() {
            assert_eq!(std::fs::read(&blob).unwrap(), *file.bytes);
        }
        if let Ok(metadata) = std::fs::metadata(&partial) {
            assert!(metadata.len() >= most, "what came was thrown away");
            most = metadata.len();
        }
    }
    hub.state().bytes_per_second = 0;
    hub.take_requests();
    let whole = repo.join("blobs").join(&sha256).exists();
    assert!(run().wait().unwrap().success());
    let requests = hub.take_whole_requests();
    let asked: Vec<_> = requests.iter().filter(|r| r.path() == format!("/{sha256}")).collect();
    match whole {
        true => assert!(asked.is_empty()),
        false => {
            let range = (most > 0).then(|| format!("bytes={most}-"));
            assert_eq!(asked.len(), 1);
            assert_eq!(asked[0].header("range"), range.as_deref());
        }
    }
    let link = repo.join("snapshots").read_dir().unwrap().next().unwrap().unwrap().path().join("model.safetensors");
    assert_eq!(std::fs::read(link).unwrap(), *file.bytes);
    eprintln!("{kills} of {KILLS} kills met a download at work; the last part began at byte {most} of {LENGTH}");
    assert!(kills > KILLS / 2 && most > LENGTH as u64 / 4);
}
