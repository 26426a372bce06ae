//! Custom ops: the parts of a decoder in Karat's own operators ([`crate::operators`]). Weights are
//! packed for the kernels when they are exported, and an embedding serves as the head from the same
//! bytes.

use half::bf16;
use karat_backend::BackendError;
use karat_kernels::gemm::Threads;
use karat_kernels::gemm::prepacked::PackedType;
use karat_kernels::gemm::tile::PANEL;

use super::builder::Builder;
use super::packed_weight::PackedWeight;
use crate::operators::DOMAIN;
use crate::proto::{Attribute, DataType, node};
use crate::weight_format::WeightFormat;

impl Builder<'_> {
    /// A node of Karat's domain with these weights.
    pub fn own(&mut self, op: &str, path: &str, inputs: &[&str], outputs: &[&str], weights: &[PackedWeight]) {
        let bits = |own: &PackedWeight| if own.storage == PackedType::F32 { 32 } else { 16 };
        let sizes: Vec<i64> = weights.iter().map(|own| own.n as i64).collect();
        let stored: Vec<i64> = weights.iter().map(bits).collect();
        let operands = if self.source.precision == WeightFormat::Bf16 { 16 } else { 32 };
        let attributes = [
            ("inputs", Attribute::Int(weights[0].k as i64)),
            ("outputs", Attribute::Ints(&sizes)),
            ("stored", Attribute::Ints(&stored)),
            ("operands", Attribute::Int(operands)),
        ];
        self.graph.nodes.push(node(DOMAIN, op, path, inputs, outputs, &attributes));
    }

    /// Writes the weight of a linear layer.
    pub fn own_linear(&mut self, module: &str, k: usize, n: usize) -> Result<PackedWeight, BackendError> {
        let weight = self.linear_weight(module, k, n)?;
        let name = format!("{module}.weight");
        let storage = self.storage(&name, &weight)?;
        let offset = self.data.begin()?;
        self.put_packed(storage, &weight, k)?;
        self.own_weight(name, n, k, storage, offset)
    }

    /// Writes a matrix, a stretch of rows at a time.
    pub fn own_table(&mut self, name: &str, n: usize, k: usize) -> Result<PackedWeight, BackendError> {
        // What it is stored as is known when all of it was seen.
        let mut storage = PackedType::Bf16;
        for stretch in Self::stretches(n, k, PANEL) {
            let values = self.read_rows(name, &[n, k], stretch)?;
            storage = self.storage(name, &values)?;
            if storage == PackedType::F32 {
                break;
            }
        }
        let offset = self.data.begin()?;
        for stretch in Self::stretches(n, k, PANEL) {
            let values = self.read_rows(name, &[n, k], stretch)?;
            self.put_packed(storage, &values, k)?;
        }
        self.own_weight(name.to_string(), n, k, storage, offset)
    }

    /// Linear layers of one `x`, `[name of the module, outputs, whether it has a bias]`, in one
    /// operator.
    pub fn own_linears(
        &mut self,
        x: &str,
        k: usize,
        layers: &[(String, usize, bool)],
    ) -> Result<Vec<String>, BackendError> {
        let (mut weights, mut products) = (Vec::new(), Vec::new());
        for (module, n, _) in layers {
            weights.push(self.own_linear(module, k, *n)?);
            products.push(format!("{module}.product"));
        }
        let inputs: Vec<&str> = [x].into_iter().chain(weights.iter().map(PackedWeight::name)).collect();
        let outputs: Vec<&str> = products.iter().map(String::as_str).collect();
        let path = format!("/{}/MatMul", layers[0].0.replace('.', "/"));
        self.own("MatMul", &path, &inputs, &outputs, &weights);
        let rest = products.into_iter().zip(layers);
        rest.map(|(product, (module, n, bias))| self.linear_rest(module, x, product, [k, *n], *bias)).collect()
    }

    /// The gated unit `silu(x G^T) * (x U^T)` without biases, in one operator.
    pub fn own_swiglu(&mut self, x: &str, k: usize, n: usize, mlp: &str, output: &str) -> Result<(), BackendError> {
        let gate = self.own_linear(&format!("{mlp}.gate_proj"), k, n)?;
        let up = self.own_linear(&format!("{mlp}.up_proj"), k, n)?;
        let path = format!("/{}/SwiGlu", mlp.replace('.', "/"));
        let inputs = [x, gate.name(), up.name()].map(String::from);
        self.own("SwiGlu", &path, &inputs.each_ref().map(String::as_str), &[output], &[gate, up]);
        Ok(())
    }

    /// Logits of `x`, and log-probabilities of the targets of the hidden states that `x` is a slice
    /// of.
    pub fn own_head(&mut self, x: &str, name: &str, tied: bool, output: &str) -> Result<(), BackendError> {
        let own = match (&self.table, tied) {
            (Some(table), true) => table.clone(),
            _ => self.own_table(name, self.config.vocab_size, self.config.hidden_size)?,
        };
        let weights = std::slice::from_ref(&own);
        self.own("MatMul", "/lm_head/MatMul", &[x, own.name()], &[output], weights);
        let inputs = ["hidden.final", own.name(), "targets"];
        self.own("LogProbs", "/lm_head/LogProbs", &inputs, &["logprobs", "greedy"], weights);
        Ok(())
    }

    /// In f32 whatever loses nothing; in bf16 what is multiplied in it.
    fn storage(&self, name: &str, values: &[f32]) -> Result<PackedType, BackendError> {
        if self.source.precision != WeightFormat::Bf16 {
            return Ok(PackedType::without_loss(values));
        }
        match values.iter().find(|v| !bf16::from_f32(**v).is_finite()) {
            Some(value) => Err(super::external_data::beyond(name, *value, DataType::Bf16)),
            None => Ok(PackedType::Bf16),
        }
    }

    fn put_packed(&mut self, storage: PackedType, values: &[f32], k: usize) -> Result<(), BackendError> {
        self.data.put(bytemuck::cast_slice(&storage.pack(values, k, &Threads::Pool)))
    }

    fn own_weight(
        &mut self,
        name: String,
        n: usize,
        k: usize,
        storage: PackedType,
        offset: u64,
    ) -> Result<PackedWeight, BackendError> {
        self.declare(&name, DataType::U8, &[storage.bytes(n, k)], offset);
        Ok(PackedWeight { name, n, k, storage })
    }
}
