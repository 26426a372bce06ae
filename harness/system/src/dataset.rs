//! Data sets as hubs keep them: the splits that names of files say, and the card, which is the YAML
//! head of a `README.md`: its licence, and which of its files are which split.

use crate::{Error, Result};
use yaml_rust2::parser::{Event, EventReceiver, Parser};
use yaml_rust2::{Yaml, YamlLoader};

/// The longest head that is read, in bytes.
const LONGEST: usize = 1 << 20;

/// A part of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// What is trained on.
    Train,
    /// What gives the loss during training.
    Validation,
    /// What is held out.
    Test,
}

impl Part {
    /// The name, as the hub has it.
    pub fn name(self) -> &'static str {
        match self {
            Part::Train => "train",
            Part::Validation => "validation",
            Part::Test => "test",
        }
    }

    /// The part that a word names: the keywords of the package `datasets` (`data_files.py`).
    pub fn of_word(word: &str) -> Option<Part> {
        match word.to_ascii_lowercase().as_str() {
            "train" | "training" => Some(Part::Train),
            "validation" | "valid" | "val" | "dev" => Some(Part::Validation),
            "test" | "testing" | "eval" | "evaluation" => Some(Part::Test),
            _ => None,
        }
    }

    /// The part that the first such word of a name says; words are of letters.
    pub fn of_name(name: &str) -> Option<Part> {
        name.split(|c: char| !c.is_alphabetic()).find_map(Part::of_word)
    }

    /// The part that a path says, the file's own name before those of the folders above it.
    pub fn of_path(path: &str) -> Option<Part> {
        path.rsplit('/').find_map(Part::of_name)
    }
}

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

    /// The configuration that is meant where nobody names one: the only one, or the default.
    ///
    /// # Errors
    /// Usage, if there are several and none is the default.
    pub fn config(&self) -> Result<Option<&DataConfig>> {
        match &self.configs[..] {
            [] => Ok(None),
            [only] => Ok(Some(only)),
            several => several.iter().find(|config| config.is_default).map(Some).ok_or_else(|| {
                let names: Vec<&str> = several.iter().map(|config| config.name.as_str()).collect();
                Error::usage(format!("the dataset has several configurations, {}", shortened(&names)))
            }),
        }
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

/// The first few of some names.
pub fn shortened(names: &[&str]) -> String {
    match names.len() {
        n if n <= 8 => names.join(", "),
        n => format!("{} and {} more", names[..7].join(", "), n - 7),
    }
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
    fn the_part_is_a_word_of_the_name_or_of_a_folder() {
        for (name, expected) in [
            ("train.jsonl", Some("train")),
            ("data/train-00000-of-00002.parquet", Some("train")),
            ("my_dev.csv", Some("validation")),
            ("test/part1.jsonl", Some("test")),
            ("train/test.jsonl", Some("test")),
            ("val2.jsonl.gz", Some("validation")),
            ("2test1b.csv", Some("test")),
            ("数据_train.csv", Some("train")),
            ("数据train.csv", None),
            ("trainer.jsonl", None),
            ("contest.jsonl", None),
            ("latest.jsonl", None),
        ] {
            assert_eq!(Part::of_path(name).map(Part::name), expected, "{name}");
        }
    }

    #[test]
    fn the_configuration_that_is_meant_is_the_only_or_the_default_one() {
        let named = |more: &str| {
            let text = format!(
                "---\nconfigs:\n- config_name: a\n  data_files: a.csv\n- config_name: b\n  data_files: b.csv\n{more}---\n"
            );
            Card::parse(&text).unwrap().config().map(|config| config.unwrap().name.clone())
        };
        assert_eq!(named("  default: true\n").unwrap(), "b");
        let error = named("").unwrap_err();
        assert!(error.what().ends_with("several configurations, a, b"), "{error}");
        assert_eq!(Card::parse("# no head\n").unwrap().config().unwrap(), None);
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
