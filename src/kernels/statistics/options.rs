//! What the head takes.

/// What the head computes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeadOptions {
    /// `K` of `entropy_topk`.
    pub top_k: usize,
    /// `logit <- cap tanh(logit / cap)`, as Gemma does.
    pub softcap: Option<f32>,
}

/// The targets for which the entropy of the softmax over the `K` largest logits is wanted for every `K = 1 ..= k_max`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Curves<'a> {
    /// The numbers of the targets.
    pub of: &'a [u32],
    /// The largest `K`.
    pub k_max: usize,
}

impl Default for HeadOptions {
    fn default() -> Self {
        HeadOptions { top_k: 20, softcap: None }
    }
}
