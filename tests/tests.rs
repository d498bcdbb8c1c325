//! Runs the program as a user does, in temporary folders. One test binary; each module says what belongs in it.

mod diff;
mod eval;
mod interrupted;
mod layers;
mod malformed;
mod parity;
mod score;
mod tiny_model;
mod workdir;
