//! Rejects invalid options: numbers out of range, and options that have no effect without others or contradict them.

use super::{Options, without_adapters};
use crate::diagnosis::gate::Beside;
use crate::error::{Error, Result};
use crate::train::keep::Keep;
use crate::train::schedule::Shape;

/// The bound for most numbers: larger ones are mistakes, and sooner or later overflow in f32 products.
const MOST: f64 = 1e6;

impl Options {
    pub(super) fn check(&self) -> Result<()> {
        if self.datasets.is_empty() {
            return wrong("no data to train on: name a file, or give `datasets` in the configuration");
        }
        self.check_streams()?;
        self.check_counts()?;
        self.check_rates()?;
        self.check_rows()?;
        self.check_method()?;
        self.check_adapters()?;
        // These options have a syntax of their own.
        self.gate()?;
        self.render()?;
        self.read()?;
        Ok(())
    }

    /// Checks the inputs that can be read only once.
    fn check_streams(&self) -> Result<()> {
        let is_stream =
            |name: &String| name == "-" || std::fs::metadata(name).is_ok_and(|found| !found.is_file() && !found.is_dir());
        if self.datasets.iter().chain(&self.validation).filter(|name| *name == "-").count() > 1 {
            return wrong("`-` is given twice, but standard input can be read only once");
        }
        if let Some(name) = self.datasets.iter().find(|name| is_stream(name))
            && self.gate().is_ok_and(|gate| self.method.needs_scores(&gate))
        {
            return Err(Error::usage(format!(
                "--method {} reads the data twice, first for the base model's scores, but `{name}` can be read only once",
                self.method
            ))
            .cure("Write the rows to a file, and name that file."));
        }
        Ok(())
    }

    /// Checks the whole numbers.
    fn check_counts(&self) -> Result<()> {
        let whole = |count: usize| Some(count as u64);
        let counts = [
            ("batch-size", whole(self.batch_size), 1),
            ("lora-r", whole(self.lora_r), 1),
            ("pack-tokens", whole(self.pack_tokens), 1),
            ("keep-checkpoints", whole(self.keep_checkpoints), 1),
            ("max-len", self.max_len.and_then(whole), 2),
            ("top-k", self.top_k.and_then(whole), 2),
            ("eval-every", self.eval_every, 1),
            ("save-every", self.save_every, 1),
            ("max-steps", self.max_steps, 1),
            ("snapshot-every", self.snapshot_every, 1),
            ("limit", self.limit, 1),
            ("sample", self.sample, 1),
            ("stop-after-worse", self.stop_after_worse, 1),
        ];
        for (name, count, least) in counts {
            if let Some(count) = count.filter(|count| *count < least) {
                return wrong(format!("--{name} {count}: expected {least} or more"));
            }
        }
        Ok(())
    }

    /// Checks the fractional numbers, and that a given warm-up fits the schedule.
    fn check_rates(&self) -> Result<()> {
        let above = [("epochs", self.epochs), ("lora-alpha", self.lora_alpha.unwrap_or(1.0))];
        if let Some((name, value)) = above.into_iter().find(|(_, value)| !(*value > 0.0 && *value < MOST)) {
            return wrong(format!("--{name} {value}: expected a number above 0 and less than {MOST}"));
        }
        if let Some(steps) = self.warmup_steps.filter(|steps| *steps >= 1.0 && steps.fract() != 0.0) {
            return wrong(format!("--warmup-steps {steps}: expected a whole number, or a share of the steps below 1"));
        }
        let rates = [
            ("validation-share", self.validation_share, 1.0),
            ("lora-dropout", f64::from(self.lora_dropout), 1.0),
            ("beta1", self.beta1, 1.0),
            ("beta2", self.beta2, 1.0),
            ("warmup-ratio", self.warmup_ratio.unwrap_or(0.0), 1.0),
            // Below this bound, a float represents every whole number exactly.
            ("warmup-steps", self.warmup_steps.unwrap_or(0.0), 1e15),
            ("weight-decay", self.weight_decay, MOST),
            ("kl-weight", f64::from(self.kl_weight.unwrap_or(0.0)), MOST),
            // An arbitrarily large bound means that no gradient is clipped.
            ("clip", self.clip, f64::INFINITY),
            ("eps", self.eps, MOST),
            ("lr", self.learning_rate(), MOST),
        ];
        for (name, value, bound) in rates {
            if !(0.0..bound).contains(&value) {
                let below = if bound.is_finite() { format!("less than {bound}") } else { "finite".to_owned() };
                return wrong(format!("--{name} {value}: expected a number of 0 or more and {below}"));
            }
        }
        let warms_up = [self.warmup_steps, self.warmup_ratio].into_iter().flatten().any(|given| given > 0.0);
        if warms_up && self.schedule == Shape::Constant {
            return Err(Error::usage("a warm-up has no effect under --schedule constant, as in Transformers")
                .cure("Give --schedule constant-with-warmup, or leave the warm-up out."));
        }
        Ok(())
    }

    /// Checks which rows are read, which are held out, and how often they appear.
    fn check_rows(&self) -> Result<()> {
        if self.limit.is_some() && self.sample.is_some() {
            return wrong("--limit takes the first rows and --sample random ones: use only one of them");
        }
        if self.validation_share > 0.0 && !self.validation.is_empty() {
            return wrong("--validation names the rows to hold out and --validation-share draws them: use only one of them");
        }
        let needs_held_out =
            [("--keep best", self.keep == Some(Keep::Best)), ("--stop-after-worse", self.stop_after_worse.is_some())];
        if let Some((name, _)) = needs_held_out.iter().find(|(_, is_given)| *is_given)
            && !self.holds_out()
        {
            return Err(Error::usage(format!("{name} uses the loss on held-out rows, but there are none"))
                .cure("Give --validation FILE, or --validation-share 0.05."));
        }
        if let Some((name, weight)) = self.mix.iter().find(|(_, weight)| !(0.0..MOST).contains(*weight)) {
            return wrong(format!("--mix {name}={weight}: expected a number of 0 or more and less than {MOST}"));
        }
        Ok(())
    }

    /// Checks the options that only some methods have.
    fn check_method(&self) -> Result<()> {
        if !self.intended.is_empty() && !self.method.has_weights() {
            return wrong(format!("--intended overrides a method's weights, but {} has none: leave it out", self.method));
        }
        if self.kl_weight.is_some() && !self.method.needs_reference() {
            return wrong(format!("--kl-weight is for sft-kl and asft, and the method is {}", self.method));
        }
        match self.method.beside {
            Beside::Snapshots { .. } if self.lora_dropout > 0.0 => Err(Error::usage(format!(
                "--lora-dropout {}: {} compares probabilities of one model at two times, and dropout changes them randomly",
                self.lora_dropout, self.method
            ))
            .cure("Leave --lora-dropout out.")),
            Beside::Snapshots { .. } => Ok(()),
            _ if self.snapshot_every.is_some() => {
                wrong(format!("--snapshot-every is for psft, and the method is {}", self.method))
            }
            _ => Ok(()),
        }
    }

    /// Rejects options for adapters if all weights are trained.
    fn check_adapters(&self) -> Result<()> {
        let plain = Options::default();
        let of_adapters = [
            ("merge", self.merge),
            ("lora-r", self.lora_r != plain.lora_r),
            ("lora-alpha", self.lora_alpha.is_some()),
            ("lora-dropout", self.lora_dropout != plain.lora_dropout),
            ("lora-targets", !self.lora_targets.is_empty()),
        ];
        match of_adapters.into_iter().find(|(_, is_given)| *is_given && !self.lora) {
            Some((name, _)) => Err(without_adapters(name)),
            None => Ok(()),
        }
    }
}

fn wrong(what: impl Into<String>) -> Result<()> {
    Err(Error::usage(what))
}
