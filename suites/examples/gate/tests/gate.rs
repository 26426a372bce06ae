//! The committed reports of the suites, held against their baselines: `medical-r1` against a saved
//! one, the suite of five models against a report.

fn main() -> std::process::ExitCode {
    karat::gate::test(&[
        karat::gate::Gated::new("../../../reports/medical-r1"),
        karat::gate::Gated::new("../../../reports/medical-r1-models")
            .baseline("../../../reports/medical-r1-models/report.json"),
    ])
}
