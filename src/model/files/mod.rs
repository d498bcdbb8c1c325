//! Reads and writes model files.
//!
//! ```text
//! folder.rs              a Hugging Face folder: config.json, tokenizer files, safetensors.rs; mxfp4.rs unpacks the experts of gpt-oss
//! gguf.rs                the metadata of a .gguf file; gguf_keys.rs says which of its settings are honoured
//! gguf_source.rs         that file as a model: config, vocabulary, template, tensors by their Hugging Face names
//! gguf_files.rs          its tensors, possibly from several files; gguf_header.rs reads the headers, quants/ decodes the numbers
//! adapter.rs             a LoRA adapter folder, applied to a base; adapter/ reads its settings and its tensors
//! hub_files.rs           which files of a hub repository make up a model
//! config_json.rs         config.json -> Config, and back
//! end_tokens.rs          where generation stops, in the files of a trained model
//! generation.rs          the generation settings of generation_config.json
//! save.rs                saves a model as a Hugging Face folder; safetensors_write.rs writes weights; peft.rs saves a LoRA adapter;
//!                        replaceable.rs says what they may overwrite
//! ```

pub(in crate::model) mod adapter;
mod config_json;
pub(in crate::model) mod end_tokens;
pub(in crate::model) mod folder;
pub(in crate::model) mod generation;
pub(in crate::model) mod gguf;
pub(in crate::model) mod gguf_files;
mod gguf_header;
mod gguf_keys;
mod gguf_source;
pub(in crate::model) mod hub_files;
mod mxfp4;
pub(in crate::model) mod peft;
mod quants;
mod replaceable;
pub(crate) mod safetensors;
pub mod safetensors_write;
pub(in crate::model) mod save;
