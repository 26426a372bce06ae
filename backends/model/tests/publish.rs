//! Model folders as they are written: whole, and read back as they were.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::path::Path;

use karat_backend::BackendError;
use karat_model::checkpoint::{CheckpointLayout, WEIGHTS};
use karat_model::publish::{Put, Shapes, publish_folder, write_json, write_tensors};

#[test]
fn tensors_put_in_pieces_are_read_as_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(WEIGHTS);
    let shapes: Shapes = [("b".to_owned(), vec![2, 3]), ("a".to_owned(), vec![4]), ("c".to_owned(), vec![0])].into();
    let elements = |name: &str| -> Vec<f32> { (0..6).map(|i| i as f32 + name.len() as f32 / 4.0).collect() };
    let read = |name: &str, put: &mut Put<'_>| match name {
        "a" => put(&elements(name)[..4]),
        "b" => elements(name).chunks(4).try_for_each(put),
        _ => put(&[]),
    };
    write_tensors(&path, &shapes, &read).unwrap();
    let layout = CheckpointLayout::of_file(&path).unwrap();
    assert_eq!(layout.read("a", &[4]).unwrap(), elements("a")[..4]);
    assert_eq!(layout.read("b", &[2, 3]).unwrap(), elements("b"));
    assert!(layout.read("c", &[0]).unwrap().is_empty());
    for (count, said) in [(1, "a has 4 elements, and 1 were"), (9, "a has 4 elements, and 9 were")] {
        let wrong = |_: &str, put: &mut Put<'_>| put(&vec![1.0; count]);
        let error = write_tensors(&path, &shapes, &wrong).unwrap_err();
        assert!(error.message.contains(said), "{error}");
    }
}

#[test]
fn a_folder_that_cannot_be_filled_leaves_what_was_there() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("model");
    publish_folder(&folder, "merge", |inside| write_json(&inside.join("a.json"), &1)).unwrap();
    let broken = publish_folder(&folder, "merge", |inside| {
        write_json(&inside.join("b.json"), &2)?;
        Err(BackendError::failed("no more"))
    });
    assert_eq!(broken.unwrap_err().message, "no more");
    let names = |folder: &Path| -> Vec<_> {
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    };
    assert_eq!((names(&folder), names(place.path())), (vec!["a.json".into()], vec!["model".into()]));
}
