//! A trainer as transformers' is seen from outside: it writes checkpoints into `out`.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value, json};

/// In which files a checkpoint lies, and in which order they come.
#[derive(Clone, Copy)]
pub enum Layout {
    /// `model.safetensors`.
    OneFile,
    /// Two shards, then their index, as transformers writes them; without a tokenizer.
    Sharded,
    /// The index comes before the shards.
    IndexFirst,
    /// The second shard lacks its end, for the trainer was killed.
    CutShort,
}

/// What stands in it.
#[derive(Clone, Copy)]
pub enum Weights {
    /// Other bytes for every number, and the quality of the base: what a token says that is never
    /// asked is a little different.
    Like(u8),
    /// Every token is as probable as any other.
    Broken,
    /// Nothing that has a meaning.
    Garbage,
}

/// Writes checkpoints of the model in `base`.
pub struct Trainer {
    root: PathBuf,
    pause: Duration,
}

type Tensor = (String, Value, Vec<u8>);

impl Trainer {
    pub fn new(root: &Path) -> Trainer {
        Trainer::slow(root, Duration::ZERO)
    }

    /// It rests for `pause` in the middle of every file and after it.
    pub fn slow(root: &Path, pause: Duration) -> Trainer {
        fs::create_dir_all(root.join("out")).unwrap();
        Trainer { root: root.into(), pause }
    }

    /// Writes `out/name`; with an empty name the final model, in `out` itself.
    pub fn save(&self, name: &str, layout: Layout, weights: Weights) {
        let folder = self.root.join("out").join(name);
        fs::create_dir_all(&folder).unwrap();
        for file in ["config.json", "generation_config.json"] {
            self.put(&folder, file, &fs::read(self.root.join("base").join(file)).unwrap());
        }
        let tensors = self.tensors(weights);
        let (first, second) = tensors.split_at(tensors.len() / 2);
        let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
        let in_shard = |tensors: &[Tensor], shard: &str| -> Vec<(String, Value)> {
            tensors.iter().map(|(name, ..)| (name.clone(), shard.into())).collect()
        };
        let map: Map<String, Value> =
            [in_shard(first, shards[0]), in_shard(second, shards[1])].concat().into_iter().collect();
        let index = json!({"metadata": {}, "weight_map": map}).to_string();
        match (layout, weights) {
            (Layout::OneFile, Weights::Garbage) => self.put(&folder, "model.safetensors", &[7; 4096]),
            (Layout::OneFile, _) => {
                self.put(&folder, "model.safetensors", &file(&tensors));
                for file in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
                    self.put(&folder, file, &fs::read(self.root.join("base").join(file)).unwrap());
                }
            }
            (Layout::Sharded | Layout::CutShort, _) => {
                self.put(&folder, shards[0], &file(first));
                let whole = file(second);
                let written = if matches!(layout, Layout::CutShort) { whole.len() - 5 } else { whole.len() };
                self.put(&folder, shards[1], &whole[..written]);
                self.put(&folder, "model.safetensors.index.json", index.as_bytes());
            }
            (Layout::IndexFirst, _) => {
                self.put(&folder, "model.safetensors.index.json", index.as_bytes());
                self.put(&folder, shards[1], &file(second));
                self.put(&folder, shards[0], &file(first));
            }
        }
        self.put(&folder, "optimizer.pt", &[1; 1000]);
        self.put(&folder, "trainer_state.json", b"{\"global_step\": 1000}");
    }

    fn put(&self, folder: &Path, name: &str, bytes: &[u8]) {
        let mut file = fs::File::create(folder.join(name)).unwrap();
        let (first, second) = bytes.split_at(bytes.len() / 2);
        file.write_all(first).unwrap();
        file.flush().unwrap();
        std::thread::sleep(self.pause);
        file.write_all(second).unwrap();
        std::thread::sleep(self.pause);
    }

    /// The base's tensors, as `weights` says.
    fn tensors(&self, weights: Weights) -> Vec<Tensor> {
        let bytes = fs::read(self.root.join("base/model.safetensors")).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: Map<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        let tensor = |(name, info): (&String, &Value)| {
            let at = |i: usize| 8 + length + info["data_offsets"][i].as_u64().unwrap() as usize;
            let mut data = bytes[at(0)..at(1)].to_vec();
            match (weights, name.as_str()) {
                (Weights::Like(number), "model.embed_tokens.weight") => {
                    let last = data.len() - 2;
                    data[last] ^= number;
                }
                (Weights::Broken, "model.norm.weight") => data.fill(0),
                _ => {}
            }
            (name.clone(), info.clone(), data)
        };
        header.iter().filter(|(name, _)| *name != "__metadata__").map(tensor).collect()
    }
}

/// A safetensors file of `tensors`.
fn file(tensors: &[Tensor]) -> Vec<u8> {
    let (mut header, mut end) = (Map::new(), 0);
    for (name, info, data) in tensors {
        let mut info = info.clone();
        info["data_offsets"] = json!([end, end + data.len()]);
        end += data.len();
        header.insert(name.clone(), info);
    }
    let header = Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    tensors.iter().for_each(|(.., data)| bytes.extend(data));
    bytes
}
