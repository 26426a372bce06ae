//! JUnit XML as CI servers read it.
//!
//! Nobody owns the format; what is written here is valid by both schemas in use, the strict one of
//! Ant's reports and the one of Jenkins' xUnit plugin: every attribute that either requires, in the
//! order that either prescribes. `timestamp` and `time` are required but say nothing of an
//! evaluation: they are the epoch and 0, so that the same verdicts are the same bytes.

pub mod comparisons;

use std::fmt::Write;

use super::escape::escaped;

/// One `testsuite`.
#[derive(Clone, Debug, PartialEq)]
pub struct TestSuite {
    /// Its name.
    pub name: String,
    /// Facts about it.
    pub properties: Vec<(String, String)>,
    /// Its cases, in order.
    pub cases: Vec<TestCase>,
}

/// One `testcase`.
#[derive(Clone, Debug, PartialEq)]
pub struct TestCase {
    /// What is tested: `suite.model`.
    pub class: String,
    /// Its name within the class: the metric.
    pub name: String,
    /// How it went.
    pub outcome: TestOutcome,
}

/// How a case went; the text has the numbers.
#[derive(Clone, Debug, PartialEq)]
pub enum TestOutcome {
    /// Well.
    Pass,
    /// `failure`: what is tested does not hold. Kind and text.
    Failure(String, String),
    /// `error`: whether it holds could not be decided. Kind and text.
    Error(String, String),
    /// `skipped`: there was nothing to decide.
    Skipped(String),
}

/// The XML document of one suite.
pub fn render(suite: &TestSuite) -> String {
    let count = |of: fn(&TestOutcome) -> bool| suite.cases.iter().filter(|c| of(&c.outcome)).count();
    let mut xml = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n");
    let _ = writeln!(
        xml,
        "  <testsuite name=\"{}\" package=\"karat\" id=\"0\" hostname=\"localhost\" timestamp=\"1970-01-01T00:00:00\" \
         tests=\"{}\" failures=\"{}\" errors=\"{}\" skipped=\"{}\" time=\"0\">",
        attribute(&suite.name),
        suite.cases.len(),
        count(|o| matches!(o, TestOutcome::Failure(..))),
        count(|o| matches!(o, TestOutcome::Error(..))),
        count(|o| matches!(o, TestOutcome::Skipped(..))),
    );
    xml.push_str("    <properties>\n");
    for (name, value) in &suite.properties {
        let _ = writeln!(xml, "      <property name=\"{}\" value=\"{}\"/>", attribute(name), attribute(value));
    }
    xml.push_str("    </properties>\n");
    for case in &suite.cases {
        let _ = write!(
            xml,
            "    <testcase classname=\"{}\" name=\"{}\" time=\"0\"",
            attribute(&case.class),
            attribute(&case.name)
        );
        let _ = match &case.outcome {
            TestOutcome::Pass => writeln!(xml, "/>"),
            TestOutcome::Skipped(text) => {
                writeln!(xml, ">\n      <skipped message=\"{}\"/>\n    </testcase>", attribute(text))
            }
            TestOutcome::Failure(kind, text) => problem(&mut xml, "failure", kind, text),
            TestOutcome::Error(kind, text) => problem(&mut xml, "error", kind, text),
        };
    }
    xml.push_str("    <system-out></system-out>\n    <system-err></system-err>\n  </testsuite>\n</testsuites>\n");
    xml
}

fn problem(xml: &mut String, element: &str, kind: &str, text: &str) -> std::fmt::Result {
    let first = text.lines().next().unwrap_or_default();
    writeln!(
        xml,
        ">\n      <{element} type=\"{}\" message=\"{}\">{}</{element}>\n    </testcase>",
        attribute(kind),
        attribute(first),
        body(text)
    )
}

/// Text of an element. What XML 1.0 cannot hold at all is made visible: control characters by
/// `escaped`, and the two noncharacters.
fn body(text: &str) -> String {
    escaped(text).replace(['\u{fffe}', '\u{ffff}'], "\u{fffd}")
}

/// Text of an attribute: one line, as the schemas' tokens are.
fn attribute(text: &str) -> String {
    let line = body(text).split_whitespace().collect::<Vec<_>>().join(" ");
    if line.is_empty() { "-".to_string() } else { line }
}
