//! Checks how answers are sampled, for `rollout` and `eval`.

use crate::engine::generate::Sampling;
use crate::error::{Error, Result};

/// Returns the sampling if all given options take effect; `option` requests `times` answers to each prompt.
pub(super) fn checked(sampling: Sampling, option: &str, times: u32) -> Result<Sampling> {
    sampling.check()?;
    if !sampling.is_greedy() {
        return Ok(sampling);
    }
    let cuts =
        [("--top-k", sampling.top_k.is_some()), ("--top-p", sampling.top_p.is_some()), ("--min-p", sampling.min_p.is_some())];
    if let Some((cut, _)) = cuts.iter().find(|(_, is_given)| *is_given) {
        return Err(Error::usage(format!("{cut} has no effect at temperature 0, which takes the most probable token"))
            .cure("Give a --temperature, such as 1, or leave it out."));
    }
    if times > 1 {
        return Err(Error::usage(format!("{option} {times} at temperature 0 would write the same answer {times} times"))
            .cure("Give a --temperature, such as 1."));
    }
    Ok(sampling)
}
