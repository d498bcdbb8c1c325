//! What a training run is told: a TOML or YAML file, the command line over it, defaults under both. The resolved options are saved
//! beside the results as `train.toml`, which `--config` takes again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::adamw::AdamWOptions;
use super::schedule::Shape;
use crate::dataset::{FieldMap, ReadOptions};
use crate::diagnosis::gate::{Beside, EAFT, Gate, Method, Normaliser};
use crate::error::{Context, Error, Result};
use crate::kernels::Dtype;
use crate::model::LoraOptions;
use crate::tokens::{RenderOptions, Supervise};

/// Everything that decides a training run; names are those of the command line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Options {
    pub datasets: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub out: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    pub map: Vec<String>,
    pub strict: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    pub supervise: String,
    pub max_len: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,

    pub method: Method,
    /// EAFT's curve: linear, power:N, sigmoid:A,B, mask:Q.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gate: Option<String>,
    /// What EAFT's entropy is divided by; ln K without it, or what the gate's program does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub normaliser: Option<Normaliser>,
    /// K of EAFT's entropy; 20 without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// Factor of the divergence in sft-kl and asft; their own defaults without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_weight: Option<f32>,
    /// Optimiser steps from one snapshot of psft's old model to the next; 8 without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_every: Option<u64>,
    /// Rows whose conflicts are meant to be learnt, such as knowledge edits: sources, ids, `file:line`.
    pub intended: Vec<String>,

    pub lora: bool,
    pub lora_r: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora_alpha: Option<f64>,
    pub lora_dropout: f32,
    /// Empty for all linear modules of the blocks.
    pub lora_targets: Vec<String>,
    /// Save the base with the adapter added, too.
    pub merge: bool,

    pub dtype: String,
    /// Of the saved model; adapters are saved in f32.
    pub save_dtype: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr: Option<f64>,
    pub schedule: Shape,
    pub warmup_ratio: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_steps: Option<u64>,
    pub epochs: u64,
    /// Instead of `epochs`, as in Transformers' `TrainingArguments`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_steps: Option<u64>,
    /// Sequences of an optimiser step.
    pub batch_size: usize,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    /// Number format of the optimiser's moments. Without it f32 for LoRA and bf16, rounded at random, for all weights: a quarter less
    /// memory, and held-out losses that differ in the fourth decimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moments: Option<String>,
    /// Gradients of a larger norm are scaled to it; 0 for none.
    pub clip: f64,
    /// Tokens that go through the model together; changes memory and speed, not results.
    pub pack_tokens: usize,
    /// MiB of activations that are kept instead of computed again; changes memory and speed, not results. Without it 1024 for LoRA
    /// and 128 for all weights, whose gradients and moments take so much more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activation_memory: Option<usize>,

    /// Source -> how often its rows appear in an epoch.
    pub mix: BTreeMap<String, f64>,
    pub validation_share: f64,
    /// Steps from one look at held-out rows and drift to the next; a tenth of the run without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_every: Option<u64>,
    /// Steps from one checkpoint to the next; at the end of each epoch without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub save_every: Option<u64>,
    pub keep_checkpoints: usize,
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        let adamw = AdamWOptions::default();
        Options {
            datasets: Vec::new(),
            model: None,
            out: None,
            format: None,
            map: Vec::new(),
            strict: false,
            system: None,
            supervise: "assistant".to_owned(),
            max_len: 2048,
            limit: None,
            method: EAFT,
            gate: None,
            normaliser: None,
            top_k: None,
            kl_weight: None,
            snapshot_every: None,
            intended: Vec::new(),
            lora: false,
            lora_r: 16,
            lora_alpha: None,
            lora_dropout: 0.0,
            lora_targets: Vec::new(),
            merge: false,
            dtype: "f32".to_owned(),
            save_dtype: "f32".to_owned(),
            lr: None,
            schedule: Shape::Cosine,
            warmup_ratio: 0.03,
            warmup_steps: None,
            epochs: 1,
            max_steps: None,
            batch_size: 16,
            beta1: adamw.beta1,
            beta2: adamw.beta2,
            eps: adamw.eps,
            weight_decay: adamw.weight_decay,
            moments: None,
            clip: 1.0,
            pack_tokens: 2048,
            activation_memory: None,
            mix: BTreeMap::new(),
            validation_share: 0.0,
            eval_every: None,
            save_every: None,
            keep_checkpoints: 1,
            seed: 0,
        }
    }
}

impl Options {
    /// Reads `file`, puts `overrides` (keys as in the file) over it, and checks the whole.
    pub fn resolve(file: Option<&Path>, overrides: toml::Table) -> Result<Options> {
        let mut table = file.map_or(Ok(toml::Table::new()), read_table)?;
        table.extend(overrides);
        let options: Options = table.try_into().map_err(|error: toml::de::Error| {
            // Two lines: what is wrong, and "in `lr`".
            let message = error.to_string().trim_end().replace('\n', " ");
            let wrong = Error::usage(format!("wrong option: {message}"));
            file.map_or(Error::usage(message), |path| wrong.at(path))
        })?;
        options.check()?;
        Ok(options)
    }

    /// The options as a file that `--config` takes.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).context("cannot write the options")
    }

    fn check(&self) -> Result<()> {
        let wrong = |what: String| Err(Error::usage(what));
        if self.datasets.is_empty() {
            return wrong("no data to train on: name a file, or give `datasets` in the configuration".to_owned());
        }
        let counts = [
            ("batch-size", self.batch_size),
            ("lora-r", self.lora_r),
            ("pack-tokens", self.pack_tokens),
            ("keep-checkpoints", self.keep_checkpoints),
            ("epochs", self.epochs as usize),
        ];
        if let Some((name, _)) = counts.iter().find(|(_, count)| *count == 0) {
            return wrong(format!("--{name} 0: expected 1 or more"));
        }
        for (name, count) in [("max-len", Some(self.max_len)), ("top-k", self.top_k)] {
            if let Some(count) = count.filter(|count| *count < 2) {
                return wrong(format!("--{name} {count}: expected 2 or more"));
            }
        }
        for (name, every) in [
            ("eval-every", self.eval_every),
            ("save-every", self.save_every),
            ("max-steps", self.max_steps),
            ("snapshot-every", self.snapshot_every),
        ] {
            if every == Some(0) {
                return wrong(format!("--{name} 0: expected 1 or more"));
            }
        }
        let shares = [
            ("validation-share", self.validation_share, 1.0),
            ("lora-dropout", f64::from(self.lora_dropout), 1.0),
            ("beta1", self.beta1, 1.0),
            ("beta2", self.beta2, 1.0),
            ("warmup-ratio", self.warmup_ratio, 1.0),
            ("weight-decay", self.weight_decay, f64::INFINITY),
            ("clip", self.clip, f64::INFINITY),
            ("eps", self.eps, f64::INFINITY),
            ("lr", self.learning_rate(), f64::INFINITY),
        ];
        for (name, value, bound) in shares {
            if !(0.0..bound).contains(&value) {
                return wrong(format!("--{name} {value}: expected a number of 0 or more{}", below(bound)));
            }
        }
        if let Some((name, weight)) = self.mix.iter().find(|(_, weight)| !(0.0..1e6).contains(*weight)) {
            return wrong(format!("--mix {name}={weight}: expected a number of 0 or more"));
        }
        if !self.intended.is_empty() && !self.method.has_weights() {
            return wrong(format!("--intended lifts a method's weights, and {} has none: leave it out", self.method));
        }
        if self.merge && !self.lora {
            return wrong("--merge adds an adapter to its base: give --lora, or leave it out".to_owned());
        }
        if self.kl_weight.is_some() && !self.method.needs_reference() {
            return wrong(format!("--kl-weight is for sft-kl and asft, and the method is {}", self.method));
        }
        match self.method.beside {
            Beside::Snapshots { .. } if self.lora_dropout > 0.0 => {
                return Err(Error::usage(format!(
                    "--lora-dropout {}: {} compares probabilities of one model at two times, and dropout changes them by chance",
                    self.lora_dropout, self.method
                ))
                .cure("Leave --lora-dropout out."));
            }
            Beside::Snapshots { .. } => {}
            _ if self.snapshot_every.is_some() => {
                return wrong(format!("--snapshot-every is for psft, and the method is {}", self.method));
            }
            _ => {}
        }
        self.gate()?;
        self.dtype()?;
        self.save_dtype()?;
        self.adamw()?;
        self.render()?;
        self.read()?;
        Ok(())
    }

    /// What a token is weighed by: the method's gate, and EAFT's as it was asked for.
    pub fn gate(&self) -> Result<Gate> {
        self.method.gate_under(self.gate.as_deref(), self.normaliser, self.top_k)
    }

    /// Optimiser steps from one snapshot to the next, for the method that takes them.
    pub fn snapshot_every(&self) -> Option<u64> {
        match self.method.beside {
            Beside::Snapshots { every } => Some(self.snapshot_every.unwrap_or(every)),
            _ => None,
        }
    }

    pub fn dtype(&self) -> Result<Dtype> {
        self.dtype.parse()
    }

    pub fn save_dtype(&self) -> Result<Dtype> {
        self.save_dtype.parse()
    }

    pub fn learning_rate(&self) -> f64 {
        self.lr.unwrap_or(if self.lora { 1e-4 } else { 1e-5 })
    }

    pub fn render(&self) -> Result<RenderOptions> {
        let supervise: Supervise = self.supervise.parse()?;
        Ok(RenderOptions { system: self.system.clone(), max_len: self.max_len, supervise })
    }

    pub fn read(&self) -> Result<ReadOptions> {
        let format = self.format.as_deref().map(str::parse).transpose()?;
        Ok(ReadOptions { format, mapping: FieldMap::parse(&self.map)?, strict: self.strict })
    }

    pub fn lora(&self) -> Option<LoraOptions> {
        self.lora.then(|| LoraOptions {
            rank: self.lora_r,
            alpha: self.lora_alpha.unwrap_or(2.0 * self.lora_r as f64),
            dropout: self.lora_dropout,
            targets: self.lora_targets.clone(),
        })
    }

    /// The base model is held beside the one that learns; adapters are switched off instead.
    pub fn needs_base(&self) -> bool {
        self.method.needs_reference() && !self.lora
    }

    /// Bytes of activations to keep.
    pub fn activation_bytes(&self) -> usize {
        self.activation_memory.unwrap_or(if self.lora { 1024 } else { 128 }) << 20
    }

    pub fn adamw(&self) -> Result<AdamWOptions> {
        let bf16_moments = match &self.moments {
            Some(moments) => moments.parse::<Dtype>()? == Dtype::Bf16,
            None => !self.lora,
        };
        let Options { beta1, beta2, eps, weight_decay, .. } = *self;
        Ok(AdamWOptions { beta1, beta2, eps, weight_decay, bf16_moments })
    }

    /// The same without what changes no result: two runs of equal identity may continue each other.
    pub fn identity(&self) -> Options {
        Options {
            out: None,
            activation_memory: None,
            save_every: None,
            keep_checkpoints: Options::default().keep_checkpoints,
            ..self.clone()
        }
    }
}

/// Options as a file has them, by names with dashes; underscores are taken for dashes, as other programs' files have them, and in YAML
/// `null` for an option left out.
fn read_table(path: &Path) -> Result<toml::Table> {
    let text = std::fs::read_to_string(path).context_at(path, "cannot read the configuration")?;
    let is_yaml = path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
    let table = match is_yaml {
        true => {
            let entries: BTreeMap<String, Option<toml::Value>> = serde_saphyr::from_str(&text)
                .map_err(|error| Error::usage("this is not a YAML mapping").at(path).caused_by(error))?;
            entries.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
        }
        false => text.parse::<toml::Table>().map_err(|error| Error::usage("this is not TOML").at(path).caused_by(error))?,
    };
    Ok(table.into_iter().map(|(name, value)| (name.replace('_', "-"), value)).collect())
}

fn below(bound: f64) -> String {
    if bound.is_finite() { format!(" and less than {bound}") } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> toml::Table {
        text.parse().unwrap()
    }

    #[test]
    fn the_command_line_goes_over_the_file_and_what_is_saved_reads_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("train.toml");
        std::fs::write(&file, "datasets = ['a.jsonl']\nmethod = 'dft'\nlr = 1e-3\n[mix]\nchat = 0.5\n").unwrap();
        let options = Options::resolve(Some(&file), table("method = 'sft-kl'\nkl-weight = 0.25")).unwrap();
        assert_eq!((options.method.name, options.kl_weight, options.learning_rate()), ("sft-kl", Some(0.25), 1e-3));
        assert_eq!((options.mix["chat"], options.batch_size), (0.5, 16));
        let yaml = folder.path().join("train.yaml");
        std::fs::write(
            &yaml,
            "datasets: [a.jsonl]\nmethod: sft-kl\nkl_weight: 0.25 # comment\ngate: null\nlr: 1e-3\nmix:\n  chat: 0.5\n",
        )
        .unwrap();
        assert_eq!(Options::resolve(Some(&yaml), toml::Table::new()).unwrap(), options);
        let again = folder.path().join("again.toml");
        std::fs::write(&again, options.to_toml().unwrap()).unwrap();
        assert_eq!(Options::resolve(Some(&again), toml::Table::new()).unwrap(), options);
    }

    #[test]
    fn broken_files_are_refused_with_their_name() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text, expected) in [
            ("a.toml", "datasets = [", "not TOML"),
            ("a.yaml", "datasets: [a\nmethod: sft", "not a YAML mapping"),
            ("b.yaml", "- a.jsonl", "not a YAML mapping"),
            ("c.yaml", "datasets: [a.jsonl]\nbatch_size: many", "in `batch-size`"),
        ] {
            let file = folder.path().join(name);
            std::fs::write(&file, text).unwrap();
            let error = Options::resolve(Some(&file), toml::Table::new()).unwrap_err();
            let message = error.to_string();
            assert!(message.contains(expected) && message.contains(name) && error.exit_code() == 2, "{message}");
        }
    }

    #[test]
    fn wrong_options_are_refused_by_name() {
        for (text, expected) in [
            ("datasets = []", "no data"),
            ("learning-rate = 1", "learning-rate"),
            ("batch-size = 0", "batch-size"),
            ("batch-size = 'many'", "invalid type"),
            ("method = 'magic'", "magic"),
            ("method = 'sft'\ngate = 'power:2'", "--gate"),
            ("method = 'mask'\ngate = 'mask:0.3'", "--method eaft"),
            ("method = 'dft'\nnormaliser = 'none'", "--normaliser none"),
            ("method = 'pilot'\ntop-k = 50", "--top-k 50"),
            ("top-k = 1", "--top-k 1"),
            ("gate = 'axolotl'\nnormaliser = 'ln-k'", "--gate axolotl"),
            ("gate = 'llama-factory'\nnormaliser = 'none'", "--gate linear --normaliser none"),
            ("gate = 'llama-factory'\ntop-k = 50", "--gate linear --normaliser 3.0 --top-k 50"),
            ("gate = 'power:x'", "power"),
            ("kl-weight = 0.5", "kl-weight"),
            ("method = 'sft'\nintended = ['edits.jsonl']", "--intended"),
            ("validation-share = 1.0", "validation-share"),
            ("lr = -1.0", "lr"),
            ("snapshot-every = 4", "--snapshot-every is for psft"),
            ("method = 'psft'\nsnapshot-every = 0", "--snapshot-every 0"),
            ("method = 'psft'\nlora = true\nlora-dropout = 0.1", "--lora-dropout 0.1"),
            ("dtype = 'f16'", "f16"),
            ("max-steps = 0", "max-steps"),
        ] {
            let text = if text.starts_with("datasets") { text.to_owned() } else { format!("datasets = ['a']\n{text}") };
            let error = Options::resolve(None, table(&text)).unwrap_err();
            assert!(error.to_string().contains(expected) && error.exit_code() == 2, "{text}: {error}");
        }
    }
}
