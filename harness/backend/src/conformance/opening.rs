//! Describing and opening.

use std::time::{Duration, Instant};

use super::{LONGEST, Suite, ensure, refused};
use crate::{Capability, Descriptor, OpenConfig};

pub(super) fn rules(suite: &mut Suite<'_>) {
    suite.rule("describing_is_cheap_and_always_the_same", |case| {
        let start = Instant::now();
        let (first, second) = (case.backend.describe(), case.backend.describe());
        ensure!(start.elapsed() < Duration::from_millis(500), "it took {:?}", start.elapsed());
        ensure!(first == second, "{first:?}, then {second:?}");
        Ok(())
    });
    suite.rule("the_descriptor_is_complete", |case| {
        let descriptor = case.backend.describe();
        let Descriptor { name, version, capabilities, devices, dtypes, .. } = &descriptor;
        let is_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        ensure!(is_name, "`{name}` is no name");
        ensure!(!version.is_empty() && !devices.is_empty() && !dtypes.is_empty(), "something is empty: {descriptor:?}");
        ensure!(!capabilities.is_empty(), "it can do nothing");
        let mut unique = capabilities.clone();
        unique.sort();
        unique.dedup();
        ensure!(unique.len() == capabilities.len(), "a capability is named twice: {capabilities:?}");
        Ok(())
    });
    suite.rule("a_missing_model_is_an_error_that_names_it", |case| {
        let missing = OpenConfig { model: "/no/such/folder/of-karat".into(), ..case.fixture.open.clone() };
        let error = refused("a model folder that does not exist", case.backend.open(&missing))?;
        ensure!(error.to_string().contains("of-karat"), "the error does not name the folder: {error}");
        Ok(())
    });
    suite.rule("an_unknown_device_is_an_error_that_names_it", |case| {
        let config = OpenConfig { device: "abacus:7".into(), ..case.fixture.open.clone() };
        let error = refused("the device `abacus:7`", case.backend.open(&config))?;
        ensure!(error.to_string().contains("abacus"), "the error does not name the device: {error}");
        Ok(())
    });
    suite.rule("an_unknown_option_is_an_error_that_names_it", |case| {
        let mut config = case.fixture.open.clone();
        config.options.insert("colour-of-the-weights".into(), true.into());
        let error = refused("the option `colour-of-the-weights`", case.backend.open(&config))?;
        ensure!(error.to_string().contains("colour-of-the-weights"), "the error does not name the option: {error}");
        Ok(())
    });
    suite.rule("a_session_says_what_it_is_and_offers_what_was_described", |case| {
        let mut session = case.open()?;
        let info = session.info();
        ensure!(!info.device.is_empty() && info.threads > 0, "{info:?}");
        ensure!(info.vocab_size >= 8 && info.max_positions >= LONGEST, "too small for these rules: {info:?}");
        let described = case.backend.describe().capabilities;
        let says = |wanted: &[Capability]| wanted.iter().any(|capability| described.contains(capability));
        let evaluates = says(&[Capability::Score, Capability::Generate]);
        ensure!(session.evaluator().is_some() == evaluates, "an evaluator was described: {evaluates}");
        let trains = says(&[Capability::TrainFull, Capability::TrainLora]);
        ensure!(session.trainer().is_some() == trains, "a trainer was described: {trains}");
        Ok(())
    });
}
