//! The divergence of two models at one token.

/// The divergences between the model and the reference at one token, in nats; zero without a
/// reference.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Divergence {
    /// `KL(reference || model)`
    pub from_reference: f32,
    /// `KL(model || reference)`
    pub to_reference: f32,
}
