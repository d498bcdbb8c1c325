//! What the head takes.

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeadOptions {
    /// `K` of `entropy_topk`.
    pub top_k: usize,
    /// `logit <- cap tanh(logit / cap)`, as Gemma does.
    pub softcap: Option<f32>,
}

impl Default for HeadOptions {
    fn default() -> Self {
        HeadOptions { top_k: 20, softcap: None }
    }
}
