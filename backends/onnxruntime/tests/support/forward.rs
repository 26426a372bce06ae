//! A second decoder to compare with: the formulas of the papers in f64, one position after the
//! other, nothing shared with the backend.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use serde_json::Value;

type Table = Vec<Vec<f64>>;
pub type Weights = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Log-probabilities of `ids[1..]` given their prefixes.
pub fn log_probabilities(config: &Value, weights: &Weights, ids: &[u32]) -> Vec<f64> {
    let size = |key: &str| config[key].as_u64().unwrap() as usize;
    let (hidden, heads, kv_heads, dim) =
        (size("hidden_size"), size("num_attention_heads"), size("num_key_value_heads"), size("head_dim"));
    let theta = config["rope_theta"].as_f64().unwrap();
    let get = |name: &str| weights.get(name).map(|(_, values)| values.as_slice());
    let linear = |module: &str, x: &[f64]| -> Vec<f64> {
        let weight = get(&format!("{module}.weight")).unwrap();
        let bias = get(&format!("{module}.bias"));
        let rows = weight.chunks_exact(x.len()).enumerate();
        rows.map(|(i, row)| {
            let product: f64 = row.iter().zip(x).map(|(&w, x)| f64::from(w) * x).sum();
            product + bias.map_or(0.0, |b| f64::from(b[i]))
        })
        .collect()
    };
    let norm = |name: &str, x: &[f64]| -> Vec<f64> {
        let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (mean + 1e-6).sqrt();
        x.iter().zip(get(name).unwrap()).map(|(v, &w)| v * scale * f64::from(w)).collect()
    };
    let rotate = |x: &mut [f64], position: usize| {
        for j in 0..dim / 2 {
            let angle = position as f64 * theta.powf(-((2 * j) as f64) / dim as f64);
            let (a, b) = (x[j], x[j + dim / 2]);
            x[j] = a * angle.cos() - b * angle.sin();
            x[j + dim / 2] = b * angle.cos() + a * angle.sin();
        }
    };
    let head = if config["tie_word_embeddings"] == true { "model.embed_tokens" } else { "lm_head" };
    // Keys and values of each layer, `[position][kv_heads * dim]`.
    let mut caches: Vec<(Table, Table)> = vec![Default::default(); size("num_hidden_layers")];
    let mut scored = Vec::new();
    for (position, &id) in ids[..ids.len() - 1].iter().enumerate() {
        let table = get("model.embed_tokens.weight").unwrap();
        let mut x: Vec<f64> = table[id as usize * hidden..][..hidden].iter().map(|&v| f64::from(v)).collect();
        for (i, (keys, values)) in caches.iter_mut().enumerate() {
            let layer = format!("model.layers.{i}");
            let n = norm(&format!("{layer}.input_layernorm.weight"), &x);
            let [mut q, mut k, v] = ["q", "k", "v"].map(|p| linear(&format!("{layer}.self_attn.{p}_proj"), &n));
            for (part, x) in [("q", &mut q), ("k", &mut k)] {
                for head in x.chunks_exact_mut(dim) {
                    let name = format!("{layer}.self_attn.{part}_norm.weight");
                    if get(&name).is_some() {
                        head.copy_from_slice(&norm(&name, head));
                    }
                    rotate(head, position);
                }
            }
            keys.push(k);
            values.push(v);
            let mut mixed = Vec::with_capacity(heads * dim);
            for (h, q) in q.chunks_exact(dim).enumerate() {
                let group = (h / (heads / kv_heads)) * dim..(h / (heads / kv_heads) + 1) * dim;
                let scores = keys
                    .iter()
                    .map(|k| k[group.clone()].iter().zip(q).map(|(k, q)| k * q).sum::<f64>() / (dim as f64).sqrt());
                let weights: Vec<f64> = scores.map(f64::exp).collect();
                let total: f64 = weights.iter().sum();
                for d in group {
                    mixed.push(weights.iter().zip(values.iter()).map(|(w, v)| w * v[d]).sum::<f64>() / total);
                }
            }
            let branch = linear(&format!("{layer}.self_attn.o_proj"), &mixed);
            x.iter_mut().zip(branch).for_each(|(x, b)| *x += b);
            let n = norm(&format!("{layer}.post_attention_layernorm.weight"), &x);
            let gate = linear(&format!("{layer}.mlp.gate_proj"), &n);
            let up = linear(&format!("{layer}.mlp.up_proj"), &n);
            let gated: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
            let branch = linear(&format!("{layer}.mlp.down_proj"), &gated);
            x.iter_mut().zip(branch).for_each(|(x, b)| *x += b);
        }
        let logits = linear(head, &norm("model.norm.weight", &x));
        let total: f64 = logits.iter().map(|l| l.exp()).sum();
        scored.push(logits[ids[position + 1] as usize] - total.ln());
    }
    scored
}
