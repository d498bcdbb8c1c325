//! Reads generation_config.json: the defaults of Transformers' `generate`. If a model has no such file, they come from config.json, as
//! `GenerationConfig.from_model_config` reads it.

use serde_json::Value;

use super::end_tokens::ids_of;
use super::folder::{CONFIG, GENERATION};
use crate::error::{Error, Result};
use crate::model::Reference;
use crate::tokens::Tokenizer;

/// The generation settings in a model's files. Temperature, top-k and the like are ignored: the caller decides how answers are sampled.
pub(crate) struct GenerationConfig {
    /// The tokens at which generation stops: those of generation_config.json, otherwise those of config.json, and the tokenizer's own end token.
    pub end_tokens: Vec<u32>,
    /// `repetition_penalty`, which Transformers applies to greedy decoding, too; `None` if it has no effect.
    pub repetition_penalty: Option<f64>,
    /// The first other setting that would make Transformers' answers differ from this program's, such as `num_beams: 4`.
    unfollowed: Option<String>,
    /// The file that contains these settings.
    file: &'static str,
}

/// The value, besides null, at which a setting does not affect greedy decoding.
enum Neutral {
    Zero,
    One,
    /// Only null, false and empty lists.
    Absence,
}
use Neutral::{Absence, One, Zero};

/// Settings with which Transformers 5.24 (`_get_logits_processor`, `get_generation_mode`, `_get_stopping_criteria`) departs from plain greedy
/// decoding, and which this program does not implement.
const UNFOLLOWED: [(&str, Neutral); 22] = [
    ("num_beams", One),
    ("penalty_alpha", Zero),
    ("dola_layers", Absence),
    ("constraints", Absence),
    ("force_words_ids", Absence),
    ("guidance_scale", One),
    ("sequence_bias", Absence),
    ("encoder_repetition_penalty", One),
    ("no_repeat_ngram_size", Zero),
    ("encoder_no_repeat_ngram_size", Zero),
    ("bad_words_ids", Absence),
    ("min_length", Zero),
    ("min_new_tokens", Zero),
    ("forced_bos_token_id", Absence),
    ("forced_eos_token_id", Absence),
    ("exponential_decay_length_penalty", Absence),
    ("suppress_tokens", Absence),
    ("begin_suppress_tokens", Absence),
    ("watermarking_config", Absence),
    ("token_healing", Absence),
    ("stop_strings", Absence),
    ("max_time", Absence),
];

impl GenerationConfig {
    /// Reads the model's configs and adds its tokenizer's end token. Does not need the weights.
    pub(crate) fn read(reference: &Reference, tokenizer: &Tokenizer) -> Result<GenerationConfig> {
        let [config, generation] = reference.generation_files()?;
        GenerationConfig::of(&config.unwrap_or_default(), generation.as_ref(), tokenizer.eos())
    }

    fn of(config: &Value, generation: Option<&Value>, eos: Option<u32>) -> Result<GenerationConfig> {
        let mut end_tokens = generation.map(ids_of).unwrap_or_default();
        // Multimodal models may have these settings in the config of the language model.
        for config in [config, &config["text_config"]] {
            if end_tokens.is_empty() {
                end_tokens = ids_of(config);
            }
        }
        end_tokens.extend(eos);
        end_tokens.sort_unstable();
        end_tokens.dedup();
        let (file, value): (_, &dyn Fn(&str) -> Value) = match generation {
            Some(json) => (GENERATION, &|key| json[key].clone()),
            None => (CONFIG, &|key| match &config[key] {
                Value::Null => config["text_config"][key].clone(),
                value => value.clone(),
            }),
        };
        let repetition_penalty = match value("repetition_penalty") {
            Value::Null => None,
            found => match found.as_f64() {
                Some(penalty) if penalty > 0.0 => Some(penalty).filter(|penalty| *penalty != 1.0),
                _ => {
                    return Err(Error::new(format!("`repetition_penalty`: expected a number above 0, found {found}"))
                        .at(file)
                        .cure("Correct the file in a copy of the model's folder."));
                }
            },
        };
        let changes = |(key, neutral): &(&str, Neutral)| {
            let found = value(key);
            (!neutral.is(&found)).then(|| format!("{key}: {found}"))
        };
        Ok(GenerationConfig { end_tokens, repetition_penalty, unfollowed: UNFOLLOWED.iter().find_map(changes), file })
    }

    /// Returns an error for settings that this program does not implement.
    pub(crate) fn check(&self) -> Result<()> {
        match &self.unfollowed {
            Some(setting) => Err(Error::new(format!(
                "`{setting}` changes greedy answers in Transformers, and this program does not support it"
            ))
            .at(self.file)
            .cure("Remove it from the file in a copy of the model's folder, or leave out tasks with written answers.")),
            None => Ok(()),
        }
    }

    /// The settings that Transformers applies and generation without a repetition penalty does not, in words:
    /// `repetition_penalty: 1.1 (generation_config.json)`.
    pub(crate) fn left_aside(&self) -> Option<String> {
        let penalty = self.repetition_penalty.map(|penalty| format!("repetition_penalty: {penalty}"));
        let settings: Vec<String> = penalty.into_iter().chain(self.unfollowed.clone()).collect();
        (!settings.is_empty()).then(|| format!("`{}` ({})", settings.join("` and `"), self.file))
    }
}

impl Neutral {
    fn is(&self, value: &Value) -> bool {
        match (self, value) {
            (_, Value::Null | Value::Bool(false)) => true,
            (_, Value::Array(values)) => values.is_empty(),
            (_, Value::Object(values)) => values.is_empty(),
            (Zero, Value::Number(n)) => n.as_f64() == Some(0.0),
            (One, Value::Number(n)) => n.as_f64() == Some(1.0),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(config: &Value, generation: Option<&Value>) -> GenerationConfig {
        GenerationConfig::of(config, generation, Some(9)).unwrap()
    }

    #[test]
    fn one_file_is_heard_and_end_tokens_of_both() {
        let config = json!({"eos_token_id": [2, 3], "repetition_penalty": 1.3});
        let found =
            of(&config, Some(&json!({"eos_token_id": 5, "repetition_penalty": 1.05, "temperature": 0.6, "do_sample": true})));
        assert_eq!((found.end_tokens, found.repetition_penalty), (vec![5, 9], Some(1.05)));
        // If there is a generation_config.json, only that counts; settings that it omits have their defaults.
        let found = of(&config, Some(&json!({})));
        assert_eq!((found.end_tokens, found.repetition_penalty), (vec![2, 3, 9], None));
        assert_eq!(of(&config, None).repetition_penalty, Some(1.3));
        let nested = of(&json!({"text_config": {"repetition_penalty": 1.2, "eos_token_id": 4}}), None);
        assert_eq!((nested.repetition_penalty, nested.end_tokens), (Some(1.2), vec![4, 9]));
        assert_eq!(of(&config, None).left_aside().unwrap(), "`repetition_penalty: 1.3` (config.json)");
    }

    #[test]
    fn settings_that_are_not_followed_are_refused_by_name() {
        let check = |generation: Value| of(&json!({}), Some(&generation)).check().map_err(|error| error.to_string());
        for (setting, value) in [("num_beams", json!(4)), ("suppress_tokens", json!([1])), ("forced_eos_token_id", json!(0))] {
            let error = check(json!({ setting: value })).unwrap_err();
            assert!(error.contains(&format!("`{setting}: {value}`")) && error.contains(GENERATION), "{error}");
        }
        // The values that Transformers 4 wrote into every config have no effect, nor do settings that only concern sampling and beams.
        let plain = json!({
            "num_beams": 1, "min_length": 0, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "repetition_penalty": 1.0,
            "bad_words_ids": null, "forced_bos_token_id": null, "suppress_tokens": [], "exponential_decay_length_penalty": null,
            "token_healing": false, "guidance_scale": 1, "length_penalty": 1.0, "top_k": 20, "max_length": 32768,
        });
        assert_eq!(check(plain.clone()), Ok(()));
        assert_eq!(of(&json!({}), Some(&plain)).left_aside(), None);
        let error = GenerationConfig::of(&json!({"repetition_penalty": "1.1"}), None, None).err().unwrap();
        assert!(error.to_string().contains("found \"1.1\""), "{error}");
    }
}
