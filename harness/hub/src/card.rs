//! The YAML head of a repository's `README.md`: its licence, and which of its files are which
//! split.

use karat_system::{Error, Result};
use yaml_rust2::parser::{Event, EventReceiver, Parser};
use yaml_rust2::{Yaml, YamlLoader};

/// The longest head that is read, in bytes.
const LONGEST: usize = 1 << 20;

/// The head of a card, as far as it concerns us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Card {
    /// The licence, by the name that the hub has for it.
    pub licence: Option<String>,
    /// Configurations of a dataset.
    pub configs: Vec<DataConfig>,
}

/// A configuration of a dataset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataConfig {
    /// Its name.
    pub name: String,
    /// Whether the card calls it the default.
    pub is_default: bool,
    /// Patterns of paths, with their splits, in order.
    pub files: Vec<(String, String)>,
}

impl Card {
    /// Reads the head of a card; a card without one says nothing.
    ///
    /// # Errors
    /// Data, for a head that is no YAML, is longer than a megabyte or has aliases, which can make a
    /// short text fill a memory.
    pub fn parse(text: &str) -> Result<Card> {
        let Some(head) = head_of(text) else { return Ok(Card::default()) };
        let refused = |what: &str| Error::data(format!("the card of the repository {what}")).at("README.md");
        if head.len() > LONGEST {
            return Err(refused("has a head of more than a megabyte"));
        }
        let mut aliases = Aliases(0);
        let broken = |e| refused("has a head that is no YAML").because(e);
        Parser::new_from_str(head).load(&mut aliases, true).map_err(broken)?;
        if aliases.0 > 0 {
            return Err(refused("has aliases in its head, which are not read"));
        }
        let documents = YamlLoader::load_from_str(head).map_err(broken)?;
        let Some(card) = documents.first() else { return Ok(Card::default()) };
        let licence = texts(&card["license"]).join(", ");
        let named = texts(&card["license_name"]).join(", ");
        let licence = if named.is_empty() { licence } else { named };
        let configs = card["configs"].as_vec().map(Vec::as_slice).unwrap_or_default();
        Ok(Card {
            licence: Some(licence).filter(|licence| !licence.is_empty()),
            configs: configs.iter().filter_map(config).collect(),
        })
    }
}

/// What stands between two lines of three dashes at the start.
fn head_of(text: &str) -> Option<&str> {
    let text = text.trim_start_matches('\u{feff}');
    let rest = text.strip_prefix("---")?.trim_start_matches([' ', '\t', '\r']).strip_prefix('\n')?;
    let mut at = 0;
    for line in rest.split_inclusive('\n') {
        if line.trim_end() == "---" {
            return Some(&rest[..at]);
        }
        at += line.len();
    }
    None
}

/// Counts aliases.
struct Aliases(usize);

impl EventReceiver for Aliases {
    fn on_event(&mut self, event: Event) {
        self.0 += usize::from(matches!(event, Event::Alias(_)));
    }
}

/// A text or a list of them.
fn texts(value: &Yaml) -> Vec<String> {
    match value {
        Yaml::String(text) => vec![text.clone()],
        Yaml::Array(list) => list.iter().filter_map(|v| v.as_str()).map(str::to_string).collect(),
        _ => Vec::new(),
    }
}

fn config(value: &Yaml) -> Option<DataConfig> {
    let folder =
        value["data_dir"].as_str().map(|dir| dir.trim_matches('/')).filter(|dir| !dir.is_empty() && *dir != ".");
    let within = |pattern: String| {
        let pattern = pattern.trim_start_matches("./").to_string();
        folder.map_or(pattern.clone(), |folder| format!("{folder}/{pattern}"))
    };
    let mut files = Vec::new();
    match &value["data_files"] {
        Yaml::BadValue | Yaml::Null => files.extend(folder.map(|folder| ("train".to_string(), format!("{folder}/**")))),
        Yaml::Hash(splits) => {
            for (split, paths) in splits {
                let split = split.as_str().unwrap_or("train");
                files.extend(texts(paths).into_iter().map(|path| (split.to_string(), within(path))));
            }
        }
        Yaml::Array(list) => {
            for entry in list {
                let split = entry["split"].as_str().unwrap_or("train").to_string();
                let paths = if entry["path"].is_badvalue() { texts(entry) } else { texts(&entry["path"]) };
                files.extend(paths.into_iter().map(|path| (split.clone(), within(path))));
            }
        }
        other => files.extend(texts(other).into_iter().map(|path| ("train".to_string(), within(path)))),
    }
    let name = value["config_name"].as_str().unwrap_or("default").to_string();
    let is_default = value["default"].as_bool().unwrap_or(name == "default");
    (!files.is_empty()).then_some(DataConfig { name, is_default, files })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn files(data_files: &str) -> Vec<(String, String)> {
        let text = format!("---\nlicense: mit\nconfigs:\n- config_name: default\n  {data_files}\n---\n# Text\n");
        Card::parse(&text).unwrap().configs.remove(0).files
    }

    fn pairs(all: &[(&str, &str)]) -> Vec<(String, String)> {
        all.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect()
    }

    #[test]
    fn data_files_are_read_in_every_form_that_cards_have() {
        let listed =
            "data_files:\n  - split: train\n    path: data/train-*\n  - split: test\n    path: [a.csv, \"b/*.csv\"]";
        assert_eq!(files(listed), pairs(&[("train", "data/train-*"), ("test", "a.csv"), ("test", "b/*.csv")]));
        assert_eq!(files("data_files: \"*.jsonl\""), pairs(&[("train", "*.jsonl")]));
        assert_eq!(files("data_files: [x.csv, y.csv]"), pairs(&[("train", "x.csv"), ("train", "y.csv")]));
        assert_eq!(
            files("data_files:\n    train: x.csv\n    test: y.csv"),
            pairs(&[("train", "x.csv"), ("test", "y.csv")])
        );
        assert_eq!(files("data_dir: en/\n  data_files: x.csv"), pairs(&[("train", "en/x.csv")]));
        assert_eq!(files("data_dir: en"), pairs(&[("train", "en/**")]));
    }

    #[test]
    fn a_licence_is_a_name_or_several_and_a_card_may_have_no_head() {
        assert_eq!(Card::parse("---\nlicense: apache-2.0\n---\n").unwrap().licence.as_deref(), Some("apache-2.0"));
        let other = "\u{feff}---\r\nlicense: other\r\nlicense_name: qwen-research\r\n---\r\ntext";
        assert_eq!(Card::parse(other).unwrap().licence.as_deref(), Some("qwen-research"));
        assert_eq!(
            Card::parse("---\nlicense: [mit, cc0-1.0]\n---\n").unwrap().licence.as_deref(),
            Some("mit, cc0-1.0")
        );
        for text in ["# Title\n", "", "---\nno end\n"] {
            assert_eq!(Card::parse(text).unwrap(), Card::default());
        }
    }

    #[test]
    fn a_head_that_would_fill_a_memory_is_refused() {
        let bomb = "---\na: &a [x, x]\nb: &b [*a, *a]\nlicense: [*b]\n---\n";
        assert!(Card::parse(bomb).unwrap_err().what().contains("aliases"));
        assert!(Card::parse("---\nlicense: [\n---\n").is_err());
        assert!(Card::parse(&format!("---\nx: {}\n---\n", "y".repeat(2 << 20))).is_err());
    }
}
