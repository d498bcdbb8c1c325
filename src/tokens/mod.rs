//! Chat template, supervised mask, mask audit: [`Example`](crate::dataset::Example) -> [`Sequence`].

/// A rendered and tokenised example.
#[derive(Debug, Clone, PartialEq)]
pub struct Sequence {
    /// Number of the record in the whole input, bad records counted.
    pub row: u32,
    /// Token ids, length `T`.
    pub ids: Vec<u32>,
    /// `supervised[t]`: is `ids[t]` a target of the loss? Never true at `t = 0`, which nothing predicts. Length `T`.
    pub supervised: Vec<bool>,
    /// Where each token comes from. Length `T`.
    pub spans: Vec<Span>,
}

/// Bytes `begin..end` of `turns[turn].content`; `begin == end` where the token is part of the template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    pub turn: u16,
    pub begin: u32,
    pub end: u32,
}
