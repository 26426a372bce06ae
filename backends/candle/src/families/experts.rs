//! A feed-forward of experts (Shazeer et al., arXiv 1701.06538): each token has the few that its
//! router weighs most.

use candle_core::{Result, Tensor};
use candle_nn::ops::{sigmoid, softmax_last_dim};
use karat_model::architecture::Experts;

use super::decoder::{Linear, Mlp};

/// The experts of a layer.
pub struct Sparse {
    experts: Experts,
    /// `[experts, hidden]`.
    router: Linear,
    of: Vec<Mlp>,
    /// The one that every token has, and its gate `[1, hidden]`.
    shared: Option<(Mlp, Linear)>,
}

impl Sparse {
    /// `of` are as many as `experts` says.
    pub fn new(experts: Experts, router: Linear, of: Vec<Mlp>, shared: Option<(Mlp, Linear)>) -> Self {
        Sparse { experts, router, of, shared }
    }

    /// `x` is `[tokens, hidden]`, as is the result.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let weights: Vec<Vec<f32>> = softmax_last_dim(&self.router.forward(x)?)?.to_vec2()?;
        // For each expert its tokens and what it weighs in them.
        let mut chosen = vec![(Vec::new(), Vec::new()); self.of.len()];
        for (token, weights) in weights.iter().enumerate() {
            let mut order: Vec<usize> = (0..weights.len()).collect();
            order.sort_by(|a, b| weights[*b].total_cmp(&weights[*a]));
            order.truncate(self.experts.per_token);
            let total: f32 = order.iter().map(|expert| weights[*expert]).sum();
            for expert in order {
                let weight = weights[expert] / if self.experts.normalized { total } else { 1.0 };
                chosen[expert].0.push(token as u32);
                chosen[expert].1.push(weight);
            }
        }
        let mut sum = match &self.shared {
            Some((mlp, gate)) => mlp.forward(x)?.broadcast_mul(&sigmoid(&gate.forward(x)?)?)?,
            None => x.zeros_like()?,
        };
        for (mlp, (tokens, weights)) in self.of.iter().zip(chosen).filter(|(_, (tokens, _))| !tokens.is_empty()) {
            let count = tokens.len();
            let tokens = Tensor::from_vec(tokens, count, x.device())?;
            let weights = Tensor::from_vec(weights, (count, 1), x.device())?;
            let given = mlp.forward(&x.index_select(&tokens, 0)?)?.broadcast_mul(&weights)?;
            sum = sum.index_add(&tokens, &given, 0)?;
        }
        Ok(sum)
    }
}
