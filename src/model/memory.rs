//! Refuses a model that does not fit into memory, before the kernel kills the process.
//!
//! Compares an estimate of the weights in the chosen precision, of the copies made while they are loaded, and of the hidden states of one
//! batch with what Linux reports as available (`MemAvailable`) and what the container allows (cgroup 1 and 2). On other systems nothing is
//! known and nothing is refused. `DIAGNOSE_IGNORE_MEMORY=1` skips the check. Training and generation make further checks, for what they
//! take in addition to the model.

use std::path::Path;

use super::config::Config;
use crate::error::{Error, Result};
use crate::kernels::{Dtype, Stored};

/// The most tokens of a batch, unless one sequence is longer: half more than the engine aims for.
const BATCH_TOKENS: u64 = 3072;
/// The program itself: code, tokenizer, tables and the rows of the data set.
pub const PROGRAM_BYTES: u64 = 128 << 20;

/// Returns an error if a model of `parameters` weights in `dtype` needs more memory than is available.
pub fn check(name: &str, config: &Config, parameters: u64, dtype: Dtype, max_tokens: usize) -> Result<()> {
    let need = |dtype| needed_bytes(config, parameters, dtype, max_tokens);
    known_limit().map_or(Ok(()), |available| refuse(name, need, dtype, available))
}

/// Returns an error if a model of `parameters` weights and a batch of `batch` bytes do not fit into the `free` bytes of the GPU called
/// `device`.
pub fn check_device(name: &str, device: &str, parameters: u64, dtype: Stored, batch: u64, free: u64) -> Result<()> {
    // cuBLASLt's workspace, and one matrix in f32 while it is loaded.
    const BESIDE: u64 = 512 << 20;
    let need = |dtype: Stored| parameters.saturating_mul(dtype.size_in_bytes()).saturating_add(batch).saturating_add(BESIDE);
    if need(dtype) <= free {
        return Ok(());
    }
    let bf16 =
        if dtype == Stored::F32 { format!("Give --dtype bf16 (about {}), ", gib(need(Stored::Bf16))) } else { String::new() };
    Err(Error::new(format!("{name} needs about {} in {dtype} on {device}; {} are free", gib(need(dtype)), gib(free)))
        .cure(format!("{bf16}a smaller --max-len, a smaller model, or --device cpu.")))
}

/// Returns an error if the keys and values of one answer do not fit into the `free` bytes of the GPU called `device`.
pub fn check_device_answers(name: &str, device: &str, needed: u64, free: u64) -> Result<()> {
    if needed <= free {
        return Ok(());
    }
    let (needed, free) = (gib(needed), gib(free));
    Err(Error::new(format!("an answer of {name} needs about {needed} of {device} beside the model; {free} are free there"))
        .cure("Give a smaller --max-new-tokens, --max-len or --batch, --dtype bf16, or --device cpu."))
}

/// Returns an error if training a loaded model needs `beside` bytes and fewer are available.
pub fn check_training(name: &str, beside: u64) -> Result<()> {
    known_limit().map_or(Ok(()), |available| refuse_training(name, beside, available))
}

/// Returns an error if the keys and values of the answers under way need `beside` bytes in addition to the model and fewer are available.
pub fn check_answers(name: &str, beside: u64) -> Result<()> {
    known_limit().map_or(Ok(()), |available| refuse_answers(name, beside, available))
}

fn refuse_answers(name: &str, beside: u64, available: u64) -> Result<()> {
    if beside <= available {
        return Ok(());
    }
    let (beside, available) = (gib(beside), gib(available));
    Err(Error::new(format!("the answers of {name} need about {beside} of memory beside the model; {available} are available"))
        .cure(
            "Give a smaller --batch or --max-new-tokens, or close other programs. DIAGNOSE_IGNORE_MEMORY=1 overrides this check.",
        ))
}

fn refuse_training(name: &str, beside: u64, available: u64) -> Result<()> {
    if beside <= available {
        return Ok(());
    }
    let (beside, available) = (gib(beside), gib(available));
    Err(Error::new(format!("training {name} needs about {beside} of memory beside the model; {available} are available")).cure(
        "Give --lora, a smaller --pack-tokens or --activation-memory, or close other programs. DIAGNOSE_IGNORE_MEMORY=1 overrides this check.",
    ))
}

/// The memory that is available; `None` if it is unknown or the check is disabled.
fn known_limit() -> Option<u64> {
    let ignored = std::env::var_os("DIAGNOSE_IGNORE_MEMORY").is_some_and(|value| value == "1");
    if ignored { None } else { available_bytes(Path::new("/")) }
}

fn refuse(name: &str, need: impl Fn(Dtype) -> u64, dtype: Dtype, available: u64) -> Result<()> {
    let needed = need(dtype);
    if needed <= available {
        return Ok(());
    }
    let bf16 = match dtype {
        Dtype::F32 | Dtype::Bf16x3 => format!("Give --dtype bf16 (about {}), use a smaller model", gib(need(Dtype::Bf16))),
        Dtype::Bf16 => "Use a smaller model".to_owned(),
    };
    Err(Error::new(format!("{name} needs about {} of memory in {dtype}; {} are available", gib(needed), gib(available)))
        .cure(format!("{bf16}, or close other programs. DIAGNOSE_IGNORE_MEMORY=1 overrides this check.")))
}

/// The peak memory of the process while it scores.
fn needed_bytes(config: &Config, parameters: u64, dtype: Dtype, max_tokens: usize) -> u64 {
    let [width, inner] = [config.hidden_size, config.intermediate_size].map(|n| n as u64);
    let delta = config.delta.as_ref().map_or(0, |delta| delta.shape.columns()) as u64;
    // Residual stream, normalised copy, queries to values, mixed heads; gate, up and their product; input and output of the delta rule.
    let per_token = (6 * width).saturating_add(3 * inner).saturating_add(2 * delta).saturating_mul(4);
    let activations = BATCH_TOKENS.max(max_tokens as u64).saturating_mul(per_token);
    let held = held_bytes(config, parameters, dtype).saturating_add(activations).saturating_add(PROGRAM_BYTES);
    held.max(loading_bytes(config, parameters, dtype))
}

/// The peak memory of the process while it loads a model of `parameters` weights in `dtype`.
pub fn loading_bytes(config: &Config, parameters: u64, dtype: Dtype) -> u64 {
    // Loading a matrix temporarily needs it as stored (mostly in two bytes) and as f32, in addition to its final form: for a matrix of a
    // layer, on top of everything loaded; for one of the vocabulary, on top of the other one.
    const ON_ITS_WAY: u64 = 2 + 4;
    let delta = config.delta.as_ref().map_or(0, |delta| delta.shape.wide_columns());
    let layer = (config.hidden_size as u64).saturating_mul(config.intermediate_size.max(delta) as u64);
    // The files of these families store gate and up as one tensor.
    let layer = if ["glm", "glm4", "phi3", "gpt_oss"].contains(&config.family) { layer.saturating_mul(2) } else { layer };
    let last = held_bytes(config, parameters, dtype).saturating_add(layer.saturating_mul(ON_ITS_WAY));
    let vocabularies = vocabulary(config).saturating_mul(n_vocabularies(config) * dtype.size_in_bytes() + ON_ITS_WAY);
    last.max(vocabularies).saturating_add(PROGRAM_BYTES)
}

/// The size of the loaded weights. Those of the first block are in f32 even if the others are in bf16 (`decoder.rs`).
fn held_bytes(config: &Config, parameters: u64, dtype: Dtype) -> u64 {
    let in_blocks = parameters.saturating_sub(vocabulary(config).saturating_mul(n_vocabularies(config)));
    let first_block = in_blocks / (config.layers as u64).max(1);
    let bytes = dtype.size_in_bytes();
    parameters.saturating_mul(bytes).saturating_add(first_block.saturating_mul(Dtype::F32.size_in_bytes() - bytes))
}

fn vocabulary(config: &Config) -> u64 {
    (config.vocab_size as u64).saturating_mul(config.hidden_size as u64)
}

/// The number of vocabulary matrices: the embedding, and the head if that is another matrix.
fn n_vocabularies(config: &Config) -> u64 {
    if config.tied { 1 } else { 2 }
}

/// The available memory: the lesser of the machine's and the container's. `None` if neither is known.
fn available_bytes(root: &Path) -> Option<u64> {
    let machine = std::fs::read_to_string(root.join("proc/meminfo")).ok().and_then(|text| mem_available(&text));
    let container = std::fs::read_to_string(root.join("proc/self/cgroup")).ok().and_then(|text| {
        let fs = root.join("sys/fs/cgroup");
        text.lines().filter_map(|line| group_available(&fs, line)).min()
    });
    machine.into_iter().chain(container).min()
}

/// Parses a line such as `MemAvailable:   19911200 kB`.
fn mem_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.saturating_mul(1024))
}

/// What one line of /proc/self/cgroup, `ID:CONTROLLERS:PATH`, allows: the least that is left in this group and those above it.
fn group_available(fs: &Path, line: &str) -> Option<u64> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (controllers, path) = (fields.next()?, fields.next()?);
    let (mount, limit, usage, prefix) = match controllers {
        "" => (fs.to_owned(), "memory.max", "memory.current", ""),
        _ if controllers.split(',').any(|name| name == "memory") => {
            (fs.join("memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
        }
        _ => return None,
    };
    let groups = Path::new(path.trim_start_matches('/')).ancestors().map(|group| mount.join(group));
    let room = groups.filter_map(|group| {
        let number = |name: &str| std::fs::read_to_string(group.join(name)).ok()?.trim().parse::<u64>().ok();
        let (limit, used) = (number(limit)?, number(usage)?);
        // Cached files count as used, but the kernel reclaims them when memory runs short.
        let stat = std::fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
        let files = |kind: &str| {
            let key = format!("{prefix}{kind}_file");
            stat.lines().find_map(|line| line.strip_prefix(&key)?.trim().parse::<u64>().ok()).unwrap_or(0)
        };
        Some(limit.saturating_sub(used.saturating_sub(files("active") + files("inactive"))))
    });
    room.min()
}

fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn what_is_needed_by_hand() {
        let config = Config::from_json(&json!({"model_type": "llama", "hidden_size": 1024, "intermediate_size": 4096,
            "num_hidden_layers": 2, "num_attention_heads": 8, "vocab_size": 65536, "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5}));
        let config = config.unwrap();
        // 3072 tokens * (6 * 1024 + 3 * 4096) * 4 bytes = 216 MiB; loading a matrix of a layer takes less: 1024 * 4096 * 6 = 24 MiB.
        let rest = (216 << 20) + PROGRAM_BYTES;
        assert_eq!(needed_bytes(&config, 2 * GIB, Dtype::F32, 2048), 8 * GIB + rest);
        assert_eq!(loading_bytes(&config, 2 * GIB, Dtype::F32), 8 * GIB + (24 << 20) + PROGRAM_BYTES);
        // Two parts of two bytes each, in the first block as well.
        assert_eq!(needed_bytes(&config, 2 * GIB, Dtype::Bf16x3, 2048), 8 * GIB + rest);
        // Embedding and head are 2 * 65536 * 1024 = GIB / 8 weights; half of the rest is the first block, with two more bytes per weight.
        let first_block = (2 * GIB - GIB / 8) / 2 * 2;
        assert_eq!(needed_bytes(&config, 2 * GIB, Dtype::Bf16, 2048), 4 * GIB + first_block + rest);
        // Almost only a vocabulary: 65536 * 1024 * (4 + 4 for both matrices, 6 for loading the second) = 896 MiB.
        assert_eq!(needed_bytes(&config, GIB / 8, Dtype::F32, 2048), (896 << 20) + PROGRAM_BYTES);
        // 32768 tokens * 18432 * 4 bytes = 2.25 GiB, which exceeds the loading.
        assert_eq!(needed_bytes(&config, 2 * GIB, Dtype::Bf16, 32768), 4 * GIB + first_block + 9 * GIB / 4 + PROGRAM_BYTES);
    }

    #[test]
    fn a_refusal_names_both_sizes_and_the_ways_out() {
        let need = |dtype| if dtype == Dtype::F32 { 20 * GIB } else { 10 * GIB };
        assert!(refuse("big", need, Dtype::F32, 20 * GIB).is_ok());
        let message = refuse("big", need, Dtype::F32, 12 * GIB).unwrap_err().to_string();
        for part in
            ["big needs about 20.0 GiB", "f32", "12.0 GiB are available", "bf16 (about 10.0 GiB)", "DIAGNOSE_IGNORE_MEMORY=1"]
        {
            assert!(message.contains(part), "expected `{part}` in {message}");
        }
        let message = refuse("big", need, Dtype::Bf16, 9 * GIB).unwrap_err().to_string();
        assert!(message.contains("smaller model") && !message.contains("--dtype"), "{message}");
    }

    #[test]
    fn training_is_refused_with_its_size() {
        assert!(refuse_training("big", GIB, GIB).is_ok());
        let message = refuse_training("big", 12 * GIB, 3 * GIB).unwrap_err().to_string();
        for part in ["training big needs about 12.0 GiB", "3.0 GiB are available", "--lora", "DIAGNOSE_IGNORE_MEMORY=1"] {
            assert!(message.contains(part), "expected `{part}` in {message}");
        }
    }

    #[test]
    fn answers_are_refused_with_their_size() {
        assert!(refuse_answers("big", GIB, GIB).is_ok());
        let message = refuse_answers("big", 2 * GIB, GIB).unwrap_err().to_string();
        assert!(["2.0 GiB", "1.0 GiB are available", "--batch"].iter().all(|part| message.contains(part)), "{message}");
    }

    #[test]
    fn an_answer_that_no_gpu_holds_is_refused_with_its_size() {
        assert!(check_device_answers("big", "a card", GIB, GIB).is_ok());
        let message = check_device_answers("big", "a card", 2 * GIB, GIB).unwrap_err().to_string();
        assert!(
            ["2.0 GiB of a card", "1.0 GiB are free there", "--max-new-tokens"].iter().all(|part| message.contains(part)),
            "{message}"
        );
    }

    #[test]
    fn the_least_of_machine_and_container_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        assert_eq!(available_bytes(root.path()), None);
        write("proc/meminfo", "MemTotal:       8000000 kB\nMemAvailable:   4194304 kB\n");
        assert_eq!(available_bytes(root.path()), Some(4 * GIB));
        // Version 2: no limit on the group itself; 3 GiB above it, of which 2 GiB are used, half a GiB of that by cached files.
        write("proc/self/cgroup", "0::/job/step\n");
        write("sys/fs/cgroup/job/step/memory.max", "max\n");
        write("sys/fs/cgroup/job/step/memory.current", "1000\n");
        write("sys/fs/cgroup/job/memory.max", &(3 * GIB).to_string());
        write("sys/fs/cgroup/job/memory.current", &(2 * GIB).to_string());
        write("sys/fs/cgroup/job/memory.stat", &format!("anon 7\ninactive_file {}\nactive_file {}\n", GIB / 4, GIB / 4));
        assert_eq!(available_bytes(root.path()), Some(3 * GIB / 2));
        // Version 1.
        write("proc/self/cgroup", "5:cpuset:/\n4:cpu,memory:/box\n0::/\n");
        write("sys/fs/cgroup/memory/box/memory.limit_in_bytes", &(2 * GIB).to_string());
        write("sys/fs/cgroup/memory/box/memory.usage_in_bytes", &(GIB + GIB / 2).to_string());
        write("sys/fs/cgroup/memory/box/memory.stat", &format!("active_file 0\ntotal_active_file {}\n", GIB / 4));
        assert_eq!(available_bytes(root.path()), Some(3 * GIB / 4));
    }
}
