//! How far two models are apart at one token.

/// How far the model is from the reference at one token, nats; zero without a reference.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Divergence {
    /// `KL(reference || model)`
    pub from_reference: f32,
    /// `KL(model || reference)`
    pub to_reference: f32,
}
