//! Exporting, and exchanging adapters: as far as they were described, and refused where they were
//! not.

use std::path::Path;

use super::{Stopper, Suite, Verdict, ensure, ignore};
use crate::{BackendErrorKind, Capability, ExportConfig};

pub(super) fn rules(suite: &mut Suite<'_>, capabilities: &[Capability]) {
    if !capabilities.contains(&Capability::ExchangeAdapter) {
        suite.rule("an_adapter_that_cannot_be_exchanged_is_refused", |case| {
            let error = case.open()?.set_adapter(None).err().ok_or("it was accepted")?;
            ensure!(error.kind == BackendErrorKind::Unsupported, "it ended as {:?}: {error}", error.kind);
            Ok(())
        });
    }
    if !capabilities.contains(&Capability::Export) {
        suite.rule("an_export_that_was_not_described_is_refused", |case| {
            let config = ExportConfig::new(&case.fixture.open.model, "/no/such/folder/of-karat/out");
            let error = case.backend.export(&config, &mut ignore).err().ok_or("it was accepted")?;
            ensure!(error.kind == BackendErrorKind::Unsupported, "it ended as {:?}: {error}", error.kind);
            Ok(())
        });
        return;
    }
    suite.rule("an_export_is_what_its_summary_says_and_is_reused", |case| {
        let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
        let out = folder.path().join("out");
        let config = ExportConfig::new(&case.fixture.open.model, &out);
        let export = || case.backend.export(&config, &mut ignore).map_err(|e| e.to_string());
        let first = export()?;
        ensure!(!first.reused && !first.files.is_empty() && first.parameters > 0, "{first:?}");
        for (name, bytes) in &first.files {
            let length = std::fs::metadata(out.join(name)).map_err(|e| format!("{name}: {e}"))?.len();
            ensure!(length == *bytes, "{name} has {length} bytes, the summary says {bytes}");
        }
        let second = export()?;
        ensure!(second.reused && second.files == first.files, "the second time: {second:?}");
        Ok(())
    });
    suite.rule("a_stopped_export_leaves_nothing", |case| {
        let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
        let config = ExportConfig::new(&case.fixture.open.model, folder.path().join("out"));
        let mut stopper = Stopper::default();
        let result = case.backend.export(&config, &mut |event| stopper.hear(event));
        stopper.verdict(result)?;
        empty(folder.path())
    });
    suite.rule("an_export_of_no_model_or_in_no_element_type_is_an_error_and_leaves_nothing", |case| {
        let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
        let good = ExportConfig::new(&case.fixture.open.model, folder.path().join("out"));
        let no_model = ExportConfig { model: "/no/such/folder/of-karat".into(), ..good.clone() };
        let no_type = ExportConfig { weights: "abacus".into(), ..good };
        for (config, word) in [(no_model, "of-karat"), (no_type, "abacus")] {
            let error = case.backend.export(&config, &mut ignore).err().ok_or("it was accepted")?;
            ensure!(error.to_string().contains(word), "the error does not name {word}: {error}");
        }
        empty(folder.path())
    });
}

fn empty(folder: &Path) -> Verdict {
    let left = std::fs::read_dir(folder).map_err(|e| e.to_string())?.count();
    ensure!(left == 0, "{left} entries are left in the folder");
    Ok(())
}
