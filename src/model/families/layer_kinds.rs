//! Rotary embeddings of families whose windowed layers have their own. Reference: Transformers, `convert_rope_params_to_dict` of
//! `models/gemma3/configuration_gemma3.py` and `models/olmo3/configuration_olmo3.py`.

use serde_json::Value;

use crate::error::{Error, Result};
use crate::json::{flag, present};
use crate::model::rope::Rope;

/// The embeddings of layers without and with a window; `bases` holds their default bases, in this order.
pub(super) fn ropes(json: &Value, bases: (f64, f64), max_positions: usize) -> Result<(Rope, Option<Rope>)> {
    let rope = |parameters: Option<&Value>, theta| match parameters.map(|parameters| flag(parameters, "truncate")).transpose()? {
        // Transformers looks for `truncate` outside the sets, where it is not allowed.
        Some(Some(false)) => {
            Err(Error::new("rope parameters with `truncate` = false are not supported for individual kinds of layers"))
        }
        _ => Rope::from_parameters(parameters, theta, max_positions),
    };
    let Some(sets) = present(json, "rope_parameters") else {
        // In Transformers 4 the scaling applies to layers without a window.
        return Ok((rope(present(json, "rope_scaling"), bases.0)?, Some(rope(None, bases.1)?)));
    };
    // In Transformers 5 each kind of layer has its own set.
    let known = ["full_attention", "sliding_attention"];
    if let Some(kind) = sets.as_object().into_iter().flatten().map(|(kind, _)| kind).find(|kind| !known.contains(&kind.as_str()))
    {
        return Err(Error::new(format!("`rope_parameters` holds `{kind}`; expected {}", known.join(" and "))));
    }
    // A separate `rope_scaling` overrides single values of the set for layers without a window.
    let mut full = present(sets, known[0]).cloned();
    if let Some(scaling) = present(json, "rope_scaling") {
        match (full.as_mut().and_then(Value::as_object_mut), scaling.as_object()) {
            (Some(full), Some(scaling)) => full.extend(scaling.clone()),
            _ => {
                return Err(Error::new(format!(
                    "`rope_scaling` = {scaling} is given beside `rope_parameters`, which lack the `full_attention` that it is for"
                ))
                .cure("Keep only one of the two in config.json."));
            }
        }
    }
    Ok((rope(full.as_ref(), bases.0)?, Some(rope(present(sets, known[1]), bases.1)?)))
}
