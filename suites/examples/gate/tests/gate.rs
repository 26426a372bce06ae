//! The committed report of the suite `medical-r1`, held against its baseline.

fn main() -> std::process::ExitCode {
    karat::gate::test(&[karat::gate::Gated::new("../../../reports/medical-r1")])
}
