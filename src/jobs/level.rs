//! Refuses to resume a run at another kernel level, since other instructions round sums differently.

use crate::error::Error;
use crate::kernels::level::{Level, VARIABLE};

/// Returns the refusal if the run was begun at another kernel level than `found`; `None` if it was not, or if that is unknown.
pub(super) fn at_another(found: Option<&str>) -> Option<Error> {
    let own = Level::current().name();
    let found = found.filter(|found| !found.is_empty() && *found != own)?;
    Some(
        Error::new(format!(
            "the run in this folder was started at the kernel level {found}; this process uses {own}, which rounds sums differently"
        ))
        .cure(format!(
            "{VARIABLE}={found} resumes it if all else is the same and the processor has that level; or choose another folder with --out."
        )),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_level_is_named_with_the_way_back_to_it() {
        assert!(at_another(None).is_none() && at_another(Some("")).is_none());
        assert!(at_another(Some(Level::current().name())).is_none());
        let error = at_another(Some("avx1024")).unwrap().to_string();
        assert!(error.contains("avx1024") && error.contains(Level::current().name()), "{error}");
        assert!(error.contains("DIAGNOSE_KERNELS=avx1024 resumes it"), "{error}");
    }
}
