//! The options of the head.

/// The options of the statistics.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeadOptions {
    /// `K` of `entropy_topk`.
    pub top_k: usize,
    /// The softcap: `logit <- cap tanh(logit / cap)`, as in Gemma.
    pub softcap: Option<f32>,
}

/// The targets whose entropy of the softmax over the `K` largest logits is requested for every `K = 1 ..= k_max`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Curves<'a> {
    /// The indices of the targets.
    pub of: &'a [u32],
    /// The largest `K`.
    pub k_max: usize,
}

impl Default for HeadOptions {
    fn default() -> Self {
        HeadOptions { top_k: 20, softcap: None }
    }
}
