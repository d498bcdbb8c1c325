//! Runs the program as a user does, in temporary folders. One test binary; each module says what belongs in it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod adapter;
mod bits_per_byte;
mod check;
mod contradictions;
mod dataset;
mod diff;
mod engine;
mod eval;
mod families;
mod fuzz_readers;
mod generated_rows;
mod hub;
mod interrupted;
mod layers;
mod malformed;
mod parity;
mod score;
mod tiny_model;
mod tokens;
mod train;
mod workdir;
