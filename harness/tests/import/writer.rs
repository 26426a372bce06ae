//! Writes GGUF files for tests: whole ones, and ones that are wrong in one place.
#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses its part")]

/// A metadata value.
#[derive(Clone, Debug)]
pub enum Meta {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    I32s(Vec<i32>),
    /// Type number and bytes as they are.
    Raw(u32, Vec<u8>),
}

impl From<u32> for Meta {
    fn from(n: u32) -> Self {
        Meta::U32(n)
    }
}
impl From<f32> for Meta {
    fn from(x: f32) -> Self {
        Meta::F32(x)
    }
}
impl From<&str> for Meta {
    fn from(text: &str) -> Self {
        Meta::Text(text.into())
    }
}
impl From<bool> for Meta {
    fn from(flag: bool) -> Self {
        Meta::Bool(flag)
    }
}

/// A tensor: name, shape (row-major), type number, bytes.
#[derive(Clone, Debug)]
pub struct Stored {
    pub name: String,
    pub shape: Vec<u64>,
    pub kind: u32,
    pub bytes: Vec<u8>,
    /// Said in place of where it is.
    pub offset: Option<u64>,
}

/// A file to be.
#[derive(Clone, Debug)]
pub struct File {
    pub magic: [u8; 4],
    pub version: u32,
    pub metadata: Vec<(String, Meta)>,
    pub tensors: Vec<Stored>,
    /// Said in place of how many there are.
    pub tensor_count: Option<u64>,
    pub pair_count: Option<u64>,
}

impl Default for File {
    fn default() -> Self {
        File {
            magic: *b"GGUF",
            version: 3,
            metadata: Vec::new(),
            tensors: Vec::new(),
            tensor_count: None,
            pair_count: None,
        }
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl File {
    /// Sets a key, in place of what it was.
    pub fn set(&mut self, key: &str, value: impl Into<Meta>) -> &mut Self {
        self.metadata.retain(|(k, _)| k != key);
        self.metadata.push((key.into(), value.into()));
        self
    }

    pub fn remove(&mut self, key: &str) -> &mut Self {
        self.metadata.retain(|(k, _)| k != key);
        self
    }

    pub fn tensor(&mut self, name: &str, shape: &[u64], kind: u32, bytes: Vec<u8>) -> &mut Self {
        self.tensors.push(Stored { name: name.into(), shape: shape.into(), kind, bytes, offset: None });
        self
    }

    /// Adds a tensor of f32.
    pub fn floats(&mut self, name: &str, shape: &[u64], values: &[f32]) -> &mut Self {
        assert_eq!(values.len() as u64, shape.iter().product::<u64>());
        self.tensor(name, shape, 0, values.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(self.magic);
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        out.extend(self.pair_count.unwrap_or(self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            text(&mut out, key);
            let number = |out: &mut Vec<u8>, n: u32| out.extend(n.to_le_bytes());
            match value {
                Meta::U32(n) => {
                    number(&mut out, 4);
                    out.extend(n.to_le_bytes());
                }
                Meta::F32(x) => {
                    number(&mut out, 6);
                    out.extend(x.to_le_bytes());
                }
                Meta::Bool(flag) => {
                    number(&mut out, 7);
                    out.push(u8::from(*flag));
                }
                Meta::Text(value) => {
                    number(&mut out, 8);
                    text(&mut out, value);
                }
                Meta::Texts(values) => {
                    number(&mut out, 9);
                    number(&mut out, 8);
                    out.extend((values.len() as u64).to_le_bytes());
                    values.iter().for_each(|value| text(&mut out, value));
                }
                Meta::I32s(values) => {
                    number(&mut out, 9);
                    number(&mut out, 5);
                    out.extend((values.len() as u64).to_le_bytes());
                    values.iter().for_each(|value| out.extend(value.to_le_bytes()));
                }
                Meta::Raw(kind, bytes) => {
                    number(&mut out, *kind);
                    out.extend(bytes);
                }
            }
        }
        let mut data = Vec::new();
        for tensor in &self.tensors {
            text(&mut out, &tensor.name);
            out.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().rev().for_each(|d| out.extend(d.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend(tensor.offset.unwrap_or(data.len() as u64).to_le_bytes());
            data.extend(&tensor.bytes);
            data.resize(data.len().next_multiple_of(32), 0);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(data);
        out
    }
}

/// Numbers that differ everywhere and are no powers of two.
pub fn numbers(count: u64, seed: u32) -> Vec<f32> {
    let mut state = seed;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 8) as f32 / (1 << 24) as f32 - 0.5) * 0.4
        })
        .collect()
}

/// A whole small model of a family, f32 throughout, `tokens` as its vocabulary.
pub fn model(family: &str, tied: bool, tokens: &[String], merges: &[String], specials: usize) -> File {
    let (hidden, heads, kv_heads, dim, wide, layers) = (32u64, 4u64, 2u64, 8u64, 48u64, 2u64);
    let vocab = tokens.len() as u64;
    let mut file = File::default();
    file.set("general.architecture", family).set("general.name", "small");
    for (key, value) in [
        ("block_count", layers),
        ("context_length", 64),
        ("embedding_length", hidden),
        ("feed_forward_length", wide),
        ("attention.head_count", heads),
        ("attention.head_count_kv", kv_heads),
        ("attention.key_length", dim),
        ("attention.value_length", dim),
    ] {
        file.set(&format!("{family}.{key}"), value as u32);
    }
    file.set(&format!("{family}.rope.freq_base"), 500_000f32);
    file.set(&format!("{family}.attention.layer_norm_rms_epsilon"), 1e-6f32);
    file.set("tokenizer.ggml.model", "gpt2").set("tokenizer.ggml.pre", "qwen2");
    file.set("tokenizer.ggml.tokens", Meta::Texts(tokens.to_vec()));
    file.set("tokenizer.ggml.merges", Meta::Texts(merges.to_vec()));
    let kinds = (0..tokens.len()).map(|i| if i < specials { 3 } else { 1 }).collect();
    file.set("tokenizer.ggml.token_type", Meta::I32s(kinds));
    file.set("tokenizer.ggml.bos_token_id", 1u32).set("tokenizer.ggml.eos_token_id", 2u32);
    let mut seed = 0;
    let mut add = |name: String, shape: &[u64]| {
        seed += 1;
        let mut values = numbers(shape.iter().product(), seed);
        if name.contains("norm") {
            values.iter_mut().for_each(|x| *x += 1.0);
        }
        file.floats(&name, shape, &values);
    };
    add("token_embd.weight".into(), &[vocab, hidden]);
    for layer in 0..layers {
        let mut add = |name: &str, shape: &[u64]| add(format!("blk.{layer}.{name}"), shape);
        add("attn_norm.weight", &[hidden]);
        for (name, rows) in [("attn_q", heads * dim), ("attn_k", kv_heads * dim), ("attn_v", kv_heads * dim)] {
            add(&format!("{name}.weight"), &[rows, hidden]);
            if family == "qwen2" {
                add(&format!("{name}.bias"), &[rows]);
            }
        }
        add("attn_output.weight", &[hidden, heads * dim]);
        if family == "qwen3" {
            add("attn_q_norm.weight", &[dim]);
            add("attn_k_norm.weight", &[dim]);
        }
        add("ffn_norm.weight", &[hidden]);
        add("ffn_gate.weight", &[wide, hidden]);
        add("ffn_up.weight", &[wide, hidden]);
        add("ffn_down.weight", &[hidden, wide]);
    }
    add("output_norm.weight".into(), &[hidden]);
    if !tied {
        add("output.weight".into(), &[vocab, hidden]);
    }
    file
}
