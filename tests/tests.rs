//! Runs the program as a user does, in temporary folders. One test binary; each module says what belongs in it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod absent_keys;
mod adapter;
mod adapter_kinds;
mod bits_per_byte;
mod browser;
mod check;
mod contradictions;
mod cuda;
mod dataset;
mod diff;
mod engine;
mod eval;
mod export;
mod families;
mod fuzz_models;
mod fuzz_readers;
mod generate;
mod generated_rows;
mod gguf;
mod gguf_keys;
mod guide;
mod hub;
mod interrupted;
mod joining;
mod layers;
mod malformed;
mod memory;
mod own_rows;
mod packaging;
mod parity;
mod remote;
mod remote_answers;
mod rollout;
mod score;
mod served;
mod shards;
mod tiny_model;
mod tokens;
mod train;
mod view;
mod workdir;
#[path = "../src/kernels/worst.rs"]
mod worst;
mod written;
