//! A certificate of determinism goes with the report whose backend it is of.

use std::path::Path;

use super::model::Report;
use crate::error::{Error, Result};
use crate::eval::determinism::Certificate;
use crate::fsio;

impl Report {
    /// Puts the certificate in `path` (`karat --json doctor --determinism`) into the report's
    /// environment, from where its pages show it and a gate takes what it may not conclude.
    ///
    /// # Errors
    /// A file that is no certificate; one of a backend, or a version of it, that no model of this
    /// report ran on.
    pub fn attach_certificate(&mut self, path: &Path) -> Result<()> {
        let certificate: Certificate = fsio::read_json(path)
            .map_err(|e| e.help("give the output of karat --json doctor --determinism --model DIR"))?;
        let ran: Vec<String> = self.environment.plugins.iter().map(|p| format!("{} {}", p.name, p.version)).collect();
        if !ran.contains(&certificate.backend) {
            let ran = if ran.is_empty() { "an unknown backend".to_string() } else { ran.join(" and ") };
            return Err(Error::usage(format!("the certificate is of {}, the report of {ran}", certificate.backend))
                .at(path.display())
                .help("certify the report's backend: karat --json doctor --determinism --model DIR --backend NAME"));
        }
        self.environment.determinism = Some(certificate);
        Ok(())
    }
}
