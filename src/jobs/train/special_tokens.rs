//! Checks the special tokens in the rows before the first step: where answers end, and which tokens the model was never trained on.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::Result;
use crate::format::part_of;
use crate::model::{Model, Reference, end_tokens};
use crate::tokens::{Sequence, Tokenizer};
use crate::train::data::TrainingSet;

/// The special tokens that end answers in the rows but would not stop generation with the model.
pub(super) fn unknown_ends(set: &TrainingSet, tokenizer: &Tokenizer, reference: &Reference) -> Result<Vec<u32>> {
    let mut ends: BTreeMap<u32, usize> = BTreeMap::new();
    for end in set.sequences.iter().filter_map(|sequence| end_of(sequence, tokenizer)) {
        *ends.entry(end).or_default() += 1;
    }
    let known = end_tokens(reference)?;
    // A token that ends one row in a hundred or fewer may be an error in the data.
    let many = |n: usize| 100 * n > set.sequences.len();
    Ok(ends.into_iter().filter(|(id, n)| many(*n) && !known.contains(id)).map(|(id, _)| id).collect())
}

/// The special token that ends the last answer, ignoring white space that the template writes after it.
fn end_of(sequence: &Sequence, tokenizer: &Tokenizer) -> Option<u32> {
    let is_space = |id: u32| !tokenizer.is_special(id) && tokenizer.text(id).trim().is_empty();
    sequence.targets().map(|(_, id)| id).rfind(|&id| !is_space(id)).filter(|&id| tokenizer.is_special(id))
}

/// A remark about [`unknown_ends`].
pub(super) fn note_of_ends(ends: &[u32], tokenizer: &Tokenizer, saves_model: bool) -> Option<String> {
    if ends.is_empty() {
        return None;
    }
    let names: Vec<String> = ends.iter().map(|&id| format!("`{}` (id {id})", tokenizer.text(id))).collect();
    let cure = match saves_model {
        true => "It is added to `eos_token_id` of the model that is saved.",
        false => {
            "It is added to a generation_config.json beside the adapter, which `diagnose export` merges, too; other programs read the \
             base model's: set eos_token_id there when you generate with the adapter, or pass --merge to save the whole model."
        }
    };
    Some(format!(
        "Answers end with {}, which is not among `eos_token_id` of the model: generation would not stop there. {cure}",
        names.join(" and ")
    ))
}

/// A norm below this share of the median indicates an untrained vector.
const FAR_BELOW: f32 = 0.2;

/// The special tokens in the rows whose vectors were never trained.
pub(super) fn untrained(set: &TrainingSet, model: &Model, lora: bool) -> Result<Vec<String>> {
    let tokenizer = &model.tokenizer;
    let (mut rows_of, mut targets): (BTreeMap<u32, u64>, BTreeSet<u32>) = (BTreeMap::new(), BTreeSet::new());
    for sequence in set.sequences.iter().chain(&set.validation) {
        let special = |id: &&u32| tokenizer.is_special(**id);
        for id in sequence.ids.iter().filter(special).collect::<BTreeSet<_>>() {
            *rows_of.entry(*id).or_default() += 1;
        }
        targets.extend(sequence.targets().map(|(_, id)| id));
    }
    let used: Vec<u32> = rows_of.keys().copied().collect();
    let learnt: Vec<u32> = used.iter().copied().filter(|id| targets.contains(id)).collect();
    let mut vectors = vec![("an embedding", &used, model.embedding_norms(&used)?)];
    if let Some(norms) = model.head_norms(&learnt)? {
        vectors.push(("a row of the head", &learnt, norms));
    }
    let n_rows = set.sequences.len() + set.validation.len();
    let cure = match lora {
        true => "Adapters leave it as it is.",
        false => "Fine-tuning gives it only a few small steps.",
    };
    let mut notes = Vec::new();
    for (what, ids, norms) in vectors {
        for (id, norm) in ids.iter().zip(&norms.tokens).filter(|(_, norm)| **norm < FAR_BELOW * norms.median) {
            notes.push(format!(
                "`{}` (id {id}), which {} it, has {what} of norm {norm:.3} where the median of the vocabulary is {:.3}: \
                 it was never trained. {cure} Start from the instruct model, pass a template with tokens that the model knows (--chat-template FILE), or first set it to the mean of the others.",
                tokenizer.text(*id),
                part_of(rows_of.get(id).copied().unwrap_or(0), n_rows as u64, "row", ["uses", "use"]),
                norms.median
            ));
        }
    }
    Ok(notes)
}
